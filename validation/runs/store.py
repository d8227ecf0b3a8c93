"""The run store: one directory per finished run, named by its configuration. The store is the state of a sweep.

A record is written under a temporary name, flushed to disk and renamed, so that a directory under its final name is
whole. It carries a checksum all the same: disks are not perfect, and neither are people. Beside it lies the same
configuration as a TOML file, with which the run can be repeated.

A run under way has a directory of its own, ``.running-<name>``, for its checkpoint and for a lock that the system
releases when the process dies, however it dies.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from noisysgd.theory.common import checks
from noisysgd.validation.configuration import METRICS, TrainConfig
from noisysgd.validation.runs.toml_files import to_toml

try:
    import fcntl
except ImportError:  # not on Windows: two drivers may then train the same run, of which the first record counts
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

RECORD, CONFIGURATION, LOCK = "record.json", "config.toml", "lock"
FORMAT = 1
OUTCOMES = ("complete", "diverged")
NUMBERS = (*METRICS, "steps", "seconds")
"""What a record gives as numbers, or as nothing."""
FULL = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)


class DiskFullError(OSError):
    """No room for what a store has to write; the message names the place."""


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
        self._warned: set[Path] = set()  # goes to worker processes with the store
        usable = not self.root.exists() or self.root.is_dir()
        checks.require(usable, "root", "a directory", str(root), "Choose another place for the store.")

    def path(self, config: TrainConfig) -> Path:
        """Directory of a run, whether it exists or not."""
        return self.root / config.key

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a record. If another writer was first, its record stays: a run has only one result.

        Raises
        ------
        DiskFullError
            An ``OSError``: nothing is left of the record.
        """
        with _room(self.root):
            self._write(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        config = TrainConfig.from_dict(record["config"])
        body = json.dumps(dict(record), sort_keys=True)  # floats survive: repr is exact
        payload = json.dumps({"format": FORMAT, "sha256": _digest(body), "record": body}, indent=1)
        partial = self.root / f".partial-{config.key}-{uuid.uuid4().hex}"
        partial.mkdir(parents=True)
        try:
            (partial / CONFIGURATION).write_text(to_toml(config.as_dict()), encoding="utf-8")
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

        A damaged record counts as none, with a warning in the log, once; it is moved aside when the run is written
        again.

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
            self._warn(path, f"cannot be read ({error})")
            return None
        try:
            payload = json.loads(text)
            kind, body, digest = payload["format"], payload["record"], payload["sha256"]
            record = json.loads(body) if digest == _digest(body) else None
        except (ValueError, KeyError, TypeError, AttributeError):
            kind, record = FORMAT, None
        remedy = "Use the version of noisysgd that wrote it, or another store."
        checks.require(kind == FORMAT, str(path), f"a record of format {FORMAT}", kind, remedy)
        fault = _fault(record, config)
        if fault is not None:
            self._warn(path, f"damaged record ({fault})")
            return None
        self._warned.discard(path)
        return record

    def _warn(self, path: Path, words: str) -> None:
        """Say once what is wrong with a record, however often it is looked at."""
        if path not in self._warned:
            self._warned.add(path)
            logger.warning("%s: %s; the run will be repeated", path, words)

    @contextmanager
    def claim(self, config: TrainConfig) -> Iterator[Path | None]:
        """A directory for a run under way, or ``None`` if another process has it.

        What a killed process left there, such as a checkpoint, is found again by the next. It is removed once the
        store has the run's record. Where the file system knows no locks, every process gets the directory: a run may
        then be trained twice, and its first record counts.

        Examples
        --------
        >>> import tempfile
        >>> store, config = RunStore(tempfile.mkdtemp()), TrainConfig(learning_rate=0.5, batch_size=64, steps=2)
        >>> with store.claim(config) as mine, RunStore(store.root).claim(config) as other:
        ...     mine.name == f".running-{config.key}", other
        (True, None)
        """
        with _room(self.root), self._claim(config) as working:
            yield working

    @contextmanager
    def _claim(self, config: TrainConfig) -> Iterator[Path | None]:
        working = self.root / f".running-{config.key}"
        working.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(working / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # removed meanwhile by the process that finished the run
            yield None
            return
        try:
            if not _lock(descriptor, working):
                yield None
                return
            yield working
            if self.read(config) is not None:
                shutil.rmtree(working, ignore_errors=True)
        finally:
            os.close(descriptor)  # releases the lock

    def tidy(self, configs: Sequence[TrainConfig]) -> None:
        """Remove the working directories of finished runs whose process was killed before it could."""
        left = {path.name for path in self.leftovers()}
        for config in configs:
            if f".running-{config.key}" in left and self.read(config) is not None:
                with self.claim(config):
                    pass  # which removes it, unless another process has it

    def leftovers(self) -> list[Path]:
        """What interrupted processes left: unfinished runs, half-written and damaged records; none of it is counted."""
        if not self.root.is_dir():
            return []
        return sorted(p for p in self.root.iterdir() if p.name.startswith((".running-", ".partial-", ".damaged-")))

    def _set_aside(self, config: TrainConfig) -> None:
        """Move what stands in a record's place, and is none, out of the way."""
        path = self.path(config)
        aside = path.with_name(f".damaged-{path.name}-{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):  # another writer did it
            path.rename(aside)
            logger.info("%s: moved to %s", path, aside.name)


def write_text(path: Path, text: str) -> None:
    """Write a text file, under a temporary name until it is whole."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    with _room(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def _room(path: Path) -> Iterator[None]:
    """Says of a full disk which one it is, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.errno not in FULL or isinstance(error, DiskFullError):
            raise
        remedy = "Make room there; the same command goes on from what is finished."
        raise DiskFullError(error.errno, f"{path}: {os.strerror(error.errno)}. {remedy}") from error


def _fault(record: Any, config: TrainConfig) -> str | None:
    """What a record lacks, in words; ``None`` if it is one of the configuration's run."""
    if not isinstance(record, dict):
        return "its checksum is wrong"
    if not _of(record.get("config"), config):
        return "it is of another configuration"
    if record.get("status") not in OUTCOMES:
        return f"status {record.get('status')!r}"
    odd = [name for name in NUMBERS if not _number(record.get(name))]
    return f"{odd[0]} {record[odd[0]]!r}" if odd else None


def _number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _of(values: Any, config: TrainConfig) -> bool:
    """Whether the values of a record are those of a configuration, with what older versions left out."""
    try:
        return isinstance(values, dict) and TrainConfig.from_dict(values) == config
    except ValueError:
        return False


def _lock(descriptor: int, path: Path) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.info("%s: no locks here (%s); runs may be trained twice", path, error)
    return True


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
