"""First passages of heavy ball, compiled: strides that bounds on the loss allow. See ``passage_kernels`` for the idea.

Without noise a mode is q_t θ₀ with q a damped oscillation, or a sum of two real powers with at most one zero: where q
keeps its sign over an interval that is shorter than half a period, q² is at least its smaller end value. An oscillation
q² = C² m^t cos²(ωt + φ) has second derivative at most C² m^t (log²m + 2ω²), so the sum over oscillating modes is at
least its smaller end value less s²/8 times that. Modes too fast for either count as zero, and are not even advanced
until they are needed. Noise counts with its last known value, since it only grows.

Columns of `ladder` (rungs, 5, n) and `state` (4, n) are modes: those that decay, then quiet and loud ones of the noise.
A rung holds the 2×2 matrices A of 2^rung steps of (θ, d), d = εu, and A₀₀ − 1 apart: of a slow mode it has digits that
A₀₀ has not, and after t steps losing them would cost t · 2⁻⁵³. A state holds (θ, d) now and after a stride.
"""

import math

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.compiling import entry, helper, reordered_helper
from noisysgd.theory.passage.search import NEVER, PENDING, REACHED

STRIDES = 500_000
"""Strides after which a scan hands back how far it is."""
DRIFT = 2.0**-51
"""Rounding per step in the state of an oscillating mode, as a share of its amplitude."""
Count = int | np.int64
"""Counts are made 64 bits wide: a literal or a narrower one would compile what it is handed to once more."""


@reordered_helper
def climb(ladder: FloatArray, built: Count, rung: Count) -> Count:
    """Build the ladder up to a rung, by squaring; the highest one built."""
    while built < rung:
        low, high = ladder[built], ladder[built + 1]
        for i in range(low.shape[1]):
            a, b, c, d, more = low[0, i], low[1, i], low[2, i], low[3, i], low[4, i]
            twice = (2.0 + more) * more + b * c
            slow = abs(more) < 0.25
            high[0, i] = 1.0 + twice if slow else a * a + b * c
            high[1, i] = (a + d) * b
            high[2, i] = (a + d) * c
            high[3, i] = b * c + d * d
            high[4, i] = twice if slow else high[0, i] - 1.0
        built += 1
    return built


@reordered_helper
def carry(step: FloatArray, state: FloatArray, into: Count, start: Count, stop: Count) -> None:
    """(θ, d) after a stride, for modes start…stop−1, into rows 0 and 1 of `state` or into 2 and 3."""
    for i in range(np.uint64(start), np.uint64(stop)):  # an index that cannot be negative leaves vectors possible
        theta, delta = state[0, i], state[1, i]
        stretch, push = step[4, i] * theta, step[1, i] * delta
        state[into, i] = theta + (stretch + push) if abs(step[4, i]) < 0.5 else step[0, i] * theta + push
        state[into + 1, i] = step[2, i] * theta + step[3, i] * delta


@helper
def advance(ladder: FloatArray, built: Count, state: FloatArray, start: Count, stop: Count, elapsed: float) -> Count:
    """Let `elapsed` steps pass for modes start…stop−1; the highest rung built."""
    count, rung = np.int64(elapsed), np.int64(0)
    while count > 0:
        if count & 1:
            built = climb(ladder, built, rung)
            carry(ladder[rung], state, np.int64(0), start, stop)
        count >>= 1
        rung += 1
    return built


@reordered_helper
def sums(
    mass: FloatArray, state: FloatArray, start: Count, middle: Count, unstable: Count
) -> tuple[float, float, float, float]:
    """Σ mass θ² now and after the stride for modes start…middle−1, of growing modes now, and Σ mass min for the others.

    The latter is over the smaller of both θ² of each; modes that change their sign count as zero.
    """
    before = after = least = grown = 0.0
    for i in range(np.uint64(start), np.uint64(middle)):
        before += mass[i] * (state[0, i] * state[0, i])
        after += mass[i] * (state[2, i] * state[2, i])
    for i in range(np.uint64(middle), np.uint64(unstable)):
        now, then = state[0, i], state[2, i]
        least += mass[i] * (min(now * now, then * then) if now * then > 0.0 else 0.0)
    for i in range(np.uint64(unstable), np.uint64(mass.size)):
        grown += mass[i] * (state[0, i] * state[0, i])
    return before, after, grown, least


@reordered_helper
def quiet_noise(
    theta: FloatArray, delta: FloatArray, first: Count, forms: FloatArray, quiet: Count, total: float
) -> float:
    """Loss that the noise of quiet modes has built up, from (θ, d) of noiseless ones."""
    left = 0.0
    for i in range(np.uint64(quiet)):
        a, d = theta[first + i], delta[first + i]
        left += (forms[0, i] * a + forms[1, i] * d) * a + forms[2, i] * d * d
    return total - left


@helper
def congruence(step: FloatArray, mode: Count, tt: float, td: float, dd: float) -> tuple[float, float, float]:
    """A M Aᵀ for the matrix A of a mode and a symmetric M = (tt, td, dd)."""
    a, b, c, d = step[0, mode], step[1, mode], step[2, mode], step[3, mode]
    left0, left1 = a * tt + b * td, a * td + b * dd
    right0, right1 = c * tt + d * td, c * td + d * dd
    return left0 * a + left1 * b, left0 * c + left1 * d, right0 * c + right1 * d


@helper
def loud_noise(ladder: FloatArray, first: Count, kicks: FloatArray, quiet: Count, count: Count) -> float:
    """The same for loud ones, from S_{n+k} = S_k + A^k S_n A^kᵀ along the bits of `count`: only positive terms add."""
    loss = 0.0
    for mode in range(quiet, kicks.size):
        tt, td, dd = 0.0, 0.0, 0.0
        unit_tt, unit_td, unit_dd = 1.0, -1.0, 1.0  # S of 2^rung steps
        left, rung = count, 0
        while left > 0:
            if left & 1:
                tt, td, dd = congruence(ladder[rung], first + mode, tt, td, dd)
                tt, td, dd = tt + unit_tt, td + unit_td, dd + unit_dd
            more_tt, more_td, more_dd = congruence(ladder[rung], first + mode, unit_tt, unit_td, unit_dd)
            unit_tt, unit_td, unit_dd = unit_tt + more_tt, unit_td + more_td, unit_dd + more_dd
            left >>= 1
            rung += 1
        loss += kicks[mode] * tt
    return loss


@helper
def noise_after(
    count: Count,
    theta: FloatArray,
    delta: FloatArray,
    ladder: FloatArray,
    first: Count,
    kicks: FloatArray,
    forms: FloatArray,
    quiet: Count,
    total: float,
) -> float:
    """Loss that noise has built up in `count` steps, with (θ, d) of noiseless modes after them at hand."""
    loss = quiet_noise(theta, delta, first, forms, quiet, total)
    return loss + loud_noise(ladder, first, kicks, quiet, count) if quiet < kicks.size else loss


@helper
def drift(level: float, amplitude: float, count: float) -> float:
    """By how much rounding may move a loss at `level` of oscillations whose loss would be `amplitude` at full swing."""
    share = DRIFT * count
    return (2.0 * math.sqrt(level * amplitude) + share * amplitude) * share


@entry
def momentum_scan(
    ladder: FloatArray,
    state: FloatArray,
    mass: FloatArray,
    swing: float,
    bend: FloatArray,
    begin: IntArray,
    waves: Count,
    unstable: Count,
    kicks: FloatArray,
    forms: FloatArray,
    quiet: Count,
    total: float,
    log_m: float,
    first: float,
    level: float,
    last: float,
) -> tuple[int, float, float, float, float]:
    """Status, step, losses just before and at that step, as ``sgd_scan``, and the drift; pending, too, after STRIDES.

    The :func:`drift` is how much rounding may move the loss there: a loss that much above the level is a passage too.
    Arguments are those that ``momentum_passage`` lays out; `ladder[0]` holds one step and `state` the start.
    """
    size, levels, columns = mass.size, ladder.shape[0] - 1, ladder.shape[2]
    at = np.zeros(levels + 1)  # the step up to which each group of modes has been advanced
    built: Count = np.int64(0)
    noisy = total > 0.0 or quiet < kicks.size

    # Noise is known up to the step `noise_at`. As long as the target can be met it is never above `noise_top`.
    noise_at, noise, beyond = 0.0, 0.0, PENDING
    noise_top = total if quiet == kicks.size else math.inf
    if not noise_top <= level:
        noise_top = level
        rung = np.int64(0)
        while rung <= levels and 2.0**rung <= last:
            built = climb(ladder, built, rung)
            theta, delta = ladder[rung, 0], ladder[rung, 2]
            if not noise_after(1 << rung, theta, delta, ladder, size, kicks, forms, quiet, total) <= level:
                beyond, last = NEVER, 2.0**rung - 1.0
                break
            rung += 1
        if last < first:
            return NEVER, first, math.inf, math.inf, 0.0

    now, k, successes, patience = first, np.int64(0), 0, 1
    before, check, look = math.inf, True, noisy and first > 0.0
    for _ in range(STRIDES):
        if look:
            built = advance(ladder, built, state, size, columns, now - noise_at)
            built = climb(ladder, built, np.int64(math.frexp(now)[1]) - 1)
            noise = noise_after(np.int64(now), state[0], state[1], ladder, size, kicks, forms, quiet, total)
            noise_at, look = now, False
        while k > 0 and now + 2.0**k > last:
            k -= 1
        for group in range(k, levels + 1):
            if at[group] < now and begin[group] < begin[group + 1]:
                built = advance(ladder, built, state, begin[group], begin[group + 1], now - at[group])
            at[group] = now
        built = climb(ladder, built, k)
        start, stride = begin[k], 2.0**k
        middle = max(start, waves) if k > 0 else size
        carry(ladder[k], state, np.int64(2), start, size)
        decayed = math.exp(log_m * now)
        high = level + drift(level, swing * decayed, now + stride)
        here, there, grown, least = sums(mass, state, start, middle, unstable)
        if check:  # at k = 0, where `here` is all of the loss but noise
            if here + noise <= high:
                return REACHED, now, before, here + noise, high - level
            check = False
        if now >= last:
            return beyond, last, math.inf, math.inf, 0.0
        if not grown + noise <= high:
            return NEVER, now, math.inf, math.inf, 0.0
        lower = there
        if k > 0:
            sag = 0.125 * stride * stride * bend[start] * decayed
            lower = max(min(here, there) - sag, 0.0) + least + grown
        cleared = lower + noise > high
        if not cleared and noisy and noise_at < now and (k == 0 or lower + noise_top > high):
            look = True
            continue
        if not cleared and k > 0:
            k -= 1
            successes, patience = 0, min(2 * patience, 32)
            continue
        if not cleared:
            before, check, look = here + noise, True, noisy
        for i in range(np.uint64(start), np.uint64(size)):
            state[0, i], state[1, i] = state[2, i], state[3, i]
        now += stride
        for group in range(k, levels + 1):
            at[group] = now
        successes += 1
        if cleared and successes >= patience and k < levels and begin[k + 1] < size:
            k += 1
            successes, patience = 0, max(patience // 2, 1)
    return PENDING, now, math.inf, math.inf, 0.0
