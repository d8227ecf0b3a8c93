"""Subsets of a training set: a seeded, balanced choice, the same on every machine and in every version."""

from typing import Any

import numpy as np
import numpy.typing as npt

from noisysgd.simulators.stream import Purpose, random_words
from noisysgd.theory import checks


def balanced_subset(labels: npt.NDArray[Any], size: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Which examples a subset of `size` keeps.

    Every example draws a random word, a function of (seed, its index). Each class is ranked by its words, and the
    subset takes first all of rank 0, then all of rank 1, …, within a rank by word. So classes are represented equally
    to within one example as long as none runs out; each class's share is a uniform choice; and a smaller subset of the
    same seed is part of a larger one.

    Parameters
    ----------
    labels : (N,) array of int
    size : int
        Examples to keep, 1 … N.
    seed : int
        Which choice; part of the configuration.

    Returns
    -------
    (size,) array of int64
        Indices in ascending order: a subset keeps the published order.

    Raises
    ------
    ValueError
        For a size that is not in 1 … N.

    Examples
    --------
    >>> labels = np.array([0, 0, 0, 0, 1, 1])
    >>> labels[balanced_subset(labels, 4)]
    array([0, 0, 1, 1])
    """
    size = checks.integer("subset", size, 1, remedy="Keep at least one example, or pass None for all.")
    within = size <= len(labels)
    checks.require(within, "subset", f"at most the {len(labels)} training examples", size, "Pass None for all of them.")
    words = random_words(seed, Purpose.SUBSET, replica=0, step=0, count=len(labels))
    by_class = np.lexsort((words, labels))
    numbers = labels[by_class]
    starts = np.flatnonzero(np.r_[True, numbers[1:] != numbers[:-1]])
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(starts, np.diff(np.r_[starts, len(labels)]))
    return np.sort(np.lexsort((words, rank))[:size])
