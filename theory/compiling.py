"""How kernels are compiled: without the interpreter lock, and dividing by zero as NumPy does.

An *entry* is called from Python, and cached on disk. A *helper* is called by other kernels alone, not from Python: its
code is part of theirs, and to cache and wrap it as well would lengthen the first call of everything by half. Either may
be *reordered*: its sums may be taken in any order, which lets them use vector registers, and nothing else may change.

Numba's cache sees only the date of the file an entry is in: after editing a helper in another file, touch that of the
entry.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from numba import njit

from noisysgd.theory.forks import wait_for_compiler

wait_for_compiler()

Function = TypeVar("Function", bound=Callable[..., Any])


class Decorator(Protocol):
    """What leaves a function as it is, to type checkers."""

    def __call__(self, function: Function, /) -> Function:
        """The function, compiled when it is first called."""


def _compiler(**options: Any) -> Decorator:
    compiler: Decorator = njit(nogil=True, error_model="numpy", **options)
    return compiler


WITHIN = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
REORDERED = {"reassoc", "contract"}

entry = _compiler(cache=True)
helper = _compiler(**WITHIN)
reordered_entry = _compiler(cache=True, fastmath=REORDERED)
reordered_helper = _compiler(fastmath=REORDERED, **WITHIN)
