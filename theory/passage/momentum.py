"""First passages of heavy ball: how configurations are laid out for ``momentum_passage_kernels``.

A mode with x = ελ beyond 1 + m alternates: (−1)^t θ_t is a mode with x reflected to 2(1+m) − x that starts at d = −2
instead of 0, and losses know only squares. So what is close to the edge of stability is as slow, and as accurate in
powers of its step matrix, as what is close to flat.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.passage.spectral_quadrature import SpectralRule

RUNGS = 54
"""Strides 2⁰ … 2⁵³."""
TURN = 1.25
"""Radians, below a half period, that a mode may turn in a stride."""
CLOSE_TO_THE_EDGE = 1e-3
"""Distance 2(1+m) − ελ from the edge of stability below which stationary noise is too large to subtract from."""
ROUNDING = 1e-15
"""Of the stationary noise, from which what is left of it is subtracted."""
STILL, SLOW = 1e-300, 1e-140
"""ελ of modes that do not move in any number of steps, and of those whose velocity counts for nothing beside θ."""
LARGEST = 1e6
"""Squared amplitude at which that of an oscillation close to critical damping counts."""
AT_ONCE = 100_000
"""Modes times configurations that are laid out at a time."""


@dataclass(frozen=True)
class Modes:
    """Modes of C configurations by falling frequency, and how long a stride each bears.

    Attributes
    ----------
    x, mass : (C, n) array
        ελ, reflected where it is beyond 1 + m, and what the mode adds to the loss per E θ².
    start : (C, n) array
        d at the start.
    swing : (C,) array
        swing · m^t bounds the loss of all oscillating modes.
    bend : (C, n + 1) array
        bend[i] m^t bounds the second derivative of the loss of the oscillating modes from i on.
    begin : (C, RUNGS + 1) array of int
        The first mode that turns by at most TURN in 2^k steps.
    waves, unstable : (C,) array of int
        How many modes oscillate so well that their second derivative is bounded usefully; the first that grows.
    """

    x: FloatArray
    start: FloatArray
    mass: FloatArray
    swing: FloatArray
    bend: FloatArray
    begin: IntArray
    waves: IntArray
    unstable: IntArray


@dataclass(frozen=True)
class Noise:
    """Modes of the noise of C configurations, those close to the edge of stability or beyond, the loud ones, last.

    Attributes
    ----------
    x, kicks : (C, n) array
        ελ, reflected where it is beyond 1 + m, and what a unit of variance adds to the loss.
    forms : (C, 3, n) array
        Quadratic forms in (θ, d) of a quiet mode: what is left of its stationary noise.
    quiet : (C,) array of int
        How many are quiet.
    total : (C,) array
        Stationary loss of the quiet ones.
    """

    x: FloatArray
    kicks: FloatArray
    forms: FloatArray
    quiet: IntArray
    total: FloatArray


def momentum_passages(
    decay: SpectralRule,
    noise: SpectralRule,
    rates: FloatArray,
    factors: FloatArray,
    momenta: FloatArray,
    targets: FloatArray,
    limits: FloatArray,
    errors: FloatArray,
    status: IntArray,
    steps: FloatArray,
    losses: FloatArray,
) -> None:
    """Scan every configuration from `steps` to `limits` for losses up to targets + errors, as ``sgd_passages`` does.

    Rounding that exceeds an error, if that is not zero, becomes the error.
    """
    from noisysgd.theory.passage.momentum_kernels import momentum_scan

    size = decay.nodes.size
    ladder, state = np.empty((RUNGS, 5, size + noise.nodes.size)), np.empty((4, size + noise.nodes.size))
    log_m = np.log(momenta)
    scanned = np.flatnonzero(limits >= steps)
    for chosen in np.array_split(scanned, 1 + scanned.size * ladder.shape[2] // AT_ONCE):
        with np.errstate(over="ignore", invalid="ignore"):  # a learning rate of 1e200 diverges at once
            modes = lay_out_modes(decay, rates[chosen], momenta[chosen])
            kicks = lay_out_noise(noise, rates[chosen], factors[chosen], momenta[chosen])
        rounding = np.where(errors[chosen] > 0.0, ROUNDING * kicks.total, 0.0)
        errors[chosen] = np.maximum(errors[chosen], rounding)
        for row, c in enumerate(chosen):
            step = ladder[0]
            step[2, :size], step[2, size:], step[3] = modes.x[row], kicks.x[row], momenta[c]
            step[0], step[4] = 1.0 - step[2], -step[2]
            step[1] = -momenta[c]
            state[0], state[1, :size], state[1, size:] = 1.0, modes.start[row], 0.0
            arguments: list[Any] = [ladder, state, *_row(modes, row)[2:], *_row(kicks, row)[1:]]
            arguments += [log_m[c], steps[c], targets[c] + errors[c], limits[c]]
            status[c], steps[c], losses[c, 0], losses[c, 1], drift = momentum_scan(*arguments)
            errors[c] += drift


def lay_out_modes(rule: SpectralRule, rates: FloatArray, momenta: FloatArray) -> Modes:
    """The modes of a rule at learning rates and momenta, (C,), 0 < m < 1."""
    m = momenta[:, None]
    x = rates[:, None] * rule.nodes
    order = np.argsort(np.abs(x - (1.0 + m)), axis=1, kind="stable")
    x, mass = np.take_along_axis(x, order, 1), rule.weights[order]
    # (1+m−x)² − 4m and the distance from the edge, as kernels.discriminant_and_edge has them.
    edge = 2.0 * m - (x - 2.0)
    critical = ((1.0 - m) / (1.0 + np.sqrt(m))) ** 2
    opposite = (critical - x) * (critical - edge)  # 4m − (1+m−x)², positive where roots are complex
    wave = opposite > 0.0
    opposite = np.where(wave, opposite, 1.0)
    omega = np.where(wave, np.arctan2(np.sqrt(opposite), np.abs(1.0 + m - x)), 0.0)
    with np.errstate(divide="ignore"):
        bears = np.clip(np.floor(np.log2(TURN / omega)), 0, RUNGS - 1).astype(np.int64)
    bears = np.minimum.accumulate(bears[:, ::-1], axis=1)[:, ::-1]
    counts = np.zeros((rates.size, RUNGS + 1), np.int64)
    np.add.at(counts, (np.arange(rates.size)[:, None], bears + 1), 1)
    squared_amplitude = np.where(wave, 1.0 + (1.0 - m - x) ** 2 / opposite, np.inf)
    tame = np.logical_and.accumulate(squared_amplitude <= 4.0, axis=1)
    swing = np.where(wave, mass * np.minimum(squared_amplitude, LARGEST), 0.0).sum(axis=1)
    curve = np.where(tame, mass * (np.log(m) ** 2 + 2.0 * omega**2), 0.0) * np.minimum(squared_amplitude, 4.0)
    bend = np.zeros((rates.size, rule.nodes.size + 1))
    bend[:, :-1] = np.cumsum(curve[:, ::-1], axis=1)[:, ::-1]
    unstable = rule.nodes.size - np.count_nonzero(edge < 0.0, axis=1)
    beyond = x > 1.0 + m
    x, start = np.where(beyond, edge, x), np.where(beyond, -2.0, 0.0)
    return Modes(x, start, mass, swing, bend, np.cumsum(counts, axis=1), np.count_nonzero(tame, axis=1), unstable)


def lay_out_noise(rule: SpectralRule, rates: FloatArray, factors: FloatArray, momenta: FloatArray) -> Noise:
    """The noise of a rule's modes at learning rates, factors of the noise and momenta, (C,).

    From rest, t steps of unit noise build up the stationary moments S less what t noiseless steps leave of these,
    A^t S Aᵗᵀ. A^t takes (1, 0) to (θ, d), and the first entry of its other column is −(m/x) d: so what is left of E θ²
    is a quadratic form in θ and d.
    """
    m = momenta[:, None]
    x = rates[:, None] * rule.nodes[::-1]
    kicks = (rates**2 * factors)[:, None] * rule.weights[::-1]
    edge = 2.0 * m - (x - 2.0)
    loud = edge < CLOSE_TO_THE_EDGE
    still = x < STILL
    share = np.where(loud | still, 0.0, kicks / ((1.0 - m) * np.where(loud, 1.0, edge) * np.where(still, 1.0, x)))
    x = np.where(x > 1.0 + m, edge, x)
    last = np.divide(2.0 * m * m * share, x, where=x > SLOW, out=np.zeros_like(x))
    forms = np.stack([(1.0 + m) * share, 2.0 * m * share, last], axis=1)
    quiet = (
        np.where(kicks[:, -1:] > 0.0, ~loud, True).sum(axis=1) if rule.nodes.size else np.zeros(rates.size, np.int64)
    )
    return Noise(x, kicks, forms, quiet, forms[:, 0].sum(axis=1))


def _row(table: Modes | Noise, row: int) -> list[Any]:
    return [getattr(table, entry.name)[row] for entry in fields(table)]
