"""The first step at which the expected loss is at most a target, compiled.

A scan does not evaluate every step. From a step t whose loss is known to be too high it proves, by a lower bound on the
loss, that a whole stretch after t is too high as well, leaps over it, and comes down to single steps only where no
bound decides. So it finds the *first* passage, even of a loss that falls, rises and falls again.

For plain SGD with ρ = (1 − ελ)² the loss is a sum of three parts, each bounded from below over [t, t + s]:

- the falling part P = Σ a ρ^t, ρ ≤ 1: log P is convex, so P(t + u) ≥ P(t) e^(−κu) with κ = −P'/P at t;
- the rising part, ρ > 1, decay and noise: convex, so above its tangent at t;
- the noise of stable modes: concave and growing, so above its chord.

Newton's iteration finds where the sum of the bounds first meets the target. ``momentum_kernels`` is the same for heavy
ball. Steps are floats, exact up to 2⁵³.
"""

import math

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.compiling import entry, helper, reordered_entry, reordered_helper
from noisysgd.theory.passage.search import NEVER, PENDING, REACHED


@helper
def split_exponential(y: float) -> tuple[float, float]:
    """A power of two s and q with e^y = s (1 + q) and e^y − 1 = s q + (s − 1), to rounding, y clipped to −708…709.

    The library's exponential keeps the compiler from using vector registers in a loop; this one does not.
    """
    y = max(min(y, 709.0), -708.0)
    # Cody–Waite reduction: y = k log 2 + r with |r| ≤ ½ log 2, log 2 split in two so that k times it loses nothing.
    k = np.floor(y * 1.4426950408889634 + 0.5)
    r = (y - k * 0.693145751953125) - k * 1.42860682030941723212e-6
    # Taylor series of e^r − 1 up to r¹³.
    q = 1.0 / 6227020800.0
    q = q * r + 1.0 / 479001600.0
    q = q * r + 1.0 / 39916800.0
    q = q * r + 1.0 / 3628800.0
    q = q * r + 1.0 / 362880.0
    q = q * r + 1.0 / 40320.0
    q = q * r + 1.0 / 5040.0
    q = q * r + 1.0 / 720.0
    q = q * r + 1.0 / 120.0
    q = q * r + 1.0 / 24.0
    q = q * r + 1.0 / 6.0
    q = q * r + 0.5
    q = (q * r + 1.0) * r
    # 2^k, from its bits: the exponent of a double is stored with 1023 added, above 52 bits of mantissa.
    return np.int64((np.int64(k) + np.int64(1023)) << np.int64(52)).view(np.float64), q


@reordered_helper
def falling_sums(t: float, logs: FloatArray, weights: FloatArray) -> tuple[float, float]:
    """Σ weights ρ^t and its derivative, for ρ ≤ 1."""
    total = change = 0.0
    for i in range(logs.size):
        power, more = split_exponential(t * logs[i])
        now = weights[i] * (power * (1.0 + more))
        total += now
        change += logs[i] * now
    return total, change


@reordered_helper
def noise_sums(t: float, logs: FloatArray, kicks: FloatArray) -> tuple[float, float]:
    """Σ kicks (ρ^t − 1) and its derivative, for ρ < 1."""
    total = change = 0.0
    for i in range(logs.size):
        power, more = split_exponential(t * logs[i])
        total += kicks[i] * (power * more + (power - 1.0))
        change += kicks[i] * logs[i] * (power * (1.0 + more))
    return total, change


@helper
def sgd_losses(
    t: float, log_decay: FloatArray, weights: FloatArray, log_noise: FloatArray, kicks: FloatArray
) -> tuple[float, float, float, float, float, float]:
    """Falling, rising and saturating part of the loss after t steps, each followed by its derivative.

    The falling part is the decay of stable modes, weights · ρ^t; the saturating part their noise, kicks · (ρ^t − 1).
    Unstable modes come first in both spectra. For a mode with ρ = 1 the noise is kicks · t.
    """
    rising = rise = 0.0
    unstable = 0
    while unstable < weights.size and log_decay[unstable] > 0.0:
        now = weights[unstable] * math.exp(t * log_decay[unstable])
        rising += now
        rise += log_decay[unstable] * now
        unstable += 1
    noisy = 0
    while noisy < kicks.size and log_noise[noisy] >= 0.0:
        log_ratio = log_noise[noisy]
        if kicks[noisy] == 0.0:  # however fast it would grow
            pass
        elif log_ratio > 0.0:
            rising += kicks[noisy] * math.expm1(t * log_ratio)
            rise += kicks[noisy] * log_ratio * math.exp(t * log_ratio)
        else:
            rising += kicks[noisy] * t
            rise += kicks[noisy]
        noisy += 1
    falling, fall = falling_sums(t, log_decay[unstable:], weights[unstable:])
    noise, gain = noise_sums(t, log_noise[noisy:], kicks[noisy:])
    return falling, fall, rising, rise, noise, gain


@helper
def first_meeting(height: float, rate: float, slope: float, room: float) -> float:
    """A lower bound, sharp to rounding, on the first u with height·e^(−rate·u) + slope·u ≤ room; inf if there is none.

    For height > room and slope ≥ 0. The left-hand side is convex in u, so Newton's iteration from the left of the
    solution approaches it without passing it: every iterate is a lower bound.
    """
    if room <= 0.0 or rate <= 0.0:
        return math.inf
    # Here the exponential alone is down to `room`: left of the solution, since the other term adds to it.
    u = math.log(height / room) / rate
    for _ in range(60):
        now = height * math.exp(-rate * u)
        steepness = rate * now - slope
        if steepness <= 0.0:  # past the minimum of a convex function that has stayed above `room`
            return math.inf
        step = (now + slope * u - room) / steepness
        u += step
        if step <= 1e-3 or step <= 1e-12 * u:  # leaps are whole numbers of steps
            return u
    return u


@entry
def sgd_scan(
    log_decay: FloatArray,
    weights: FloatArray,
    log_noise: FloatArray,
    kicks: FloatArray,
    first: float,
    level: float,
    last: float,
) -> tuple[int, float, float, float]:
    """The first step in first…last at which the loss is at most `level`: status, step, losses just before and at it.

    PENDING with the step `last` if there is none up to there, NEVER if there cannot be one later either. A loss that
    was not evaluated is ``inf``. For the other arguments see :func:`sgd_losses`.
    """
    t, stride, before = first, 1.0, math.inf
    falling, fall, rising, rise, noise, gain = sgd_losses(t, log_decay, weights, log_noise, kicks)
    while True:
        if falling + rising + noise <= level:
            return REACHED, t, before, falling + rising + noise
        room = level - rising - noise
        if not room >= 0.0:  # what only grows is above the level by itself
            return NEVER, t, before, math.inf
        if t >= last:
            return PENDING, last, before, math.inf
        rate = -fall / falling if falling > 0.0 else 0.0
        reach = first_meeting(falling, rate, rise + gain, room)
        # How far ahead to look: to where the loss would meet the level if noise kept growing as it does now, a guess
        # that is usually too far; if it never would, twice as far as before. The time is cut off before it is rounded,
        # since ceil makes an integer, which has no room for 1e300 steps.
        stride = math.ceil(min(reach, last - t)) if reach < math.inf else 2.0 * stride
        stride = min(max(stride, 1.0), last - t)
        ahead = sgd_losses(t + stride, log_decay, weights, log_noise, kicks)
        if stride > 1.0:
            # With the noise at both ends known, it lies above its chord: before the bound made with that meets the
            # level there is no passage. Leap to the last step before it, or take a single one.
            sure = first_meeting(falling, rate, rise + (ahead[4] - noise) / stride, room)
            if sure <= stride - 1.0:
                stride = max(math.ceil(sure) - 1.0, 1.0)
                ahead = sgd_losses(t + stride, log_decay, weights, log_noise, kicks)
        before = falling + rising + noise if stride == 1.0 else math.inf
        t += stride
        falling, fall, rising, rise, noise, gain = ahead
        # After a leap that ends at a passage the loss one step earlier is still to be evaluated.
        if before == math.inf and falling + rising + noise <= level:
            parts = sgd_losses(t - 1.0, log_decay, weights, log_noise, kicks)
            before = parts[0] + parts[2] + parts[4]


@helper
def log_ratios(nodes: FloatArray, eps: float, logs: FloatArray) -> None:
    """Write to `logs` log (1 − ελ)², cut off at −2000, for which (1 − ελ)^2t is zero from the first step on."""
    for i in range(nodes.size):
        x = eps * nodes[i]
        # |1 − x| = 1 − min(x, 2 − x), which is accurate at either end.
        logs[i] = max(2.0 * math.log1p(-min(x, 2.0 - x)), -2000.0)


@entry
def sgd_passages(
    nodes: FloatArray,
    weights: FloatArray,
    noise_nodes: FloatArray,
    noise_weights: FloatArray,
    rates: FloatArray,
    factors: FloatArray,
    targets: FloatArray,
    limits: FloatArray,
    errors: FloatArray,
    status: IntArray,
    steps: FloatArray,
    losses: FloatArray,
) -> None:
    """Scan every configuration from `steps` to `limits` for losses up to targets + errors.

    `status`, `steps` and `losses` receive what was found; see ``sgd_scan``.
    """
    log_decay, log_noise, kicks = np.empty(nodes.size), np.empty(noise_nodes.size), np.empty(noise_nodes.size)
    for c in range(rates.size):
        if limits[c] < steps[c]:
            continue
        kick = rates[c] * rates[c] * factors[c]
        log_ratios(nodes, rates[c], log_decay)
        log_ratios(noise_nodes, rates[c], log_noise)
        # Noise sums to ε²γ · weight · (ρ^t − 1)/(ρ − 1).
        for i in range(kicks.size):
            ratio = math.expm1(log_noise[i])
            kicks[i] = kick * noise_weights[i] / (ratio if ratio != 0.0 else 1.0)
        status[c], steps[c], losses[c, 0], losses[c, 1] = sgd_scan(
            log_decay, weights, log_noise, kicks, steps[c], targets[c] + errors[c], limits[c]
        )


@reordered_entry
def coupled_steps(
    state: FloatArray,
    x: FloatArray,
    wx: FloatArray,
    m: float,
    noise: float,
    excess: float,
    kick: float,
    level: float,
    first: int,
    last: int,
) -> tuple[int, int, float, float]:
    """Steps of least squares, one by one, until S = Σ w x E θ² ≤ `level`: status, step, S one step before and at it.

    `state` (3, D) holds E θ², E θd and E d² with d = εu after `first` steps and is advanced in place; x = ελ, wx = w x,
    and the noise in d has variance noise · x (S + kick + excess · x E θ²). NEVER if the state no longer moves or S is
    no longer finite, PENDING if step `last` is reached.
    """
    total = 0.0
    for i in range(x.size):
        total += wx[i] * state[0, i]
    for step in range(first + 1, last + 1):
        before, total, moved = total, 0.0, 0.0
        for i in range(x.size):
            # d' = xθ + md + noise and θ' = θ − d'; `cross` is E θ(xθ + md).
            tt, td, dd = state[0, i], state[1, i], state[2, i]
            cross = m * td + x[i] * tt
            new_dd = m * m * dd + x[i] * (2.0 * m * td + x[i] * tt + noise * (before + kick + excess * x[i] * tt))
            new_tt = tt - 2.0 * cross + new_dd
            state[0, i], state[1, i], state[2, i] = new_tt, cross - new_dd, new_dd
            total += wx[i] * new_tt
            moved += abs(new_tt - tt) + abs(new_dd - dd)
        if not abs(total) < math.inf:
            return NEVER, step, before, math.inf
        if total <= level:
            return REACHED, step, before, total
        if moved == 0.0:
            return NEVER, step, before, total
    return PENDING, last, total, total
