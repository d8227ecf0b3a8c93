"""The run store: one directory per finished run, named by its configuration. The store is the state of a sweep.

A record is written under a temporary name, flushed to disk and renamed, so that a directory under its final name is
whole. It carries a checksum all the same: disks are not perfect, and neither are people.
"""

import contextlib
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
            # A directory that holds a record cannot be renamed over: another writer was first, or a damaged record
            # stands in the way and is moved aside. Two tries, since others may be doing the same.
            for attempt in (1, 2, 3):
                try:
                    partial.rename(self.path(config))
                    break
                except OSError:
                    if self.read(config) is not None:
                        break
                    if attempt == 3:
                        raise
                    self._set_aside(config)
            _flush_directory(self.root)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def read(self, config: TrainConfig) -> dict[str, Any] | None:
        """The record of a run, or ``None`` if there is none.

        A damaged record counts as none, with a warning in the log; it is moved aside when the run is written again.

        Raises
        ------
        ValueError
            For a record in a format of another version.
        """
        path = self.path(config) / RECORD
        try:
            text = path.read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            logger.warning("%s: cannot be read (%s); the run will be repeated", path, error)
            return None
        try:
            payload = json.loads(text)
            kind, body, digest = payload["format"], payload["record"], payload["sha256"]
            record = json.loads(body) if digest == _digest(body) else None
        except (ValueError, KeyError, TypeError, AttributeError):
            kind, record = FORMAT, None
        remedy = "Use the version of noisysgd that wrote it, or another store."
        checks.require(kind == FORMAT, str(path), f"a record of format {FORMAT}", kind, remedy)
        if not isinstance(record, dict) or record.get("config") != config.as_dict() or "status" not in record:
            logger.warning("%s: damaged record; the run will be repeated", path)
            return None
        return record

    def _set_aside(self, config: TrainConfig) -> None:
        """Move what stands in a record's place, and is none, out of the way."""
        path = self.path(config)
        aside = path.with_name(f".damaged-{path.name}-{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):  # another writer did it
            path.rename(aside)
            logger.warning("%s: moved to %s", path, aside.name)


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
