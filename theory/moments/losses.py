"""Expected loss of SGD and heavy ball, exactly, after any number of steps.

Second moments obey an affine map that is constant within a segment of the schedule, so a segment costs one power of
that map however long it is (Zhang et al. 2019; the heavy ball is the paper's: u ← m u + g, ω ← ω − ε u, with u carried
across learning-rate drops). What the map is depends on the problem: see :mod:`noisysgd.theory.moments.segments`.
"""

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.moments.segments import Runs, add_losses, cut, recorded_steps
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.schedules.schedule import Schedule


def expected_loss(
    problem: Quadratic,
    schedule: Schedule,
    *,
    learning_rate: ArrayLike,
    batch_size: ArrayLike,
    momentum: ArrayLike = 0.0,
    averaging: ArrayLike = 0.0,
) -> FloatArray:
    """Expected excess training loss ½ E θᵀΛθ at the end of the schedule.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
        D modes. Batches are drawn without replacement if the problem has a `dataset_size`, else from endless examples.
    schedule : Schedule
        Multipliers of the learning rate; one schedule for all configurations.
    learning_rate, batch_size, momentum : array_like
        Configurations, broadcast against each other; ``batch_size=np.inf`` is noiseless.
    averaging : array_like
        Coefficient 0 ≤ β < 1 of an exponential moving average of the iterates, θ̄ ← β θ̄ + (1−β) θ after every step from
        θ̄₀ = θ₀, broadcast with the rest: the loss is then that of θ̄. 0 means θ itself.

    Returns
    -------
    array of the broadcast shape
        Losses; ``inf`` where the moments overflow. Beyond the critical learning rate losses are large, but exact as
        long as floating point can hold them.

    Raises
    ------
    ValueError
        For impossible learning rates, batch sizes, momenta or averaging, and shapes that do not broadcast.

    Notes
    -----
    For additive noise a segment costs D powers of a 3 × 3 map (D of a 6 × 6 map with averaging), to a relative error
    below 1e-10 up to 10⁷ steps. For :class:`~noisysgd.theory.LeastSquares` see
    :mod:`noisysgd.theory.moments.least_squares`; its averages take the steps one by one, D operations each.

    Examples
    --------
    A single mode, one step: (1 − ελ)² E θ₀² + ε² F/B = 0.25 + 0.25/5.

    >>> from noisysgd import theory
    >>> problem = theory.NoisyQuadratic([1.0], noise=1.0)
    >>> theory.expected_loss(problem, theory.constant(1), learning_rate=0.5, batch_size=5)
    array(0.15)
    """
    _check_types(problem, schedule)
    return loss_curve(
        problem,
        schedule,
        learning_rate=learning_rate,
        batch_size=batch_size,
        momentum=momentum,
        averaging=averaging,
        at=schedule.steps,
    )


def loss_curve(
    problem: Quadratic,
    schedule: Schedule,
    *,
    learning_rate: ArrayLike,
    batch_size: ArrayLike,
    momentum: ArrayLike = 0.0,
    averaging: ArrayLike = 0.0,
    at: ArrayLike,
) -> FloatArray:
    """Expected excess training loss after the chosen numbers of steps.

    Parameters
    ----------
    at : int or (R,) array of int
        Steps in 0…schedule.steps, in any order; the loss after n updates stands at ``at = n``.
    problem, schedule, learning_rate, batch_size, momentum, averaging
        As in :func:`expected_loss`.

    Returns
    -------
    array of shape (broadcast shape..., R), or the broadcast shape for a scalar `at`
        Losses; ``inf`` where the moments overflow.

    Raises
    ------
    ValueError
        As :func:`expected_loss`, and for steps outside the schedule.

    Examples
    --------
    >>> from noisysgd import theory
    >>> problem = theory.NoisyQuadratic([1.0], noise=0.0)
    >>> theory.loss_curve(problem, theory.constant(2), learning_rate=[0.5, 1.0], batch_size=1, at=[0, 1, 2])
    array([[0.5    , 0.125  , 0.03125],
           [0.5    , 0.     , 0.     ]])
    """
    _check_types(problem, schedule)
    rate, size, inertia, decay = checks.broadcast(
        learning_rate=checks.learning_rate(learning_rate),
        batch_size=checks.batch_size(batch_size, problem.dataset_size),
        momentum=checks.momentum(momentum),
        averaging=checks.averaging(averaging),
    )
    steps = recorded_steps(at, schedule)
    # Every step is recorded once, in order; `inverse` brings the records into the order that was asked for.
    unique, inverse = np.unique(steps.ravel(), return_inverse=True)
    runs = Runs(*(np.array(a).ravel() for a in (rate, problem.noise_factor(size), inertia, decay)))
    pieces = cut(schedule, unique)
    losses = np.zeros((rate.size, unique.size))
    losses[:, unique == 0] = problem.initial_loss
    if pieces.lengths.size and rate.size:
        add_losses(problem, runs, pieces, losses)
    return losses[:, inverse].reshape(rate.shape + steps.shape)


def _check_types(problem: Quadratic, schedule: Schedule) -> None:
    checks.instance("problem", problem, Quadratic, remedy="Make one with theory.NoisyQuadratic or theory.LeastSquares.")
    checks.instance("schedule", schedule, Schedule, remedy="Make one with theory.constant(steps) or half_then_decay.")
