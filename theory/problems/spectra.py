"""Problems with named spectra.

All but one have gradient noise F = Λ and E θ₀² = 1, as in Zhang et al. 2019. For noise that grows with the loss, pass
their eigenvalues on: ``LeastSquares(power_law(100).eigenvalues)``. :func:`source_capacity` is least squares already.
"""

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.whole_parts import whole_part
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic

MOST_MODES = 2**28
"""Of a spectrum that is made here: its curvatures take 2 GB."""


@ignoring_underflow
def power_law(dim: int, exponent: float = 1.0, *, dataset_size: int | None = None) -> NoisyQuadratic:
    """The spectrum λ_i = i^−exponent, i = 1…dim.

    The standard problem of Zhang et al. 2019 (there with exponent 1 and dim 10 000).

    Raises
    ------
    ValueError
        If `dim` is not a positive integer or `exponent` is negative or not finite.

    Examples
    --------
    >>> round(float(power_law(10_000).initial_loss), 6)
    4.893803
    """
    dim = checks.integer("dim", dim, 1, maximum=MOST_MODES, remedy="Pass the number of modes.")
    exponent = checks.scalar(
        "exponent", checks.at_least("exponent", exponent, 0.0, remedy="The spectrum i^−exponent does not grow.")
    )
    eigenvalues = np.arange(1, dim + 1, dtype=np.float64) ** -exponent
    return NoisyQuadratic(eigenvalues, noise=eigenvalues, dataset_size=dataset_size)


@ignoring_underflow
def source_capacity(
    dim: int, *, capacity: float, source: float, label_noise: float = 0.0, dataset_size: int | None = None
) -> LeastSquares:
    r"""Least squares with power laws for the spectrum and for the target, the setting of kernel regression.

    λ_k = k^−capacity, and training has to move θ by θ_k ∝ k^−(1 + capacity (2 source − 1))/2, scaled so that the loss
    starts at ½. Then λ_k θ_k² ∝ k^−(1 + 2·capacity·source), and gradient descent without noise has a loss that falls as
    t^−2·source until it reaches the smallest curvature (source and capacity conditions of Caponnetto & De Vito 2007,
    in the notation of Cui, Loureiro, Krzakala & Zdeborová 2021, arXiv 2105.15004).

    Parameters
    ----------
    dim : int
        Number D of modes.
    capacity : float
        Exponent α > 1 of the spectrum, for which the trace stays finite as D grows.
    source : float
        Exponent r > 0 of the target: the larger, the more of it lies along steep directions.
    label_noise : float
        Variance σ² ≥ 0 of the labels' noise.
    dataset_size : int, optional
        Number of training examples, as for :class:`LeastSquares`.

    Raises
    ------
    ValueError
        For values out of these ranges.

    Examples
    --------
    >>> from noisysgd import theory
    >>> problem = source_capacity(10_000, capacity=1.5, source=0.5)
    >>> settings = {"learning_rate": 0.5, "batch_size": float("inf"), "at": [100, 1000]}
    >>> early, late = theory.loss_curve(problem, theory.constant(1000), **settings)
    >>> round(float(np.log10(early / late)), 2)  # 2 · source
    1.0
    """
    dim = checks.integer("dim", dim, 1, maximum=MOST_MODES, remedy="Pass the number of modes.")
    alpha, r = checks.scalar("capacity", capacity), checks.scalar("source", source)
    checks.require(1 < alpha < 1e3, "capacity", "an exponent > 1", capacity, "Use LeastSquares for other spectra.")
    checks.require(0 < r < 1e3, "source", "an exponent > 0", source, "Larger is easier; 0.5 is a usual choice.")
    index = np.arange(1, dim + 1, dtype=np.float64)
    eigenvalues = index**-alpha
    energies = index ** -(1.0 + 2.0 * alpha * r)
    # Exponents beyond the range of floating point leave flat modes without a displacement.
    mean = np.sqrt(np.divide(energies / energies.sum(), eigenvalues, out=np.zeros(dim), where=eigenvalues > 0))
    return LeastSquares(eigenvalues, label_noise, mean, 0.0, dataset_size)


@ignoring_underflow
def two_scale(
    dim: int, condition_number: float, *, steep: float = 0.5, dataset_size: int | None = None
) -> NoisyQuadratic:
    """Two curvatures, 1 and 1/condition_number: the simplest spectrum on which momentum can speed SGD up.

    Parameters
    ----------
    dim : int
        Number of modes, ≥ 2.
    condition_number : float
        Ratio ≥ 1 of the larger curvature to the smaller.
    steep : float
        Share of the modes that have curvature 1, between 0 and 1; the number is rounded, half a mode up,
        so that both curvatures occur.

    Raises
    ------
    ValueError
        For values out of these ranges.

    Examples
    --------
    >>> two_scale(4, 100.0).eigenvalues
    array([1.  , 1.  , 0.01, 0.01])
    """
    dim = checks.integer("dim", dim, 2, maximum=MOST_MODES, remedy="Two scales need two modes.")
    remedy = "It is the ratio of the larger curvature to the smaller."
    ratio = checks.scalar("condition_number", checks.at_least("condition_number", condition_number, 1.0, remedy=remedy))
    share = checks.scalar("steep", steep)
    checks.require(0 < share < 1, "steep", "a share between 0 and 1", steep, "Half of the modes is the default.")
    # ⌊2·share·dim⌋ and one more, halved: rounded without the rounding error of a product of floats.
    count = min(max((whole_part(share, 2 * dim) + 1) // 2, 1), dim - 1)
    eigenvalues = np.where(np.arange(dim) < count, 1.0, 1.0 / ratio)
    return NoisyQuadratic(eigenvalues, noise=eigenvalues, dataset_size=dataset_size)


@ignoring_underflow
def marchenko_pastur(dim: int, ratio: float, *, dataset_size: int | None = None) -> NoisyQuadratic:
    """Quantiles of the Marchenko–Pastur law, the distribution of curvatures of least squares on random inputs.

    The limiting spectrum of XᵀX/n for n × d matrices X with independent entries of variance 1 and d/n → `ratio`:
    density √((λ₊−λ)(λ−λ₋))/(2π·ratio·λ) between λ± = (1 ± √ratio)², and, beyond ratio 1, a share 1 − 1/ratio of zeros
    (Marchenko & Pastur 1967). Mode i sits at the quantile (i + ½)/dim, largest first.

    Raises
    ------
    ValueError
        If `dim` is not a positive integer, `ratio` is not positive and finite, or all modes would be flat.

    Examples
    --------
    The largest, the mean and the smallest: the edges of the law are (1 ± √½)², and its mean is 1.

    >>> eigenvalues = marchenko_pastur(1000, ratio=0.5).eigenvalues
    >>> [round(float(x), 2) for x in (eigenvalues[0], eigenvalues.mean(), eigenvalues[-1])]
    [2.89, 1.0, 0.09]
    """
    dim = checks.integer("dim", dim, 1, maximum=MOST_MODES, remedy="Pass the number of modes.")
    ratio = checks.scalar("ratio", ratio)
    checks.require(1e-12 < ratio < 1e12, "ratio", "a positive ratio of parameters to examples", ratio, "Try 0.5.")
    eigenvalues = _marchenko_pastur_quantiles((dim - np.arange(dim) - 0.5) / dim, ratio)
    remedy = "Ask for more modes, or for a smaller ratio."
    checks.require(eigenvalues[0] > 0, "dim, ratio", "at least one curved mode", f"{dim}, {ratio:g}", remedy)
    return NoisyQuadratic(eigenvalues, noise=eigenvalues, dataset_size=dataset_size)


@ignoring_underflow
def measured_spectrum(eigenvalues: ArrayLike, weights: ArrayLike, *, dataset_size: int | None = None) -> NoisyQuadratic:
    """A spectrum given by arrays: ``weights[k]`` is the number of modes of curvature ``eigenvalues[k]``.

    It suits spectral densities from stochastic Lanczos quadrature: their nodes, and weights that sum to the number of
    parameters. Negative nodes, which a non-convex loss has, are refused: drop or change them first.

    Raises
    ------
    ValueError
        For negative eigenvalues, weights that are not positive, or shapes that do not match.

    Examples
    --------
    >>> float(measured_spectrum([1.0, 0.5], weights=[3, 96]).initial_loss)
    25.5
    """
    return NoisyQuadratic(eigenvalues, noise=eigenvalues, dataset_size=dataset_size, weights=weights)


def _marchenko_pastur_quantiles(shares: FloatArray, ratio: float) -> FloatArray:
    """Quantiles of the Marchenko–Pastur law, from a table of its distribution function that is then inverted.

    The substitution λ = 1 + ratio − 2√ratio cos φ, φ in (0, π), removes the square roots from the density: what is left
    to integrate, (2/π) sin²φ/λ, is smooth, except that 1/λ peaks sharply at φ = 0 where ratio → 1.
    """
    root = np.sqrt(ratio)
    gap = abs(1.0 - root)
    # With τ = tan(φ/2), λ = ((1−√ratio)² + (1+√ratio)² τ²)/(1+τ²): the peak is as wide as τ = gap/(1+√ratio). Points
    # τ = floor · sinh s, s equally spaced, resolve that width, and are spread geometrically beyond it.
    floor = max(gap / (1.0 + root), 1e-9)
    s = np.linspace(0.0, np.arcsinh(1e9 / floor), 200_001)
    tau = floor * np.sinh(s)
    rate = floor * np.cosh(s)
    eigenvalue = (gap**2 + (1.0 + root) ** 2 * tau**2) / (1.0 + tau**2)
    sine = 2.0 * tau / (1.0 + tau**2)
    with np.errstate(invalid="ignore"):
        density = np.where(eigenvalue > 0, (2.0 / np.pi) * sine**2 / eigenvalue, 8.0 / np.pi / (1.0 + root) ** 2)
    density = density * 2.0 / (1.0 + tau**2) * rate  # dφ/ds
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2) * (s[1] - s[0])])
    # The table is normalised to the exact share of curved modes; the flat ones, if any, come first among quantiles.
    curved = min(1.0, 1.0 / ratio)
    mass *= curved / mass[-1]
    inside = shares > 1.0 - curved
    return np.where(inside, np.interp(shares - (1.0 - curved), mass, eigenvalue), 0.0)
