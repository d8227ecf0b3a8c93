"""What updates are fed with: batches, crops and learning rates, drawn many steps ahead and sent to the device at once.

Each is a function of (seed, step). On a GPU the numbers of the next block are drawn by a thread while the present block
is worked through, and an update finds its row by a counter that lives on the device: between two blocks the host does
nothing but launch updates.
"""

import concurrent.futures
import functools
from dataclasses import dataclass

import numpy as np
import torch

from noisysgd.theory.schedules.schedule import Schedule
from noisysgd.validation.configuration import TrainConfig
from noisysgd.validation.data.augmentation import random_choices
from noisysgd.validation.training.inputs import minibatch, weighted_draws

STEPS_ON_CPU, STEPS_ON_GPU = 32, 256
"""Most steps of a block. On a CPU drawing many at once only saves some time; on a GPU there is a launch to hide."""
MOST_WORDS, MOST_INDICES = 2**24, 2**22
"""Most random words that a block is drawn from, and most indices that it holds."""


@dataclass(frozen=True)
class Portion:
    """What one update takes: ``draws`` batches of B examples, two under SVAG and otherwise one.

    Parameters
    ----------
    batches : (draws, B) tensor of int64
        Indices into the training set.
    crops : (draws, B, 3) tensor of int64, or None
        What is done to each image: see :func:`~noisysgd.validation.data.augmentation.random_choices`.
    rate : tensor
        The learning rate, a number.
    """

    batches: torch.Tensor
    crops: torch.Tensor | None
    rate: torch.Tensor


class Feed:
    """The portions of a run, step by step.

    Parameters
    ----------
    config : TrainConfig
    schedule : Schedule
        Of all updates of the run.
    examples : int
        Size of the training set.
    batch_sizes : Schedule, optional
        Of as many updates, where the batch size is not that of the configuration throughout.

    Examples
    --------
    >>> from noisysgd.theory import constant
    >>> config = TrainConfig(learning_rate=0.5, batch_size=4, ghost_batch_size=4, steps=3)
    >>> feed = Feed(config, constant(3), examples=10)
    >>> feed.at(2).batches.shape, float(feed.at(2).rate)
    (torch.Size([1, 4]), 0.5)
    """

    def __init__(
        self, config: TrainConfig, schedule: Schedule, examples: int, batch_sizes: Schedule | None = None
    ) -> None:
        self._config, self._schedule, self._examples = config, schedule, examples
        self._sizes = batch_sizes or Schedule([schedule.steps], [config.batch_size])
        widest = int(self._sizes.multipliers.max())
        self._device = torch.device(config.device)
        on_gpu = self._device.type == "cuda"
        most = STEPS_ON_GPU if on_gpu else STEPS_ON_CPU
        draws = config.batches_per_update
        room = min(MOST_WORDS // examples, MOST_INDICES // widest) // draws
        self.length = max(1, min(most, room, schedule.steps))
        self._first: int | None = None
        self._next: concurrent.futures.Future[Portion] | None = None
        self._ahead = on_gpu
        # Fixed places in memory, in which every update looks up its row: a captured update reads them again and again.
        shape = self.length, draws, widest
        kind = torch.float32 if on_gpu else torch.float64  # what the fused update takes a learning rate as
        self._table = Portion(
            torch.zeros(shape, dtype=torch.int64, device=self._device),
            torch.zeros((*shape, 3), dtype=torch.int64, device=self._device) if config.augment else None,
            torch.zeros(self.length, dtype=kind, device=self._device),
        )
        self.row = torch.zeros(1, dtype=torch.int64, device=self._device)

    def at(self, step: int) -> Portion:
        """The portion of a step, found by the host."""
        self.load(step)
        k = step - self.first
        crops = None if self._table.crops is None else self._table.crops[k, :, : self.size]
        return Portion(self._table.batches[k, :, : self.size], crops, self._table.rate[k])

    @property
    def first(self) -> int:
        """The first step of the block that is on the device."""
        assert self._first is not None
        return self._first

    @property
    def end(self) -> int:
        """The step after the last of that block, in which all batches have the same :attr:`size`."""
        return self._block_end(self.first)

    @property
    def size(self) -> int:
        """Number of examples of the batches of that block."""
        return int(self._sizes.at(min(self.first, self._sizes.steps - 1)))

    def _block_end(self, first: int) -> int:
        """Where a block that begins at `first` ends: once it is full, or where the batch size changes."""
        changes = self._sizes.boundaries
        later = changes[changes > first]
        return min(first + self.length, int(later[0]) if later.size else first + self.length)

    def load(self, step: int) -> None:
        """Have the block that holds `step` on the device, with the counter at that step; nothing if it is there."""
        if self._first is not None and self._first <= step < self.end:
            return
        block = self._drawn(step)
        count, size = len(block.rate), block.batches.shape[-1]
        for place, new in ((self._table.batches, block.batches), (self._table.crops, block.crops)):
            if place is not None and new is not None:
                place[:count, :, :size].copy_(new, non_blocking=True)
        self._table.rate[:count].copy_(block.rate, non_blocking=True)
        self.row.zero_()
        self._first = step
        if self._ahead and self.end < self._schedule.steps:
            self._next = _drawer().submit(self._draw, self.end)
            self._next_first = self.end

    def forget(self) -> None:
        """Draw afresh, and set the counter, when a portion is asked for next: after a jump to another step."""
        self._first = self._next = None

    def following(self) -> Portion:
        """The portion that the counter on the device points to; the counter moves on."""
        batches = self._table.batches[:, :, : self.size].index_select(0, self.row)[0]
        crops = None if self._table.crops is None else self._table.crops[:, :, : self.size].index_select(0, self.row)[0]
        rate = self._table.rate.index_select(0, self.row)[0]
        self.row += 1
        return Portion(batches, crops, rate)

    def _drawn(self, first: int) -> Portion:
        if self._next is not None and self._next_first == first:
            waiting, self._next = self._next, None
            return waiting.result()
        return self._draw(first)

    def _draw(self, first: int) -> Portion:
        """The portions of the steps of a block, on the host; of steps beyond the end of the run, the last rate."""
        config, steps = self._config, np.arange(first, self._block_end(first))
        size = int(self._sizes.at(min(first, self._sizes.steps - 1)))
        draws = [[draw for _, draw in weighted_draws(config.dynamics, config.svag, int(step))] for step in steps]
        batches = np.stack([[minibatch(config.seed, draw, size, self._examples) for draw in row] for row in draws])
        crops = None
        if config.augment:
            chosen = [
                [random_choices(batch, seed=config.seed, step=draw) for batch, draw in zip(some, row, strict=True)]
                for some, row in zip(batches, draws, strict=True)
            ]
            crops = self._pinned(torch.from_numpy(np.stack(chosen)))
        multipliers = self._schedule.at(np.minimum(steps, self._schedule.steps - 1))
        rates = torch.from_numpy(config.learning_rate * multipliers / config.svag).to(self._table.rate.dtype)
        return Portion(self._pinned(torch.from_numpy(batches)), crops, self._pinned(rates))

    def _pinned(self, numbers: torch.Tensor) -> torch.Tensor:
        """Memory that can be sent while the host goes on."""
        return numbers.pin_memory() if self._ahead else numbers


@functools.cache
def _drawer() -> concurrent.futures.ThreadPoolExecutor:
    """One thread of this process, which draws ahead for all its runs."""
    return concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="batches")
