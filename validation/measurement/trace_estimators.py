"""Estimates of the trace of a matrix that is known only by its products with vectors."""

import numpy as np
import torch

from noisysgd.theory.common import checks
from noisysgd.validation.measurement.matrix_arguments import (
    MOST_PRODUCTS,
    MatrixVectorProduct,
    matrix_arguments,
    product,
    room_for_vectors,
)
from noisysgd.validation.measurement.uncertainty import Estimate, mean_estimate


def hutchinson_trace(
    matvec: MatrixVectorProduct,
    dimension: int,
    *,
    probes: int,
    seed: int,
    rtol: float = 0.1,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Estimate:
    """tr H as the mean of zᵀHz over vectors z of random signs (Hutchinson 1989).

    The estimate is unbiased; for symmetric H one probe has variance 2(‖H‖_F² − Σ H_ii²).

    Parameters
    ----------
    matvec : callable
        v ↦ Hv for v of shape (dimension,).
    dimension : int
        Number of rows of H.
    probes : int
        Number of vectors z, and hence of products; at least 2.
    seed : int
        Seed of the signs.
    rtol : float
        Standard error, as a share of the value, at which the estimate counts as converged.
    dtype, device
        Type and place of the vectors handed to `matvec`.

    Returns
    -------
    Estimate
        With the standard error from the spread between probes.

    Examples
    --------
    On a diagonal matrix every probe is exact.

    >>> diagonal = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    >>> hutchinson_trace(lambda v: diagonal * v, 3, probes=2, seed=0)
    Estimate(value=4.0, stderr=0.0, converged=True)
    """
    given = matrix_arguments(matvec, dimension, seed=seed, rtol=rtol, dtype=dtype, device=device)
    remedy = "The spread between probes needs at least two."
    probes = checks.integer("probes", probes, 2, maximum=MOST_PRODUCTS, remedy=remedy)
    with room_for_vectors("probes", probes, given.dimension):
        signs = _signs(probes, given.dimension, given.seed).to(device=device, dtype=dtype)
    return mean_estimate([_along(sign, matvec) for sign in signs], given.rtol)


def hutch_plus_plus_trace(
    matvec: MatrixVectorProduct,
    dimension: int,
    *,
    products: int,
    seed: int,
    rtol: float = 0.1,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Estimate:
    """tr H as the exact trace over the range of a sketch, plus Hutchinson's estimate outside of it.

    This is Hutch++ (Meyer, Musco, Musco & Woodruff 2021, arXiv 2010.09649, algorithm 1): with S a matrix of random
    signs and Q an orthonormal basis of the range of HS, tr H = tr QᵀHQ + tr (1−QQᵀ)H(1−QQᵀ). Where a few eigenvalues
    stand out, Q contains them, and the estimate of the rest varies little.

    Parameters
    ----------
    products : int
        Products to spend, at least 6; a third each on the sketch, on its range and on probes outside.
    matvec, dimension, seed, rtol, dtype, device
        See :func:`hutchinson_trace`.

    Returns
    -------
    Estimate
        With the standard error from the spread between the probes outside; 0 where the sketch spans everything.

    Examples
    --------
    >>> diagonal = torch.cat([torch.tensor([50.0, -20.0]), torch.zeros(98)]).double()
    >>> rotation, _ = torch.linalg.qr(torch.randn(100, 100, generator=torch.Generator().manual_seed(1)).double())
    >>> matrix = rotation @ torch.diag(diagonal) @ rotation.T
    >>> round(hutch_plus_plus_trace(lambda v: matrix @ v, 100, products=6, seed=0).value, 6)
    30.0
    """
    given = matrix_arguments(matvec, dimension, seed=seed, rtol=rtol, dtype=dtype, device=device)
    dimension, rtol = given.dimension, given.rtol
    remedy = "Two each for the sketch, its range and the probes."
    products = checks.integer("products", products, 6, maximum=MOST_PRODUCTS, remedy=remedy)
    width = min(products // 3, dimension)
    with room_for_vectors("products", products, dimension):
        signs = _signs(products - 2 * width, dimension, given.seed).to(device=device, dtype=dtype)
        # A stream of its own: the range of the sketch must be independent of the probes outside of it.
        starts = _signs(width, dimension, given.seed, stream=1).to(signs)
    sketch = torch.stack([product(matvec, start) for start in starts])
    basis = torch.linalg.qr(sketch.T)[0].T
    inside = sum(_along(row, matvec) for row in basis)
    # A sketch of the full dimension spans everything: nothing is left to be estimated.
    if width == dimension:
        return Estimate.with_tolerance(inside, 0.0, rtol)
    # Projecting the probes makes zᵀHz an estimate of the trace over the complement of the range alone.
    outside = signs - (signs @ basis.T) @ basis
    rest = np.array([_along(probe, matvec) for probe in outside])
    spread = mean_estimate(rest, rtol)
    return Estimate.with_tolerance(inside + spread.value, spread.stderr, rtol)


def _along(vector: torch.Tensor, matvec: MatrixVectorProduct) -> float:
    """vᵀHv."""
    return float(vector @ product(matvec, vector))


def _signs(count: int, dimension: int, seed: int, stream: int = 0) -> torch.Tensor:
    """Random signs of shape (count, dimension); streams of one seed are independent of each other."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(stream,))))
    return torch.from_numpy(generator.integers(0, 2, (count, dimension), dtype=np.int8) * 2 - 1)
