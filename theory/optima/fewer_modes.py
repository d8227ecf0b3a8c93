"""Searches for the best learning rate on a compressed spectrum, and whether they can be trusted.

A search evaluates hundreds of learning rates. On a long spectrum it is made on few modes
(``NoisyQuadratic.compressed``) and judged on more of them: where losses are low, those of both have to agree. If they
do not, as where heavy ball oscillates faster than the few can resolve, the search is made on more, in the end on the
spectrum itself.
"""

import functools
import itertools
import weakref
from collections.abc import Callable

import numpy as np

from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.limits.stability import critical_learning_rate
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.problems.quadratic import Quadratic

LEVELS = ((6, 0.0), (9, 256.0), (11, 4096.0))
"""Nodes for each bin, and phases that are resolved, of the problems that a search is tried on, in this order."""
BEYOND = 10.0
"""Learning rates up to this multiple of the critical one are resolved; above it steep modes, which are kept, decide."""
LONG = 200
"""Number of modes from which on a spectrum is compressed."""
AGREEMENT = 1e-5
"""Relative difference up to which losses agree: a tenth of it moves a minimum by less than its tolerance of 1e-3."""
AROUND = np.linspace(-np.log(30.0), np.log(30.0), 41)
"""Where they are compared: from a 30th of the best learning rate to 30 times that, unless losses are much larger."""

SCAN = np.linspace(-np.log(1e5), 0.0, 41)
"""Where they are compared at first: at the critical learning rate and down to a hundred-thousandth of it."""

_LEVELS: "weakref.WeakKeyDictionary[NoisyQuadratic, list[NoisyQuadratic]]" = weakref.WeakKeyDictionary()

Losses = Callable[[Quadratic, FloatArray], FloatArray]
"""Losses of a problem at logarithms of learning rates."""


def best_on_fewer_modes(
    problem: Quadratic, losses: Losses, search: Callable[[Callable[[FloatArray], FloatArray]], float], *, start: float
) -> tuple[float, float]:
    """The logarithm of the best learning rate that `search` finds for the function that it is given, and its loss.

    `start` is the logarithm of the critical learning rate.
    """
    levels: list[Quadratic] = [*_levels(problem), problem]
    for few, more in itertools.pairwise(levels):
        # A search that only a finer one could correct is not even begun.
        scan = start + SCAN
        if not _agree(losses(few, scan), losses(more, scan)):
            continue
        best = search(functools.partial(losses, few))
        fine = losses(more, best + AROUND)
        if _agree(losses(few, best + AROUND), fine):
            return best, float(fine[AROUND.size // 2])
    best = search(functools.partial(losses, problem))
    return best, float(losses(problem, np.array([best]))[0])


def _agree(coarse: FloatArray, fine: FloatArray) -> bool:
    """Whether losses agree wherever they are not far above the lowest."""
    near = fine <= 100.0 * fine.min()
    return bool(np.all(np.abs(coarse[near] - fine[near]) <= AGREEMENT * fine[near]))


def _levels(problem: Quadratic) -> list[NoisyQuadratic]:
    """Compressed forms of a long spectrum that are at most half as long; each is made once for a problem."""
    if not isinstance(problem, NoisyQuadratic) or problem.dim < LONG:
        return []
    if problem not in _LEVELS:
        highest = BEYOND * float(critical_learning_rate(problem, momentum=0.9))
        made = (problem.compressed(highest, nodes=nodes, oscillations=phase).problem for nodes, phase in LEVELS)
        _LEVELS[problem] = [few for few in made if 2 * few.dim <= problem.dim]
    return _LEVELS[problem]
