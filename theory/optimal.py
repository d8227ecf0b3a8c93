"""The learning rate that minimises the expected final loss under a compute budget."""

from collections.abc import Callable
from typing import Any

import numpy as np

from noisysgd.theory import checks
from noisysgd.theory.budget import Budget
from noisysgd.theory.checks import FloatArray
from noisysgd.theory.moments import expected_loss
from noisysgd.theory.problem import NoisyQuadratic
from noisysgd.theory.schedule import ScheduleFamily, half_then_decay, of_length
from noisysgd.theory.stability import critical_learning_rate

POINTS_PER_DECADE = 16
POINTS_WHILE_OSCILLATING = 96
"""Of a few steps with momentum the loss is a wavy polynomial in the learning rate, of as many degrees as steps."""
DECADES_AT_MOST = 60
NEEDLE = np.log(1.01)
"""Half-width, as a logarithm, that a minimum must have on one side at least to count as one."""


def optimal_learning_rate(
    problem: NoisyQuadratic,
    budget: Budget,
    *,
    batch_size: Any,
    momentum: Any = 0.0,
    schedule: ScheduleFamily = half_then_decay,
) -> FloatArray:
    """Learning rate with the smallest expected loss at the end of the budget.

    A relative precision of 1e-3 is promised for the minimum found. That no lower one exists is certain only where the
    loss has a single minimum, as below the critical learning rate of plain SGD; beyond it, and with momentum over few
    steps, the scan of 16 to 96 points per decade can miss one.

    Found by a logarithmic scan that grows until the minimum lies inside it, then by narrowing in on the lowest local
    minima. Needles are passed over: minima that a change of 1 % loses on either side. Such are the resonances in which
    a drop of the schedule lands on ελ = 1 and wipes out a mode that had been growing, and, without noise, those in
    which oscillating modes happen to end at zero together. A problem that starts at its minimum is best left alone:
    the answer is 0.

    Parameters
    ----------
    problem : NoisyQuadratic
        If it knows no data-set size but the budget does, batches are drawn from the budget's data set.
    budget : EpochBudget or StepBudget
        Fixes the number of steps at each batch size.
    batch_size, momentum : array_like
        Broadcast against each other.
    schedule : callable
        Schedule for a given number of steps; the paper's by default.

    Returns
    -------
    array of the broadcast shape
        Learning rates ε; divide by 1−m for effective ones.

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
    problem = sampled_from(problem, budget)
    sizes, inertia = checks.broadcast(
        batch_size=checks.batch_size(batch_size, problem.dataset_size), momentum=checks.momentum(momentum)
    )
    steps = budget.steps(sizes)
    points = zip(sizes.ravel(), inertia.ravel(), steps.ravel(), strict=True)
    best = [_best_rate(problem, schedule, float(b), float(m), int(n)) for b, m, n in points]
    return np.array(best, dtype=np.float64).reshape(sizes.shape)


def sampled_from(problem: NoisyQuadratic, budget: Budget) -> NoisyQuadratic:
    """`problem` with its batches drawn from the budget's data set, where the budget knows one."""
    checks.instance("problem", problem, NoisyQuadratic, remedy="Make one with theory.NoisyQuadratic or power_law.")
    known = hasattr(budget, "steps") and hasattr(budget, "dataset_size")
    checks.require(known, "budget", "an EpochBudget or StepBudget", budget, "For n steps pass theory.StepBudget(n).")
    if budget.dataset_size is None or problem.dataset_size == budget.dataset_size:
        return problem
    agree = problem.dataset_size is None
    expected = f"the problem's data set of {problem.dataset_size} examples"
    checks.require(agree, "budget", expected, budget, "Use problem.with_dataset_size to change it.")
    return problem.with_dataset_size(budget.dataset_size)


def _best_rate(
    problem: NoisyQuadratic, family: ScheduleFamily, batch_size: float, momentum: float, steps: int
) -> float:
    if not np.any(problem.eigenvalues * problem.initial_second_moment > 0):
        return 0.0
    schedule = of_length(family, steps)

    def loss(log_rates: FloatArray) -> FloatArray:
        return expected_loss(
            problem, schedule, learning_rate=np.exp(log_rates), batch_size=batch_size, momentum=momentum
        )

    edge = float(np.log(critical_learning_rate(problem, momentum=momentum)))
    wavy = momentum > 0 and steps * (1.0 - momentum) < 20
    points = POINTS_WHILE_OSCILLATING if wavy else POINTS_PER_DECADE
    best = minimise_on_log_scale(loss, start=edge, points_per_decade=points)
    gain = 1.0 - float(loss(np.array([best]))[0]) / float(problem.initial_loss)
    remedy = "Give larger batches or more steps, or a smaller covariance."
    checks.require(gain > 1e-9, "noise", "a problem that some learning rate improves", f"a gain of {gain:.1g}", remedy)
    return float(np.exp(best))


def minimise_on_log_scale(
    function: Callable[[FloatArray], FloatArray], *, start: float, points_per_decade: int = POINTS_PER_DECADE
) -> float:
    """Minimiser of a function that falls at first and rises without bound in the end; arguments are logarithms.

    The scan begins with two decades below `start` and one above, and grows by decades until the function falls
    throughout its lowest decade and rises throughout its highest. The lowest dozen local minima are then narrowed down:
    the lowest on the grid need not be the lowest of all.
    """
    decade = np.log(10.0)
    n = points_per_decade
    block = np.arange(n) * decade / n
    grid = np.concatenate([start + (k * decade) + block for k in (-2, -1, 0)])
    values = function(grid)
    for _ in range(DECADES_AT_MOST):
        fall = np.diff(values[: n + 1])
        if np.all(fall < 0) or np.all(np.abs(fall) < 1e-13 * values[0]):
            break
        lower = grid[0] - decade + block
        grid, values = np.concatenate([lower, grid]), np.concatenate([function(lower), values])
    for _ in range(DECADES_AT_MOST):
        with np.errstate(invalid="ignore"):  # inf − inf
            rises = (np.diff(values[-n - 1 :]) > 0) | np.isinf(values[-n:])
        if rises.all():
            break
        upper = grid[-1] + block + decade / n
        grid, values = np.concatenate([grid, upper]), np.concatenate([values, function(upper)])
    inner = np.arange(1, grid.size - 1)
    minima = inner[(values[inner] <= values[inner - 1]) & (values[inner] <= values[inner + 1])]
    minima = minima[np.argsort(values[minima], kind="stable")][:12]
    found = np.array([_narrow(function, grid[k - 1], grid[k + 1]) for k in minima])
    beside = np.minimum(function(found - NEEDLE), function(found + NEEDLE))
    return float(found[np.argmin(np.maximum(function(found), beside))])


def _narrow(function: Callable[[FloatArray], FloatArray], low: float, high: float) -> float:
    """Minimiser between `low` and `high`, to 5e-4, by nested grids."""
    while True:
        grid = np.linspace(low, high, 10)
        values = function(grid)
        best = int(np.argmin(values))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, 9)]
        if high - low < 1e-3:
            return float(grid[best])
