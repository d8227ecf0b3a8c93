"""Checkpoints: the state of a run under way, in one file of tensors and plain types that is whole or not there.

A file is written under a temporary name, flushed to disk and renamed, so that its final name always holds a whole
checkpoint: the one before or the one after. It also carries a digest of its contents, in case it is damaged later.

``torch.load(path, weights_only=True)`` reads it; :func:`read` also checks the digest.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from noisysgd.theory.common import checks
from noisysgd.theory.common.files import write_whole

FORMAT = 1

Plain = None | bool | int | float | str | torch.Tensor | list[Any] | dict[str, Any]


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
    payload = {"format": FORMAT, "digest": digest(state), "state": state}
    # A folder may be gone: where there are no locks, another process that had the same run has finished it.
    write_whole(path, lambda file: torch.save(payload, file), make_folders=True)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state in the file `path`, with its tensors on the CPU, whatever device they were on.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ValueError
        If the file is not a checkpoint, or one of another format, or truncated or altered.
    """
    path = Path(path)
    remedy = "Delete it to start the run over, or put back a copy."
    with path.open("rb") as file:
        try:
            # With weights_only nothing in the file can run code.
            payload = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for files that are not its own
            first = str(error).strip().splitlines()[:1]
            message = f"{path}: expected a whole checkpoint, got a damaged or foreign file ({first}). {remedy}"
            raise ValueError(message) from error
    known = isinstance(payload, dict) and {"format", "digest", "state"} <= payload.keys()
    checks.require(known, str(path), "a checkpoint", type(payload).__name__, remedy)
    newer = "Use the version of noisysgd that wrote it, or delete it to start the run over."
    checks.require(payload["format"] == FORMAT, str(path), f"a checkpoint of format {FORMAT}", payload["format"], newer)
    found = digest(payload["state"])
    checks.require(found == payload["digest"], str(path), f"contents of digest {payload['digest']}", found, remedy)
    state: dict[str, Any] = payload["state"]
    return state


def digest(value: Plain) -> str:
    """SHA-256 of nested tensors and plain types. It depends on their values, not on how a file stores them.

    >>> import torch
    >>> digest({"a": torch.ones(2)}) == digest({"a": torch.ones(2)}), digest([1]) == digest([1.0])
    (True, False)
    """
    found = hashlib.sha256()
    _feed(found, value, "state")
    return found.hexdigest()


def _feed(found: Any, value: Plain, where: str) -> None:
    """Hash `value`, found at the place `where` of the state, after its kind and length.

    Naming these first keeps different states from feeding the same bytes: [1] and [1.0], or [[1], 2] and [[1, 2]].
    """
    if isinstance(value, torch.Tensor):
        # The elements in the order of the axes, so that layout in memory and device make no difference.
        found.update(f"tensor {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, dict):
        found.update(f"dict {len(value)}\n".encode())
        # In the order of the keys: dicts are equal whatever the order in which they were filled.
        for key in sorted(value):
            checks.instance(f"key in {where}", key, str, remedy="Use strings.")
            found.update(f"{key!r}\n".encode())
            _feed(found, value[key], f"{where}[{key!r}]")
    elif isinstance(value, list):
        found.update(f"list {len(value)}\n".encode())
        for number, item in enumerate(value):
            _feed(found, item, f"{where}[{number}]")
    else:
        plain = value is None or type(value) in (bool, int, float, str)
        remedy = "Checkpoints hold nothing that could run when it is read."
        checks.require(plain, where, "tensors and plain types", type(value).__name__, remedy)
        found.update(f"{type(value).__name__} {value!r}\n".encode())
