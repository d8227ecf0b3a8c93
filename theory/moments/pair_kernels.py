"""Exact second moments of a pair of modes (θ, u, θ̄) after many steps, compiled.

A mode obeys u ← m u + λθ + ξ, θ ← θ − ε u, θ̄ ← β θ̄ + (1−β) θ: z ← A z + b ξ with b = (−ε, 1, −ε(1−β)). Of two modes
with E ξᵢξⱼ = s the moments S = E zᵢ zⱼᵀ obey S ← Aᵢ S Aⱼᵀ + s b bᵀ. A segment of n steps is built up along the binary
digits of n, through a *ladder* of counts 1, …, n//4, n//2, n: what unit noise builds up from rest follows from
S_{2n} = S_n + Aᵢⁿ S_n Aⱼⁿᵀ, powers of the 2×2 block of (θ, u) are those of ``mode_kernels``, and the row r of θ̄ in Aⁿ
obeys r_{2n} = βⁿ r_n + r_n Aⁿ. So the number of roundings is logarithmic in n, and no power of the block is the square
of a rounded one.

Nesterov's step, θ ← θ − ε (g + m u) with the new u, is a heavy ball in other coordinates. φ = θ + ε m u obeys
u ← m (1−ελ) u + λφ + ξ and φ ← φ − ε u, so that each mode has a momentum of its own, which is negative where ελ > 1.
Below, `look` is m for Nesterov's step and 0 for the paper's heavy ball, and φ = θ + ε·look·u.

Averages are θ̄ ← keep θ̄ + fresh θ: β and 1−β for exponential weights, 1 and 1 for a sum of equal weights, and 0 and 0
before such a sum begins.

Least squares adds noise of covariance γλᵢλⱼ E θᵢθⱼ to a pair. Its map is M = T + N on (θᵢθⱼ, θᵢuⱼ, uᵢθⱼ, uᵢuⱼ) with
T = Aᵢ ⊗ Aⱼ and N of rank one. What the noise adds to a power, G_n = Mⁿ − Tⁿ, is built up without differences:
G_{2n} = Tⁿ G_n + G_n Tⁿ + G_n².
"""

import math

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.compiling import entry, helper
from noisysgd.theory.moments.mode_kernels import power_coefficients

RUNGS = 64
"""Room for a ladder: no number of steps has more binary digits."""

NO_MOMENTUM = 1e-30
"""A momentum below this rounds to none beside 1. Then u is not followed, since nothing depends on it."""


@helper
def opposite_coefficients(x: float, m: float, n: int) -> tuple[float, float]:
    """(p_n, p_{n−1}) of ``mode_kernels``, n ≥ 1, for m ≤ 0 and a trace 1 + m − x ≤ 0.

    The roots r₁ < 0 ≤ r₂ have opposite signs, so that r₁ − r₂ does not cancel, and |r₁| is the larger.
    """
    trace, edge = 1.0 + m - x, 2.0 * m - (x - 2.0)
    root = math.sqrt(trace * trace - 4.0 * m)
    large = 0.5 * (root - trace)  # |r₁|
    if large == 0.0:
        return (1.0 if n == 1 else 0.0), (1.0 if n == 2 else 0.0)
    ratio = m / (large * large)  # −r₂/|r₁|, between −1 and 0
    # |r₁| near 1 as one minus the small root of w² − (1−m+edge) w + edge = 0, which keeps the digits of the difference.
    log_large = math.log1p(-2.0 * edge / (1.0 - m + edge + root)) if 0.5 < large < 2.0 else math.log(large)
    reach = math.exp((n - 2) * log_large)
    p = reach * large * large / root * (1.0 - ratio**n)
    q = reach * large / root * (1.0 - ratio ** (n - 1))
    return (p, -q) if n % 2 == 1 else (-p, q)


@helper
def block_power(lam: float, eps: float, m: float, look: float, n: int, shift: float) -> tuple[float, ...]:
    """Aⁿ on (φ, u + shift·φ), row by row, n ≥ 1."""
    x = eps * lam
    if m < NO_MOMENTUM:
        # (1−x)ⁿ, written so that neither 1−x near 1 nor 1−x near −1 loses digits.
        size = math.exp(n * math.log1p(-min(x, 2.0 - x))) if x != 1.0 else 0.0
        return (-size if x > 1.0 and n % 2 == 1 else size), 0.0, 0.0, 0.0
    if eps == 0.0:
        # θ stands still while u relaxes towards λθ/(1−m).
        decay = n * math.log(m)
        return 1.0, 0.0, -lam * math.expm1(decay) / (1.0 - m), math.exp(decay)
    # Aⁿ = p_n A − m p_{n−1} I, by Cayley–Hamilton, with the momentum that the mode has in φ.
    m -= look * x
    p, q = power_coefficients(x, m, n) if m >= NO_MOMENTUM else opposite_coefficients(x, m, n)
    if shift == 0.0:
        return p * (1.0 - x) - m * q, -eps * m * p, lam * p, m * (p - q)
    edge = 2.0 * m - (x - 2.0)
    return p * (edge - 1.0) - m * q, -eps * m * p, edge / eps * p, -m * (p + q)


@helper
def shift_of(lam: float, eps: float, m: float, look: float) -> float:
    """The factor s for which powers of A do not cancel in the coordinates (φ, u + sφ).

    Where φ drifts, s = 0: u is small, being the difference of successive φ over −ε. Where the larger characteristic
    root is negative, φ alternates, and the sum of successive φ, 2φ + εu, is what is small: s = 2/ε. In these
    coordinates A is minus the matrix of the reflected curvature 2(1+m) − x.
    """
    x = eps * lam
    return 2.0 / eps if x > 1.0 + (m - look * x) and m >= NO_MOMENTUM else 0.0


@helper
def change_coordinates(
    before_eps: float, before_shift: float, eps: float, shift: float, look: float, change: FloatArray
) -> None:
    """Write the matrix from one segment's coordinates (φ, u + sφ) to the next one's into `change`, row by row, (4,).

    θ and u are carried across a change of ε, but φ and s depend on it.
    """
    ahead = (eps - before_eps) * look
    change[0], change[1] = 1.0 - ahead * before_shift, ahead
    change[2], change[3] = shift * change[0] - before_shift, 1.0 + shift * ahead


@helper
def place_of(eps: float, shift: float, look: float) -> tuple[float, float]:
    """The coefficients of θ = φ − ε·look·u in the coordinates (φ, u + sφ)."""
    return 1.0 + eps * look * shift, -eps * look


@helper
def rung_of(count: int) -> int:
    """Index of the highest rung of the ladder 1, …, count//2, count: one less than the binary digits of `count`."""
    highest = 0
    while count >> (highest + 1):
        highest += 1
    return highest


@helper
def climb(
    lam: float,
    eps: float,
    m: float,
    look: float,
    keep: float,
    fresh: float,
    count: int,
    powers: FloatArray,
    kicks: FloatArray,
) -> None:
    """Fill in powers[rung] = Aⁿ and kicks[rung] = Aⁿ b of one mode for each n in the ladder of `count`.

    They refer to the coordinates of :func:`shift_of`, as does b itself, which is stored in kicks[RUNGS].
    """
    top = rung_of(count)
    shift = shift_of(lam, eps, m, look)
    from_phi, from_u = place_of(eps, shift, look)
    kick_u = 0.0 if m < NO_MOMENTUM else 1.0 - shift * eps
    kick_average = -eps * (1.0 + look) * fresh
    start = kicks[RUNGS]
    start[0], start[1], start[2] = -eps, kick_u, kick_average
    r_theta, r_u, kept = 0.0, 0.0, 1.0  # the row of θ̄ in Aⁿ, for n = 0
    for k in range(top + 1):
        n = count >> (top - k)
        if k > 0:
            # Double: r and keepⁿ (`kept`) are still those of the rung below, n // 2.
            low = powers[k - 1]
            r_theta, r_u = (
                kept * r_theta + r_theta * low[0, 0] + r_u * low[1, 0],
                kept * r_u + r_theta * low[0, 1] + r_u * low[1, 1],
            )
        a00, a01, a10, a11 = block_power(lam, eps, m, look, n, shift)
        if n % 2 == 1:
            # One more step, after which θ̄ = keep θ̄ + fresh θ with the θ of Aⁿ.
            r_theta = keep * r_theta + fresh * (from_phi * a00 + from_u * a10)
            r_u = keep * r_u + fresh * (from_phi * a01 + from_u * a11)
        kept = keep ** float(n)
        here = powers[k]
        here[0, 0], here[0, 1], here[0, 2] = a00, a01, 0.0
        here[1, 0], here[1, 1], here[1, 2] = a10, a11, 0.0
        here[2, 0], here[2, 1], here[2, 2] = r_theta, r_u, kept
        kicks[k, 0] = a01 * kick_u - eps * a00
        kicks[k, 1] = a11 * kick_u - eps * a10
        kicks[k, 2] = r_u * kick_u - eps * r_theta + kick_average * kept


@helper
def congruence(left: FloatArray, right: FloatArray, moment: FloatArray, half: FloatArray, result: FloatArray) -> None:
    """Add left · moment · rightᵀ into `result`, all 3×3."""
    for a in range(3):
        for d in range(3):
            half[a, d] = left[a, 0] * moment[0, d] + left[a, 1] * moment[1, d] + left[a, 2] * moment[2, d]
    for a in range(3):
        for d in range(3):
            result[a, d] += half[a, 0] * right[d, 0] + half[a, 1] * right[d, 1] + half[a, 2] * right[d, 2]


@helper
def unit_noise(
    left_powers: FloatArray,
    left_kicks: FloatArray,
    right_powers: FloatArray,
    right_kicks: FloatArray,
    count: int,
    work: FloatArray,
) -> None:
    """Write into work[0] the moments that `count` steps of unit noise build up from rest."""
    total, inner, half = work[0], work[1], work[2]
    for a in range(3):
        for d in range(3):
            total[a, d] = left_kicks[RUNGS, a] * right_kicks[RUNGS, d]
    top = rung_of(count)
    for k in range(top):
        # S_{2n} = S_n + Aⁿ S_n Aⁿᵀ. One step more adds A²ⁿ b bᵀ A²ⁿᵀ, so that Aⁿ b bᵀ Aⁿᵀ joins the S_n between powers.
        odd = (count >> (top - k - 1)) & 1
        for a in range(3):
            for d in range(3):
                inner[a, d] = total[a, d] + (left_kicks[k, a] * right_kicks[k, d] if odd else 0.0)
        congruence(left_powers[k], right_powers[k], inner, half, total)


@helper
def pair_segment(
    left_powers: FloatArray,
    left_kicks: FloatArray,
    right_powers: FloatArray,
    right_kicks: FloatArray,
    left_change: FloatArray,
    right_change: FloatArray,
    s: float,
    count: int,
    moment: FloatArray,
    work: FloatArray,
) -> None:
    """Carry the moments of modes i and j, in place, over `count` steps whose ladders are given.

    They come in the previous segment's coordinates and leave in this one's; `left_change` and `right_change` are those
    of :func:`change_coordinates`. Once an entry for (φ, θ̄) overflows, all entries are ``inf``, and stay so.
    """
    if moment[0, 0] == np.inf:
        return
    moving = False
    for a in range(3):
        for d in range(3):
            moving = moving or moment[a, d] != 0.0
            work[0, a, d] = 0.0
    if s != 0.0:
        unit_noise(left_powers, left_kicks, right_powers, right_kicks, count, work)
        for a in range(3):
            for d in range(3):
                work[0, a, d] *= s
    if moving:
        # Change coordinates, then add what the steps make of the moments to what the noise has built up.
        for a in range(3):
            phi, u = moment[0, a], moment[1, a]
            if left_change[1] != 0.0:
                moment[0, a] = left_change[0] * phi + left_change[1] * u
            moment[1, a] = left_change[2] * phi + left_change[3] * u
        for a in range(3):
            phi, u = moment[a, 0], moment[a, 1]
            if right_change[1] != 0.0:
                moment[a, 0] = right_change[0] * phi + right_change[1] * u
            moment[a, 1] = right_change[2] * phi + right_change[3] * u
        top = rung_of(count)
        congruence(left_powers[top], right_powers[top], moment, work[2], work[0])
    # One comparison for all entries: a sum with an infinite or undefined term is not finite either.
    sound = abs(work[0, 0, 0]) + abs(work[0, 0, 2]) + abs(work[0, 2, 0]) + abs(work[0, 2, 2]) < np.inf
    for a in range(3):
        for d in range(3):
            moment[a, d] = work[0, a, d] if sound else np.inf


@helper
def start_at(entry: int, begun: bool) -> bool:
    """Whether an entry of z = (φ, u, θ̄) starts at θ₀ and not at 0: φ does, and an average that begins with θ₀."""
    return entry == 0 or (entry == 2 and begun)


@helper
def second_moment(moment: FloatArray, averaged: bool, left: tuple[float, float], right: tuple[float, float]) -> float:
    """E θ̄ᵢ θ̄ⱼ, or E θᵢ θⱼ if nothing is averaged, from the moments in coordinates with :func:`place_of` given."""
    if averaged:
        return float(moment[2, 2])
    if (left[1] == 0.0 and right[1] == 0.0) or moment[0, 0] == np.inf:
        return float(moment[0, 0])
    first = left[0] * moment[0, 0] + left[1] * moment[1, 0]
    second = left[0] * moment[0, 1] + left[1] * moment[1, 1]
    return float(first * right[0] + second * right[1])


@entry
def variance_table(
    eigenvalues: FloatArray,
    noise: FloatArray,
    variance: FloatArray,
    rate: float,
    m: float,
    look: float,
    keep: FloatArray,
    fresh: FloatArray,
    lengths: IntArray,
    multipliers: FloatArray,
    shares: FloatArray,
    recorded: IntArray,
    variances: FloatArray,
) -> None:
    """Write Var θ̄ of each mode into `variances`, (D, R); `noise`, (D,), is the variance of the gradient.

    `shares`, (P,), multiply the noise in each piece. If `variance` is E θ₀² instead of Var θ₀, the results are E θ̄².
    `keep` and `fresh`, (P,), are the weights of the average in each piece; where `keep` ends with 0, nothing is
    averaged and the results are those of θ.
    """
    powers, kicks, work = np.empty((RUNGS, 3, 3)), np.empty((RUNGS + 1, 3)), np.empty((4, 3, 3))
    moment, change = work[3], np.empty(4)
    averaged, begun = keep[-1] > 0.0, keep[-1] != 1.0
    for i in range(eigenvalues.size):
        if variance[i] == 0.0 and noise[i] == 0.0:
            continue
        for a in range(3):
            for d in range(3):
                moment[a, d] = variance[i] if start_at(a, begun) and start_at(d, begun) else 0.0
        before_eps, before = 0.0, 0.0
        for j in range(lengths.size):
            eps = rate * multipliers[j]
            climb(eigenvalues[i], eps, m, look, keep[j], fresh[j], lengths[j], powers, kicks)
            now = shift_of(eigenvalues[i], eps, m, look)
            change_coordinates(before_eps, before, eps, now, look, change)
            pair_segment(powers, kicks, powers, kicks, change, change, noise[i] * shares[j], lengths[j], moment, work)
            before_eps, before = eps, now
            if recorded[j] >= 0:
                place = place_of(eps, now, look)
                variances[i, recorded[j]] = second_moment(moment, averaged, place, place)


@entry
def covariance_rows(
    eigenvalues: FloatArray,
    noise: FloatArray,
    variance: FloatArray,
    rate: float,
    m: float,
    look: float,
    keep: FloatArray,
    fresh: FloatArray,
    lengths: IntArray,
    multipliers: FloatArray,
    shares: FloatArray,
    recorded: IntArray,
    first: int,
    last: int,
    covariances: FloatArray,
) -> None:
    """Write Cov θ̄ᵢθ̄ⱼ for first ≤ i < last and j ≥ i, and for j, i, into `covariances`, (R, D, D); `noise` is (D, D)."""
    dim = eigenvalues.size
    powers, kicks, work = np.empty((dim, RUNGS, 3, 3)), np.empty((dim, RUNGS + 1, 3)), np.empty((3, 3, 3))
    shift, change, before_eps = np.zeros(dim), np.empty((dim, 4)), 0.0
    moments = np.zeros((last - first, dim, 3, 3))
    averaged, begun = keep[-1] > 0.0, keep[-1] != 1.0
    for i in range(first, last):
        for a in range(3):
            for d in range(3):
                moments[i - first, i, a, d] = variance[i] if start_at(a, begun) and start_at(d, begun) else 0.0
    for piece in range(lengths.size):
        eps, count, record = rate * multipliers[piece], lengths[piece], recorded[piece]
        # Ladders belong to single modes, so that D of them serve all pairs of a segment.
        for i in range(first, dim):
            climb(eigenvalues[i], eps, m, look, keep[piece], fresh[piece], count, powers[i], kicks[i])
            now = shift_of(eigenvalues[i], eps, m, look)
            change_coordinates(before_eps, shift[i], eps, now, look, change[i])
            shift[i] = now
        before_eps = eps
        for i in range(first, last):
            for j in range(i, dim):
                moment = moments[i - first, j]
                kick = noise[i, j] * shares[piece]
                pair_segment(powers[i], kicks[i], powers[j], kicks[j], change[i], change[j], kick, count, moment, work)
                if record >= 0:
                    left, right = place_of(eps, shift[i], look), place_of(eps, shift[j], look)
                    value = second_moment(moment, averaged, left, right)
                    covariances[record, i, j] = covariances[record, j, i] = value


@entry
def mean_table(
    eigenvalues: FloatArray,
    start: FloatArray,
    rate: float,
    m: float,
    look: float,
    keep: FloatArray,
    fresh: FloatArray,
    lengths: IntArray,
    multipliers: FloatArray,
    shares: FloatArray,
    recorded: IntArray,
    means: FloatArray,
) -> None:
    """Write E θ̄ of each mode after each recorded piece into `means`, (R, D), whatever the noise and its `shares`."""
    powers, kicks, change = np.empty((RUNGS, 3, 3)), np.empty((RUNGS + 1, 3)), np.empty(4)
    averaged, begun = keep[-1] > 0.0, keep[-1] != 1.0
    for i in range(eigenvalues.size):
        phi, u, average = start[i], 0.0, start[i] if begun else 0.0
        before_eps, before = 0.0, 0.0
        for j in range(lengths.size if start[i] != 0.0 else 0):
            if abs(phi) + abs(average) < np.inf:
                eps = rate * multipliers[j]
                climb(eigenvalues[i], eps, m, look, keep[j], fresh[j], lengths[j], powers, kicks)
                now = shift_of(eigenvalues[i], eps, m, look)
                change_coordinates(before_eps, before, eps, now, look, change)
                phi, u = (change[0] * phi + change[1] * u if look > 0.0 else phi), change[2] * phi + change[3] * u
                before_eps, before = eps, now
                step = powers[rung_of(lengths[j])]
                phi, u, average = (
                    step[0, 0] * phi + step[0, 1] * u,
                    step[1, 0] * phi + step[1, 1] * u,
                    step[2, 0] * phi + step[2, 1] * u + step[2, 2] * average,
                )
            if not abs(phi) + abs(average) < np.inf:  # an overflow is for good
                phi = average = np.inf
            if recorded[j] >= 0:
                place = place_of(before_eps, before, look)
                theta = place[0] * phi + place[1] * u if look > 0.0 and phi < np.inf else phi
                means[recorded[j], i] = average if averaged else theta


@helper
def kronecker(left: FloatArray, right: FloatArray, result: FloatArray) -> None:
    """Write the Kronecker product of the (θ, u) blocks of `left` and `right` into `result`, 4×4."""
    for a in range(4):
        for b in range(4):
            result[a, b] = left[a // 2, b // 2] * right[a % 2, b % 2]


@helper
def product(left: FloatArray, right: FloatArray, result: FloatArray) -> None:
    """Write left · right into `result`, all 4×4."""
    for a in range(4):
        for c in range(4):
            total = 0.0
            for b in range(4):
                total += left[a, b] * right[b, c]
            result[a, c] = total


@helper
def noise_gain(
    left_powers: FloatArray,
    left_kicks: FloatArray,
    right_powers: FloatArray,
    right_kicks: FloatArray,
    strength: float,
    count: int,
    work: FloatArray,
) -> None:
    """Write G = Mⁿ − Tⁿ for M = T + strength · (bᵢ ⊗ bⱼ) e₀ᵀ and n = count into work[0], and Tⁿ into work[1]."""
    gain, power, single, ahead, ahead_power, spare = work[0], work[1], work[2], work[3], work[4], work[5]
    kronecker(left_powers[0], right_powers[0], single)
    kronecker(left_powers[0], right_powers[0], power)
    for a in range(4):
        for b in range(4):
            gain[a, b] = strength * left_kicks[RUNGS, a // 2] * right_kicks[RUNGS, a % 2] if b == 0 else 0.0
    top = rung_of(count)
    for k in range(top):
        # G_{n+l} = Tⁿ G_l + G_n (T^l + G_l) with l = n or, where the next binary digit is 1, l = n + 1. `ahead` is G_l.
        if (count >> (top - k - 1)) & 1:
            # G_{n+1} = T G_n + N Mⁿ, where N = strength · (bᵢ ⊗ bⱼ) e₀ᵀ takes the first row of Mⁿ = Tⁿ + G_n.
            product(single, power, ahead_power)
            product(single, gain, ahead)
            for a in range(4):
                strike = strength * left_kicks[RUNGS, a // 2] * right_kicks[RUNGS, a % 2]
                for b in range(4):
                    ahead[a, b] += strike * (power[0, b] + gain[0, b])
        else:
            for a in range(4):
                for b in range(4):
                    ahead[a, b], ahead_power[a, b] = gain[a, b], power[a, b]
        product(power, ahead, spare)
        for a in range(4):
            for b in range(4):
                ahead[a, b] += ahead_power[a, b]
        product(gain, ahead, ahead_power)
        for a in range(4):
            for b in range(4):
                gain[a, b] = spare[a, b] + ahead_power[a, b]
        # Not the product of rounded powers: the ladders have T^(n+l) to all digits.
        kronecker(left_powers[k + 1], right_powers[k + 1], power)


@entry
def least_squares_rows(
    eigenvalues: FloatArray,
    mean: FloatArray,
    rate: float,
    noise_factor: float,
    m: float,
    lengths: IntArray,
    multipliers: FloatArray,
    shares: FloatArray,
    recorded: IntArray,
    first: int,
    last: int,
    covariances: FloatArray,
) -> None:
    """Write Cov θᵢθⱼ for first ≤ i < last and j > i, and for j, i, into `covariances`, (R, D, D).

    `mean` is E θ at step 0.
    """
    dim = eigenvalues.size
    powers, kicks, work = np.empty((dim, RUNGS, 3, 3)), np.empty((dim, RUNGS + 1, 3)), np.empty((6, 4, 4))
    shift, before, means = np.empty(dim), np.zeros(dim), np.zeros((dim, 2))
    moments, mean_product, new = np.zeros((last - first, dim, 4)), np.empty(4), np.empty(4)
    for i in range(dim):
        means[i, 0] = mean[i]
    for piece in range(lengths.size):
        eps, count, record = rate * multipliers[piece], lengths[piece], recorded[piece]
        top = rung_of(count)
        for i in range(first, dim):
            climb(eigenvalues[i], eps, m, 0.0, 0.0, 1.0, count, powers[i], kicks[i])
            now = shift_of(eigenvalues[i], eps, m, 0.0)
            shift[i], before[i] = now - before[i], now
            means[i, 1] += shift[i] * means[i, 0]
        for i in range(first, last):
            for j in range(i + 1, dim):
                correlation = noise_factor * eigenvalues[i] * eigenvalues[j]
                strength = correlation * shares[piece]
                moment = moments[i - first, j]
                if correlation == 0.0 or mean[i] == 0.0 or mean[j] == 0.0 or moment[0] == np.inf:
                    continue  # nothing ever correlates the two, or they have overflowed already
                # Change to this segment's coordinates, first those of mode i and then those of mode j.
                moment[2] += shift[i] * moment[0]
                moment[3] += shift[i] * moment[1]
                moment[1] += shift[j] * moment[0]
                moment[3] += shift[j] * moment[2]
                noise_gain(powers[i], kicks[i], powers[j], kicks[j], strength, count, work)
                # Second moments obey M and products of means T, so covariances C ← Mⁿ C + Gₙ (mᵢ ⊗ mⱼ): no difference.
                for a in range(4):
                    mean_product[a] = means[i, a // 2] * means[j, a % 2]
                for a in range(4):
                    new[a] = 0.0
                    for b in range(4):
                        new[a] += (work[1, a, b] + work[0, a, b]) * moment[b] + work[0, a, b] * mean_product[b]
                sound = abs(new[0]) < np.inf
                for a in range(4):
                    moment[a] = new[a] if sound else np.inf
        # Means are advanced last, since the pairs needed those at the start of the segment.
        for i in range(first, dim):
            step, theta, u = powers[i, top], means[i, 0], means[i, 1]
            means[i, 0] = step[0, 0] * theta + step[0, 1] * u
            means[i, 1] = step[1, 0] * theta + step[1, 1] * u
        if record >= 0:
            for i in range(first, last):
                for j in range(i + 1, dim):
                    covariances[record, i, j] = covariances[record, j, i] = moments[i - first, j, 0]
