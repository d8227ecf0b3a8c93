"""Updates of which the host learns late how they went, so that it never waits for a GPU between two of them.

Their losses wait on the device too, in a table of one block, until the host asks for all of them at once.

Whether a run has diverged is decided on the device, by the same rule as on a CPU. From the update on whose batch shows
it, no parameter and no velocity moves any more, so that asking later gives the answer that asking at once would have
given. An update is then the same work every time, and can be captured once, as one CUDA graph, and launched as a whole.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

WARM_UPS = 3
"""Updates before the capture, in which libraries choose and allocate what they need; their effects are undone."""


@dataclass(frozen=True)
class Divergence:
    """The update at which a run diverged, and the mean cross-entropy of its batches."""

    step: int
    loss: float


class Watch:
    """The state of a run as the device knows it: updates asked for, and the first one that was refused.

    Parameters
    ----------
    limit : float
        Largest loss of a run that goes on.
    device : str or torch.device
    step : int
        Updates taken before.
    length : int
        Most updates between two readings of their losses.

    Examples
    --------
    >>> watch = Watch(limit=10.0, device="cpu", step=5, length=3)
    >>> for row, loss in enumerate((2.0, float("nan"), 3.0)):
    ...     watch.note(torch.tensor(loss), row=torch.tensor([row + 1]))
    >>> watch.verdict()
    Divergence(step=6, loss=nan)
    >>> watch.losses(0, 1)
    [2.0]
    """

    def __init__(self, limit: float, device: str | torch.device, step: int = 0, length: int = 1) -> None:
        self.limit = limit
        self.refused = torch.zeros((), device=device)  # 1.0 once updates are refused: torch's fused update reads it so
        self.step = torch.full((), step, dtype=torch.int64, device=device)
        self.diverged_at = torch.full((), -1, dtype=torch.int64, device=device)
        self.loss = torch.zeros((), device=device)
        # Rows count from 1, as the feed's counter does once it has moved on: see note.
        self._losses = torch.zeros(length + 1, device=device)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that :meth:`note` changes."""
        return [self.refused, self.step, self.diverged_at, self.loss, self._losses]

    def restart(self, step: int) -> None:
        """Forget what was seen, and go on counting from `step`."""
        self.refused.zero_()
        self.diverged_at.fill_(-1)
        self.loss.zero_()
        self.step.fill_(step)

    @torch.no_grad()
    def note(self, loss: torch.Tensor, row: torch.Tensor) -> None:
        """Take notice of an update's loss, on the device. A loss that is not a number is beyond any limit.

        Parameters
        ----------
        loss : tensor
            A number.
        row : (1,) tensor of int64
            How many updates there have been in this block, with this one: where the loss is kept.
        """
        self._losses.index_copy_(0, row, loss.to(self._losses.dtype).reshape(1))
        beyond = (~(loss <= self.limit)).to(self.refused.dtype)
        first = beyond > self.refused
        self.diverged_at.copy_(torch.where(first, self.step, self.diverged_at))
        self.loss.copy_(torch.where(first, loss.to(self.loss.dtype), self.loss))
        self.refused.copy_(torch.maximum(self.refused, beyond))
        self.step += 1

    def losses(self, first: int, last: int) -> list[float]:
        """The losses of the updates `first`, …, `last` − 1 of the block, from 0. This waits for the device."""
        found: list[float] = self._losses[first + 1 : last + 1].tolist()
        return found

    def verdict(self) -> Divergence | None:
        """How the run diverged, if it did. This waits for the device."""
        step = int(self.diverged_at)
        return None if step < 0 else Divergence(step, float(self.loss))


def captured(update: Callable[[], None], changed: Iterable[torch.Tensor]) -> Callable[[], None]:
    """`update` as one CUDA graph, to be launched again and again; the very kernels that calling `update` launches.

    Parameters
    ----------
    update : callable
        Must do the same work every time, from and into the same places in memory, and never wait for the device.
    changed : iterable of tensors
        What an update changes: put back after the updates that warm up.
    """
    places = list(changed)
    before = [place.detach().clone() for place in places]
    # A stream of this run's own: libraries keep workspaces by stream, and runs that are captured on one and the same
    # would share theirs beyond the end of one of them. All of it on the device of the run, which need not be the first.
    with torch.cuda.device(places[0].device), torch.cuda.stream(torch.cuda.current_stream(places[0].device)):
        aside: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside), torch.no_grad():
            for _ in range(WARM_UPS):
                with torch.enable_grad():
                    update()
                for place, value in zip(places, before, strict=True):
                    place.copy_(value)  # each begins at the same row, since the table may have no other
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Recording does none of the work. Other threads, such as the one that draws batches, may go on meanwhile.
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            update()
    replay: Callable[[], None] = graph.replay
    return replay
