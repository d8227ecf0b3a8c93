"""Input checks. They are applied once, where a value enters from outside; internal code trusts its arguments.

Every failure is a ``ValueError`` that says what was expected, what was given and what to do. The checks accept any
object, since finding out what it is is their task, and return it in the type that internal code works with.
"""

import itertools
import weakref
from collections.abc import Sequence
from types import UnionType
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from noisysgd.theory.common.arrays import FloatArray

ROUNDING = 1e-12
"""Share of the largest entry of an array that its entries may be off by because they were computed."""
MOST_ENTRIES = 1_000_000
"""Of a sequence of objects: a longer one is a mistake, and may never end."""


def require(condition: bool, name: str, expected: str, got: object, remedy: str) -> None:
    """Raise a ``ValueError`` in the form that all of this package's messages have, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {shorten(got)}. {remedy}")


def shorten(value: object, limit: int = 120) -> str:
    """``repr`` of a value, cut to `limit` characters; a 0-d array is shown as the number that it holds.

    Of a value that cannot be described, such as lists inside lists by the thousand, it is the type.

    >>> shorten(np.array(-0.1)), shorten(np.float64(2.0))
    ('-0.1', '2.0')
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    try:
        text = repr(value)
    except Exception:  # whatever the value's own class raises, RecursionError, or that an integer has too many digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def unmasked(name: str, value: object) -> None:
    """Raise if a masked array hides any of its values, or a list or tuple holds such an array or ``np.ma.masked``.

    Conversion to a plain array would drop the mask, and take what is below it for numbers.
    """
    remedy = "Drop what is masked with .compressed(), or fill it with .filled(value)."
    waiting, seen = [value], set[int]()
    while waiting:
        part = waiting.pop()
        if isinstance(part, np.ma.MaskedArray):
            hidden = np.count_nonzero(np.ma.getmaskarray(part))
            require(hidden == 0, name, "values without a mask", f"{hidden} of {part.size} masked", remedy)
        elif isinstance(part, list | tuple) and id(part) not in seen:  # a list may even hold itself
            seen.add(id(part))
            waiting += [entry for entry in part if isinstance(entry, list | tuple | np.ma.MaskedArray)]


def real(name: str, value: object, *, remedy: str = "Pass real numbers.") -> FloatArray:
    """`value` as a float64 array without NaN, of any shape.

    It may be a number, a list, an array, or a labelled array of xarray or pandas.
    """
    array = numbers(name, value, remedy=remedy)
    require(not np.isnan(array).any(), name, "numbers without NaN", value, remedy)
    return array


def numbers(name: str, value: object, *, remedy: str = "Pass real numbers.") -> FloatArray:
    """`value` as a float64 array of any shape, in which NaN stands for what is not known."""
    unmasked(name, value)
    try:
        array = np.asarray(value)
        # Booleans, strings and complex numbers can be converted to floats too, but are most likely mistakes.
        # Legitimate numbers such as integers beyond 64 bits or fractions arrive with dtype object.
        numeric = array.dtype.kind in "iuf" or (array.dtype.kind == "O" and not isinstance(value, str | bytes))
        array = array.astype(np.float64) if numeric else np.empty(0)
    except MemoryError:
        require(False, name, "an array that fits into memory", value, "Pass fewer numbers.")
    except Exception:  # whatever the conversions that the value's own class defines raise
        numeric = False
        if getattr(value, "requires_grad", False) is True:
            remedy = "Pass tensor.detach()."
    require(numeric, name, "real numbers", value, remedy)
    _keep_dimensions(array, getattr(value, "dims", ()))
    return array


_dimensions: dict[int, tuple[weakref.ref[FloatArray], tuple[str, ...]]] = {}
"""Names of the dimensions of arrays that were labelled ones, by identity, for as long as these arrays live."""


def _keep_dimensions(array: FloatArray, names: object) -> None:
    """Remember what the axes of an array were called: conversion drops it, and broadcasting has to know."""
    if isinstance(names, tuple) and 0 < len(names) == array.ndim:
        key = id(array)
        _dimensions[key] = (weakref.ref(array, lambda _: _dimensions.pop(key, None)), tuple(map(str, names)))


def _check_dimensions(arrays: dict[str, FloatArray]) -> None:
    """Raise if labelled arrays have different dimensions on axes that would be broadcast against each other."""
    known = {name: _dimensions[id(array)][1] for name, array in arrays.items() if id(array) in _dimensions}
    axes: dict[int, set[str]] = {}
    for name, names in known.items():
        for place, (each, size) in enumerate(zip(reversed(names), reversed(arrays[name].shape), strict=True)):
            axes.setdefault(place, set()).update([each] if size > 1 else [])
    expected = "labelled arrays with the same dimensions in the same order"
    remedy = "These arguments broadcast by position: transpose them, or pass .values, with axes added by [:, None]."
    agree = all(len(names) < 2 for names in axes.values())
    require(agree, ", ".join(known), expected, known, remedy)


def at_least(name: str, value: object, minimum: float, *, finite: bool = True, remedy: str) -> FloatArray:
    """`value` as a float64 array with every entry ≥ `minimum`, and finite unless ``finite=False``."""
    array = real(name, value, remedy=remedy)
    require(bool(np.all(array >= minimum)), name, f"values ≥ {minimum:g}", value, remedy)
    require(not finite or bool(np.isfinite(array).all()), name, "finite values", value, remedy)
    return array


def nonnegative(name: str, value: object, *, remedy: str) -> FloatArray:
    """`value` as a finite float64 array ≥ 0, such as eigenvalues or variances that come out of a computation.

    Entries that are below 0 by no more than rounding, a share of 1e-12 of the largest, are 0.
    """
    array = real(name, value, remedy=remedy)
    at_least(name, np.where(array < 0, 0.0, array), 0.0, remedy=remedy)
    largest = float(np.max(array, initial=0.0))
    require(bool(np.all(array >= -ROUNDING * largest)), name, "values ≥ 0", value, remedy)
    return np.maximum(array, 0.0)


def scalar(name: str, value: object, *, remedy: str = "Pass a single number.") -> float:
    """`value` as one float, without NaN."""
    array = real(name, value, remedy=remedy)
    require(array.ndim == 0, name, "a single number", value, remedy)
    return float(array)


def vector(name: str, array: FloatArray) -> FloatArray:
    """`array` as a non-empty 1-D array; a scalar becomes an array of one entry."""
    array = np.atleast_1d(array)
    require(array.ndim == 1 and array.size > 0, name, "a number or a non-empty 1-D array", array, "Flatten it.")
    return array


def learning_rate(value: object, name: str = "learning_rate") -> FloatArray:
    """Learning rates: finite and non-negative."""
    return at_least(name, value, 0.0, remedy="Learning rates are finite and not negative.")


def momentum(value: object, name: str = "momentum") -> FloatArray:
    """Heavy-ball momentum coefficients: 0 ≤ m < 1."""
    array = real(name, value)
    remedy = "Use 0 for plain SGD; the paper's heavy ball uses 0.9."
    require(bool(np.all((array >= 0) & (array < 1))), name, "0 ≤ momentum < 1", value, remedy)
    return array


def averaging(value: object, name: str = "averaging") -> FloatArray:
    """Coefficients of an exponential moving average of the iterates: 0 ≤ β < 1."""
    array = real(name, value)
    remedy = "Use 0 for the iterates themselves; 0.999 averages over about 1000 steps."
    require(bool(np.all((array >= 0) & (array < 1))), name, "0 ≤ averaging < 1", value, remedy)
    return array


def batch_size(value: object, dataset_size: float | None = None, name: str = "batch_size") -> FloatArray:
    """Batch sizes: 1 ≤ B, and B ≤ N where the size of the data set is known; ``inf`` is the noiseless limit."""
    array = at_least(
        name, value, 1.0, finite=False, remedy="A batch has at least one example; use np.inf for no noise."
    )
    if dataset_size is not None:
        remedy = "Batches are drawn without replacement; B = N is the noiseless full batch."
        limit = bool(np.all((array <= dataset_size) | np.isinf(array)))
        require(limit, name, f"batch sizes ≤ the data set's {dataset_size:g} examples", value, remedy)
    return array


def integer(name: str, value: object, minimum: int, *, maximum: int | None = None, remedy: str) -> int:
    """`value` as a Python int ≥ `minimum`; integral floats such as 1e4 are accepted, booleans are not.

    A `maximum` is for sizes beyond which the result would fit into no memory, or take years.
    """
    unmasked(name, value)
    number: Any = value  # whatever int() accepts, which no one type describes
    try:
        whole = not isinstance(number, bool | np.bool_) and np.ndim(number) == 0 and bool(int(number) == number)
    except Exception:  # whatever the conversions that the value's own class defines raise
        whole = False
    require(whole and number >= minimum, name, f"an integer ≥ {minimum}", value, remedy)
    require(int(number) < 2**64, name, "an integer that fits into 64 bits", value, remedy)
    require(maximum is None or int(number) <= maximum, name, f"at most {maximum}", value, remedy)
    return int(number)


def indices(name: str, value: object, *, remedy: str = "Pass integers from 0 up.") -> npt.NDArray[np.int64]:
    """`value` as an array of integers ≥ 0, of any shape."""
    array = numbers(name, value, remedy=remedy)
    whole = bool(np.all((array >= 0) & (array < 2.0**53) & (array == np.trunc(array))))
    require(whole, name, "whole numbers ≥ 0", value, remedy)
    return array.astype(np.int64)


def interval(name: str, value: object, low: float, high: float, *, remedy: str) -> float:
    """`value` as one number that lies above `low` and is at most `high`."""
    number = scalar(name, value, remedy=remedy)
    limits = f"a number > {low:g}" if np.isinf(high) else f"{low:g} < {name} ≤ {high:g}"
    require(low < number <= high and np.isfinite(number), name, limits, value, remedy)
    return number


def instance(name: str, value: object, kind: type | UnionType, *, remedy: str) -> None:
    """Raise unless `value` is a `kind`."""
    require(isinstance(value, kind), name, f"a {getattr(kind, '__name__', kind)}", value, remedy)


def several(name: str, value: object, kind: type | UnionType, *, remedy: str) -> list[Any]:
    """`value`, a collection of instances of `kind`, as a list; a text is one thing, not a collection of letters."""
    given: Any = value  # whatever iter() accepts, which no one type describes
    try:
        entries = [value] if isinstance(value, str | bytes) else list(itertools.islice(iter(given), MOST_ENTRIES + 1))
        right = not isinstance(value, str | bytes) and all(isinstance(entry, kind) for entry in entries)
    except Exception:  # whatever the value's own class raises
        entries, right = [], False
    words = "" if kind is object else f" of {getattr(kind, '__name__', kind)} objects"
    require(right, name, f"a sequence{words}", value, remedy)
    require(len(entries) <= MOST_ENTRIES, name, f"at most {MOST_ENTRIES} entries", value, remedy)
    return entries


def function(name: str, value: object, *, remedy: str) -> None:
    """Raise unless `value` can be called."""
    require(callable(value), name, "a function", value, remedy)


def dataset(name: str, value: object, variables: Sequence[str], *, remedy: str) -> None:
    """Raise unless `value` is an ``xarray.Dataset`` that has these variables, coordinates or dimensions."""
    import xarray as xr  # which takes a while, and is there already if the value is one

    require(isinstance(value, xr.Dataset), name, "an xarray.Dataset", value, remedy)
    there = cast(xr.Dataset, value)
    lacking = [variable for variable in variables if variable not in there and variable not in there.dims]
    require(not lacking, name, f"a Dataset with {', '.join(variables)}", f"none of {lacking}", remedy)


def boolean(name: str, value: object) -> bool:
    """`value`, if it is True or False: anything else would count as one of them, "no" as True."""
    require(isinstance(value, bool | np.bool_), name, "True or False", value, "Pass True or False.")
    return bool(value)


def one_of(name: str, value: object, options: Sequence[str]) -> str:
    """`value`, which must be one of `options`."""
    require(
        isinstance(value, str) and value in options,
        name,
        f"one of {', '.join(map(repr, options))}",
        value,
        "Choose one of those.",
    )
    return str(value)


def broadcast(**arrays: FloatArray) -> list[FloatArray]:
    """The named arrays, broadcast against each other by position; labelled ones must not contradict this."""
    _check_dimensions(arrays)
    try:
        return list(np.broadcast_arrays(*arrays.values()))
    except ValueError:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        message = f"expected shapes that broadcast, got {shapes}. Add axes with [:, None] so that they do."
        raise ValueError(f"{', '.join(arrays)}: {message}") from None
