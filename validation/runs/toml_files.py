"""Read and write TOML files. The standard library reads TOML but cannot write it: here is what configurations need."""

import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from noisysgd.theory.common import checks

T = TypeVar("T")


def from_toml(text: str) -> dict[str, Any]:
    """The values in TOML text, as a dict.

    Raises
    ------
    ValueError
        If it is not TOML; the message names line and column.

    Examples
    --------
    >>> from_toml("seed = 3")
    {'seed': 3}
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("text: expected TOML of a few levels, got too many to read. Correct it there.") from None
    except ValueError as error:  # not TOML, or an integer of thousands of digits
        raise ValueError(f"text: expected TOML, got something else: {error}. Correct it there.") from error


def read_toml(path: str | Path, meaning: Callable[[dict[str, Any]], T]) -> T:
    """The result of `meaning`, a function of the values in a TOML file.

    Parameters
    ----------
    path : path
    meaning : callable
        Takes the values as a dict; may raise ``ValueError`` or ``TypeError`` for values that it cannot use.

    Raises
    ------
    ValueError
        If the file is not TOML in UTF-8, or `meaning` refuses its values; the message begins with the path.
    OSError
        If the file is not there or cannot be read.
    """
    try:
        return meaning(from_toml(_text(Path(path))))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"byte {error.object[error.start]:#04x} at {error.start}"
        raise ValueError(f"text: expected UTF-8, got {got}. Save the file as UTF-8.") from error
    except OSError as error:
        got = (error.strerror or str(error)).lower()
        raise type(error)(f"{path}: expected a TOML file, got: {got}. Check the path.") from error


def to_toml(values: Mapping[str, Any]) -> str:
    """Plain values as TOML text. Numbers are read back exactly; ``None``, which TOML lacks, is left out.

    Parameters
    ----------
    values : mapping
        Strings, booleans, integers, floats, and sequences of these. Mappings become tables, and sequences of mappings
        become arrays of tables.

    Raises
    ------
    ValueError
        For a value of any other kind.

    Examples
    --------
    >>> print(to_toml({"seed": 3, "run": {"l2": 5e-4, "steps": None}, "window": [{"momentum": 0.9}]}))
    seed = 3
    <BLANKLINE>
    [run]
    l2 = 0.0005
    <BLANKLINE>
    [[window]]
    momentum = 0.9
    <BLANKLINE>
    """
    return "\n".join(_table(values, ())) + "\n"


def _table(values: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    """Lines of a table whose name has the parts `path`; its plain values come first, or they would join a subtable."""
    present = {key: value for key, value in values.items() if value is not None}
    lines = [f"{_key(key)} = {_value(key, value)}" for key, value in present.items() if not _is_table(value)]
    for key, value in present.items():
        name = ".".join(map(_key, (*path, key)))
        if isinstance(value, Mapping):
            lines += ["", f"[{name}]", *_table(value, (*path, key))]
        elif _is_table(value):
            for each in value:
                lines += ["", f"[[{name}]]", *_table(each, (*path, key))]
    return lines


def _is_table(value: Any) -> bool:
    rows = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return isinstance(value, Mapping) or (rows and all(isinstance(row, Mapping) for row in value))


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else _string(name)


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)  # TOML spells inf and nan as Python does
    if isinstance(value, Sequence):
        return "[" + ", ".join(_value(key, each) for each in value) + "]"
    checks.require(False, key, "a string, boolean, number or list", value, "Use plain values.")
    raise AssertionError


def _string(text: str) -> str:
    # TOML has the escapes of JSON strings. Only DEL may stand in JSON as it is and not in TOML.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
