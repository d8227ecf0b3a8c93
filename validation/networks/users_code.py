"""Code of the user's own, which may end the program where it should raise an error."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception stands for Ctrl-C or SIGTERM, and not for code that raises ``KeyboardInterrupt`` by itself.

    Python delivers signals to the main thread alone, and turns them into exceptions only where a handler is installed:
    in other threads, and in worker processes, which ignore both signals, nobody can have pressed Ctrl-C.

    >>> is_interrupt(SystemExit(0))
    False
    """
    main = threading.current_thread() is threading.main_thread()
    return isinstance(error, KeyboardInterrupt) and main and callable(signal.getsignal(signal.SIGINT))


@contextmanager
def not_ending_the_program(what: str) -> Iterator[None]:
    """Within the block ``SystemExit`` and its kind are errors.

    Left alone, ``sys.exit()`` in a user's code would end the command with exit status 0, as if all had been done, and
    without a word; so would ``GeneratorExit``. ``os._exit`` ends the process at once and cannot be caught.

    Parameters
    ----------
    what : str
        The code that is called, for the error message.

    Raises
    ------
    RuntimeError
        In place of ``SystemExit``, ``GeneratorExit`` and any other exception that is no ``Exception``, except for a
        ``KeyboardInterrupt`` that :func:`is_interrupt` takes for Ctrl-C.

    Examples
    --------
    >>> with not_ending_the_program("model"):
    ...     raise SystemExit(0)
    Traceback (most recent call last):
        ...
    RuntimeError: model: expected a result or an error, got SystemExit(0). Raise a ValueError where it cannot go on.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or is_interrupt(error):
            raise
        remedy = "Raise a ValueError where it cannot go on."
        raise RuntimeError(f"{what}: expected a result or an error, got {error!r}. {remedy}") from error
