"""Scaling rules: how the best learning rate depends on the batch size, as curves that data can choose between.

Every rule has ``learning_rate`` and ``fit``, least squares in log₂ of the learning rate. Which learning rate, plain or
effective, is the user's: rules return what they were fitted to. Optima are read off grids, so that their errors are
about as large as a grid step: rounding to the nearest power of two alone is an error of standard deviation 1/√12 = 0.29
octaves. Where batch sizes are powers of two as well, rounding errors along a straight line are all the same: they leave
exponents alone but shift either asymptote by up to half an octave, hence the boundary by up to one, however many the
data.

No fit follows a slope into a local minimum: overall factors are solved for, and the one parameter that is left, the
boundary batch size, is scanned. Where data show no boundary it is found 2²⁰ times beyond them, as good as infinite.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.optima.learning_rates import optimal_learning_rate, sampled_from
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.scaling.corner import SharpCorner, fit_boundary
from noisysgd.theory.scaling.curve_fit import (
    EXACT,
    OCTAVES_BEYOND,
    Data,
    fit_data,
    minimise,
    misfit,
    parameter,
    power,
    scan,
)
from noisysgd.theory.schedules.budget import Budget
from noisysgd.theory.schedules.schedule import ScheduleFamily, half_then_decay

if TYPE_CHECKING:
    import xarray as xr


TABULATED_PER_OCTAVE = 2
FINER_TABLES = 4
ROUGH = 0.02
"""Error of linear interpolation, in octaves, from which a table is made finer."""


class ScalingRule(Protocol):
    """A learning rate for every batch size."""

    @property
    def parameters(self) -> dict[str, float]:
        """The fitted parameters by name."""

    def learning_rate(self, batch_size: Any) -> FloatArray:
        """Learning rate at each batch size; ``np.inf`` is a batch size too."""


class RuleFamily(Protocol):
    """What can be fitted: a rule's class, or a :class:`NoisyQuadraticRule`."""

    def fit(self, batch_sizes: Any, learning_rates: Any, *, log_errors: Any = None) -> ScalingRule:
        """The rule closest to data.

        Parameters
        ----------
        batch_sizes, learning_rates : (K,) arrays
            Data; at least as many different batch sizes as there are parameters.
        log_errors : scalar or (K,) array, optional
            Standard errors of log₂ of the learning rates, > 0: in octaves. Equal if not given.
        """


@dataclass(frozen=True)
class LinearWithCap:
    """ε = min(slope·B, cap): the linear scaling rule up to a sharp corner (paper, section 3).

    The limit of infinite sharpness of :class:`SharpCorner`. A fit to data that reach no corner has cap ``inf``, one to
    data all beyond it slope ``inf``.

    Examples
    --------
    >>> rule = LinearWithCap.fit([1, 2, 4, 8, 16], [0.5, 1.0, 2.0, 3.0, 3.0])
    >>> round(rule.slope, 6), round(rule.cap, 6), round(rule.boundary_batch_size, 6)
    (0.5, 3.0, 6.0)
    """

    slope: float
    cap: float

    def __post_init__(self) -> None:
        slope, cap = (parameter(self, name, infinite=True) for name in ("slope", "cap"))
        finite = slope < np.inf or cap < np.inf
        checks.require(finite, "slope, cap", "at least one of them finite", f"{slope}, {cap}", "Limit the rate.")

    @property
    def boundary_batch_size(self) -> float:
        """Where the corner is."""
        return self.cap / self.slope if self.slope < np.inf else 0.0

    @property
    def parameters(self) -> dict[str, float]:
        """The fitted parameters by name."""
        return {"slope": self.slope, "cap": self.cap}

    def learning_rate(self, batch_size: Any) -> FloatArray:
        """Learning rate at each batch size."""
        return np.asarray(np.minimum(self.slope * checks.batch_size(batch_size), self.cap))

    @classmethod
    def fit(cls, batch_sizes: Any, learning_rates: Any, *, log_errors: Any = None) -> Self:
        """The rule closest to data, exactly: see :meth:`RuleFamily.fit`."""
        data = fit_data(batch_sizes, learning_rates, log_errors, parameters=2)
        x, ratio = data.log_batch, data.log_rate - data.log_batch
        # The misfit is a parabola in the corner's place between neighbouring batch sizes: its vertex or an end is best.
        points = np.unique(x)
        corners = list(points)
        for low, high in itertools.pairwise(points):
            left = x <= low
            slope = np.average(ratio[left], weights=data.weight[left])
            cap = np.average(data.log_rate[~left], weights=data.weight[~left])
            corners += [cap - slope] if low < cap - slope < high else []
        places = np.array(corners)
        misfits, factors = misfit(np.minimum(x - places[:, None], 0.0), data)
        best = int(np.argmin(misfits))
        # A corner at an outermost point is a corner anywhere beyond it.
        slack = 1e-9 * misfits[best] + EXACT**2 * 1e-6 * data.weight.sum()
        flat, linear = (float(misfits[corners.index(edge)]) for edge in (x.min(), x.max()))
        if linear <= misfits[best] + slack:
            return cls(slope=power(np.average(ratio, weights=data.weight)), cap=float("inf"))
        if flat <= misfits[best] + slack:
            return cls(slope=float("inf"), cap=power(np.average(data.log_rate, weights=data.weight)))
        return cls(slope=power(factors[best] - places[best]), cap=power(factors[best]))


@dataclass(frozen=True)
class SquareRoot:
    """ε = coefficient·√B: keeps the covariance of one update as the batch grows (Krizhevsky 2014).

    Examples
    --------
    >>> SquareRoot.fit([1, 4, 16], [0.1, 0.2, 0.4]).learning_rate(64)
    array(0.8)
    """

    coefficient: float

    def __post_init__(self) -> None:
        parameter(self, "coefficient")

    @property
    def parameters(self) -> dict[str, float]:
        """The fitted parameter by name."""
        return {"coefficient": self.coefficient}

    def learning_rate(self, batch_size: Any) -> FloatArray:
        """Learning rate at each batch size."""
        return np.asarray(self.coefficient * np.sqrt(checks.batch_size(batch_size)))

    @classmethod
    def fit(cls, batch_sizes: Any, learning_rates: Any, *, log_errors: Any = None) -> Self:
        """The rule closest to data: see :meth:`RuleFamily.fit`."""
        data = fit_data(batch_sizes, learning_rates, log_errors, parameters=1)
        return cls(power(misfit(data.log_batch / 2, data)[1]))


@dataclass(frozen=True)
class McCandlish:
    """ε = ε_max/(1 + B*/B): the best single step on a noisy quadratic (McCandlish et al. 2018, section 2.2).

    Parameters
    ----------
    maximum : float
        ε_max.
    noise_scale : float
        B*; 0 is a constant learning rate.

    Examples
    --------
    >>> sizes = [1, 8, 64]
    >>> rule = McCandlish.fit(sizes, [0.1 / (1 + 8 / b) for b in sizes])
    >>> round(rule.maximum, 6), round(rule.noise_scale, 6)
    (0.1, 8.0)
    """

    maximum: float
    noise_scale: float

    def __post_init__(self) -> None:
        parameter(self, "maximum")
        parameter(self, "noise_scale", zero=True)

    @property
    def parameters(self) -> dict[str, float]:
        """The fitted parameters by name."""
        return {"maximum": self.maximum, "noise_scale": self.noise_scale}

    def learning_rate(self, batch_size: Any) -> FloatArray:
        """Learning rate at each batch size."""
        return np.asarray(self.maximum / (1.0 + self.noise_scale / checks.batch_size(batch_size)))

    @classmethod
    def fit(cls, batch_sizes: Any, learning_rates: Any, *, log_errors: Any = None) -> Self:
        """The rule closest to data: see :meth:`RuleFamily.fit`."""
        data = fit_data(batch_sizes, learning_rates, log_errors, parameters=2)
        factor, place = fit_boundary(data, 1.0)
        return cls(power(factor), power(place))


@dataclass(frozen=True)
class MaBassilyBelkin:
    """The step that makes least squares with exact labels converge fastest (Ma, Bassily & Belkin 2018).

    Of θ along curvature λ, a step with a batch of B leaves at most the share

        1 − 2ελ + ε²(λβ + (B−1)λ²)/B,    β = max |x|²,

    of E θ², exactly so if all |x|² = β. The largest share over λ_n ≤ λ ≤ λ₁ is least at

        ε = B/(β + (B−1)λ_n)            for B ≤ 1 + β/(λ₁ − λ_n),
        ε = 2B/(β + (B−1)(λ₁ + λ_n))    beyond:

    linear with slope 1/β, then bending over to 2/λ₁. With all curvatures equal this is ε = B/(β + (B−1)λ₁), their rule
    for any smooth convex loss, and as a family of curves that of :class:`McCandlish`: no data can tell these apart.

    Parameters
    ----------
    beta : float
        β, the largest squared norm of an example's features.
    largest : float
        λ₁ ≤ β, the largest curvature.
    smallest : float
        λ_n, between 0 and `largest`. Not fitted: 0, for spectra with a long tail.

    Examples
    --------
    >>> rule = MaBassilyBelkin(beta=8.0, largest=1.0)
    >>> rule.learning_rate([1, 9, 93, np.inf])
    array([0.125, 1.125, 1.86 , 2.   ])
    """

    beta: float
    largest: float
    smallest: float = 0.0

    def __post_init__(self) -> None:
        beta, largest = parameter(self, "beta"), parameter(self, "largest")
        smallest = parameter(self, "smallest", zero=True)
        remedy = "Curvatures average squares of features, of which β is the largest."
        ordered = smallest <= largest <= beta * (1 + 1e-9)
        got = f"{smallest:g}, {largest:g}, {beta:g}"
        checks.require(ordered, "smallest, largest, beta", "smallest ≤ largest ≤ beta", got, remedy)

    @property
    def boundary_batch_size(self) -> float:
        """1 + β/(λ₁ − λ_n), where linear scaling ends; ``inf`` with all curvatures equal."""
        gap = self.largest - self.smallest
        return 1.0 + self.beta / gap if gap > 0 else float("inf")

    @property
    def parameters(self) -> dict[str, float]:
        """The fitted parameters by name."""
        return {"beta": self.beta, "largest": self.largest}

    def learning_rate(self, batch_size: Any) -> FloatArray:
        """Learning rate at each batch size."""
        # By B/B = 1, so that B = inf is no special case.
        inverse = 1.0 / checks.batch_size(batch_size)
        noise = self.beta * inverse
        with np.errstate(divide="ignore"):
            small = 1.0 / (noise + (1.0 - inverse) * self.smallest)
        large = 2.0 / (noise + (1.0 - inverse) * (self.largest + self.smallest))
        return np.asarray(np.minimum(small, large))

    @classmethod
    def fit(cls, batch_sizes: Any, learning_rates: Any, *, log_errors: Any = None) -> Self:
        """The rule with λ_n = 0 that is closest to data: see :meth:`RuleFamily.fit`."""
        data = fit_data(batch_sizes, learning_rates, log_errors, parameters=2)
        sizes = np.exp2(data.log_batch)

        def shape(log_beta: FloatArray) -> FloatArray:
            """Log₂ of the rule with λ₁ = 1."""
            beta = np.exp2(log_beta)[..., None]
            return np.log2(np.minimum(sizes / beta, 2.0 * sizes / (beta + sizes - 1.0)))

        kinks = np.log2(sizes[sizes > 2] - 1.0)
        grid = scan(0.0, float(data.log_batch.max()) + OCTAVES_BEYOND, kinks)
        log_beta = minimise(lambda b: misfit(shape(b), data)[0], grid)
        largest = -float(misfit(shape(np.array(log_beta)), data)[1])
        return cls(beta=power(log_beta + largest), largest=power(largest))


@dataclass(frozen=True, eq=False)
class NoisyQuadraticRule:
    """The optimum of a noisy quadratic under a budget, in the units of data: rate_scale·ε_opt(B/batch_scale).

    `problem` is a model of a network up to the size of its gradients and its noise; the two scales stand for these. A
    rule is made for a problem and then fitted, so here ``fit`` is called on an instance.

    Parameters
    ----------
    problem, budget, momentum, schedule
        As of :func:`~noisysgd.theory.optimal_learning_rate`, one momentum.
    batch_scale, rate_scale : float
        Multipliers of the batch size and the learning rate, > 0. Data on a line through zero fix only their ratio.

    Raises
    ------
    ValueError
        If problem and budget do not go together, or the problem starts at its minimum.

    Examples
    --------
    >>> from noisysgd import theory
    >>> problem, budget = theory.power_law(20), theory.EpochBudget(epochs=20, dataset_size=1024)
    >>> sizes = np.array([8, 32, 128, 512, 2048])
    >>> rates = 0.1 * theory.optimal_learning_rate(problem, budget, batch_size=sizes / 4)
    >>> rule = NoisyQuadraticRule(problem, budget).fit(sizes, rates)
    >>> round(rule.batch_scale, 1), round(rule.rate_scale, 2)
    (4.0, 0.1)
    """

    problem: NoisyQuadratic
    budget: Budget
    momentum: float = 0.0
    schedule: ScheduleFamily = half_then_decay
    batch_scale: float = 1.0
    rate_scale: float = 1.0

    def __post_init__(self) -> None:
        problem = sampled_from(self.problem, self.budget)
        remedy = "At its minimum a problem has no best learning rate."
        checks.require(bool(problem.initial_loss > 0), "problem", "a start with some loss", problem, remedy)
        checks.scalar("momentum", checks.momentum(self.momentum))
        parameter(self, "batch_scale")
        parameter(self, "rate_scale")

    @property
    def parameters(self) -> dict[str, float]:
        """The fitted parameters by name."""
        return {"batch_scale": self.batch_scale, "rate_scale": self.rate_scale}

    def learning_rate(self, batch_size: Any) -> FloatArray:
        """Learning rate at each batch size between batch_scale and batch_scale times the size of the data set."""
        size = checks.batch_size(batch_size)
        most = sampled_from(self.problem, self.budget).dataset_size or np.inf
        # Fitted scales put data on the border now and then, up to rounding.
        scaled = size / self.batch_scale
        slack = 1 + 1e-9
        inside = bool(np.all((scaled * slack >= 1) & ((scaled <= most * slack) | np.isinf(size))))
        expected = f"batch sizes in {self.batch_scale:g}…{self.batch_scale * most:g}"
        checks.require(inside, "batch_size", expected, batch_size, "The model has no batches of other sizes.")
        scaled = np.where(np.isinf(size), size, np.clip(scaled, 1.0, most))
        return np.asarray(self.rate_scale * self._optimum(scaled))

    def fit(self, batch_sizes: Any, learning_rates: Any, *, log_errors: Any = None) -> Self:
        """The two scales that bring this rule closest to data: see :meth:`RuleFamily.fit`.

        The optimum is tabulated and interpolated: right to about 1 % where it is smooth, less where it jumps by
        factors, as it does with momentum over a few dozen steps.
        """
        from scipy.interpolate import PchipInterpolator

        data = fit_data(batch_sizes, learning_rates, log_errors, parameters=2)
        size = sampled_from(self.problem, self.budget).dataset_size
        low, high = float(data.log_batch.min()), float(data.log_batch.max())
        top = high - low + OCTAVES_BEYOND if size is None else float(np.log2(size))
        remedy = "Give the model a larger data set."
        expected = f"batch sizes that span at most a factor of {size}"
        checks.require(high - low <= top + 1e-9, "batch_sizes", expected, batch_sizes, remedy)
        top = max(top, high - low)
        most = np.inf if size is None else size
        table = PchipInterpolator(*_tabulate(lambda x: np.log2(self._optimum(np.minimum(np.exp2(x), most))), top))

        def shape(log_scale: FloatArray) -> FloatArray:
            return np.asarray(table(np.clip(data.log_batch - log_scale[..., None], 0.0, top)))

        grid = scan(high - top, low, kinks=data.log_batch)
        log_scale = minimise(lambda s: misfit(shape(s), data)[0], grid)
        unscaled = replace(self, batch_scale=power(log_scale), rate_scale=1.0)
        exact = np.log2(unscaled.learning_rate(np.exp2(data.log_batch)))
        return replace(unscaled, rate_scale=power(misfit(exact, data)[1]))

    def _optimum(self, sizes: FloatArray) -> FloatArray:
        return optimal_learning_rate(
            self.problem, self.budget, batch_size=sizes, momentum=self.momentum, schedule=self.schedule
        )


RULES: tuple[RuleFamily, ...] = (LinearWithCap, SquareRoot, McCandlish, MaBassilyBelkin, SharpCorner)
"""The rules that need no problem."""


def compare_rules(
    batch_sizes: Any, learning_rates: Any, *, rules: Iterable[RuleFamily] = RULES, log_errors: Any = None
) -> "xr.Dataset":
    """Fits of several rules to the same data, best first.

    Rules are ranked by AICc, Akaike's criterion with its correction for few data: −2 log likelihood + 2k + 2k(k+1)/
    (K−k−1) for Gaussian errors in log₂ of the learning rate. Without `log_errors` their variance is one more parameter.
    A difference below 2 decides nothing, one of 10 leaves little for the other. With fewer than k + 2 data AICc is
    ``inf``: too few to choose.

    Parameters
    ----------
    batch_sizes, learning_rates, log_errors
        As of :meth:`RuleFamily.fit`.
    rules : iterable
        Rule classes, or instances of :class:`NoisyQuadraticRule`.

    Returns
    -------
    xarray.Dataset
        Over ``rule``: ``parameters`` as text, ``parameter_count``, ``rms`` residual in octaves, ``aicc``, and
        ``akaike_weight``, exp(−aicc/2) normalised: the share of the evidence.

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

    families = list(rules)
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
        rows.append((_akaike(residual, data, count), count, rms, text, type(rule).__name__))
    rows.sort(key=lambda row: row[:3])
    names = [row[-1] for row in rows]
    labels = [f"{name} {names[: k + 1].count(name)}" if names.count(name) > 1 else name for k, name in enumerate(names)]
    aicc = np.array([row[0] for row in rows])
    weight = np.exp((aicc[0] - aicc) / 2) if np.isfinite(aicc[0]) else np.full(aicc.size, np.nan)
    return xr.Dataset(
        {
            "parameters": ("rule", [row[3] for row in rows]),
            "parameter_count": ("rule", [row[1] for row in rows]),
            "rms": ("rule", [row[2] for row in rows]),
            "aicc": ("rule", aicc),
            "akaike_weight": ("rule", weight / weight.sum()),
        },
        coords={"rule": labels},
    )


def linear_scaling_exponent(
    batch_sizes: Any, learning_rates: Any, *, below: float | None = None, log_errors: Any = None
) -> tuple[float, float]:
    """Exponent α of ε ∝ B^α, and its standard error, by linear regression of log ε on log B.

    1 in the noise-dominated regime by the paper's theory (section 3.2), and ½ by the square-root rule.

    Parameters
    ----------
    batch_sizes, learning_rates : (K,) arrays
        Data.
    below : float, optional
        Use only B ≤ below, the boundary batch size; all by default.
    log_errors : scalar or (K,) array, optional
        Standard errors of log₂ of the learning rates. Without them the scatter about the line tells; pass them for data
        on a coarse grid, which can lie on a line by rounding.

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
    # Rounding in log₂ must not decide about a batch size of exactly `below`.
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


def _tabulate(function: Callable[[FloatArray], FloatArray], top: float) -> tuple[FloatArray, FloatArray]:
    """Arguments in 0…top and values of a costly function, finer where it bends or jumps."""
    x = np.linspace(0.0, top, int(np.ceil(top * TABULATED_PER_OCTAVE)) + 2)
    y = function(x)
    rough = np.ones(x.size - 1, dtype=bool)
    for _ in range(FINER_TABLES):
        left = np.flatnonzero(rough)
        if left.size == 0:
            break
        middle = (x[left] + x[left + 1]) / 2
        values = function(middle)
        bent = np.abs(values - (y[left] + y[left + 1]) / 2) > ROUGH
        x, y = np.insert(x, left + 1, middle), np.insert(y, left + 1, values)
        # Both halves of a bent interval are rough; np.insert has shifted the k-th of them by k.
        first = (left + np.arange(left.size))[bent]
        rough = np.zeros(x.size - 1, dtype=bool)
        rough[first] = rough[first + 1] = True
    return x, y


def _akaike(residual: FloatArray, data: Data, count: int) -> float:
    """AICc up to a constant that is the same for all rules."""
    n = residual.size
    if data.known:
        deviance = float((data.weight * residual**2).sum())
    else:
        deviance = n * float(np.log(max(float(np.mean(residual**2)), EXACT**2)))
        count += 1
    spare = n - count - 1
    return deviance + 2 * count + 2 * count * (count + 1) / spare if spare > 0 else float("inf")
