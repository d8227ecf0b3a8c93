"""Ctrl-C and SIGTERM are for the process that drives a sweep, even where they are sent to its whole process group.

A terminal sends Ctrl-C to all processes of the command, and batch systems and ``timeout`` send SIGTERM so. Workers that
heard it would drop their runs; the driver tells them when to stop.
"""

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOGETHER = 1.0
"""Signals within so many seconds are one: ``timeout`` sends SIGTERM to the command, and again to its group."""


@contextmanager
def sheltered() -> Iterator[None]:
    """Processes and threads started inside never hear the two signals; what arrives meanwhile is delivered at the end.

    They inherit a signal mask, which holds from their first instruction, before their own code could ignore anything.
    On systems without such masks nothing happens.

    Examples
    --------
    >>> try:
    ...     with sheltered():
    ...         signal.raise_signal(signal.SIGINT)
    ...         print("undisturbed")
    ... except KeyboardInterrupt:
    ...     print("interrupted")
    undisturbed
    interrupted
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing's helper: to start it later would lift the mask
    arrived: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in SIGNALS} if main else {}
    # Another thread may be given the signal, mask or no mask, and Python's handler then runs in this one.
    for number in handlers:
        signal.signal(number, lambda received, _: arrived.append(received))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for late in dict.fromkeys(arrived):
            signal.raise_signal(late)


def ignore() -> None:
    """For a worker process, in its main thread: ignore both signals, as do processes that it starts."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def finish(wait: Callable[[], object], abandon: Callable[[], object]) -> None:
    """After an interrupt: `wait` for what is under way; `abandon` it at the next interrupt, and raise that one."""
    first = time.monotonic()
    while True:
        try:
            wait()
        except KeyboardInterrupt:
            if time.monotonic() - first > TOGETHER:
                abandon()
                raise
        else:
            return


class Background:
    """A call in a thread of its own, for which :meth:`wait` waits; an interrupt ends the waiting, not the call.

    ``Thread.join``, interrupted, takes its thread for ended, and whoever joins it again goes on too early (CPython
    3.11): a pool's shutdown does just that.

    Examples
    --------
    >>> Background(lambda: print("closed")).wait()
    closed
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._call, self._done = call, threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._call()
        finally:
            self._done.set()

    def wait(self) -> None:
        """Until the call has ended."""
        self._done.wait()


def kill_children() -> None:
    """Kill the processes that :mod:`multiprocessing` has started here; they cannot ignore that."""
    for child in multiprocessing.active_children():
        child.kill()
