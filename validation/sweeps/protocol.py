"""Checks of a sweep's arguments: numbers of runs, metrics, exponents, extensions. Each returns the checked value."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.sweeps.coordinates import equal_pair
from noisysgd.theory.sweeps.grid import Grid
from noisysgd.validation.configuration import METRICS

FURTHEST = 1000
"""Largest exponent k of a learning rate 2^±k: the range of doubles ends a little beyond 2^±1000."""
MOST_SEEDS = 10_000
"""Runs at one point."""
MOST_VALUES = 10_000
"""That one argument of a sweep may take."""
MOST_RUNS = 100_000
"""Runs that a sweep may plan to begin with."""
MOST_EXTENSIONS = 100
"""Points that a grid may gain at either end: thirty orders of magnitude of the learning rate."""

Number = TypeVar("Number", int, float)


def exponents(name: str, values: Iterable[object]) -> Grid:
    """`values` as exponents of two, ascending: distinct integers from -1000 to 1000, at least one.

    >>> exponents("initial", [0, -2.0])
    (-2, 0)
    """
    remedy = "Learning rates are 2^k."
    given = listed(name, values, remedy)
    found = [checks.integer(name, k, -FURTHEST, remedy=remedy) for k in given]
    distinct = 0 < len(found) == len(set(found))
    checks.require(distinct, name, "distinct integers k for 2^k, at least one", given, "Give a range.")
    checks.require(max(found) <= FURTHEST, name, f"integers from -{FURTHEST} to {FURTHEST}", given, remedy)
    return tuple(sorted(found))


def runs_kept(runs: object, keep: object, names: tuple[str, str] = ("seeds", "keep")) -> tuple[int, int]:
    """Runs at each point of a grid, and how many of them count, as integers; `names` are for error messages.

    >>> runs_kept(15, 12.0)
    (15, 12)
    """
    whole = checks.integer(names[0], runs, 1, maximum=MOST_SEEDS, remedy="Run each point at least once.")
    kept = checks.integer(names[1], keep, 1, remedy="Keep at least one run.")
    expected = f"at most the {whole} {names[0]}"
    checks.require(kept <= whole, names[1], expected, keep, f"Keep fewer or ask for more {names[0]}.")
    return whole, kept


def listed(name: str, values: object, remedy: str = "Write [x] for a single one.") -> list[Any]:
    """`values`, a collection of any kind that a sweep varies, as a list."""
    given = values.tolist() if isinstance(values, np.ndarray) and values.ndim == 1 else values
    entries = checks.several(name, given, object, remedy=remedy)
    checks.require(len(entries) <= MOST_VALUES, name, f"at most {MOST_VALUES} values", len(entries), remedy)
    return entries


def bracketed_metrics(metrics: object, name: str = "bracket") -> tuple[str, ...]:
    """`metrics`, if all are metrics of a run's record and none is named twice.

    >>> bracketed_metrics(["train_loss"])
    ('train_loss',)
    """
    metrics = checks.several(name, metrics, str, remedy=f"List some of {METRICS}.")
    for metric in metrics:
        checks.require(metric in METRICS, name, f"names among {METRICS}", metric, "Choose from the records.")
    distinct = len(set(metrics)) == len(metrics)
    checks.require(distinct, name, "distinct metrics", metrics, "Name each once.")
    return tuple(metrics)


def extension(value: object) -> int:
    """The number of points that a grid may gain at either end, from 0 to 100.

    >>> extension(4)
    4
    """
    remedy = "Use 0 for a fixed grid."
    count = checks.integer("extensions", value, 0, remedy=remedy)
    checks.require(count <= MOST_EXTENSIONS, "extensions", f"at most {MOST_EXTENSIONS}", value, remedy)
    return count


def distinct_values(name: str, values: Sequence[Number], coordinate: str) -> tuple[Number, ...]:
    """`values` of a coordinate of Sweeps, if there is at least one and no two are the same up to rounding.

    >>> distinct_values("momenta", [0.0, 0.9], "momentum")
    (0.0, 0.9)
    """
    different = bool(values) and equal_pair(coordinate, values) is None
    checks.require(different, name, "distinct values, at least one", list(values), "Name each once.")
    return tuple(values)
