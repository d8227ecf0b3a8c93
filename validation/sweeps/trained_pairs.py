"""Sweeps of training runs over pairs of an initial and a final learning rate (section 7.1)."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from noisysgd.theory.common.provenance import provenance
from noisysgd.theory.sweeps.curves import add_curves
from noisysgd.theory.sweeps.dataset import (
    DIVERGED,
    MISSING,
    STATUSES,
    UNFINISHED,
    metric_attributes,
    status_attributes,
)
from noisysgd.theory.sweeps.directions import kind_of
from noisysgd.theory.sweeps.grid import Grid
from noisysgd.theory.sweeps.rate_pairs import STARTS, best_pair, wider_pair
from noisysgd.validation.configuration import METRICS, TrainConfig
from noisysgd.validation.sweeps.growing_sweep import (
    GrowingSweep,
    RateWindows,
    Record,
    Setting,
    in_words,
    provenances,
)
from noisysgd.validation.sweeps.protocol import exponents

SCHEMA = "noisysgd pairs"
ENDS = ("initial", "final")
"""The axes of a window: effective learning rates at the beginning and at the end of training."""
VARIED = ("learning_rate", "final_learning_rate", "seed")


@dataclass(frozen=True, kw_only=True)
class PairSweep(GrowingSweep):
    """A grid of training runs over initial × final learning rates that grows until the best pairs lie inside it.

    The learning rate is constant for half the steps and then drops ten times by the factor γ = (initial/final)^(1/10).

    Parameters
    ----------
    base : TrainConfig
        Everything that the grid does not vary, batch size and momentum included. The first seed is the base's.
    initial, final : sequence of int
        Exponents k of the effective learning rates ε/(1−m) = 2^k to begin with, at the beginning and at the end of
        training.
    seeds, keep : int
        Runs per pair, and how many of them, the best, count; the paper has 7 and 5.
    bracket : sequence of str
        Metrics whose best pairs, as :func:`noisysgd.theory.sweeps.rate_pairs.best_pair` finds them, must lie inside the
        grid with their error bars.
    extensions : int
        Learning rates that either axis may grow by, at each end, to bracket an optimum; at most 100.
    budgets : sequence of float, optional
        Several budgets instead of the base's own, in its unit.

    Raises
    ------
    ValueError
        For an impossible grid.

    Examples
    --------
    >>> base = TrainConfig(learning_rate=1.0, batch_size=64, steps=20, momentum=0.9)
    >>> pairs = PairSweep(base=base, initial=[-2, -1, 0], final=[-10, -8], seeds=2, keep=1)
    >>> len(pairs.plan())
    12
    """

    base: TrainConfig
    initial: Sequence[int] = STARTS["initial"]
    final: Sequence[int] = STARTS["final"]
    seeds: int = 7
    keep: int = 5
    bracket: Sequence[str] = ("train_loss", "test_accuracy")
    extensions: int = 4
    budgets: Sequence[float] | None = None

    def __post_init__(self) -> None:
        self._set(bracket=(self.bracket,) if isinstance(self.bracket, str) else self.bracket)
        self._check_shared_fields()
        self._set(**{name: exponents(name, getattr(self, name)) for name in ENDS})
        self._check_runs()

    def start(self) -> RateWindows:
        """The windows to begin with: the axes ``initial`` and ``final``, the same for every budget."""
        axes = {"initial": tuple(self.initial), "final": tuple(self.final)}
        return {(self.base.momentum, self.base.batch_size, budget): axes for budget in self._budgets()}

    def _variations(self, setting: Setting, axes: Mapping[str, Grid]) -> Iterator[dict[str, Any]]:
        unit = 1.0 - self.base.momentum  # from effective learning rates to learning rates
        for i, f in itertools.product(axes["initial"], axes["final"]):
            yield {"learning_rate": 2.0**i * unit, "final_learning_rate": 2.0**f * unit}

    def collect(self, windows: RateWindows, records: Sequence[Record], more: Sequence[str] = ()) -> xr.Dataset:
        """Metrics and status over (initial, final, seed), and over budget if there are several.

        The coordinates ``initial`` and ``final`` are effective learning rates. A diverged run has the loss ``inf`` and
        the accuracy NaN; a missing or unfinished one has NaN for both. Parameters are those of
        :meth:`GrowingSweep.collect`.
        """
        budgets = [budget for _, _, budget in windows]
        axes: dict[str, list[Any]] = {"budget": budgets}
        # Windows differ from budget to budget: the dataset spans them all.
        for name in ENDS:
            axes[name] = sorted({2.0**k for each in windows.values() for k in each[name]})
        axes["seed"] = [self.base.seed + seed for seed in range(self.seeds)]
        shape = tuple(map(len, axes.values()))
        status = np.full(shape, MISSING, dtype=np.int8)
        table = {name: np.full(shape, np.nan) for name in (*METRICS, *more)}
        for (_, _, budget), planned in windows.items():
            place = [[axes[name].index(2.0**k) for k in planned[name]] for name in ENDS]
            status[np.ix_([budgets.index(budget)], *place)] = UNFINISHED
        unit = 1.0 - self.base.momentum
        # Budgets and seeds are found by equality. Effective learning rates are computed back from those of the records,
        # with rounding, and are found by nearness.
        places = {name: {value: k for k, value in enumerate(values)} for name, values in axes.items()}
        curves: dict[tuple[int, ...], Any] = {}
        for record in records:
            config = record["config"]
            budget = None if self.budgets is None else config[self.unit]
            at = (
                places["budget"][budget],
                _nearest(axes["initial"], config["learning_rate"] / unit),
                _nearest(axes["final"], config["final_learning_rate"] / unit),
                places["seed"][config["seed"]],
            )
            status[at] = STATUSES[record["status"]]
            curves[at] = record.get("curve")
            for name, values in table.items():
                worst = np.inf if kind_of(name) == "loss" and status[at] == DIVERGED else np.nan
                values[at] = worst if record.get(name) is None else record[name]
        dims = tuple(axes)
        dataset = xr.Dataset(
            {"status": (dims, status)} | {name: (dims, values) for name, values in table.items()},
            {name: axes[name] for name in (*ENDS, "seed")},
            {
                "schema": SCHEMA,
                "schema_version": 1,
                "source": "training",
                "momentum": self.base.momentum,
                "batch_size": self.base.batch_size,
                "configuration": json.dumps(self._shared_configuration(*VARIED), sort_keys=True),
                "runs_provenance": provenances(records),
            }
            | provenance(),
        )
        dataset.status.attrs = status_attributes()
        for name in table:
            dataset[name].attrs = metric_attributes(name)
        for name in ENDS:
            dataset[name].attrs = {"long_name": f"{name} effective learning rate", "units": "1"}
        dataset = add_curves(dataset, curves)
        if self.budgets is None:  # the axis was only there to treat both cases alike
            return dataset.isel(budget=0)
        dataset = dataset.assign_coords(budget=np.array(budgets, dtype=np.float64))
        dataset.budget.attrs = {"long_name": "budget", "units": self.unit}
        return dataset

    def grow(self, windows: RateWindows, dataset: xr.Dataset) -> RateWindows:
        """Windows with another learning rate at each end of an axis that the error bar of a metric touches."""
        grown: dict[Setting, dict[str, Grid]] = {}
        for setting, axes in windows.items():
            wanted = wider_pair(axes, self._best(setting, axes, dataset).values())
            first = {"initial": self.initial, "final": self.final}
            # wider_pair knows no limit of ours: drop what it adds at an end that has had all its extensions.
            grown[setting] = {
                name: tuple(
                    k
                    for k in grid
                    if k in axes[name]
                    or (k < first[name][0] and _below(axes[name], first[name][0]) < self.extensions)
                    or (k > first[name][-1] and _above(axes[name], first[name][-1]) < self.extensions)
                )
                for name, grid in wanted.items()
            }
        return grown

    def limits(self, windows: RateWindows) -> RateWindows:
        """The given windows, grown by `extensions` learning rates at either end of both axes."""
        touched = xr.Dataset({f"{name}_{end}": np.nan for name in ENDS for end in ("low", "high")})
        full: dict[Setting, dict[str, Grid]] = {}
        for setting in windows:
            axes: dict[str, Grid] = dict(self.start()[setting])
            # The growing rule knows its own steps and limits: give it an optimum whose error bar touches all four ends.
            for _ in range(self.extensions):
                ends = {f"{n}_{end}": 2.0 ** axes[n][k] for n in axes for end, k in (("low", 0), ("high", -1))}
                axes = wider_pair(axes, [touched.assign(ends)])
            full[setting] = axes
        return full

    def unbracketed(self, windows: RateWindows, dataset: xr.Dataset) -> list[str]:
        """In words, where and for which metric a learning rate or its error bar is at an end of the grid."""
        return [
            f"{name} learning rate of {metric} at {in_words(setting, self.unit)}"
            for setting, axes in windows.items()
            for metric, best in self._best(setting, axes, dataset).items()
            for name in ENDS
            if not bool(best[f"{name}_bracketed"])
        ]

    def _best(self, setting: Setting, axes: Mapping[str, Grid], dataset: xr.Dataset) -> dict[str, xr.Dataset]:
        """The best pair of every metric at one setting, among the pairs that were tried there."""
        budget = setting[2]
        here = dataset if budget is None else dataset.sel(budget=budget)
        # Learning rates that only other budgets have grown to were not tried here: an optimum at the end of what was
        # tried would seem to lie inside.
        tried = here.sel({name: [2.0**k for k in grid] for name, grid in axes.items()})
        return {metric: best_pair(tried, metric, self.keep) for metric in self.metrics}


def _nearest(rates: Sequence[float], rate: float) -> int:
    """Index of `rate` in `rates`, up to rounding: it is a learning rate divided by 1 − m again."""
    return int(np.argmin(np.abs(np.log2(rates) - np.log2(rate))))


def _below(grid: Grid, end: int) -> int:
    """How many exponents of a grid are below `end`."""
    return sum(k < end for k in grid)


def _above(grid: Grid, end: int) -> int:
    """How many exponents of a grid are above `end`."""
    return sum(k > end for k in grid)
