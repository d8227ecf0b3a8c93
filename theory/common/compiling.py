"""How kernels are compiled: without the interpreter lock, and dividing by zero as NumPy does.

There are three kinds of compiled function. An *entry* is called from Python and cached on disk. A *helper* is called by
other kernels only: its code becomes part of theirs, and caching and wrapping it as well would lengthen every first call
by half. An *inlined* function is inserted into the loop that calls it, and may be called from Python too.

Entries and helpers may be *reordered*: their sums may be taken in any order, and products and sums may be fused, which
lets them use vector registers. No other liberty is taken with floating-point arithmetic.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from numba import njit
from numba.core import caching
from numba.core.compiler_lock import global_compiler_lock

try:
    import fcntl
except ImportError:  # not on Windows: there two processes that fill one cache at once may get in each other's way
    fcntl = None  # type: ignore[assignment]

Function = TypeVar("Function", bound=Callable[..., Any])


class Decorator(Protocol):
    """A decorator after which a function has the type that it had before."""

    def __call__(self, function: Function, /) -> Function:
        """Return the function, which is compiled when it is first called."""


def _compiler(*, cached: bool = False, **options: Any) -> Decorator:
    def compiled(function: Callable[..., object]) -> Any:
        kernel: Any = njit(**PLAIN, **options)(function)
        if hasattr(kernel, "py_func"):  # absent where NUMBA_DISABLE_JIT leaves functions plain
            kernel.compile = _interrupts_wait()(kernel.compile)
            if cached:
                kernel._cache = _Cache(function)
        return kernel

    return compiled


class _Waiting:
    """A handler that keeps the first signal of a kind for later, and hands the next ones on to the usual handler."""

    def __init__(self, usual: Callable[[int, Any], object]) -> None:
        self.usual, self.arrived = usual, False

    def __call__(self, number: int, frame: Any) -> None:
        if self.arrived:
            self.usual(number, frame)
        self.arrived = True


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until a kernel is compiled, and a second one of them not.

    LLVM calls Python back, and what a handler raises there is lost: the user would press Ctrl-C and nothing happen.
    """
    main = threading.current_thread() is threading.main_thread()  # where all handlers run
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if main}
    # Not those of the system, nor, if this kernel is compiled for another one, those of that.
    waiting = {n: _Waiting(each) for n, each in usual.items() if callable(each) and not isinstance(each, _Waiting)}
    try:
        for number, handler in waiting.items():
            signal.signal(number, handler)
        yield
    finally:
        for number, handler in waiting.items():
            signal.signal(number, handler.usual)
        for number in [number for number, handler in waiting.items() if handler.arrived]:
            signal.raise_signal(number)


class _Cache(caching.FunctionCache):  # type: ignore[misc]
    """Numba's cache on disk, invalidated by any change to the code that an entry is compiled from.

    Numba itself looks at the date of the entry's own file only, and would go on using code compiled from helpers and
    constants that have changed since. Here the contents of all modules count that the entry's module imports from its
    own package, directly or not.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__(function)
        self._cache_file = _CacheFile(self._cache_path, self._impl.filename_base, _fingerprint(function.__module__))


class _CacheFile(caching.IndexDataCacheFile):  # type: ignore[misc]
    """The index of a cache and its data files, read and written by one process at a time.

    Numba chooses a free number for a data file before it writes the file, so that two processes that fill one cache at
    once could choose the same name for different code. Here the number follows from what is compiled, for file systems
    without locks; there the index may lack an entry, and that code is compiled again.
    """

    _number = 0

    def save(self, key: object, data: object) -> None:
        with _locked(self._cache_path):
            self._number = int(hashlib.sha256(repr(key).encode()).hexdigest()[:12], 16)
            super().save(key, data)

    def load(self, key: object) -> object:
        with _locked(self._cache_path):
            return super().load(key)

    def _data_name(self, number: int) -> Any:
        return super()._data_name(self._number + number)


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Hold an exclusive lock on a folder; without effect where the folder or its file system's locks are missing."""
    if fcntl is None or not Path(folder).is_dir():
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # also releases the lock


def _fingerprint(module: str) -> str:
    """SHA-256 of a module's source and of all modules of its own package that it imports, directly or not."""
    # Visit the graph of imports from this module on; sorting makes the digest independent of the order of visits.
    seen, waiting = {module}, [module]
    while waiting:
        new = _imports(waiting.pop()) - seen
        seen |= new
        waiting += new
    digest = hashlib.sha256()
    for name in sorted(seen):
        digest.update(_source(name) or b"")
    return digest.hexdigest()


@functools.cache
def _imports(module: str) -> set[str]:
    """Modules of its own package that a module imports."""
    # Only absolute `from ... import ...` statements occur in this package; a name in one may be a module or not.
    names: set[str] = set()
    for node in ast.walk(ast.parse(_source(module) or b"")):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    package = module.partition(".")[0] + "."
    return {name for name in names if name.startswith(package) and _source(name) is not None}


@functools.cache
def _source(name: str) -> bytes | None:
    """The source of a module; None if the name is that of a package, or of a function or class in a module."""
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    if found is None or found.origin is None or found.submodule_search_locations is not None:
        return None
    return Path(found.origin).read_bytes()


# A process that is forked while another thread compiles would inherit Numba's lock, held by a thread that it does not
# have, and would wait for ever as soon as it compiled something or loaded it from the cache. So a fork first waits for
# the lock, and both processes release it afterwards.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )

PLAIN: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
INLINED: dict[str, Any] = PLAIN | {"forceinline": True}
"""Options for Numba's ``overload``, which chooses between versions of an inlined function by its arguments' types."""
# A helper needs no wrappers to be called from Python or C.
WITHIN = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
# LLVM's fast-math flags for any order of sums and for fused multiply-adds.
REORDERED = {"reassoc", "contract"}

entry = _compiler(cached=True)
helper = _compiler(**WITHIN)
inlined = _compiler(forceinline=True)
reordered_entry = _compiler(cached=True, fastmath=REORDERED)
reordered_helper = _compiler(fastmath=REORDERED, **WITHIN)
