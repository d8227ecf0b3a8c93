"""Exact second moments of one mode over many steps, compiled.

A mode is the scalar recursion u ← m u + λθ + ξ, θ ← θ − ε u with E ξ² = s (s = F_ii/B). Write x = ελ. Then θ obeys
θ_{n+1} = (1+m−x) θ_n − m θ_{n−1} − ε ξ_n, whose characteristic roots r₁, r₂ have product m, and the impulse response of
θ is −ε p_{n+1} with p_n = (r₁ⁿ − r₂ⁿ)/(r₁ − r₂). By Cayley–Hamilton the n-th power of the step matrix A is
p_n A − m p_{n−1} I. Everything below is arranged so that no digits cancel where λ → 0 (r₁ → 1), at the edge of
stability (r₁ → −1) or at critical damping (r₁ → r₂).

Times are step *counts*: the cost of a segment does not depend on how long it is, up to a logarithm in the rare case in
which both closed forms of the noise would cancel.
"""

import math

import numpy as np
from numba import njit

from noisysgd.theory.checks import FloatArray, IntArray

compiled = njit(cache=True, nogil=True, error_model="numpy")


@compiled
def geometric_sum(log_ratio: float, count: float) -> float:
    """Σ_{n<count} ρⁿ from log ρ, exact in the limit ρ → 1."""
    if log_ratio == 0.0:
        return count
    if log_ratio == -math.inf:
        return 1.0
    return math.expm1(count * log_ratio) / math.expm1(log_ratio)


@compiled
def sgd_segment(theta2: float, x: float, kick: float, count: int) -> float:
    """E θ² after `count` steps of plain SGD; `kick` is ε²s, the variance that one step adds."""
    # log (1−x)², written so that neither 1−x near 1 nor 1−x near −1 loses digits.
    log_ratio = 2.0 * math.log1p(-min(x, 2.0 - x)) if x != 1.0 else -math.inf
    decayed = theta2 * math.exp(count * log_ratio) if theta2 > 0.0 else 0.0
    return decayed + (kick * geometric_sum(log_ratio, count) if kick > 0.0 else 0.0)


@compiled
def power_coefficients(x: float, m: float, n: int) -> tuple[float, float]:
    """(p_n, p_{n−1}), n ≥ 1, for 0 < m < 1."""
    if n == 1:
        return 1.0, 0.0
    discriminant, edge = discriminant_and_edge(x, m)
    trace = 1.0 + m - x
    # Reflecting the roots about 0 flips the sign of every other p_n.
    sign = 1.0 if trace >= 0.0 or n % 2 == 1 else -1.0
    sign_before = sign if trace >= 0.0 else -sign
    if discriminant < 0.0:
        angle = math.atan2(math.sqrt(-discriminant), abs(trace))
        sine, root_m = math.sin(angle), math.sqrt(m)
        amplitude = sign * root_m ** (n - 1) / sine
        amplitude_before = sign_before * root_m ** (n - 2) / sine
        return amplitude * math.sin(n * angle), amplitude_before * math.sin((n - 1) * angle)
    # `large` is log|r₁|, `gap` is log(r₂/r₁) ≤ 0.
    large, gap = log_roots(x, m, math.sqrt(discriminant), trace, edge)
    p_n = sign * math.exp((n - 1) * large) * geometric_sum(gap, n)
    return p_n, sign_before * math.exp((n - 2) * large) * geometric_sum(gap, n - 1)


@compiled
def discriminant_and_edge(x: float, m: float) -> tuple[float, float]:
    """(1+m−x)² − 4m = (x − (1−√m)²)(x − (1+√m)²), and the distance 2(1+m) − x from the edge of stability.

    Near the edge 2m and x − 2 are exact and so is their difference; for m → 1 the upper critical damping lies so close
    to the edge that any other order of operations leaves the discriminant without correct digits.
    """
    edge = 2.0 * m - (x - 2.0)
    critical = ((1.0 - m) / (1.0 + math.sqrt(m))) ** 2
    return (x - critical) * (critical - edge), edge


@compiled
def log_roots(x: float, m: float, root: float, trace: float, edge: float) -> tuple[float, float]:
    """log|r₁| of the larger real root and log(r₂/r₁), accurate when |r₁| → 1 or r₂ → r₁."""
    if trace > 0.0:
        # 1 − r₁ as the small solution of s² − (1−m+x)s + x = 0.
        large = math.log1p(-2.0 * x / (1.0 - m + x + root))
    else:
        # 1 + r₁ as the solution of w² − (3+m−x)w + (2+2m−x) = 0 that vanishes at the edge x = 2(1+m); negative beyond.
        half_sum = 0.5 * (3.0 + m - x)
        one_plus = edge / (half_sum + 0.5 * root) if half_sum > 0.0 else half_sum - 0.5 * root
        large = math.log1p(-one_plus)
    # r₂/r₁ two ways: as one minus something small near critical damping, as m/r₁² elsewhere.
    apart = 2.0 * root / (abs(trace) + root)
    return large, math.log1p(-apart) if apart < 0.5 else math.log(m) - 2.0 * large


@compiled
def congruence(
    a00: float, a01: float, a10: float, a11: float, tt: float, tu: float, uu: float
) -> tuple[float, float, float]:
    """A M Aᵀ for a symmetric 2×2 M = (tt, tu, uu)."""
    left0 = a00 * tt + a01 * tu
    left1 = a00 * tu + a01 * uu
    right0 = a10 * tt + a11 * tu
    right1 = a10 * tu + a11 * uu
    return left0 * a00 + left1 * a01, left0 * a10 + left1 * a11, right0 * a10 + right1 * a11


@compiled
def advance(tt: float, tu: float, uu: float, x: float, eps: float, m: float, n: int) -> tuple[float, float, float]:
    """(E θ², E θu, E u²) after n noiseless heavy-ball steps; all arguments in the units of ε = eps, λ = x/eps."""
    p, q = power_coefficients(x, m, n)
    return congruence(p * (1.0 - x) - m * q, -p * eps * m, p * x / eps, p * m - m * q, tt, tu, uu)


@compiled
def noise_by_doubling(x: float, m: float, count: int) -> tuple[float, float, float]:
    """Σ_{n<count} Aⁿ b bᵀ Aⁿᵀ, b = (−1, 1), from S_{2n} = S_n + Aⁿ S_n Aⁿᵀ: only positive terms are added."""
    tt, tu, uu = 1.0, -1.0, 1.0
    done = 1
    highest = 0
    while count >> (highest + 1):
        highest += 1
    for bit in range(highest - 1, -1, -1):
        more_tt, more_tu, more_uu = advance(tt, tu, uu, x, 1.0, m, done)
        tt, tu, uu = tt + more_tt, tu + more_tu, uu + more_uu
        done *= 2
        if (count >> bit) & 1:
            tt, tu, uu = advance(tt, tu, uu, x, 1.0, m, 1)
            tt, tu, uu = tt + 1.0, tu - 1.0, uu + 1.0
            done += 1
    return tt, tu, uu


@compiled
def noise_by_geometric_sums(x: float, m: float, count: int, discriminant: float) -> tuple[float, float, float, bool]:
    """The same for real positive roots, squares of p_n as three geometric sums; False if they nearly cancel."""
    root = math.sqrt(discriminant)
    large, gap = log_roots(x, m, root, 1.0 + m - x, 0.0)
    slow = 2.0 * x / (1.0 - m + x + root)  # 1 − r₁
    fast = 0.5 * (1.0 - m + x + root)  # 1 − r₂
    r1, r2 = 1.0 - slow, 1.0 - fast
    slowest = geometric_sum(2.0 * large, count)
    mixed = geometric_sum(math.log(m), count)
    fastest = geometric_sum(2.0 * (large + gap), count)
    plus_tt, minus_tt = r1 * r1 * slowest + r2 * r2 * fastest, 2.0 * m * mixed
    plus_uu, minus_uu = slow * slow * slowest + fast * fast * fastest, 2.0 * abs(x) * mixed
    cross = (fast * r1 + slow * r2) * mixed - slow * r1 * slowest - fast * r2 * fastest
    sound = minus_tt <= 0.5 * plus_tt and minus_uu <= 0.5 * plus_uu
    plus_uu = plus_uu - 2.0 * x * mixed
    return (plus_tt - minus_tt) / discriminant, -cross / discriminant, plus_uu / discriminant, sound


@compiled
def noise_of_positive_roots(x: float, m: float, count: int) -> tuple[float, float, float]:
    """Second moments of (θ/ε, u) that `count` steps of unit noise build up from rest, for 1 + m − x ≥ 0."""
    discriminant, edge = discriminant_and_edge(x, m)
    if x > 0.0:
        # Stationary minus what is left of it: right unless most of it is left.
        scale = 1.0 / ((1.0 - m) * edge)
        tt, tu, uu = scale * (1.0 + m) / x, -scale, 2.0 * scale
        left_tt, left_tu, left_uu = advance(tt, tu, uu, x, 1.0, m, count)
        if left_tt <= 0.5 * tt and left_uu <= 0.5 * uu:
            return tt - left_tt, tu - left_tu, uu - left_uu
    if discriminant > 0.0:
        tt, tu, uu, sound = noise_by_geometric_sums(x, m, count, discriminant)
        if sound:
            return tt, tu, uu
    return noise_by_doubling(x, m, count)


@compiled
def noise_segment(x: float, m: float, count: int) -> tuple[float, float, float]:
    """Second moments of (θ/ε, u) that `count` steps of unit noise build up from rest.

    Reflecting x about 1 + m flips the sign of every other p_n. So negative roots, where θ alternates, borrow the sums
    of their positive reflections, and nothing cancels.
    """
    if 1.0 + m - x >= 0.0:
        return noise_of_positive_roots(x, m, count)
    reflected = 2.0 * m - (x - 2.0)
    tt, tu, uu = noise_of_positive_roots(reflected, m, count)
    last, _ = power_coefficients(reflected, m, count)
    return tt, -2.0 * tt - tu, 2.0 * (2.0 * tt - last * last) - uu


@compiled
def momentum_segment(
    tt: float, tu: float, uu: float, lam: float, s: float, eps: float, m: float, count: int
) -> tuple[float, float, float]:
    """(E θ², E θu, E u²) after `count` heavy-ball steps with gradient-noise variance s."""
    if eps == 0.0:
        # θ stands still while u relaxes towards λθ; nothing of it reaches θ within the segment.
        keep = m**count
        grow = lam * (1.0 - keep) / (1.0 - m)
        noise = s * (1.0 - keep * keep) / (1.0 - m * m)
        return tt, keep * tu + grow * tt, keep * keep * uu + 2.0 * keep * grow * tu + grow * grow * tt + noise
    x = eps * lam
    new_tt, new_tu, new_uu = 0.0, 0.0, 0.0
    if tt > 0.0 or uu > 0.0:
        new_tt, new_tu, new_uu = advance(tt, tu, uu, x, eps, m, count)
    if s > 0.0:
        noise_tt, noise_tu, noise_uu = noise_segment(x, m, count)
        new_tt, new_tu, new_uu = new_tt + eps * eps * s * noise_tt, new_tu + eps * s * noise_tu, new_uu + s * noise_uu
    return new_tt, new_tu, new_uu


@compiled
def loss_table(
    eigenvalues: FloatArray,
    noise: FloatArray,
    second_moment: FloatArray,
    learning_rate: FloatArray,
    noise_factor: FloatArray,
    momentum: FloatArray,
    lengths: IntArray,
    multipliers: FloatArray,
    recorded: IntArray,
    losses: FloatArray,
) -> None:
    """Expected loss of each configuration (row) after each recorded piece of the schedule, added into `losses`.

    `recorded[j]` is the column that piece j ends in, or −1.
    """
    for c in range(learning_rate.size):
        for i in range(eigenvalues.size):
            lam, s, m = eigenvalues[i], noise[i] * noise_factor[c], momentum[c]
            tt, tu, uu = second_moment[i], 0.0, 0.0
            if lam == 0.0 or (tt == 0.0 and s == 0.0):
                continue
            for j in range(lengths.size):
                eps = learning_rate[c] * multipliers[j]
                if m < 1e-30:  # beside 1, nothing
                    tt = sgd_segment(tt, eps * lam, eps * eps * s, lengths[j])
                else:
                    tt, tu, uu = momentum_segment(tt, tu, uu, lam, s, eps, m, lengths[j])
                if not tt < np.inf:  # an overflow stays one, even where a later ελ = 1 would wipe the mode out
                    for later in range(j, lengths.size):
                        if recorded[later] >= 0:
                            losses[c, recorded[later]] = np.inf
                    break
                if recorded[j] >= 0:
                    losses[c, recorded[j]] += 0.5 * lam * tt
