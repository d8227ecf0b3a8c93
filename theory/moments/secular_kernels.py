r"""Roots of the secular equation of least squares' second moments, and one step of those moments, compiled.

In units with U = εu, x = ελ, one update changes P = E θ², C = E θU and R = E U² of every mode by a small linear map and
couples modes only through S = Σ w x P, which enters all of them along one direction (`momentum_steps`). So z = 1 − η is
an eigenvalue of the whole map where

    f(η) = 1 − γψ(η) Σ w x²/D(η) = 0,    D = x(2(1+m) − x) − kx²ψ(η) − φ(η),    k = γ(κ−2),
    ψ = (1+m−η)/(1−m−η),                 φ = η(1−m²−η)/(1−η),

where γψx/D is what a mode's P makes of S. With m = 0 (ψ = 1, φ = η) this is the equation of a diagonal matrix plus
one of rank one (Golub 1973). As there, f falls from +∞ to −∞ between neighbouring poles, the zeros p of D, so that
every gap holds a root. With momentum these roots are the slow modes, z > m; of the others, most are complex.

Poles and roots are held as complements η, so that z → 1 keeps all its digits and 10⁷ steps lose none. A root is
held as its distance τ from a base, a pole next to it or 0 (Cuppen 1981; Gu & Eisenstat 1994), and
D(η) = D(p) + (p−η)(1 − m²/((1−p)(1−η)) + 2mkx²/((1−m−p)(1−m−η))) holds for any p, so that nothing cancels however
close roots and poles come. Eigenvectors follow in closed form.
"""

import math
from typing import NamedTuple

import numpy as np

from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.compiling import entry, reordered_entry, reordered_helper


class Coupled(NamedTuple):
    """One update of all modes: those that have a pole come first, in ascending order of their poles."""

    momentum: float
    noise: float  # γ
    excess: float  # k
    poles: int  # how many modes have one
    anchor: FloatArray  # p in the identity for D: a mode's pole, or any other number if it has none
    rest: FloatArray  # D(p), which is 0 at a pole
    bend: FloatArray  # m²/(1−p)
    twist: FloatArray  # 2mkx²/(1−m−p)
    x: FloatArray
    wx: FloatArray  # w x
    kx2: FloatArray  # k x²
    strength: FloatArray  # γ w x²


@reordered_entry
def sgd_steps(
    p: FloatArray, x: FloatArray, wx: FloatArray, decay: FloatArray, noise: float, kick: float, count: int
) -> float:
    """Advance P by `count` steps of plain SGD, in place; S after them. `decay` is 1 − (1−x)² − kx², `kick` is εσ²."""
    total = 0.0
    for i in range(p.size):
        total += wx[i] * p[i]
    for _ in range(count):
        drive = noise * (total + kick)
        total = 0.0
        for i in range(p.size):
            p[i] += x[i] * drive - decay[i] * p[i]  # an increment: slow modes keep their digits
            total += wx[i] * p[i]
        if not total < math.inf:  # further steps would not make it finite again
            break
    return total


@reordered_entry
def momentum_steps(
    p: FloatArray,
    c: FloatArray,
    r: FloatArray,
    x: FloatArray,
    wx: FloatArray,
    kx2: FloatArray,
    momentum: float,
    noise: float,
    kick: float,
    count: int,
) -> float:
    """Advance (P, C, R) by `count` steps of heavy ball, in place; S after them.

    A step is U ← mU + xθ + noise of variance γx(S + εσ²) + kx²P, then θ ← θ − U.
    """
    total = 0.0
    for i in range(p.size):
        total += wx[i] * p[i]
    for _ in range(count):
        drive = noise * (total + kick)
        total = 0.0
        for i in range(p.size):
            pull = x[i] * p[i]
            cross = momentum * c[i] + pull  # E θU of the old θ and the new U
            square = momentum * (momentum * r[i] + 2.0 * x[i] * c[i]) + x[i] * (pull + drive) + kx2[i] * p[i]
            c[i] = cross - square
            r[i] = square
            p[i] += square - 2.0 * cross
            total += wx[i] * p[i]
        if not total < math.inf:
            break
    return total


@reordered_helper
def sums(q: Coupled, base: float, tau: float) -> tuple[float, float, float, float]:
    """1 − f at η = base + τ in two parts, that of the poles left of η and of those right of it, each with its slope."""
    eta, m = base + tau, q.momentum
    # Values for m = 0, where ψ = 1 and φ = η.
    psi, psi_slope, phi_slope, c1, c2 = 1.0, 0.0, 1.0, 0.0, 0.0
    if m > 0.0:
        c1, c2 = 1.0 / (1.0 - eta), 1.0 / (1.0 - m - eta)
        psi, psi_slope, phi_slope = (1.0 + m - eta) * c2, 2.0 * m * c2 * c2, 1.0 - (m * c1) ** 2
    left, left_slope, right, right_slope = 0.0, 0.0, 0.0, 0.0
    for i in range(q.x.size):
        # 1/D by the identity of the module's docstring; p − η is exact however close η comes to the pole p.
        inverse = 1.0 / (((q.anchor[i] - base) - tau) * (1.0 - q.bend[i] * c1 + q.twist[i] * c2) + q.rest[i])
        term = q.strength[i] * inverse
        slope = term * (psi_slope + psi * (phi_slope + psi_slope * q.kx2[i]) * inverse)
        if term < 0.0:  # D falls through zero at its pole, so that it is negative to the right of it
            left += term
            left_slope += slope
        else:
            right += term
            right_slope += slope
    return psi * left, left_slope, psi * right, right_slope


@entry
def roots(q: Coupled, limit: float, count: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The `count` smallest roots as bases and distances τ from them, and −f′ there.

    Root k lies below pole k and below `limit`. Each iterate is the root of c − a/(left pole − η) − b/(right pole − η),
    fitted to value and slope of both parts of f (Bunch, Nielsen & Sorensen 1978), within a bracket: about five
    evaluations in all.
    """
    bases, taus, slopes = np.empty(count), np.empty(count), np.empty(count)
    for k in range(count):
        # To the right of the last pole of D, f is shaped by the pole of ψ at 1 − m.
        right = q.anchor[k] if k < q.poles else 1.0 - q.momentum
        top = min(right, limit)
        left = q.anchor[k - 1] if k > 0 else 0.0
        base, low, high = left, 0.0, top - left
        tau = 0.5 * high
        if k == 0:
            # No pole bounds the first root from below: it is negative where the loss grows (z > 1). If its pole is
            # negative too, start where it would be with no other mode and no momentum, at p − γwx².
            low = -math.inf
            if top <= 0.0:
                base, high, tau = top, 0.0, -q.strength[0]
        nearer_to_right = top > left and top == right
        slope, last = 0.0, False
        for iteration in range(100):
            left_value, left_slope, right_value, right_slope = sums(q, base, tau)
            f, slope = (1.0 - right_value) - left_value, left_slope + right_slope
            if f > 0.0:
                low = tau
                # The first iterate was the middle of the gap: the root is in its right half, so measure from there.
                if iteration == 0 and nearer_to_right:
                    tau += base - right
                    base, low, high = right, tau, 0.0
            elif f < 0.0:
                high = tau
            else:
                break
            to_right = (right - base) - tau
            c = f + right_slope * to_right
            if k == 0 and c <= 0.0:  # no root of the fit; but f is concave here, and we come from the right
                new = tau + f / slope
            elif k == 0:
                new = (right - base) - right_slope * to_right**2 / c
            else:
                # An equation for the distance d from the base itself, which may be minute: c d² − e d = side · product.
                to_left, gap = (left - base) - tau, right - left
                c += left_slope * to_left
                from_left, from_right = left_slope * to_left**2, right_slope * to_right**2
                side, product = (1.0, from_left * gap) if base == left else (-1.0, from_right * gap)
                e = side * c * gap - from_left - from_right
                spread = math.sqrt(max(e * e + 4.0 * side * c * product, 0.0))
                # Two forms of one solution; each is used where it adds numbers of equal sign.
                new = side * 2.0 * product / (spread - e) if e <= 0.0 else (e + spread) / (2.0 * c)
            near = abs(new - tau) <= 1e-8 * abs(tau)
            # So close to the root, Newton's step doubles the digits and is free of the fit's rounding errors.
            if near:
                new = tau + f / slope
            elif not low < new < high:  # the fit has failed
                new = 0.5 * (low + high)
                near = abs(new - tau) <= 2e-16 * abs(tau)
            tau = new
            # One more step than the root needs, since the slope must be that at the root as well.
            if near and last:
                break
            last = near
        bases[k], taus[k], slopes[k] = base, tau, slope
    return bases, taus, slopes


@reordered_entry
def project(
    q: Coupled, bases: FloatArray, taus: FloatArray, slopes: FloatArray, p: FloatArray, c: FloatArray, r: FloatArray
) -> FloatArray:
    """Part of S that each root's eigenvector holds in the state (P, C, R), by left eigenvectors, (K,)."""
    m = q.momentum
    shares = np.empty(bases.size)
    for k in range(bases.size):
        base, tau = bases[k], taus[k]
        psi, c1, c2, of_p, of_xp, of_c, of_r = 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0
        if m > 0.0:
            z = 1.0 - (base + tau)
            c1, c2 = 1.0 / z, 1.0 / (z - m)
            psi = (z + m) * c2
            # Entries of the left eigenvector that stand for P, xP, C, xC and R, up to the factor w x · response.
            fade = (z - m * m) / z
            of_p, of_xp = (z - m) * fade / (z + m), 2.0 * m / (z + m)
            of_c, of_r = -of_xp * fade, m * m / z
        total = 0.0
        for i in range(q.x.size):
            response = psi / (((q.anchor[i] - base) - tau) * (1.0 - q.bend[i] * c1 + q.twist[i] * c2) + q.rest[i])
            held = (of_p + of_xp * q.x[i]) * p[i] + (of_c + of_xp * q.x[i]) * c[i] + of_r * r[i]
            total += q.wx[i] * response * held
        shares[k] = total / slopes[k]  # −f′ is the scalar product of the left and the right eigenvector
    return shares


@reordered_entry
def combine(
    q: Coupled, bases: FloatArray, taus: FloatArray, shares: FloatArray, p: FloatArray, c: FloatArray, r: FloatArray
) -> None:
    """Add to the state (P, C, R) the right eigenvectors that hold these parts of S; without momentum only P counts."""
    m = q.momentum
    for k in range(bases.size):
        base, tau = bases[k], taus[k]
        z = 1.0 - (base + tau)
        psi, c1, c2, fade, gain = 1.0, 0.0, 0.0, 1.0, 0.0
        if m > 0.0:
            c1, c2 = 1.0 / z, 1.0 / (z - m)
            psi = (z + m) * c2
            fade, gain = z - m * m, psi + q.excess
        for i in range(q.x.size):
            x = q.x[i]
            push = q.noise * shares[k] * x
            response = psi / (((q.anchor[i] - base) - tau) * (1.0 - q.bend[i] * c1 + q.twist[i] * c2) + q.rest[i])
            # C and R follow from P = push · response: they are the values that one step multiplies by z.
            square = (x * x * gain * push * response + push) / (fade + 2.0 * m * x * z * c2)
            p[i] += push * response
            c[i] += (x * push * response - z * square) * c2
            r[i] += square
