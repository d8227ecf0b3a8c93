"""Which scaling rule measured optima follow, and with which power of the batch size they begin."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.scaling.corner import SharpCorner
from noisysgd.theory.scaling.curve_fit import (
    EXACT,
    Data,
    fit_data,
)
from noisysgd.theory.scaling.rules import LinearWithCap, MaBassilyBelkin, McCandlish, RuleFamily, SquareRoot

if TYPE_CHECKING:
    import xarray as xr

RULES: tuple[RuleFamily, ...] = (LinearWithCap, SquareRoot, McCandlish, MaBassilyBelkin, SharpCorner)
"""The rules that are fitted without a model problem."""


@ignoring_underflow
def compare_rules(
    batch_sizes: ArrayLike,
    learning_rates: ArrayLike,
    *,
    rules: Iterable[RuleFamily] = RULES,
    log_errors: ArrayLike | None = None,
) -> "xr.Dataset":
    """Fits of several rules to the same data, best first where the data can tell.

    Rules are ranked by AICc, Akaike's criterion with its correction for few data,
    −2 log likelihood + 2k + 2k(k+1)/(K−k−1), for k parameters, K data and Gaussian errors in log₂ of the learning rate.
    Without `log_errors` the variance of the errors is one more parameter. A difference below 2 decides nothing; one of
    10 leaves little support for the worse rule.

    With fewer than k + 2 data AICc is not defined, and it is NaN. Then a rule with fewer parameters would win for no
    other reason than that it can be judged. So if any rule cannot be judged, there are no weights, the rules stay in
    the order in which they were given, and the attribute ``ranked`` says why. Measure more batch sizes, give
    `log_errors`, which saves a parameter, or compare fewer `rules`.

    Parameters
    ----------
    batch_sizes, learning_rates, log_errors
        As of :meth:`RuleFamily.fit`.
    rules : iterable
        Rule classes, or instances of :class:`NoisyQuadraticRule`.

    Returns
    -------
    xarray.Dataset
        Over ``rule``: ``parameters`` as text, ``not_identified``, the names of those of which the data say nothing (see
        :meth:`RuleFamily.fit`), ``parameter_count``, ``rms`` residual in octaves, ``aicc``, and ``akaike_weight``, the
        share of the evidence: exp(−aicc/2), normalised to sum to 1. The attribute ``ranked`` is "by AICc", or says
        which rules could not be judged.

    Raises
    ------
    ValueError
        For data that no rule can be fitted to, or no rules.

    Examples
    --------
    >>> table = compare_rules([1, 2, 4, 8, 16, 32], [0.1, 0.21, 0.39, 0.8, 0.81, 0.79])
    >>> table.rule.values[0].item(), round(table.rms.values[0].item(), 3), table.parameters.values[0].item()
    ('LinearWithCap', 0.033, 'slope=0.1008, cap=0.8')
    """
    import xarray as xr

    remedy = "Pass classes such as theory.McCandlish, or a NoisyQuadraticRule."
    families = checks.several("rules", rules, object, remedy=remedy)
    checks.require(len(families) > 0, "rules", "at least one rule", rules, "Leave it out for all of them.")
    data = fit_data(batch_sizes, learning_rates, log_errors, parameters=1)
    rows = []
    for family in families:
        remedy = "Pass classes such as theory.McCandlish, or a NoisyQuadraticRule."
        checks.require(hasattr(family, "fit"), "rules", "rules that can be fitted", family, remedy)
        rule = family.fit(batch_sizes, learning_rates, log_errors=log_errors)
        residual = data.log_rate - np.log2(rule.learning_rate(np.exp2(data.log_batch)))
        count = len(rule.parameters)
        text = ", ".join(f"{name}={value:.4g}" for name, value in rule.parameters.items())
        rms = float(np.sqrt(np.mean(residual**2)))
        lacking = ", ".join(rule.not_identified)
        rows.append((_akaike(residual, data, count), count, rms, text, lacking, type(rule).__name__))
    unjudged = [row[-1] for row in rows if np.isnan(row[0])]
    if not unjudged:
        rows.sort(key=lambda row: row[:3])
    names = [row[-1] for row in rows]
    # Several rules of one class, such as models of different problems, are numbered by rank.
    labels = [f"{name} {names[: k + 1].count(name)}" if names.count(name) > 1 else name for k, name in enumerate(names)]
    aicc = np.array([row[0] for row in rows])
    weight = np.exp((aicc[0] - aicc) / 2) if not unjudged else np.full(aicc.size, np.nan)
    ranked = "by AICc"
    if unjudged:
        ranked = f"no: with {data.log_rate.size} data AICc is not defined for {', '.join(unjudged)}"
    return xr.Dataset(
        {
            "parameters": ("rule", [row[3] for row in rows]),
            "not_identified": ("rule", [row[4] for row in rows]),
            "parameter_count": ("rule", [row[1] for row in rows]),
            "rms": ("rule", [row[2] for row in rows]),
            "aicc": ("rule", aicc),
            "akaike_weight": ("rule", weight / weight.sum()),
        },
        coords={"rule": labels},
        attrs={"ranked": ranked},
    )


@ignoring_underflow
def linear_scaling_exponent(
    batch_sizes: ArrayLike,
    learning_rates: ArrayLike,
    *,
    below: float | None = None,
    log_errors: ArrayLike | None = None,
) -> tuple[float, float]:
    """Exponent α of ε ∝ B^α, and its standard error, by linear regression of log ε on log B.

    By the paper's theory α is 1 in the noise-dominated regime (section 3.2); by the square-root rule it is ½.

    Parameters
    ----------
    batch_sizes, learning_rates : (K,) arrays
        Data.
    below : float, optional
        Use only data with B ≤ `below`, such as the boundary batch size; all of them by default.
    log_errors : scalar or (K,) array, optional
        Standard errors of log₂ of the learning rates. By default they are estimated from the scatter about the line.
        Pass them for data on a coarse grid, which may lie on a line only because they were rounded.

    Returns
    -------
    exponent, standard_error : float

    Raises
    ------
    ValueError
        For fewer than two different batch sizes, or three data without `log_errors`.

    Examples
    --------
    >>> linear_scaling_exponent([1, 2, 4, 8, 16], [0.1, 0.2, 0.4, 0.8, 0.8], below=8, log_errors=0.29)[0].__round__(9)
    1.0
    """
    data = fit_data(batch_sizes, learning_rates, log_errors, parameters=1)
    limit = np.inf if below is None else checks.scalar("below", below)
    # A batch size equal to `below` counts, although log₂ and back may have raised it by rounding.
    used = np.exp2(data.log_batch) <= limit * (1 + 1e-12)
    x, y, weight = data.log_batch[used], data.log_rate[used], data.weight[used]
    remedy = "Pass more data, or a larger `below`."
    checks.require(np.unique(x).size >= 2, "batch_sizes", "two different batch sizes to use", np.exp2(x), remedy)
    remedy = "Pass more data, or log_errors."
    checks.require(data.known or x.size >= 3, "batch_sizes", "three data to tell their scatter", x.size, remedy)
    centred = x - np.average(x, weights=weight)
    leverage = float((weight * centred**2).sum())
    exponent = float((weight * centred * y).sum()) / leverage
    residual = y - np.average(y, weights=weight) - exponent * centred
    variance = 1.0 if data.known else float((weight * residual**2).sum()) / (x.size - 2)
    return exponent, float(np.sqrt(variance / leverage))


def _akaike(residual: FloatArray, data: Data, count: int) -> float:
    """AICc up to a constant that is the same for all rules; NaN where there are too few data for it."""
    n = residual.size
    # −2 log likelihood. With an unknown variance, estimated as the mean square, it is n log of that; exact fits all
    # count alike, or rounding errors would rank them.
    if data.known:
        deviance = float((data.weight * residual**2).sum())
    else:
        deviance = n * float(np.log(max(float(np.mean(residual**2)), EXACT**2)))
        count += 1
    spare = n - count - 1
    return deviance + 2 * count + 2 * count * (count + 1) / spare if spare > 0 else float("nan")
