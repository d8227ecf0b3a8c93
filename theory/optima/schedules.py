"""Schedules with the lowest expected final loss: the best initial and final learning rate, and the best staircase."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.limits.stability import critical_learning_rate
from noisysgd.theory.moments.losses import expected_loss
from noisysgd.theory.moments.segments import Pieces, Runs, add_losses
from noisysgd.theory.optima.learning_rates import optimal_learning_rate, require_gain, sampled_from, starts_at_minimum
from noisysgd.theory.optima.robustness import descend_robustly, robust_minimum
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.schedules.budget import Budget
from noisysgd.theory.schedules.schedule import Schedule, constant, initial_to_final, piecewise

RATIOS = 2.0 ** np.arange(-4, 25, 2)
"""Ratios of initial to final learning rate that the search begins with."""
BEYOND = np.log(1e4)
"""How far above the critical learning rate, as a logarithm, a learning rate of the best staircase may lie."""

STARTS = 8
"""How many pairs of that grid are refined at most; at least half as many, the lowest ones, always are."""


class InitialFinal(NamedTuple):
    """Initial and final learning rates, and the expected loss they end at; arrays of one shape."""

    initial: FloatArray
    final: FloatArray
    loss: FloatArray


@ignoring_underflow
def optimal_initial_final(
    problem: Quadratic, budget: Budget, *, batch_size: ArrayLike, momentum: ArrayLike = 0.0
) -> InitialFinal:
    """Initial and final learning rates, tuned separately, with the smallest expected loss at the end of the budget.

    The schedule is the paper's shape between the two, :func:`~noisysgd.theory.initial_to_final`: constant for half of
    the steps, then ten drops by equal factors (section 7.1, Figure 3). Both rates are scanned on a grid of initial
    rates and of ratios initial/final from 2⁻⁴ to 2²⁴; the method of Nelder and Mead then refines the lowest points, to
    a relative precision of 1e-3. A narrow valley between the points of the grid can be missed: in 2 of 36 random
    problems, with two steps or without noise, a finer table had a pair whose loss was 28 and 39 % lower.

    A pair is judged by the largest loss when both rates change, each by itself, by up to ±0.5 %, as by all optimisers
    here: a lower loss that such a change would destroy does not count. ``loss`` is the one at the pair itself. Where
    the ratio makes no difference, as without noise, the one returned means nothing; where no decay helps, it stays the
    lowest of the grid. For a problem that starts at its minimum both rates are 0.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
    budget : EpochBudget or StepBudget
    batch_size, momentum : array_like
        Broadcast against each other.

    Returns
    -------
    InitialFinal
        Named tuple (initial, final, loss) of arrays of the broadcast shape.

    Raises
    ------
    ValueError
        For impossible batch sizes or momenta, if problem and budget disagree about the size of the data set, or if
        noise is so strong that no learning rate lowers the loss by more than rounding.

    Examples
    --------
    With a long budget the last learning rate should be far below the first.

    >>> from noisysgd import theory
    >>> best = theory.optimal_initial_final(theory.power_law(20), theory.StepBudget(2000), batch_size=8)
    >>> bool(best.initial > 10 * best.final)
    True
    """
    problem = sampled_from(problem, budget)
    sizes, inertia = checks.broadcast(
        batch_size=checks.batch_size(batch_size, problem.dataset_size), momentum=checks.momentum(momentum)
    )
    points = zip(sizes.ravel(), inertia.ravel(), budget.steps(sizes).ravel(), strict=True)
    best = np.array([_best_pair(problem, float(b), float(m), int(n)) for b, m, n in points]).reshape(*sizes.shape, 3)
    return InitialFinal(best[..., 0], best[..., 1], best[..., 2])


@ignoring_underflow
def optimal_schedule(
    problem: Quadratic, budget: Budget, *, batch_size: float, momentum: float = 0.0, segments: int = 10
) -> Schedule:
    """The staircase of `segments` learning rates with the smallest expected loss at the end of the budget.

    Segments are equally long, up to rounding. The multipliers are learning rates: use the schedule with
    ``learning_rate=1``. Their logarithms are optimised by L-BFGS from four starts: the best constant learning rate, the
    best initial and final pair, and two staircases that descend from the critical learning rate. Staircases are judged
    by the largest loss found when every learning rate changes by itself by up to ±0.5 %, as by all optimisers here. So
    the result is a local optimum, by this measure at least as good as each of the starts. A segment that hardly affects
    the final loss, because of noise or because too few steps follow, keeps the learning rate of the start.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
    budget : EpochBudget or StepBudget
    batch_size, momentum : float
    segments : int
        Number of learning rates, at most one per step.

    Returns
    -------
    Schedule
        Of zeros if the problem starts at its minimum.

    Raises
    ------
    ValueError
        For impossible batch sizes or momenta, more segments than steps, if problem and budget disagree about the size
        of the data set, or if noise is so strong that no learning rate lowers the loss by more than rounding.

    Examples
    --------
    For a single mode with a segment for every step the best learning rate is ε = λv/(λ²v + F/B), with v the E θ²
    before the step. Here that is 1/2, 1/3, ….

    >>> import numpy as np
    >>> from noisysgd import theory
    >>> problem = theory.NoisyQuadratic([1.0], noise=1.0)
    >>> best = theory.optimal_schedule(problem, theory.StepBudget(4), batch_size=1, segments=4)
    >>> np.round(1 / best.multipliers, 2)
    array([2., 3., 4., 5.])
    """
    problem = sampled_from(problem, budget)
    size = checks.scalar("batch_size", checks.batch_size(batch_size, problem.dataset_size))
    inertia = checks.scalar("momentum", checks.momentum(momentum))
    steps = int(budget.steps(size))
    segments = checks.integer("segments", segments, 1, remedy="One segment is a constant learning rate.")
    checks.require(segments <= steps, "segments", f"at most one per step ({steps})", segments, "Ask for fewer.")
    lengths = np.diff(steps * np.arange(segments + 1) // segments)
    if starts_at_minimum(problem):
        return piecewise(lengths, np.zeros(segments))
    edge = float(np.log(critical_learning_rate(problem, size, inertia)))

    log_loss = of_staircases(problem, size, inertia, lengths)

    bounds = [(edge - BEYOND - 20.0, edge + BEYOND)] * segments
    best, lowest = np.full(segments, edge), np.inf
    for start in _staircases(problem, budget, size, inertia, lengths, edge):
        logs, height = descend_robustly(log_loss, start, bounds, lowest)
        if height < lowest:
            best, lowest = logs, height
    return piecewise(lengths, np.exp(best))


def of_staircases(problem: Quadratic, size: float, inertia: float, lengths: IntArray) -> Callable[[FloatArray], float]:
    """The logarithm of the final loss as a function of the logarithms of the learning rates of all segments."""
    # Only the loss after the last segment is recorded.
    recorded = np.where(np.arange(lengths.size) == lengths.size - 1, 0, -1)
    run = Runs(*(np.array([value]) for value in (1.0, float(problem.noise_factor(size)), inertia, 0.0)))

    def log_loss(logs: FloatArray) -> float:
        loss = np.zeros((1, 1))
        add_losses(problem, run, Pieces.of_one_batch_size(lengths, np.exp(logs), recorded), loss)
        return float(np.log(np.clip(loss[0, 0], 1e-300, 1e300)))

    return log_loss


def _staircases(
    problem: Quadratic, budget: Budget, size: float, inertia: float, lengths: IntArray, edge: float
) -> list[FloatArray]:
    """Logarithms of the learning rates of four staircases to start from."""
    middle = np.cumsum(lengths) - (lengths + 1) // 2
    flat = optimal_learning_rate(problem, budget, batch_size=size, momentum=inertia, schedule=constant)
    pair = optimal_initial_final(problem, budget, batch_size=size, momentum=inertia)
    decay = initial_to_final(int(lengths.sum()), float(pair.initial), float(pair.final))
    level = np.log(float(flat)) if flat > 0 else edge - 10.0
    fall = np.linspace(0.0, 1.0, lengths.size)
    return [
        np.full(lengths.size, level),
        np.log(decay.at(middle)),
        edge - 0.1 - 4.0 * fall,
        edge - 0.7 - np.log1p(np.arange(lengths.size)),
    ]


def _best_pair(problem: Quadratic, size: float, inertia: float, steps: int) -> tuple[float, float, float]:
    """Best initial and final learning rate of one configuration, and its loss."""
    if starts_at_minimum(problem):
        return 0.0, 0.0, 0.0
    edge = float(critical_learning_rate(problem, size, inertia))

    def losses(initial: FloatArray, ratio: float) -> FloatArray:
        schedule = initial_to_final(steps, 1.0, 1.0 / ratio)
        return expected_loss(problem, schedule, learning_rate=initial, batch_size=size, momentum=inertia)

    # The loss of every pair on a grid; one call for each ratio has all initial rates.
    initial = edge * np.geomspace(1e-6, 30.0, 90)
    table = np.array([losses(initial, ratio) for ratio in RATIOS])
    while table[:, 0].min() <= table.min() and initial[0] > 1e-30 * edge:  # even smaller ones may be better
        # The same grid, moved down so far that it ends where the other begins.
        lower = initial * (initial[0] / initial[-1])
        table = np.concatenate([[losses(lower, ratio) for ratio in RATIOS], table], axis=1)
        initial = np.concatenate([lower, initial])

    shape = initial_to_final(steps, 1.0, 0.5)
    drops = -np.log2(shape.multipliers)  # 0 for the initial learning rate, 1 for the final one
    log_loss = of_staircases(problem, size, inertia, shape.lengths)

    def log_loss_of_pair(logs: FloatArray) -> float:
        return log_loss(logs[0] + drops * (logs[1] - logs[0]))

    # Local minima among the four neighbours of each point. Each of the lowest is a start of its own, since the loss may
    # have several valleys and the deepest need not be lowest on the grid.
    around = np.pad(table, 1, constant_values=np.inf)
    neighbours = np.minimum.reduce([around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]])
    rows, columns = np.nonzero(table <= neighbours)
    best, lowest = np.zeros(2), np.inf
    for count, k in enumerate(np.argsort(table[rows, columns], kind="stable")[:STARTS]):
        if count >= STARTS // 2 and np.log(table[rows[k], columns[k]]) > lowest:
            break
        start = np.log(initial[columns[k]]) - np.log([1.0, RATIOS[rows[k]]])
        found, height = robust_minimum(log_loss_of_pair, start, np.array([[0.15, 0.15], [0.0, -0.7]]), lowest)
        if height < lowest:
            best, lowest = found, height
    loss = float(losses(np.exp(best[:1]), float(np.exp(best[0] - best[1])))[0])
    require_gain(problem, loss)
    return float(np.exp(best[0])), float(np.exp(best[1])), loss
