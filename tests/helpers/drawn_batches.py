"""Single batches from the kernel that draws them, which is compiled into others and cannot be called by itself."""

import numpy as np
from numba import njit

from noisysgd.simulators.randomness.batches import SAMPLINGS, draw_batch


@njit
def _fill(chosen, population, sampling, seed, replica, step):
    order, picks = np.arange(population), np.empty(population, np.int64)
    draw_batch(chosen, order, picks, sampling, seed, replica, step, True)


def drawn_batch(size, population, sampling, *, seed, replica, step):
    """The examples that one batch takes, in the order in which they are drawn."""
    chosen = np.empty(size, np.int64)
    _fill(chosen, population, SAMPLINGS.index(sampling), np.uint64(seed), np.uint64(replica), np.uint64(step))
    return chosen
