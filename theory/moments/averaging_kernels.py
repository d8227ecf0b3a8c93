"""Second moments of moving averages under noise that grows with the loss, step by step, compiled.

A mode is z = (θ, u, θ̄): u ← m u + λθ + ξ, θ ← θ − εu, θ̄ ← βθ̄ + (1−β)θ. The variance of ξ in a mode depends on the loss
of all modes, and its covariance between two modes on their own E θᵢθⱼ.
"""

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.compiling import entry, reordered_entry


@reordered_entry
def average_steps(
    state: FloatArray,
    eigenvalues: FloatArray,
    weighted: FloatArray,
    factor: float,
    label_noise: float,
    excess: float,
    rate: float,
    momentum: float,
    averaging: float,
    count: int,
) -> None:
    """Advance (E θ², E θu, E u², E θθ̄, E uθ̄, E θ̄²), (6, D), by `count` steps.

    `weighted` is wλ, `factor` γ and `excess` κ − 2.
    """
    # The new θ is a θ + b u − ε ξ, with a = 1 − ελ and b = −εm.
    b, fresh = -rate * momentum, 1.0 - averaging
    tt, tu, uu, ta, ua, aa = state[0], state[1], state[2], state[3], state[4], state[5]
    total = 0.0
    for i in range(tt.size):
        total += weighted[i] * tt[i]
    for _ in range(count):
        # Noise is made by the loss before the step; that after it is summed meanwhile, for the next step.
        drive, total = total + label_noise, 0.0
        for i in range(tt.size):
            lam = eigenvalues[i]
            a = 1.0 - rate * lam
            noise = factor * lam * (drive + excess * lam * tt[i])
            # E θ'θ̄ and E u'θ̄, of the new θ' and u' with the old average, which fresh noise does not correlate with.
            held = a * ta[i] + b * ua[i]
            pulled = lam * ta[i] + momentum * ua[i]
            new_tt = a * a * tt[i] + 2.0 * a * b * tu[i] + b * b * uu[i] + rate * rate * noise
            new_tu = a * lam * tt[i] + (a * momentum + b * lam) * tu[i] + b * momentum * uu[i] - rate * noise
            uu[i] = lam * lam * tt[i] + 2.0 * lam * momentum * tu[i] + momentum * momentum * uu[i] + noise
            aa[i] = averaging * (averaging * aa[i] + 2.0 * fresh * held) + fresh * fresh * new_tt
            ta[i] = averaging * held + fresh * new_tt
            ua[i] = averaging * pulled + fresh * new_tu
            tt[i], tu[i] = new_tt, new_tu
            total += weighted[i] * new_tt


@entry
def average_rows(
    eigenvalues: FloatArray,
    mean: FloatArray,
    rate: float,
    factor: float,
    momentum: float,
    averaging: float,
    lengths: IntArray,
    multipliers: FloatArray,
    recorded: IntArray,
    means: FloatArray,
    start: int,
    stop: int,
    covariances: FloatArray,
) -> None:
    """Write Cov θ̄ᵢθ̄ⱼ, i ≠ j, of rows start…stop−1 after each recorded piece into `covariances`, (R, D, D).

    `mean` is E θ at step 0 and `means`, (R, D), E θ̄ at the records.
    """
    dim, m, fresh = eigenvalues.size, momentum, 1.0 - averaging
    for i in range(start, stop):
        for j in range(dim):
            lam, other = eigenvalues[i], eigenvalues[j]
            # Coordinates start independent, u at 0 and θ̄ at θ, so that every moment with θ is that of the means.
            tt = mean[i] * mean[j]
            ta = at = aa = tt
            tu = ut = uu = ua = au = 0.0
            # Without means nothing ever correlates the two modes.
            if i == j or tt == 0.0:
                continue
            for piece in range(lengths.size):
                eps = rate * multipliers[piece]
                a, c, b = 1.0 - eps * lam, 1.0 - eps * other, -eps * m
                for _ in range(lengths[piece]):
                    # E ξᵢξⱼ, then E θᵢ'θ̄ⱼ and E θ̄ᵢθⱼ' with the old averages, and the same of u.
                    noise = factor * lam * other * tt
                    left, right = a * ta + b * ua, c * at + b * au
                    pulled, pushed = lam * ta + m * ua, other * at + m * au
                    new_tt = a * c * tt + a * b * tu + b * c * ut + b * b * uu + eps * eps * noise
                    new_tu = a * other * tt + a * m * tu + b * other * ut + b * m * uu - eps * noise
                    new_ut = lam * c * tt + lam * b * tu + m * c * ut + m * b * uu - eps * noise
                    uu = lam * other * tt + lam * m * tu + m * other * ut + m * m * uu + noise
                    tt, tu, ut = new_tt, new_tu, new_ut
                    aa = averaging * (averaging * aa + fresh * (left + right)) + fresh * fresh * tt
                    ta, at = averaging * left + fresh * tt, averaging * right + fresh * tt
                    ua, au = averaging * pulled + fresh * ut, averaging * pushed + fresh * tu
                if recorded[piece] >= 0:
                    value = aa - means[recorded[piece], i] * means[recorded[piece], j]
                    covariances[recorded[piece], i, j] = value if np.isfinite(value) else np.inf
