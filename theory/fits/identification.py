"""Which numbers of a fitted quadratic the curves identify, and within which interval."""

from dataclasses import dataclass

import numpy as np

from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.fits.search import COORDINATES, Found, Search
from noisysgd.theory.fits.uncertainty import standard_errors
from noisysgd.theory.limits.stability import critical_learning_rate

WIDEST = 4.0
"""Ratio of the ends of an interval beyond which a positive number counts as not identified."""
WIDEST_EXPONENT = 1.0
"""Width of an interval beyond which an exponent counts as not identified."""
NEAR = 0.5
"""Share of the critical learning rate from which on a run shows where the edge of stability lies."""
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


def fitted_parameters(search: Search, found: Found, time: float, level: float) -> dict[str, FittedParameter]:
    """Every coordinate of a minimum in its own units, with its interval at `level`."""
    from scipy.special import stdtrit

    free = max(found.residuals.size / time - found.point.size, 1.0)
    reach = float(stdtrit(free, 0.5 + 0.5 * level)) * standard_errors(found, time)
    parameters = {}
    for k, name in enumerate(COORDINATES[: found.point.size]):
        value, low, high = (float(x) for x in (found.point[k], found.point[k] - reach[k], found.point[k] + reach[k]))
        at_bound = min(value - found.low[k], found.high[k] - value) <= 1e-4 * (found.high[k] - found.low[k])
        if name == "floor":
            low = max(low, 0.0)
            narrow = high - low <= search.reference.loss
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
        silent = "there is too little noise to tell"
        parameters["noise_exponent"] = _left_open(parameters["noise_exponent"], silent)
    parameters["largest_eigenvalue"] = _edge(search, found, parameters["largest_eigenvalue"])
    return parameters


def _exp(logarithms: FloatArray) -> FloatArray:
    with np.errstate(over="ignore"):
        return np.exp(logarithms)


def _left_open(parameter: FittedParameter, note: str) -> FittedParameter:
    return FittedParameter(parameter.estimate, parameter.low, parameter.high, False, note)


def _edge(search: Search, found: Found, fitted: FittedParameter) -> FittedParameter:
    """λ_max as stability shows it: from runs near the edge, or between stable and diverged runs."""
    problem = search.laws(found.law, found.point).problem(search.reference)
    shares = [
        run.held_rate / float(critical_learning_rate(problem, run.curve.batch_size, run.curve.momentum))
        for run in search.runs
    ]
    low, high = search.smallest_edge, search.largest_edge
    near = max(shares) >= NEAR
    if near:
        low, high = max(low, fitted.low), min(high, fitted.high)
    if low > 0 and high <= WIDEST * low:
        return FittedParameter(fitted.estimate, low, high, True)
    note = "no run came near the edge of stability" if not near else "the curves hardly depend on it"
    return FittedParameter(fitted.estimate, low, high, False, f"{note}; stable runs bound it from above")
