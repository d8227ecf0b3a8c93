"""Learning rates beyond which SGD and heavy ball diverge, because of curvature or of noise that grows with the loss.

Additive noise leaves the curvature constraint of gradient descent as it is. Noise that grows with the loss feeds back:
a loss L makes noise that by itself keeps up a loss R·L, and a stationary state exists only while R < 1 (Velikanov,
Kuznedelev & Yarotsky 2023). R depends on the optimizer through two numbers, the temperature T = γε/(1−m) and the *step
length* δ = ε/(1+m), which is 0 in the SDE limit.
"""

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.limits import nesterov as nesterov_step
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.quadratic import Quadratic


@ignoring_underflow
def critical_learning_rate(
    problem: Quadratic, batch_size: ArrayLike = np.inf, momentum: ArrayLike = 0.0, *, nesterov: bool = False
) -> FloatArray:
    r"""Learning rate ε_crit at and beyond which the expected loss is not bounded.

    *Additive noise*: ε_crit = 2(1+m)/λ_max whatever the batch size (paper, section 3.1). In effective learning rates
    heavy ball can go (1+m)/(1−m) times as far, 19 times at m = 0.9.

    *Least squares*: the root of

        R = Σ wᵢ T λᵢ / (2 − λᵢ (T(κ−2) + ε/(1+m))) = 1,    T = γε/(1−m),

    below 2(1+m)/λ_max. SGD with Gaussian inputs has Σ ελᵢ/(2B − (B+1)ελᵢ) = 1 (Bordelon & Pehlevan 2021); κ = 2 gives
    γ Σ ελᵢ(1+m)/[(1−m)(2(1+m)−ελᵢ)] = 1 (Velikanov, Kuznedelev & Yarotsky 2023). Large batches meet the curvature
    constraint above, small ones 2B(1−m)/tr H: proportional to B, and a bound on ε/(1−m) alone. It is exact where each
    weight is at least 2 − κ, that is always for whole numbers of modes.

    *Nesterov's step* has 2(1+m)/((1+2m) λ_max) for additive noise, 1/(1+2m) of what the heavy ball has. For least
    squares R follows in the same way from its stationary state.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
    batch_size, momentum : array_like
        Broadcast against each other; the default is the noiseless limit.
    nesterov : bool
        Whether θ takes Nesterov's step, θ ← θ − ε (g + m u), instead of the heavy ball's.

    Returns
    -------
    array of the broadcast shape

    Raises
    ------
    ValueError
        For impossible batch sizes or momenta.

    Examples
    --------
    >>> from noisysgd import theory
    >>> theory.critical_learning_rate(theory.power_law(10), momentum=[0.0, 0.9])
    array([2. , 3.8])
    >>> theory.critical_learning_rate(theory.power_law(10), momentum=0.9, nesterov=True).round(4)
    np.float64(1.3571)

    One hundred equal modes, tr H = 100: 2B/(tr H + 1 + B) exactly.

    >>> problem = theory.LeastSquares([1.0], weights=100)
    >>> theory.critical_learning_rate(problem, batch_size=[1, 99, np.inf]).round(4)
    array([0.0196, 0.99  , 2.    ])
    """
    checks.instance("problem", problem, Quadratic, remedy="Make one with theory.power_law or theory.LeastSquares.")
    size, inertia = checks.broadcast(
        batch_size=checks.batch_size(batch_size, problem.dataset_size), momentum=checks.momentum(momentum)
    )
    checks.boolean("nesterov", nesterov)
    return edge(problem, problem.noise_factor(size), inertia, nesterov=nesterov)


def edge(problem: Quadratic, noise_factor: FloatArray, momentum: FloatArray, *, nesterov: bool = False) -> FloatArray:
    """:func:`critical_learning_rate` for checked arrays of one shape, of γ and of m."""
    if nesterov:
        return nesterov_step.edge(problem, noise_factor, momentum)
    largest = problem.largest_eigenvalue
    curvature = np.asarray(2.0 * (1.0 + momentum) / largest)
    if not isinstance(problem, LeastSquares):
        return curvature
    settings = zip((noise_factor / (1.0 - momentum)).flat, momentum.flat, strict=True)
    units = np.array([_root(problem, float(noise), float(m)) for noise, m in settings]).reshape(curvature.shape)
    return np.where(noise_factor > 0, np.minimum(1.0 / (largest * units), curvature), curvature)


def _root(problem: LeastSquares, noise: float, momentum: float) -> float:
    """1/(ε λ_max) at the edge; `noise` is γ/(1−m).

    With q = 1/(ε λ_max) and l = λ/λ_max, R = 1 reads f(q) = Σ w l/(q − k l) = 2/noise, where k = ½(noise (κ−2) +
    1/(1+m)). To the right of its poles f is the Stieltjes transform of a positive measure, so 1/f rises and is concave:
    from a lower bound of the root, Newton's iterates for 1/f rise to it and never pass it.
    """
    share = problem.eigenvalues / problem.largest_eigenvalue
    mass = problem.weights * share
    k = 0.5 * (noise * (problem.kurtosis - 2.0) + 1.0 / (1.0 + momentum))
    # The unknown is d in q = start + d: close to the last pole, the digits of q − k l are those of d.
    start = max(k, 0.0)
    gaps = start - k * share
    # Three lower bounds: the root for the steepest mode alone, that for all mass at its mean (Jensen's inequality), and
    # the curvature constraint.
    total = float(mass.sum())
    top = int(share.argmax())
    d = max(
        0.5 * noise * float(mass[top]) - float(gaps[top]),
        0.5 * noise * total - float(mass @ gaps) / total,
        0.5 / (1.0 + momentum) - start,
    )
    for _ in range(200):
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # d is minute where noise is
            terms = mass / (d + gaps)
            f = terms.sum()
            step = float(f * (0.5 * noise * f - 1.0) / (terms / (d + gaps)).sum())
        if not step > 1e-15 * d:
            break
        d += step
    return start + d


def feedback(problem: LeastSquares, temperature: FloatArray, step_length: FloatArray) -> FloatArray:
    """Each mode's share of R, shape (..., D), from T and δ = ε/(1+m); ``inf`` beyond a pole. R is their weighted sum.

    In the stationary state λ E θ² = share · (L + σ²), with L = Σ w λ E θ² twice the loss. A mode responds to noise of
    variance s with E θ² = T s / (λ(2 − δλ)), and s = λ(L + σ²) + (κ−2)λ² E θ² is partly made by the mode itself.
    """
    drive = temperature[..., None] * problem.eigenvalues
    room = 2.0 - problem.eigenvalues * (temperature * (problem.kurtosis - 2.0) + step_length)[..., None]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return np.where(drive == 0.0, 0.0, np.where(room > 0, drive / room, np.inf))
