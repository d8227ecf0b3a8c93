"""Steps to a target loss at a constant learning rate (Shallue et al. 2019, arXiv 1811.03600; Zhang et al. 2019)."""

from typing import TYPE_CHECKING, Any

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.passage.search import LAST_STEP, PENDING, Passages, Questions, search
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.problems.quadratic import Quadratic

if TYPE_CHECKING:
    pass


def steps_to_target(
    problem: Quadratic,
    target: Any,
    *,
    learning_rate: Any,
    batch_size: Any,
    momentum: Any = 0.0,
    max_steps: int | None = None,
) -> FloatArray:
    """Smallest number of steps t ≥ 0 after which the expected loss is at most `target`; ``inf`` if there is none.

    The *first* passage, also of a loss that falls, rises again and oscillates: no step before t is at or below the
    target, as bounds on the loss between the steps that are evaluated prove. Compressed spectra are used with an error
    bound, and where that leaves a doubt, the full one. So t is exact but for rounding: it may be off where the loss
    comes within 1e-12 of the target, relatively, and with momentum, where it stays within 1e-10 for a hundred steps and
    more, or t steps have turned an oscillation by so many radians that t · 10⁻¹⁶ of one matters.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
        Its loss at a constant learning rate is scanned. The cost hardly depends on the number of steps, and for a
        :class:`~noisysgd.theory.NoisyQuadratic` hardly on that of modes. For
        :class:`~noisysgd.theory.LeastSquares` of D modes, some 20 000 + 30 D steps are taken one by one, and
        240/(1−m) more with momentum, before O(D²) work does the rest.
    target : array_like
        Expected excess training loss to reach, > 0.
    learning_rate, batch_size, momentum : array_like
        Configurations, broadcast against each other and the target; ``batch_size=np.inf`` is noiseless.
    max_steps : int, optional
        Give up there. Without it the search goes on to 2⁵² steps.

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
    (1 − ε)^2t / 2 ≤ 0.1 from t = ln 5 / (2 ln 2) = 1.16 on. With noise the loss cannot fall below εF/(2B(2 − ε)).

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
    problem: Quadratic, target: Any, learning_rate: Any, batch_size: Any, momentum: Any
) -> list[FloatArray]:
    """Target, learning rate, batch size and momentum of what is asked, checked and broadcast against each other."""
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
