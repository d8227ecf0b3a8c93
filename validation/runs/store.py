"""The run store: one directory per finished run, named by a hash of its configuration. It is all the state of a sweep.

Such a directory holds ``record.json``, the result of the run, and ``config.toml``, the configuration with which the run
can be repeated. It is written under a temporary name, flushed to disk and renamed, so that a directory under its final
name is complete. The record carries a checksum all the same, against faulty disks and files edited by hand.

A run under way has a directory ``.running-<name>``, for its checkpoint and for a lock file, whose lock the system
releases when the process dies, however it dies.
"""

import contextlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from noisysgd.theory.common import checks
from noisysgd.theory.common.files import flush_folder, make_folder, read_regular, room_for, write_flushed
from noisysgd.validation.configuration import TrainConfig
from noisysgd.validation.runs.index import LEAST, Stamp, read_index, write_index
from noisysgd.validation.runs.records import LARGEST, OtherFormatError, decode, encode, fault
from noisysgd.validation.runs.toml_files import to_toml

try:
    import fcntl
except ImportError:  # Windows has no such locks: two drivers may then train the same run, and the first record counts
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

RECORD, CONFIGURATION, LOCK, CHECKPOINT, OVERDUE = "record.json", "config.toml", "lock", "checkpoint.pt", "overdue"


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
        checks.instance("config", config, TrainConfig, remedy="Make one with validation.TrainConfig.")
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
        checks.instance("record", record, Mapping, remedy="Pass what train returned.")
        checks.require("config" in record, "record", "a configuration", sorted(map(str, record)), "Add its config.")
        config = TrainConfig.from_dict(record["config"])
        content = encode(record)
        wrong = fault(decode(content), config)  # of what will be read: tuples have become lists
        checks.require(wrong is None, "record", "a result that a run can have", wrong, "Correct what makes it.")
        checks.require(len(content) <= LARGEST, "record", f"at most {LARGEST} bytes", len(content), "Keep less in it.")
        partial = self.root / f".partial-{config.key}-{uuid.uuid4().hex}"
        make_folder(self.root)
        partial.mkdir()
        try:
            # The contents must be on disk before the name is, or a power cut could leave a named, empty record.
            write_flushed(partial / CONFIGURATION, to_toml(config.as_dict()).encode())
            write_flushed(partial / RECORD, content)
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
            record = decode(read_regular(path, LARGEST))
            wrong = fault(record, config)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OtherFormatError as error:
            raise OtherFormatError(f"{path}: {error}") from error
        except OSError as error:
            self._warn(path, f"cannot be read ({error})")
            return None
        except Exception as error:  # whatever stands there in place of a record: each parser fails in its own way
            wrong = f"{error}"
        if wrong is not None:
            self._warn(path, f"damaged record ({wrong})")
            return None
        self._warned.discard(path)  # it has been repeated: a new damage is a new warning
        return dict(record)

    def read_many(self, configs: Iterable[TrainConfig]) -> dict[str, dict[str, Any]]:
        """The records of many runs, by their keys: those that :meth:`read` finds.

        Of many records the store keeps an index (:mod:`noisysgd.validation.runs.index`), a file ``.index`` that may be
        deleted at any time. A record that has changed since is read itself, never the index.

        Raises
        ------
        ValueError
            If a record was written in the format of another version.
        """
        wanted = {config.key: config for config in configs}
        index = read_index(self.root) if len(wanted) >= LEAST else {}
        found: dict[str, dict[str, Any]] = {}
        fresh: dict[str, tuple[Stamp, str]] = {}
        known: dict[str, str] = {}
        for key, config in wanted.items():
            stamp = Stamp.of(Path(f"{self.root}/{key}/{RECORD}"))  # before it is read: a change from now on shows
            if key in index and index[key][0] == stamp:
                known[key] = index[key][1]
            elif (record := self.read(config)) is not None:
                found[key] = record
                if stamp is not None and stamp.settled:
                    fresh[key] = stamp, json.dumps(record)
        found |= zip(known, json.loads(f"[{','.join(known.values())}]"), strict=True)  # all at once: twice as fast
        # A few records are read faster than an index is written.
        if len(fresh) >= LEAST + len(index) // 10:
            write_index(self.root, index | fresh)
        return found

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
