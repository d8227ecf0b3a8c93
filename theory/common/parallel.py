"""Threads for compiled code that releases the interpreter lock.

These are Python's threads rather than Numba's own: a process that has used them can still be forked, they use no
processor time when idle, and every item is computed in the same way whatever their number.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from noisysgd.theory.common import checks

WORTH_A_THREAD = 200_000
"""Work that makes one more thread worth starting (about 10 ms), in units of one mode over one segment of a schedule."""


MOST_THREADS = 4096
"""That a computation may be asked to share: far more than any machine has cores."""


def checked_threads(threads: int | None) -> int:
    """`threads` as an integer, or one for each usable core if it is None."""
    if threads is None:
        return usable_cores()
    return checks.integer("threads", threads, 1, maximum=MOST_THREADS, remedy="Use at least one.")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_slices(work: Callable[[slice], None], count: int, *, cost: int) -> None:
    """Call `work` on slices that cover range(count), in threads if the whole work, count · cost, is worth them.

    `cost` is the work of one item, in the unit of ``WORTH_A_THREAD``.
    """
    threads = min(usable_cores(), count, 1 + count * cost // WORTH_A_THREAD)
    if threads <= 1:
        return work(slice(0, count))
    # More slices than threads even out the load, since items differ in cost (momentum against none).
    edges = [count * k // (4 * threads) for k in range(4 * threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        for result in [pool.submit(work, slice(a, b)) for a, b in itertools.pairwise(edges) if b > a]:
            result.result()  # raises what `work` raised
    return None
