"""Whether the examples of a batch see each other in a network, as they do in torch's batch norms."""

import torch
from torch import nn

from noisysgd.validation.networks.arithmetic_precision import autocast_precision
from noisysgd.validation.networks.ghost_batch_norm import training_mode


@torch.no_grad()
def couples(model: nn.Module, images: torch.Tensor, size: int) -> bool:
    """Whether the training-mode logits of two groups of examples change when the groups are passed one by one.

    The network is left as it is. Of one whose logits are random nothing can be told: the answer is then False.

    Parameters
    ----------
    model : torch.nn.Module
    images : torch.Tensor
        Shape (2·size, …): two groups; within a group examples may see each other.
    size : int
        Examples in a group.

    Examples
    --------
    >>> class Centred(nn.Module):
    ...     def forward(self, x):
    ...         return x - x.mean(dim=0)
    >>> images = torch.arange(8.0).view(4, 2)
    >>> couples(Centred(), images, 2), couples(nn.Linear(2, 2), images, 2)
    (True, False)
    """
    with autocast_precision("float32", str(images.device)), training_mode(model):
        whole, again = logits(model, images), logits(model, images)
        parts = torch.cat([logits(model, part) for part in torch.split(images, size)])
    return near(whole, again) and not near(parts, whole)


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The logits of one pass that leaves the network's buffers and the images alone."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found: torch.Tensor = torch.func.functional_call(model, buffers, (images.clone(),))
    return found


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two results of the same computation are equal to half of their digits, with NaN in the same places."""
    # Passes may sum in another order, on several threads or a GPU.
    size = float(other.abs().nan_to_num().max()) if other.numel() else 0.0
    rounding = torch.finfo(other.dtype).eps ** 0.5 * size if other.is_floating_point() else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=rounding, equal_nan=True)
