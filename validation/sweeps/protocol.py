"""What a sweep's protocol may say: runs and how many count, metrics, exponents, extensions. Each checks its input."""

from collections.abc import Iterable, Sequence
from typing import Any

from noisysgd.theory.common import checks
from noisysgd.theory.sweeps.grid import Grid
from noisysgd.validation.configuration import METRICS

FURTHEST = 1000
"""Largest exponent of two, either way: the range of doubles ends a little beyond 2^±1000."""
MOST_EXTENSIONS = 100
"""Points that a grid may gain at either end: learning rates then span thirty orders of magnitude more."""


def exponents(name: str, values: Iterable[Any]) -> Grid:
    """Exponents of two, ascending.

    >>> exponents("initial", [0, -2.0])
    (-2, 0)
    """
    given = list(values)
    remedy = "Learning rates are 2^k."
    found = [checks.integer(name, k, -FURTHEST, remedy=remedy) for k in given]
    distinct = 0 < len(found) == len(set(found))
    checks.require(distinct, name, "distinct integers k for 2^k, at least one", given, "Give a range.")
    checks.require(max(found) <= FURTHEST, name, f"integers from -{FURTHEST} to {FURTHEST}", given, remedy)
    return tuple(sorted(found))


def runs_kept(runs: Any, keep: Any, names: tuple[str, str] = ("seeds", "keep")) -> tuple[int, int]:
    """Runs at each point and how many of them count, as integers.

    >>> runs_kept(15, 12.0)
    (15, 12)
    """
    whole = checks.integer(names[0], runs, 1, remedy="Run each point at least once.")
    kept = checks.integer(names[1], keep, 1, remedy="Keep at least one run.")
    expected = f"at most the {whole} {names[0]}"
    checks.require(kept <= whole, names[1], expected, keep, f"Keep fewer or ask for more {names[0]}.")
    return whole, kept


def bracketed_metrics(metrics: Sequence[Any], name: str = "bracket") -> tuple[str, ...]:
    """Metrics to be bracketed, each named once.

    >>> bracketed_metrics(["train_loss"])
    ('train_loss',)
    """
    for metric in metrics:
        checks.require(metric in METRICS, name, f"names among {METRICS}", metric, "Choose from the records.")
    distinct = len(set(metrics)) == len(metrics)
    checks.require(distinct, name, "distinct metrics", list(metrics), "Name each once.")
    return tuple(metrics)


def extension(value: Any) -> int:
    """How many points a grid may gain at either end.

    >>> extension(4)
    4
    """
    remedy = "Use 0 for a fixed grid."
    count = checks.integer("extensions", value, 0, remedy=remedy)
    checks.require(count <= MOST_EXTENSIONS, "extensions", f"at most {MOST_EXTENSIONS}", value, remedy)
    return count


def distinct_values(name: str, values: Sequence[Any]) -> tuple[Any, ...]:
    """The values, of which there must be one and no two the same.

    >>> distinct_values("momenta", [0.0, 0.9])
    (0.0, 0.9)
    """
    different = 0 < len(values) == len(set(values))
    checks.require(different, name, "distinct values, at least one", list(values), "Name each once.")
    return tuple(values)
