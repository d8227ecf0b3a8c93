"""Noisy quadratics on a CUDA device, by updates or exact jumps: what `tiles.tile_losses` does, for a chunk of lanes."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from noisysgd.simulators.cuda.device import Device, Lanes, Work
from noisysgd.simulators.cuda.launch import lane_bytes, launch_length
from noisysgd.simulators.ensembles.jump import Transition
from noisysgd.simulators.ensembles.tiles import Configuration, Ensemble, Transitions, scaled_root
from noisysgd.simulators.ensembles.windows import windows
from noisysgd.theory.common.arrays import FloatArray


def steps(shared: Ensemble, configuration: Configuration) -> Work:
    """The work of a configuration that makes every update."""
    size = lane_bytes(
        shared.curvature.size,
        itemsize=shared.precision.dtype.itemsize,
        momentum=configuration.momentum > 0,
        mixed=_mixed(shared) * shared.precision.noise_dtype.itemsize,
        records=min(shared.record.size, _length(shared)),
    )
    return Work(size, partial(_step_losses, shared, configuration))


def jumps(shared: Ensemble, configuration: Configuration) -> Work:
    """The work of a configuration that jumps from record to record, by transitions that all its chunks share."""
    moving = configuration.momentum > 0
    z = 8 * _mixed(shared) * (1 + moving)
    size = lane_bytes(shared.curvature.size, itemsize=8, momentum=moving, mixed=z, records=1)
    return Work(size, partial(_jump_losses, shared, Transitions(shared, configuration), moving))


def _mixed(shared: Ensemble) -> bool:
    """Whether the noise of a coordinate is mixed from numbers of all coordinates, which then have to be held."""
    return shared.noise_root.ndim == 2


def _length(shared: Ensemble) -> int:
    """Steps of a window."""
    dim = shared.curvature.size
    return launch_length(dim * (dim if _mixed(shared) else 1))


def _started(run: Lanes, shared: Ensemble, moving: bool, replica: int) -> tuple[object, object, object]:
    """Initial states and velocities of all lanes, and the curvature, in the memory of the device."""
    kind, dim = shared.precision.dtype, shared.curvature.size
    theta, velocity = run.zeros(dim, kind), run.zeros(dim if moving else 0, kind)
    law = (run.device.upload(array) for array in (shared.initial_mean, shared.initial_deviation))
    run(f"start_{kind}", dim, theta, *law, shared.seed, np.uint64(replica))
    return theta, velocity, run.device.upload(shared.curvature)


def _initial_losses(run: Lanes, shared: Ensemble, theta: object, curvature: object) -> Iterator[FloatArray]:
    """A block of the losses at step 0, if they are recorded."""
    if shared.record[0] == 0:
        losses = run.zeros(1, np.float64)
        run(f"add_losses_{shared.precision.dtype}", shared.curvature.size, losses, theta, curvature)
        copied = run.device.download(losses)
        del losses  # before the next ones are made: device memory is bounded
        yield copied


def _step_losses(
    shared: Ensemble, configuration: Configuration, target: Device, replica: int, lanes: int
) -> Iterator[FloatArray]:
    """Losses of `lanes` replicas from `replica` on, a block of (records, lanes) per window."""
    precision, dim, full = shared.precision, shared.curvature.size, _mixed(shared)
    run = Lanes(target, lanes)
    theta, velocity, curvature = _started(run, shared, configuration.momentum > 0, replica)
    yield from _initial_losses(run, shared, theta, curvature)
    scaled = scaled_root(shared, configuration)
    root = target.upload(scaled)
    mixing = (np.int32(bool((scaled != 0).any())), run.zeros(dim, precision.noise_dtype)) if full else ()
    for window in windows(shared.schedule, shared.record, configuration.learning_rate, _length(shared)):
        # As on the CPU: where all lanes have diverged, the remaining steps would change no loss.
        if not run.alive(dim, theta, precision.dtype.name):
            yield np.full((window.records_left, lanes), np.inf)
            return
        losses = run.zeros(window.records, np.float64)
        run(
            f"advance_{'full' if full else 'diagonal'}_{precision.name}",
            dim,
            np.int32(window.rates.size),
            losses,
            theta,
            velocity,
            curvature,
            root,
            *mixing,
            precision.scalar(configuration.momentum),
            target.upload(precision.of(window.rates)),
            target.upload(window.slots),
            shared.seed,
            np.uint64(replica),
            np.uint64(window.step),
            np.float64(shared.law.tails),
        )
        copied = target.download(losses)
        del losses  # as in _initial_losses
        # Without records `losses` is a placeholder (`Lanes.zeros`).
        if window.records:
            yield copied


def _jump_losses(
    shared: Ensemble, transitions: Transitions, moving: bool, target: Device, replica: int, lanes: int
) -> Iterator[FloatArray]:
    """Losses of `lanes` replicas from `replica` on, a block of (1, lanes) per record."""
    dim, full = shared.curvature.size, _mixed(shared)
    run = Lanes(target, lanes)
    theta, velocity, curvature = _started(run, shared, moving, replica)
    yield from _initial_losses(run, shared, theta, curvature)
    z = (run.zeros(dim * (1 + moving), np.float64),) if full else ()
    ends, before = shared.record[shared.record > 0], 0
    there: tuple[object, ...] = ()
    held: Transition | None = None
    for k, end in enumerate(ends.tolist()):
        law = transitions.between(before, end)
        # Powers that overflow leave no state to go on from: this record and all later ones are infinite.
        if not law.finite:
            yield np.full((ends.size - k, lanes), np.inf)
            return
        # Records at equal distances share a transition, which is then copied once.
        if law is not held:
            there = ()  # frees the one before: device memory is bounded
            there, held = tuple(target.upload(np.ascontiguousarray(part)) for part in (law.power, law.root)), law
        losses = run.zeros(1, np.float64)
        run(
            f"jump_{'full' if full else 'diagonal'}_float64",
            dim,
            losses,
            theta,
            velocity,
            np.int32(moving),
            curvature,
            *there,
            np.int32(law.noisy),
            *z,
            shared.seed,
            np.uint64(replica),
            np.uint64(end - 1),
        )
        copied = target.download(losses)
        del losses  # as in _initial_losses
        yield copied
        before = end
