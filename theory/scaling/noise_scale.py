"""Gradient noise scales: the batch sizes at which noise stops mattering for the next step.

To second order a step of ε along a minibatch gradient changes the loss by −ε|G|² + ½ε²(GᵀHG + tr(HF)/B), with G the
gradient, H the curvature and F the covariance of one example's gradient. Minimising over ε gives the learning rate and
the noise scale of McCandlish et al. 2018 (arXiv 1812.06162); on a quadratic the second order is all there is.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.problems.quadratic import noise_factor


@dataclass(frozen=True, eq=False, init=False)
class NoiseScales:
    """Noise scales and best single steps, from four numbers about the place where the step is taken.

    Made by :func:`noise_scales` for a problem, or from measurements: gradients, Hessian-vector products, trace
    estimates. The formulas are those of McCandlish et al. 2018, section 2.2.

    Parameters
    ----------
    gradient_squared : array_like
        |G|² > 0.
    gradient_curvature : array_like
        GᵀHG ≥ 0.
    noise_trace : array_like
        tr F ≥ 0, the summed variance of one example's gradient.
    noise_curvature : array_like
        tr(HF) ≥ 0.
    dataset_size : int, optional
        Number N of examples, if batches are drawn from them without replacement: then 1/B below is (N−B)/((N−1)B).

    Raises
    ------
    ValueError
        For a gradient of zero, negative values, and shapes that do not broadcast.

    Examples
    --------
    >>> scales = NoiseScales(gradient_squared=2.0, gradient_curvature=4.0, noise_trace=30.0, noise_curvature=40.0)
    >>> float(scales.simple), float(scales.curvature_weighted), float(scales.largest_learning_rate)
    (15.0, 10.0, 0.5)
    >>> scales.optimal_learning_rate([10, np.inf])
    array([0.25, 0.5 ])
    """

    gradient_squared: FloatArray
    gradient_curvature: FloatArray
    noise_trace: FloatArray
    noise_curvature: FloatArray
    dataset_size: int | None

    def __init__(
        self,
        gradient_squared: Any,
        gradient_curvature: Any,
        noise_trace: Any,
        noise_curvature: Any,
        dataset_size: int | None = None,
    ) -> None:
        remedy = "The second-order model has no best step along negative curvature."
        values = {
            "gradient_squared": checks.at_least("gradient_squared", gradient_squared, 0.0, remedy="Pass |G|²."),
            "gradient_curvature": checks.at_least("gradient_curvature", gradient_curvature, 0.0, remedy=remedy),
            "noise_trace": checks.at_least("noise_trace", noise_trace, 0.0, remedy="Variances are not negative."),
            "noise_curvature": checks.at_least("noise_curvature", noise_curvature, 0.0, remedy=remedy),
        }
        sloped = bool(np.all(values["gradient_squared"] > 0))
        remedy = "Where the gradient vanishes no batch is large enough; look elsewhere."
        checks.require(sloped, "gradient_squared", "a gradient that is not zero", gradient_squared, remedy)
        if dataset_size is not None:
            dataset_size = checks.integer("dataset_size", dataset_size, 1, remedy="Pass the number of examples.")
        for name, value in zip(values, checks.broadcast(**values), strict=True):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "dataset_size", dataset_size)

    @property
    def simple(self) -> FloatArray:
        """B_simple = tr F/|G|², the batch size at which noise and gradient are of one length.

        >>> float(NoiseScales(2.0, 4.0, noise_trace=30.0, noise_curvature=40.0).simple)
        15.0
        """
        return np.asarray(self.noise_trace / self.gradient_squared)

    @property
    def curvature_weighted(self) -> FloatArray:
        """B_noise = tr(HF)/GᵀHG, the batch size at which noise halves the best step.

        :attr:`simple` with noise and gradient both weighted by the curvature H, and so equal to it where all curvatures
        are equal; ``inf`` for noise on a gradient without curvature.

        >>> float(NoiseScales(2.0, 4.0, noise_trace=30.0, noise_curvature=40.0).curvature_weighted)
        10.0
        """
        return _ratio(self.noise_curvature, self.gradient_curvature)

    @property
    def curvature(self) -> FloatArray:
        """Former name of :attr:`curvature_weighted`."""
        message = "NoiseScales.curvature is now called NoiseScales.curvature_weighted: it is a batch size."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self.curvature_weighted

    @property
    def largest_learning_rate(self) -> FloatArray:
        """ε_max = |G|²/GᵀHG, the best step without noise: steepest descent with line search.

        >>> float(NoiseScales(2.0, 4.0, noise_trace=30.0, noise_curvature=40.0).largest_learning_rate)
        0.5
        """
        return _ratio(self.gradient_squared, self.gradient_curvature)

    def optimal_learning_rate(self, batch_size: Any) -> FloatArray:
        """ε_opt = ε_max/(1 + B_noise/B), the best single step with batches of B.

        >>> NoiseScales(2.0, 4.0, noise_trace=30.0, noise_curvature=40.0).optimal_learning_rate([1, 10, 1000])
        array([0.04545455, 0.25      , 0.4950495 ])
        """
        return _ratio(self.gradient_squared, self._resistance(batch_size))

    def largest_improvement(self, batch_size: Any) -> FloatArray:
        """ΔL = ½|G|²·ε_opt, the expected fall of the loss in that step.

        >>> NoiseScales(2.0, 4.0, noise_trace=30.0, noise_curvature=40.0).largest_improvement([10, np.inf])
        array([0.25, 0.5 ])
        """
        return np.asarray(0.5 * self.gradient_squared * self.optimal_learning_rate(batch_size))

    def _resistance(self, batch_size: Any) -> FloatArray:
        """GᵀHG + tr(HF)/B, twice the coefficient of ε² in the loss."""
        size = checks.batch_size(batch_size, self.dataset_size)
        checks.broadcast(batch_size=size, noise_curvature=self.noise_curvature)
        return np.asarray(self.gradient_curvature + noise_factor(size, self.dataset_size) * self.noise_curvature)


def noise_scales(problem: NoisyQuadratic | LeastSquares, second_moment: Any = None) -> NoiseScales:
    """Noise scales of a problem: of its start, or wherever E θ² is as given.

    |G|² = Σ wλ²E θ², GᵀHG = Σ wλ³E θ², tr F = Σ wF, tr(HF) = Σ wλF; only the diagonal of a full covariance matters.
    Least squares has F = λ Σ wλE θ² + (κ−2)λ²E θ² + σ²λ. For a random θ these are ratios of expectations, so that
    the optimal learning rate is the best one for the expected loss.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
    second_moment : (..., D) array, optional
        E θ² of each mode; for a single point, θ². The start by default. Leading axes are kept: a training curve, say.

    Returns
    -------
    NoiseScales
        Of arrays of shape (...), drawing batches from the problem's data set where it knows the size.

    Raises
    ------
    ValueError
        For negative moments, shapes that do not match, or where the gradient vanishes.

    Examples
    --------
    >>> from noisysgd import theory
    >>> scales = noise_scales(theory.NoisyQuadratic([1.0, 0.1], noise=[1.0, 0.1]))
    >>> round(float(scales.simple), 4), round(float(scales.curvature_weighted), 4)
    (1.0891, 1.009)

    The noise scale grows as the loss falls.

    >>> noise_scales(theory.NoisyQuadratic([1.0], noise=1.0), second_moment=[[1.0], [0.01]]).simple
    array([  1., 100.])
    """
    kinds = isinstance(problem, NoisyQuadratic | LeastSquares)
    remedy = "Measured networks go into NoiseScales directly."
    checks.require(kinds, "problem", "a NoisyQuadratic or LeastSquares", problem, remedy)
    moment = problem.initial_second_moment
    if second_moment is not None:
        moment = checks.at_least("second_moment", second_moment, 0.0, remedy="Pass E θ², for a point θ².")
        fits = moment.ndim > 0 and moment.shape[-1] == problem.dim
        expected = f"shape (..., {problem.dim}), as the eigenvalues"
        checks.require(fits, "second_moment", expected, moment.shape, "Modes go along the last axis.")
    w, h = problem.weights, problem.eigenvalues
    noise = _one_example_noise(problem, moment)
    return NoiseScales(
        gradient_squared=(w * h**2 * moment).sum(-1),
        gradient_curvature=(w * h**3 * moment).sum(-1),
        noise_trace=(w * noise).sum(-1),
        noise_curvature=(w * h * noise).sum(-1),
        dataset_size=problem.dataset_size,
    )


def steps_and_examples(*, minimum_steps: Any, minimum_examples: Any, batch_size: Any) -> tuple[FloatArray, FloatArray]:
    """Steps S and examples E = BS needed at each batch size, on the hyperbola (S/S_min − 1)(E/E_min − 1) = 1.

    S = S_min(1 + B*/B) and E = E_min(1 + B/B*) with B* = E_min/S_min, at which both are twice their minimum
    (McCandlish et al. 2018, section 2.3). 1/S lies on the same curve as the optimal learning rate, which is how to fit
    S_min and B*: ``McCandlish.fit(batch_sizes, 1 / steps)`` has ``maximum`` 1/S_min and ``noise_scale`` B*.

    Parameters
    ----------
    minimum_steps, minimum_examples : array_like
        S_min > 0 and E_min > 0, the limits of large and of small batches.
    batch_size : array_like
        Batch sizes; all three broadcast.

    Returns
    -------
    steps, examples : arrays of the broadcast shape

    Raises
    ------
    ValueError
        For values that are not positive, and shapes that do not broadcast.

    Examples
    --------
    >>> steps_and_examples(minimum_steps=100, minimum_examples=6400, batch_size=[1, 64, np.inf])
    (array([6500.,  200.,  100.]), array([ 6500., 12800.,    inf]))
    """
    least_steps, least_examples, size = checks.broadcast(
        minimum_steps=_positive("minimum_steps", minimum_steps, "Training takes some steps."),
        minimum_examples=_positive("minimum_examples", minimum_examples, "Training takes some examples."),
        batch_size=checks.batch_size(batch_size),
    )
    return least_steps + least_examples / size, least_examples + least_steps * size


def interpolation_batch_size(*, largest_squared_norm: Any, largest_eigenvalue: Any) -> FloatArray:
    """m* = β/λ₁: where linear scaling ends for least squares that fits every example exactly.

    Below it m steps with batches of one do nearly what one step with a batch of m does; above it a batch does nearly
    what the whole data set does (Ma, Bassily & Belkin 2018). Learning rates: :class:`~noisysgd.theory.MaBassilyBelkin`.

    Parameters
    ----------
    largest_squared_norm : array_like
        β = max |x|² over examples (their features, for linear models), > 0.
    largest_eigenvalue : array_like
        λ₁ of the mean of x xᵀ, > 0; never beyond β.

    Returns
    -------
    array of the broadcast shape

    Raises
    ------
    ValueError
        For values that are not positive, and shapes that do not broadcast.

    Examples
    --------
    >>> float(interpolation_batch_size(largest_squared_norm=10.0, largest_eigenvalue=0.5))
    20.0
    """
    norm, curvature = checks.broadcast(
        largest_squared_norm=_positive("largest_squared_norm", largest_squared_norm, "Pass max |x|²."),
        largest_eigenvalue=_positive("largest_eigenvalue", largest_eigenvalue, "Pass λ₁ of the mean of x xᵀ."),
    )
    return np.asarray(norm / curvature)


@dataclass(frozen=True)
class NoiseScaleEstimate:
    """What :func:`two_batch_noise_scale` finds. Nothing is clamped: estimates of |G|² and tr F can come out negative.

    Attributes
    ----------
    noise_scale, noise_scale_error : float
        tr F/|G|² and its standard error to first order, ``inf`` unless `resolved`.
    interval : (float, float)
        Confidence interval (Fieller) of the noise scale. Unless `resolved` it has no upper end.
    resolved : bool
        Whether |G|² is clearly positive at the level `confidence`. If not, take more measurements or larger batches.
    gradient_squared, gradient_squared_error, noise_trace, noise_trace_error : float
        |G|² and tr F with their standard errors; both estimates are unbiased.
    confidence : float
        Level of the interval.
    """

    noise_scale: float
    noise_scale_error: float
    interval: tuple[float, float]
    resolved: bool
    gradient_squared: float
    gradient_squared_error: float
    noise_trace: float
    noise_trace_error: float
    confidence: float


def two_batch_noise_scale(
    small_squared_norms: Any,
    big_squared_norms: Any,
    *,
    small_batch_size: float,
    big_batch_size: float,
    dataset_size: int | None = None,
    paired: bool = False,
    confidence: float = 0.95,
) -> NoiseScaleEstimate:
    """The simple noise scale tr F/|G|², and both its parts, from squared norms of gradients at two batch sizes.

    A minibatch gradient has E|g|² = |G|² + γ(B) tr F. From means s and b over many measurements of either kind,

        tr F = (s − b)/(γ_s − γ_b),    |G|² = (γ_s b − γ_b s)/(γ_s − γ_b),

    and the noise scale is the ratio of these averages (McCandlish et al. 2018, appendix A.1, where γ = 1/B): an average
    of ratios would be biased at any number of measurements.

    *Whose gradient?* Given `dataset_size` N, batches are drawn from these examples without replacement, γ is
    (N−B)/((N−1)B), and the estimates are unbiased for the data set at hand: G its full-batch gradient, F the covariance
    over its examples, with denominator N. Without it γ = 1/B, which is unbiased for the distribution that examples come
    from (or for the data set, if drawn with replacement). The same measurements read without N give N/(N−1) tr F, the
    estimate of the distribution's variance, and |G|² − tr F/(N−1): averaging over the data set has left some noise in
    its gradient. Errors are those of drawing batches; that the data set is itself a draw is not in them.

    Parameters
    ----------
    small_squared_norms, big_squared_norms : (n,) and (m,) arrays
        |g|² of independent minibatches, at least two of each; a single one at B = N, which has no noise.
    small_batch_size, big_batch_size : float
        Their sizes, small < big, counted in independent units: in ghost batches where batch norm couples examples.
    dataset_size : int, optional
        N, see above.
    paired : bool
        Whether the k-th small and the k-th big measurement share examples, such as a worker's gradient and the mean
        over workers (average |g|² over the workers first). Their covariance is then accounted for.
    confidence : float
        Level of the interval, between 0 and 1.

    Returns
    -------
    NoiseScaleEstimate
        The interval is Fieller's, with Student's t at the smaller sample's degrees of freedom. Where |G|² is not
        clearly positive, a noise scale of any size beyond the lower end is compatible with the measurements.

    Raises
    ------
    ValueError
        For negative norms, too few of them, batch sizes out of order, or pairs that do not match.

    Examples
    --------
    >>> estimate = two_batch_noise_scale([9.0, 11.0, 10.0, 10.0], [3.0, 2.0], small_batch_size=1, big_batch_size=8)
    >>> round(estimate.gradient_squared, 2), round(estimate.noise_trace, 2), round(estimate.noise_scale, 2)
    (1.43, 8.57, 6.0)
    >>> estimate.resolved, estimate.interval[1]
    (False, inf)
    """
    small, big, factor_small, factor_big = _measurements(
        small_squared_norms, big_squared_norms, small_batch_size, big_batch_size, dataset_size
    )
    level = checks.scalar("confidence", confidence)
    checks.require(0 < level < 1, "confidence", "a level between 0 and 1", confidence, "0.95 is usual.")
    matched = not paired or small.size == big.size
    sizes = f"{small.size} and {big.size}"
    checks.require(matched, "paired", "as many small as big measurements", sizes, "Drop those without a partner.")

    # Covariance of the two means, then of (tr F, |G|²), which are linear in them; in units in which nothing overflows.
    unit = float(max(small.max(), big.max()))
    small, big = small / unit, big / unit
    means = np.array([small.mean(), big.mean()])
    cov = np.diag([_variance_of_mean(small), _variance_of_mean(big)])
    if paired and small.size > 1:
        cov[0, 1] = cov[1, 0] = ((small - means[0]) * (big - means[1])).sum() / (small.size * (small.size - 1))
    solve = np.array([[1.0, -1.0], [-factor_big, factor_small]]) / (factor_small - factor_big)
    trace, squared = (float(value) for value in solve @ means)
    cov = solve @ cov @ solve.T

    from scipy.special import stdtrit

    freedom = min(sample.size for sample in (small, big) if sample.size > 1) - 1
    quantile = float(stdtrit(freedom, 0.5 + level / 2))
    trace_error, squared_error = (float(np.sqrt(max(cov[k, k], 0.0))) for k in (0, 1))
    resolved = squared > quantile * squared_error
    ratio = float(_ratio(np.array(trace), np.array(squared)))
    spread = cov[0, 0] - 2 * ratio * cov[0, 1] + ratio**2 * cov[1, 1] if resolved else np.inf
    return NoiseScaleEstimate(
        noise_scale=ratio,
        noise_scale_error=float(np.sqrt(max(spread, 0.0)) / squared) if resolved else float("inf"),
        interval=_fieller(trace, squared, cov, quantile, resolved),
        resolved=resolved,
        gradient_squared=squared * unit,
        gradient_squared_error=squared_error * unit,
        noise_trace=trace * unit,
        noise_trace_error=trace_error * unit,
        confidence=level,
    )


def _one_example_noise(problem: NoisyQuadratic | LeastSquares, moment: FloatArray) -> FloatArray:
    """F_ii where E θ² is `moment`, shape (..., D)."""
    if isinstance(problem, LeastSquares):
        h = problem.eigenvalues
        doubled_loss = (problem.weights * h * moment).sum(-1, keepdims=True)
        return np.asarray(h * (doubled_loss + (problem.kurtosis - 2.0) * h * moment + problem.label_noise))
    return problem.noise_diagonal


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """numerator/denominator, with 0/0 = 0 and x/0 = ±inf."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.asarray(np.where(numerator == 0, 0.0, numerator / denominator))


def _positive(name: str, value: Any, remedy: str) -> FloatArray:
    array = checks.at_least(name, value, 0.0, remedy=remedy)
    checks.require(bool(np.all(array > 0)), name, "values > 0", value, remedy)
    return array


def _measurements(
    small: Any, big: Any, small_batch_size: Any, big_batch_size: Any, dataset_size: int | None
) -> tuple[FloatArray, FloatArray, float, float]:
    """Both samples and their noise factors, checked."""
    if dataset_size is not None:
        dataset_size = checks.integer("dataset_size", dataset_size, 2, remedy="Pass the number of examples.")
    sizes, factors = [], []
    for name, value in (("small_batch_size", small_batch_size), ("big_batch_size", big_batch_size)):
        size = checks.batch_size(checks.scalar(name, value), dataset_size, name)
        sizes.append(float(size))
        factors.append(float(noise_factor(size, dataset_size)))
    got = f"{sizes[0]:g} and {sizes[1]:g}"
    ordered = sizes[0] < sizes[1] and factors[0] > factors[1]
    checks.require(ordered, "small_batch_size, big_batch_size", "small < big", got, "Swap them.")
    samples = []
    for name, value, factor in (("small_squared_norms", small, factors[0]), ("big_squared_norms", big, factors[1])):
        sample = checks.at_least(name, value, 0.0, remedy="Pass squared norms |g|².")
        sample = checks.vector(name, sample)
        enough = sample.size > 1 or factor == 0
        remedy = "One alone says nothing about its spread."
        checks.require(enough, name, "at least two measurements", sample.size, remedy)
        samples.append(sample)
    some = bool(samples[0].any() or samples[1].any())
    checks.require(some, "small_squared_norms", "a gradient that is not zero throughout", small, "Look elsewhere.")
    return samples[0], samples[1], factors[0], factors[1]


def _variance_of_mean(sample: FloatArray) -> float:
    return float(sample.var(ddof=1) / sample.size) if sample.size > 1 else 0.0


def _fieller(trace: float, squared: float, cov: FloatArray, quantile: float, resolved: bool) -> tuple[float, float]:
    """All ρ for which trace − ρ·squared is within `quantile` standard errors of zero: aρ² − 2bρ + c ≤ 0.

    Unresolved, the solutions are the complement of an interval, or everything. Of those the hull of the part ρ ≥ 0 is
    returned, for a noise scale is not negative; a |G|² clearly below zero is taken to be as good as none.
    """
    a = squared**2 - quantile**2 * cov[1, 1]
    b = trace * squared - quantile**2 * cov[0, 1]
    c = trace**2 - quantile**2 * cov[0, 0]
    root = float(np.sqrt(max(b * b - a * c, 0.0)))
    if resolved:
        return float((b - root) / a), float((b + root) / a)
    # Where tr F is clear (c > 0) the roots have opposite signs, and ρ ≥ 0 begins at the positive one.
    clear = a <= 0 and c > 0 and b + root > 0
    return (float(c / (b + root)) if clear else 0.0), float("inf")
