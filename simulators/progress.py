"""How much time a computation still takes, as a line on the terminal that is written over again and again."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

from noisysgd.theory.common import checks
from noisysgd.theory.common.duration import duration

INTERVAL = 0.2
"""Least number of seconds between two updates of the line: nobody reads more, and remote terminals are slow."""


class TimeLeft:
    r"""A progress line such as ``42 % · 1 min 20 s left``, for everything here that runs long.

    The time left is estimated in proportion: as much for the work left as the work done so far took. Nothing is written
    if the stream is not a terminal.

    Parameters
    ----------
    stream : text file, optional
        Where to write; standard error by default.
    always : bool
        Whether to write even if the stream is not a terminal.
    clock : callable
        A function without arguments that returns the time in seconds, from any origin.

    Notes
    -----
    The clock starts when the object is made, and again whenever all work is done, so that an object can be used again.

    Examples
    --------
    >>> from noisysgd import simulators, theory
    >>> settings = {"learning_rate": [0.1, 0.2], "batch_size": 8}
    >>> result = simulators.simulate(theory.power_law(10), theory.constant(50), **settings, progress=TimeLeft())

    >>> import io
    >>> seconds = iter([0.0, 20.0, 80.0])
    >>> written = io.StringIO()
    >>> line = TimeLeft(stream=written, always=True, clock=lambda: next(seconds))
    >>> line(0.25), line(1.0)
    (None, None)
    >>> written.getvalue().split("\r")
    ['', ' 25 % · 1 min 0 s left', '100 % · 1 min 20 s    \n']
    """

    def __init__(
        self, *, stream: TextIO | None = None, always: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        always = checks.boolean("always", always)
        checks.function("clock", clock, remedy="Pass a function that returns seconds, such as time.monotonic.")
        writes = stream is None or (hasattr(stream, "write") and hasattr(stream, "isatty"))
        checks.require(writes, "stream", "an open text file", stream, "Leave it out for standard error.")
        self._stream = sys.stderr if stream is None else stream
        # A program without a console has no standard error.
        self._silent = self._stream is None or not (always or self._stream.isatty())
        self._clock = clock
        self._start = clock()
        self._next, self._width = self._start, 0

    def __call__(self, done: float, total: float = 1.0) -> None:
        """Report that `done` of `total` is done, in any unit; a single number is the share that is done."""
        if self._silent:
            return
        now = self._clock()
        if done >= total:
            self._write(f"100 % · {duration(now - self._start)}", end="\n")
            self._start, self._next, self._width = now, now, 0
        elif done > 0 and now >= self._next:
            left = (now - self._start) * (total - done) / done
            self._write(f"{int(100 * done / total):3d} % · {duration(left)} left")
            self._next = now + INTERVAL

    def _write(self, line: str, end: str = "") -> None:
        """Write over the previous line, with blanks where that was longer."""
        self._stream.write("\r" + line.ljust(self._width) + end)
        self._stream.flush()
        self._width = len(line)
