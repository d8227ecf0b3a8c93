"""Expected loss of SGD and heavy ball, exactly, after any number of steps.

Second moments obey an affine map that is constant within a segment of the schedule, so a segment costs one power of
that map however long it is (Zhang et al. 2019; the heavy ball is the paper's: u ← m u + g, ω ← ω − ε u, with u carried
across learning-rate drops). What the map is depends on the problem: see :mod:`noisysgd.theory.moments.segments`.
"""

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.parallel import map_slices
from noisysgd.theory.moments.segments import Runs, add_losses, cut, noise_schedule, recorded_steps
from noisysgd.theory.moments.update_rule import OneRun, add_mode_losses, update_rule
from noisysgd.theory.problems.l2 import L2
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.problems.quadratic import Quadratic, natural_units
from noisysgd.theory.schedules.schedule import Schedule


@ignoring_underflow
def expected_loss(
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
    penalized: bool = False,
) -> FloatArray:
    """Expected excess training loss ½ E θᵀΛθ at the end of the schedule.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
        D modes. Batches are drawn without replacement if the problem has a `dataset_size`, else from endless examples.
    schedule : Schedule
        Multipliers of the learning rate; one schedule for all configurations.
    learning_rate, batch_size, momentum : array_like
        Configurations, broadcast against each other; ``batch_size=np.inf`` is noiseless. The batch size may also be a
        Schedule of as many steps, one for all configurations, whose multipliers are the batch sizes.
    averaging : array_like
        Coefficient 0 ≤ β < 1 of an exponential moving average of the iterates, θ̄ ← β θ̄ + (1−β) θ after every step from
        θ̄₀ = θ₀, broadcast with the rest: the loss is then that of θ̄. 0 means θ itself.
    tail : float
        Share 0…1 of the steps whose last iterates are averaged with equal weights, instead of `averaging`: the loss
        after n steps is then that of the mean of the last ⌈tail · n⌉ iterates. 1 is the average of Polyak and Ruppert.
    nesterov : bool
        Nesterov's step in the form of ``torch.optim.SGD``: u ← m u + g, θ ← θ − ε (g + m u). False is the paper's heavy
        ball, θ ← θ − ε u.
    l2 : L2, optional
        A penalty that is trained on beside the loss, ``theory.L2(strength, origin)``.
    penalized : bool
        Whether the penalty counts as part of the loss. By default the loss is that of the problem alone, although
        training minimises both.

    Returns
    -------
    array of the broadcast shape
        Losses; ``inf`` where the moments overflow. Beyond the critical learning rate losses are large, but exact as
        long as floating point can hold them.

    Raises
    ------
    ValueError
        For impossible learning rates, batch sizes, momenta, averages or penalties, and shapes that do not broadcast.

    Notes
    -----
    For additive noise a segment costs D powers of a 3 × 3 map (D of a 6 × 6 map with averages, Nesterov's step or a
    penalty), to a relative error below 1e-10 up to 10⁷ steps. Where heavy ball makes a mode oscillate, that error is
    relative to the envelope of the oscillation, as long as it has turned through less than 10⁵ radians: a dip in which
    a mode passes through zero has fewer digits (a relative error of 5e-9 has been seen). For
    :class:`~noisysgd.theory.LeastSquares` see
    :mod:`noisysgd.theory.moments.least_squares`; there these three take the steps one by one, D operations each.

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
        tail=tail,
        nesterov=nesterov,
        l2=l2,
        penalized=penalized,
        at=schedule.steps,
    )


@ignoring_underflow
def loss_curve(
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
    penalized: bool = False,
    at: ArrayLike,
) -> FloatArray:
    """Expected excess training loss after the chosen numbers of steps.

    Parameters
    ----------
    at : int or (R,) array of int
        Steps in 0…schedule.steps, in any order; the loss after n updates stands at ``at = n``.
    problem, schedule, learning_rate, batch_size, momentum, averaging, tail, nesterov, l2, penalized
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
    noise = noise_schedule(problem, schedule, batch_size)
    rate, size, inertia, decay = checks.broadcast(
        learning_rate=checks.learning_rate(learning_rate),
        batch_size=checks.batch_size(1.0 if noise is not None else batch_size, problem.dataset_size),
        momentum=checks.momentum(momentum),
        averaging=checks.averaging(averaging),
    )
    steps = recorded_steps(at, schedule)
    rule = update_rule(nesterov, l2, tail, averaging=decay)
    checks.boolean("penalized", penalized)
    # Every step is recorded once, in order; `inverse` brings the records into the order that was asked for.
    unique, inverse = np.unique(steps.ravel(), return_inverse=True)
    problem, unit = natural_units(problem)
    rule = rule.in_units(unit)
    factor = problem.noise_factor(size) if noise is None else np.ones(rate.shape)
    runs = Runs(*(np.array(a).ravel() for a in (rate * unit, factor, inertia, decay)))
    pieces = cut(schedule, unique, noise)
    losses = np.zeros((rate.size, unique.size))
    losses[:, unique == 0] = problem.initial_loss
    by_modes = (runs.averaging > 0) | (not rule.plain)
    together = np.flatnonzero(~by_modes)
    if pieces.lengths.size and together.size:
        part = losses[together]
        add_losses(problem, runs.take(together), pieces, part)
        losses[together] = part
    chosen = np.flatnonzero(by_modes)

    def work(rows: slice) -> None:
        for c in chosen[rows]:
            run = OneRun(*(float(each[c]) for each in runs.fields))
            add_mode_losses(problem, rule, run, schedule, unique, losses[c], penalized=penalized, noise=noise)

    stepwise = problem.dim * schedule.steps // 50
    cost = 100 * problem.dim * pieces.lengths.size if isinstance(problem, NoisyQuadratic) else stepwise
    map_slices(work, chosen.size, cost=cost)
    return losses[:, inverse].reshape(rate.shape + steps.shape)


def _check_types(problem: Quadratic, schedule: Schedule) -> None:
    checks.instance("problem", problem, Quadratic, remedy="Make one with theory.NoisyQuadratic or theory.LeastSquares.")
    checks.instance("schedule", schedule, Schedule, remedy="Make one with theory.constant(steps) or half_then_decay.")
