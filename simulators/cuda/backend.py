"""The CUDA backend: the kernels of ``simulate.cu``, one thread per replica, run through CuPy.

Losses are copied back, and the host sums them tile by tile as it does for the CPU: results are the same bit for bit.

Lanes go in chunks. Whatever the number of replicas, configurations and records, arrays on the device are at any time at
most `MEMORY` bytes of states, scratch and losses (or one tile of 128 lanes, where that is more) and what all lanes
share, in bytes:

- updates of a noisy quadratic: 8·(3D + 2050), and 8·D² more for a full covariance;
- jumps: 8·(3D + 2s²·D), or 8·(3D + s²·D + s²·D²) for a full covariance, s = 2 with momentum and 1 without;
- models made of examples: 8·(4D + 2050) and the data, 8·(ND + N + D²) of least squares, 8·(ND + N + D) of a network.

CuPy may keep what was freed for later use. The host holds as much again, and the results.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from noisysgd.simulators.cuda import example_models as cuda_examples
from noisysgd.simulators.cuda import quadratics as cuda_quadratics
from noisysgd.simulators.cuda.device import Device, Work
from noisysgd.simulators.cuda.launch import chunk_lanes
from noisysgd.simulators.ensembles import trajectory_kernels as kernels
from noisysgd.simulators.ensembles.tiles import LANES, Configuration, Ensemble, Moments, merge
from noisysgd.simulators.models.diagonal_network import DiagonalNetwork
from noisysgd.simulators.models.example_model import ExampleEnsemble
from noisysgd.simulators.models.finite_least_squares import FiniteLeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic

MEMORY = 2**28
"""Bytes of device memory for the states, scratch and losses of a chunk of lanes."""


def runs(problem: Any) -> bool:
    """Whether there are kernels for a problem."""
    return isinstance(problem, NoisyQuadratic | FiniteLeastSquares | DiagonalNetwork)


def work_of(shared: Ensemble | ExampleEnsemble, configuration: Configuration) -> Work:
    """What one lane of a configuration needs, and how its losses are made."""
    if isinstance(shared, Ensemble):
        make = cuda_quadratics.jumps if shared.exact_jumps else cuda_quadratics.steps
        return make(shared, configuration)
    if isinstance(shared.model, FiniteLeastSquares):
        return cuda_examples.least_squares(shared.model, shared, configuration)
    assert isinstance(shared.model, DiagonalNetwork)
    return cuda_examples.network(shared.model, shared, configuration)


def simulate_all(
    target: Device,
    shared: Ensemble | ExampleEnsemble,
    configurations: list[Configuration],
    replicas: range,
    progress: Callable[[int, int], object] | None,
    kept: Moments | None = None,
) -> Moments:
    """Moments of every configuration over all replicas, as `tiles.simulate_all`."""
    means = np.empty((len(configurations), shared.rows))
    spreads = np.empty_like(means)
    tiles, done = -(-len(replicas) // LANES), 0
    for row, configuration in enumerate(configurations):
        work = work_of(shared, configuration)
        parts = (
            part
            for chunk in _chunks(work, shared.rows, replicas)
            for part in _tile_moments(target, work, shared.rows, chunk)
        )
        for tile, part in enumerate(parts):
            if kept is not None:
                kept[0][row, :, tile], kept[1][row, :, tile] = part
            if tile > 0:
                size = min(LANES, len(replicas) - LANES * tile)
                part = merge((means[row], spreads[row]), LANES * tile, part, size)
            means[row], spreads[row] = part
            done += 1
            if progress is not None:
                progress(done, tiles * len(configurations))
    return means, spreads


def _chunks(work: Work, rows: int, replicas: range) -> list[range]:
    moments = -(-16 * rows // LANES)  # of tiles, on the host
    lanes = chunk_lanes(work.lane_bytes + moments, memory=MEMORY, tile=LANES)
    return [replicas[first : first + lanes] for first in range(0, len(replicas), lanes)]


def _tile_moments(target: Device, work: Work, rows: int, replicas: range) -> Iterator[Moments]:
    """Moments of the tiles of a chunk, in their order."""
    firsts = range(0, len(replicas), LANES)
    means = np.empty((len(firsts), rows))
    spreads = np.empty_like(means)
    done = 0
    for losses in work.losses(target, replicas[0], len(replicas)):
        part = slice(done, done + len(losses))
        for tile, first in enumerate(firsts):
            own = np.ascontiguousarray(losses[:, first : first + LANES])
            kernels.moments(own, means[tile, part], spreads[tile, part])
        done += len(losses)
    yield from zip(means, spreads, strict=True)
