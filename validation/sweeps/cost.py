"""What runs cost in time and money: from a model that is stated, from records, or from a short timed run."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.validation.configuration import TrainConfig
from noisysgd.validation.data.catalogue import DATASETS

TIMED_BATCH = 256
"""Largest batch of a timed run: what a step costs is extrapolated from there."""
TIMED_SECONDS = 0.7
"""About as long as one of the timed runs takes."""


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Seconds of one run: a + batches · (b · passes + c · batch size), with one batch per step, or two under SVAG.

    A batch that is passed through the network in pieces (``micro_batch_size``) costs b for each of them.

    Parameters
    ----------
    seconds_per_run, seconds_per_step, seconds_per_example : float
        a, b and c.
    price_per_hour : float, optional
        Of the device on which one run takes place.
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
        """Whether it says anything about time."""
        return self.seconds_per_run + self.seconds_per_step + self.seconds_per_example > 0

    def seconds(self, *, steps: int, batch_size: int, passes: int = 1) -> float:
        """Of one run that differentiates `steps` batches, each in so many passes."""
        return self.seconds_per_run + steps * (passes * self.seconds_per_step + batch_size * self.seconds_per_example)

    def of(self, config: TrainConfig) -> float:
        """Seconds of one run."""
        batches = steps_of(config) * config.batches_per_update
        return self.seconds(steps=batches, batch_size=config.batch_size, passes=passes_per_batch(config))

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]], **more: Any) -> Self | None:
        """The model that fits the seconds of finished runs best; ``None`` if none of them says how long it took.

        Least squares of relative errors under a, b, c ≥ 0. With runs of one kind only, it extrapolates as well as it
        can, and not well.
        """
        from scipy.optimize import nnls

        rows = [(*_passes_and_examples(r), r["seconds"]) for r in records if _timed(r)]
        if not rows:
            return None
        passes, examples, seconds = np.array(rows, dtype=np.float64).T
        columns = np.stack([np.ones_like(passes), passes, examples], axis=1)
        scale = columns.max(axis=0)
        found = nnls(columns / scale / seconds[:, None], np.ones_like(seconds))[0] / scale
        return cls(
            seconds_per_run=found[0],
            seconds_per_step=found[1],
            seconds_per_example=found[2],
            source=f"fitted to {len(rows)} finished runs",
            **more,
        )

    @classmethod
    def from_timed_runs(cls, configs: Sequence[TrainConfig], **more: Any) -> Self:
        """The model fitted to short runs, here and now, at the smallest and the largest batch size of `configs`.

        Batches larger than 256 are not timed but extrapolated to.
        """
        from noisysgd.validation.training.loop import train

        sizes = sorted({config.batch_size for config in configs})
        group = configs[0].ghost_batch_size
        largest = min(sizes[-1], max(sizes[0], TIMED_BATCH // group * group))
        rate = min(config.learning_rate for config in configs)
        shared: dict[str, Any] = {"learning_rate": rate, "final_learning_rate": None, "epochs": None}
        records = []
        for size in sorted({sizes[0], largest}):
            config = configs[0].with_(**shared, batch_size=size, steps=2)
            train(config)  # warms caches up
            step = _seconds(train, config)["seconds"] / 2
            many = int(np.clip(TIMED_SECONDS / step, 6, 60))
            records += [_seconds(train, config.with_(steps=steps)) for steps in (many // 3, many)]
        model = cls.from_records(records, **more)
        if model is None:
            raise RuntimeError("no timed run came to its end. State a [cost] in the sweep's file.")
        where = f"timed here, by short runs at B = {' and '.join(map(str, sorted({sizes[0], largest})))}"
        return cls(
            seconds_per_run=model.seconds_per_run,
            seconds_per_step=model.seconds_per_step,
            seconds_per_example=model.seconds_per_example,
            source=where,
            **more,
        )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of a list of runs: their number, device time, wall-clock time on so many workers, and price."""

    runs: int
    steps: int
    device_seconds: float
    wall_seconds: float
    price: float | None

    @classmethod
    def of(cls, configs: Sequence[TrainConfig], model: CostModel, workers: int) -> Self:
        """Of runs on `workers` workers: no shorter than the longest run, nor than the mean share of a worker.

        >>> runs = [TrainConfig(learning_rate=1.0, batch_size=64, steps=100, seed=seed) for seed in range(4)]
        >>> Estimate.of(runs, CostModel(seconds_per_step=0.5), workers=2).wall_seconds
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
    """Updates that a run is allowed."""
    return config.schedule(training_examples(config)).steps


def passes_per_batch(config: TrainConfig) -> int:
    """Pieces in which a batch is passed through the network.

    >>> passes_per_batch(TrainConfig(learning_rate=1.0, batch_size=80, steps=1, micro_batch_size=32))
    3
    """
    return math.ceil(config.batch_size / (config.micro_batch_size or config.batch_size))


def training_examples(config: TrainConfig) -> int:
    """Size of a configuration's training set."""
    return DATASETS[config.dataset].training_examples if config.subset is None else config.subset


def duration(seconds: float) -> str:
    """In words.

    >>> duration(0.2), duration(59), duration(3725), duration(1e6)
    ('0.2 s', '59 s', '1 h 2 min', '11 d 14 h')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min"
    days, left = divmod(round(seconds / 3600), 24)
    return f"{days} d {left} h"


def _seconds(train: Callable[[TrainConfig], dict[str, Any]], config: TrainConfig) -> dict[str, Any]:
    """A run's record, with the time that it took altogether."""
    started = time.perf_counter()
    return train(config) | {"seconds": time.perf_counter() - started}


def _passes_and_examples(record: Mapping[str, Any]) -> tuple[int, int]:
    """That a finished run differentiated."""
    config = TrainConfig.from_dict(record["config"])
    batches = int(record["steps"]) * config.batches_per_update
    return batches * passes_per_batch(config), batches * config.batch_size


def _timed(record: Mapping[str, Any]) -> bool:
    return all(isinstance(record.get(name), int | float) and record[name] > 0 for name in ("steps", "seconds"))
