"""What torch keeps once for a whole process: its global generators, its number of threads, its flags.

Whoever trains or measures seeds and sets these. In two threads at once, each would draw from the generator that the
other has seeded, and put back what the other has set. So they take turns: one thread at a time has torch to itself.
Runs that are to go on side by side need processes of their own, as a process pool or a cluster's workers give them.
"""

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch

from noisysgd.theory.common import checks
from noisysgd.theory.common.parallel import MOST_THREADS

logger = logging.getLogger(__name__)

_turn = threading.RLock()
_told = False


@contextmanager
def torch_to_itself() -> Iterator[None]:
    """Within the ``with`` block no other thread trains or measures; a thread that has its turn may enter again.

    Examples
    --------
    >>> with torch_to_itself(), torch_to_itself():
    ...     print("mine")
    mine
    """
    turn = _turn
    if not turn.acquire(blocking=False):
        _tell_once()
        turn.acquire()
    try:
        yield
    finally:
        turn.release()


@contextmanager
def kept_generators(devices: Iterable[torch.device | str]) -> Iterator[None]:
    """Within the ``with`` block torch's global generators may be moved, by this thread alone: they are put back.

    Parameters
    ----------
    devices : iterable
        Where the network is: the generators of GPUs among them are kept, and that of the CPU always.

    Examples
    --------
    >>> before = torch.random.get_rng_state()
    >>> with kept_generators(["cpu"]):
    ...     _ = torch.manual_seed(0)
    >>> torch.equal(before, torch.random.get_rng_state())
    True
    """
    gpus = [device for device in map(torch.device, devices) if device.type == "cuda"]
    with torch_to_itself(), torch.random.fork_rng(devices=gpus):
        yield


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads for its operations on a CPU, in the ``with`` block, and as many as before after it.

    Raises
    ------
    ValueError
        For less than one thread.

    Examples
    --------
    >>> with torch_threads(1):
    ...     torch.get_num_threads()
    1
    """
    remedy = "Use 1, or torch.get_num_threads() for all that torch takes."
    count = checks.integer("threads", count, 1, maximum=MOST_THREADS, remedy=remedy)
    with torch_to_itself():
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@contextmanager
def usual_torch() -> Iterator[None]:
    """Torch as it starts: new tensors are float32 on the CPU and gradients are computed, whatever a program has set.

    Also a decorator, as ``@usual_torch()``. A network's own type and device are as its maker chose.

    Examples
    --------
    >>> torch.set_default_dtype(torch.float64)
    >>> with torch.no_grad(), usual_torch():
    ...     (torch.ones(1, requires_grad=True) + 1).requires_grad, torch.ones(1).dtype
    (True, torch.float32)
    >>> torch.ones(1).dtype
    torch.float64
    >>> torch.set_default_dtype(torch.float32)
    """
    with torch_to_itself(), torch.inference_mode(False), torch.enable_grad():
        dtype, device = torch.get_default_dtype(), torch.get_default_device()
        torch.set_default_dtype(torch.float32)
        try:
            # A default device slows every operation down, so that none is set where it is the CPU already.
            with nullcontext() if device.type == "cpu" else torch.device("cpu"):
                yield
        finally:
            torch.set_default_dtype(dtype)


def _tell_once() -> None:
    """Say that a thread waits: whoever starts several expects them to work side by side."""
    global _told
    if not _told:
        _told = True
        logger.warning(
            "threads of one process take turns at training and measuring, since torch has one random generator for all "
            "of them; use processes (local_executor, workers with one thread each) to train side by side"
        )


def _forget_turns() -> None:
    """In a forked process: the thread that had its turn, if it was another than the one that forked, is not there."""
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_turns)
