"""Threads for compiled code that releases the interpreter lock.

Plain threads instead of a compiler's own: safe to fork, quiet when idle, and the work is cut the same way whatever
their number.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

WORTH_A_THREAD = 200_000
"""Work, in mode-segments, below which starting a thread costs more than it saves (about 10 ms)."""


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_slices(work: Callable[[slice], None], count: int, *, cost: int) -> None:
    """Call `work` on slices that cover range(count), in threads if count · cost makes that worth it."""
    threads = min(usable_cores(), count, 1 + count * cost // WORTH_A_THREAD)
    if threads <= 1:
        return work(slice(0, count))
    # More slices than threads, since configurations differ in cost (momentum against none).
    edges = [count * k // (4 * threads) for k in range(4 * threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        for result in [pool.submit(work, slice(a, b)) for a, b in itertools.pairwise(edges) if b > a]:
            result.result()
    return None
