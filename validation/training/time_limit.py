"""A limit on the time of one run: kept between updates, or by ending the process where an update never returns."""

import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from noisysgd.theory.common import checks
from noisysgd.theory.common.duration import duration

logger = logging.getLogger(__name__)

GRACE = 60.0
"""Seconds, after the limit, in which a run may end its update, write its checkpoint and go by itself."""
EXIT_STATUS = 70


class OverdueError(RuntimeError):
    """A run took longer than its time limit; its last checkpoint is kept."""


def checked_limit(value: float | None) -> float | None:
    """A time limit in seconds, above 0; ``None`` for none.

    >>> checked_limit(90), checked_limit(None)
    (90.0, None)
    """
    if value is None:
        return None
    limit = checks.scalar("time_limit", value)
    checks.require(0 < limit < float("inf"), "time_limit", "seconds, above 0", value, "None sets no limit.")
    return limit


@contextmanager
def ended_when_overdue(limit: float | None, name: str, mark: Path) -> Iterator[None]:
    """End this process if the ``with`` block takes `limit` seconds and a minute more; only in processes of an executor.

    A run whose update never returns (a network of the user's own, a file system, a GPU that has hung) cannot be told
    to stop. Its process can: others take its place, and their runs go on from checkpoints.

    Parameters
    ----------
    limit : float or None
        Seconds; ``None`` sets none.
    name : str
        What to call the run in the log.
    mark : path
        File in which the reason is left for whoever started the process; removed when the block begins.
    """
    mark.unlink(missing_ok=True)
    # A process that was not started for runs is the user's own, who can see that it hangs.
    if limit is None or multiprocessing.parent_process() is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        if not done.wait(limit + GRACE):
            over = f"{duration(GRACE, rough=True)} after its time limit of {duration(limit, rough=True)}"
            text = f"run {name}: an update hung until {over}; its process was ended."
            try:
                mark.write_text(text, encoding="utf-8")
                logger.error("%s", text)
            finally:
                os._exit(EXIT_STATUS)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
