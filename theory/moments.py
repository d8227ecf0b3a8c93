"""Expected loss of SGD and heavy ball on a noisy quadratic, exactly, after any number of steps.

Second moments of each mode obey an affine map that is constant within a segment of the schedule, so a segment costs one
power of that map however long it is (Zhang et al. 2019; the heavy ball is the paper's: u ← m u + g, ω ← ω − ε u, with
u carried across learning-rate drops).
"""

from typing import Any

import numpy as np

from noisysgd.theory import checks
from noisysgd.theory.checks import FloatArray
from noisysgd.theory.parallel import map_slices
from noisysgd.theory.problem import NoisyQuadratic
from noisysgd.theory.schedule import Schedule


def expected_loss(
    problem: NoisyQuadratic,
    schedule: Schedule,
    *,
    learning_rate: Any,
    batch_size: Any,
    momentum: Any = 0.0,
) -> FloatArray:
    """Expected excess training loss ½ E θᵀΛθ at the end of the schedule.

    Parameters
    ----------
    problem : NoisyQuadratic
        D modes. No budget is known here: for batches drawn without replacement, give the problem its `dataset_size`.
    schedule : Schedule
        Multipliers of the learning rate; one schedule for all configurations.
    learning_rate, batch_size, momentum : array_like
        Configurations, broadcast against each other; ``batch_size=np.inf`` is noiseless.

    Returns
    -------
    array of the broadcast shape
        Losses; ``inf`` where the moments overflow. A learning rate beyond the critical one gives the large but exact
        loss as long as that is a number.

    Raises
    ------
    ValueError
        For impossible learning rates, batch sizes or momenta, and shapes that do not broadcast.

    Examples
    --------
    A single mode, one step: (1 − ελ)² E θ₀² + ε² F/B = 0.25 + 0.25/5.

    >>> from noisysgd import theory
    >>> problem = theory.NoisyQuadratic([1.0], noise=1.0)
    >>> theory.expected_loss(problem, theory.constant(1), learning_rate=0.5, batch_size=5)
    array(0.15)
    """
    _check_types(problem, schedule)
    curve = loss_curve(
        problem, schedule, learning_rate=learning_rate, batch_size=batch_size, momentum=momentum, at=schedule.steps
    )
    return np.asarray(curve)


def loss_curve(
    problem: NoisyQuadratic,
    schedule: Schedule,
    *,
    learning_rate: Any,
    batch_size: Any,
    momentum: Any = 0.0,
    at: Any,
) -> FloatArray:
    """Expected excess training loss after the chosen numbers of steps.

    Parameters
    ----------
    at : int or (R,) array of int
        Steps in 0…schedule.steps, in any order; the loss after n updates stands at ``at = n``.
    problem, schedule, learning_rate, batch_size, momentum
        As in :func:`expected_loss`.

    Returns
    -------
    array of shape (broadcast shape..., R), or the broadcast shape for a scalar `at`
        Losses; ``inf`` where the moments overflow.

    Examples
    --------
    >>> from noisysgd import theory
    >>> problem = theory.NoisyQuadratic([1.0], noise=0.0)
    >>> theory.loss_curve(problem, theory.constant(2), learning_rate=[0.5, 1.0], batch_size=1, at=[0, 1, 2])
    array([[0.5    , 0.125  , 0.03125],
           [0.5    , 0.     , 0.     ]])
    """
    _check_types(problem, schedule)
    rate, size, inertia = checks.broadcast(
        learning_rate=checks.learning_rate(learning_rate),
        batch_size=checks.batch_size(batch_size, problem.dataset_size),
        momentum=checks.momentum(momentum),
    )
    steps = _recorded_steps(at, schedule)
    unique, inverse = np.unique(steps.ravel(), return_inverse=True)
    lengths, multipliers, recorded = _pieces(schedule, unique)
    losses = np.zeros((rate.size, unique.size))
    losses[:, unique == 0] = problem.initial_loss
    rates, factors, momenta = (np.array(a).ravel() for a in (rate, problem.noise_factor(size), inertia))
    if lengths.size:
        from noisysgd.theory import kernels  # compiled code is loaded when it is first needed, not on import

        def work(part: slice) -> None:
            kernels.loss_table(
                problem.eigenvalues,
                problem.noise_diagonal,
                problem.initial_second_moment,
                rates[part],
                factors[part],
                momenta[part],
                lengths,
                multipliers,
                recorded,
                losses[part],
            )

        map_slices(work, rates.size, cost=problem.dim * lengths.size)
    return losses[:, inverse].reshape(rate.shape + steps.shape)


def _check_types(problem: NoisyQuadratic, schedule: Schedule) -> None:
    checks.instance("problem", problem, NoisyQuadratic, remedy="Make one with theory.NoisyQuadratic or power_law.")
    checks.instance("schedule", schedule, Schedule, remedy="Make one with theory.constant(steps) or half_then_decay.")


def _recorded_steps(at: Any, schedule: Schedule) -> FloatArray:
    steps = checks.real("at", at)
    inside = bool(np.all((steps >= 0) & (steps <= schedule.steps) & (steps == np.floor(steps)))) and steps.ndim <= 1
    inside = inside and steps.size > 0
    expected = f"whole steps in 0…{schedule.steps}, a scalar or a (R,) array"
    checks.require(inside, "at", expected, at, "Lengthen the schedule or record earlier.")
    return steps


def _pieces(schedule: Schedule, at: FloatArray) -> tuple[checks.IntArray, FloatArray, checks.IntArray]:
    """The schedule cut at the recorded steps too: lengths, multipliers and the record each piece ends in, or −1."""
    ends = np.unique(np.concatenate([np.cumsum(schedule.lengths), at[at > 0].astype(np.int64)]))
    ends = ends[ends <= at.max()]
    lengths = np.diff(ends, prepend=0)
    column = np.searchsorted(at, ends)
    recorded = np.where(at[np.minimum(column, at.size - 1)] == ends, column, -1)
    return lengths, np.ascontiguousarray(schedule.at(ends - 1)), recorded.astype(np.int64)
