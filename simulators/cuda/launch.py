"""How work is laid out on a GPU: threads in blocks, blocks in a grid, lanes in chunks that fit into memory.

None of it changes a bit of a result.
"""

from dataclasses import dataclass

from noisysgd.simulators.ensembles.tiles import WINDOW_STEPS
from noisysgd.theory.common import checks

WINDOW_WORK = 2**20
"""Updates of a lane in one launch, or products where one update takes many: well below a second, after which it can be
interrupted."""

BLOCKS = (256, 128, 64, 32)
"""Threads of a block, the best first. The kernels are compiled for at most the largest."""

REGISTER_FILE = 65536
MAX_REGISTERS = 255
MAX_GRID = 2**31 - 1
_REGISTERS_AT_A_TIME = 8
"""Registers of a multiprocessor and of a thread, and how they are handed out: compute capabilities 5.0 to 12."""


@dataclass(frozen=True)
class Geometry:
    """Blocks of a grid, and threads of a block."""

    grid: int
    block: int


def geometry(lanes: int, *, registers: int, multiprocessors: int) -> Geometry:
    """Lay out one thread per lane.

    The largest block whose registers fit, and of which every multiprocessor gets one; the smallest where lanes are few.

    Examples
    --------
    >>> geometry(100_000, registers=62, multiprocessors=108)
    Geometry(grid=391, block=256)
    >>> geometry(8192, registers=62, multiprocessors=108)
    Geometry(grid=128, block=64)
    """
    remedy = "Run at least one lane."
    checks.require(1 <= lanes <= MAX_GRID * BLOCKS[-1], "lanes", f"1 to {MAX_GRID * BLOCKS[-1]}", lanes, remedy)
    remedy = "No thread has more on any NVIDIA GPU."
    checks.require(1 <= registers <= MAX_REGISTERS, "registers", f"1 to {MAX_REGISTERS}", registers, remedy)
    checks.require(multiprocessors >= 1, "multiprocessors", "at least one", multiprocessors, "Ask the device.")
    rounded = -(-registers // _REGISTERS_AT_A_TIME) * _REGISTERS_AT_A_TIME
    fitting = [block for block in BLOCKS if block * rounded <= REGISTER_FILE]
    spread = [block for block in fitting if -(-lanes // block) >= multiprocessors]
    block = (spread or fitting[-1:])[0]
    return Geometry(-(-lanes // block), block)


def lane_bytes(dim: int, *, itemsize: int, momentum: bool, mixed: int, records: int) -> int:
    """Bytes of device memory that one lane of a noisy quadratic needs.

    θ, u with momentum, its losses, and `mixed` bytes per coordinate for noise that is mixed from all of them.

    >>> lane_bytes(64, itemsize=8, momentum=True, mixed=0, records=1)
    1032
    """
    return dim * (itemsize * (1 + momentum) + mixed) + 8 * records


def chunk_lanes(lane: int, *, memory: int, tile: int) -> int:
    """Lanes of a chunk: as many whole tiles as fit into `memory` bytes, `lane` bytes each, and at least one.

    >>> chunk_lanes(1032, memory=2**28, tile=128)
    260096
    """
    return max(memory // (lane * tile), 1) * tile


def window_steps(work: int) -> int:
    """Steps of a launch, given the updates or products of one step."""
    return min(max(WINDOW_WORK // max(work, 1), 1), WINDOW_STEPS)
