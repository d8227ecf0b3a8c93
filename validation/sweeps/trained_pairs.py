"""Initial and final learning rates of a network, tuned separately (section 7.1)."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from noisysgd.theory.common import checks
from noisysgd.theory.common.provenance import provenance
from noisysgd.theory.sweeps.dataset import COMPLETE, MISSING, STATUSES, UNITS
from noisysgd.theory.sweeps.grid import Grid
from noisysgd.theory.sweeps.rate_pairs import STARTS, best_pair, wider_pair
from noisysgd.validation.configuration import METRICS, TrainConfig
from noisysgd.validation.sweeps.growth import Growing, Place, Windows, costliest_first
from noisysgd.validation.sweeps.protocol import bracketed_metrics, distinct_values, exponents, extension, runs_kept
from noisysgd.validation.sweeps.trained import describe, provenances

SCHEMA = "noisysgd pairs"
VARIED = ("learning_rate", "final_learning_rate", "seed")


@dataclass(frozen=True, kw_only=True)
class PairSweep(Growing):
    """Runs over a grid of initial × final learning rates that grows until the best pair of every metric lies inside.

    The schedule is constant for half the steps and then drops ten times by γ = (initial/final)^(1/10).

    Parameters
    ----------
    base : TrainConfig
        Everything that the grid does not vary: among others batch size and momentum.
    initial, final : sequence of int
        Effective learning rates 2^k to begin with, of either end of training.
    seeds, keep : int
        Runs per pair, and how many of them count; the paper's 7 and 5.
    bracket : sequence of str
        Metrics, each with an optimum of its own; as :func:`noisysgd.theory.sweeps.rate_pairs.best_pair` finds it.
    extensions : int
        Points that a grid may gain, at either end, in search of a bracket; at most 100.
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
        seeds, keep = runs_kept(self.seeds, self.keep)
        bracket = (self.bracket,) if isinstance(self.bracket, str) else tuple(self.bracket)
        values: dict[str, Any] = {"seeds": seeds, "keep": keep, "extensions": extension(self.extensions)}
        values |= {"bracket": bracketed_metrics(bracket)}
        values |= {name: exponents(name, getattr(self, name)) for name in ("initial", "final")}
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if self.budgets is not None:
            distinct_values("budgets", [checks.scalar("budgets", budget) for budget in self.budgets])
        self.plan()  # every configuration checks itself

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics to be bracketed."""
        return tuple(self.bracket)

    @property
    def unit(self) -> str:
        """Unit of the budgets: ``epochs`` or ``steps``."""
        return "epochs" if self.base.steps is None else "steps"

    def start(self) -> Windows:
        """The windows to begin with, one pair of axes per budget."""
        axes = {"initial": tuple(self.initial), "final": tuple(self.final)}
        budgets: Sequence[float | None] = [None] if self.budgets is None else self.budgets
        return {(self.base.momentum, self.base.batch_size, budget): axes for budget in budgets}

    def plan(self, windows: Windows | None = None) -> list[TrainConfig]:
        """Configurations of the grid, the costliest first: those of the given windows, or of the initial ones."""
        unit = 1.0 - self.base.momentum
        return costliest_first(
            [
                self.base.with_(
                    learning_rate=2.0**i * unit,
                    final_learning_rate=2.0**f * unit,
                    seed=self.base.seed + seed,
                    **({} if budget is None else {self.unit: budget}),
                )
                for (_, _, budget), axes in (windows or self.start()).items()
                for i, f in itertools.product(axes["initial"], axes["final"])
                for seed in range(self.seeds)
            ]
        )

    def collect(self, windows: Windows, records: Sequence[Mapping[str, Any]], more: Sequence[str] = ()) -> xr.Dataset:
        """Metrics and status over (initial, final, seed), and budget if there are several.

        Coordinates ``initial`` and ``final`` are effective learning rates. A diverged run has an infinite loss and no
        accuracy; a missing one has neither.
        """
        budgets = [budget for _, _, budget in windows]
        axes: dict[str, list[Any]] = {"budget": budgets}
        for name in ("initial", "final"):
            axes[name] = sorted({2.0**k for each in windows.values() for k in each[name]})
        axes["seed"] = [self.base.seed + seed for seed in range(self.seeds)]
        shape = tuple(map(len, axes.values()))
        status = np.full(shape, MISSING, dtype=np.int8)
        table = {name: np.full(shape, np.nan) for name in (*METRICS, *more)}
        unit = 1.0 - self.base.momentum
        places = {name: {value: k for k, value in enumerate(values)} for name, values in axes.items()}
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
            for name, values in table.items():
                worst = np.inf if name.endswith("loss") and status[at] != COMPLETE else np.nan
                values[at] = worst if record.get(name) is None else record[name]
        dims = tuple(axes)
        varied = {*VARIED, *([self.unit] if self.budgets is not None else [])}
        shared = {name: value for name, value in self.base.as_dict().items() if name not in varied}
        dataset = xr.Dataset(
            {"status": (dims, status)} | {name: (dims, values) for name, values in table.items()},
            {name: axes[name] for name in ("initial", "final", "seed")},
            {
                "schema": SCHEMA,
                "schema_version": 1,
                "source": "training",
                "momentum": self.base.momentum,
                "batch_size": self.base.batch_size,
                "configuration": json.dumps(shared, sort_keys=True),
                "runs_provenance": provenances(records),
            }
            | provenance(),
        )
        flags = {"flag_values": np.array(list(STATUSES.values()), dtype=np.int8), "flag_meanings": " ".join(STATUSES)}
        dataset.status.attrs = flags | {"long_name": "status of the run"}
        for name in table:
            words = UNITS.get(name, (name, "1", "minimize"))
            dataset[name].attrs = dict(zip(("long_name", "units", "objective"), words, strict=True))
        for name in ("initial", "final"):
            dataset[name].attrs = {"long_name": f"{name} effective learning rate", "units": "1"}
        if self.budgets is None:
            return dataset.isel(budget=0)
        dataset = dataset.assign_coords(budget=np.array(budgets, dtype=np.float64))
        dataset.budget.attrs = {"long_name": "budget", "units": self.unit}
        return dataset

    def grow(self, windows: Windows, dataset: xr.Dataset) -> Windows:
        """Windows with one more point at each end that the error bar of a metric touches."""
        grown: dict[Place, dict[str, Grid]] = {}
        for place, axes in windows.items():
            wanted = wider_pair(axes, self._best(place, axes, dataset).values())
            first = {"initial": self.initial, "final": self.final}
            grown[place] = {
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

    def limits(self, windows: Windows) -> Windows:
        """The given windows, grown by `extensions` points at either end of both axes."""
        touched = xr.Dataset({f"{name}_{end}": np.nan for name in ("initial", "final") for end in ("low", "high")})
        full: dict[Place, dict[str, Grid]] = {}
        for place in windows:
            axes: dict[str, Grid] = dict(self.start()[place])
            for _ in range(self.extensions):
                ends = {f"{n}_{end}": 2.0 ** axes[n][k] for n in axes for end, k in (("low", 0), ("high", -1))}
                axes = wider_pair(axes, [touched.assign(ends)])
            full[place] = axes
        return full

    def unbracketed(self, windows: Windows, dataset: xr.Dataset) -> list[str]:
        """Where, and for which metric, a learning rate or its error bar is still at an end of the grid, in words."""
        return [
            f"{name} learning rate of {metric} at {describe(place, self.unit)}"
            for place, axes in windows.items()
            for metric, best in self._best(place, axes, dataset).items()
            for name in ("initial", "final")
            if not bool(best[f"{name}_bracketed"])
        ]

    def _best(self, place: Place, axes: Mapping[str, Grid], dataset: xr.Dataset) -> dict[str, xr.Dataset]:
        """The best pair of every metric at one place, judged on the grid that was tried there."""
        budget = place[2]
        here = dataset if budget is None else dataset.sel(budget=budget)
        tried = here.sel({name: [2.0**k for k in grid] for name, grid in axes.items()})
        return {metric: best_pair(tried, metric, self.keep) for metric in self.metrics}


def _nearest(rates: Sequence[float], rate: float) -> int:
    """Index of a learning rate that rounding may have moved by a bit."""
    return int(np.argmin(np.abs(np.log2(rates) - np.log2(rate))))


def _below(grid: Grid, end: int) -> int:
    return sum(k < end for k in grid)


def _above(grid: Grid, end: int) -> int:
    return sum(k > end for k in grid)
