"""An index of a run store: its records in one file, so that a sweep of many runs is read at once.

An index is not a part of the store but a copy of what was read there. Each record stands beside the size and the times
that its own file had; where these have changed, and where the index lacks a record, the record itself is read. An index
that is damaged, of another version, or not there, is no index, and one is made anew.
"""

import hashlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from noisysgd.theory.common.files import read_regular, write_whole

logger = logging.getLogger(__name__)

NAME = ".index"
HEADER = b"noisysgd index 1 "
LEAST = 100
"""Number of records from which an index is worth its file."""
SETTLED_NANOSECONDS = 2_000_000_000
"""Age from which a file is indexed: what is younger could change once more within one tick of the clock of its file
system, and keep its times."""


class Stamp(NamedTuple):
    """What the system says of a record's file, by which a later change is seen.

    Parameters
    ----------
    size : int
        Bytes.
    modified, changed : int
        Times of the last change of the contents, and of the contents or of what the system knows of the file, in
        nanoseconds. The second cannot be set back.
    """

    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> "Stamp | None":
        """The stamp of a file as it is now; ``None`` if there is none that can be asked."""
        try:
            status = path.stat()
        except OSError:
            return None
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @property
    def settled(self) -> bool:
        """Whether a change from now on would give another stamp."""
        return max(self.modified, self.changed) + SETTLED_NANOSECONDS < time.time_ns()


Entries = Mapping[str, tuple[Stamp, str]]
"""For each run, by its key, the stamp of its record and the record as JSON."""


def read_index(root: Path) -> dict[str, tuple[Stamp, str]]:
    """The index of the store below `root`, empty if there is none that can be used."""
    try:
        content = read_regular(root / NAME)
        header, _, lines = content.partition(b"\n")
        if header != HEADER + hashlib.sha256(lines).hexdigest().encode():
            return {}
        rows = (line.split(" ", 4) for line in lines.decode().split("\n")[:-1])
        return {key: (Stamp(*map(int, numbers)), body) for key, *numbers, body in rows}
    except (OSError, ValueError):
        return {}


def write_index(root: Path, entries: Entries) -> None:
    """Write the index of the store below `root`, without runs that are gone. One that only can be read has none."""
    try:
        there = {path.name for path in root.iterdir()}
        rows = (
            f"{key} {stamp.size} {stamp.modified} {stamp.changed} {body}\n"
            for key, (stamp, body) in entries.items()
            if key in there
        )
        lines = "".join(rows).encode()
        write_whole(root / NAME, HEADER + hashlib.sha256(lines).hexdigest().encode() + b"\n" + lines)
    except (OSError, ValueError) as error:
        logger.info("%s: no index was written (%s)", root, error)
