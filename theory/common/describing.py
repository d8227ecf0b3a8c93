"""Descriptions of configured objects: short ones for people, and plain values for the attributes of a dataset."""

import hashlib
import html
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SHOWN = 6
"""Arrays of up to this many numbers are printed in full."""
KEPT = 64
"""Arrays of up to this many numbers are kept in full."""


def brief(thing: "DataclassInstance") -> str:
    """The ``repr`` of a dataclass, with long arrays abbreviated to their first and last number and their length.

    >>> from noisysgd import theory
    >>> theory.constant(100)
    Schedule(lengths=[100], multipliers=[1])
    >>> theory.Schedule(np.full(8, 50), np.linspace(1.0, 0.125, 8))
    Schedule(lengths=[50: 8], multipliers=[1 … 0.125: 8])
    """
    values = ", ".join(f"{field.name}={_shown(getattr(thing, field.name))}" for field in fields(thing) if field.repr)
    return f"{type(thing).__name__}({values})"


def html_table(thing: "DataclassInstance") -> str:
    """What a notebook shows of a dataclass: a table of its fields, with long arrays abbreviated.

    >>> from noisysgd import theory
    >>> html_table(theory.StepBudget(50))
    '<table><caption>StepBudget</caption><tr><th>total</th><td>50</td></tr></table>'
    """
    shown = ((field.name, _shown(getattr(thing, field.name))) for field in fields(thing) if field.repr)
    rows = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in shown)
    return f"<table><caption>{type(thing).__name__}</caption>{rows}</table>"


def _shown(value: object) -> str:
    if not isinstance(value, np.ndarray):
        return repr(value)
    if value.ndim != 1:
        return f"[{' × '.join(map(str, value.shape))} numbers]"
    if value.size <= SHOWN:
        return f"[{', '.join(f'{number:.4g}' for number in value)}]"
    if (value == value[0]).all():
        return f"[{value[0]:.4g}: {value.size}]"
    return f"[{value[0]:.4g} … {value[-1]:.4g}: {value.size}]"


def plain(thing: object) -> Any:
    """The object as values that JSON can hold: dataclasses as dictionaries, functions as ``module:name``.

    Of an array of more than 64 numbers it keeps the shape and a SHA-256 of the float64 bytes.

    >>> from noisysgd import theory
    >>> plain({"budget": theory.StepBudget(50), "schedule": theory.half_then_decay})
    {'budget': {'class': 'StepBudget', 'total': 50}, 'schedule': 'noisysgd.theory:half_then_decay'}
    """
    if is_dataclass(thing) and not isinstance(thing, type):
        own = {field.name: plain(getattr(thing, field.name)) for field in fields(thing)}
        return {"class": type(thing).__name__} | own
    if isinstance(thing, dict):
        return {str(name): plain(value) for name, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [plain(value) for value in thing]
    if isinstance(thing, np.ndarray):
        if thing.size <= KEPT:
            return thing.tolist()
        digest = hashlib.sha256(np.ascontiguousarray(thing, dtype=np.float64).tobytes()).hexdigest()
        return {"shape": list(thing.shape), "sha256": digest}
    if isinstance(thing, np.generic):
        return thing.item()
    if callable(thing):
        return f"{public_module(thing)}:{getattr(thing, '__qualname__', repr(thing))}"
    return thing


def public_module(thing: object) -> str:
    """The module to import a function or a class from.

    Within this package it is the sub-package that exports it, so that moving code between files changes nothing.

    >>> public_module(public_module), public_module(np.sin)
    ('noisysgd.theory', 'numpy')
    """
    module = str(getattr(thing, "__module__", None) or "")
    return ".".join(module.split(".")[:2]) if module.startswith("noisysgd.") else module
