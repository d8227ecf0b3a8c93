"""Exact mean and covariance of the parameters, or of their moving average, after any number of steps.

On a quadratic the modes of the mean do not mix, and each pair of modes has second moments of its own, whose map is
constant within a segment of the schedule, so that a segment costs one power of it (``pair_kernels``). Gradient noise
that does not commute with the curvature correlates modes, which the loss does not notice: it needs the diagonal only.

The moving average of iterates is θ̄ ← β θ̄ + (1−β) θ after each step, from θ̄₀ = θ₀ (Polyak averaging with exponential
weights). It and the velocity u are carried across changes of the learning rate. The mean of the last iterates is a sum
that begins at a later step.
"""

from collections.abc import Callable, Iterator
from functools import singledispatch
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.parallel import map_slices
from noisysgd.theory.moments.least_squares import second_moments
from noisysgd.theory.moments.segments import cut, noise_schedule, recorded_steps
from noisysgd.theory.moments.update_rule import (
    AveragePieces,
    OneRun,
    UpdateRule,
    exponential,
    last_iterates,
    mode_moments,
    update_rule,
)
from noisysgd.theory.problems.l2 import L2
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.problems.quadratic import Quadratic, natural_units
from noisysgd.theory.schedules.schedule import Schedule


@ignoring_underflow
def covariance(
    problem: Quadratic,
    schedule: Schedule,
    *,
    learning_rate: ArrayLike,
    batch_size: ArrayLike | Schedule,
    momentum: ArrayLike = 0.0,
    averaging: ArrayLike = 0.0,
    tail: float = 0.0,
    nesterov: bool = False,
    l2: L2 | None = None,
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
        Configurations, broadcast against each other; ``batch_size=np.inf`` is noiseless. The batch size may also be a
        Schedule of as many steps, one for all configurations, whose multipliers are the batch sizes.
    averaging : array_like
        Coefficient 0 ≤ β < 1 of the moving average θ̄, broadcast with the rest: the result is then Cov θ̄. 0 means θ
        itself.
    tail : float
        Share 0…1 of the steps whose last iterates are averaged with equal weights, instead of `averaging`: the result
        is the covariance of the mean of the last ⌈tail · n⌉ iterates.
    nesterov : bool
        Whether θ takes Nesterov's step instead of the heavy ball's: see :func:`~noisysgd.theory.expected_loss`.
    l2 : L2, optional
        A penalty that is trained on beside the loss; for additive noise only.
    at : int or (R,) array of int, optional
        Steps in 0…schedule.steps, in any order; the default is the end of the schedule.

    Returns
    -------
    array of shape (broadcast shape..., D, D), or (broadcast shape..., R, D, D) for an array `at`
        Covariances; an entry that overflows is ``inf``, whatever its sign would be.

    Raises
    ------
    ValueError
        For impossible learning rates, batch sizes, momenta, averages or steps, and shapes that do not broadcast.

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
    checks.instance("problem", problem, Quadratic, remedy="Make one with theory.NoisyQuadratic or theory.LeastSquares.")
    noise = noise_schedule(problem, schedule, batch_size) if isinstance(schedule, Schedule) else None
    sizes: Any = batch_size if noise is None else 1.0
    rate, size, inertia, decay = _broadcast(
        problem, schedule, learning_rate=learning_rate, batch_size=sizes, momentum=momentum, averaging=averaging
    )
    rule = update_rule(nesterov, l2, tail, averaging=decay)
    free = rule.l2 is None or isinstance(problem, NoisyQuadratic)
    remedy = "With a penalty, least squares has exact losses and means only."
    checks.require(free, "l2", "none for the covariance on least squares", l2, remedy)
    steps = recorded_steps(schedule.steps if at is None else at, schedule)
    unique, inverse = np.unique(steps.ravel(), return_inverse=True)
    problem, unit = natural_units(problem)
    rule, rate = rule.in_units(unit), rate * unit
    factor = problem.noise_factor(size) if noise is None else np.ones(rate.shape)
    runs = zip(*(np.ravel(a).tolist() for a in (rate, factor, inertia, decay)), strict=True)
    covariances = np.zeros((rate.size, unique.size, problem.dim, problem.dim))
    covariances[:, unique == 0] = np.diag(problem.initial_variance)
    for settings, own in zip(runs, covariances, strict=True):
        run = OneRun(*settings)
        for average, count, records in _averages(schedule, unique, rule, run.averaging, noise):
            part = own[records]
            _fill(problem, rule, run, average, part)
            own[records] = part / count**2
    covariances /= unit
    chosen = covariances if np.array_equal(inverse, np.arange(unique.size)) else covariances[:, inverse]
    return chosen.reshape(rate.shape + steps.shape + (problem.dim, problem.dim))


def _averages(
    schedule: Schedule, at: FloatArray, rule: UpdateRule, averaging: float, noise: Schedule | None = None
) -> Iterator[tuple[AveragePieces, int, slice]]:
    """What to follow for the records `at` (increasing): pieces, the number of iterates in a sum, and which records."""
    if rule.tail == 0.0:
        if at[-1] > 0:
            yield exponential(cut(schedule, at, noise), averaging), 1, slice(None)
        return
    for record in np.flatnonzero(at > 0).tolist():
        yield *last_iterates(schedule, int(at[record]), rule.tail, noise), slice(record, record + 1)


@ignoring_underflow
def expected_parameters(
    problem: Quadratic,
    schedule: Schedule,
    *,
    learning_rate: ArrayLike,
    momentum: ArrayLike = 0.0,
    averaging: ArrayLike = 0.0,
    tail: float = 0.0,
    nesterov: bool = False,
    l2: L2 | None = None,
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
    tail, nesterov, l2
        As in :func:`covariance`; here any problem may have a penalty.

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
    rule = update_rule(nesterov, l2, tail, averaging=decay)
    steps = recorded_steps(schedule.steps if at is None else at, schedule)
    unique, inverse = np.unique(steps.ravel(), return_inverse=True)
    means = np.zeros((rate.size, unique.size, problem.dim))
    means[:, unique == 0] = problem.initial_mean
    fixed = rule.fixed_point(problem)
    for settings, own in zip(zip(rate.flat, inertia.flat, decay.flat, strict=True), means, strict=True):
        run = OneRun(float(settings[0]), 0.0, float(settings[1]), float(settings[2]))
        for average, count, records in _averages(schedule, unique, rule, run.averaging):
            recorded = average.pieces.recorded[average.pieces.recorded >= 0]
            own[records][recorded] = fixed + _means(problem, rule, run, average, len(own[records]))[recorded] / count
    return means[:, inverse].reshape(rate.shape + steps.shape + (problem.dim,))


def _means(problem: Quadratic, rule: UpdateRule, run: OneRun, average: AveragePieces, records: int) -> FloatArray:
    """E (θ̄−θ̂) after each recorded piece, (records, D), whatever the noise."""
    from noisysgd.theory.moments.pair_kernels import mean_table  # compiled code is loaded when it is first needed

    means = np.zeros((records, problem.dim))
    start = problem.initial_mean - rule.fixed_point(problem)
    look = rule.look(run.momentum)
    settings = (run.learning_rate, run.momentum, look, *average.arrays)
    arguments: tuple[Any, ...] = (problem.eigenvalues + rule.pull(), start, *settings, means)
    mean_table(*arguments)
    return means


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
def _fill(problem: Quadratic, rule: UpdateRule, run: OneRun, average: AveragePieces, covariances: FloatArray) -> None:
    """Write the covariances of one run after each recorded piece into `covariances`, (R, D, D)."""
    raise NotImplementedError(f"no exact covariance for a {type(problem).__name__}")


@_fill.register
def _(problem: NoisyQuadratic, rule: UpdateRule, run: OneRun, average: AveragePieces, covariances: FloatArray) -> None:
    from noisysgd.theory.moments.pair_kernels import NO_MOMENTUM, covariance_rows
    from noisysgd.theory.moments.sgd_pair_kernels import sgd_covariance_rows

    # Modes whose noise is not correlated stay independent, and D variances suffice.
    correlated = problem.noise.ndim == 2 and bool(np.any(problem.noise != np.diag(problem.noise_diagonal)))
    if not correlated:
        _fill_diagonal(problem, rule, run, run.noise_factor * problem.noise_diagonal, average, covariances)
        return
    noise = np.ascontiguousarray(run.noise_factor * problem.noise)
    modes, pieces = (problem.eigenvalues + rule.pull(), noise, problem.initial_variance), average.pieces
    if run.momentum < NO_MOMENTUM and run.averaging == 0.0 and rule.tail == 0.0:
        steps = (run.learning_rate, *pieces.arrays)
        _over_rows(sgd_covariance_rows, (*modes, *steps), covariances, cost=5 * pieces.lengths.size)
        return
    settings = (run.learning_rate, run.momentum, rule.look(run.momentum), *average.arrays)
    _over_rows(covariance_rows, (*modes, *settings), covariances, cost=100 * pieces.lengths.size)


@_fill.register
def _(problem: LeastSquares, rule: UpdateRule, run: OneRun, average: AveragePieces, covariances: FloatArray) -> None:
    from noisysgd.theory.moments.pair_kernels import least_squares_rows

    if run.noise_factor == 0.0:  # full batches: the start shrinks as under additive noise of variance 0
        _fill_diagonal(problem, rule, run, np.zeros(problem.dim), average, covariances)
        return
    means = _means(problem, rule, run, average, len(covariances))
    pieces, entries = average.pieces, np.arange(problem.dim)
    if not rule.plain or run.averaging > 0:
        _fill_step_by_step(problem, rule, run, average, means, covariances)
        return
    # The diagonal is coupled through the loss and computed from the start of the schedule for each record. Other
    # entries depend on one pair of modes each.
    for piece in np.flatnonzero(pieces.recorded >= 0):
        record = pieces.recorded[piece]
        past = (pieces.lengths[: piece + 1], pieces.multipliers[: piece + 1])
        factors = run.noise_factor * pieces.noise[: piece + 1]
        moments = second_moments(problem, run.learning_rate, factors, run.momentum, *past)
        square = np.where(moments < np.inf, means[record], 0.0) ** 2  # no inf − inf
        covariances[record, entries, entries] = moments - square
    settings = (run.learning_rate, run.noise_factor, run.momentum, *pieces.arrays)
    shared = (problem.eigenvalues, problem.initial_mean, *settings)
    _over_rows(least_squares_rows, shared, covariances, cost=200 * pieces.lengths.size)


def _fill_step_by_step(
    problem: LeastSquares,
    rule: UpdateRule,
    run: OneRun,
    average: AveragePieces,
    means: FloatArray,
    covariances: FloatArray,
) -> None:
    """Write covariances on least squares into `covariances`, (R, D, D), from E θ̄, (R, D), by following every step."""
    from noisysgd.theory.moments.averaging_kernels import average_rows

    recorded = average.pieces.recorded
    kept, entries = recorded[recorded >= 0], np.arange(problem.dim)
    with np.errstate(all="ignore"):
        moments = mode_moments(problem, rule, run, average, len(means))[0][kept]
        square = np.where(moments < np.inf, means[kept], 0.0) ** 2
    covariances[kept[:, None], entries, entries] = moments - square
    look = rule.look(run.momentum)
    settings = (run.learning_rate, run.noise_factor, run.momentum, look, *average.arrays, means)
    shared = (problem.eigenvalues, problem.initial_mean, *settings)
    _over_rows(average_rows, shared, covariances, cost=int(average.pieces.lengths.sum()) // 10)


def _fill_diagonal(
    problem: Quadratic,
    rule: UpdateRule,
    run: OneRun,
    noise: FloatArray,
    average: AveragePieces,
    covariances: FloatArray,
) -> None:
    """Write variances under noise of variance `noise`, (D,), into the diagonals of `covariances`, (R, D, D)."""
    from noisysgd.theory.moments.pair_kernels import variance_table

    look = rule.look(run.momentum)
    shared = (run.learning_rate, run.momentum, look, *average.arrays)
    variances = np.zeros(covariances.shape[1::-1])  # (D, R): threads write whole rows
    pull = problem.eigenvalues + rule.pull()

    def work(modes: slice) -> None:
        own = (pull[modes], noise[modes], problem.initial_variance[modes])
        arguments: tuple[Any, ...] = (*own, *shared, variances[modes])
        variance_table(*arguments)

    map_slices(work, problem.dim, cost=100 * average.pieces.lengths.size)
    recorded = average.pieces.recorded
    records, modes = recorded[recorded >= 0], np.arange(problem.dim)
    covariances[records[:, None], modes, modes] = variances[:, records].T


def _over_rows(table: Callable[..., None], shared: tuple[object, ...], covariances: FloatArray, *, cost: int) -> None:
    """Let `table` fill in rows of `covariances`, (R, D, D), in threads where that is worth it."""
    dim = covariances.shape[-1]
    map_slices(lambda rows: table(*shared, rows.start, rows.stop, covariances), dim, cost=cost * dim)
