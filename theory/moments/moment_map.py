"""The linear map that one step applies to the second moments, as an explicit matrix.

The rest of the package uses closed forms instead. The matrix is slower but simple, and therefore an independent check:
its spectral radius must agree with the critical learning rate, and its powers with the losses.
"""

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.quadratic import Quadratic, natural_units


@ignoring_underflow
def second_moment_map(
    problem: Quadratic, *, learning_rate: float, batch_size: float, momentum: float = 0.0, nesterov: bool = False
) -> FloatArray:
    r"""The matrix M of v ← M v + b, the exact second moments of one step of SGD or heavy ball.

    SGD has v = E θ² and, for least squares (Bordelon & Pehlevan 2021, there with κ = 3 and w = 1),

        M = (I−εΛ)² + γε² ((κ−2)Λ² + λ(w∘λ)ᵀ).

    For additive noise it is (I−εΛ)², since all noise is in b. With heavy ball v stacks (E θ², E θu, E u²), and noise of
    variance s adds (ε², −ε, 1) s; with Nesterov's step ε is ε(1+m) there. Flat modes, which stand still or diffuse but
    have no loss, are left out.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
    learning_rate, batch_size, momentum : float
        One configuration.
    nesterov : bool
        Whether θ takes Nesterov's step, θ ← θ − ε (g + m u), instead of the heavy ball's.

    Returns
    -------
    (n, n) array
        n is the number of curved modes, or three times that with momentum.

    Raises
    ------
    ValueError
        For an impossible learning rate, batch size or momentum, or more than one of each.

    Examples
    --------
    (1 − ε)² + 2ε²/B for a single mode and Gaussian inputs.

    >>> from noisysgd import theory
    >>> second_moment_map(theory.LeastSquares([1.0]), learning_rate=0.5, batch_size=1)
    array([[0.75]])
    >>> second_moment_map(theory.NoisyQuadratic([1.0], 1.0), learning_rate=0.5, batch_size=1, momentum=0.5)
    array([[ 0.25 , -0.25 ,  0.0625],
           [ 0.5  ,  0.   , -0.125 ],
           [ 1.   ,  1.   ,  0.25 ]])
    """
    checks.instance("problem", problem, Quadratic, remedy="Make one with theory.power_law or theory.LeastSquares.")
    remedy = "Use spectral_radius for many configurations at once."
    rate = checks.scalar("learning_rate", checks.learning_rate(learning_rate), remedy=remedy)
    size = checks.scalar("batch_size", checks.batch_size(batch_size, problem.dataset_size), remedy=remedy)
    inertia = checks.scalar("momentum", checks.momentum(momentum), remedy=remedy)
    checks.boolean("nesterov", nesterov)
    natural, unit = natural_units(problem)
    with np.errstate(over="ignore", invalid="ignore"):
        matrix = _map(natural, rate * unit, float(problem.noise_factor(size)), inertia, nesterov)
        if inertia > 0.0:  # u is measured in units of the gradient, which are larger by `unit` beside those of θ
            units = np.repeat(unit ** np.arange(3.0), len(matrix) // 3)
            matrix *= units[:, None] / units
    return matrix


@ignoring_underflow
def spectral_radius(
    problem: Quadratic,
    *,
    learning_rate: ArrayLike,
    batch_size: ArrayLike,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
) -> FloatArray:
    """Largest modulus of an eigenvalue of :func:`second_moment_map`: below 1 the loss stays bounded.

    It solves a dense eigenvalue problem for each configuration. At critical damping, where the map is defective, about
    five digits are right; elsewhere nearly all are.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
    learning_rate, batch_size, momentum : array_like
        Configurations, broadcast against each other.
    nesterov : bool
        As in :func:`second_moment_map`.

    Returns
    -------
    array of the broadcast shape
        ``inf`` where the map itself overflows.

    Raises
    ------
    ValueError
        For impossible learning rates, batch sizes or momenta, and shapes that do not broadcast.

    Examples
    --------
    >>> from noisysgd import theory
    >>> problem = theory.LeastSquares([1.0, 0.5, 0.1])
    >>> edge = theory.critical_learning_rate(problem, batch_size=2, momentum=0.5)
    >>> spectral_radius(problem, learning_rate=edge * [0.9, 1.0, 1.1], batch_size=2, momentum=0.5).round(6)
    array([0.93995 , 1.      , 1.067363])
    """
    checks.instance("problem", problem, Quadratic, remedy="Make one with theory.power_law or theory.LeastSquares.")
    rate, size, inertia = checks.broadcast(
        learning_rate=checks.learning_rate(learning_rate),
        batch_size=checks.batch_size(batch_size, problem.dataset_size),
        momentum=checks.momentum(momentum),
    )
    checks.boolean("nesterov", nesterov)
    problem, unit = natural_units(problem)
    rate, factor = rate * unit, problem.noise_factor(size)
    radius = np.empty(rate.shape)
    for index in np.ndindex(rate.shape):
        with np.errstate(over="ignore", invalid="ignore"):
            matrix = _map(problem, float(rate[index]), float(factor[index]), float(inertia[index]), nesterov)
        sound = np.isfinite(matrix).all()
        radius[index] = np.abs(np.linalg.eigvals(matrix)).max() if sound else np.inf
    return radius


def _map(problem: Quadratic, rate: float, noise_factor: float, momentum: float, nesterov: bool) -> FloatArray:
    """:func:`second_moment_map` of one checked configuration, γ for the batch size."""
    curved = problem.eigenvalues > 0
    curvature = problem.eigenvalues[curved]
    noise = np.zeros((curvature.size, curvature.size))  # the matrix from E θ² to the variances of gradients
    if isinstance(problem, LeastSquares):
        trace = np.outer(curvature, problem.weights[curved] * curvature)
        noise = noise_factor * (np.diag((problem.kurtosis - 2.0) * curvature**2) + trace)
    kick = rate * (1.0 + momentum) if nesterov else rate  # what the gradient adds to θ at once
    keep = 1.0 - kick * curvature
    if momentum == 0.0:
        return np.diag(keep**2) + rate * rate * noise
    # With θ ← keep θ + pull u − kick ξ and u ← λ θ + m u + ξ, each row of blocks expands one of E θ², E θu and E u².
    pull = -rate * momentum * (momentum if nesterov else 1.0)
    one = np.ones_like(curvature)
    theta2 = [np.diag(keep**2) + kick * kick * noise, np.diag(2 * keep * pull), np.diag(pull * pull * one)]
    cross = [np.diag(keep * curvature) - kick * noise, np.diag(keep * momentum + pull * curvature)]
    cross.append(np.diag(pull * momentum * one))
    u2 = [np.diag(curvature**2) + noise, np.diag(2 * momentum * curvature), np.diag(momentum**2 * one)]
    return np.block([theta2, cross, u2])
