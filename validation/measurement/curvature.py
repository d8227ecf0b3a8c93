"""A network's loss as a function of its parameters: gradients and Hessian-vector products.

The loss is the training-mode loss: normalisation layers use the statistics of the examples at hand, as in training,
and do not move their running averages. The loss in evaluation mode has another Hessian.

Torch's own batch norms take the statistics of all examples that are differentiated together. With them the loss itself
depends on `micro_batch`: the loss of N examples at once is not the mean of the losses of batches.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 — the name the field uses
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from noisysgd.theory.common import checks
from noisysgd.validation.measurement.criteria import LossFunction, check_mean
from noisysgd.validation.measurement.matrix_arguments import MatrixVectorProduct
from noisysgd.validation.networks.ghost_batch_norm import training_mode
from noisysgd.validation.networks.torch_globals import usual_torch

PILOT = 64
"""Examples whose product with the Hessian tells how much memory one example takes."""
SHARE_OF_MEMORY = 0.5
"""Of a GPU's free memory, for a product with the Hessian: allocators leave gaps, and other runs may be beside."""


@usual_torch()
def loss_hessian_vector_product(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    l2: float = 0.0,
    micro_batch: int | None = None,
    criterion: LossFunction = F.cross_entropy,
) -> MatrixVectorProduct:
    """Hessian of the mean loss on the given examples, as a product with flat vectors.

    The function is fixed at the model's present parameters and buffers, frozen ones included: later training does not
    change it, nor does calling it change the model or the examples. The vector runs over the parameters that require
    gradients, in ``model.parameters()`` order.

    Parameters
    ----------
    model : torch.nn.Module
        Maps images to logits; not compiled (compiled modules cannot be differentiated twice).
    images, labels : torch.Tensor
        Shapes (N, …) and (N,); their order decides which examples share a ghost batch. Images of real numbers are cast
        to the type of the model's parameters.
    l2 : float
        Adds ½·l2·‖ω‖² to the loss, hence exactly l2 to every eigenvalue.
    micro_batch : int, optional
        Examples differentiated at a time, a multiple of the ghost batch size: less memory, a little more time.
        By default all at once, keeping the graph of the gradient for all products. With torch's own batch norms it is
        the number of examples that share statistics, and N a multiple of it.
    criterion : callable
        ``criterion(logits, labels)``, a mean over examples, which is checked; by default the cross-entropy.

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
    loss, parameters = loss_function(model, l2=l2, criterion=criterion)
    shards = _shards(images, labels, micro_batch)

    def gradient(shard: tuple[torch.Tensor, torch.Tensor]) -> Sequence[torch.Tensor]:
        # Shards may differ in size: each counts by its share of the examples, so that the sum is the mean loss.
        weighted = loss(*shard) * (len(shard[1]) / len(labels))
        return torch.autograd.grad(weighted, parameters, create_graph=True, materialize_grads=True)

    # The graph of the gradient is the same for all products. Several of them would take the memory that shards save.
    kept = gradient(shards[0]) if len(shards) == 1 else None

    @usual_torch()
    def product(vector: torch.Tensor) -> torch.Tensor:
        # Hv is the gradient of the scalar gᵀv with v held fixed, so that H itself is never formed.
        directions = _unflatten(vector, parameters)
        total = torch.zeros_like(vector)
        for shard in shards:
            slopes = kept if kept is not None else gradient(shard)
            slope = torch.stack([(g * d).sum() for g, d in zip(slopes, directions, strict=True)]).sum()
            columns = torch.autograd.grad(slope, parameters, retain_graph=kept is not None, materialize_grads=True)
            total += flatten(columns).to(total)
        return total

    return product


@usual_torch()
def affordable_micro_batch(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    group: int,
    l2: float = 0.0,
    criterion: LossFunction = F.cross_entropy,
) -> int | None:
    """How many examples a GPU can differentiate twice at a time: all, as None, or a multiple of `group` of them.

    Found by a product with the Hessian of a few examples, whose memory is that of many in proportion. On a CPU all.

    Parameters
    ----------
    model, images, labels, l2, criterion
        As for :func:`loss_hessian_vector_product`.
    group : int
        Examples that have to stay together.
    """
    if images.device.type != "cuda":
        return None
    pilot = min(len(images), group * max(1, PILOT // group))
    vector = flatten(list(trainable_parameters(model).values()))
    for _ in range(2):  # the first product makes libraries allocate what they keep
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)
        product = loss_hessian_vector_product(model, images[:pilot], labels[:pilot], l2=l2, criterion=criterion)
        product(vector)
        needed = torch.cuda.max_memory_allocated(images.device) - before
        del product  # and the graph that it keeps
    # What torch holds in reserve is free to it, though not to others.
    reserve = torch.cuda.memory_reserved(images.device) - torch.cuda.memory_allocated(images.device)
    free = torch.cuda.mem_get_info(images.device)[0] + reserve
    return largest_micro_batch(needed, free, pilot=pilot, group=group, examples=len(images))


def largest_micro_batch(needed: int, free: int, *, pilot: int, group: int, examples: int) -> int | None:
    """Examples for which a share of the free memory is enough, if `pilot` examples need `needed` bytes.

    A power of two of groups: a little more or less of free memory then changes no bit of a measurement.

    >>> largest_micro_batch(10, 1000, pilot=4, group=8, examples=10_000)
    128
    >>> largest_micro_batch(10, 1000, pilot=4, group=8, examples=100) is None
    True
    >>> largest_micro_batch(1000, 10, pilot=4, group=8, examples=100)
    8
    """
    most = int(SHARE_OF_MEMORY * free * pilot / max(needed, 1))
    return None if most >= examples else 2 ** (max(most // group, 1).bit_length() - 1) * group


@usual_torch()
def loss_gradient(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    l2: float = 0.0,
    micro_batch: int | None = None,
    criterion: LossFunction = F.cross_entropy,
) -> torch.Tensor:
    """Gradient of the loss whose Hessian :func:`loss_hessian_vector_product` multiplies by, as a vector of shape (P,).

    Parameters are as there.

    Examples
    --------
    >>> model = torch.nn.Linear(1, 2, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> loss_gradient(model, torch.tensor([[2.0]]), torch.tensor([0]))
    tensor([-1.,  1.])
    """
    loss, parameters = loss_function(model, l2=l2, criterion=criterion)
    total = torch.zeros_like(flatten(parameters))
    for shard in _shards(images, labels, micro_batch):
        weighted = loss(*shard) * (len(shard[1]) / len(labels))
        total += flatten(torch.autograd.grad(weighted, parameters, materialize_grads=True))
    return total


def loss_function(
    model: nn.Module, *, l2: float = 0.0, criterion: LossFunction = F.cross_entropy
) -> tuple[LossFunction, list[torch.Tensor]]:
    """The training-mode mean loss (plus ½·l2·‖ω‖²) as a function detached from the model: (loss, parameters).

    The parameters are copies of the trainable ones, and ``loss(images, labels)`` is a function of these copies:
    differentiating it leaves the model's own parameters, buffers and ``.grad`` alone. Every call starts from the same
    buffers, so that layers that change theirs (spectral normalisation) do not turn it into another function. Every call
    also makes its own copy of the images, which a network may change in place.
    """
    checks.instance("model", model, nn.Module, remedy="Pass a torch.nn.Module.")
    checks.function("criterion", criterion, remedy="Pass a function of (logits, labels), such as F.cross_entropy.")
    l2 = checks.scalar("l2", checks.at_least("l2", l2, 0.0, remedy="Use 0 for no penalty."))
    trainable = {name: p.detach().clone().requires_grad_() for name, p in trainable_parameters(model).items()}
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if name not in trainable}
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    parameters = list(trainable.values())
    checked = False

    def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal checked
        state = trainable | frozen | {name: buffer.clone() for name, buffer in buffers.items()}
        # Of torch's implementations of attention, only this one can be differentiated twice.
        with training_mode(model), sdpa_kernel(SDPBackend.MATH):
            logits = torch.func.functional_call(model, state, (own_copy(images, model),))
            if not checked and len(labels) > 1:
                check_mean(criterion, logits, labels)
                checked = True
            value = criterion(logits, labels)
        return value + 0.5 * l2 * torch.stack([p.square().sum() for p in parameters]).sum() if l2 else value

    return loss, parameters


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name; a ``ValueError`` if there are none."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    remedy = "Measure a model with at least one parameter that requires gradients."
    checks.require(bool(named), "model", "trainable parameters", "none", remedy)
    return named


def own_copy(images: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """A copy of the images for one pass through `model`; real numbers take the type of its real parameters."""
    of_model = next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)
    return images.to(dtype=of_model if images.is_floating_point() else images.dtype, copy=True)


def flatten(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The entries of all tensors, one tensor after the other, as one vector without a graph."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _shards(
    images: torch.Tensor, labels: torch.Tensor, micro_batch: int | None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels cut into consecutive pieces of `micro_batch` examples, or as one piece."""
    size = len(images) if micro_batch is None else micro_batch
    checks.integer("micro_batch", size, 1, remedy="Use a multiple of the ghost batch size.")
    return list(zip(torch.split(images, size), torch.split(labels, size), strict=True))


def _unflatten(vector: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    pieces = torch.split(vector, [tensor.numel() for tensor in like])
    return [piece.view(tensor.shape).to(tensor) for piece, tensor in zip(pieces, like, strict=True)]
