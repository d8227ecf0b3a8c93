"""Second moments of moving averages under noise that grows with the loss, step by step, compiled.

A mode is z = (θ, u, θ̄): u ← m u + λθ + ξ, θ ← θ − εu, θ̄ ← keep θ̄ + fresh θ, with the weights of an average that
``pair_kernels`` describes. The variance of ξ in a mode depends on the loss of all modes, and its covariance between two
modes on their own E θᵢθⱼ. Nesterov's step θ ← θ − ε (g + m u) is θ ← θ − ε ((1+look) u − look u₋), with u₋ the velocity
before and `look` = m; for the paper's heavy ball `look` is 0.
"""

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.compiling import entry, reordered_entry


@reordered_entry
def average_steps(
    state: FloatArray,
    means: FloatArray,
    eigenvalues: FloatArray,
    weighted: FloatArray,
    fixed: FloatArray,
    pull: float,
    factor: float,
    label_noise: float,
    excess: float,
    rate: float,
    momentum: float,
    look: float,
    keep: float,
    fresh: float,
    count: int,
) -> None:
    """Advance (E δ², E δu, E u², E δδ̄, E uδ̄, E δ̄²), (6, D), and (E δ, E u, E δ̄), (3, D), by `count` steps.

    δ = θ − θ̂ is the distance from the fixed point θ̂ (`fixed`) of a penalty that adds `pull` to each curvature; noise is
    made at θ. `weighted` is wλ, `factor` γ and `excess` κ − 2.
    """
    # The new δ is a δ + b u − c ξ, with a = 1 − c (λ + pull).
    c, b = rate * (1.0 + look), -rate * ((1.0 + look) * momentum - look)
    tt, tu, uu, ta, ua, aa = state[0], state[1], state[2], state[3], state[4], state[5]
    mt, mu, ma = means[0], means[1], means[2]
    total = 0.0
    for i in range(tt.size):
        total += weighted[i] * (tt[i] + fixed[i] * (2.0 * mt[i] + fixed[i]))
    for _ in range(count):
        # Noise is made by the loss before the step; that after it is summed meanwhile, for the next step.
        drive, total = total + label_noise, 0.0
        for i in range(tt.size):
            lam, bend = eigenvalues[i], eigenvalues[i] + pull
            a = 1.0 - c * bend
            noise = factor * lam * (drive + excess * lam * (tt[i] + fixed[i] * (2.0 * mt[i] + fixed[i])))
            # E δ'δ̄ and E u'δ̄, of the new δ' and u' with the old average, which fresh noise does not correlate with.
            held = a * ta[i] + b * ua[i]
            pulled = bend * ta[i] + momentum * ua[i]
            new_tt = a * a * tt[i] + 2.0 * a * b * tu[i] + b * b * uu[i] + c * c * noise
            new_tu = a * bend * tt[i] + (a * momentum + b * bend) * tu[i] + b * momentum * uu[i] - c * noise
            uu[i] = bend * bend * tt[i] + 2.0 * bend * momentum * tu[i] + momentum * momentum * uu[i] + noise
            aa[i] = keep * (keep * aa[i] + 2.0 * fresh * held) + fresh * fresh * new_tt
            ta[i] = keep * held + fresh * new_tt
            ua[i] = keep * pulled + fresh * new_tu
            tt[i], tu[i] = new_tt, new_tu
            new_mt = a * mt[i] + b * mu[i]
            mu[i] = bend * mt[i] + momentum * mu[i]
            ma[i] = keep * ma[i] + fresh * new_mt
            mt[i] = new_mt
            total += weighted[i] * (new_tt + fixed[i] * (2.0 * new_mt + fixed[i]))


@entry
def average_rows(
    eigenvalues: FloatArray,
    mean: FloatArray,
    rate: float,
    factor: float,
    momentum: float,
    look: float,
    keep: FloatArray,
    fresh: FloatArray,
    lengths: IntArray,
    multipliers: FloatArray,
    shares: FloatArray,
    recorded: IntArray,
    means: FloatArray,
    start: int,
    stop: int,
    covariances: FloatArray,
) -> None:
    """Write Cov θ̄ᵢθ̄ⱼ, i ≠ j, of rows start…stop−1 after each recorded piece into `covariances`, (R, D, D).

    `mean` is E θ at step 0 and `means`, (R, D), E θ̄ at the records.
    """
    dim, m = eigenvalues.size, momentum
    for i in range(start, stop):
        for j in range(dim):
            lam, other = eigenvalues[i], eigenvalues[j]
            # Coordinates start independent and u at 0, so that every moment with θ is that of the means. An average
            # starts at θ, a sum at 0.
            tt = mean[i] * mean[j]
            ta = at = aa = tt if keep[-1] != 1.0 else 0.0
            tu = ut = uu = ua = au = 0.0
            # Without means nothing ever correlates the two modes.
            if i == j or tt == 0.0:
                continue
            for piece in range(lengths.size):
                eps = rate * multipliers[piece]
                hold, new = keep[piece], fresh[piece]
                kick = eps * (1.0 + look)
                a, c, b = 1.0 - kick * lam, 1.0 - kick * other, -eps * ((1.0 + look) * m - look)
                for _ in range(lengths[piece]):
                    # E ξᵢξⱼ, then E θᵢ'θ̄ⱼ and E θ̄ᵢθⱼ' with the old averages, and the same of u.
                    noise = factor * shares[piece] * lam * other * tt
                    left, right = a * ta + b * ua, c * at + b * au
                    pulled, pushed = lam * ta + m * ua, other * at + m * au
                    new_tt = a * c * tt + a * b * tu + b * c * ut + b * b * uu + kick * kick * noise
                    new_tu = a * other * tt + a * m * tu + b * other * ut + b * m * uu - kick * noise
                    new_ut = lam * c * tt + lam * b * tu + m * c * ut + m * b * uu - kick * noise
                    uu = lam * other * tt + lam * m * tu + m * other * ut + m * m * uu + noise
                    tt, tu, ut = new_tt, new_tu, new_ut
                    aa = hold * (hold * aa + new * (left + right)) + new * new * tt
                    ta, at = hold * left + new * tt, hold * right + new * tt
                    ua, au = hold * pulled + new * ut, hold * pushed + new * tu
                if recorded[piece] >= 0:
                    value = aa - means[recorded[piece], i] * means[recorded[piece], j]
                    covariances[recorded[piece], i, j] = value if np.isfinite(value) else np.inf
