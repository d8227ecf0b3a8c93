"""Exact losses of the stochastic differential equations that approximate SGD, and the error of the approximation.

Li, Tai & E 2017 (arXiv 1511.06251): SGD with learning rate ε is an order-1 weak approximation of

    dX = −∇f dt + √ε Σ(X)^½ dW,    Σ = γF the covariance of a minibatch gradient,

and an order-2 one if −∇f is replaced by −∇(f + (ε/4)|∇f|²): expectations at a fixed time εn differ by O(ε) and O(ε²).
On quadratics both sides are known exactly, so that the order can be read off two curves, without sampling.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.moments.losses import expected_loss
from noisysgd.theory.moments.segments import cut, recorded_steps
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.problems.quadratic import Quadratic, natural_units
from noisysgd.theory.schedules.schedule import Schedule, constant

Problem = NoisyQuadratic | LeastSquares
Flow = Callable[[FloatArray, float], FloatArray]
"""A function of second moments, (D,), and a time that returns the second moments that much later."""


@ignoring_underflow
def diffusion_loss(
    problem: Problem,
    schedule: Schedule,
    *,
    learning_rate: ArrayLike,
    batch_size: ArrayLike,
    momentum: ArrayLike = 0.0,
    order: int = 1,
) -> FloatArray:
    """Expected loss of the SDE at the time when SGD is at the end of the schedule; see :func:`diffusion_curve`.

    Returns
    -------
    array of the broadcast shape

    Raises
    ------
    ValueError
        As :func:`diffusion_curve`.

    Examples
    --------
    >>> from noisysgd import theory
    >>> problem = theory.NoisyQuadratic([1.0], noise=0.0)
    >>> diffusion_loss(problem, theory.constant(10), learning_rate=0.1, batch_size=1) == 0.5 * np.exp(-2)
    np.True_
    """
    checks.instance("schedule", schedule, Schedule, remedy="Make one with theory.constant(steps) or half_then_decay.")
    return diffusion_curve(
        problem,
        schedule,
        learning_rate=learning_rate,
        batch_size=batch_size,
        momentum=momentum,
        at=schedule.steps,
        order=order,
    )


@ignoring_underflow
def diffusion_curve(
    problem: Problem,
    schedule: Schedule,
    *,
    learning_rate: ArrayLike,
    batch_size: ArrayLike,
    momentum: ArrayLike = 0.0,
    at: ArrayLike,
    order: int = 1,
) -> FloatArray:
    r"""Expected loss of the SDE limit of SGD at the times of chosen steps, in closed form.

    A step of SGD takes the time ε times its multiplier in the schedule. Second moments v = E X² obey

        dv/dt = −2Λ(1 + ½εΛ)v + εγ diag F     additive noise,
        dv/dt = −2Λ(1 + ½εΛ)v + εγ [(κ−2)Λ² + λ(w∘λ)ᵀ] v + εγσ²λ     least squares,

    at order 2, and without ½εΛ at order 1. Heavy ball has an order-1 limit, eq. 3 of the paper, in which ε/(1−m) takes
    the place of ε, so that the temperature is T = ε/(B(1−m)).

    For least squares with kurtosis 2, order 1 is homogenised SGD (Paquette et al. 2021), whose loss f solves the
    Volterra equation f(t) = f₀(t) + εγ ∫₀ᵗ K(t−s)(f(s) + ½σ²) ds with K(t) = Σ w λ² e^{−2λt} and f₀ the loss of
    gradient flow.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
    schedule : Schedule
        Multipliers of the learning rate.
    learning_rate, batch_size, momentum : array_like
        Broadcast against each other.
    at : int or (R,) array of int
        Steps in 0…schedule.steps, in any order.
    order : {1, 2}
        Weak order of the approximation.

    Returns
    -------
    array of shape (broadcast shape..., R), or the broadcast shape for a scalar `at`
        Losses, to compare with :func:`~noisysgd.theory.loss_curve`; ``inf`` on overflow. Curvature never makes a
        diffusion unstable, but noise that grows with the loss can. Least squares needs the eigenvectors of a D × D
        matrix for each learning rate in force.

    Raises
    ------
    ValueError
        For impossible settings, and for momentum at order 2: while u adapts in the first steps, and after each change
        of the learning rate, θ is shifted by O(ε), which no diffusion in θ alone can follow.

    Examples
    --------
    SGD and its diffusions of order 1 and 2, after 10 steps of ε = 0.1.

    >>> from noisysgd import theory
    >>> problem = theory.NoisyQuadratic([1.0], noise=1.0)
    >>> setting = {"learning_rate": 0.1, "batch_size": 4, "at": 10}
    >>> theory.loss_curve(problem, theory.constant(10), **setting).round(5)
    np.float64(0.06657)
    >>> [float(diffusion_curve(problem, theory.constant(10), order=k, **setting).round(5)) for k in (1, 2)]
    [0.07307, 0.06645]
    """
    checks.instance("problem", problem, Quadratic, remedy="Make one with theory.power_law or theory.LeastSquares.")
    checks.instance("schedule", schedule, Schedule, remedy="Make one with theory.constant(steps) or half_then_decay.")
    rate, size, inertia = checks.broadcast(
        learning_rate=checks.learning_rate(learning_rate),
        batch_size=checks.batch_size(batch_size, problem.dataset_size),
        momentum=checks.momentum(momentum),
    )
    checks.unmasked("order", order)
    known = np.ndim(order) == 0 and not isinstance(order, bool) and order in (1, 2)
    checks.require(known, "order", "1 or 2", order, "Weak orders beyond 2 need other noise.")
    known = order == 1 or not inertia.any()
    checks.require(known, "momentum", "no momentum at order 2", momentum, "Use order=1, or momentum=0.")
    steps = recorded_steps(at, schedule)
    unique, inverse = np.unique(steps.ravel(), return_inverse=True)
    pieces = cut(schedule, unique)
    losses = np.full((rate.size, unique.size), problem.initial_loss)
    problem, unit = natural_units(problem)
    rate = rate * unit
    settings = zip((rate / (1.0 - inertia)).flat, problem.noise_factor(size).flat, strict=True)
    curved = _curved(problem)
    height = 0.5 * (problem.weights * problem.eigenvalues)[curved]
    # Modes without curvature have no loss, so that they are not followed.
    for row, (scale, factor) in zip(losses, settings, strict=True):
        # A learning rate may come back later in the schedule; its eigenvectors are found once.
        flows = {k: _flow(problem, float(k * scale), float(factor), order) for k in np.unique(pieces.multipliers)}
        moments = problem.initial_second_moment[curved]
        for length, k, column in zip(pieces.lengths, pieces.multipliers, pieces.recorded, strict=True):
            with np.errstate(over="ignore"):
                time = float(k * scale * length)
            moments = flows[k](moments, time)
            if column >= 0:
                row[column] = (height * moments).sum()
    return losses[:, inverse].reshape(rate.shape + steps.shape)


@ignoring_underflow
def weak_error(
    problem: Problem, *, time: float, steps: ArrayLike, batch_size: float, momentum: float = 0.0, order: int = 1
) -> FloatArray:
    """|E loss of SGD − E loss of the SDE| at a fixed time that SGD reaches in `steps` steps, with ε = time/steps.

    This is the global weak error of Li, Tai & E 2017 (definition 3) for one test function, the loss. It falls as
    ε^order.

    Parameters
    ----------
    problem, batch_size, momentum, order
        As in :func:`diffusion_curve`, for a single configuration.
    time : float
        The time ε × steps > 0 at which losses are compared.
    steps : int or (K,) array of int
        Numbers of steps.

    Returns
    -------
    array of the shape of `steps`
        ``inf`` where either loss diverges.

    Raises
    ------
    ValueError
        As :func:`diffusion_curve`, and for a time or numbers of steps that are not positive.

    Examples
    --------
    >>> from noisysgd import theory
    >>> problem = theory.NoisyQuadratic([1.0, 0.5], noise=[1.0, 0.5])
    >>> for order in (1, 2):
    ...     coarse, fine = weak_error(problem, time=1.0, steps=[1000, 2000], batch_size=4, order=order)
    ...     print(round(float(np.log2(coarse / fine)), 2))
    1.0
    2.0
    """
    checks.instance("problem", problem, Quadratic, remedy="Make one with theory.power_law or theory.LeastSquares.")
    remedy = "Give learning rate × steps."
    duration = checks.scalar("time", checks.at_least("time", time, 0.0, remedy=remedy))
    checks.require(duration > 0, "time", "a time > 0", time, remedy)
    size = checks.scalar("batch_size", checks.batch_size(batch_size, problem.dataset_size))
    inertia = checks.scalar("momentum", checks.momentum(momentum))
    counts = checks.at_least("steps", steps, 1.0, remedy="Take at least one step.")
    errors = np.empty(counts.shape)
    for index in np.ndindex(counts.shape):
        run = constant(checks.integer("steps", counts[index], 1, remedy="Steps are whole."))
        rate = duration / run.steps
        discrete = expected_loss(problem, run, learning_rate=rate, batch_size=size, momentum=inertia)
        continuous = diffusion_loss(problem, run, order=order, learning_rate=rate, batch_size=size, momentum=inertia)
        both = np.isfinite(discrete) and np.isfinite(continuous)
        errors[index] = np.abs(discrete - continuous) if both else np.inf
    return errors


def _curved(problem: Problem) -> IntArray:
    """Indices of the curved modes, steepest first.

    With a matrix graded from large entries to small ones, the eigensolver keeps the digits of the small ones.
    """
    return np.argsort(-problem.eigenvalues, kind="stable")[: np.count_nonzero(problem.eigenvalues)]


def _flow(problem: Problem, rate: float, noise_factor: float, order: int) -> Flow:
    """The flow of the curved modes' second moments at the learning rate `rate`, which is ε/(1−m) with momentum."""
    curvature = problem.eigenvalues[_curved(problem)]
    with np.errstate(over="ignore"):
        decay = 2.0 * curvature * (1.0 + (0.5 * rate * curvature if order == 2 else 0.0))
    temperature = rate * noise_factor
    if isinstance(problem, LeastSquares):
        if temperature > 0:  # without noise modes are not coupled
            return _coupled(problem, curvature, decay, temperature)
        noise = np.zeros_like(curvature)
    else:
        noise = temperature * problem.noise_diagonal[_curved(problem)]

    # Each mode on its own: v(t) = v(0) e^(−decay t) + noise · (1 − e^(−decay t))/decay.
    def flow(moments: FloatArray, time: float) -> FloatArray:
        with np.errstate(over="ignore", invalid="ignore"):
            elapsed = decay * time
            # For small decay · t that fraction is t times a mean of exponentials; for large ones that could be ∞ · 0.
            built_up = np.where(elapsed < 1.0, time * _mean_exponential(-elapsed), -np.expm1(-elapsed) / decay)
            return moments * np.exp(-elapsed) + noise * built_up

    return flow


def _coupled(problem: LeastSquares, curvature: FloatArray, decay: FloatArray, temperature: float) -> Flow:
    """The flow of least squares, a linear equation symmetric in √w v, so that one eigenbasis serves all times."""
    root = np.sqrt(problem.weights[_curved(problem)])
    with np.errstate(over="ignore", invalid="ignore"):
        own = temperature * (problem.kurtosis - 2.0) * curvature**2 - decay
        matrix = np.diag(own) + temperature * np.outer(root * curvature, root * curvature)
    if not np.isfinite(matrix).all():  # so much noise overflows at once
        return lambda moments, time: np.full_like(moments, np.inf)
    rates, basis = np.linalg.eigh(matrix)
    source = basis.T @ (temperature * problem.label_noise * root * curvature)

    def flow(moments: FloatArray, time: float) -> FloatArray:
        with np.errstate(over="ignore", invalid="ignore"):
            # In the eigenbasis every coefficient grows by itself. Where it is 0 it stays 0: never inf · 0.
            start = basis.T @ (root * moments)
            grown = np.where(start == 0.0, 0.0, np.exp(rates * time) * start)
            driven = np.where(source == 0.0, 0.0, time * _mean_exponential(rates * time) * source)
            result = basis @ (grown + driven) / root
        # Exact moments are not negative, and once they overflow they do not come back.
        return np.where(np.isfinite(result), np.maximum(result, 0.0), np.inf)

    return flow


def _mean_exponential(y: FloatArray) -> FloatArray:
    """(eʸ − 1)/y, the mean of the exponential over an interval."""
    with np.errstate(over="ignore"):
        return np.divide(np.expm1(y), y, where=y != 0.0, out=np.ones_like(y))
