"""What is done to images before training: taking a balanced subset, shrinking them, standardising their pixels.

The result is a function of the published images and of the configuration, the same on every machine.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from noisysgd.simulators.randomness.stream import Purpose, random_words
from noisysgd.theory.common import checks

CHUNK = 10_000
"""Number of images that are converted to float64 at a time, which bounds the memory needed."""


def balanced_subset(labels: npt.NDArray[Any], size: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Indices of the examples that a balanced subset of `size` keeps.

    Every example draws a random word, a function of (seed, its index). The examples of each class are ranked by their
    words, and the subset takes first those of rank 0 in all classes, then those of rank 1 and so on, by word within a
    rank. Thus classes are represented equally to within one example as long as none runs out, the examples of each
    class are a uniform choice, and a smaller subset of the same seed is part of a larger one.

    Parameters
    ----------
    labels : (N,) array of int
        The class of each example.
    size : int
        Number of examples to keep, 1 … N.
    seed : int
        Seed of the choice.

    Returns
    -------
    (size,) array of int64
        Indices in ascending order, so that a subset keeps the published order.

    Raises
    ------
    ValueError
        If the size is not in 1 … N.

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
    # Sorted by class and then by word, the rank of an example is its distance from the first of its class.
    by_class = np.lexsort((words, labels))
    numbers = labels[by_class]
    starts = np.flatnonzero(np.r_[True, numbers[1:] != numbers[:-1]])
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(starts, np.diff(np.r_[starts, len(labels)]))
    return np.sort(np.lexsort((words, rank))[:size])


def average_pool(pixels: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Images with every square of `factor` × `factor` pixels replaced by its mean.

    Parameters
    ----------
    pixels : (N, C, H, W) array
        Whole numbers.
    factor : int
        Side of the squares in pixels, which must divide H and W; 1 leaves the images as they are.

    Returns
    -------
    (N, C, H // factor, W // factor) array
        float32, each the correctly rounded quotient of a whole sum and factor²; for factor 1, `pixels` itself.

    Raises
    ------
    ValueError
        If the factor does not divide H and W.

    Examples
    --------
    >>> average_pool(np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4), 2)[0, 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]], dtype=float32)
    """
    factor = checks.integer("downsample", factor, 1, remedy="Use 1 for the images as they are.")
    count, channels, height, width = pixels.shape
    divides = height % factor == 0 and width % factor == 0
    checks.require(divides, "downsample", f"a divisor of {height} and {width}", factor, "Choose one.")
    if factor == 1:
        return pixels
    squares = pixels.reshape(count, channels, height // factor, factor, width // factor, factor)
    # The sums are whole numbers below 2²⁴, hence exact in float32 in any order, and the quotient is correctly rounded.
    means: npt.NDArray[np.float32] = squares.sum(axis=(3, 5), dtype=np.float32) / np.float32(factor**2)
    return means


@dataclass(frozen=True)
class Standardisation:
    """The constants of the standardisation (pixel − mean) / deviation.

    Parameters
    ----------
    mean, deviation : tuple of float
        One per channel, in units of the published pixel values.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def apply(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Standardised images (N, C, H, W), computed in float64 and rounded once to float32."""
        mean, deviation = (np.array(values)[:, None, None] for values in (self.mean, self.deviation))
        out = np.empty(pixels.shape, np.float32)
        for part in _parts(len(pixels)):
            out[part] = (pixels[part].astype(np.float64) - mean) / deviation
        return out


def measure_standardisation(pixels: npt.NDArray[Any]) -> Standardisation:
    """Mean and standard deviation of each channel over all pixels of all images.

    Parameters
    ----------
    pixels : (N, C, H, W) array

    Returns
    -------
    Standardisation
        With the deviation of the population: squares are divided by the number of pixels, not by one less.

    Raises
    ------
    ValueError
        If a channel has the same value everywhere.

    Examples
    --------
    >>> measure_standardisation(np.array([[[[0, 2]]], [[[4, 6]]]]))
    Standardisation(mean=(3.0,), deviation=(2.23606797749979,))
    """
    # In two passes: the squares of the distances from the mean do not cancel as those of the pixels would.
    means, deviations = [], []
    for channel in range(pixels.shape[1]):
        values = pixels[:, channel]
        mean = sum(values[part].astype(np.float64).sum() for part in _parts(len(values))) / values.size
        squares = sum(np.square(values[part].astype(np.float64) - mean).sum() for part in _parts(len(values)))
        means.append(float(mean))
        deviations.append(float(np.sqrt(squares / values.size)))
    varied = min(deviations) > 0
    checks.require(varied, "images", "pixels that vary in every channel", deviations, "Take other or more images.")
    return Standardisation(tuple(means), tuple(deviations))


def _parts(count: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]
