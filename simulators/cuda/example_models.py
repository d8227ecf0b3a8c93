"""Models made of training examples on a CUDA device: what their methods `losses` do, for a chunk of lanes.

A lane draws its batches in scratch of its own: an order of the indices of all examples, and the swaps that made it.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from noisysgd.simulators.cuda.device import Device, Lanes, Work
from noisysgd.simulators.cuda.launch import launch_length
from noisysgd.simulators.ensembles.tiles import Configuration
from noisysgd.simulators.ensembles.windows import windows
from noisysgd.simulators.models.diagonal_network import DiagonalNetwork, Updates
from noisysgd.simulators.models.example_model import ExampleEnsemble
from noisysgd.simulators.models.finite_least_squares import FiniteLeastSquares
from noisysgd.simulators.randomness.batches import SAMPLINGS
from noisysgd.theory.common.arrays import FloatArray


def batch_rows(sampling: str, drawn: int, population: int) -> tuple[int, int]:
    """Rows of a lane's scratch for batches of `drawn` examples: indices in its order, and swaps to undo.

    Without replacement the swaps are undone after every batch. With replacement the drawn indices alone are held.

    >>> [batch_rows(sampling, 8, 100) for sampling in SAMPLINGS]
    [(100, 8), (8, 0), (100, 0)]
    """
    if drawn == 0:
        return 0, 0
    return (drawn if sampling == "with_replacement" else population), (drawn if sampling == SAMPLINGS[0] else 0)


def _windows(
    run: Lanes,
    shared: ExampleEnsemble,
    learning_rate: float,
    length: int,
    state: object,
    rows: int,
    advance: Callable[..., None],
) -> Iterator[FloatArray]:
    """Losses window by window; ``advance(losses, step, steps, rates, slots)`` launches the kernel of one window.

    `state` has `rows` numbers per lane, all of which are finite unless the lane has diverged.
    """
    metrics = len(shared.model.metrics)
    for window in windows(shared.schedule, shared.record, learning_rate, length):
        # As on the CPU: where all lanes have diverged, the remaining steps would change no loss.
        if not run.alive(rows, state, "float64"):
            yield np.full((metrics * window.records_left, run.count), np.inf)
            return
        losses = run.zeros(metrics * window.records, np.float64)
        there = run.device.upload(window.rates), run.device.upload(window.slots)
        advance(losses, np.uint64(window.step), np.int32(window.rates.size), *there)
        copied = run.device.download(losses)
        del losses, there  # before the next ones are made: device memory is bounded
        # Without records `losses` is a placeholder (`Lanes.zeros`).
        if window.records:
            yield copied


def least_squares(model: FiniteLeastSquares, shared: ExampleEnsemble, configuration: Configuration) -> Work:
    """The work of minibatches of least squares. A lane holds θ, u, the gradient, losses, and its batch."""
    population, dim = model.inputs.shape
    drawn = model.drawn(configuration.batch_size, shared.sampling)
    length = launch_length(model.work(drawn))
    batch = batch_rows(shared.sampling, drawn, population)
    size = 8 * (3 * dim + min(shared.record.size, length)) + 4 * sum(batch)
    return Work(size, partial(_least_squares_losses, model, shared, configuration, drawn, length, batch))


def _least_squares_losses(
    model: FiniteLeastSquares,
    shared: ExampleEnsemble,
    configuration: Configuration,
    drawn: int,
    length: int,
    batch: tuple[int, int],
    target: Device,
    replica: int,
    lanes: int,
) -> Iterator[FloatArray]:
    """Losses of `lanes` replicas from `replica` on, a block of (records, lanes) per window."""
    run, dim, place = Lanes(target, lanes), model.inputs.shape[1], (shared.seed, np.uint64(replica))
    theta, velocity, gradient = (run.zeros(dim, np.float64) for _ in range(3))
    law = model.initial_mean - model.minimizer, np.sqrt(model.initial_variance)
    run("start_float64", dim, theta, *map(target.upload, law), *place)
    order, picks = (run.zeros(rows, np.uint32) for rows in batch)
    inputs, residuals, hessian = map(target.upload, (model.inputs, model.residuals, model.hessian))
    if shared.record[0] == 0:
        losses = run.zeros(1, np.float64)
        run("excess_losses_float64", dim, losses, theta, hessian)
        copied = target.download(losses)
        del losses  # as in _windows
        yield copied

    def advance(losses: object, step: np.uint64, steps: np.int32, rates: object, slots: object) -> None:
        data = inputs, residuals, hessian, np.int64(len(model.targets))
        how = np.int64(drawn), np.int32(SAMPLINGS.index(shared.sampling))
        scratch = gradient, order, picks
        momentum = np.float64(configuration.momentum)
        arguments = steps, losses, theta, velocity, *scratch, *data, momentum, rates, slots, *how, *place, step
        run("least_squares_float64", dim, *arguments)

    yield from _windows(run, shared, configuration.learning_rate, length, theta, dim, advance)


def network(model: DiagonalNetwork, shared: ExampleEnsemble, configuration: Configuration) -> Work:
    """The work of a diagonal network.

    A lane holds 2d weights and 2d velocities, β and the gradient with respect to it, losses, noise, how often each
    example is taken, and its batch.
    """
    count, dim = model.inputs.shape
    updates = model.updates(shared, configuration)
    length = launch_length(model.work(updates))
    batch = batch_rows(shared.sampling, updates.rest, count)
    # Gaussian noise takes one number per example for labels and one for sampling.
    z = updates.visited if updates.real else 2 * count
    times = count if updates.whole else 0
    size = 8 * (6 * dim + 2 * min(shared.record.size, length) + z + times) + 4 * sum(batch)
    return Work(size, partial(_network_losses, model, shared, updates, length, (z, times, batch)))


def _network_losses(
    model: DiagonalNetwork,
    shared: ExampleEnsemble,
    updates: Updates,
    length: int,
    rows: tuple[int, int, tuple[int, int]],
    target: Device,
    replica: int,
    lanes: int,
) -> Iterator[FloatArray]:
    """Losses of `lanes` replicas from `replica` on, a block of (2 · records, lanes) per window."""
    run, dim = Lanes(target, lanes), model.inputs.shape[1]
    z_rows, times_rows, batch = rows
    start = np.full(2 * dim, model.initialization)
    weights, velocity, beta, pull = (run.zeros(size, np.float64) for size in (2 * dim, 2 * dim, dim, dim))
    z, times = run.zeros(z_rows, np.float64), run.zeros(times_rows, np.int64)
    order, picks = (run.zeros(size, np.uint32) for size in batch)
    data = *map(target.upload, (model.inputs, model.targets, model.truth)), np.int64(len(model.targets))
    place = shared.seed, np.uint64(replica)
    # All replicas start alike: the same kernel as elsewhere, with a deviation of 0 for the normals that it draws.
    run("start_float64", 2 * dim, weights, target.upload(start), target.zeros(start.shape, np.float64), *place)
    if shared.record[0] == 0:
        losses = run.zeros(2, np.float64)
        run("network_losses_float64", dim, losses, weights, beta, *data)
        copied = target.download(losses)
        del losses  # as in _windows
        yield copied

    def advance(losses: object, step: np.uint64, steps: np.int32, rates: object, slots: object) -> None:
        momentum = np.float64(updates.momentum)
        if updates.real:
            how = np.int64(updates.whole), np.int64(updates.rest), np.int32(SAMPLINGS.index(shared.sampling))
            scratch = beta, pull, z, times, order, picks
            arguments = *scratch, *data, momentum, rates, slots, *how, np.float64(updates.label)
            run("network_batches_float64", dim, steps, losses, weights, velocity, *arguments, *place, step)
        else:
            scales = np.float64(updates.label), np.float64(updates.sampled)
            arguments = beta, pull, z, *data, momentum, rates, slots, *scales
            run("network_gaussian_float64", dim, steps, losses, weights, velocity, *arguments, *place, step)

    yield from _windows(run, shared, updates.learning_rate, length, weights, 2 * dim, advance)
