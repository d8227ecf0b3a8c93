"""The CUDA backend: the kernels of ``simulate.cu``, one thread per replica, run through CuPy.

Losses are copied back, and the host sums them tile by tile as it does for the CPU: results are the same bit for bit.

Lanes (replicas) go in chunks. Whatever the number of replicas, configurations and records, states, scratch and losses
on the device never take more than `MEMORY` bytes, or one tile of 128 lanes where that is more. What all lanes share
comes on top of that, in bytes:

- updates of a noisy quadratic: 8·(3D + 2050), and 8·D² more for a full covariance;
- jumps: 8·(3D + 2s²·D), or 8·(3D + s²·D + s²·D²) for a full covariance, s = 2 with momentum and 1 without;
- models made of examples: 8·(4D + 2050) and the data, 8·(ND + N + D²) of least squares, 8·(ND + N + D) of a network.

CuPy may keep freed memory for later use. The host holds as much again, and the results.
"""

from collections.abc import Callable, Iterator

import numpy as np

from noisysgd.simulators.cuda import example_models, quadratics
from noisysgd.simulators.cuda.device import Device, Work
from noisysgd.simulators.cuda.launch import chunk_lanes
from noisysgd.simulators.ensembles import trajectory_kernels as kernels
from noisysgd.simulators.ensembles.tiles import LANES, Configuration, Ensemble, Moments, cut, merge_in_order
from noisysgd.simulators.models.diagonal_network import DiagonalNetwork
from noisysgd.simulators.models.example_model import ExampleEnsemble
from noisysgd.simulators.models.finite_least_squares import FiniteLeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic

MEMORY = 2**28
"""Bytes of device memory for the states, scratch and losses of a chunk of lanes."""


def runs(problem: object) -> bool:
    """Whether this backend has kernels for a problem."""
    return isinstance(problem, NoisyQuadratic | FiniteLeastSquares | DiagonalNetwork)


def work_of(shared: Ensemble | ExampleEnsemble, configuration: Configuration) -> Work:
    """The memory that one lane of a configuration needs, and how its losses are made."""
    if isinstance(shared, Ensemble):
        make = quadratics.jumps if shared.exact_jumps else quadratics.steps
        return make(shared, configuration)
    if isinstance(shared.model, FiniteLeastSquares):
        return example_models.least_squares(shared.model, shared, configuration)
    assert isinstance(shared.model, DiagonalNetwork)
    return example_models.network(shared.model, shared, configuration)


def simulate_all(
    target: Device,
    shared: Ensemble | ExampleEnsemble,
    configurations: list[Configuration],
    replicas: range,
    progress: Callable[[int, int], object] | None,
    per_tile: Moments | None = None,
) -> Moments:
    """Moments of every configuration over all replicas, as `tiles.simulate_all`."""
    parts = (
        part
        for configuration in configurations
        for work in (work_of(shared, configuration),)
        for chunk in _chunks(work, shared.rows, replicas)
        for part in _tile_moments(target, work, shared.rows, chunk)
    )
    return merge_in_order(parts, len(configurations), shared.rows, len(replicas), progress, per_tile)


def _chunks(work: Work, rows: int, replicas: range) -> list[range]:
    """Cut replicas into chunks of whole tiles that fit into memory."""
    # On the host the two moments of a tile, 16 bytes a row, are shared by its lanes: they are bounded along with the
    # rest.
    moments = -(-16 * rows // LANES)
    return cut(replicas, chunk_lanes(work.lane_bytes + moments, memory=MEMORY, tile=LANES))


def _tile_moments(target: Device, work: Work, rows: int, replicas: range) -> Iterator[Moments]:
    """Moments of the tiles of a chunk, in the order of their replicas."""
    firsts = range(0, len(replicas), LANES)
    means = np.empty((len(firsts), rows))
    spreads = np.empty_like(means)
    done = 0
    # All tiles of a chunk run side by side, window by window; each is summed by itself, as on the CPU.
    for losses in work.losses(target, replicas[0], len(replicas)):
        part = slice(done, done + len(losses))
        for tile, first in enumerate(firsts):
            of_tile = np.ascontiguousarray(losses[:, first : first + LANES])
            kernels.moments(of_tile, means[tile, part], spreads[tile, part])
        done += len(losses)
    yield from zip(means, spreads, strict=True)
