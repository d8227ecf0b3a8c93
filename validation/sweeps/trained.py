"""Sweeps over optimizers, batch sizes, budgets, learning rates and seeds, on any executor, resumable at any moment."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from noisysgd.theory.common import checks
from noisysgd.theory.sweeps.dataset import sweep_from_records
from noisysgd.theory.sweeps.grid import Grid, error_bar, optimum_at, wider
from noisysgd.theory.sweeps.optimum_rule import optimum
from noisysgd.validation.configuration import METRICS, TrainConfig
from noisysgd.validation.sweeps.growth import Growing, Place, Progress, Windows, costliest_first
from noisysgd.validation.sweeps.protocol import (
    FURTHEST,
    bracketed_metrics,
    distinct_values,
    exponents,
    extension,
    runs_kept,
)

__all__ = ["METRICS", "Progress", "Sweep", "Unlimited"]

MOST_DOUBLINGS = 30
"""Of an unlimited budget: a billion times the first."""
VARIED = ("learning_rate", "batch_size", "momentum", "seed")


@dataclass(frozen=True, kw_only=True)
class Unlimited:
    """The unlimited budget (section 2): train longer, twice each time, for as long as it helps.

    Parameters
    ----------
    metric : str
        Where more training counts. It has ceased to help when, from one budget to the next, the best mean over
        learning rates improves by no more than one standard deviation of the runs behind it, or when every run of the
        last budget diverged.
    target : float, optional
        Stop instead at the first budget whose best mean reaches this value.
    doublings : int
        Most doublings of the first budget, up to 30; from 50 to 6400 epochs there are 7.
    """

    metric: str = "test_accuracy"
    target: float | None = None
    doublings: int = 7

    def __post_init__(self) -> None:
        checks.one_of("metric", self.metric, METRICS)
        remedy = "Use 0 for the first budget alone."
        doublings = checks.integer("doublings", self.doublings, 0, remedy=remedy)
        few = doublings <= MOST_DOUBLINGS
        checks.require(few, "doublings", f"at most {MOST_DOUBLINGS}", self.doublings, "Begin with a longer budget.")
        object.__setattr__(self, "doublings", doublings)
        if self.target is not None:
            object.__setattr__(self, "target", checks.scalar("target", self.target))

    def enough(self, before: xr.Dataset | None, last: xr.Dataset) -> bool:
        """Whether no longer budget is called for, from :func:`noisysgd.theory.optimum` at the last two."""
        sign = -1.0 if self.metric.endswith("accuracy") else 1.0
        mean = sign * float(last["mean"])
        if not np.isfinite(mean):  # training for longer does not mend what diverges
            return True
        if self.target is not None:
            return mean <= sign * self.target
        if before is None or not np.isfinite(before["mean"]):
            return False
        return not mean < sign * float(before["mean"]) - float(before["std"])


@dataclass(frozen=True, kw_only=True)
class Sweep(Growing):
    """A grid of training runs that grows until the optima lie inside it.

    Parameters
    ----------
    base : TrainConfig
        Everything that the grid does not vary.
    batch_sizes : sequence of int
    momenta : sequence of float
        0 is plain SGD.
    exponents : mapping or sequence of int
        Effective learning rates ε/(1−m) = 2^k to begin with. A mapping from (momentum, batch size) gives each its own
        window.
    seeds : int
        Runs at each point.
    bracket : str, sequence of str or None
        Metrics whose optima, each with its error bar, must come to lie inside the grid (``keep`` runs as in
        :func:`noisysgd.theory.optimum`). Each metric has its own optimum: the learning rate of the smallest training
        loss need not be that of the best test accuracy (section 7).
    keep : int
        Runs kept of each `seeds`; the paper keeps 12 of 15.
    extensions : int
        Learning rates that a window may grow by, at each end, in search of a bracket; at most 100.
    budgets : sequence of float, optional
        Several budgets instead of the base's own, in its unit (epochs or steps).
    unlimited : Unlimited, optional
        Adds budgets, doubling the largest, for as long as that helps. Its metric must be among those of `bracket`:
        whether more training helps is a question about tuned learning rates. With no metric to bracket, grids are
        fixed, and the rule decides within them.

    Raises
    ------
    ValueError
        For an impossible grid.

    Examples
    --------
    >>> base = TrainConfig(learning_rate=1.0, batch_size=64, steps=20)
    >>> sweep = Sweep(base=base, batch_sizes=[64, 256], momenta=[0.0, 0.9], exponents=range(-2, 2), seeds=2, keep=2)
    >>> len(sweep.plan())
    32
    """

    base: TrainConfig
    batch_sizes: Sequence[int]
    momenta: Sequence[float]
    exponents: Sequence[int] | Mapping[tuple[float, int], Sequence[int]]
    seeds: int
    bracket: str | Sequence[str] | None = "train_loss"
    keep: int = 1
    extensions: int = 4
    budgets: Sequence[float] | None = None
    unlimited: Unlimited | None = None

    def __post_init__(self) -> None:
        seeds, keep = runs_kept(self.seeds, self.keep)
        remedy = "A batch has at least one example."
        sizes = [checks.integer("batch_size", size, 1, remedy=remedy) for size in self.batch_sizes]
        momenta = [checks.scalar("momenta", checks.momentum(momentum, "momenta")) for momentum in self.momenta]
        values: dict[str, Any] = {"seeds": seeds, "keep": keep, "extensions": extension(self.extensions)}
        values |= {"batch_sizes": distinct_values("batch_sizes", sizes), "momenta": distinct_values("momenta", momenta)}
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if self.budgets is not None:
            distinct_values("budgets", [checks.scalar("budgets", budget) for budget in self.budgets])
        chosen = self.exponents
        if isinstance(chosen, Mapping):
            lacking = [pair for pair in self.points if pair not in chosen]
            expected = "a window for every (momentum, batch size)"
            checks.require(not lacking, "exponents", expected, f"none for {lacking}", "Add it.")
            chosen = {pair: exponents("exponents", chosen[pair]) for pair in self.points}
        else:
            chosen = exponents("exponents", chosen)
        object.__setattr__(self, "exponents", chosen)
        bracketed_metrics(self.metrics)
        if self.unlimited is not None and self.metrics:
            rule = self.unlimited.metric
            remedy = f"Whether more training helps is judged at tuned learning rates: bracket {rule!r} too."
            expected = f"the unlimited budget's metric {rule!r} among the bracketed metrics"
            checks.require(rule in self.metrics, "metric", expected, list(self.metrics), remedy)
        self.plan()  # every configuration checks itself

    @property
    def points(self) -> list[tuple[float, int]]:
        """All (momentum, batch size)."""
        return list(itertools.product(self.momenta, self.batch_sizes))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics to be bracketed."""
        if self.bracket is None:
            return ()
        return (self.bracket,) if isinstance(self.bracket, str) else tuple(self.bracket)

    @property
    def unit(self) -> str:
        """Unit of the budgets: ``epochs`` or ``steps``."""
        return "epochs" if self.base.steps is None else "steps"

    def start(self) -> Windows:
        """The windows to begin with: of every (momentum, batch size, budget), exponents of effective learning rates."""
        return {
            (momentum, size, budget): {"learning_rate": self._window((momentum, size))}
            for momentum, size in self.points
            for budget in self._budgets()
        }

    def plan(self, windows: Windows | None = None) -> list[TrainConfig]:
        """Configurations of the grid, the costliest first: those of the given windows, or of the initial ones."""
        return costliest_first(
            [
                self.base.with_(
                    momentum=float(momentum),
                    batch_size=size,
                    learning_rate=2.0**exponent * (1.0 - momentum),
                    seed=self.base.seed + seed,
                    **({} if budget is None else {self.unit: budget}),
                )
                for (momentum, size, budget), axes in (windows or self.start()).items()
                for exponent in axes["learning_rate"]
                for seed in range(self.seeds)
            ]
        )

    def collect(self, windows: Windows, records: Sequence[Mapping[str, Any]], more: Sequence[str] = ()) -> xr.Dataset:
        """A Sweep over (optimizer, batch_size, learning_rate, seed), and budget if the sweep has several."""
        several = self._several
        shared = {name: value for name, value in self.base.as_dict().items() if name not in VARIED}
        if several:
            del shared[self.unit]
        rows = [
            record["config"] | record | ({"budget": record["config"][self.unit]} if several else {})
            for record in records
        ]
        dataset = sweep_from_records(rows, source="training", metrics=(*METRICS, *more), configuration=shared)
        if several:
            dataset.budget.attrs = {"long_name": "budget", "units": self.unit}
        return dataset.assign_attrs(runs_provenance=provenances(records))

    def grow(self, windows: Windows, dataset: xr.Dataset) -> Windows:
        """Windows with a learning rate more where an error bar touches an end; then, where it helps, another budget."""
        best = [optimum(dataset, metric, keep=self.keep) for metric in self.metrics]
        grown = dict(windows)
        for place, axes in windows.items():
            momentum, size, _ = place
            initial = self._window((momentum, size))
            bars = [error_bar(each, **self._coordinates(place)) for each in best]
            lowest = max(initial[0] - self.extensions, -FURTHEST)
            highest = min(initial[-1] + self.extensions, FURTHEST)
            grown[place] = {"learning_rate": wider(axes["learning_rate"], bars, lowest=lowest, highest=highest)}
        if grown == windows and self.unlimited is not None:
            grown |= self._longer(windows, dataset, self.unlimited)
        return grown

    def limits(self, windows: Windows) -> Windows:
        """The given windows, grown as far as `extensions` and the doublings of an unlimited budget allow."""
        extensions = self.extensions if self.metrics else 0
        grown: dict[Place, dict[str, Grid]] = {}
        for momentum, size, budget in self._places(windows):
            initial = self._window((momentum, size))
            below = range(max(initial[0] - extensions, -FURTHEST), initial[0])
            above = range(initial[-1] + 1, min(initial[-1] + extensions, FURTHEST) + 1)
            grown[momentum, size, budget] = {"learning_rate": (*below, *initial, *above)}
        return grown

    def _places(self, windows: Windows) -> list[Place]:
        """Those of the windows, and those that doublings may add."""
        if self.unlimited is None:
            return list(windows)
        last = max(budget for budget in self._budgets() if budget is not None)
        doubled = [last * 2**k for k in range(1, self.unlimited.doublings + 1)]
        return list(dict.fromkeys([*windows, *((*point, budget) for point in self.points for budget in doubled)]))

    def unbracketed(self, windows: Windows, dataset: xr.Dataset) -> list[str]:
        """Where, and for which metric, the optimum or its error bar is still at an end of the grid, in words.

        Among the metrics is that of the rule of an unlimited budget, even where no metric is to be bracketed.
        """
        rule = (self.unlimited.metric,) if self.unlimited is not None else ()
        lacking = []
        for metric in dict.fromkeys((*self.metrics, *rule)):
            best = optimum(dataset, metric, keep=self.keep)
            for place in windows:
                if not bool(optimum_at(best, **self._coordinates(place)).bracketed):
                    lacking.append(f"{metric} at {describe(place, self.unit)}")
        return lacking

    def _longer(self, windows: Windows, dataset: xr.Dataset, rule: Unlimited) -> dict[Place, dict[str, Grid]]:
        best = optimum(dataset, rule.metric, keep=self.keep)
        added: dict[Place, dict[str, Grid]] = {}
        for momentum, size in self.points:
            budgets = sorted(b for m, s, b in windows if (m, s) == (momentum, size) and b is not None)
            if len(budgets) - len(self._budgets()) >= rule.doublings:
                continue
            at = [optimum_at(best, momentum=momentum, batch_size=size, budget=b) for b in budgets[-2:]]
            if not rule.enough(at[-2] if len(at) > 1 else None, at[-1]):
                added[momentum, size, 2 * budgets[-1]] = {"learning_rate": self._window((momentum, size))}
        return added

    def _coordinates(self, place: Place) -> dict[str, float]:
        momentum, size, budget = place
        return {"momentum": momentum, "batch_size": size} | ({} if budget is None else {"budget": budget})

    @property
    def _several(self) -> bool:
        return self.budgets is not None or self.unlimited is not None

    def _budgets(self) -> list[float | None]:
        if self.budgets is not None:
            return list(self.budgets)
        return [self.base.epochs if self.base.steps is None else self.base.steps] if self._several else [None]

    def _window(self, pair: tuple[float, int]) -> Grid:
        chosen = self.exponents
        return tuple(chosen[pair] if isinstance(chosen, Mapping) else chosen)


def provenances(records: Sequence[Mapping[str, Any]]) -> str:
    """The distinct versions, commits and machines behind records, as JSON; imported records may have several."""
    each = [record.get("provenance", []) for record in records]
    flat = [one for some in each for one in (some if isinstance(some, list) else [some])]
    return "[" + ", ".join(sorted({json.dumps(one, sort_keys=True) for one in flat})) + "]"


def describe(place: Place, unit: str) -> str:
    """A place in words.

    >>> describe((0.9, 64, 50.0), "epochs")
    'momentum 0.9, B = 64, 50 epochs'
    """
    momentum, size, budget = place
    return f"momentum {momentum:g}, B = {size}" + ("" if budget is None else f", {budget:g} {unit}")
