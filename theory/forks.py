"""Forks that wait for the compiler.

A process that is forked while another thread compiles finds Numba's lock taken, by a thread that it does not have: it
would wait for ever as soon as it compiles something itself, or loads it from the cache. So a fork takes the lock first.
"""

import functools
import os


@functools.cache
def wait_for_compiler() -> None:
    """Make every later ``os.fork`` of this process wait until no other thread compiles; once is enough."""
    from numba.core.compiler_lock import global_compiler_lock as lock

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
