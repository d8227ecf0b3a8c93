"""Gradient noise scales: the batch sizes at which noise stops mattering for the next step.

To second order, a step with learning rate ε along a minibatch gradient is expected to change the loss by
−ε|G|² + ½ε²(GᵀHG + tr(HF)/B), with G the full gradient, H the Hessian and F the covariance of the gradient of one
training example. Minimising this over ε gives the learning rate and the noise scale of McCandlish et al. 2018
(arXiv 1812.06162). On a quadratic the expansion is exact.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.values import ByValue
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.problems.quadratic import noise_factor


@dataclass(frozen=True, eq=False, init=False)
class NoiseScales(ByValue):
    """Noise scales and best single steps, from four numbers about the point where the step is taken.

    :func:`noise_scales` computes them for a problem. For a network they can be measured with gradients, Hessian-vector
    products and trace estimates. The formulas are those of McCandlish et al. 2018, section 2.2.

    Parameters
    ----------
    gradient_squared : array_like
        |G|² > 0.
    gradient_curvature : array_like
        GᵀHG ≥ 0.
    noise_trace : array_like
        tr F ≥ 0, the summed variance of the gradient of one training example.
    noise_curvature : array_like
        tr(HF) ≥ 0.
    dataset_size : int, optional
        Number N of training examples, if batches are drawn from them without replacement: then (N−B)/((N−1)B) takes
        the place of 1/B below.

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
        gradient_squared: ArrayLike,
        gradient_curvature: ArrayLike,
        noise_trace: ArrayLike,
        noise_curvature: ArrayLike,
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
        self._freeze(**dict(zip(values, checks.broadcast(**values), strict=True)))
        object.__setattr__(self, "dataset_size", dataset_size)

    @property
    @ignoring_underflow
    def simple(self) -> FloatArray:
        """B_simple = tr F/|G|², the batch size at which the noise of a minibatch gradient is as long as the gradient.

        >>> float(NoiseScales(2.0, 4.0, noise_trace=30.0, noise_curvature=40.0).simple)
        15.0
        """
        return np.asarray(self.noise_trace / self.gradient_squared)

    @property
    @ignoring_underflow
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
    @ignoring_underflow
    def largest_learning_rate(self) -> FloatArray:
        """ε_max = |G|²/GᵀHG, the best step without noise: steepest descent with line search.

        >>> float(NoiseScales(2.0, 4.0, noise_trace=30.0, noise_curvature=40.0).largest_learning_rate)
        0.5
        """
        return _ratio(self.gradient_squared, self.gradient_curvature)

    @ignoring_underflow
    def optimal_learning_rate(self, batch_size: ArrayLike) -> FloatArray:
        """ε_opt = ε_max/(1 + B_noise/B), the learning rate of the best single step with a batch of B.

        >>> NoiseScales(2.0, 4.0, noise_trace=30.0, noise_curvature=40.0).optimal_learning_rate([1, 10, 1000])
        array([0.04545455, 0.25      , 0.4950495 ])
        """
        return _ratio(self.gradient_squared, self._resistance(batch_size))

    @ignoring_underflow
    def largest_improvement(self, batch_size: ArrayLike) -> FloatArray:
        """ΔL = ½|G|²·ε_opt, by which the loss is expected to fall in the best single step.

        >>> NoiseScales(2.0, 4.0, noise_trace=30.0, noise_curvature=40.0).largest_improvement([10, np.inf])
        array([0.25, 0.5 ])
        """
        return np.asarray(0.5 * self.gradient_squared * self.optimal_learning_rate(batch_size))

    def _resistance(self, batch_size: ArrayLike) -> FloatArray:
        """GᵀHG + tr(HF)/B, twice the coefficient of ε² in the loss."""
        size = checks.batch_size(batch_size, self.dataset_size)
        checks.broadcast(batch_size=size, noise_curvature=self.noise_curvature)
        return np.asarray(self.gradient_curvature + noise_factor(size, self.dataset_size) * self.noise_curvature)


@ignoring_underflow
def noise_scales(problem: NoisyQuadratic | LeastSquares, second_moment: ArrayLike | None = None) -> NoiseScales:
    """Noise scales of a problem, at its start or at points with the given E θ².

    |G|² = Σ wλ²E θ², GᵀHG = Σ wλ³E θ², tr F = Σ wF, tr(HF) = Σ wλF; only the diagonal of a full covariance matters.
    Least squares has F = λ Σ wλE θ² + (κ−2)λ²E θ² + σ²λ. For a random θ the noise scales are ratios of expectations, so
    that the optimal learning rate is the best one for the expected loss.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
    second_moment : (..., D) array, optional
        E θ² of each mode, by default at the start; θ² for a single point. Leading axes may be the points of a training
        curve, for instance.

    Returns
    -------
    NoiseScales
        With arrays of shape (...), and with the size of the problem's data set if that is known.

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
        moment = checks.nonnegative("second_moment", second_moment, remedy="Pass E θ², for a point θ².")
        fits = moment.ndim > 0 and moment.shape[-1] == problem.dim
        expected = f"shape (..., {problem.dim}), as the eigenvalues"
        checks.require(fits, "second_moment", expected, moment.shape, "Modes go along the last axis.")
    w, h = problem.weights, problem.eigenvalues
    noise = one_example_noise(problem, moment)
    squared = h * (h * moment)  # in this order whatever the units
    return NoiseScales(
        gradient_squared=(w * squared).sum(-1),
        gradient_curvature=(w * h * squared).sum(-1),
        noise_trace=(w * noise).sum(-1),
        noise_curvature=(w * h * noise).sum(-1),
        dataset_size=problem.dataset_size,
    )


@ignoring_underflow
def steps_and_examples(
    *, minimum_steps: ArrayLike, minimum_examples: ArrayLike, batch_size: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Steps S and training examples E = BS needed at each batch size, on the hyperbola (S/S_min − 1)(E/E_min − 1) = 1.

    S = S_min(1 + B*/B) and E = E_min(1 + B/B*). At B* = E_min/S_min both are twice their minimum (McCandlish et al.
    2018, section 2.3). As a function of B, 1/S has the same form as the optimal learning rate, so S_min and B* can be
    fitted by ``McCandlish.fit(batch_sizes, 1 / steps)``: its ``maximum`` is 1/S_min, its ``noise_scale`` B*.

    Parameters
    ----------
    minimum_steps, minimum_examples : array_like
        S_min > 0 and E_min > 0, the limits of large and of small batches.
    batch_size : array_like
        Batch sizes; all three broadcast.

    Returns
    -------
    steps, examples : arrays of the broadcast shape
        S and E.

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


@ignoring_underflow
def interpolation_batch_size(*, largest_squared_norm: ArrayLike, largest_eigenvalue: ArrayLike) -> FloatArray:
    """m* = β/λ₁, the batch size where linear scaling ends for least squares that can fit every example exactly.

    Below m*, one step with a batch of m does nearly as much as m steps with single examples; above it, hardly less than
    a step with the whole data set (Ma, Bassily & Belkin 2018). The learning rates that belong to this are those of
    :class:`~noisysgd.theory.MaBassilyBelkin`.

    Parameters
    ----------
    largest_squared_norm : array_like
        β = max |x|² > 0 over the training examples, with x the features of one.
    largest_eigenvalue : array_like
        λ₁ > 0, the largest eigenvalue of the mean of x xᵀ; it is at most β.

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
    """Result of :func:`two_batch_noise_scale`. Unbiased estimates of |G|² and tr F can be negative, and are left so.

    Attributes
    ----------
    noise_scale, noise_scale_error : float
        tr F/|G|², and its standard error to first order, which is ``inf`` unless `resolved`.
    interval : (float, float)
        Confidence interval (Fieller) of the noise scale. Its upper end is ``inf`` unless `resolved`.
    resolved : bool
        Whether |G|² is significantly positive at the level `confidence`. If not, take more measurements or larger
        batches.
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


@ignoring_underflow
def two_batch_noise_scale(
    small_squared_norms: ArrayLike,
    big_squared_norms: ArrayLike,
    *,
    small_batch_size: float,
    big_batch_size: float,
    dataset_size: int | None = None,
    paired: bool = False,
    confidence: float = 0.95,
) -> NoiseScaleEstimate:
    """The simple noise scale tr F/|G|², and both its parts, from squared norms of gradients at two batch sizes.

    A minibatch gradient has E|g|² = |G|² + γ(B) tr F. With s and b the means of |g|² over many small and many big
    batches,

        tr F = (s − b)/(γ_s − γ_b),    |G|² = (γ_s b − γ_b s)/(γ_s − γ_b),

    and the noise scale is the ratio of these averages (McCandlish et al. 2018, appendix A.1, where γ = 1/B). An average
    of ratios would be biased however many measurements there are.

    *Whose gradient?* With `dataset_size` N, batches are drawn without replacement from N training examples and γ is
    (N−B)/((N−1)B). The estimates are then unbiased for this data set: G is its full-batch gradient, F the covariance
    over its examples, with denominator N. Without N, γ = 1/B, and the estimates are unbiased for the distribution that
    the examples come from (or for the data set, if batches are drawn from it with replacement). If N is left out for
    batches that were drawn without replacement, the results are N/(N−1) tr F, the estimate of the distribution's
    variance, and |G|² − tr F/(N−1), since the gradient of the data set still has some noise. The errors are those of
    drawing batches from the data set; that it is itself a random sample is not included.

    Parameters
    ----------
    small_squared_norms, big_squared_norms : (n,) and (m,) arrays
        |g|² of independent minibatches, at least two of each size; one is enough at B = N, where there is no noise.
    small_batch_size, big_batch_size : float
        Their sizes, small < big, counted in independent units: in ghost batches if batch norm couples examples.
    dataset_size : int, optional
        N, see above.
    paired : bool
        Whether the k-th small and the k-th big measurement share examples, as the gradient of one worker and the mean
        over all workers do (average the workers' |g|² first). Their covariance is then taken into account.
    confidence : float
        Level of the interval, between 0 and 1.

    Returns
    -------
    NoiseScaleEstimate
        Its interval is Fieller's, with Student's t for the degrees of freedom of the smaller sample. If |G|² may be
        zero, every noise scale above the lower end is compatible with the measurements.

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
    paired = checks.boolean("paired", paired)
    matched = not paired or small.size == big.size
    sizes = f"{small.size} and {big.size}"
    checks.require(matched, "paired", "as many small as big measurements", sizes, "Drop those without a partner.")

    # First the covariance of the two means, then that of (tr F, |G|²), which are linear in them. Norms are divided by
    # the largest, so that no square overflows.
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

    # Both samples have a spread of their own: the smaller number of degrees of freedom is on the safe side.
    freedom = min(sample.size for sample in (small, big) if sample.size > 1) - 1
    quantile = float(stdtrit(freedom, 0.5 + level / 2))
    trace_error, squared_error = (float(np.sqrt(max(cov[k, k], 0.0))) for k in (0, 1))
    resolved = squared > quantile * squared_error
    ratio = float(_ratio(np.array(trace), np.array(squared)))
    # Variance of tr F − ρ|G|² at the estimated ratio ρ; over |G|⁴ it is that of ρ to first order.
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


def one_example_noise(problem: NoisyQuadratic | LeastSquares, moment: FloatArray) -> FloatArray:
    """F_ii, the noise of one training example's gradient, at points with E θ² = `moment`; both (..., D)."""
    if isinstance(problem, LeastSquares):
        h = problem.eigenvalues
        doubled_loss = (problem.weights * h * moment).sum(-1, keepdims=True)
        return np.asarray(h * (doubled_loss + (problem.kurtosis - 2.0) * h * moment + problem.label_noise))
    return problem.noise_diagonal


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """numerator/denominator, with 0/0 = 0 and x/0 = ±inf."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.asarray(np.where(numerator == 0, 0.0, numerator / denominator))


def _positive(name: str, value: ArrayLike, remedy: str) -> FloatArray:
    """`value` as an array, checked to be positive."""
    array = checks.at_least(name, value, 0.0, remedy=remedy)
    checks.require(bool(np.all(array > 0)), name, "values > 0", value, remedy)
    return array


def _measurements(
    small: ArrayLike, big: ArrayLike, small_batch_size: float, big_batch_size: float, dataset_size: int | None
) -> tuple[FloatArray, FloatArray, float, float]:
    """The samples of small and of big batches and the noise factors of both, checked."""
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
    for name, norms, factor in (("small_squared_norms", small, factors[0]), ("big_squared_norms", big, factors[1])):
        sample = checks.at_least(name, norms, 0.0, remedy="Pass squared norms |g|².")
        sample = checks.vector(name, sample)
        enough = sample.size > 1 or factor == 0
        remedy = "One alone says nothing about its spread."
        checks.require(enough, name, "at least two measurements", sample.size, remedy)
        samples.append(sample)
    some = bool(samples[0].any() or samples[1].any())
    checks.require(some, "small_squared_norms", "a gradient that is not zero throughout", small, "Look elsewhere.")
    return samples[0], samples[1], factors[0], factors[1]


def _variance_of_mean(sample: FloatArray) -> float:
    """Of a single measurement zero, since that is allowed only where there is no noise."""
    return float(sample.var(ddof=1) / sample.size) if sample.size > 1 else 0.0


def _fieller(trace: float, squared: float, cov: FloatArray, quantile: float, resolved: bool) -> tuple[float, float]:
    """The interval of all ρ for which trace − ρ·squared is within `quantile` standard errors of zero.

    Squared, this is aρ² − 2bρ + c ≤ 0. If |G|² is not `resolved`, the solutions are the complement of an interval, or
    all numbers. Noise scales are not negative, so the smallest interval with all solutions ρ ≥ 0 is returned. A |G|²
    clearly below zero is treated like one that may be zero.
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
