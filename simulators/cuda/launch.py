"""How work is laid out on a GPU: threads in blocks, blocks in a grid, lanes in chunks that fit into memory.

A lane is one replica, and one thread runs it. None of the layout changes a bit of a result.
"""

from dataclasses import dataclass

from noisysgd.simulators.ensembles.windows import window_length
from noisysgd.theory.common import checks

LAUNCH_WORK = 2**20
"""Most work of one lane in one launch: updates of one coordinate, or products where an update takes many.

That is well below a second, after which the simulation can be interrupted.
"""

BLOCKS = (256, 128, 64, 32)
"""Numbers of threads that a block may have, the best first. The kernels are compiled for at most the largest."""

REGISTER_FILE = 65536
MAX_REGISTERS = 255
MAX_GRID = 2**31 - 1
_REGISTERS_AT_A_TIME = 8
"""Registers of a multiprocessor; most registers of a thread; most blocks of a grid; and the portions that a thread's
registers come in. The same for all compute capabilities from 5.0 to 12."""


@dataclass(frozen=True)
class Geometry:
    """Number of blocks of a grid, and of threads of a block."""

    grid: int
    block: int


def geometry(lanes: int, *, registers: int, multiprocessors: int) -> Geometry:
    """Lay out one thread per lane.

    The block is the largest whose registers fit and that still makes one block for every multiprocessor; where lanes
    are too few for that, the smallest.

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
    # A block starts only if the registers of all its threads fit at once: a larger one would not run at all.
    rounded = -(-registers // _REGISTERS_AT_A_TIME) * _REGISTERS_AT_A_TIME
    fitting = [block for block in BLOCKS if block * rounded <= REGISTER_FILE]
    # Few lanes in large blocks would leave some multiprocessors without any.
    spread = [block for block in fitting if -(-lanes // block) >= multiprocessors]
    block = (spread or fitting[-1:])[0]
    return Geometry(-(-lanes // block), block)


def lane_bytes(dim: int, *, itemsize: int, momentum: bool, mixed: int, records: int) -> int:
    """Bytes of device memory that one lane of a noisy quadratic needs.

    These are θ, u with momentum, and the losses of `records` records, with `mixed` more bytes per coordinate where the
    noise of each coordinate is mixed from numbers of all, which have to be held.

    >>> lane_bytes(64, itemsize=8, momentum=True, mixed=0, records=1)
    1032
    """
    return dim * (itemsize * (1 + momentum) + mixed) + 8 * records


def chunk_lanes(lane: int, *, memory: int, tile: int) -> int:
    """Lanes of a chunk: as many whole tiles as fit into `memory` at `lane` bytes per lane, and at least one tile.

    >>> chunk_lanes(1032, memory=2**28, tile=128)
    260096
    """
    return max(memory // (lane * tile), 1) * tile


def launch_length(step_work: int) -> int:
    """Steps of a window on the GPU, which one launch makes, given the work of one step of a lane."""
    return window_length(step_work, LAUNCH_WORK)
