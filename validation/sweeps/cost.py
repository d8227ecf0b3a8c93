"""Time and money that training runs cost: from a stated model, from one fitted to records, or to short timed runs."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.validation.configuration import TrainConfig
from noisysgd.validation.data.image_folders import described
from noisysgd.validation.schedules import DECAY, PAPER

TIMED_BATCH = 256
"""Largest batch of a timed run; the cost of larger ones is extrapolated."""
TIMED_SECONDS = 0.7
"""About how long the longer of the two timed runs of a batch size takes."""


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Seconds that one run takes: a + batches · (b · passes + c · batch size).

    There is one batch per step, or two under SVAG. A batch that goes through the network in pieces
    (``micro_batch_size``) takes as many passes.

    Parameters
    ----------
    seconds_per_run, seconds_per_step, seconds_per_example : float
        The coefficients a, b and c, in seconds.
    price_per_hour : float, optional
        Price of one hour of the device that trains one run at a time, in any currency.
    source : str
        Where the numbers come from, in words.

    Examples
    --------
    >>> model = CostModel(seconds_per_step=0.01, seconds_per_example=1e-4, source="a guess")
    >>> round(model.seconds(steps=9765, batch_size=1024)), round(model.seconds(steps=9765, batch_size=1024, passes=2))
    (1098, 1195)
    """

    seconds_per_run: float = 0.0
    seconds_per_step: float = 0.0
    seconds_per_example: float = 0.0
    price_per_hour: float | None = None
    source: str = "stated"

    def __post_init__(self) -> None:
        for name in ("seconds_per_run", "seconds_per_step", "seconds_per_example", "price_per_hour"):
            value = getattr(self, name)
            if value is not None:
                number = checks.scalar(name, checks.at_least(name, value, 0.0, remedy="Give a number ≥ 0."))
                object.__setattr__(self, name, number)

    @property
    def stated(self) -> bool:
        """Whether the model says anything about time: a model may state a price alone."""
        return self.seconds_per_run + self.seconds_per_step + self.seconds_per_example > 0

    def in_words(self) -> str:
        """The parts of a run's time that are not zero: a fit may find that one of them explains nothing.

        >>> CostModel(seconds_per_run=0.25, seconds_per_example=1e-4).in_words()
        '0.25 s to begin and end, and 0.0001 s per example'
        >>> CostModel(seconds_per_step=0.01).in_words()
        '0.01 s per pass of a batch or piece'
        """
        parts = {
            "to begin and end": self.seconds_per_run,
            "per pass of a batch or piece": self.seconds_per_step,
            "per example": self.seconds_per_example,
        }
        *before, last = [f"{seconds:.2g} s {words}" for words, seconds in parts.items() if seconds > 0] or ["no time"]
        return ", ".join([*before, f"and {last}"]) if before else last

    def seconds(self, *, steps: int, batch_size: int, passes: int = 1) -> float:
        """Seconds of one run that computes the gradients of `steps` batches, each in `passes` passes."""
        return self.seconds_per_run + steps * (passes * self.seconds_per_step + batch_size * self.seconds_per_example)

    def of(self, config: TrainConfig) -> float:
        """Seconds of one run."""
        passes, examples = passes_and_examples(config, steps_of(config))
        return self.seconds_per_run + passes * self.seconds_per_step + examples * self.seconds_per_example

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]], *, price_per_hour: float | None = None) -> Self | None:
        """The model that fits the times of finished runs best, by least squares of relative errors with a, b, c ≥ 0.

        If the records are all of one batch size, b and c cannot be told apart, and the model extrapolates badly to
        other batch sizes.

        Parameters
        ----------
        records : iterable of mappings
            Records of runs, as a store has them.
        price_per_hour : float, optional
            As in :class:`CostModel`.

        Returns
        -------
        CostModel or None
            ``None`` if no record has both ``steps`` and ``seconds``.
        """
        from scipy.optimize import nnls

        rows = [
            (*passes_and_examples(TrainConfig.from_dict(r["config"]), int(r["steps"])), r["seconds"])
            for r in records
            if _timed(r)
        ]
        if not rows:
            return None
        passes, examples, seconds = np.array(rows, dtype=np.float64).T
        columns = np.stack([np.ones_like(passes), passes, examples], axis=1)
        # Examples outnumber runs by many orders of magnitude: columns of size 1 make the problem well conditioned.
        scale = columns.max(axis=0)
        # Rows divided by the measured seconds, with 1 as their target: errors are relative, so that short runs count
        # as much as long ones.
        found = nnls(columns / scale / seconds[:, None], np.ones_like(seconds))[0] / scale
        return cls(
            seconds_per_run=found[0],
            seconds_per_step=found[1],
            seconds_per_example=found[2],
            source=f"fitted to {len(rows)} finished runs",
            price_per_hour=price_per_hour,
        )

    @classmethod
    def from_timed_runs(cls, configs: Sequence[TrainConfig], *, price_per_hour: float | None = None) -> Self:
        """The model fitted to short runs that are trained here and now, each with one thread, as the runs of a sweep.

        They have the smallest and the largest batch size of `configs`. Batches of more than 256 examples are not timed:
        the model extrapolates to them.

        Raises
        ------
        RuntimeError
            If no timed run has finished.
        """
        from noisysgd.validation.training.loop import train

        sizes = sorted({config.batch_size for config in configs})
        # The largest whole number of ghost batches up to the limit, unless the smallest batch is beyond it already.
        group = configs[0].ghost_batch_size
        largest = min(sizes[-1], max(sizes[0], TIMED_BATCH // group * group))
        rate = min(config.learning_rate for config in configs)  # the least likely to diverge
        shared: dict[str, Any] = {"learning_rate": rate, "final_learning_rate": None, "epochs": None, "evaluate_at": ()}
        shared |= {"rate_schedule": PAPER, "rate_multipliers": (), "decay": DECAY, "largest_batch_size": None}
        records = []
        for size in sorted({sizes[0], largest}):
            config = configs[0].with_(**shared, batch_size=size, steps=2)
            train(config)  # not timed: the first run also loads data and fills caches
            step = _seconds(train, config)["seconds"] / 2
            # Two lengths at each batch size: they tell the fixed cost of a run from the cost of its steps.
            many = int(np.clip(TIMED_SECONDS / step, 6, 60))
            records += [_seconds(train, config.with_(steps=steps)) for steps in (many // 3, many)]
        model = cls.from_records(records, price_per_hour=price_per_hour)
        if model is None:
            raise RuntimeError("no timed run came to its end. State a [cost] in the sweep's file.")
        where = f"timed here, by short runs at B = {' and '.join(map(str, sorted({sizes[0], largest})))}"
        return dataclasses.replace(model, source=where)


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """What a list of runs will cost.

    Parameters
    ----------
    runs, steps : int
        Number of runs, and of their updates in all.
    device_seconds, wall_seconds : float
        Time of all runs one after the other, and elapsed time on several workers.
    price : float or None
        Price of the device time, if the price of an hour is known.
    """

    runs: int
    steps: int
    device_seconds: float
    wall_seconds: float
    price: float | None

    @classmethod
    def of(cls, configs: Sequence[TrainConfig], model: CostModel, workers: int) -> Self:
        """The cost of `configs` by a model, on so many workers.

        The elapsed time is estimated by the larger of two lower bounds: the longest run, and the device time divided by
        the number of workers.

        >>> runs = [TrainConfig(learning_rate=1.0, batch_size=64, steps=100, seed=seed) for seed in range(4)]
        >>> CostEstimate.of(runs, CostModel(seconds_per_step=0.5), workers=2).wall_seconds
        100.0
        """
        each = [model.of(config) for config in configs]
        total = sum(each)
        return cls(
            runs=len(each),
            steps=sum(map(steps_of, configs)),
            device_seconds=total,
            wall_seconds=max(total / workers, max(each, default=0.0)),
            price=None if model.price_per_hour is None else total / 3600 * model.price_per_hour,
        )


def steps_of(config: TrainConfig) -> int:
    """Number of updates in the budget of a run; a ``ValueError`` if it cannot be evaluated where it is to be."""
    examples = training_examples(config)
    config.evaluation_steps(examples)
    return config.schedule(examples).steps


def passes_per_batch(config: TrainConfig) -> int:
    """Number of pieces in which a batch goes through the network.

    >>> passes_per_batch(TrainConfig(learning_rate=1.0, batch_size=80, steps=1, micro_batch_size=32))
    3
    """
    return math.ceil(config.batch_size / (config.micro_batch_size or config.batch_size))


def training_examples(config: TrainConfig) -> int:
    """Size of a configuration's training set."""
    return described(config.dataset).training_examples if config.subset is None else config.subset


def relative_cost(config: TrainConfig) -> float:
    """Cost of a run in units that runs of one budget share: the examples it sees, plus 40 for every pass of a batch."""
    fixed = 40.0 * passes_per_batch(config)
    if config.steps is not None:
        cost = config.steps * (config.batch_size + fixed)
    else:  # epochs · N/B updates; the size N of the training set is common to all runs and left out
        cost = (config.epochs or 0.0) * (1.0 + fixed / config.batch_size)
    return cost * config.svag * config.batches_per_update


def costliest_first(configs: list[TrainConfig]) -> list[TrainConfig]:
    """The order in which runs are started: the longest first, so that none is left to run alone at the end.

    Equal costs are ordered by seed, so that the first runs to finish cover the whole grid.
    """
    final = [config.final_learning_rate or 0.0 for config in configs]
    keys = [(-relative_cost(c), c.seed, c.momentum, c.learning_rate, f) for c, f in zip(configs, final, strict=True)]
    return [config for _, config in sorted(zip(keys, configs, strict=True), key=lambda pair: pair[0])]


def _seconds(train: Callable[[TrainConfig], dict[str, Any]], config: TrainConfig) -> dict[str, Any]:
    """The record of a run, with the time of the whole call as its ``seconds``."""
    started = time.perf_counter()
    return train(config) | {"seconds": time.perf_counter() - started}


def passes_and_examples(config: TrainConfig, steps: int) -> tuple[int, int]:
    """Passes through the network, and examples in them, of which the first `steps` updates compute gradients.

    >>> config = TrainConfig(learning_rate=1.0, batch_size=80, steps=10, micro_batch_size=32)
    >>> passes_and_examples(config, steps=10)
    (30, 800)
    """
    counts = [(steps, config.batch_size)]
    if config.largest_batch_size is not None:
        sizes = config.schedules(training_examples(config)).batch_size
        ends = np.minimum(np.cumsum(sizes.lengths), steps)
        counts = list(zip(np.diff(ends, prepend=0).tolist(), map(int, sizes.multipliers), strict=True))
    passes = sum(count * math.ceil(size / (config.micro_batch_size or size)) for count, size in counts)
    examples = sum(count * size for count, size in counts)
    return passes * config.batches_per_update, examples * config.batches_per_update


def _timed(record: Mapping[str, Any]) -> bool:
    """Whether a record says how many steps its run took in how many seconds."""
    return all(isinstance(record.get(name), int | float) and record[name] > 0 for name in ("steps", "seconds"))
