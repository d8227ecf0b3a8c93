"""What the record of a run says, and how it is kept in a file: with a checksum, and nothing that no run can have.

One rule, :func:`fault`, decides what a record is. It is asked when one is written, read, or imported.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

from noisysgd.theory.common.checks import shorten
from noisysgd.theory.sweeps.curves import curve_fault
from noisysgd.validation.configuration import METRICS, TrainConfig

FORMAT = 2
"""Version of the layout of ``record.json``. In the first the checksum did not cover the version."""
LARGEST = 2**26
"""Most bytes of a record. Those of training have some thousand."""
OUTCOMES = ("complete", "diverged")
NUMBERS = (*METRICS, "steps", "seconds")
"""Entries of a record that are numbers, ``None`` or missing."""
LARGEST_FLOAT = int(sys.float_info.max)


class OtherFormatError(ValueError):
    """A whole record, but in the format of another version."""


def encode(record: Mapping[str, Any]) -> bytes:
    """The content of the file of a record."""
    # The record is a string inside the file, so that its checksum covers the very characters that are read back.
    # Floats survive exactly: JSON writes them as repr does.
    body = json.dumps(dict(record), sort_keys=True)
    return json.dumps({"format": FORMAT, "sha256": _digest(FORMAT, body), "record": body}, indent=1).encode()


def decode(content: bytes) -> Any:
    """What :func:`encode` was given, from the content of a file.

    Raises
    ------
    OtherFormatError
        If the file is whole, and in the format of another version.
    Exception
        Of any kind, if the file is damaged: JSON that is nested too deep raises a ``RecursionError``.
    """
    payload = json.loads(content.decode())
    version, body = payload["format"], payload["record"]
    if payload["sha256"] != _digest(version, body):
        raise ValueError("its checksum is wrong")
    if version not in (1, FORMAT):
        remedy = "Use the version of noisysgd that wrote it, or another store."
        raise OtherFormatError(f"expected a record of format {FORMAT}, got {version!r}. {remedy}")
    return json.loads(body)


def _digest(version: Any, body: str) -> str:
    return hashlib.sha256((body if version == 1 else f"record {version!r}\n{body}").encode()).hexdigest()


def fault(record: Any, config: TrainConfig | None = None) -> str | None:
    """What is wrong with a record, in words; ``None`` if it is one, and of the given configuration.

    Losses are finite and not negative, accuracies lie between 0 and 1; what was not measured is ``None`` or missing. A
    run that is complete has a training loss. Steps are whole, seconds not negative. Any further number is one that a
    float can hold. There is no preconditioner: of one a configuration, after which a record is named, says nothing.

    >>> fault({"status": "complete", "train_loss": 0.5}), fault({"status": "complete", "train_loss": float("nan")})
    (None, 'train_loss nan')
    """
    if not isinstance(record, Mapping):
        return "it is no table of values"
    if config is not None and not _describes(record.get("config"), config):
        return "it is of another configuration"
    for name, value in record.items():
        if name in NUMBERS and value is not None and not _possible(name, value):
            return f"{name} {shorten(value)}"
        if isinstance(value, int) and not -LARGEST_FLOAT <= value <= LARGEST_FLOAT:
            return f"{name} {shorten(value)}"
    if record.get("status") not in OUTCOMES:
        return f"status {shorten(record.get('status'))}"
    if record.get("preconditioner") is not None:
        return "it was trained under a preconditioner, of which its configuration, and so its name, says nothing"
    if record["status"] == "complete" and record.get("train_loss") is None:
        return "complete without a train_loss"
    wrong = curve_fault(record.get("curve"))
    return None if wrong is None else f"curve: {wrong}"


def _possible(name: str, value: object) -> bool:
    """Whether one of :data:`NUMBERS` can have this value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    largest = 1.0 if name.endswith("accuracy") else LARGEST_FLOAT
    return 0 <= value <= largest and (name != "steps" or value == int(value))


def _describes(values: object, config: TrainConfig) -> bool:
    """Whether the values kept with a record are those of `config`; names that older versions lacked may be missing."""
    try:
        return isinstance(values, dict) and (values == config.as_dict() or TrainConfig.from_dict(values) == config)
    except (ValueError, TypeError):
        return False
