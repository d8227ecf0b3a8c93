"""Ctrl-C and SIGTERM must reach the process that drives a sweep (the driver), and none of its workers.

A terminal sends Ctrl-C to all processes of a command, and batch systems and ``timeout`` send SIGTERM to all of them.
Workers that reacted would drop their runs. It is the driver that tells them when to stop.
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
"""Signals within so many seconds of the first count as one: ``timeout`` sends SIGTERM to the command, and then to its
process group, which contains the command again."""


@contextmanager
def sheltered() -> Iterator[None]:
    """Start processes and threads inside: they never receive Ctrl-C or SIGTERM.

    They inherit a signal mask, which holds from their first instruction, before code of their own could ignore a
    signal. Signals that reach this process in the meantime are delivered at the end. On systems without signal masks
    this does nothing.

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
    # multiprocessing starts this helper process on demand, and lifts the mask afterwards: start it before we set ours.
    resource_tracker.ensure_running()
    arrived: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in SIGNALS} if main else {}
    # The mask covers this thread only. The system may deliver a signal to another thread, and Python would then run its
    # handler here, in the main thread: so the handlers are replaced too, by ones that only remember the signal.
    for number in handlers:
        signal.signal(number, lambda received, _: arrived.append(received))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            # None stands for a handler that was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for late in dict.fromkeys(arrived):
            signal.raise_signal(late)


def ignore() -> None:
    """Ignore Ctrl-C and SIGTERM in this process and in those that it starts; call it from the main thread."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def finish(wait: Callable[[], object], abandon: Callable[[], object]) -> None:
    """After a first interrupt, `wait` for what is under way; at a second one `abandon` it and raise that interrupt."""
    first = time.monotonic()
    while True:
        try:
            wait()
        except KeyboardInterrupt:
            if time.monotonic() - first > TOGETHER:  # else it is an echo of the first signal: wait on
                abandon()
                raise
        else:
            return


class Background:
    """A call that runs in a thread of its own; an interrupt of :meth:`wait` ends the waiting and not the call.

    It is for closing a process pool, which joins a thread. In CPython 3.11 an interrupted ``Thread.join`` marks the
    thread as ended although it runs on, so that joining it a second time returns too early.

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
        """Return when the call has ended."""
        self._done.wait()


def kill_children() -> None:
    """Kill, by SIGKILL, the processes that :mod:`multiprocessing` has started from this one."""
    for child in multiprocessing.active_children():
        child.kill()
