"""The CUDA backend: the kernels of ``simulate.cu``, one thread per replica, run through CuPy.

Losses are copied back, and the host sums them tile by tile as it does for the CPU: results are the same bit for bit.

Lanes (replicas) go in chunks, and chunks side by side: each has a stream of the device and a thread of the host, which
also sums its losses, so that small ensembles fill the device together and no thread is waited for. Whatever the number
of replicas, configurations and records, states, scratch and losses of all chunks on the device never take more than its
`memory`, a share of what is free, or a tile of 128 lanes for each chunk where that is more. What the lanes of a chunk
share comes on top of that, in bytes:

- updates of a noisy quadratic: 8·(3D + 2050), and 8·D² more for a full covariance;
- jumps: 8·(3D + 2s²·D), or 8·(3D + s²·D + s²·D²) for a full covariance, s = 2 with momentum and 1 without;
- models made of examples: 8·(4D + 2050) and the data, 8·(ND + N + D²) of least squares, 8·(ND + N + D) of a network.

CuPy may keep freed memory for later use. The host holds the losses of a window of every chunk, and the results.
"""

import collections
import concurrent.futures
import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

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

Result = TypeVar("Result")

MOST_BYTES_OF_A_CHUNK = 2**30
"""Bytes of device memory that a chunk takes at most, which bounds its losses on the host as well."""


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
    memory, stopped = min(target.memory // target.side_by_side, MOST_BYTES_OF_A_CHUNK), threading.Event()
    jobs = [
        functools.partial(_tile_moments, target, work, shared.rows, chunk, stopped)
        for configuration in configurations
        for work in (work_of(shared, configuration),)
        for chunk in _chunks(work, shared.rows, replicas, memory)
    ]
    parts = itertools.chain.from_iterable(_in_order(jobs, target.side_by_side, stopped))
    return merge_in_order(parts, len(configurations), shared.rows, len(replicas), progress, per_tile)


def _in_order(jobs: Sequence[Callable[[], Result]], at_once: int, stopped: threading.Event) -> Iterator[Result]:
    """Results of the jobs in their order, of which so many are under way or waiting to be taken at a time.

    In the end `stopped` is set, so that jobs under way end at their next window if the caller was interrupted.
    """
    if at_once == 1:
        yield from (job() for job in jobs)
        return
    under_way: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(min(at_once, len(jobs)))
    try:
        for job in jobs:
            under_way.append(pool.submit(job))
            if len(under_way) == at_once:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def _chunks(work: Work, rows: int, replicas: range, memory: int) -> list[range]:
    """Cut replicas into chunks of whole tiles that fit into `memory` bytes each."""
    # On the host the two moments of a tile, 16 bytes a row, are shared by its lanes: they are bounded along with the
    # rest.
    moments = -(-16 * rows // LANES)
    return cut(replicas, chunk_lanes(work.lane_bytes + moments, memory=memory, tile=LANES))


def _tile_moments(target: Device, work: Work, rows: int, replicas: range, stopped: threading.Event) -> list[Moments]:
    """Moments of the tiles of a chunk, in the order of their replicas; on a stream of its own."""
    firsts = range(0, len(replicas), LANES)
    means = np.empty((len(firsts), rows))
    spreads = np.empty_like(means)
    done = 0
    # All tiles of a chunk run side by side, window by window; each is summed by itself, as on the CPU.
    with target.stream():
        for losses in work.losses(target, replicas[0], len(replicas)):
            part = slice(done, done + len(losses))
            for tile, first in enumerate(firsts):
                of_tile = np.ascontiguousarray(losses[:, first : first + LANES])
                kernels.moments(of_tile, means[tile, part], spreads[tile, part])
            done += len(losses)
            if stopped.is_set():  # nobody waits for the rest
                return []
    return list(zip(means, spreads, strict=True))
