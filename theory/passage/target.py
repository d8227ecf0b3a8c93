"""Steps to a target loss at a constant learning rate (Shallue et al. 2019, arXiv 1811.03600; Zhang et al. 2019)."""

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.passage.search import LAST_STEP, PENDING, Passages, Questions, search
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.problems.quadratic import Quadratic


@ignoring_underflow
def steps_to_target(
    problem: Quadratic,
    target: ArrayLike,
    *,
    learning_rate: ArrayLike,
    batch_size: ArrayLike,
    momentum: ArrayLike = 0.0,
    max_steps: int | None = None,
) -> FloatArray:
    """Smallest number of steps t ≥ 0 after which the expected loss is at most `target`; ``inf`` if there is none.

    This is the *first* passage, even of a loss that falls, rises again or oscillates: not every step is evaluated, but
    bounds on the loss between those that are prove that no earlier step is at or below the target. Long spectra are
    compressed, with a bound on the error, and the full spectrum is used where that bound leaves a doubt.

    So t is exact up to rounding. It may be off where the loss comes within a relative 1e-12 of the target; with
    momentum also where the loss stays within a relative 1e-10 of it for a hundred steps or more, and where t is so
    large that an error of about t · 10⁻¹⁶ radians in the phase of an oscillation matters.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
        Its loss at a constant learning rate is scanned. The cost hardly depends on the number of steps, and for a
        :class:`~noisysgd.theory.NoisyQuadratic` hardly on the number of modes. For a
        :class:`~noisysgd.theory.LeastSquares` of D modes, up to about 20 000 + 30 D steps (with momentum, 240/(1−m)
        more) are taken one by one before O(D²) work does the rest.
    target : array_like
        Expected excess training loss to reach, > 0.
    learning_rate, batch_size, momentum : array_like
        Configurations, broadcast against each other and the target; ``batch_size=np.inf`` is noiseless.
    max_steps : int, optional
        Step after which the search is given up; 2⁵² by default.

    Returns
    -------
    array of the broadcast shape
        Whole numbers, or ``inf`` where the target is not reached (within `max_steps`): because noise keeps the loss
        above it, because it diverges, or because the learning rate is 0.

    Raises
    ------
    ValueError
        For impossible targets, learning rates, batch sizes or momenta, and shapes that do not broadcast.

    Examples
    --------
    Without noise the loss (1 − ε)^2t / 2 is at most 0.1 from t = ln 5 / (2 ln 2) = 1.16 on. With noise it cannot fall
    below εF/(2B(2 − ε)), which is 1/6 for B = 1.

    >>> from noisysgd import theory
    >>> problem = theory.NoisyQuadratic([1.0], noise=1.0)
    >>> theory.steps_to_target(problem, 0.1, learning_rate=0.5, batch_size=[1, 2, np.inf])
    array([inf,  3.,  2.])
    """
    goals, rates, sizes, inertia = configurations(problem, target, learning_rate, batch_size, momentum)
    last = LAST_STEP
    if max_steps is not None:
        last = float(checks.integer("max_steps", max_steps, 0, remedy="Pass None to search on."))
    asked = Questions(*(np.array(a).ravel() for a in (goals, rates, problem.noise_factor(sizes), inertia)))
    known = Passages.unknown(rates.size)
    search(problem, asked, known, min(last, LAST_STEP))
    known.settle(known.status == PENDING, np.inf)
    return known.steps.reshape(rates.shape)


def configurations(
    problem: Quadratic, target: ArrayLike, learning_rate: ArrayLike, batch_size: ArrayLike, momentum: ArrayLike
) -> list[FloatArray]:
    """Targets, learning rates, batch sizes and momenta, in this order, checked and broadcast against each other."""
    kinds = isinstance(problem, NoisyQuadratic | LeastSquares)
    remedy = "Make one with theory.NoisyQuadratic, power_law or LeastSquares."
    checks.require(kinds, "problem", "a NoisyQuadratic or LeastSquares", problem, remedy)
    goals = checks.real("target", target)
    remedy = "No loss of zero is reached in finite time; choose a loss below the initial one."
    checks.require(bool(np.all((goals > 0) & (goals < np.inf))), "target", "positive, finite losses", target, remedy)
    return checks.broadcast(
        target=goals,
        learning_rate=checks.learning_rate(learning_rate),
        batch_size=checks.batch_size(batch_size, problem.dataset_size),
        momentum=checks.momentum(momentum),
    )
