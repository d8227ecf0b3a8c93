"""Large batches in pieces that fit into memory: the same gradient, to rounding, and the same batch statistics."""

from torch import nn

from noisysgd.theory import checks
from noisysgd.validation.networks import batch_norms


def pieces(batch_size: int, micro_batch_size: int | None) -> list[slice]:
    """Consecutive parts of a batch, none larger than `micro_batch_size`.

    Both sizes being multiples of the ghost batch, every part is whole ghost batches, and each the same examples as in
    the whole batch.

    >>> pieces(80, 32)
    [slice(0, 32, None), slice(32, 64, None), slice(64, 80, None)]
    >>> pieces(80, None)
    [slice(0, 80, None)]
    """
    size = batch_size if micro_batch_size is None else micro_batch_size
    return [slice(start, min(start + size, batch_size)) for start in range(0, batch_size, size)]


def check_separable(model: nn.Module) -> None:
    """Raise if a layer's statistics would depend on how a batch is cut: torch's own batch norms."""
    coupled = batch_norms(model)
    remedy = "Use GhostBatchNorm2d, whose groups micro-batches leave whole, or take batches whole."
    checks.require(not coupled, "micro_batch_size", "a network without torch's batch norms", coupled, remedy)
