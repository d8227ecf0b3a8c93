"""Eigenvalues of a symmetric matrix known only by its products with vectors: Lanczos from one start vector or several.

Both forms orthogonalise every new vector against the whole basis, twice. Without that, the three-term recurrence loses
orthogonality in single precision and soon finds copies of the largest eigenvalues. Source: Parlett 1998, *The Symmetric
Eigenvalue Problem*, chapter 13; for several starts Ruhe 1979, *Mathematics of Computation* 33, 680.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from noisysgd.theory.common import checks
from noisysgd.validation.measurement.matrix_arguments import (
    MOST_PRODUCTS,
    MatrixVectorProduct,
    matrix_arguments,
    product,
    room_for_vectors,
)

Vector = npt.NDArray[np.float64]

LEAST_STEPS = 8
"""Steps before which a small residual is not trusted: if most eigenvalues agree, any start is nearly an eigenvector."""


@dataclass(frozen=True)
class Eigenvalue:
    """An eigenvalue estimate θ with its error bound.

    Parameters
    ----------
    value : float
        The Rayleigh quotient θ = vᵀHv of a unit vector v; never above the largest eigenvalue.
    residual : float
        ‖Hv − θv‖. A symmetric H has an eigenvalue within this distance of θ.
    converged : bool
        Whether residual ≤ rtol·|θ|.
    products : int
        Number of matrix-vector products spent on this eigenvalue and those found with it.
    """

    value: float
    residual: float
    converged: bool
    products: int


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """The leading eigenvalues, largest first, and their eigenvectors.

    Parameters
    ----------
    values : tuple of Eigenvalue
    vectors : torch.Tensor
        Shape (count, dimension): unit vectors in the same order, orthogonal to rounding.
    products : int
        Matrix-vector products spent in all.
    """

    values: tuple[Eigenvalue, ...]
    vectors: torch.Tensor
    products: int


def largest_eigenvalue(
    matvec: MatrixVectorProduct,
    dimension: int,
    *,
    seed: int,
    rtol: float = 1e-3,
    max_products: int = 100,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Eigenvalue:
    """Algebraically largest eigenvalue of a symmetric matrix given by its products with vectors.

    The Lanczos iteration starts from a random normal vector. It stops when, after at least 8 steps, its estimate of the
    residual is small enough, or when `max_products` are spent; one last product then measures the residual itself. The
    residual bounds the distance to *an* eigenvalue; that this is the largest one rests on the random start, as for any
    Krylov method. The basis takes ``(max_products − 1) × dimension`` numbers.

    Parameters
    ----------
    matvec : callable
        Maps a vector v of shape (dimension,) to Hv.
    dimension : int
        Number of rows of H.
    seed : int
        Seed of the start vector.
    rtol : float
        Relative residual asked for.
    max_products : int
        Most products to spend, at least 2.
    dtype, device
        Type and place of the vectors handed to `matvec`.

    Returns
    -------
    Eigenvalue
        With ``converged=False`` if the products ran out, and with NaN values if `matvec` returned any.

    Raises
    ------
    ValueError
        For sizes or tolerances out of range.

    Examples
    --------
    >>> import torch
    >>> spectrum = torch.tensor([-9.0, 1.0, 2.0, 4.0], dtype=torch.float64)
    >>> found = largest_eigenvalue(lambda v: spectrum * v, 4, seed=0)
    >>> found.converged, round(found.value, 6)
    (True, 4.0)
    """
    found = leading_eigenpairs(
        matvec, dimension, 1, seed=seed, rtol=rtol, max_products=max_products, dtype=dtype, device=device
    )
    return found.values[0]


def leading_eigenpairs(
    matvec: MatrixVectorProduct,
    dimension: int,
    count: int,
    *,
    seed: int,
    rtol: float = 1e-3,
    max_products: int = 100,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Eigenpairs:
    """The algebraically largest eigenvalues with eigenvectors, all from one Krylov space.

    This works as :func:`largest_eigenvalue` does, but stops when all `count` eigenvalues have small residuals, which
    `count` last products measure. A multiple eigenvalue can show as a single one, since one start vector sees a single
    direction of its eigenspace.

    Parameters
    ----------
    count : int
        How many eigenvalues to find, at most `dimension`.
    max_products : int
        Most products to spend, at least count + 1.
    matvec, dimension, seed, rtol, dtype, device
        See :func:`largest_eigenvalue`.

    Returns
    -------
    Eigenpairs
        NaN in place of eigenvalues for which the products did not suffice, or if `matvec` returned NaN.

    Examples
    --------
    >>> spectrum = torch.tensor([-9.0, 1.0, 2.0, 4.0], dtype=torch.float64)
    >>> found = leading_eigenpairs(lambda v: spectrum * v, 4, 2, seed=0)
    >>> [round(pair.value, 6) for pair in found.values], found.vectors.abs().argmax(dim=1).tolist()
    ([4.0, 2.0], [3, 2])
    """
    given = matrix_arguments(matvec, dimension, seed=seed, rtol=rtol, dtype=dtype, device=device)
    dimension, rtol = given.dimension, given.rtol
    count = checks.integer("count", count, 1, remedy="Ask for at least one eigenvalue.")
    checks.require(count <= dimension, "count", f"at most the dimension {dimension}", count, "Ask for fewer.")
    remedy = "One product builds the basis, and one verifies each eigenvalue."
    most = checks.integer("max_products", max_products, count + 1, maximum=MOST_PRODUCTS, remedy=remedy)
    # The basis leaves `count` products over, to measure the residuals with.
    size = min(most - count, dimension)
    # Drawn on the CPU in double precision, so that the start is the same on every device and in every precision.
    generator = torch.Generator().manual_seed(given.seed)
    with room_for_vectors("max_products", size, dimension):
        vector = _random_unit(dimension, generator).to(device=device, dtype=dtype)
        basis = torch.empty(size, dimension, dtype=dtype, device=device)
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    for k in range(len(basis)):
        basis[k] = vector
        image = product(matvec, vector)
        diagonal.append(float(vector @ image))
        # Twice is enough (Parlett, section 6.9); once loses orthogonality in single precision.
        for _ in range(2):
            image = image - basis[: k + 1].T @ (basis[: k + 1] @ image)
        norm = float(image.norm())
        if not math.isfinite(diagonal[-1] + norm):
            lost = Eigenvalue(math.nan, math.nan, False, k + 1)
            return Eigenpairs((lost,) * count, torch.full_like(basis[:1], math.nan).expand(count, -1), k + 1)
        ritz_values, ritz_vectors = _tridiagonal_eigen(diagonal, off_diagonal)
        scale = float(ritz_values.abs().max())
        # If only rounding is left of the image, H maps the space into itself and the Ritz values are eigenvalues.
        exhausted = norm <= math.sqrt(dimension) * torch.finfo(dtype).eps * scale
        enough = k + 1 >= count
        # ‖Hy − θy‖ is the norm of what is left times the last component of θ's eigenvector: no product is needed. The
        # residual measured in the end may exceed it by rounding, so a little more than rtol is asked for.
        residuals = norm * ritz_vectors[-1, -count:].abs()
        small = enough and bool((residuals <= 0.9 * rtol * ritz_values[-count:].abs()).all())
        if (enough and (exhausted or (small and k + 1 >= LEAST_STEPS))) or k + 1 == len(basis):
            break
        # The space is invariant but has fewer eigenvalues than were asked for: go on from a random vector outside of
        # it, which the zero off the diagonal separates from what was found.
        if exhausted:
            norm = 0.0
            image = _random_unit(dimension, generator).to(basis)
            for _ in range(2):
                image = image - basis[: k + 1].T @ (basis[: k + 1] @ image)
        off_diagonal.append(norm)
        vector = image / image.norm()
    steps = len(diagonal)
    found = min(count, steps)
    # Rounding has entered the basis, so values and residuals are measured anew from the vectors that are returned.
    top = ritz_vectors[:, -found:].flip(1).T.to(basis) @ basis[:steps]
    verified = [_verified(matvec, row, rtol, steps + found) for row in top]
    missing = [Eigenvalue(math.nan, math.nan, False, steps + found)] * (count - found)
    vectors = torch.cat([top, torch.full_like(top[:1], math.nan).expand(count - found, -1)])
    return Eigenpairs((*verified, *missing), vectors, steps + found)


@dataclass(frozen=True, eq=False)
class Krylov:
    """A Krylov space of a symmetric matrix H and its Ritz pairs.

    Parameters
    ----------
    values : (n,) array
        Ritz values θ, largest first.
    residuals : (n,) array
        ‖Hy − θy‖ for the Ritz vectors y: H has an eigenvalue within this distance of each θ.
    basis : torch.Tensor
        Shape (n, dimension), orthonormal rows.
    rotation : torch.Tensor
        Shape (n, n), float64: Ritz vectors are ``rotation.T @ basis``.
    projected : (n, n) array
        B H Bᵀ with B the basis; its eigenvalues are θ.
    products : int
        Matrix-vector products spent: n.
    exhausted : bool
        Whether the space is invariant: more products would add nothing.
    """

    values: Vector
    residuals: Vector
    basis: torch.Tensor
    rotation: torch.Tensor
    projected: Vector
    products: int
    exhausted: bool

    def components(self, vectors: torch.Tensor) -> Vector:
        """Components of vectors of shape (…, dimension) along the Ritz vectors, of shape (…, n)."""
        return np.asarray(
            ((vectors.to(self.basis) @ self.basis.T).double() @ self.rotation.to(self.basis.device)).cpu()
        )

    def first(self, products: int) -> "Krylov":
        """The space after the first `products` of its products, leaving at least one more for every start vector."""
        # Basis vectors join in the order of the products, so that the smaller space is a corner of this one. What its
        # images have outside of it, on later basis vectors, makes the residuals.
        inside, beyond = self.projected[:products, :products], self.projected[products:, :products]
        values, rotation = np.linalg.eigh(inside)
        return Krylov(
            values[::-1],
            np.linalg.norm(beyond @ rotation, axis=0)[::-1],
            self.basis[:products],
            torch.from_numpy(rotation[:, ::-1].copy()),
            inside,
            products,
            self.exhausted and products == self.products,
        )

    def vectors(self, chosen: npt.NDArray[np.int64]) -> torch.Tensor:
        """The Ritz vectors number `chosen`, shape (len(chosen), dimension)."""
        return self.rotation[:, torch.from_numpy(chosen)].T.to(self.basis) @ self.basis


def krylov(matvec: MatrixVectorProduct, starts: torch.Tensor, products: int) -> Krylov:
    """The Krylov space of several start vectors together, by band Lanczos.

    One basis vector after the other is multiplied by H, and what is new in its image joins the basis, until `products`
    are spent or nothing is new. With p starts and m·p products, xᵀf(H)y is exact for starts x and y and polynomials f
    of degree up to 2m − 1, as by Gauss quadrature.

    Parameters
    ----------
    matvec : callable
        v ↦ Hv.
    starts : torch.Tensor
        Shape (p, dimension), p ≥ 1; vectors that depend linearly on those before them are passed over.
    products : int
        Most products to spend, at least p. The basis takes (products + p) × dimension numbers.

    Returns
    -------
    Krylov
        With NaN values and residuals if `matvec` returned any.

    Examples
    --------
    >>> spectrum = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    >>> space = krylov(lambda v: spectrum * v, torch.ones(1, 4, dtype=torch.float64), products=9)
    >>> space.products, space.values.round(6) + 0.0
    (4, array([3., 2., 1., 0.]))
    """
    count, dimension = starts.shape
    checks.integer("products", products, count, remedy="Every start needs a product of its own.")
    basis = torch.empty(min(products + count, dimension), dimension, dtype=starts.dtype, device=starts.device)
    size = 0
    for start in starts:
        size += _append(basis, size, start, float(start.norm()))[1]
    projected = torch.zeros(len(basis), min(products, dimension), dtype=torch.float64)
    spent = 0
    while spent < min(size, projected.shape[1]):
        # `size` runs ahead of `spent` by the block that is still to be multiplied: at most as many as there are starts.
        image = product(matvec, basis[spent])
        length = float(image.norm())
        if not math.isfinite(length):
            nothing = np.full(spent + 1, math.nan)
            rotation = torch.full((spent + 1, spent + 1), math.nan, dtype=torch.float64)
            return Krylov(nothing, nothing, basis[: spent + 1], rotation, np.diag(nothing), spent + 1, False)
        # A remainder is new only if it is not rounding, judged by the largest number that H has produced so far.
        scale = max(length, float(projected.abs().max()))
        (coefficients, rest), new = _append(basis, size, image, scale)
        projected[:size, spent] = coefficients
        if new:
            projected[size, spent] = rest
        size, spent = size + new, spent + 1
    # Rows of basis vectors that were not multiplied themselves hold what H takes out of the space: the residuals. The
    # square part is symmetric but for rounding.
    inside = projected[:spent, :spent]
    values, rotation = torch.linalg.eigh((inside + inside.T) / 2)
    residuals = (projected[spent:size, :spent] @ rotation).norm(dim=0)
    order = torch.arange(spent - 1, -1, -1)
    return Krylov(
        values[order].numpy(),
        residuals[order].numpy(),
        basis[:spent],
        rotation[:, order],
        ((inside + inside.T) / 2).numpy(),
        spent,
        spent == size,
    )


def _append(
    basis: torch.Tensor, size: int, vector: torch.Tensor, scale: float
) -> tuple[tuple[torch.Tensor, float], bool]:
    """Add to the basis what `vector` has outside of it, unless that is no more than the rounding of numbers of `scale`.

    Returns ((coefficients inside the basis, norm outside of it), whether a vector was added).
    """
    coefficients = torch.zeros(size, dtype=torch.float64)
    rest = vector
    # The second pass removes what the rounding of the first left inside; its coefficients belong to the vector as well.
    for _ in range(2):
        inside = basis[:size] @ rest
        coefficients += inside.double().cpu()
        rest = rest - basis[:size].T @ inside
    norm = float(rest.norm())
    new = size < len(basis) and norm > 10 * math.sqrt(basis.shape[1]) * torch.finfo(basis.dtype).eps * scale
    if new:
        unit = rest / norm
        # If little was left, scaling it up has scaled its rounding up too: orthogonalise once more.
        basis[size] = unit - basis[:size].T @ (basis[:size] @ unit)
        basis[size] /= basis[size].norm()
    return (coefficients, norm), new


def _random_unit(dimension: int, generator: torch.Generator) -> torch.Tensor:
    """A vector uniform on the unit sphere."""
    vector = torch.randn(dimension, generator=generator, dtype=torch.float64)
    unit: torch.Tensor = vector / vector.norm()
    return unit


def _tridiagonal_eigen(diagonal: list[float], off_diagonal: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues of a symmetric tridiagonal matrix, smallest first, and its eigenvectors as columns."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if off_diagonal:
        side = torch.tensor(off_diagonal, dtype=torch.float64)
        matrix += torch.diag(side, 1) + torch.diag(side, -1)
    return tuple(torch.linalg.eigh(matrix))


def _verified(matvec: MatrixVectorProduct, vector: torch.Tensor, rtol: float, products: int) -> Eigenvalue:
    """The Rayleigh quotient of `vector` and its residual, measured with one more product."""
    vector = vector / vector.norm()
    image = product(matvec, vector)
    value = float(vector @ image)
    residual = float((image - value * vector).norm())
    return Eigenvalue(value, residual, residual <= rtol * abs(value), products)
