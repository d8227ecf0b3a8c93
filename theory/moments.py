"""Expected loss of SGD and heavy ball, exactly, after any number of steps.

Second moments obey an affine map that is constant within a segment of the schedule, so a segment costs one power of
that map however long it is (Zhang et al. 2019; the heavy ball is the paper's: u ← m u + g, ω ← ω − ε u, with u carried
across learning-rate drops). What the map is depends on the problem: see :func:`add_losses`.
"""

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np

from noisysgd.theory import checks
from noisysgd.theory.checks import FloatArray
from noisysgd.theory.least_squares import LeastSquares
from noisysgd.theory.parallel import map_slices
from noisysgd.theory.problem import NoisyQuadratic
from noisysgd.theory.quadratic import Quadratic
from noisysgd.theory.schedule import Schedule


def expected_loss(
    problem: Quadratic,
    schedule: Schedule,
    *,
    learning_rate: Any,
    batch_size: Any,
    momentum: Any = 0.0,
    averaging: Any = 0.0,
) -> FloatArray:
    """Expected excess training loss ½ E θᵀΛθ at the end of the schedule.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
        D modes. No budget is known here: for batches drawn without replacement, give the problem its `dataset_size`.
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
        Losses; ``inf`` where the moments overflow. A learning rate beyond the critical one gives the large but exact
        loss as long as that is a number.

    Raises
    ------
    ValueError
        For impossible learning rates, batch sizes, momenta or averaging, and shapes that do not broadcast.

    Notes
    -----
    For additive noise a segment costs D powers of a 3 × 3 map (D of a 6 × 6 map with averaging), to a relative error
    below 1e-10 up to 10⁷ steps. For :class:`~noisysgd.theory.LeastSquares` see
    :mod:`noisysgd.theory.least_squares_moments`; its averages take the steps one by one, D operations each.

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
    learning_rate: Any,
    batch_size: Any,
    momentum: Any = 0.0,
    averaging: Any = 0.0,
    at: Any,
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
    unique, inverse = np.unique(steps.ravel(), return_inverse=True)
    runs = Runs(*(np.array(a).ravel() for a in (rate, problem.noise_factor(size), inertia, decay)))
    pieces = cut(schedule, unique)
    losses = np.zeros((rate.size, unique.size))
    losses[:, unique == 0] = problem.initial_loss
    if pieces.lengths.size and rate.size:
        add_losses(problem, runs, pieces, losses)
    return losses[:, inverse].reshape(rate.shape + steps.shape)


@dataclass(frozen=True)
class Runs:
    """Configurations as flat arrays of one length C: learning rate, factor of the noise, momentum, averaging."""

    learning_rate: FloatArray
    noise_factor: FloatArray
    momentum: FloatArray
    averaging: FloatArray

    def take(self, chosen: Any) -> "Runs":
        """Some of them."""
        return Runs(
            self.learning_rate[chosen], self.noise_factor[chosen], self.momentum[chosen], self.averaging[chosen]
        )


@dataclass(frozen=True)
class Pieces:
    """A schedule cut at the recorded steps too: lengths, multipliers, and the record each piece ends in, or −1."""

    lengths: checks.IntArray
    multipliers: FloatArray
    recorded: checks.IntArray


@singledispatch
def add_losses(problem: Quadratic, runs: Runs, pieces: Pieces, losses: FloatArray) -> None:
    """Add the expected losses of C runs after each recorded piece into `losses`, (C, R); one method per problem."""
    raise NotImplementedError(f"no exact moments for a {type(problem).__name__}; register some with add_losses")


@add_losses.register
def _(problem: NoisyQuadratic, runs: Runs, pieces: Pieces, losses: FloatArray) -> None:
    shared = (
        problem.eigenvalues,
        0.5 * problem.weights * problem.eigenvalues,
        np.ascontiguousarray(problem.noise_diagonal),
        problem.initial_second_moment,
    )
    cut_up = (pieces.lengths, pieces.multipliers, pieces.recorded)
    averaged = runs.averaging > 0
    plain = ~averaged & (runs.momentum < 1e-30)  # beside 1, nothing

    def fill(chosen: checks.IntArray, cost: int, table: Any, *fields: str) -> None:
        some = runs.take(chosen)
        part = losses[chosen]

        def work(rows: slice) -> None:
            table(*shared, *(getattr(some, field)[rows] for field in fields), *cut_up, part[rows])

        map_slices(work, chosen.size, cost=cost * problem.dim * pieces.lengths.size)
        losses[chosen] = part

    # Compiled code is loaded when it is first needed, not on import.
    if plain.any():
        from noisysgd.theory.kernels import sgd_table

        fill(np.flatnonzero(plain), 1, sgd_table, "learning_rate", "noise_factor")
    if (~plain & ~averaged).any():
        from noisysgd.theory.kernels import momentum_table

        fields = ("learning_rate", "noise_factor", "momentum")
        fill(np.flatnonzero(~plain & ~averaged), 4, momentum_table, *fields)
    if averaged.any():
        _add_averaged(problem, np.flatnonzero(averaged), runs, pieces, losses)


def _add_averaged(
    problem: NoisyQuadratic, chosen: checks.IntArray, runs: Runs, pieces: Pieces, losses: FloatArray
) -> None:
    """The same for the losses of moving averages."""
    from noisysgd.theory.pair_kernels import variance_table

    curved = problem.eigenvalues > 0
    half = (0.5 * problem.weights * problem.eigenvalues)[curved]
    eigenvalues, noise, start = (
        array[curved] for array in (problem.eigenvalues, problem.noise_diagonal, problem.initial_second_moment)
    )
    cut_up = (pieces.lengths, pieces.multipliers, pieces.recorded)

    def work(rows: slice) -> None:
        for c in chosen[rows]:
            settings = (runs.learning_rate[c], runs.momentum[c], runs.averaging[c])
            moments = np.zeros((half.size, losses.shape[1]))
            arguments: list[Any] = [eigenvalues, runs.noise_factor[c] * noise, start, *settings, *cut_up, moments]
            variance_table(*arguments)
            losses[c] += half @ moments

    map_slices(work, chosen.size, cost=100 * problem.dim * pieces.lengths.size)


@add_losses.register
def _(problem: LeastSquares, runs: Runs, pieces: Pieces, losses: FloatArray) -> None:
    from noisysgd.theory.least_squares_moments import loss_table

    averaged = runs.averaging > 0
    if averaged.any():
        _add_averaged_least_squares(problem, np.flatnonzero(averaged), runs, pieces, losses)
    if not averaged.all():
        plain, part = runs.take(~averaged), losses[~averaged]
        configurations = (plain.learning_rate, plain.noise_factor, plain.momentum)
        loss_table(problem, *configurations, pieces.lengths, pieces.multipliers, pieces.recorded, part)
        losses[~averaged] = part


def _add_averaged_least_squares(
    problem: LeastSquares, chosen: checks.IntArray, runs: Runs, pieces: Pieces, losses: FloatArray
) -> None:
    """The same for the losses of moving averages, where noise grows with the loss of θ itself."""
    from noisysgd.theory.averaged_least_squares import average_moments

    half = 0.5 * problem.weights * problem.eigenvalues
    curved, kept = half > 0, pieces.recorded[pieces.recorded >= 0]

    def work(rows: slice) -> None:
        for c in chosen[rows]:
            settings = (runs.learning_rate[c], runs.noise_factor[c], runs.momentum[c], runs.averaging[c])
            with np.errstate(all="ignore"):
                moments = average_moments(problem, *settings, pieces, losses.shape[1])
            losses[c, kept] += moments[kept][:, curved] @ half[curved]

    map_slices(work, chosen.size, cost=problem.dim * int(pieces.lengths.sum()) // 50)


def _check_types(problem: Quadratic, schedule: Schedule) -> None:
    checks.instance("problem", problem, Quadratic, remedy="Make one with theory.NoisyQuadratic or theory.LeastSquares.")
    checks.instance("schedule", schedule, Schedule, remedy="Make one with theory.constant(steps) or half_then_decay.")


def recorded_steps(at: Any, schedule: Schedule) -> FloatArray:
    """`at` as an array of steps within the schedule."""
    steps = checks.real("at", at)
    inside = bool(np.all((steps >= 0) & (steps <= schedule.steps) & (steps == np.floor(steps)))) and steps.ndim <= 1
    inside = inside and steps.size > 0
    expected = f"whole steps in 0…{schedule.steps}, a scalar or a (R,) array"
    checks.require(inside, "at", expected, at, "Lengthen the schedule or record earlier.")
    return steps


def cut(schedule: Schedule, at: FloatArray) -> Pieces:
    """The schedule up to the last of the steps `at` (increasing), cut at each of them."""
    ends = np.unique(np.concatenate([np.cumsum(schedule.lengths), at[at > 0].astype(np.int64)]))
    ends = ends[ends <= at.max()]
    lengths = np.diff(ends, prepend=0)
    column = np.searchsorted(at, ends)
    recorded = np.where(at[np.minimum(column, at.size - 1)] == ends, column, -1)
    return Pieces(lengths, np.ascontiguousarray(schedule.at(ends - 1)), recorded.astype(np.int64))
