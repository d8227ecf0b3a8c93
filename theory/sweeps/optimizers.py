"""Labels of optimizers: ``sgd`` and ``momentum 0.9`` of the paper, and those of others by their names."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from noisysgd.theory.common import checks

PAPERS = ("sgd", "momentum", "sgdm", "heavy ball", "heavy_ball", "heavyball")
"""Names that stand for the paper's optimizer, which its momentum tells apart."""
NESTEROV = ("nesterov", "nag")
"""Names of the optimizer whose effective learning rate is ε/(1−m) too."""

Optimizer = tuple[str, float]
"""A label and the momentum m of SGD, heavy ball or Nesterov's step; NaN for others, which have no ε/(1−m)."""


def optimizer_name(momentum: float) -> str:
    """Label of the paper's optimizer: ``sgd``, or ``momentum 0.9``.

    >>> optimizer_name(0.0), optimizer_name(0.9)
    ('sgd', 'momentum 0.9')
    """
    return "sgd" if momentum == 0 else f"momentum {momentum:g}"


def optimizers_of(rows: Sequence[Mapping[str, Any]], momenta: Sequence[float]) -> list[Optimizer]:
    """The optimizer of each record, from its name, if it has one, and its momentum, NaN if it has none.

    >>> optimizers_of([{"optimizer": "SGD"}, {"optimizer": "nesterov"}, {"optimizer": "AdamW"}], [0.9, 0.9, np.nan])
    [('momentum 0.9', 0.9), ('nesterov 0.9', 0.9), ('adamw', nan)]
    """
    # Few differ: each is looked at once.
    known: dict[tuple[str | int, float], Optimizer] = {}
    found = []
    for k, (row, momentum) in enumerate(zip(rows, momenta, strict=True)):
        # The configuration of a run of ours says by other names than this which optimizer it had.
        given = row.get("optimizer", NESTEROV[0] if row.get("nesterov") is True else "sgd")
        dampening = row.get("dampening") or 0.0
        key = (given if isinstance(given, str) and dampening == 0 else k, momentum)
        if key not in known:
            known[key] = _optimizer(f"records[{k}]", given, momentum, dampening)
        found.append(known[key])
    return _told_apart(found)


def _optimizer(at: str, given: Any, momentum: float, dampening: Any) -> Optimizer:
    """The optimizer of one record; `at` says which, in messages."""
    remedy = "A dampened run is one at the learning rate (1−d) ε: give that, and leave out dampening."
    checks.require(dampening == 0, f"{at}: dampening", "none beside a learning rate", dampening, remedy)
    usable = isinstance(given, str) and bool(given.strip())
    remedy = "Name it, as 'sgd' or 'adam', or leave out the column."
    checks.require(usable, f"{at}: optimizer", "a name", given, remedy)
    name = given.strip().lower()
    known = 0.0 if np.isnan(momentum) else momentum
    if name in PAPERS:
        remedy = "Give the coefficient m of the heavy ball, or call it 'sgd'."
        stated = name == "sgd" or not np.isnan(momentum)
        checks.require(stated, f"{at}: momentum", f"a momentum beside {given!r}", "none", remedy)
        return optimizer_name(known), known
    label = name if np.isnan(momentum) or momentum == 0 else f"{name} {momentum:g}"
    return label, known if name in NESTEROV else float("nan")


def _told_apart(optimizers: Sequence[Optimizer]) -> list[Optimizer]:
    """The same, with all digits of momenta where six do not tell two of them apart."""
    momenta: dict[str, set[float]] = {}
    for label, momentum in optimizers:
        momenta.setdefault(label, set()).add(momentum)
    twice = {label for label, values in momenta.items() if sum(m == m for m in values) > 1}
    return [(f"{label.split()[0]} {m!r}" if label in twice else label, m) for label, m in optimizers]


def in_order(optimizers: Sequence[Optimizer]) -> list[Optimizer]:
    """Each optimizer once: those of the paper by momentum, then the others by name."""
    distinct = dict(optimizers)

    def key(label: str) -> tuple[bool, float, str]:
        own = label.split()[0] in ("sgd", "momentum")
        return (not own, distinct[label] if own else 0.0, label)

    return [(label, distinct[label]) for label in sorted(distinct, key=key)]
