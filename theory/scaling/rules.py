"""Scaling rules: how the best learning rate depends on the batch size, as curves that data can choose between.

Every rule has ``learning_rate`` and ``fit``, a least-squares fit of log₂ of the learning rate. Learning rates may be
plain or effective ones: rules return the kind that they were fitted to.

Optima are read off grids, so their errors are about as large as a grid step: rounding to the nearest power of two alone
makes an error of standard deviation 1/√12 = 0.29 octaves. If batch sizes are powers of two as well, rounding errors
along a straight line are all equal. Then they do not change exponents, but shift either asymptote by up to half an
octave, and so the boundary by up to one octave, however many data there are.

No fit descends into a local minimum: the overall factor is solved for, and the one parameter that is left, the boundary
batch size, is scanned. Where data show no boundary, the fitted one lies 2²⁰ times beyond them, as good as infinite, and
the rule's ``not_identified`` names the parameters that have no support in the data.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.optima.learning_rates import optimal_learning_rate, sampled_from
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.scaling.corner import fit_boundary
from noisysgd.theory.scaling.curve_fit import (
    EXACT,
    OCTAVES_BEYOND,
    FittedRule,
    fit_data,
    minimise,
    misfit,
    parameter,
    power,
    scan,
    unless_inside,
)
from noisysgd.theory.schedules.budget import Budget
from noisysgd.theory.schedules.schedule import ScheduleFamily, half_then_decay

if TYPE_CHECKING:
    pass


TABULATED_PER_OCTAVE = 2
FINER_TABLES = 4
"""How often a table may be refined, by halving intervals."""
ROUGH = 0.02
"""Error of linear interpolation, in octaves, above which an interval of a table is halved."""


class ScalingRule(Protocol):
    """A learning rate for every batch size."""

    @property
    def not_identified(self) -> tuple[str, ...]:
        """Names of the parameters that the data of the fit did not identify."""

    @property
    def parameters(self) -> dict[str, float]:
        """The fitted parameters by name."""

    def learning_rate(self, batch_size: ArrayLike) -> FloatArray:
        """Learning rate at each batch size; ``np.inf`` is allowed."""


class RuleFamily(Protocol):
    """A family of rules that can be fitted: a rule's class, or an instance of :class:`NoisyQuadraticRule`."""

    def fit(
        self, batch_sizes: ArrayLike, learning_rates: ArrayLike, *, log_errors: ArrayLike | None = None
    ) -> ScalingRule:
        """The rule of the family that is closest to data, with ``not_identified`` parameters named.

        Parameters
        ----------
        batch_sizes, learning_rates : (K,) arrays
            Data, with at least as many different batch sizes as the rule has parameters.
        log_errors : scalar or (K,) array, optional
            Standard errors > 0 of log₂ of the learning rates, in octaves, such as the ``log_error`` that
            :func:`~noisysgd.theory.optimum` returns, which includes the steps of the grid. All equal if not given.
        """


@dataclass(frozen=True)
class LinearWithCap(FittedRule):
    """ε = min(slope·B, cap): the linear scaling rule up to a sharp corner (paper, section 3).

    It is the limit p = ∞ of :class:`SharpCorner`. A fit to data that all lie below the corner has cap ``inf``, a fit to
    data that all lie above it slope ``inf``; that parameter is then not identified.

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
        """The batch size of the corner, cap/slope."""
        return self.cap / self.slope if self.slope < np.inf else 0.0

    @property
    def parameters(self) -> dict[str, float]:
        """The fitted parameters by name."""
        return {"slope": self.slope, "cap": self.cap}

    @ignoring_underflow
    def learning_rate(self, batch_size: ArrayLike) -> FloatArray:
        """Learning rate at each batch size."""
        return np.asarray(np.minimum(self.slope * checks.batch_size(batch_size), self.cap))

    @classmethod
    @ignoring_underflow
    def fit(cls, batch_sizes: ArrayLike, learning_rates: ArrayLike, *, log_errors: ArrayLike | None = None) -> Self:
        """The rule closest to data, exactly: see :meth:`RuleFamily.fit`."""
        data = fit_data(batch_sizes, learning_rates, log_errors, parameters=2)
        x, ratio = data.log_batch, data.log_rate - data.log_batch
        # Between two neighbouring batch sizes χ² is a parabola in log₂ of the corner's batch size: its vertex or an end
        # is lowest. At the vertex, slope and cap are the separate means of the data on either side.
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
        # A corner at the first or last batch size fits as well as one anywhere beyond: then the data show none.
        slack = 1e-9 * misfits[best] + EXACT**2 * 1e-6 * data.weight.sum()
        flat, linear = (float(misfits[corners.index(edge)]) for edge in (x.min(), x.max()))
        if linear <= misfits[best] + slack:
            slope = power(np.average(ratio, weights=data.weight))
            return cls(slope=slope, cap=float("inf"), not_identified=("cap",))
        if flat <= misfits[best] + slack:
            cap = power(np.average(data.log_rate, weights=data.weight))
            return cls(slope=float("inf"), cap=cap, not_identified=("slope",))
        return cls(slope=power(factors[best] - places[best]), cap=power(factors[best]))


@dataclass(frozen=True)
class SquareRoot(FittedRule):
    """ε = coefficient·√B: the covariance of an update does not change with the batch size (Krizhevsky 2014).

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

    @ignoring_underflow
    def learning_rate(self, batch_size: ArrayLike) -> FloatArray:
        """Learning rate at each batch size."""
        return np.asarray(self.coefficient * np.sqrt(checks.batch_size(batch_size)))

    @classmethod
    @ignoring_underflow
    def fit(cls, batch_sizes: ArrayLike, learning_rates: ArrayLike, *, log_errors: ArrayLike | None = None) -> Self:
        """The rule closest to data: see :meth:`RuleFamily.fit`."""
        data = fit_data(batch_sizes, learning_rates, log_errors, parameters=1)
        return cls(power(misfit(data.log_batch / 2, data)[1]))


@dataclass(frozen=True)
class McCandlish(FittedRule):
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

    @ignoring_underflow
    def learning_rate(self, batch_size: ArrayLike) -> FloatArray:
        """Learning rate at each batch size."""
        return np.asarray(self.maximum / (1.0 + self.noise_scale / checks.batch_size(batch_size)))

    @classmethod
    @ignoring_underflow
    def fit(cls, batch_sizes: ArrayLike, learning_rates: ArrayLike, *, log_errors: ArrayLike | None = None) -> Self:
        """The rule closest to data: see :meth:`RuleFamily.fit`."""
        data = fit_data(batch_sizes, learning_rates, log_errors, parameters=2)
        factor, place = fit_boundary(data, 1.0)
        lacking = unless_inside(place, data, below=("noise_scale",), above=("maximum", "noise_scale"))
        return cls(power(factor), power(place), not_identified=lacking)


@dataclass(frozen=True)
class MaBassilyBelkin(FittedRule):
    """The step that makes least squares with exact labels converge fastest (Ma, Bassily & Belkin 2018).

    A step with a batch of B multiplies E θ² of a mode with curvature λ by at most

        1 − 2ελ + ε²(λβ + (B−1)λ²)/B,    β = max |x|²,

    and by exactly that if all |x|² = β. The largest of these factors over λ_n ≤ λ ≤ λ₁ is smallest for

        ε = B/(β + (B−1)λ_n)            for B ≤ 1 + β/(λ₁ − λ_n),
        ε = 2B/(β + (B−1)(λ₁ + λ_n))    beyond.

    This rises with slope 1/β at first and then bends over to 2/(λ₁ + λ_n). If all curvatures are equal, it is
    ε = B/(β + (B−1)λ₁), their rule for any smooth convex loss. As a family of curves that is :class:`McCandlish`: no
    data can tell the two apart.

    Parameters
    ----------
    beta : float
        β, the largest squared norm of the features of a training example.
    largest : float
        λ₁ ≤ β, the largest curvature.
    smallest : float
        λ_n, between 0 and `largest`. It is not fitted: 0 is right for spectra with a long tail.

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

    @ignoring_underflow
    def learning_rate(self, batch_size: ArrayLike) -> FloatArray:
        """Learning rate at each batch size."""
        # Numerators and denominators divided by B, so that B = inf is no special case.
        inverse = 1.0 / checks.batch_size(batch_size)
        noise = self.beta * inverse
        with np.errstate(divide="ignore"):
            small = 1.0 / (noise + (1.0 - inverse) * self.smallest)
        large = 2.0 / (noise + (1.0 - inverse) * (self.largest + self.smallest))
        return np.asarray(np.minimum(small, large))

    @classmethod
    @ignoring_underflow
    def fit(cls, batch_sizes: ArrayLike, learning_rates: ArrayLike, *, log_errors: ArrayLike | None = None) -> Self:
        """The rule with λ_n = 0 that is closest to data: see :meth:`RuleFamily.fit`."""
        data = fit_data(batch_sizes, learning_rates, log_errors, parameters=2)
        sizes = np.exp2(data.log_batch)

        def shape(log_beta: FloatArray) -> FloatArray:
            """Log₂ of the rule with λ₁ = 1."""
            beta = np.exp2(log_beta)[..., None]
            return np.log2(np.minimum(sizes / beta, 2.0 * sizes / (beta + sizes - 1.0)))

        # The rule bends at B = 1 + β, so for given data the misfit has kinks at β = B − 1.
        kinks = np.log2(sizes[sizes > 2] - 1.0)
        grid = scan(0.0, float(data.log_batch.max()) + OCTAVES_BEYOND, kinks)
        log_beta = minimise(lambda b: misfit(shape(b), data)[0], grid)
        # The rule for β and λ₁ is 1/λ₁ times that for β/λ₁ and 1: the best factor is 1/λ₁, and log_beta log₂ of β/λ₁.
        largest = -float(misfit(shape(np.array(log_beta)), data)[1])
        # Linear data have β as slope and say nothing of λ₁; for constant ones it is the other way round.
        bend = float(np.log2(1.0 + power(log_beta)))
        lacking = ("beta",) if log_beta <= 1e-6 else unless_inside(bend, data, below=("beta",), above=("largest",))
        return cls(beta=power(log_beta + largest), largest=power(largest), not_identified=lacking)


@dataclass(frozen=True)
class NoisyQuadraticRule(FittedRule):
    """The optimal learning rate ε_opt of a noisy quadratic under a budget, rescaled: rate_scale·ε_opt(B/batch_scale).

    `problem` models a network up to the sizes of its gradients and its noise, for which the two scales stand.
    Unlike other rules, which are fitted by their class, this one is made for a problem, and ``fit`` called on that.

    Parameters
    ----------
    problem, budget, momentum, schedule
        As of :func:`~noisysgd.theory.optimal_learning_rate`, one momentum.
    batch_scale, rate_scale : float
        Multipliers of the batch size and the learning rate, > 0. Data with ε ∝ B determine only their ratio.

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

    @ignoring_underflow
    def learning_rate(self, batch_size: ArrayLike) -> FloatArray:
        """Learning rate at each batch size between batch_scale and batch_scale times the size of the data set."""
        size = checks.batch_size(batch_size)
        most = sampled_from(self.problem, self.budget).dataset_size or np.inf
        # A fitted scale may put the smallest or largest batch size on the border of the range, up to rounding.
        scaled = size / self.batch_scale
        slack = 1 + 1e-9
        inside = bool(np.all((scaled * slack >= 1) & ((scaled <= most * slack) | np.isinf(size))))
        expected = f"batch sizes in {self.batch_scale:g}…{self.batch_scale * most:g}"
        checks.require(inside, "batch_size", expected, batch_size, "The model has no batches of other sizes.")
        scaled = np.where(np.isinf(size), size, np.clip(scaled, 1.0, most))
        return np.asarray(self.rate_scale * self._optimum(scaled))

    @ignoring_underflow
    def fit(self, batch_sizes: ArrayLike, learning_rates: ArrayLike, *, log_errors: ArrayLike | None = None) -> Self:
        """The rule with the two scales that are closest to data: see :meth:`RuleFamily.fit`.

        The optimum is tabulated and interpolated. That is accurate to about 1 % where it is smooth, and less so where
        it jumps by factors, as it does with momentum over a few dozen steps.
        """
        from scipy.interpolate import PchipInterpolator

        data = fit_data(batch_sizes, learning_rates, log_errors, parameters=2)
        size = sampled_from(self.problem, self.budget).dataset_size
        # The model has batch sizes 1…N, and the scaled data have to lie among them. With unlimited N the table reaches
        # as far beyond the data as corners are looked for.
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
        # Data along a straight line agree with all scales from some place on to the end of the range.
        heights = misfit(shape(np.array([grid[0], log_scale, grid[-1]])), data)[0]
        slack = 1e-6 * heights[1] + EXACT**2 * data.weight.sum()
        open_ended = grid.size > 1 and min(heights[0], heights[2]) <= heights[1] + slack
        lacking = ("batch_scale", "rate_scale") if open_ended else ()
        # With the batch scale found on the table, the rate scale is fitted to the exact optima.
        unscaled = replace(self, batch_scale=power(log_scale), rate_scale=1.0, not_identified=lacking)
        exact = np.log2(unscaled.learning_rate(np.exp2(data.log_batch)))
        return replace(unscaled, rate_scale=power(misfit(exact, data)[1]))

    def _optimum(self, sizes: FloatArray) -> FloatArray:
        return optimal_learning_rate(
            self.problem, self.budget, batch_size=sizes, momentum=self.momentum, schedule=self.schedule
        )


def _tabulate(function: Callable[[FloatArray], FloatArray], top: float) -> tuple[FloatArray, FloatArray]:
    """A table of a costly function on 0…top, as arguments and values, finer where the function bends or jumps."""
    x = np.linspace(0.0, top, int(np.ceil(top * TABULATED_PER_OCTAVE)) + 2)
    y = function(x)
    rough = np.ones(x.size - 1, dtype=bool)
    for _ in range(FINER_TABLES):
        left = np.flatnonzero(rough)
        if left.size == 0:
            break
        middle = (x[left] + x[left + 1]) / 2
        values = function(middle)
        # Where linear interpolation misses the value in the middle, both halves are divided again.
        bent = np.abs(values - (y[left] + y[left + 1]) / 2) > ROUGH
        x, y = np.insert(x, left + 1, middle), np.insert(y, left + 1, values)
        # The k-th interval that was divided has moved up by k, since np.insert put k midpoints before it.
        first = (left + np.arange(left.size))[bent]
        rough = np.zeros(x.size - 1, dtype=bool)
        rough[first] = rough[first + 1] = True
    return x, y
