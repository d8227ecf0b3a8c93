"""How kernels are compiled: without the interpreter lock, and dividing by zero as NumPy does.

An *entry* is called from Python, and cached on disk. A *helper* is called by other kernels alone, not from Python: its
code is part of theirs, and to cache and wrap it as well would lengthen the first call of everything by half. Either may
be *reordered*: its sums may be taken in any order, which lets them use vector registers, and nothing else may change.
An *inlined* function becomes part of the loop that calls it, and may be called from Python too.
"""

import ast
import functools
import hashlib
import importlib.util
import os
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
    """What leaves a function as it is, to type checkers."""

    def __call__(self, function: Function, /) -> Function:
        """The function, compiled when it is first called."""


def _compiler(*, cached: bool = False, **options: Any) -> Decorator:
    def compiled(function: Any) -> Any:
        kernel: Any = njit(**PLAIN, **options)(function)
        if cached and hasattr(kernel, "py_func"):  # and not a plain function, where compilation is turned off
            kernel._cache = _Cache(function)
        return kernel

    return compiled


class _Cache(caching.FunctionCache):  # type: ignore[misc]
    """Numba's cache on disk, emptied by any change to the code that an entry is made from.

    Numba itself looks at the date of the entry's own file, and would go on using code made from helpers and constants
    that have changed since. Here the contents of all files count that the entry's module imports, directly or not.
    """

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self._cache_file = _CacheFile(self._cache_path, self._impl.filename_base, _fingerprint(function.__module__))


class _CacheFile(caching.IndexDataCacheFile):  # type: ignore[misc]
    """An index and its files, read and written by one process at a time: Numba names files before it writes them."""

    def save(self, key: Any, data: Any) -> None:
        with _locked(self._cache_path):
            super().save(key, data)

    def load(self, key: Any) -> Any:
        with _locked(self._cache_path):
            return super().load(key)


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    if fcntl is None or not Path(folder).is_dir():
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which releases the lock


def _fingerprint(module: str) -> str:
    """SHA-256 of a module of this package and of all its modules that it imports, directly or not."""
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
    names: set[str] = set()
    for node in ast.walk(ast.parse(_source(module) or b"")):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    package = module.partition(".")[0] + "."
    return {name for name in names if name.startswith(package) and _source(name) is not None}


@functools.cache
def _source(name: str) -> bytes | None:
    """The source of a module; None for a package, or for a function, which an import statement may name as well."""
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    if found is None or found.origin is None or found.submodule_search_locations is not None:
        return None
    return Path(found.origin).read_bytes()


# A process that is forked while another thread compiles finds Numba's lock taken, by a thread that it does not have. It
# would wait for ever as soon as it compiled something itself, or loaded it from the cache. So a fork takes the lock.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )

PLAIN: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
INLINED: dict[str, Any] = PLAIN | {"forceinline": True}
"""Options of the versions of an inlined function that types choose between (Numba's ``overload``)."""
WITHIN = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
REORDERED = {"reassoc", "contract"}

entry = _compiler(cached=True)
helper = _compiler(**WITHIN)
inlined = _compiler(forceinline=True)
reordered_entry = _compiler(cached=True, fastmath=REORDERED)
reordered_helper = _compiler(fastmath=REORDERED, **WITHIN)
