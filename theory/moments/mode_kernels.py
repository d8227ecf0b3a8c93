"""Exact second moments of one mode after many steps, compiled.

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

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.compiling import entry, helper

FEW = 40
"""Up to this number of steps, taking them one by one is as fast as doubling."""


@helper
def sgd_segment(theta2: float, x: float, kick: float, count: int) -> float:
    """E θ² after `count` steps of plain SGD; `kick` is ε²s, the variance that one step adds."""
    # log (1−x)^2n, written so that neither 1−x near 1 nor 1−x near −1 loses digits.
    exponent = count * 2.0 * math.log1p(-min(x, 2.0 - x)) if x != 1.0 else -math.inf
    if exponent > -0.7:
        gone = -math.expm1(exponent)
        left = 1.0 - gone
    else:
        left = math.exp(exponent)
        gone = 1.0 - left
    decayed = theta2 * left if theta2 > 0.0 else 0.0
    if kick == 0.0:
        return decayed
    shrinks = x * (2.0 - x)  # 1 − (1−x)², by which a step shrinks E θ²
    return decayed + kick * (gone / shrinks if shrinks != 0.0 else float(count))


@helper
def discriminant_and_edge(x: float, m: float) -> tuple[float, float]:
    """(1+m−x)² − 4m = (x − (1−√m)²)(x − (1+√m)²), and the distance 2(1+m) − x from the edge of stability.

    Near the edge 2m and x − 2 are exact and so is their difference; for m → 1 the upper critical damping lies so close
    to the edge that any other order of operations leaves the discriminant without correct digits.
    """
    edge = 2.0 * m - (x - 2.0)
    critical = ((1.0 - m) / (1.0 + math.sqrt(m))) ** 2
    return (x - critical) * (critical - edge), edge


@helper
def real_roots(
    x: float, m: float, root: float, trace: float, edge: float, log_m: float
) -> tuple[float, float, float, float]:
    """1 − |r₁| for the larger real root, 1 − r₂/r₁, log|r₁| and log(r₂/r₁); accurate when |r₁| → 1 or r₂ → r₁."""
    if trace > 0.0:
        # The small solution of s² − (1−m+x)s + x = 0.
        slow = 2.0 * x / (1.0 - m + x + root)
    else:
        # 1 + r₁ as the solution of w² − (3+m−x)w + (2+2m−x) = 0 that vanishes at the edge x = 2(1+m); negative beyond.
        half_sum = 0.5 * (3.0 + m - x)
        slow = edge / (half_sum + 0.5 * root) if half_sum > 0.0 else half_sum - 0.5 * root
    large = math.log1p(-slow)
    apart = 2.0 * root / (abs(trace) + root)
    # r₂/r₁ two ways: as one minus something small near critical damping, as m/r₁² elsewhere.
    return slow, apart, large, math.log1p(-apart) if apart < 0.5 else log_m - 2.0 * large


@helper
def power_coefficients(x: float, m: float, n: int) -> tuple[float, float]:
    """(p_n, p_{n−1}), n ≥ 1, for 0 < m < 1."""
    discriminant, edge = discriminant_and_edge(x, m)
    return coefficients(x, m, n, discriminant, edge, math.log(m), decay(m, n))


@helper
def decay(m: float, n: int) -> float:
    """m^((n−2)/2), by which oscillations have died out."""
    return math.exp(0.5 * (n - 2) * math.log(m))


@helper
def coefficients(
    x: float, m: float, n: int, discriminant: float, edge: float, log_m: float, decayed: float
) -> tuple[float, float]:
    """(p_n, p_{n−1}), n ≥ 1, from quantities that callers have at hand; `decayed` is :func:`decay` at n."""
    if n == 1:
        return 1.0, 0.0
    trace = 1.0 + m - x
    # Reflecting the roots about 0 flips the sign of every other p_n.
    sign = 1.0 if trace >= 0.0 or n % 2 == 1 else -1.0
    sign_before = sign if trace >= 0.0 else -sign
    if discriminant < 0.0:
        # r = √m e^{±iφ}; the sine of (n−1)φ comes from those of nφ and φ.
        root, size = 0.5 * math.sqrt(-discriminant), 0.5 * abs(trace)
        angle = n * math.atan2(root, size)
        sine = math.sin(angle)
        amplitude = decayed / root
        return sign * m * amplitude * sine, sign_before * amplitude * (sine * size - math.cos(angle) * root)
    slow, apart, large, gap = real_roots(x, m, math.sqrt(discriminant), trace, edge, log_m)
    reach = math.exp((n - 2) * large)
    # p_{n−1} = r₁^{n−2} (1 + ρ + … + ρ^{n−2}), ρ = r₂/r₁, and p_n has one term more.
    vanished = math.expm1((n - 1) * gap)
    before = -vanished / apart if apart > 0.0 else n - 1.0
    return sign * (1.0 - slow) * reach * (before + 1.0 + vanished), sign_before * reach * before


@helper
def advance(
    tt: float, tu: float, uu: float, x: float, eps: float, m: float, p: float, q: float
) -> tuple[float, float, float]:
    """(E θ², E θu, E u²) after n noiseless heavy-ball steps, p = p_n and q = p_{n−1}; in the units of λ = x/eps."""
    a00, a01, a10, a11 = p * (1.0 - x) - m * q, -p * eps * m, p * x / eps, p * m - m * q
    left0, left1 = a00 * tt + a01 * tu, a00 * tu + a01 * uu
    right0, right1 = a10 * tt + a11 * tu, a10 * tu + a11 * uu
    return left0 * a00 + left1 * a01, left0 * a10 + left1 * a11, right0 * a10 + right1 * a11


@helper
def noise_by_steps(x: float, m: float, count: int) -> tuple[float, float, float]:
    """Σ_{n<count} Aⁿ b bᵀ Aⁿᵀ, b = (−1, 1), term by term: the fastest way for few terms."""
    theta, u = -1.0, 1.0
    tt, tu, uu = 1.0, -1.0, 1.0
    for _ in range(count - 1):
        u = m * u + x * theta
        theta -= u
        tt, tu, uu = tt + theta * theta, tu + theta * u, uu + u * u
    return tt, tu, uu


@helper
def noise_by_doubling(
    x: float, m: float, count: int, discriminant: float, edge: float, log_m: float
) -> tuple[float, float, float]:
    """Σ_{n<count} Aⁿ b bᵀ Aⁿᵀ, b = (−1, 1), from S_{2n} = S_n + Aⁿ S_n Aⁿᵀ: only positive terms are added."""
    tt, tu, uu = 1.0, -1.0, 1.0
    highest = 0
    while count >> (highest + 1):
        highest += 1
    # From the highest binary digit of `count` down: double the number of terms, and add one where the digit is 1.
    for bit in range(highest - 1, -1, -1):
        n = count >> (bit + 1)
        p, q = coefficients(x, m, n, discriminant, edge, log_m, decay(m, n))
        more_tt, more_tu, more_uu = advance(tt, tu, uu, x, 1.0, m, p, q)
        tt, tu, uu = tt + more_tt, tu + more_tu, uu + more_uu
        if (count >> bit) & 1:
            tt, tu, uu = advance(tt, tu, uu, x, 1.0, m, 1.0, 0.0)
            tt, tu, uu = tt + 1.0, tu - 1.0, uu + 1.0
    return tt, tu, uu


@helper
def noise_by_geometric_sums(
    x: float, m: float, count: int, discriminant: float, log_m: float
) -> tuple[float, float, float, bool]:
    """Σ_{n<count} Aⁿ b bᵀ Aⁿᵀ, b = (−1, 1), for real positive roots, and whether the result is accurate.

    (r₁ⁿ − r₂ⁿ)² makes three geometric sums, which are no use where they nearly cancel.
    """
    root = math.sqrt(discriminant)
    slow, _, large, gap = real_roots(x, m, root, 1.0 + m - x, 0.0, log_m)
    fast = 0.5 * (1.0 - m + x + root)  # 1 − r₂
    r1, r2 = 1.0 - slow, 1.0 - fast
    # Σ r₁^2n, Σ mⁿ and Σ r₂^2n.
    slowest = -math.expm1(2.0 * count * large) / (slow * (2.0 - slow)) if slow != 0.0 else float(count)
    mixed = -math.expm1(count * log_m) / (1.0 - m)
    fastest = -math.expm1(2.0 * count * (large + gap)) / (fast * (2.0 - fast))
    plus_tt, minus_tt = r1 * r1 * slowest + r2 * r2 * fastest, 2.0 * m * mixed
    plus_uu, minus_uu = slow * slow * slowest + fast * fast * fastest, 2.0 * abs(x) * mixed
    cross = (fast * r1 + slow * r2) * mixed - slow * r1 * slowest - fast * r2 * fastest
    sound = minus_tt <= 0.5 * plus_tt and minus_uu <= 0.5 * plus_uu
    plus_uu = plus_uu - 2.0 * x * mixed
    return (plus_tt - minus_tt) / discriminant, -cross / discriminant, plus_uu / discriminant, sound


@helper
def noise_of_positive_roots(
    x: float, m: float, count: int, p: float, q: float, discriminant: float, edge: float, log_m: float
) -> tuple[float, float, float]:
    """Second moments of (θ/ε, u) that `count` steps of unit noise build up from rest, for 1 + m − x ≥ 0."""
    if x > 0.0:
        # The stationary state minus what `count` steps leave of it: accurate unless most of it is left.
        scale = 1.0 / ((1.0 - m) * edge)
        tt, tu, uu = scale * (1.0 + m) / x, -scale, 2.0 * scale
        left_tt, left_tu, left_uu = advance(tt, tu, uu, x, 1.0, m, p, q)
        if left_tt <= 0.5 * tt and left_uu <= 0.5 * uu:
            return tt - left_tt, tu - left_tu, uu - left_uu
    if count <= FEW:
        return noise_by_steps(x, m, count)
    if discriminant > 0.0:
        tt, tu, uu, sound = noise_by_geometric_sums(x, m, count, discriminant, log_m)
        if sound:
            return tt, tu, uu
    return noise_by_doubling(x, m, count, discriminant, edge, log_m)


@helper
def noise_segment(
    x: float, m: float, count: int, p: float, q: float, discriminant: float, edge: float, log_m: float
) -> tuple[float, float, float]:
    """Second moments of (θ/ε, u) that `count` steps of unit noise build up from rest; p = p_count, q = p_{count−1}.

    Reflecting x about 1 + m flips the sign of every other p_n. So negative roots, where θ alternates, borrow the sums
    of their positive reflections, and nothing cancels.
    """
    reflected = 1.0 + m - x < 0.0
    if reflected:
        # The distance to the edge, 2(1+m) − x, is the reflected x.
        odd = 1.0 if count % 2 == 1 else -1.0
        x, edge, p, q = edge, x, odd * p, -odd * q
    tt, tu, uu = noise_of_positive_roots(x, m, count, p, q, discriminant, edge, log_m)
    if reflected:
        tu, uu = -2.0 * tt - tu, 2.0 * (2.0 * tt - p * p) - uu
    return tt, tu, uu


@helper
def momentum_segment(
    tt: float,
    tu: float,
    uu: float,
    lam: float,
    s: float,
    eps: float,
    m: float,
    count: int,
    log_m: float,
    decayed: float,
) -> tuple[float, float, float]:
    """(E θ², E θu, E u²) after `count` heavy-ball steps with gradient-noise variance s; `decayed` is :func:`decay`."""
    if eps == 0.0:
        # θ stands still while u relaxes towards λθ; nothing of it reaches θ within the segment.
        keep = m**count
        grow = lam * (1.0 - keep) / (1.0 - m)
        noise = s * (1.0 - keep * keep) / (1.0 - m * m)
        return tt, keep * tu + grow * tt, keep * keep * uu + 2.0 * keep * grow * tu + grow * grow * tt + noise
    x = eps * lam
    discriminant, edge = discriminant_and_edge(x, m)
    p, q = coefficients(x, m, count, discriminant, edge, log_m, decayed)
    new_tt, new_tu, new_uu = 0.0, 0.0, 0.0
    if tt > 0.0 or uu > 0.0:
        new_tt, new_tu, new_uu = advance(tt, tu, uu, x, eps, m, p, q)
    if s > 0.0:
        noise_tt, noise_tu, noise_uu = noise_segment(x, m, count, p, q, discriminant, edge, log_m)
        new_tt, new_tu, new_uu = new_tt + eps * eps * s * noise_tt, new_tu + eps * s * noise_tu, new_uu + s * noise_uu
    return new_tt, new_tu, new_uu


@helper
def lose(losses: FloatArray, recorded: IntArray, piece: int) -> bool:
    """Set the records of `piece` and all later ones to infinity; whether these are all records there are."""
    every = True
    for j in range(recorded.size):
        if recorded[j] >= 0 and j >= piece:
            losses[recorded[j]] = np.inf
        elif recorded[j] >= 0:
            every = False
    return every


@entry
def sgd_table(
    eigenvalues: FloatArray,
    half_weights: FloatArray,
    noise: FloatArray,
    second_moment: FloatArray,
    learning_rate: FloatArray,
    noise_factor: FloatArray,
    lengths: IntArray,
    multipliers: FloatArray,
    shares: FloatArray,
    recorded: IntArray,
    losses: FloatArray,
) -> None:
    """Expected loss of each configuration (row) after each recorded piece of the schedule, added into `losses`.

    `half_weights` are ½wλ; `shares[j]` multiplies the noise in piece j; `recorded[j]` is the column that it ends in, or
    −1.
    """
    for c in range(learning_rate.size):
        lost = False  # whether every record is infinite already
        for i in range(eigenvalues.size):
            if lost:
                break
            lam, s, tt = eigenvalues[i], noise[i] * noise_factor[c], second_moment[i]
            if lam == 0.0 or (tt == 0.0 and s == 0.0):
                continue
            for j in range(lengths.size):
                eps = learning_rate[c] * multipliers[j]
                tt = sgd_segment(tt, eps * lam, eps * eps * (s * shares[j]), lengths[j])
                if not tt < np.inf:  # an overflow stays one, even where a later ελ = 1 would wipe the mode out
                    lost = lose(losses[c], recorded, j)
                    break
                if recorded[j] >= 0:
                    losses[c, recorded[j]] += half_weights[i] * tt


@entry
def momentum_table(
    eigenvalues: FloatArray,
    half_weights: FloatArray,
    noise: FloatArray,
    second_moment: FloatArray,
    learning_rate: FloatArray,
    noise_factor: FloatArray,
    momentum: FloatArray,
    lengths: IntArray,
    multipliers: FloatArray,
    shares: FloatArray,
    recorded: IntArray,
    losses: FloatArray,
) -> None:
    """Expected losses as in :func:`sgd_table`, of heavy ball with 0 < m < 1.

    A function of its own, so that neither has to wait for the other to compile.
    """
    decayed = np.empty(lengths.size)
    # Records within a segment do not interrupt it: each is computed from the start of the segment, since at the edge of
    # stability moments that are carried from record to record lose digits.
    counts = lengths.copy()
    for j in range(1, lengths.size):
        if multipliers[j] == multipliers[j - 1] and shares[j] == shares[j - 1]:
            counts[j] += counts[j - 1]
    for c in range(learning_rate.size):
        m = momentum[c]
        log_m = math.log(m)
        for j in range(lengths.size):
            decayed[j] = decay(m, counts[j])
        lost = False
        for i in range(eigenvalues.size):
            if lost:
                break
            lam, s = eigenvalues[i], noise[i] * noise_factor[c]
            tt, tu, uu = second_moment[i], 0.0, 0.0
            tt0, tu0, uu0 = tt, tu, uu
            if lam == 0.0 or (tt == 0.0 and s == 0.0):
                continue
            for j in range(lengths.size):
                eps = learning_rate[c] * multipliers[j]
                if counts[j] == lengths[j]:
                    tt0, tu0, uu0 = tt, tu, uu
                kick = s * shares[j]
                tt, tu, uu = momentum_segment(tt0, tu0, uu0, lam, kick, eps, m, counts[j], log_m, decayed[j])
                if not tt < np.inf:
                    lost = lose(losses[c], recorded, j)
                    break
                if recorded[j] >= 0:
                    losses[c, recorded[j]] += half_weights[i] * max(tt, 0.0)  # rounding may leave −10⁻³²⁰
