"""The largest eigenvalue of a network's loss Hessian, by Lanczos on Hessian-vector products.

The loss is the training-mode loss: normalisation layers use the statistics of the examples at hand, as in training,
and do not move their running averages. Evaluation mode has another Hessian.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 — the name the field uses
from torch import nn

from noisysgd.theory import checks
from noisysgd.validation.ghost_batch_norm import frozen_running_statistics

MatrixVectorProduct = Callable[[torch.Tensor], torch.Tensor]
LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


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
        Number of matrix-vector products spent.
    """

    value: float
    residual: float
    converged: bool
    products: int


LEAST_STEPS = 8
"""Earlier a small residual means little: where most eigenvalues agree, a random start is nearly an eigenvector."""


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

    Lanczos from a seeded normal vector, with full reorthogonalisation (Parlett 1998, *The Symmetric Eigenvalue
    Problem*, chapter 13). It stops when, after at least 8 steps, the Lanczos estimate of the residual is small enough,
    or when `max_products` is spent; one last product then measures the residual itself. The residual bounds the
    distance to *an* eigenvalue; that it is the largest one rests on the random start, as for every Krylov method. The
    basis takes ``(max_products − 1) × dimension`` numbers.

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
    checks.integer("dimension", dimension, 1, remedy="Pass the number of rows of the matrix.")
    checks.integer("max_products", max_products, 2, remedy="One product builds the basis, the last one verifies.")
    checks.require(rtol > 0, "rtol", "a positive number", rtol, "1e-2 is enough for most purposes.")
    start = torch.randn(dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    vector = (start / start.norm()).to(device=device, dtype=dtype)
    basis = torch.empty(min(max_products - 1, dimension), dimension, dtype=dtype, device=device)
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    for k in range(len(basis)):
        basis[k] = vector
        image = matvec(vector)
        diagonal.append(float(vector @ image))
        for _ in range(2):  # twice is enough (Parlett, section 6.9); once loses orthogonality in single precision
            image = image - basis[: k + 1].T @ (basis[: k + 1] @ image)
        norm = float(image.norm())
        if not math.isfinite(diagonal[-1] + norm):
            return Eigenvalue(math.nan, math.nan, False, k + 1)
        ritz_values, ritz_vectors = _tridiagonal_eigen(diagonal, off_diagonal)
        scale = float(ritz_values.abs().max())
        exhausted = norm <= math.sqrt(dimension) * torch.finfo(dtype).eps * scale
        # The measured residual may exceed the estimate by rounding: ask for a little more than rtol.
        small = norm * abs(float(ritz_vectors[-1, -1])) <= 0.9 * rtol * abs(float(ritz_values[-1]))
        if exhausted or (small and k + 1 >= LEAST_STEPS):
            break
        off_diagonal.append(norm)
        vector = image / norm
    return _verified(matvec, ritz_vectors[:, -1].to(basis) @ basis[: len(diagonal)], rtol, len(diagonal) + 1)


def loss_hessian_vector_product(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    l2: float = 0.0,
    micro_batch: int | None = None,
) -> MatrixVectorProduct:
    """Hessian of the mean cross-entropy on the given examples, as a product with flat vectors.

    The function is fixed at the model's present parameters: later training does not change it, nor does calling it
    change the model. The vector runs over the parameters that require gradients, in ``model.parameters()`` order.

    Parameters
    ----------
    model : torch.nn.Module
        Maps images to logits; not compiled (compiled modules cannot be differentiated twice).
    images, labels : torch.Tensor
        Shapes (N, …) and (N,); their order decides which examples share a ghost batch.
    l2 : float
        Adds ½·l2·‖ω‖² to the loss, hence exactly l2 to every eigenvalue.
    micro_batch : int, optional
        Examples differentiated at a time, a multiple of the ghost batch size: less memory, a little more time.
        By default all at once, keeping the graph of the gradient for all products.

    Returns
    -------
    callable
        Maps v of shape (P,), P the number of trainable parameters, to Hv.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(1, 2, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)  # p = ½, so the Hessian is x² p(1−p) (1 −1; −1 1)
    >>> product = loss_hessian_vector_product(model, torch.tensor([[2.0]]), torch.tensor([0]))
    >>> product(torch.tensor([1.0, 0.0]))
    tensor([ 1., -1.])
    """
    loss, parameters = loss_function(model, l2=l2)
    size = len(images) if micro_batch is None else micro_batch
    checks.integer("micro_batch", size, 1, remedy="Use a multiple of the ghost batch size.")
    shards = list(zip(torch.split(images, size), torch.split(labels, size), strict=True))

    def gradient(shard: tuple[torch.Tensor, torch.Tensor]) -> Sequence[torch.Tensor]:
        weighted = loss(*shard) * (len(shard[1]) / len(labels))
        return torch.autograd.grad(weighted, parameters, create_graph=True, materialize_grads=True)

    kept = gradient(shards[0]) if len(shards) == 1 else None

    def product(vector: torch.Tensor) -> torch.Tensor:
        directions = _unflatten(vector, parameters)
        total = torch.zeros_like(vector)
        for shard in shards:
            slopes = kept if kept is not None else gradient(shard)
            slope = torch.stack([(g * d).sum() for g, d in zip(slopes, directions, strict=True)]).sum()
            columns = torch.autograd.grad(slope, parameters, retain_graph=kept is not None, materialize_grads=True)
            total += flatten(columns).to(total)
        return total

    return product


def loss_function(model: nn.Module, *, l2: float = 0.0) -> tuple[LossFunction, list[torch.Tensor]]:
    """Detach the training-mode mean cross-entropy (plus ½·l2·‖ω‖²) from the model: (loss, parameters).

    The parameters are copies of the trainable ones and ``loss(images, labels)`` is a function of them: differentiating
    it leaves the model's own parameters, buffers and ``.grad`` alone.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    trainable = {name: parameter.detach().clone().requires_grad_() for name, parameter in named}
    remedy = "Measure a model with at least one parameter that requires gradients."
    checks.require(bool(trainable), "model", "trainable parameters", "none", remedy)
    state = {**trainable, **{name: buffer.detach().clone() for name, buffer in model.named_buffers()}}
    parameters = list(trainable.values())

    def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with training_mode(model):
            value = F.cross_entropy(torch.func.functional_call(model, state, (images,)), labels)
        return value + 0.5 * l2 * torch.stack([p.square().sum() for p in parameters]).sum() if l2 else value

    return loss, parameters


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Within the ``with`` block: train mode, dropout off, running averages and global generators left alone."""
    flags = [(module, module.training) for module in model.modules()]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        with frozen_running_statistics(model), torch.random.fork_rng(devices=list(devices)):
            model.train()
            for module in model.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.eval()
            yield
    finally:
        for module, flag in flags:
            module.training = flag


def flatten(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One vector of all entries, tensor by tensor."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _unflatten(vector: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    pieces = torch.split(vector, [tensor.numel() for tensor in like])
    return [piece.view(tensor.shape).to(tensor) for piece, tensor in zip(pieces, like, strict=True)]


def _tridiagonal_eigen(diagonal: list[float], off_diagonal: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if off_diagonal:
        side = torch.tensor(off_diagonal, dtype=torch.float64)
        matrix += torch.diag(side, 1) + torch.diag(side, -1)
    return tuple(torch.linalg.eigh(matrix))


def _verified(matvec: MatrixVectorProduct, vector: torch.Tensor, rtol: float, products: int) -> Eigenvalue:
    vector = vector / vector.norm()
    image = matvec(vector)
    value = float(vector @ image)
    residual = float((image - value * vector).norm())
    return Eigenvalue(value, residual, residual <= rtol * abs(value), products)
