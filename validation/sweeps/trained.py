"""Sweeps of training runs over optimizers, batch sizes, budgets, learning rates and seeds."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from noisysgd.theory.common import checks
from noisysgd.theory.sweeps.directions import MAXIMIZE, objective_of
from noisysgd.theory.sweeps.grid import Grid, error_bar, optimum_at, wider
from noisysgd.theory.sweeps.optimum_rule import optimum
from noisysgd.theory.sweeps.records import sweep_from_records
from noisysgd.validation.configuration import METRICS, TrainConfig
from noisysgd.validation.sweeps.growing_sweep import (
    GrowingSweep,
    RateWindows,
    Record,
    Setting,
    in_words,
    provenances,
)
from noisysgd.validation.sweeps.protocol import FURTHEST, MOST_RUNS, distinct_values, exponents, listed

MOST_DOUBLINGS = 30
"""Largest number of doublings of an unlimited budget, to a billion times the first."""
VARIED = ("learning_rate", "batch_size", "momentum", "seed")


@dataclass(frozen=True, kw_only=True)
class Unlimited:
    """The unlimited budget (section 2): the budget is doubled for as long as longer training helps.

    Training has ceased to help when, from one budget to the next, the best mean of the metric over learning rates
    improves by no more than one standard deviation of the runs behind that mean, or when every run of the last budget
    diverged.

    Parameters
    ----------
    metric : str
        The metric by which this is judged.
    target : float, optional
        Stop instead at the first budget whose best mean reaches this value.
    doublings : int
        Doublings of the first budget at most, up to 30; from 50 to 6400 epochs there are 7.

    Raises
    ------
    ValueError
        For an unknown metric, or too many doublings.
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
        """Whether no longer budget is to be tried.

        Parameters
        ----------
        before, last : xarray.Dataset
            What :func:`noisysgd.theory.optimum` finds at the last budget but one (``None`` if there is none), and at
            the last.
        """
        sign = -1.0 if objective_of(self.metric) == MAXIMIZE else 1.0  # so that smaller is better
        mean = sign * float(last["mean"])
        if not np.isfinite(mean):  # what diverges also diverges when it is trained for longer
            return True
        # A target is a rule of its own: until it is reached it does not matter how little the last doubling helped.
        if self.target is not None:
            return mean <= sign * self.target
        if before is None or not np.isfinite(before["mean"]):
            return False
        return not mean < sign * float(before["mean"]) - float(before["std"])


@dataclass(frozen=True, kw_only=True)
class Sweep(GrowingSweep):
    """A grid of training runs that grows until the optima lie inside it.

    Parameters
    ----------
    base : TrainConfig
        Everything that the grid does not vary. The first seed is the base's.
    batch_sizes : sequence of int
    momenta : sequence of float
        0 is plain SGD.
    exponents : mapping or sequence of int
        Exponents k of the effective learning rates ε/(1−m) = 2^k to begin with. A mapping from (momentum, batch size)
        gives each combination a window of its own.
    seeds : int
        Runs at each learning rate.
    bracket : str, sequence of str or None
        Metrics whose optima, as :func:`noisysgd.theory.optimum` finds them, must lie inside the grid with their error
        bars. Each metric has its own optimum: the learning rate of the smallest training loss need not be that of the
        best test accuracy (section 7). ``None`` keeps the grid as it is.
    keep : int
        The best so many of the `seeds` runs count; the paper keeps 12 of 15.
    extensions : int
        Learning rates that a window may grow by, at each end, to bracket an optimum; at most 100.
    budgets : sequence of float, optional
        Several budgets instead of the base's own, in its unit (epochs or steps).
    unlimited : Unlimited, optional
        Doubles the largest budget for as long as that helps. The metric of the rule must be among those of `bracket`,
        since whether longer training helps has to be judged at tuned learning rates. If there is no metric to bracket,
        grids are fixed and the rule judges within them.

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
        self._check_shared_fields()
        remedy = "A batch has at least one example."
        sizes = [
            checks.integer("batch_size", size, 1, remedy=remedy) for size in listed("batch_sizes", self.batch_sizes)
        ]
        momenta = [
            checks.scalar("momenta", checks.momentum(momentum, "momenta"))
            for momentum in listed("momenta", self.momenta)
        ]
        self._set(
            batch_sizes=distinct_values("batch_sizes", sizes, "batch_size"),
            momenta=distinct_values("momenta", momenta, "momentum"),
        )
        points, remedy = len(sizes) * len(momenta), "Use fewer values, or several sweeps."
        checks.require(points <= MOST_RUNS, "sweep", f"at most {MOST_RUNS} runs to begin with", points, remedy)
        if self.unlimited is not None:
            checks.instance("unlimited", self.unlimited, Unlimited, remedy="Make one with validation.Unlimited.")
        chosen = self.exponents
        if isinstance(chosen, Mapping):
            lacking = [pair for pair in self.points if pair not in chosen]
            expected = "a window for every (momentum, batch size)"
            checks.require(not lacking, "exponents", expected, f"none for {lacking}", "Add it.")
            chosen = {pair: exponents("exponents", chosen[pair]) for pair in self.points}
        else:
            chosen = exponents("exponents", chosen)
        self._set(exponents=chosen)
        if self.unlimited is not None and self.metrics:
            rule = self.unlimited.metric
            remedy = f"Whether more training helps is judged at tuned learning rates: bracket {rule!r} too."
            expected = f"the unlimited budget's metric {rule!r} among the bracketed metrics"
            checks.require(rule in self.metrics, "metric", expected, list(self.metrics), remedy)
        self._check_runs()

    @property
    def points(self) -> list[tuple[float, int]]:
        """All combinations (momentum, batch size)."""
        return list(itertools.product(self.momenta, self.batch_sizes))

    def start(self) -> RateWindows:
        """The windows to begin with: one axis ``learning_rate`` at every (momentum, batch size, budget)."""
        return {
            (momentum, size, budget): {"learning_rate": self._window((momentum, size))}
            for momentum, size in self.points
            for budget in self._budgets()
        }

    def _variations(self, setting: Setting, axes: Mapping[str, Grid]) -> Iterator[dict[str, Any]]:
        momentum, size, _ = setting
        # Windows are of effective learning rates ε/(1−m), in which momenta share their optimum at small batches.
        for exponent in axes["learning_rate"]:
            rate = 2.0**exponent * (1.0 - momentum)
            yield {"momentum": float(momentum), "batch_size": size, "learning_rate": rate}

    def collect(self, windows: RateWindows, records: Sequence[Record], more: Sequence[str] = ()) -> xr.Dataset:
        """A Sweep (see :func:`noisysgd.theory.load_sweep`) over optimizer, batch size, learning rate and seed.

        There is a dimension ``budget`` too if the sweep has several. Parameters are those of
        :meth:`GrowingSweep.collect`.
        """
        several = self._several_budgets
        # The dataset gets a dimension of budgets if its rows have one.
        rows = [
            record["config"] | record | ({"budget": record["config"][self.unit]} if several else {})
            for record in records
        ]
        rows += self._unfinished(windows, rows)
        shared = self._shared_configuration(*VARIED)
        dataset = sweep_from_records(rows, source="training", metrics=(*METRICS, *more), configuration=shared)
        if several:
            dataset.budget.attrs = {"long_name": "budget", "units": self.unit}
        return dataset.assign_attrs(runs_provenance=provenances(records))

    def _unfinished(self, windows: RateWindows, rows: Sequence[Record]) -> list[dict[str, Any]]:
        """A row for every planned run that has none: an optimum beside it is not bracketed."""
        names = (*VARIED, "budget") if self._several_budgets else VARIED
        found = {tuple(row[name] for name in names) for row in rows}
        planned = (
            changes | {"seed": self.base.seed + seed, "budget": setting[2], "status": "unfinished"}
            for setting, axes in windows.items()
            for changes in self._variations(setting, axes)
            for seed in range(self.seeds)
        )
        return [
            {name: row[name] for name in (*names, "status")} | {"nesterov": self.base.nesterov}
            for row in planned
            if tuple(row[name] for name in names) not in found
        ]

    def grow(self, windows: RateWindows, dataset: xr.Dataset) -> RateWindows:
        """Windows with another learning rate at each end that an error bar touches, or with a doubled budget.

        Budgets are doubled only when no window grows any more.
        """
        best = [optimum(dataset, metric, keep=self.keep) for metric in self.metrics]
        grown = dict(windows)
        for setting, axes in windows.items():
            momentum, size, _ = setting
            initial = self._window((momentum, size))
            bars = [error_bar(each, **_coordinates(setting)) for each in best]
            # Limits count from the initial window, so that growth does not depend on how many rounds it took.
            lowest = max(initial[0] - self.extensions, -FURTHEST)
            highest = min(initial[-1] + self.extensions, FURTHEST)
            grown[setting] = {"learning_rate": wider(axes["learning_rate"], bars, lowest=lowest, highest=highest)}
        # Whether a longer budget helps is judged by tuned learning rates: only once the windows have settled.
        if grown == windows and self.unlimited is not None:
            grown |= self._longer(windows, dataset, self.unlimited)
        return grown

    def limits(self, windows: RateWindows) -> RateWindows:
        """The given windows, grown as far as `extensions` and the doublings of an unlimited budget allow."""
        extensions = self.extensions if self.metrics else 0  # without metrics no window ever grows
        grown: dict[Setting, dict[str, Grid]] = {}
        for momentum, size, budget in self._possible_settings(windows):
            initial = self._window((momentum, size))
            below = range(max(initial[0] - extensions, -FURTHEST), initial[0])
            above = range(initial[-1] + 1, min(initial[-1] + extensions, FURTHEST) + 1)
            grown[momentum, size, budget] = {"learning_rate": (*below, *initial, *above)}
        return grown

    def _possible_settings(self, windows: RateWindows) -> list[Setting]:
        """The settings of the windows, and those that doublings of the budget may add."""
        if self.unlimited is None:
            return list(windows)
        last = max(budget for budget in self._budgets() if budget is not None)
        doubled = [last * 2**k for k in range(1, self.unlimited.doublings + 1)]
        return list(dict.fromkeys([*windows, *((*point, budget) for point in self.points for budget in doubled)]))

    def unbracketed(self, windows: RateWindows, dataset: xr.Dataset) -> list[str]:
        """In words, at which settings and for which metrics the optimum or its error bar is at an end of the grid.

        The metric of an unlimited budget's rule is among them even if no metric is to be bracketed.
        """
        rule = (self.unlimited.metric,) if self.unlimited is not None else ()
        lacking = []
        for metric in dict.fromkeys((*self.metrics, *rule)):
            best = optimum(dataset, metric, keep=self.keep)
            for setting in windows:
                if not bool(optimum_at(best, **_coordinates(setting)).bracketed):
                    lacking.append(f"{metric} at {in_words(setting, self.unit)}")
        return lacking

    def _longer(self, windows: RateWindows, dataset: xr.Dataset, rule: Unlimited) -> dict[Setting, dict[str, Grid]]:
        """Windows at twice the largest budget, for each (momentum, batch size) where longer training still helps."""
        best = optimum(dataset, rule.metric, keep=self.keep)
        added: dict[Setting, dict[str, Grid]] = {}
        for momentum, size in self.points:
            budgets = sorted(b for m, s, b in windows if (m, s) == (momentum, size) and b is not None)
            # Every doubling has added one budget to the initial ones.
            if len(budgets) - len(self._budgets()) >= rule.doublings:
                continue
            at = [optimum_at(best, momentum=momentum, batch_size=size, budget=b) for b in budgets[-2:]]
            if not rule.enough(at[-2] if len(at) > 1 else None, at[-1]):
                # Begin with the initial window again: at every budget the extensions count from there.
                added[momentum, size, 2 * budgets[-1]] = {"learning_rate": self._window((momentum, size))}
        return added

    @property
    def _several_budgets(self) -> bool:
        return self.budgets is not None or self.unlimited is not None

    def _budgets(self) -> list[float | None]:
        if self.unlimited is not None and self.budgets is None:
            return [self.base.epochs if self.base.steps is None else self.base.steps]
        return super()._budgets()

    def _window(self, point: tuple[float, int]) -> Grid:
        """The initial exponents at a (momentum, batch size)."""
        chosen = self.exponents
        return tuple(chosen[point] if isinstance(chosen, Mapping) else chosen)


def _coordinates(setting: Setting) -> dict[str, float]:
    """A setting as coordinates of a dataset."""
    momentum, size, budget = setting
    return {"momentum": momentum, "batch_size": size} | ({} if budget is None else {"budget": budget})
