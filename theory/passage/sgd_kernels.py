"""The first step at which the expected loss is at most a target, compiled.

A scan never evaluates every step. From a step t whose loss is known to be too high it proves, by a lower bound on the
loss, that a whole stretch after t is too high as well, leaps over it, and comes down to single steps only where no
bound decides. So it finds the *first* passage of a loss that may fall, rise and fall again.

SGD. With ρ = (1 − ελ)² the loss at t is P + N: P = Σ a ρ^t is convex, and so is log P; noise N only grows, and for
stable modes it is concave. Over [t, t + s] hence P(t + u) ≥ P(t) e^(−κu), κ = −P'/P, and N lies above its chord: where
the sum first meets the target, a Newton iteration finds. Unstable modes are convex and growing: above their tangent.

Heavy ball: ``momentum_passage_kernels``. Steps are floats, exact up to 2⁵³.
"""

import math

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.compiling import entry, helper, reordered_entry, reordered_helper
from noisysgd.theory.passage.search import NEVER, PENDING, REACHED


@helper
def split_exponential(y: float) -> tuple[float, float]:
    """A power of two s and q with e^y = s (1 + q), e^y − 1 = s q + (s − 1), to rounding; e^−708 stands for any less.

    The library's function is not available in vectors; this one is, in a loop. Cody–Waite reduction, Taylor series.
    """
    y = max(min(y, 709.0), -708.0)
    k = np.floor(y * 1.4426950408889634 + 0.5)
    r = (y - k * 0.693145751953125) - k * 1.42860682030941723212e-6
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
    """Falling, rising and saturating part of the loss after t steps, each with its derivative.

    The saturating part is the noise of stable modes, kicks · (ρ^t − 1). Unstable modes come first; of a mode with ρ = 1
    `kicks` is the noise itself.
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

    For height > room and slope ≥ 0: a convex function of u, on which Newton's iteration approaches from the left.
    """
    if room <= 0.0 or rate <= 0.0:
        return math.inf
    u = math.log(height / room) / rate
    for _ in range(60):
        now = height * math.exp(-rate * u)
        steepness = rate * now - slope
        if steepness <= 0.0:
            return math.inf
        step = (now + slope * u - room) / steepness
        u += step
        if step <= 1e-3 or step <= 1e-12 * u:
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
    """Status, step, and losses just before and at that step; `first` ≤ `last` is the first step in question."""
    t, stride, before = first, 1.0, math.inf
    falling, fall, rising, rise, noise, gain = sgd_losses(t, log_decay, weights, log_noise, kicks)
    while True:
        if falling + rising + noise <= level:
            return REACHED, t, before, falling + rising + noise
        room = level - rising - noise
        if not room >= 0.0:
            return NEVER, t, before, math.inf
        if t >= last:
            return PENDING, last, before, math.inf
        rate = -fall / falling if falling > 0.0 else 0.0
        reach = first_meeting(falling, rate, rise + gain, room)
        # The integer that ceil makes has no room for times at which next to nothing falls any more.
        stride = math.ceil(min(reach, last - t)) if reach < math.inf else 2.0 * stride
        stride = min(max(stride, 1.0), last - t)
        ahead = sgd_losses(t + stride, log_decay, weights, log_noise, kicks)
        if stride > 1.0:
            # Saturating noise lies above its chord; up to where that meets the target there is no passage.
            sure = first_meeting(falling, rate, rise + (ahead[4] - noise) / stride, room)
            if sure <= stride - 1.0:
                stride = max(math.ceil(sure) - 1.0, 1.0)
                ahead = sgd_losses(t + stride, log_decay, weights, log_noise, kicks)
        before = falling + rising + noise if stride == 1.0 else math.inf
        t += stride
        falling, fall, rising, rise, noise, gain = ahead
        if before == math.inf and falling + rising + noise <= level:
            parts = sgd_losses(t - 1.0, log_decay, weights, log_noise, kicks)
            before = parts[0] + parts[2] + parts[4]


@helper
def log_ratios(nodes: FloatArray, eps: float, logs: FloatArray) -> None:
    """Logarithms of (1 − ελ)², cut off at −2000: that is zero after one step."""
    for i in range(nodes.size):
        x = eps * nodes[i]
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
    """Steps of least squares, one by one, until S = Σ w x E θ² ≤ `level`: status, step, S before and there.

    `state` (3, D) holds E θ², E θd and E d² with d = εu, after `first` steps at first and in the end; x = ελ, wx = w x,
    and the noise in d has variance noise · x (S + kick + excess · x E θ²). NEVER if the state no longer moves or S is
    no longer finite, so that it never will.
    """
    total = 0.0
    for i in range(x.size):
        total += wx[i] * state[0, i]
    for step in range(first + 1, last + 1):
        before, total, moved = total, 0.0, 0.0
        for i in range(x.size):
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
