"""The run store: one directory per finished run, named by a hash of its configuration. It is all the state of a sweep.

Such a directory holds ``record.json``, the result of the run, and ``config.toml``, the configuration with which the run
can be repeated. It is written under a temporary name, flushed to disk and renamed, so that a directory under its final
name is complete. The record carries a checksum all the same, against faulty disks and files edited by hand.

A run under way has a directory ``.running-<name>``, for its checkpoint and for a lock file, whose lock the system
releases when the process dies, however it dies.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from noisysgd.theory.common import checks
from noisysgd.theory.common.files import flush_folder, make_folder, room_for, write_flushed
from noisysgd.theory.sweeps.curves import curve_fault
from noisysgd.validation.configuration import METRICS, TrainConfig
from noisysgd.validation.runs.toml_files import to_toml

try:
    import fcntl
except ImportError:  # Windows has no such locks: two drivers may then train the same run, and the first record counts
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

RECORD, CONFIGURATION, LOCK, CHECKPOINT, OVERDUE = "record.json", "config.toml", "lock", "checkpoint.pt", "overdue"
FORMAT = 1
"""Version of the layout of ``record.json``."""
OUTCOMES = ("complete", "diverged")
NUMBERS = (*METRICS, "steps", "seconds")
"""Entries of a record that are numbers, ``None`` or missing."""


class RunStore:
    """Records of training runs below one directory; any number of processes may read and write it at once.

    Parameters
    ----------
    root : path
        The directory; created when the first record is written.

    Raises
    ------
    ValueError
        If `root` is something other than a directory.

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
        # Records already warned of. Pickled with the store, so that worker processes do not repeat the warnings.
        self._warned: set[Path] = set()
        usable = not self.root.exists() or self.root.is_dir()
        checks.require(usable, "root", "a directory", str(root), "Choose another place for the store.")

    def path(self, config: TrainConfig) -> Path:
        """Directory of a run's record, whether it exists or not."""
        return self.root / config.key

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a record, unless the store has one of the same configuration, which then stays.

        Parameters
        ----------
        record : mapping
            ``config`` (:meth:`TrainConfig.as_dict`), ``status`` ("complete" or "diverged"), and any other plain values,
            among them the metrics.

        Raises
        ------
        DiskFullError
            An ``OSError``, if there is no room; nothing is left of the record then.
        """
        with room_for(self.root):
            self._write(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        config = TrainConfig.from_dict(record["config"])
        # The record is a string inside the file, so that its checksum covers the very characters that are read back.
        # Floats survive exactly: JSON writes them as repr does.
        body = json.dumps(dict(record), sort_keys=True)
        payload = json.dumps({"format": FORMAT, "sha256": _digest(body), "record": body}, indent=1)
        partial = self.root / f".partial-{config.key}-{uuid.uuid4().hex}"
        make_folder(self.root)
        partial.mkdir()
        try:
            # The contents must be on disk before the name is, or a power cut could leave a named, empty record.
            for name, text in ((CONFIGURATION, to_toml(config.as_dict())), (RECORD, payload)):
                write_flushed(partial / name, text.encode())
            flush_folder(partial)
            # Renaming onto a directory that is not empty fails. Then another writer was first, and its record stays;
            # or a damaged record is in the way and is moved aside. Three attempts, since other writers may be moving
            # the same directory at the same time.
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
            flush_folder(self.root)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def read(self, config: TrainConfig) -> dict[str, Any] | None:
        """The record of a run, or ``None`` if there is none.

        A damaged record counts as none. The log warns of it once, and it is moved aside when the run is written again.

        Raises
        ------
        ValueError
            If the record was written in the format of another version.
        """
        path = self.path(config) / RECORD
        try:
            text = path.read_text(encoding="utf-8")
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
        self._warned.discard(path)  # it has been repeated: a new damage is a new warning
        return record

    def _warn(self, path: Path, words: str) -> None:
        """Log what is wrong with a record, once for every damage: growing sweeps read a record many times."""
        if path not in self._warned:
            self._warned.add(path)
            logger.warning("%s: %s; the run will be repeated", path, words)

    @contextmanager
    def claim(self, config: TrainConfig) -> Iterator[Path | None]:
        """Lock a run for this process, as a context manager.

        Yields
        ------
        Path or None
            A working directory for the run; ``None`` if another process has the run. What a killed process has left
            there, such as a checkpoint, is still there. The directory is removed at the end if the store then has the
            run's record.

        Notes
        -----
        Where the file system has no locks, every process is given the directory: a run may then be trained twice, and
        the first record counts.

        Examples
        --------
        >>> import tempfile
        >>> store, config = RunStore(tempfile.mkdtemp()), TrainConfig(learning_rate=0.5, batch_size=64, steps=2)
        >>> with store.claim(config) as mine, RunStore(store.root).claim(config) as other:
        ...     mine.name == f".running-{config.key}", other
        (True, None)
        """
        with room_for(self.root), self._claim(config) as working:
            yield working

    @contextmanager
    def _claim(self, config: TrainConfig) -> Iterator[Path | None]:
        working = self.root / f".running-{config.key}"
        working.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(working / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the process that finished the run has just removed the directory
            yield None
            return
        try:
            if not _lock(descriptor, working):
                yield None
                return
            os.utime(working / LOCK)  # since when the run is under way: see begun
            yield working
            # While the lock is still held: another process could otherwise begin to use what is being removed.
            if self.read(config) is not None:
                shutil.rmtree(working, ignore_errors=True)
        finally:
            os.close(descriptor)  # releases the lock

    def begun(self, config: TrainConfig) -> tuple[float | None, float | None]:
        """Seconds since a run was claimed, and since its checkpoint was written; ``None`` for what has not happened.

        By the clocks of this machine and of the file system, which may differ by seconds.
        """
        working, now = self.root / f".running-{config.key}", time.time()
        ages: list[float | None] = []
        for name in (LOCK, CHECKPOINT):
            try:
                ages.append(max(now - (working / name).stat().st_mtime, 0.0))
            except OSError:
                ages.append(None)
        return ages[0], ages[1]

    def overdue(self, config: TrainConfig) -> str | None:
        """Why the process of a run was ended, if it hung beyond its time limit; the note is taken away.

        See :func:`noisysgd.validation.training.time_limit.ended_when_overdue`.
        """
        note = self.root / f".running-{config.key}" / OVERDUE
        try:
            text = note.read_text(encoding="utf-8")
            note.unlink()
        except OSError:
            return None
        return text

    def tidy(self, configs: Sequence[TrainConfig]) -> None:
        """Remove working directories of finished runs, left by processes that were killed before they did it."""
        left = {path.name for path in self.leftovers()}
        for config in configs:
            if f".running-{config.key}" in left and self.read(config) is not None:
                with self.claim(config):
                    pass  # leaving the claim removes the directory, unless another process has it

    def leftovers(self) -> list[Path]:
        """Directories of unfinished runs, of half-written and of damaged records; none of them counts as a record."""
        if not self.root.is_dir():
            return []
        return sorted(p for p in self.root.iterdir() if p.name.startswith((".running-", ".partial-", ".damaged-")))

    def _set_aside(self, config: TrainConfig) -> None:
        """Rename the directory of a damaged record, so that a new one can take its place."""
        path = self.path(config)
        aside = path.with_name(f".damaged-{path.name}-{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):  # another writer has renamed it already
            path.rename(aside)
            logger.info("%s: moved to %s", path, aside.name)


def _fault(record: Any, config: TrainConfig) -> str | None:
    """What is wrong with a record, in words; ``None`` if it is a record of the given configuration."""
    if not isinstance(record, dict):
        return "its checksum is wrong"
    if not _describes(record.get("config"), config):
        return "it is of another configuration"
    if record.get("status") not in OUTCOMES:
        return f"status {record.get('status')!r}"
    odd = [name for name in NUMBERS if not _number_or_none(record.get(name))]
    if odd:
        return f"{odd[0]} {record[odd[0]]!r}"
    fault = curve_fault(record.get("curve"))
    return None if fault is None else f"curve: {fault}"


def _number_or_none(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _describes(values: object, config: TrainConfig) -> bool:
    """Whether the values kept with a record are those of `config`; names that older versions lacked may be missing."""
    try:
        return isinstance(values, dict) and TrainConfig.from_dict(values) == config
    except ValueError:
        return False


def _lock(descriptor: int, path: Path) -> bool:
    """Whether this process has the lock now: false if another has it, true where there are no locks at all."""
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
