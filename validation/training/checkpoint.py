"""Checkpoints: the state of a run under way, in one file of tensors and plain types that is whole or not there.

A file is written under a temporary name, flushed to disk and renamed, so that its final name always holds a whole
checkpoint: the one before or the one after. It also carries a digest of its contents, in case it is damaged later.

``torch.load(path, weights_only=True)`` reads it; :func:`read` also checks the digest.
"""

import hashlib
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from noisysgd.theory.common import checks
from noisysgd.theory.common.files import open_regular, write_whole

FORMAT = 2
"""Version of the layout. In the first the digest did not cover the version."""
REMEDY = "Delete it to start the run over, or put back a copy."

DEEPEST = 100
"""Most lists and dicts in each other that a checkpoint holds: a list that contains itself would have no end."""

Plain = None | bool | int | float | str | torch.Tensor | list[Any] | dict[str, Any]


class UnusableError(ValueError):
    """A file that is no checkpoint, or none of this run: the run can start over without it."""


def check(state: Plain, where: str = "state") -> None:
    """Raise unless `state` can be written, and read again as it was; nothing is copied or hashed.

    Parameters
    ----------
    state : nested tensors and plain types
    where : str
        What to call it in an error.

    Raises
    ------
    ValueError
        For the first thing that is neither a tensor with values nor of a plain type, by its place in `state`.

    Examples
    --------
    >>> check({"weights": torch.ones(2), "extra": [1, None, {"name": "x"}]})
    >>> check({"extra": {"pairs": [(1, 2)]}})
    Traceback (most recent call last):
    ValueError: state['extra']['pairs'][0]: expected tensors and plain types, got 'tuple'. Use lists, dicts with strings
    as keys, numbers, strings, booleans and None: checkpoints hold nothing that could run when it is read.
    """
    _check(state, where, 0)


def _check(state: Plain, where: str, depth: int) -> None:
    remedy = (
        "Use lists, dicts with strings as keys, numbers, strings, booleans and None: checkpoints hold nothing that "
        "could run when it is read."
    )
    checks.require(depth <= DEEPEST, where[:80], f"at most {DEEPEST} lists and dicts in each other", "more", remedy)
    # Exact types: of what is merely derived from them, reading would give the base back, or nothing.
    if isinstance(state, dict) and type(state) in (dict, OrderedDict):
        for key, value in state.items():
            checks.require(type(key) is str, f"key in {where}", "a string", key, remedy)
            _check(value, f"{where}[{key!r}]", depth + 1)
    elif isinstance(state, list) and type(state) is list:
        for number, item in enumerate(state):
            _check(item, f"{where}[{number}]", depth + 1)
    elif isinstance(state, torch.Tensor):
        fault = _tensor_fault(state)
        checks.require(fault is None, where, "a dense tensor with values", fault, "Keep it as plain tensors.")
    else:
        plain = state is None or type(state) in (bool, int, float, str)
        checks.require(plain, where, "tensors and plain types", type(state).__name__, remedy)


def _tensor_fault(tensor: torch.Tensor) -> str | None:
    """What keeps a tensor from coming back as it is, in words."""
    if type(tensor) not in (torch.Tensor, nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.is_meta:
        return "a tensor on the meta device"
    return None if tensor.layout == torch.strided else f"a tensor of layout {tensor.layout}"


def write(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write `state` to the file `path`, in place of what is there.

    Parameters
    ----------
    path : path
        The file to write; its folder is made if need be.
    state : dict
        Strings as keys; tensors, numbers, strings, booleans, ``None``, and lists and dicts of them.

    Raises
    ------
    ValueError
        For anything else in `state`.
    OSError
        If it cannot be written; a checkpoint that was there is still there.

    Examples
    --------
    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "run.pt"
    >>> write(path, {"step": 3, "weights": torch.ones(2)})
    >>> read(path)["step"]
    3
    """
    payload = {"format": FORMAT, "digest": _signature(FORMAT, state), "state": state}
    # A folder may be gone: where there are no locks, another process that had the same run has finished it.
    write_whole(path, lambda file: torch.save(payload, file), make_folders=True)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state in the file `path`, with its tensors on the CPU, whatever device they were on.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    UnusableError
        A ``ValueError``, if the file is not a checkpoint, or one of another format, or truncated or altered.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            # With weights_only nothing in the file can run code.
            payload = torch.load(file, map_location="cpu", weights_only=True)
        version, state = payload["format"], payload["state"]
        whole = payload["digest"] == _signature(version, state)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever stands there in place of a checkpoint: each reader fails in its own way
        first = " ".join(str(error).split())[:200]
        message = f"{path}: expected a whole checkpoint, got a damaged or foreign file ({first})"
        raise UnusableError(f"{message}. {REMEDY}") from error
    if not whole:
        raise UnusableError(f"{path}: expected a whole checkpoint, got contents of another digest. {REMEDY}")
    if version not in (1, FORMAT) or not isinstance(state, dict):
        newer = "Use the version of noisysgd that wrote it, or delete it to start the run over."
        raise UnusableError(f"{path}: expected a checkpoint of format {FORMAT}, got {version!r}. {newer}")
    return state


def _signature(version: int, state: Plain) -> str:
    """The digest that a file carries: of the state, and from the second format on of the format too."""
    own = digest(state)
    return own if version == 1 else hashlib.sha256(f"{version!r} {own}".encode()).hexdigest()


def digest(value: Plain) -> str:
    """SHA-256 of nested tensors and plain types. It depends on their values, not on how a file stores them.

    Raises
    ------
    ValueError
        For other contents, as :func:`check`.

    >>> import torch
    >>> digest({"a": torch.ones(2)}) == digest({"a": torch.ones(2)}), digest([1]) == digest([1.0])
    (True, False)
    """
    check(value)
    found = hashlib.sha256()
    _feed(found, value)
    return found.hexdigest()


def _feed(found: Any, value: Plain) -> None:
    """Hash `value` after its kind and length.

    Naming these first keeps different states from feeding the same bytes: [1] and [1.0], or [[1], 2] and [[1, 2]].
    """
    if isinstance(value, torch.Tensor):
        # The elements in the order of the axes, so that layout in memory and device make no difference.
        found.update(f"tensor {value.dtype} {tuple(value.shape)}\n".encode())
        plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        found.update(plain.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, dict):
        found.update(f"dict {len(value)}\n".encode())
        # In the order of the keys: dicts are equal whatever the order in which they were filled.
        for key in sorted(value):
            found.update(f"{key!r}\n".encode())
            _feed(found, value[key])
    elif isinstance(value, list):
        found.update(f"list {len(value)}\n".encode())
        for item in value:
            _feed(found, item)
    else:
        found.update(f"{type(value).__name__} {value!r}\n".encode())
