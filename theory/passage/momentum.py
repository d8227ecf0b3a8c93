"""First passages of heavy ball: how configurations are laid out for ``momentum_kernels``.

A mode with x = ελ moves by θ' = θ − d', d' = xθ + md. Beyond x = 1 + m it alternates in sign from step to step. Then
(−1)^t θ_t follows the same equations with x reflected to 2(1+m) − x and d = −2 instead of 0 at the start, and has the
same square, which is all that the loss depends on. So modes are reflected: close to the edge of stability they are then
slow, just like modes with a small λ, and powers of their step matrices are as accurate.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.problems.spectral_quadrature import SpectralRule

RUNGS = 54
"""Number of stride lengths: 2⁰ … 2⁵³ steps."""
TURN = 1.25
"""Phase in radians, less than half a period, that a mode may turn by in one stride."""
CLOSE_TO_THE_EDGE = 1e-3
"""Distance 2(1+m) − ελ from the edge of stability below which stationary noise is too large to subtract from."""
ROUNDING = 1e-15
"""Rounding error of the noise of quiet modes, as a share of the stationary noise from which a part is subtracted."""
STILL, SLOW = 1e-300, 1e-140
"""Values of ελ below which modes move in no number of steps, and below which d counts for nothing beside θ."""
LARGEST = 1e6
"""Cap on the squared amplitude of an oscillation; it diverges at critical damping."""
AT_ONCE = 100_000
"""Modes times configurations that are laid out at a time, to bound the memory."""


@dataclass(frozen=True)
class Modes:
    """The modes of C configurations, from the fastest oscillation down, and how long a stride each of them bears.

    Attributes
    ----------
    x, mass : (C, n) array
        ελ, reflected where it is beyond 1 + m, and what the mode adds to the loss per unit of θ².
    start : (C, n) array
        d at the start.
    swing : (C,) array
        swing · m^t is the loss of all oscillating modes at full amplitude, whose square counts as LARGEST at most.
    bend : (C, n + 1) array
        bend[i] m^t bounds the second derivative in t of the loss of the first `waves` modes, those before i left out.
    begin : (C, RUNGS + 1) array of int
        begin[k] is the first mode that turns by at most TURN in 2^k steps; all after it do so too.
    waves, unstable : (C,) array of int
        The first `waves` modes oscillate well away from critical damping: with an amplitude of at most twice θ₀, so
        that the bound on their second derivative is of use. The modes from `unstable` on grow.
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
    """The noise of C configurations by modes: first the quiet ones, then the loud ones.

    Modes close to the edge of stability or beyond it are *loud*: their stationary noise is huge, or does not exist.

    Attributes
    ----------
    x, kicks : (C, n) array
        ελ, reflected where it is beyond 1 + m, and ε²γ · ½wλF: what turns the E θ² that noise of unit variance builds
        up into loss.
    forms : (C, 3, n) array
        Coefficients of θ², θd and d² in what is missing from the stationary noise of a quiet mode after t steps, where
        (θ, d) is the state that t noiseless steps lead to from (1, 0).
    quiet : (C,) array of int
        How many modes are quiet.
    total : (C,) array
        Stationary loss of the quiet modes.
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

    `status`, `steps` and `losses` receive what was found. Errors that are not zero are raised to the rounding of the
    noise, and the rounding of the oscillations at the step that was found is added to `errors`.
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
            # The lowest rung holds one step, [[1 − x, −m], [x, m]] and −x apart; the kernel builds the others from it.
            step = ladder[0]
            step[2, :size], step[2, size:], step[3] = modes.x[row], kicks.x[row], momenta[c]
            step[0], step[4] = 1.0 - step[2], -step[2]
            step[1] = -momenta[c]
            # Decaying modes start at θ = 1 with the d of their layout, noise modes at (1, 0), as their forms require.
            state[0], state[1, :size], state[1, size:] = 1.0, modes.start[row], 0.0
            arguments: list[Any] = [ladder, state, *_row(modes, row)[2:], *_row(kicks, row)[1:]]
            arguments += [log_m[c], steps[c], targets[c] + errors[c], limits[c]]
            status[c], steps[c], losses[c, 0], losses[c, 1], drift = momentum_scan(*arguments)
            errors[c] += drift


def lay_out_modes(rule: SpectralRule, rates: FloatArray, momenta: FloatArray) -> Modes:
    """The modes of a rule at learning rates and momenta 0 < m < 1, both (C,)."""
    m = momenta[:, None]
    x = rates[:, None] * rule.nodes
    # Of reflected modes the frequency is highest at x = 1 + m and falls to either side.
    order = np.argsort(np.abs(x - (1.0 + m)), axis=1, kind="stable")
    x, mass = np.take_along_axis(x, order, 1), rule.weights[order]
    # As in ``mode_kernels.discriminant_and_edge``: accurate close to the edge and to critical damping, (1 − √m)².
    edge = 2.0 * m - (x - 2.0)
    critical = ((1.0 - m) / (1.0 + np.sqrt(m))) ** 2
    opposite = (critical - x) * (critical - edge)  # 4m − (1+m−x)², positive where roots are complex
    wave = opposite > 0.0  # θ_t = C m^(t/2) cos(ωt + φ)
    opposite = np.where(wave, opposite, 1.0)
    omega = np.where(wave, np.arctan2(np.sqrt(opposite), np.abs(1.0 + m - x)), 0.0)
    # The longest stride 2^k in which a mode turns by at most TURN. It grows along the order of the modes; rounding must
    # not make an exception, for then the modes that bear a stride are those from an index on.
    with np.errstate(divide="ignore"):
        bears = np.clip(np.floor(np.log2(TURN / omega)), 0, RUNGS - 1).astype(np.int64)
    bears = np.minimum.accumulate(bears[:, ::-1], axis=1)[:, ::-1]
    # Cumulated, the histogram of k + 1 counts the modes that cannot bear a stride: the index of the first that can.
    counts = np.zeros((rates.size, RUNGS + 1), np.int64)
    np.add.at(counts, (np.arange(rates.size)[:, None], bears + 1), 1)
    # C² = 1 + (1−m−x)²/(4m − (1+m−x)²), from θ₀ = 1 and θ₁ = 1 − x. It diverges at critical damping, and so does the
    # bound C² m^t (log²m + 2ω²) on the second derivative of θ_t²: only modes with C² ≤ 4 are bounded by it.
    squared_amplitude = np.where(wave, 1.0 + (1.0 - m - x) ** 2 / opposite, np.inf)
    tame = np.logical_and.accumulate(squared_amplitude <= 4.0, axis=1)
    swing = np.where(wave, mass * np.minimum(squared_amplitude, LARGEST), 0.0).sum(axis=1)
    curve = np.where(tame, mass * (np.log(m) ** 2 + 2.0 * omega**2), 0.0) * np.minimum(squared_amplitude, 4.0)
    bend = np.zeros((rates.size, rule.nodes.size + 1))
    bend[:, :-1] = np.cumsum(curve[:, ::-1], axis=1)[:, ::-1]
    # Modes beyond the edge are farthest from 1 + m, so they come last.
    unstable = rule.nodes.size - np.count_nonzero(edge < 0.0, axis=1)
    beyond = x > 1.0 + m
    x, start = np.where(beyond, edge, x), np.where(beyond, -2.0, 0.0)
    return Modes(x, start, mass, swing, bend, np.cumsum(counts, axis=1), np.count_nonzero(tame, axis=1), unstable)


def lay_out_noise(rule: SpectralRule, rates: FloatArray, factors: FloatArray, momenta: FloatArray) -> Noise:
    """The noise of a rule's modes at learning rates, noise factors and momenta, all (C,).

    From rest, t steps of noise build up the stationary moments S minus A^t S (A^t)ᵀ, what t noiseless steps leave of S.
    A^t takes (1, 0) to (θ, d), and the first entry of its other column is −(m/x) d. So the part of E θ² that is missing
    from its stationary value is a quadratic form in θ and d, with S = share · [[1 + m, −x], [−x, 2x]].
    """
    m = momenta[:, None]
    x = rates[:, None] * rule.nodes[::-1]  # ascending, so that the modes close to the edge come last
    kicks = (rates**2 * factors)[:, None] * rule.weights[::-1]
    edge = 2.0 * m - (x - 2.0)
    loud = edge < CLOSE_TO_THE_EDGE
    still = x < STILL
    # S is computed for quiet modes that move: loud ones are summed up step by step, still ones build up nothing.
    share = np.where(loud | still, 0.0, kicks / ((1.0 - m) * np.where(loud, 1.0, edge) * np.where(still, 1.0, x)))
    x = np.where(x > 1.0 + m, edge, x)
    last = np.divide(2.0 * m * m * share, x, where=x > SLOW, out=np.zeros_like(x))
    forms = np.stack([(1.0 + m) * share, 2.0 * m * share, last], axis=1)
    # Without any noise there is nothing to sum up: then all modes are quiet, with zero for their forms.
    quiet = (
        np.where(kicks[:, -1:] > 0.0, ~loud, True).sum(axis=1) if rule.nodes.size else np.zeros(rates.size, np.int64)
    )
    return Noise(x, kicks, forms, quiet, forms[:, 0].sum(axis=1))


def _row(table: Modes | Noise, row: int) -> list[Any]:
    """All attributes of one configuration, in their order."""
    return [getattr(table, entry.name)[row] for entry in fields(table)]
