"""The spectral density of a Hessian, and how gradient and gradient noise are spread over it.

The method is stochastic Lanczos quadrature (Golub & Meurant 1994; Ubaru, Chen & Saad 2017; for networks Ghorbani,
Krishnan & Xiao 2019, arXiv 1901.10159): a Krylov space of n Ritz pairs (θ, y) turns tr f(H) into Σ weight·f(θ), with
weights from random probes. Here one space is made from all probes together, and from the gradient and samples of the
noise if these are wanted. The same nodes then carry the density of states Σ δ(λᵢ), the gradient's Σ gᵢ² δ(λᵢ) and the
noise's Σ Fᵢᵢ δ(λᵢ). The expected loss of SGD on a quadratic depends on these three alone.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import chdtri

from noisysgd.theory.common import checks
from noisysgd.validation.measurement.gradient_noise import example_scale
from noisysgd.validation.measurement.lanczos import Krylov, krylov
from noisysgd.validation.measurement.matrix_arguments import (
    MOST_PRODUCTS,
    MatrixVectorProduct,
    matrix_arguments,
    room_for_vectors,
)
from noisysgd.validation.measurement.uncertainty import Estimate, mean_estimate

Vector = npt.NDArray[np.float64]

ISOLATED = 0.1
"""A Ritz pair may stand for a single eigenvalue if its residual is below this share of the distance to the next."""
SINGLE = 1e-4
"""It may not if its weight is so large that a single eigenvalue would reach it with less than this probability."""


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """A spectral density as nodes and weights, from several probes.

    Parameters
    ----------
    nodes : (n,) array
        θ, largest first.
    draws : (probes, n) array
        Number of eigenvalues that each node stands for, as each probe estimates it; every row sums to the dimension.
        Rows are independent given the nodes.
    single : (n,) boolean array
        Which nodes are eigenvalues themselves, found to within their residual: each of them counts 1 in all rows.
    residuals : (n,) array
        ‖Hy − θy‖ of each node.
    truncation : float
        Distance between this density and the one from half of the products, as a share of the mean |λ|: by how much
        eigenvalues would have to be moved on average (Wasserstein-1). NaN if there was nothing to halve.
    converged : bool
        Whether truncation ≤ rtol.
    products : int
        Matrix-vector products spent.
    rtol : float
        The tolerance of `converged`, also used by the estimates that are made from the density.
    """

    nodes: Vector
    draws: Vector
    single: npt.NDArray[np.bool_]
    residuals: Vector
    truncation: float
    converged: bool
    products: int
    rtol: float

    @property
    def weights(self) -> Vector:
        """Eigenvalues per node, the mean over probes. Where nodes ≥ 0, ``theory.measured_spectrum`` takes both."""
        return np.asarray(self.draws.mean(axis=0))

    @property
    def weights_stderr(self) -> Vector:
        """Standard errors of `weights`, from the spread between probes."""
        return np.asarray(self.draws.std(axis=0, ddof=1) / math.sqrt(len(self.draws)))

    def moment(self, power: int) -> Estimate:
        """The trace of H to the given power: ``moment(1)`` is tr H."""
        power = checks.integer("power", power, 0, remedy="Moments are of whole, non-negative powers.")
        return mean_estimate(self.draws @ self.nodes**power, self.rtol)

    def above(self, curvature: float) -> Estimate:
        """Number of eigenvalues above `curvature`."""
        return mean_estimate(self.draws @ (self.nodes > curvature), self.rtol)

    def smooth(self, at: npt.ArrayLike, *, width: float) -> tuple[Vector, Vector]:
        """Eigenvalues per unit of curvature, each node widened to a Gaussian: (density, standard error) at `at`.

        Parameters
        ----------
        at : (m,) array_like
            Curvatures.
        width : float
            Standard deviation of the Gaussian, in units of curvature.
        """
        checks.require(width > 0, "width", "a positive number", width, "Try a hundredth of the spectrum's range.")
        distance = (checks.vector("at", checks.real("at", at))[:, None] - self.nodes) / width
        rows = self.draws @ (np.exp(-(distance**2) / 2) / (width * math.sqrt(2 * math.pi))).T
        return rows.mean(axis=0), rows.std(axis=0, ddof=1) / math.sqrt(len(rows))


@dataclass(frozen=True, eq=False)
class SpectralMeasures:
    """Density of states, gradient and gradient noise over one set of nodes.

    Parameters
    ----------
    density : SpectralDensity
    gradient : (n,) array
        Squared gradient along the eigenvectors at each node; sums to |g|².
    noise : (draws, n) array
        Noise variance Σ Fᵢᵢ along the eigenvectors at each node, with F the covariance of one example's gradient. Each
        row is the estimate of an independent group of units, and sums to that group's estimate of tr F.
    coarse : SpectralMeasures or None
        The same from the first half of the products, to compare with; None if there are too few products.
    """

    density: SpectralDensity
    gradient: Vector
    noise: Vector
    coarse: "SpectralMeasures | None"


def spectral_density(
    matvec: MatrixVectorProduct,
    dimension: int,
    *,
    probes: int = 4,
    steps: int = 16,
    seed: int,
    rtol: float = 0.1,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> SpectralDensity:
    """Spectral density of a symmetric matrix by stochastic Lanczos quadrature.

    Probes are uniform on the sphere. A Ritz pair counts as a single eigenvalue, of weight exactly 1, if its residual is
    small against the distance to the next node and its weight is not above what chance gives a single one. The probes
    then decide only about the rest: a few large eigenvalues, which carry most of a network's trace, have no sampling
    error.

    Parameters
    ----------
    matvec : callable
        v ↦ Hv.
    dimension : int
        Number of rows of H.
    probes : int
        Number of probes, at least 2; error bars come from the spread between them.
    steps : int
        Products per probe: moments up to 2·steps − 1 of each probe's measure are exact.
    seed : int
        Seed of the probes.
    rtol : float
        Truncation and standard error, as a share of the value, up to which an estimate counts as converged.
    dtype, device
        Type and place of the vectors handed to `matvec`.

    Returns
    -------
    SpectralDensity
        With NaN nodes if `matvec` returned any.

    Examples
    --------
    >>> spectrum = torch.cat([torch.tensor([5.0]), torch.linspace(0, 1, 199)]).double()
    >>> found = spectral_density(lambda v: spectrum * v, 200, steps=12, seed=0)
    >>> round(float(found.nodes[0]), 6), float(found.weights[0]), bool(found.single[0]), found.converged
    (5.0, 1.0, True, True)
    >>> trace = found.moment(1)
    >>> abs(trace.value - float(spectrum.sum())) < 4 * trace.stderr
    True
    """
    given = matrix_arguments(matvec, dimension, seed=seed, rtol=rtol, dtype=dtype, device=device)
    remedy = "The spread between probes is the error."
    count = checks.integer("probes", probes, 2, maximum=MOST_PRODUCTS, remedy=remedy)
    products = _budget(count, steps)
    with room_for_vectors("probes", min(products + count, given.dimension) + count, given.dimension):
        starts = _probes(given.dimension, count, given.seed).to(device=device, dtype=dtype)
        space = krylov(matvec, starts, products)
    return _density(space, starts, count, given.rtol)


def spectral_measures(
    matvec: MatrixVectorProduct,
    gradient: torch.Tensor,
    units: torch.Tensor,
    *,
    ghost_batch_size: int,
    dataset_size: int,
    probes: int = 4,
    noise_draws: int = 4,
    steps: int = 16,
    seed: int,
    rtol: float = 0.1,
) -> SpectralMeasures:
    """Density of states, gradient and noise over the spectrum, from one Krylov space.

    The units are dealt out to `noise_draws` groups. Each group sums its centred unit gradients with random signs. The
    covariance of such a vector is, on average, the noise covariance, and its squared components along the Ritz vectors
    say how the noise is spread over the nodes. Along single eigenvectors the variance of the group's units is computed
    directly instead, and what is left of the group's trace is spread over the other nodes as the vector has it.
    Everything is linear in the sample covariance, so that the rows of the result are unbiased up to the truncation of
    the Krylov space.

    Parameters
    ----------
    matvec : callable
        v ↦ Hv.
    gradient : torch.Tensor
        Shape (D,), the gradient of the loss that H belongs to.
    units : torch.Tensor
        Shape (K, D), gradients of independent ghost batches; K ≥ 2·noise_draws.
    ghost_batch_size, dataset_size : int
        g and N, g < N.
    probes, noise_draws : int
        Random probes for the density and groups of units for the noise; at least 2 of each.
    steps : int
        Products for each of the 1 + probes + noise_draws start vectors. Every product keeps one vector in memory.
    seed : int
        Seed of the probes and the signs.
    rtol : float
        Truncation and standard error, as a share of the value, up to which an estimate counts as converged.

    Returns
    -------
    SpectralMeasures

    Raises
    ------
    ValueError
        For too few units, probes, draws or steps.

    Examples
    --------
    >>> spectrum = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    >>> units = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).double() + spectrum
    >>> sizes = {"ghost_batch_size": 1, "dataset_size": 10**6}
    >>> found = spectral_measures(lambda v: spectrum * v, spectrum, units, **sizes, seed=0)
    >>> found.gradient.round(6)
    array([9., 4., 1.])
    >>> found.density.weights
    array([1., 1., 1.])
    """
    draws = checks.integer("noise_draws", noise_draws, 2, remedy="The spread between draws is the error.")
    enough = len(units) >= 2 * draws
    checks.require(enough, "units", f"at least two for each of {draws} draws", len(units), "Draw more units.")
    groups = [units[k::draws] for k in range(draws)]
    scale = example_scale(ghost_batch_size, dataset_size)
    random = _probes(units.shape[1], probes, seed).to(units)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(1,))))
    noises = []
    for group in groups:
        # With n centred gradients d, the mean of vvᵀ over the signs is scale/(n − 1) Σ ddᵀ, the group's estimate of F.
        signs = torch.from_numpy(generator.integers(0, 2, len(group)) * 2 - 1).to(units)
        noises.append(signs @ (group - group.mean(dim=0)) * math.sqrt(scale / (len(group) - 1)))
    # One space from all start vectors, so that density, gradient and noise come to lie on the same nodes.
    starts = torch.cat([gradient[None].to(units), random, torch.stack(noises)])
    space = krylov(matvec, starts, _budget(len(starts), steps))
    # The first half of the products is a coarser space at no cost: how much changes with the other half is the error.
    half = space.products // 2

    def measures(space: Krylov, coarse: SpectralMeasures | None) -> SpectralMeasures:
        density = _density(space, random, len(starts), rtol)
        noise = [_noise_row(space, density.single, *pair, scale) for pair in zip(groups, noises, strict=True)]
        return SpectralMeasures(density, space.components(gradient) ** 2, np.array(noise), coarse)

    return measures(space, measures(space.first(half), None) if half >= len(starts) else None)


def _noise_row(
    space: Krylov, single: npt.NDArray[np.bool_], group: torch.Tensor, noise: torch.Tensor, scale: float
) -> Vector:
    """Noise variance at each node from one group of units.

    Along single eigenvectors it is the variance of the units' components; what is left of the trace is spread over the
    other nodes like the squared components of `noise`, the group's sum with random signs.
    """
    if np.isnan(space.values).any():
        return np.full(space.values.shape, math.nan)
    centred = group - group.mean(dim=0)
    scale /= len(group) - 1
    directions = space.vectors(np.flatnonzero(single))
    known = scale * (centred @ directions.T).double().square().sum(dim=0).cpu().numpy()
    row = np.where(single, 0.0, space.components(noise) ** 2)
    # Where single eigenvectors span the whole space, what is left of the trace is rounding of either sign.
    left = max(scale * float(centred.square().sum(dim=1).double().sum()) - known.sum(), 0.0)
    row *= left / (row.sum() or 1.0)
    row[single] = known
    return row


def _budget(starts: int, steps: int) -> int:
    """Products to spend on so many start vectors."""
    remedy = "Every start vector needs at least one product."
    return starts * checks.integer("steps", steps, 1, maximum=MOST_PRODUCTS, remedy=remedy)


def _probes(dimension: int, probes: int, seed: int) -> torch.Tensor:
    """Vectors uniform on the unit sphere, shape (probes, dimension)."""
    count = checks.integer("probes", probes, 2, remedy="The spread between probes is the error.")
    checks.integer("dimension", dimension, 1, remedy="Pass the number of rows of the matrix.")
    generator = torch.Generator().manual_seed(checks.integer("seed", seed, 0, remedy="Pass a non-negative integer."))
    vectors = torch.randn(count, dimension, generator=generator, dtype=torch.float64)
    unit: torch.Tensor = vectors / vectors.norm(dim=1, keepdim=True)
    return unit


def _density(space: Krylov, probes: torch.Tensor, starts: int, rtol: float) -> SpectralDensity:
    """Spectral density from a Krylov space with `starts` start vectors, the probes among them."""
    dimension = probes.shape[1]
    # Without a finite node the eigenvalues are spread evenly, so that the weights still sum to the dimension.
    if np.isnan(space.values).any():
        lost = np.full((len(probes), space.products), dimension / space.products)
        none = np.zeros(space.products, dtype=bool)
        return SpectralDensity(space.values, lost, none, space.residuals, math.nan, False, space.products, rtol)
    raw = space.components(probes) ** 2
    # A probe is a unit vector inside the space: its squared components are shares, and dimension times as many are
    # eigenvalues. The quotient takes out rounding.
    raw *= dimension / raw.sum(axis=1, keepdims=True)
    single = _single(space, raw.mean(axis=0), len(probes), dimension)
    draws = np.where(single, 0.0, raw)
    left = draws.sum(axis=1, keepdims=True)
    # What single eigenvalues leave of the dimension is divided among the other nodes as each probe has it.
    draws *= (dimension - single.sum()) / np.where(left > 0, left, 1.0)
    draws[:, single] = 1.0
    truncation = _truncation(space, probes, raw.mean(axis=0), starts)
    converged = bool(truncation <= rtol)
    return SpectralDensity(space.values, draws, single, space.residuals, truncation, converged, space.products, rtol)


def _single(space: Krylov, weight: Vector, probes: int, dimension: int) -> npt.NDArray[np.bool_]:
    """Which Ritz pairs are eigenvalues that occur once, as a boolean array."""
    if space.products == dimension:
        return np.ones(dimension, dtype=bool)
    gaps = np.abs(np.diff(space.values))
    nearest = np.minimum(np.append(np.inf, gaps), np.append(gaps, np.inf))
    # A single eigenvalue's weight, in the mean over probes, is a mean of squares of about normal numbers.
    most = chdtri(probes, SINGLE) / probes
    # Copies of one multiple eigenvalue differ by rounding, so that no residual is taken to be smaller than that.
    rounding = 10 * torch.finfo(space.basis.dtype).eps * np.abs(space.values).max()
    single = (np.maximum(space.residuals, rounding) <= ISOLATED * nearest) & (weight <= most)
    # In a space smaller than the dimension some node has to stand for the directions outside of it.
    return single if not single.all() else np.zeros_like(single)


def _truncation(space: Krylov, probes: torch.Tensor, weight: Vector, starts: int) -> float:
    """Wasserstein-1 distance between this density and that of half the products, as a share of the mean |λ|."""
    if space.exhausted:
        return 0.0
    if space.products // 2 < starts:
        return math.nan
    half = space.first(space.products // 2)
    coarse = (half.components(probes) ** 2).mean(axis=0)
    # On the line, this distance is the area between the two cumulative distributions, constant between nodes.
    edges = np.unique(np.concatenate([space.values, half.values]))
    below = [_cumulative(n, w, edges) for n, w in ((space.values, weight), (half.values, coarse))]
    distance = float((np.abs(below[0] - below[1])[:-1] * np.diff(edges)).sum())
    return distance / (float(weight @ np.abs(space.values)) / weight.sum() or 1.0)


def _cumulative(nodes: Vector, weights: Vector, edges: Vector) -> Vector:
    """Share of the weight at or below each edge."""
    done = np.concatenate([[0.0], np.cumsum(weights[::-1])])
    return np.asarray(done[np.searchsorted(nodes[::-1], edges, side="right")] / done[-1])
