"""Exact mean and covariance of the parameters, or of their moving average, after any number of steps.

On a quadratic the modes of the mean do not mix, and each pair of modes has second moments of its own, whose map is
constant within a segment of the schedule, so that a segment costs one power of it (``pair_kernels``). Gradient noise
that does not commute with the curvature correlates modes, which the loss does not notice: it needs the diagonal only.

The moving average of iterates is θ̄ ← β θ̄ + (1−β) θ after each step, from θ̄₀ = θ₀ (Polyak averaging with exponential
weights). It and the velocity u are carried across changes of the learning rate.
"""

from collections.abc import Callable, Iterator
from functools import singledispatch
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.parallel import map_slices
from noisysgd.theory.moments.least_squares import average_moments, second_moments
from noisysgd.theory.moments.segments import Pieces, Runs, cut, recorded_steps
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.schedules.schedule import Schedule


def covariance(
    problem: Quadratic,
    schedule: Schedule,
    *,
    learning_rate: ArrayLike,
    batch_size: ArrayLike,
    momentum: ArrayLike = 0.0,
    averaging: ArrayLike = 0.0,
    at: ArrayLike | None = None,
) -> FloatArray:
    r"""Cov θ = E (θ − E θ)(θ − E θ)ᵀ in the eigenbasis of the curvature, from diag(initial_variance) at step 0.

    If a step takes one mode z = (θ, u, θ̄) to A z + b ξ, a pair obeys S ← Aᵢ S Aⱼᵀ + γ F_ij b bᵀ with γ the problem's
    ``noise_factor(batch_size)``; for plain SGD that is Σ_ij ← (1−ελᵢ)(1−ελⱼ) Σ_ij + γε² F_ij. For
    :class:`~noisysgd.theory.LeastSquares` the noise between i ≠ j has covariance γ λᵢλⱼ E θᵢθⱼ whatever the kurtosis,
    since inputs are independent along the principal axes: only means correlate the modes.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
        D modes. Where a weight counts several modes of one kind, an entry refers to one mode of each kind.
    schedule : Schedule
        Multipliers of the learning rate; one schedule for all configurations.
    learning_rate, batch_size, momentum : array_like
        Configurations, broadcast against each other; ``batch_size=np.inf`` is noiseless.
    averaging : array_like
        Coefficient 0 ≤ β < 1 of the moving average θ̄, broadcast with the rest: the result is then Cov θ̄. 0 means θ
        itself.
    at : int or (R,) array of int, optional
        Steps in 0…schedule.steps, in any order; the default is the end of the schedule.

    Returns
    -------
    array of shape (broadcast shape..., D, D), or (broadcast shape..., R, D, D) for an array `at`
        Covariances; an entry that overflows is ``inf``, whatever its sign would be.

    Raises
    ------
    ValueError
        For impossible learning rates, batch sizes, momenta, averaging or steps, and shapes that do not broadcast.

    Notes
    -----
    For additive noise errors are below 1e-10 √(Σ_ii Σ_jj) up to 10⁷ steps at momenta up to 0.99, whatever the learning
    rate, except where a noiseless oscillation passes through zero. On LeastSquares variances are differences
    E θ² − (E θ)², with such an error relative to E θ², and moving averages are followed step by step, for every pair of
    modes that have a mean. With diagonal additive noise only the diagonal is computed, as the rest is 0.

    Examples
    --------
    One step from no variance: ε² F/B, correlations included.

    >>> from noisysgd import theory
    >>> problem = theory.NoisyQuadratic([1.0, 0.5], noise=[[1.0, 0.6], [0.6, 1.0]], initial_variance=0.0)
    >>> covariance(problem, theory.constant(1), learning_rate=0.5, batch_size=1)
    array([[0.25, 0.15],
           [0.15, 0.25]])

    A slow average forgets most of the noise:

    >>> settings = {"learning_rate": 0.5, "batch_size": 1, "averaging": [0.0, 0.99]}
    >>> covariance(problem, theory.constant(5000), **settings)[:, 0, 0].round(4)
    array([0.3333, 0.005 ])
    """
    rate, size, inertia, decay = _broadcast(
        problem, schedule, learning_rate=learning_rate, batch_size=batch_size, momentum=momentum, averaging=averaging
    )
    steps = recorded_steps(schedule.steps if at is None else at, schedule)
    unique, inverse = np.unique(steps.ravel(), return_inverse=True)
    runs = Runs(*(np.array(a).ravel() for a in (rate, problem.noise_factor(size), inertia, decay)))
    pieces = cut(schedule, unique)
    covariances = np.zeros((rate.size, unique.size, problem.dim, problem.dim))
    covariances[:, unique == 0] = np.diag(problem.initial_variance)
    if pieces.lengths.size:
        _fill(problem, runs, pieces, covariances)
    chosen = covariances if np.array_equal(inverse, np.arange(unique.size)) else covariances[:, inverse]
    return chosen.reshape(rate.shape + steps.shape + (problem.dim, problem.dim))


def expected_parameters(
    problem: Quadratic,
    schedule: Schedule,
    *,
    learning_rate: ArrayLike,
    momentum: ArrayLike = 0.0,
    averaging: ArrayLike = 0.0,
    at: ArrayLike | None = None,
) -> FloatArray:
    """E θ in the eigenbasis of the curvature, which is the path of gradient descent without noise from `initial_mean`.

    Gradient noise has mean zero on every problem, so that the batch size does not matter.

    Parameters
    ----------
    problem, schedule, learning_rate, momentum, at
        As in :func:`covariance`.
    averaging : array_like
        Coefficient 0 ≤ β < 1 of the moving average: the result is then E θ̄. 0 means θ itself.

    Returns
    -------
    array of shape (broadcast shape..., D), or (broadcast shape..., R, D) for an array `at`
        Means; one that overflows is ``inf``, whatever its sign would be.

    Raises
    ------
    ValueError
        For impossible learning rates, momenta, averaging or steps, and shapes that do not broadcast.

    Examples
    --------
    (1 − ελ)ⁿ:

    >>> from noisysgd import theory
    >>> problem = theory.NoisyQuadratic([1.0, 0.5], noise=1.0, initial_mean=1.0)
    >>> expected_parameters(problem, theory.constant(2), learning_rate=0.5)
    array([0.25  , 0.5625])
    """
    rate, inertia, decay = _broadcast(
        problem, schedule, learning_rate=learning_rate, momentum=momentum, averaging=averaging
    )
    steps = recorded_steps(schedule.steps if at is None else at, schedule)
    unique, inverse = np.unique(steps.ravel(), return_inverse=True)
    pieces = cut(schedule, unique)
    means = np.zeros((rate.size, unique.size, problem.dim))
    means[:, unique == 0] = problem.initial_mean
    if pieces.lengths.size:
        from noisysgd.theory.moments.pair_kernels import mean_table  # compiled code is loaded when it is first needed

        cut_up = (pieces.lengths, pieces.multipliers, pieces.recorded)
        for run, settings in enumerate(zip(rate.flat, inertia.flat, decay.flat, strict=True)):
            mean_table(problem.eigenvalues, problem.initial_mean, *settings, *cut_up, means[run])
    return means[:, inverse].reshape(rate.shape + steps.shape + (problem.dim,))


def _broadcast(problem: Quadratic, schedule: Schedule, **settings: Any) -> list[FloatArray]:
    """The settings, each checked by the function in ``checks`` of its name, as arrays of one shape."""
    checks.instance("problem", problem, Quadratic, remedy="Make one with theory.NoisyQuadratic or theory.LeastSquares.")
    checks.instance("schedule", schedule, Schedule, remedy="Make one with theory.constant(steps) or half_then_decay.")
    if "batch_size" in settings:
        settings["batch_size"] = checks.batch_size(settings["batch_size"], problem.dataset_size)
    for name in ("learning_rate", "momentum", "averaging"):
        settings[name] = getattr(checks, name)(settings[name])
    return checks.broadcast(**settings)


@singledispatch
def _fill(problem: Quadratic, runs: Runs, pieces: Pieces, covariances: FloatArray) -> None:
    """Write the covariances of C runs after each recorded piece into `covariances`, (C, R, D, D)."""
    raise NotImplementedError(f"no exact covariance for a {type(problem).__name__}")


@_fill.register
def _(problem: NoisyQuadratic, runs: Runs, pieces: Pieces, covariances: FloatArray) -> None:
    from noisysgd.theory.moments.pair_kernels import covariance_rows

    # Modes whose noise is not correlated stay independent, and D variances suffice.
    correlated = problem.noise.ndim == 2 and bool(np.any(problem.noise != np.diag(problem.noise_diagonal)))
    cut_up = (pieces.lengths, pieces.multipliers, pieces.recorded)
    for run, (rate, factor, *settings) in enumerate(_each(runs)):
        if not correlated:
            _fill_diagonal(problem, factor * problem.noise_diagonal, (rate, *settings), pieces, covariances[run])
            continue
        noise = np.ascontiguousarray(factor * problem.noise)
        shared = (problem.eigenvalues, noise, problem.initial_variance, rate, *settings, *cut_up)
        _over_rows(covariance_rows, shared, covariances[run], cost=100 * pieces.lengths.size)


@_fill.register
def _(problem: LeastSquares, runs: Runs, pieces: Pieces, covariances: FloatArray) -> None:
    from noisysgd.theory.moments.pair_kernels import least_squares_rows, mean_table

    cut_up = (pieces.lengths, pieces.multipliers, pieces.recorded)
    entries = np.arange(problem.dim)
    for run, (rate, factor, momentum, averaging) in enumerate(_each(runs)):
        if factor == 0.0:  # full batches: the start shrinks as under additive noise of variance 0
            _fill_diagonal(problem, np.zeros(problem.dim), (rate, momentum, averaging), pieces, covariances[run])
            continue
        means = np.zeros(covariances.shape[1:3])
        mean_table(problem.eigenvalues, problem.initial_mean, rate, momentum, averaging, *cut_up, means)
        if averaging > 0:
            _fill_averages(problem, (rate, factor, momentum, averaging), pieces, means, covariances[run])
            continue
        # The diagonal is coupled through the loss and computed from the start of the schedule for each record. Other
        # entries depend on one pair of modes each.
        for piece in np.flatnonzero(pieces.recorded >= 0):
            record = pieces.recorded[piece]
            past = (pieces.lengths[: piece + 1], pieces.multipliers[: piece + 1])
            moments = second_moments(problem, rate, factor, momentum, *past)
            square = np.where(moments < np.inf, means[record], 0.0) ** 2  # no inf − inf
            covariances[run, record, entries, entries] = moments - square
        shared = (problem.eigenvalues, problem.initial_mean, rate, factor, momentum, *cut_up)
        _over_rows(least_squares_rows, shared, covariances[run], cost=200 * pieces.lengths.size)


def _fill_averages(
    problem: LeastSquares, settings: tuple[float, ...], pieces: Pieces, means: FloatArray, covariances: FloatArray
) -> None:
    """Write covariances of moving averages on least squares, step by step, into `covariances`, (R, D, D)."""
    from noisysgd.theory.moments.averaging_kernels import average_rows

    rate, factor, momentum, averaging = settings
    kept, entries = pieces.recorded[pieces.recorded >= 0], np.arange(problem.dim)
    with np.errstate(all="ignore"):
        moments = average_moments(problem, rate, factor, momentum, averaging, pieces, len(means))[kept]
        square = np.where(moments < np.inf, means[kept], 0.0) ** 2
    covariances[kept[:, None], entries, entries] = moments - square
    shared = (problem.eigenvalues, problem.initial_mean, rate, factor, momentum, averaging)
    cut_up = (pieces.lengths, pieces.multipliers, pieces.recorded)
    _over_rows(average_rows, (*shared, *cut_up, means), covariances, cost=int(pieces.lengths.sum()) // 10)


def _each(runs: Runs) -> Iterator[tuple[float, ...]]:
    """Configurations one by one: learning rate, noise factor γ, momentum, averaging."""
    return zip(runs.learning_rate, runs.noise_factor, runs.momentum, runs.averaging, strict=True)


def _fill_diagonal(
    problem: Quadratic, noise: FloatArray, settings: tuple[float, ...], pieces: Pieces, covariances: FloatArray
) -> None:
    """Write variances under additive noise of variance `noise`, (D,), into the diagonals of `covariances`, (R, D, D).

    `settings` are learning rate, momentum and averaging.
    """
    from noisysgd.theory.moments.pair_kernels import variance_table

    shared = (*settings, pieces.lengths, pieces.multipliers, pieces.recorded)
    variances = np.zeros(covariances.shape[1::-1])  # (D, R): threads write whole rows

    def work(modes: slice) -> None:
        own = (problem.eigenvalues[modes], noise[modes], problem.initial_variance[modes])
        arguments: tuple[Any, ...] = (*own, *shared, variances[modes])
        variance_table(*arguments)

    map_slices(work, problem.dim, cost=100 * pieces.lengths.size)
    records, modes = pieces.recorded[pieces.recorded >= 0], np.arange(problem.dim)
    covariances[records[:, None], modes, modes] = variances[:, records].T


def _over_rows(table: Callable[..., None], shared: tuple[object, ...], covariances: FloatArray, *, cost: int) -> None:
    """Let `table` fill in rows of `covariances`, (R, D, D), in threads where that is worth it."""
    dim = covariances.shape[-1]
    map_slices(lambda rows: table(*shared, rows.start, rows.stop, covariances), dim, cost=cost * dim)
