"""First passages of heavy ball, compiled. ``sgd_kernels`` has the idea: leap where a lower bound on the loss allows.

Over a stride of s steps the loss is bounded from below by the sum of these bounds:

- A mode without noise is q_t θ₀, with q a damped oscillation, or a sum of two real powers with at most one zero. Where
  q has the same sign at both ends of a stride that is shorter than half a period, q² is at least its smaller end value.
- An oscillation has q² = C² m^t cos²(ωt + φ), whose second derivative is at most C² m^t (log²m + 2ω²) =: b. So a sum of
  oscillations is at least its smaller end value less the s²/8 · Σ b by which it may sag in between.
- Modes that are too fast for both count as zero, and are not even advanced until they are needed.
- Noise counts with its last known value, since it only grows.

Columns of `ladder` (rungs, 5, n) and `state` (4, n) are modes: those that decay, then the quiet and the loud ones of
the noise. A rung holds the 2×2 matrices A of 2^rung steps of (θ, d), d = εu, as rows A₀₀, A₀₁, A₁₀, A₁₁, and A₀₀ − 1 as
a fifth: for a slow mode that has digits which A₀₀ has lost, and after t steps their loss would be an error of t · 2⁻⁵³.
A state holds (θ, d) now and after a stride.
"""

import math

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.compiling import entry, helper, reordered_helper
from noisysgd.theory.passage.search import NEVER, PENDING, REACHED

STRIDES = 500_000
"""Strides after which a scan gives up and returns how far it has come."""
DRIFT = 2.0**-51
"""Rounding error per step in the state of an oscillating mode, as a share of its amplitude."""
Count = int | np.int64
"""Counts are always passed as 64-bit integers: Numba would compile a kernel once more for a literal or narrower one."""


@reordered_helper
def climb(ladder: FloatArray, built: Count, rung: Count) -> Count:
    """Build the ladder from the rung `built` up to `rung`, each by squaring the one below; returns the highest rung."""
    while built < rung:
        low, high = ladder[built], ladder[built + 1]
        for i in range(low.shape[1]):
            a, b, c, d, more = low[0, i], low[1, i], low[2, i], low[3, i], low[4, i]
            # (A²)₀₀ − 1 from A₀₀ − 1, without cancellation while that is small.
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
        # A slow mode changes by little: the change is computed and then added, so that its digits count.
        stretch, push = step[4, i] * theta, step[1, i] * delta
        state[into, i] = theta + (stretch + push) if abs(step[4, i]) < 0.5 else step[0, i] * theta + push
        state[into + 1, i] = step[2, i] * theta + step[3, i] * delta


@helper
def advance(ladder: FloatArray, built: Count, state: FloatArray, start: Count, stop: Count, elapsed: float) -> Count:
    """Advance modes start…stop−1 by `elapsed` steps, along its binary digits; returns the highest rung built."""
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
    """Parts of the loss without noise, for a lower bound over a stride.

    Σ mass θ² of modes start…middle−1, now and after the stride; of growing modes, from `unstable` on, now; and of the
    modes in between with the smaller θ² of now and after, or with zero if θ changes its sign.
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
    """Loss that the noise of quiet modes has built up: the stationary one less a form in the noiseless (θ, d)."""
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
    """Loss that the noise of loud modes has built up in `count` steps.

    The moments S_n after n steps obey S_{n+k} = S_k + A^k S_n (A^k)ᵀ, which is followed along the binary digits of
    `count`. Both terms are positive semidefinite, so that nothing cancels on the diagonal.
    """
    loss = 0.0
    for mode in range(quiet, kicks.size):
        tt, td, dd = 0.0, 0.0, 0.0
        unit_tt, unit_td, unit_dd = 1.0, -1.0, 1.0  # S of 2^rung steps; one step's noise adds to d and takes from θ
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
    """Loss that noise has built up in `count` steps; `theta`, `delta` are noiseless modes after as many steps."""
    loss = quiet_noise(theta, delta, first, forms, quiet, total)
    return loss + loud_noise(ladder, first, kicks, quiet, count) if quiet < kicks.size else loss


@helper
def drift(level: float, amplitude: float, count: float) -> float:
    """How far rounding may move a loss of height `level` made of oscillations with a loss of `amplitude` at full swing.

    In `count` steps √level is off by share · √amplitude at most: the result is (√level + share √amplitude)² − level.
    """
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
    """Status, step, and losses just before and at that step, as ``sgd_scan`` gives them, and the drift at that step.

    The :func:`drift` is how far rounding may move the loss: a loss above the level by no more counts as a passage. The
    status is PENDING also where STRIDES strides were not enough; every step before the one returned is then ruled out.
    The arguments are laid out by ``momentum_passages``; `ladder[0]` holds one step and `state` the start.
    """
    size, levels, columns = mass.size, ladder.shape[0] - 1, ladder.shape[2]
    # Modes begin[k]…begin[k+1]−1, which bear strides of 2^k and no longer ones, are group k. A stride of 2^k advances
    # the groups from k on; faster ones stay behind at the step `at` until a shorter stride needs them.
    at = np.zeros(levels + 1)
    built: Count = np.int64(0)
    noisy = total > 0.0 or quiet < kicks.size

    # Noise is known at the step `noise_at`, and never above `noise_top` as long as the target can be met. If it exceeds
    # the level in the end, its values after 1, 2, 4, … steps tell from when on the loss is too high for ever.
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
        if look:  # bring the noise up to date
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
        # A tentative stride: rows 2 and 3 of the state. Of more than one step, modes before `start` turn too far in it
        # and count as zero, those before `middle` are bounded by their sag, the others by their smaller end values.
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
        if not grown + noise <= high:  # and neither of them falls again
            return NEVER, now, math.inf, math.inf, 0.0
        lower = there
        if k > 0:
            sag = 0.125 * stride * stride * bend[start] * decayed
            lower = max(min(here, there) - sag, 0.0) + least + grown
        cleared = lower + noise > high
        # If the bound does not clear the stride, try again: first with the noise of now, if that is not known yet, then
        # with a shorter stride. After a single step the loss itself is examined.
        if not cleared and noisy and noise_at < now and (k == 0 or lower + noise_top > high):
            look = True
            continue
        if not cleared and k > 0:
            k -= 1
            successes, patience = 0, min(2 * patience, 32)  # try longer strides again, but ever more rarely
            continue
        if not cleared:
            before, check, look = here + noise, True, noisy
        # Take the stride.
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
