"""The run store: one directory per finished run, named by its configuration. The store is the state of a sweep.

A record is written under a temporary name, flushed to disk and renamed, so that a directory under its final name is
whole. It carries a checksum all the same: disks are not perfect, and neither are people.
"""

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisysgd.theory import checks
from noisysgd.validation.configuration import TrainConfig

logger = logging.getLogger(__name__)

RECORD = "record.json"
FORMAT = 1


class RunStore:
    """Records of runs below one directory, safe for any number of readers and writers.

    Parameters
    ----------
    root : path
        Created when the first record is written.

    Examples
    --------
    >>> import tempfile
    >>> config = TrainConfig(learning_rate=0.5, batch_size=64, steps=2)
    >>> store = RunStore(tempfile.mkdtemp())
    >>> store.read(config) is None
    True
    >>> store.write({"config": config.as_dict(), "status": "complete", "train_loss": 0.25})
    >>> store.read(config)["train_loss"]
    0.25
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        usable = not self.root.exists() or self.root.is_dir()
        checks.require(usable, "root", "a directory", str(root), "Choose another place for the store.")

    def path(self, config: TrainConfig) -> Path:
        """Directory of a run, whether it exists or not."""
        return self.root / config.key

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a record. If another writer was first, its record stays: a run has only one result."""
        config = TrainConfig.from_dict(record["config"])
        body = json.dumps(dict(record), sort_keys=True)  # floats survive: repr is exact
        payload = json.dumps({"format": FORMAT, "sha256": _digest(body), "record": body}, indent=1)
        partial = self.root / f".partial-{config.key}-{uuid.uuid4().hex}"
        partial.mkdir(parents=True)
        try:
            with (partial / RECORD).open("w") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            try:
                partial.rename(self.path(config))
            except OSError:
                # Another writer was first, or a damaged record stands in the way, which reading it moves aside.
                if self.read(config) is None:
                    partial.rename(self.path(config))
            _flush_directory(self.root)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def read(self, config: TrainConfig) -> dict[str, Any] | None:
        """The record of a run, or ``None`` if there is none.

        A damaged record is set aside under another name, with a warning in the log, and counts as none.
        """
        path = self.path(config)
        try:
            payload = json.loads((path / RECORD).read_text())
            body = payload["record"]
            record = json.loads(body) if payload["sha256"] == _digest(body) else None
        except (FileNotFoundError, NotADirectoryError):
            if not path.exists():
                return None
            record = None
        except (ValueError, KeyError, TypeError):
            record = None
        if not isinstance(record, dict) or record.get("config") != config.as_dict():
            aside = path.with_name(f".damaged-{path.name}-{uuid.uuid4().hex}")
            logger.warning("%s: damaged record, moved to %s; the run will be repeated", path, aside.name)
            path.rename(aside)
            return None
        return record

    def clean(self) -> None:
        """Remove what interrupted writers left behind. Only safe while nobody is writing."""
        for leftover in self.root.glob(".partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _flush_directory(path: Path) -> None:
    """Make a rename survive a power cut, where the system lets directories be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
