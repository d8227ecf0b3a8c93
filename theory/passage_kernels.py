"""The first step at which the expected loss is at most a target, compiled.

A scan never evaluates every step. From a step t whose loss is known to be too high it proves, by a lower bound on the
loss, that a whole stretch after t is too high as well, leaps over it, and comes down to single steps only where no
bound decides. So it finds the *first* passage of a loss that may fall, rise and fall again.

SGD. With ρ = (1 − ελ)² the loss at t is P + N: P = Σ a ρ^t is convex, and so is log P; noise N only grows, and for
stable modes it is concave. Over [t, t + s] hence P(t + u) ≥ P(t) e^(−κu), κ = −P'/P, and N lies above its chord: where
the sum first meets the target, a Newton iteration finds. Unstable modes are convex and growing: above their tangent.

Heavy ball. Without noise a mode is q_t θ₀ with q a damped oscillation, or a sum of two real powers with at most one
zero: where q keeps its sign over an interval that is shorter than half a period, q² is at least its smaller end value.
An oscillation q² = C² m^t cos²(ωt + φ) has second derivative at most C² m^t (log²m + 2ω²), so the sum over oscillating
modes is at least its smaller end value less s²/8 times that. Modes too fast for either count as zero, and are not even
advanced until they are needed. Noise counts with its last known value, since it only grows.

Steps are floats, exact up to 2⁵³.
"""

import math

import numpy as np
from numba import njit

from noisysgd.theory.checks import FloatArray, IntArray
from noisysgd.theory.kernels import discriminant_and_edge
from noisysgd.theory.passage import LAST_STEP, NEVER, PENDING, REACHED, TINY

compiled = njit(cache=True, nogil=True, error_model="numpy")
# Sums may be reordered, which lets them use vector registers; nothing else may change.
reordered = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "nsz", "contract"})

Rule = tuple[FloatArray, FloatArray, FloatArray, FloatArray]
"""Nodes, weights, amplification, boundary: the fields of a ``SpectralRule``."""

CERTIFIED = 1e-9
"""Error of the loss, as a share of the target, that compressed spectra may have at most."""
RUNGS = 54
"""Strides 2⁰ … 2⁵³."""


@compiled
def sgd_bounds(boundary: FloatArray, eps: float, bounds: FloatArray) -> None:
    """For every compressed bin and ellipse: |(1−x)^2t| ≤ e^(growth·t), and |Σ_{n<t} (1−x)^2n| ≤ settled.

    `bounds` receives growth, 1, 1, settled.
    """
    for k in range(boundary.shape[0]):
        for e in range(boundary.shape[1]):
            largest, lowest, highest = -math.inf, math.inf, 0.0
            for arc in range(boundary.shape[2]):
                low, high = eps * boundary[k, e, arc, 0], eps * boundary[k, e, arc, 1]
                cosine = boundary[k, e, arc, 3]
                # |1−x|² is convex in |x| and grows with |arg x|.
                square = max(low * (low - 2.0 * cosine), high * (high - 2.0 * cosine))
                largest = max(largest, square)
                lowest, highest = min(lowest, low), max(highest, high)
            bounds[0, k, e], bounds[1, k, e], bounds[2, k, e] = math.log1p(largest), 1.0, 1.0
            bounds[3, k, e] = 2.0 / (lowest * (2.0 - highest)) if largest <= 0.0 and highest < 2.0 else math.inf


@compiled
def distance(radius: float, cosine: float, focus: float) -> float:
    """|x − focus| of complex x from |x| and the cosine of its argument, focus ≥ 0."""
    return math.sqrt((radius - focus) ** 2 + 2.0 * radius * focus * (1.0 - cosine))


@compiled
def nearest(low: float, high: float, cosine: float, focus: float) -> float:
    """Smallest distance over low ≤ |x| ≤ high and an argument whose smallest value has that cosine, 0 ≤ cosine."""
    return distance(min(max(focus * cosine, low), high), cosine, focus)


@compiled
def momentum_bounds(boundary: FloatArray, eps: float, m: float, bounds: FloatArray) -> None:
    """For every compressed bin and ellipse: |q_t²| ≤ amplitude · e^(growth·t), |p_t|² ≤ impulse · e^(growth·(t−1)).

    `bounds` receives growth, amplitude, impulse, and a bound on Σ|p_t|² over all t.

    The larger root R of complex x obeys R + m/R = (|x − x₋| + |x − x₊|)/2 with the critical dampings x∓ = (1 ∓ √m)²:
    roots of equal modulus lie on ellipses about them. q_t = [r₁^t (r₁−m) − r₂^t (r₂−m)]/(r₁−r₂), where
    (r₁−r₂)² = (x − x₋)(x − x₊) and (|r₁−m| + |r₂−m|)² ≤ ½(|1−m−x|² + |r₁−r₂|²) + 2m|x|, by the parallelogram law.
    """
    upper = (1.0 + math.sqrt(m)) ** 2
    lower = ((1.0 - m) / (1.0 + math.sqrt(m))) ** 2
    for k in range(boundary.shape[0]):
        for e in range(boundary.shape[1]):
            largest, most, least = 0.0, 0.0, math.inf
            for arc in range(boundary.shape[2]):
                low, high = eps * boundary[k, e, arc, 0], eps * boundary[k, e, arc, 1]
                inner, outer = boundary[k, e, arc, 2], boundary[k, e, arc, 3]
                # Sums of distances are convex in |x| and grow with the argument: largest at a corner.
                near_lower, near_upper = distance(low, outer, lower), distance(low, outer, upper)
                far_lower, far_upper = distance(high, outer, lower), distance(high, outer, upper)
                quarter = 0.25 * max(near_lower + near_upper, far_lower + far_upper)
                largest = max(largest, quarter + math.sqrt(max(quarter * quarter - m, 0.0)))
                apart = nearest(low, high, inner, lower) * nearest(low, high, inner, upper)
                square = max(near_lower, far_lower) * max(near_upper, far_upper)
                square += max(distance(low, outer, 1.0 - m), distance(high, outer, 1.0 - m)) ** 2
                most = max(most, (0.5 * square + 2.0 * m * high) / apart)
                least = min(least, apart)
            growth, impulse = 2.0 * math.log(largest), 4.0 * largest * largest / least
            bounds[0, k, e], bounds[1, k, e], bounds[2, k, e] = growth, most, impulse
            bounds[3, k, e] = impulse / -math.expm1(growth) if growth < 0.0 else math.inf


@compiled
def quadrature_error(steps: float, amplification: FloatArray, bounds: FloatArray) -> tuple[float, float]:
    """Bounds on the errors of the decaying part of the loss and of its noise per unit ε²γ, up to that many steps."""
    decaying, noise = 0.0, 0.0
    for k in range(amplification.shape[0]):
        best, best_noise = math.inf, math.inf
        for e in range(amplification.shape[1]):
            factor = amplification[k, e] * math.exp(max(bounds[0, k, e], 0.0) * steps)
            # Where roots coincide |q_t| ≤ 2(t+1) and |p_t| ≤ t, times powers of the larger root, say more.
            best = min(best, factor * min(bounds[1, k, e], 4.0 * (steps + 1.0) ** 2))
            summed = factor * min(bounds[2, k, e], steps * steps) * steps
            best_noise = min(best_noise, min(summed, amplification[k, e] * bounds[3, k, e]))
        decaying, noise = decaying + best, noise + best_noise
    return decaying, noise


@compiled
def horizons(
    decay: Rule,
    noise: Rule,
    rates: FloatArray,
    factors: FloatArray,
    momenta: FloatArray,
    targets: FloatArray,
    limits: FloatArray,
    errors: FloatArray,
) -> None:
    """Of every configuration, steps up to which the rules' error is at most CERTIFIED · target, and the bound on it.

    No steps if it is larger from the first.
    """
    bins, more = decay[2].shape[0], noise[2].shape[0]
    bounds, noise_bounds = np.empty((4, bins, decay[2].shape[1])), np.empty((4, more, noise[2].shape[1]))
    for c in range(rates.size):
        kick = rates[c] * rates[c] * factors[c]
        for boundary, known in ((decay[3], bounds), (noise[3], noise_bounds)):
            if momenta[c] < TINY:
                sgd_bounds(boundary, rates[c], known)
            else:
                momentum_bounds(boundary, rates[c], momenta[c], known)
        low, high, steps = 0.0, LAST_STEP, LAST_STEP
        while steps > low:
            error = quadrature_error(steps, decay[2], bounds)[0]
            if kick > 0.0:
                error += kick * quadrature_error(steps, noise[2], noise_bounds)[1]
            if error <= CERTIFIED * targets[c]:
                low, errors[c] = steps, error
            else:
                high = steps
            if low >= 0.8 * high:
                break
            steps = math.floor(math.sqrt(max(low, 1.0) * high)) if high > 8.0 else math.floor(0.5 * (low + high))
        limits[c] = low


@compiled
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


@reordered
def falling_sums(t: float, logs: FloatArray, weights: FloatArray) -> tuple[float, float]:
    """Σ weights ρ^t and its derivative, for ρ ≤ 1."""
    total = change = 0.0
    for i in range(logs.size):
        power, more = split_exponential(t * logs[i])
        now = weights[i] * (power * (1.0 + more))
        total += now
        change += logs[i] * now
    return total, change


@reordered
def noise_sums(t: float, logs: FloatArray, kicks: FloatArray) -> tuple[float, float]:
    """Σ kicks (ρ^t − 1) and its derivative, for ρ < 1."""
    total = change = 0.0
    for i in range(logs.size):
        power, more = split_exponential(t * logs[i])
        total += kicks[i] * (power * more + (power - 1.0))
        change += kicks[i] * logs[i] * (power * (1.0 + more))
    return total, change


@compiled
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


@compiled
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


@compiled
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


@compiled
def log_ratios(nodes: FloatArray, eps: float, logs: FloatArray) -> None:
    """Logarithms of (1 − ελ)², cut off at −2000: that is zero after one step."""
    for i in range(nodes.size):
        x = eps * nodes[i]
        logs[i] = max(2.0 * math.log1p(-min(x, 2.0 - x)), -2000.0)


@compiled
def sgd_passages(
    decay: Rule,
    noise: Rule,
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
    """Scan every configuration from `steps` to `limits` for losses up to targets + errors.

    `status`, `steps` and `losses` receive what was found; see ``sgd_scan``.
    """
    log_decay, log_noise, kicks = np.empty(decay[0].size), np.empty(noise[0].size), np.empty(noise[0].size)
    for c in range(rates.size):
        if limits[c] < steps[c]:
            continue
        kick = rates[c] * rates[c] * factors[c]
        log_ratios(decay[0], rates[c], log_decay)
        log_ratios(noise[0], rates[c], log_noise)
        for i in range(kicks.size):
            ratio = math.expm1(log_noise[i])
            kicks[i] = kick * noise[1][i] / (ratio if ratio != 0.0 else 1.0)
        status[c], steps[c], losses[c, 0], losses[c, 1] = sgd_scan(
            log_decay, decay[1], log_noise, kicks, steps[c], targets[c] + errors[c], limits[c]
        )


@reordered
def double(before: FloatArray, after: FloatArray) -> None:
    """Twice as many steps: squares of the 2×2 matrices before[0:4], one per mode."""
    for i in range(before.shape[1]):
        a, b, c, d = before[0, i], before[1, i], before[2, i], before[3, i]
        after[0, i] = a * a + b * c
        after[1, i] = (a + d) * b
        after[2, i] = (a + d) * c
        after[3, i] = b * c + d * d


@reordered
def carry(step: FloatArray, old: FloatArray, new: FloatArray, start: int, stop: int) -> None:
    """(θ, d) → A (θ, d) for modes start…stop−1."""
    for i in range(np.uint64(start), np.uint64(stop)):  # an index that cannot be negative leaves vectors possible
        theta, delta = old[0, i], old[1, i]
        new[0, i] = step[0, i] * theta + step[1, i] * delta
        new[1, i] = step[2, i] * theta + step[3, i] * delta


@reordered
def commit(new: FloatArray, old: FloatArray, start: int, stop: int) -> None:
    """Copy states."""
    for i in range(np.uint64(start), np.uint64(stop)):
        old[0, i], old[1, i] = new[0, i], new[1, i]


@reordered
def carry_moments(step: FloatArray, old: FloatArray, new: FloatArray, kicks: FloatArray) -> float:
    """(θ², θd, d²) → A (θ², θd, d²) Aᵀ + noise step[4:7], and Σ kicks θ² after it."""
    total = 0.0
    for i in range(kicks.size):
        a, b, c, d = step[0, i], step[1, i], step[2, i], step[3, i]
        tt, td, dd = old[0, i], old[1, i], old[2, i]
        left0, left1 = a * tt + b * td, a * td + b * dd
        right0, right1 = c * tt + d * td, c * td + d * dd
        new[0, i] = left0 * a + left1 * b + step[4, i]
        new[1, i] = left0 * c + left1 * d + step[5, i]
        new[2, i] = right0 * c + right1 * d + step[6, i]
        total += kicks[i] * new[0, i]
    return total


@reordered
def losses_at_ends(mass: FloatArray, old: FloatArray, new: FloatArray, start: int, stop: int) -> tuple[float, float]:
    """Σ mass θ² before and after."""
    before = after = 0.0
    for i in range(np.uint64(start), np.uint64(stop)):
        before += mass[i] * (old[0, i] * old[0, i])
        after += mass[i] * (new[0, i] * new[0, i])
    return before, after


@reordered
def smaller_ends(mass: FloatArray, old: FloatArray, new: FloatArray, start: int, stop: int) -> float:
    """Σ mass min(θ² before, θ² after) over the modes that keep their sign."""
    total = 0.0
    for i in range(np.uint64(start), np.uint64(stop)):
        before, after = old[0, i], new[0, i]
        total += mass[i] * (min(before * before, after * after) if before * after > 0.0 else 0.0)
    return total


@compiled
def spectral_order(
    nodes: FloatArray, weights: FloatArray, eps: float, m: float, x: FloatArray, mass: FloatArray
) -> None:
    """Order x = ελ and masses by falling frequency, that is by rising |x − (1 + m)|: a merge of the two sides."""
    right = 0
    while right < nodes.size and eps * nodes[right] > 1.0 + m:
        right += 1
    left = right - 1
    for i in range(nodes.size):
        if left < 0 or (right < nodes.size and 1.0 + m - eps * nodes[right] <= eps * nodes[left] - 1.0 - m):
            pick, right = right, right + 1
        else:
            pick, left = left, left - 1
        x[i], mass[i] = eps * nodes[pick], weights[pick]


@compiled
def one_step(x: FloatArray, m: float, step: FloatArray) -> None:
    """The map of (θ, d), d = εu, in one step: d ← m d + xθ, θ ← θ − d; with unit noise in d, if there is room."""
    for i in range(x.size):
        step[0, i], step[1, i], step[2, i], step[3, i] = 1.0 - x[i], -m, x[i], m
        if step.shape[0] > 4:
            step[4, i], step[5, i], step[6, i] = 1.0, -1.0, 1.0


@compiled
def climb(ladder: FloatArray, built: int, rung: int, kicks: FloatArray) -> int:
    """Build the ladder, whose rung k stands for 2^k steps, up to a rung; the highest one built."""
    while built < rung:
        double(ladder[built], ladder[built + 1])
        if ladder.shape[1] > 4:
            carry_moments(ladder[built], ladder[built, 4:], ladder[built + 1, 4:], kicks)
        built += 1
    return built


@compiled
def highest_bit(count: float) -> int:
    """⌊log₂ count⌋, count ≥ 1."""
    return int(math.frexp(count)[1]) - 1


@compiled
def noise_after(
    ladder: FloatArray, built: int, kicks: FloatArray, elapsed: float, moments: FloatArray, spare: FloatArray
) -> tuple[int, float, FloatArray, FloatArray]:
    """Advance the noise by `elapsed` ≥ 1 steps: rungs built, the loss that it makes, its moments, a spare array."""
    built = climb(ladder, built, highest_bit(elapsed), kicks)
    rung, count, loss = 0, int(elapsed), 0.0
    while count > 0:
        if count & 1:
            loss = carry_moments(ladder[rung], moments, spare, kicks)
            moments, spare = spare, moments
        count >>= 1
        rung += 1
    return built, loss, moments, spare


@compiled
def classify(x: FloatArray, mass: FloatArray, m: float, begin: IntArray, bend: FloatArray) -> tuple[int, int]:
    """How long a step every mode bears.

    begin[k] is the first mode that turns by at most 1.25 radians in 2^k steps; those after it turn more slowly.
    Returned are the number of modes that oscillate so well that their second derivative is bounded usefully,
    bend[i] m^t being the bound for those from i on, and the first unstable mode.
    """
    levels = begin.size - 1
    log_m = math.log(m)
    waves, unstable, level = 0, x.size, 0
    for i in range(x.size):
        bend[i] = 0.0
        discriminant, edge = discriminant_and_edge(x[i], m)
        bears = levels
        if discriminant < 0.0:
            omega = math.atan2(math.sqrt(-discriminant), abs(1.0 + m - x[i]))
            bears = min(max(highest_bit(1.25 / omega), 0), levels)
            amplitude = 1.0 + (1.0 - m - x[i]) ** 2 / -discriminant  # its square
            if waves == i and amplitude <= 4.0:
                waves = i + 1
                bend[i] = mass[i] * amplitude * (log_m * log_m + 2.0 * omega * omega)
        elif edge < 0.0:
            unstable = min(unstable, i)
        while level <= bears:
            begin[level] = i
            level += 1
    while level <= levels:
        begin[level] = x.size
        level += 1
    bend[x.size] = 0.0
    for i in range(x.size - 1, -1, -1):
        bend[i] += bend[i + 1]
    return waves, unstable


@compiled
def momentum_scan(
    x: FloatArray,
    mass: FloatArray,
    noisy_x: FloatArray,
    kicks: FloatArray,
    noisy: bool,
    m: float,
    first: float,
    level: float,
    last: float,
    ladder: FloatArray,
    noise_ladder: FloatArray,
    old: FloatArray,
    new: FloatArray,
    moments: FloatArray,
    spare: FloatArray,
) -> tuple[int, float, float, float]:
    """Status, step, and losses just before and at that step, as ``sgd_scan``.

    x in the order of :func:`spectral_order`; `ladder` (rungs, 4, modes), `noise_ladder` (rungs, 7, …), `old` and `new`
    (2, modes), `moments` and `spare` (3, …) are work space.
    """
    size, levels = x.size, ladder.shape[0] - 1  # the highest rung
    begin, at, bend = np.zeros(levels + 2, np.int64), np.zeros(levels + 1), np.empty(size + 1)
    waves, unstable = classify(x, mass, m, begin[: levels + 1], bend)
    begin[levels + 1] = size
    log_m = math.log(m)
    one_step(x, m, ladder[0])
    built = noise_built = 0

    # Noise is known up to the step `noise_at`. As long as the target can be met it is never above `noise_top`.
    noise_at, noise, noise_top, beyond = 0.0, 0.0, 0.0, PENDING
    if noisy:
        one_step(noisy_x, m, noise_ladder[0])
        for i in range(kicks.size):
            moments[0, i], moments[1, i], moments[2, i] = 0.0, 0.0, 0.0
            edge = 2.0 * m - (noisy_x[i] - 2.0)
            stationary = kicks[i] * (1.0 + m) / (noisy_x[i] * (1.0 - m) * edge)
            noise_top += stationary if edge > 0.0 else math.inf
        if not noise_top <= level:
            noise_top = level
            for rung in range(levels + 1):
                if 2.0**rung > last:
                    break
                noise_built = climb(noise_ladder, noise_built, rung, kicks)
                if not carry_moments(noise_ladder[rung], moments, spare, kicks) <= level:
                    beyond, last = NEVER, 2.0**rung - 1.0
                    break
            if last < first:
                return NEVER, first, math.inf, math.inf

    for i in range(size):
        old[0, i], old[1, i] = 1.0, 0.0
    now, k, successes, patience = first, 0, 0, 1
    if first > 0.0 and noisy:
        noise_built, noise, moments, spare = noise_after(noise_ladder, noise_built, kicks, first, moments, spare)
        noise_at = first
    started = False
    while True:
        while k > 0 and now + 2.0**k > last:
            k -= 1
        for group in range(k, levels + 1):
            begins, ends = begin[group], begin[group + 1]
            if at[group] < now and begins < ends:
                count, rung = int(now - at[group]), 0
                built = climb(ladder, built, highest_bit(now - at[group]), kicks)
                while count > 0:
                    if count & 1:
                        carry(ladder[rung], old, new, begins, ends)
                        commit(new, old, begins, ends)
                    count >>= 1
                    rung += 1
            at[group] = now
        if not started:
            started = True
            loss = losses_at_ends(mass, old, old, 0, size)[0] + noise
            if loss <= level:
                return REACHED, now, math.inf, loss
        if now >= last:
            return beyond, last, math.inf, math.inf
        built = climb(ladder, built, k, kicks)
        start, stride = begin[k], 2.0**k
        carry(ladder[k], old, new, start, size)
        blown_up = losses_at_ends(mass, old, old, unstable, size)[0]
        if not blown_up + noise <= level:
            return NEVER, now, math.inf, math.inf
        before = 0.0
        if k == 0:
            before, lower = losses_at_ends(mass, old, new, 0, size)
        else:
            middle = max(start, waves)
            here, there = losses_at_ends(mass, old, new, start, middle)
            sag = 0.125 * stride * stride * bend[start] * math.exp(log_m * now)
            lower = max(min(here, there) - sag, 0.0) + smaller_ends(mass, old, new, middle, unstable) + blown_up
        cleared = lower + noise > level
        if not cleared and noisy and noise_at < now and (k == 0 or lower + noise_top > level):
            late = now - noise_at
            noise_built, noise, moments, spare = noise_after(noise_ladder, noise_built, kicks, late, moments, spare)
            noise_at = now
            cleared = lower + noise > level
        if not cleared and k == 0:
            before += noise
            if noisy:
                noise_built, noise, moments, spare = noise_after(noise_ladder, noise_built, kicks, 1.0, moments, spare)
                noise_at = now + 1.0
            if lower + noise <= level:
                return REACHED, now + 1.0, before, lower + noise
            cleared = True
        if not cleared:
            k -= 1
            successes, patience = 0, min(2 * patience, 32)
            continue
        commit(new, old, start, size)
        now += stride
        for group in range(k, levels + 1):
            at[group] = now
        successes += 1
        if successes >= patience and k < levels and begin[k + 1] < size:
            k += 1
            successes, patience = 0, max(patience // 2, 1)


@compiled
def momentum_passages(
    decay: Rule,
    noise: Rule,
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
    """As ``sgd_passages``, for 0 < m < 1."""
    count, kicked = decay[0].size, noise[0].size
    ladder, noise_ladder = np.empty((RUNGS, 4, count)), np.empty((RUNGS, 7, kicked))
    old, new, moments, spare = np.empty((2, count)), np.empty((2, count)), np.empty((3, kicked)), np.empty((3, kicked))
    x, mass, noisy_x, kicks = np.empty(count), np.empty(count), np.empty(kicked), np.empty(kicked)
    for c in range(rates.size):
        if limits[c] < steps[c]:
            continue
        kick = rates[c] * rates[c] * factors[c]
        spectral_order(decay[0], decay[1], rates[c], momenta[c], x, mass)
        for i in range(kicked):
            noisy_x[i], kicks[i] = rates[c] * noise[0][i], kick * noise[1][i]
        status[c], steps[c], losses[c, 0], losses[c, 1] = momentum_scan(
            x,
            mass,
            noisy_x,
            kicks,
            kick > 0.0 and kicked > 0,
            momenta[c],
            steps[c],
            targets[c] + errors[c],
            limits[c],
            ladder,
            noise_ladder,
            old,
            new,
            moments,
            spare,
        )


@reordered
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
