"""The learning rate that is best under a compute budget: lowest final loss, or fewest steps to a target."""

from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.limits.stability import critical_learning_rate
from noisysgd.theory.moments.losses import expected_loss, loss_curve
from noisysgd.theory.optima.fewer_modes import best_on_fewer_modes
from noisysgd.theory.optima.fewest_steps import minimum_steps
from noisysgd.theory.optima.minimise import minimise_on_log_scale, waves
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.schedules.budget import Budget, UnlimitedBudget
from noisysgd.theory.schedules.schedule import ScheduleFamily, constant, half_then_decay, of_length

AnyQuadratic = TypeVar("AnyQuadratic", bound=Quadratic)


@ignoring_underflow
def optimal_learning_rate(
    problem: Quadratic,
    budget: Budget,
    *,
    batch_size: ArrayLike,
    momentum: ArrayLike = 0.0,
    schedule: ScheduleFamily | None = None,
    nesterov: bool = False,
) -> FloatArray:
    """Learning rate with the smallest expected loss at the end of the budget, or with the fewest steps to its target.

    An optimum is judged by the largest loss when the learning rate changes by up to ±0.5 %, as by all optimisers here.
    So needles are passed over: resonances in which a drop of the schedule lands on ελ = 1 and wipes out a mode that had
    been growing, or, without noise, in which oscillating modes happen to end at zero together. Where the loss is
    smooth, the optimum is that of the loss itself.

    The search scans a logarithmic grid that grows until the minimum lies inside it, is split wherever the loss could be
    lower, and resolves the oscillations of heavy ball where they have not died out; then it narrows in on the lowest
    local minima, to a relative precision of 1e-3. A learning rate of a still finer grid was better by more than 1 % in
    fewer than 1 of 100 random problems of up to six modes and 400 steps (but for losses of a millionth of the first).
    For a problem that starts at its minimum the answer is 0.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
        If it knows no data-set size but the budget does, batches are drawn from the budget's data set.
    budget : EpochBudget, StepBudget or UnlimitedBudget
        Fixes the number of steps at each batch size, or the loss to reach.
    batch_size, momentum : array_like
        Broadcast against each other.
    schedule : callable, optional
        Schedule for a given number of steps; the paper's :func:`~noisysgd.theory.half_then_decay` by default. With an
        unlimited budget the learning rate is constant, and no schedule may be given.
    nesterov : bool
        Whether θ takes Nesterov's step (:func:`~noisysgd.theory.expected_loss`); not with an unlimited budget.

    Returns
    -------
    array of the broadcast shape
        Learning rates ε; divide by 1−m for effective ones. NaN where none reaches the target of an unlimited budget.

    Raises
    ------
    ValueError
        For impossible batch sizes or momenta, if problem and budget disagree about the size of the data set, or if
        noise is so strong that no learning rate lowers the loss by more than rounding.

    Examples
    --------
    In the noise-dominated regime the optimum is nearly proportional to the batch size.

    >>> from noisysgd import theory
    >>> budget = theory.EpochBudget(epochs=10, dataset_size=10_000)
    >>> rates = theory.optimal_learning_rate(theory.power_law(20), budget, batch_size=[1, 2])
    >>> bool(1.9 < rates[1] / rates[0] < 2.1)
    True
    """
    found = optimal_runs(
        problem, budget, batch_size=batch_size, momentum=momentum, schedule=schedule, nesterov=nesterov
    )
    return found.learning_rate


class OptimalRuns(NamedTuple):
    """Optimal learning rates, the steps they run for and the expected losses they end at; arrays of one shape."""

    learning_rate: FloatArray
    steps: FloatArray | IntArray
    loss: FloatArray


def optimal_runs(
    problem: Quadratic,
    budget: Budget,
    *,
    batch_size: ArrayLike,
    momentum: ArrayLike,
    schedule: ScheduleFamily | None,
    nesterov: bool,
) -> OptimalRuns:
    """The learning rates that :func:`optimal_learning_rate` finds, with the steps and the losses of their runs."""
    problem = sampled_from(problem, budget).merged()
    sizes, inertia = checks.broadcast(
        batch_size=checks.batch_size(batch_size, problem.dataset_size), momentum=checks.momentum(momentum)
    )
    checks.boolean("nesterov", nesterov)
    if isinstance(budget, UnlimitedBudget):
        remedy = "First passages are known for SGD and heavy ball."
        checks.require(not nesterov, "nesterov", "False with an UnlimitedBudget", nesterov, remedy)
        remedy = "Steps are counted at a constant learning rate; for a schedule fix the number of steps."
        checks.require(schedule is None, "schedule", "none with an UnlimitedBudget", schedule, remedy)
        return _fastest(problem, budget, sizes, inertia)
    family = half_then_decay if schedule is None else schedule
    steps = budget.steps(sizes)
    points = zip(sizes.ravel(), inertia.ravel(), steps.ravel(), strict=True)
    best = [_best_rate(problem, family, float(b), float(m), int(n), nesterov) for b, m, n in points]
    rates, losses = np.array(best, dtype=np.float64).reshape(-1, 2).T
    return OptimalRuns(rates.reshape(sizes.shape), steps, losses.reshape(sizes.shape))


def _fastest(problem: Quadratic, budget: UnlimitedBudget, sizes: FloatArray, inertia: FloatArray) -> OptimalRuns:
    """The runs with the fewest steps to the budget's target; NaN losses where none reaches it."""
    best = minimum_steps(problem, budget.target, batch_size=sizes, momentum=inertia)
    losses = np.full(sizes.shape, np.nan)
    for at in np.ndindex(sizes.shape):
        if np.isfinite(best.steps[at]):
            schedule = constant(max(int(best.steps[at]), 1))
            rate, steps = best.learning_rate[at], int(best.steps[at])
            losses[at] = loss_curve(
                problem, schedule, learning_rate=rate, batch_size=sizes[at], momentum=inertia[at], at=steps
            )
    return OptimalRuns(best.learning_rate, best.steps, losses)


def sampled_from(problem: AnyQuadratic, budget: Budget) -> AnyQuadratic:
    """`problem` with its batches drawn from the budget's data set, where the budget has one; checks that they agree."""
    checks.instance("problem", problem, Quadratic, remedy="Make one with theory.NoisyQuadratic or theory.LeastSquares.")
    known = hasattr(budget, "steps") and hasattr(budget, "dataset_size")
    checks.require(known, "budget", "an EpochBudget or StepBudget", budget, "For n steps pass theory.StepBudget(n).")
    if budget.dataset_size is None or problem.dataset_size == budget.dataset_size:
        return problem
    agree = problem.dataset_size is None
    expected = f"the problem's data set of {problem.dataset_size} examples"
    checks.require(agree, "budget", expected, budget, "Use problem.with_dataset_size to change it.")
    return problem.with_dataset_size(budget.dataset_size)


def _best_rate(
    problem: Quadratic, family: ScheduleFamily, batch_size: float, momentum: float, steps: int, nesterov: bool
) -> tuple[float, float]:
    """Best learning rate of one configuration, and its loss."""
    if starts_at_minimum(problem):
        return 0.0, 0.0
    schedule = of_length(family, steps)

    def losses(modes: Quadratic, log_rates: FloatArray) -> FloatArray:
        rates = np.exp(log_rates)
        settings = {"learning_rate": rates, "batch_size": batch_size, "momentum": momentum}
        return expected_loss(modes, schedule, **settings, nesterov=nesterov)  # type: ignore[arg-type]

    # The best rate is rarely above the critical one but may be decades below it: the scan grows downwards from there.
    edge = float(np.log(critical_learning_rate(problem, batch_size, momentum, nesterov=nesterov)))
    also = waves(edge, momentum, steps)
    search = partial(minimise_on_log_scale, start=edge, also=also)
    best, lowest = best_on_fewer_modes(problem, losses, search, start=edge)
    require_gain(problem, lowest)
    return float(np.exp(best)), lowest


def starts_at_minimum(problem: Quadratic) -> bool:
    """Whether there is no loss that a learning rate could lower: E θ² is zero in every curved direction."""
    return not np.any(problem.eigenvalues * problem.initial_second_moment > 0)


def require_gain(problem: Quadratic, lowest: float) -> None:
    """Raise if the lowest loss found is not below the initial one by more than rounding."""
    gain = 1.0 - lowest / float(problem.initial_loss)
    remedy = "Give larger batches or more steps, or a smaller covariance."
    checks.require(gain > 1e-9, "noise", "a problem that some learning rate improves", f"a gain of {gain:.1g}", remedy)
