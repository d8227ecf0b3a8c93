"""The average of a run's last parameters, with equal weights: over a share of the updates or all (Polyak, Ruppert).

Sums are kept in double precision on the device of the parameters, so that they forget nothing of what single precision
holds, and twice their memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from noisysgd.theory.moments.update_rule import tail_length


class TailAverage:
    """The mean of the parameters after each of the last ⌈tail · steps⌉ updates, as it grows.

    Parameters
    ----------
    parameters : sequence of tensors
        What is averaged; the very tensors that training changes.
    steps : int
        Updates of the run.
    tail : float
        Share of them, 0 < tail ≤ 1.

    Examples
    --------
    >>> weight = torch.zeros(1)
    >>> average = TailAverage([weight], steps=4, tail=0.5)
    >>> for step in range(1, 5):
    ...     average.add(step, [weight.fill_(step)])
    >>> average.count, average.means()
    (2, [tensor([3.5000], dtype=torch.float64)])
    """

    def __init__(self, parameters: Sequence[torch.Tensor], steps: int, tail: float) -> None:
        self._sums = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
        self._start = steps - tail_length(steps, tail)
        self.count = 0

    @torch.no_grad()
    def add(self, step: int, parameters: Sequence[torch.Tensor]) -> None:
        """Count the parameters in that `step` updates have led to, if they are among the last ones."""
        if step > self._start:
            torch._foreach_add_(self._sums, [parameter.double() for parameter in parameters])
            self.count += 1

    def means(self) -> list[torch.Tensor]:
        """The averages so far, in double precision."""
        return [total / self.count for total in self._sums]

    @contextmanager
    def in_place(self, model: nn.Module, parameters: Sequence[torch.Tensor]) -> Iterator[None]:
        """Within the ``with`` block, `parameters` are their averages. Then they and the buffers are what they were."""
        tensors = [*parameters, *model.buffers()]
        before = [tensor.detach().clone() for tensor in tensors]
        try:
            with torch.no_grad():
                for parameter, mean in zip(parameters, self.means(), strict=True):
                    parameter.copy_(mean)
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"count": self.count, "sums": list(self._sums)}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        self.count = state["count"]
        for mine, past in zip(self._sums, state["sums"], strict=True):
            mine.copy_(past)
