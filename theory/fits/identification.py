"""Which numbers of a fitted quadratic the curves identify, and within which interval."""

from dataclasses import dataclass, replace

import numpy as np

from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.fits.search import COORDINATES, LARGEST, Found, Search
from noisysgd.theory.fits.uncertainty import Spread
from noisysgd.theory.limits.stability import critical_learning_rate

WIDEST = 4.0
"""Ratio of the ends of an interval beyond which a positive number counts as not identified."""
WIDEST_EXPONENT = 1.0
"""Width of an interval beyond which an exponent counts as not identified."""
WIDEST_FLOOR = 0.5
"""Width of the floor's interval, as a share of the excess loss, beyond which it counts as not identified."""
NEAR = 0.5
"""Share of the critical learning rate from which on a run shows where the edge of stability lies."""
CORNER = 0.9
"""Share of the largest curvature under which all runs are stable beyond which an estimate is none of a curvature."""
STRONG = 10.0
"""Twice a logarithm of likelihoods up to which a value counts as possible when λ_max is to be identified."""
LOOSE = 3.0
"""Correlation time up to which residuals count as scatter, and the family as one that has the curves' shape."""
LOGARITHMS = ("excess", "noise", "largest_eigenvalue")
EXPONENTS = ("exponent", "noise_exponent")


@dataclass(frozen=True)
class FittedParameter:
    """An estimate, the interval that the curves allow, and whether they identify it; `note` says why not."""

    estimate: float
    low: float
    high: float
    identified: bool
    note: str = ""


def fitted_parameters(
    search: Search, found: Found, around: Spread, time: float, level: float
) -> dict[str, FittedParameter]:
    """Every coordinate of a point in its own units, with its interval at `level`."""
    from scipy.special import ndtri, stdtrit

    free = max(found.residuals.size / time - found.point.size, 1.0)
    stretch = float(stdtrit(free, 0.5 + 0.5 * level) / ndtri(0.5 + 0.5 * level))
    parameters: dict[str, FittedParameter] = {}
    for k, name in enumerate(COORDINATES[: found.point.size]):
        value, (low, high) = float(found.point[k]), around.interval(k, level, stretch)
        low, high = min(low, value), max(high, value)
        at_bound = min(value - found.low[k], found.high[k] - value) <= 1e-4 * (found.high[k] - found.low[k])
        if name == "floor":
            low = max(low, 0.0)
            narrow = high - low <= WIDEST_FLOOR * np.exp(found.point[1])
            at_bound = False
        elif name in EXPONENTS:
            narrow = high - low <= WIDEST_EXPONENT
        elif name in LOGARITHMS:
            narrow = high - low <= np.log(WIDEST)
            value, low, high = (float(x) for x in _exp(np.array([value, low, high])))
        else:
            value, low, high = (float(x) for x in 1.0 / (1.0 + _exp(-np.array([value, low, high]))))
            narrow = high - low <= 0.5
        note = "" if narrow else "the curves hardly depend on it"
        if at_bound:
            note = "it lies at the end of what is searched"
        parameters[name] = FittedParameter(value, low, high, not note, note)
    if not parameters["noise"].identified and parameters["noise_exponent"].identified:
        parameters["noise_exponent"] = replace(
            parameters["noise_exponent"], identified=False, note="there is too little noise to tell"
        )
    parameters["largest_eigenvalue"] = _edge(search, found, around, parameters["largest_eigenvalue"], time)
    return parameters


def _exp(logarithms: FloatArray) -> FloatArray:
    with np.errstate(over="ignore"):
        return np.exp(logarithms)


def at_the_edge(search: Search, found: Found) -> bool:
    """Whether a minimum has λ_max at the very edge of stability of the runs.

    There noise has no bound, and stands for whatever else the family lacks.
    """
    return bool(np.exp(found.point[LARGEST]) > CORNER * search.largest_edge)


def _edge(search: Search, found: Found, around: Spread, fitted: FittedParameter, time: float) -> FittedParameter:
    """λ_max as stability shows it: from runs near the edge, or between stable and diverged runs.

    Where residuals hang together the family does not have the curves' shape, and how it bends them near the edge says
    nothing. Nor does a curvature that may be at the very edge.
    """
    problem = search.laws(found.law, found.point).problem(search.reference)
    shares = [
        run.held_rate / float(critical_learning_rate(problem, run.curve.batch_size, run.curve.momentum))
        for run in search.runs
    ]
    possible = np.exp(around.points[around.deficits <= STRONG][:, LARGEST])
    shown = possible.max() <= min(WIDEST * possible.min(), CORNER * search.largest_edge)
    low, high = search.smallest_edge, search.largest_edge
    if max(shares) >= NEAR and time <= LOOSE and shown:
        low, high = max(low, fitted.low), min(high, fitted.high)
    if 0 < low <= high <= WIDEST * low:
        return FittedParameter(fitted.estimate, low, high, True)
    note = "no run is known to have come near the edge of stability; stable ones bound it from above"
    return FittedParameter(fitted.estimate, low, high, False, note)
