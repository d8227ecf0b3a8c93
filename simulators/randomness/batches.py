"""Which training examples make a minibatch, compiled: a function of (seed, replica, step) alone.

Three ways to sample B of N examples:

- without replacement: a uniform subset, independent from update to update (Smith, Elsen & De 2020, section 2);
- with replacement: B independent examples;
- reshuffled: every epoch a fresh permutation, cut into ⌊N/B⌋ batches; the N mod B last examples of it are left out.

Uniform integers below n are the upper half of the product of a 64-bit word with n: their probabilities are off from 1/n
by 2⁻⁶⁴ at most.
"""

import numpy as np

from noisysgd.simulators.randomness.philox import words
from noisysgd.simulators.randomness.stream import Purpose
from noisysgd.theory.common.arrays import IntArray
from noisysgd.theory.common.compiling import helper

SAMPLINGS = ("without_replacement", "with_replacement", "reshuffle")
"""Names of the ways to sample; kernels are given the position in this tuple."""

_MINIBATCH, _RESHUFFLE = np.uint64(Purpose.MINIBATCH), np.uint64(Purpose.RESHUFFLE)
_LOW, _WORD = np.uint64(0xFFFFFFFF), np.uint64(32)


@helper
def below(high: np.uint64, low: np.uint64, limit: int) -> np.int64:
    """A uniform integer in 0…limit − 1, limit < 2³², from two 32-bit words."""
    # (high · 2³² + low) · n / 2⁶⁴ in two halves, since no integer type here holds the product of 96 bits.
    n = np.uint64(limit)
    return np.int64((high * n + (low * n >> _WORD)) >> _WORD)


@helper
def swap_in(
    order: IntArray,
    picks: IntArray,
    count: int,
    seed: np.uint64,
    purpose: np.uint64,
    replica: np.uint64,
    step: np.uint64,
) -> None:
    """Bring a uniform subset of `count` entries of `order` to its front, in uniform order; `picks` notes the swaps.

    This is the shuffle of Fisher & Yates, ended after `count` swaps.
    """
    # A Philox block makes two integers: two swaps at a time.
    for k in range(0, count, 2):
        x0, x1, x2, x3 = words(seed, purpose, replica, step, np.uint64(k // 2))
        picks[k] = k + below(x1, x0, order.size - k)
        order[k], order[picks[k]] = order[picks[k]], order[k]
        if k + 1 < count:
            picks[k + 1] = k + 1 + below(x3, x2, order.size - k - 1)
            order[k + 1], order[picks[k + 1]] = order[picks[k + 1]], order[k + 1]


@helper
def swap_back(order: IntArray, picks: IntArray, count: int) -> None:
    """Undo :func:`swap_in`: the same swaps, last first."""
    for k in range(count - 1, -1, -1):
        order[k], order[picks[k]] = order[picks[k]], order[k]


@helper
def draw_batch(
    chosen: IntArray,
    order: IntArray,
    picks: IntArray,
    sampling: int,
    seed: np.uint64,
    replica: np.uint64,
    step: np.uint64,
    fresh: bool,
) -> None:
    """Fill `chosen`, (B,), with the indices of the examples of the update at `step`.

    `order`, (N,), holds 0…N−1 in ascending order, which the call restores. Only when reshuffling it holds the
    permutation of the epoch, unless `fresh` says that this has yet to be made. `picks`, (N,), is scratch.
    """
    size, population = chosen.size, order.size
    if sampling == 0:
        # Undone, the swaps cost O(B). To begin with a fresh 0…N−1 instead would cost O(N) at every update.
        swap_in(order, picks, size, seed, _MINIBATCH, replica, step)
        chosen[:] = order[:size]
        swap_back(order, picks, size)
    elif sampling == 1:
        for k in range(0, size, 2):
            x0, x1, x2, x3 = words(seed, _MINIBATCH, replica, step, np.uint64(k // 2))
            chosen[k] = below(x1, x0, population)
            if k + 1 < size:
                chosen[k + 1] = below(x3, x2, population)
    else:
        batches = np.uint64(population // size)
        place = np.int64(step % batches)
        # The permutation is a function of the epoch's index, so that a window may begin in the middle of an epoch.
        if fresh or place == 0:
            for i in range(population):
                order[i] = i
            swap_in(order, picks, population, seed, _RESHUFFLE, replica, step // batches)
        chosen[:] = order[place * size : (place + 1) * size]
