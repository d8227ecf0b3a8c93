"""Smaller images: averages over squares of pixels."""

from typing import Any

import numpy as np
import numpy.typing as npt

from noisysgd.theory import checks


def average_pool(pixels: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Images with every square of `factor` × `factor` pixels replaced by its mean.

    Parameters
    ----------
    pixels : (N, C, H, W) array
        Whole numbers.
    factor : int
        Must divide H and W; 1 leaves the images as they are.

    Returns
    -------
    (N, C, H // factor, W // factor) array
        float32, each the correctly rounded quotient of a whole sum and factor²; for factor 1, `pixels` itself.

    Raises
    ------
    ValueError
        For a factor that divides them not.

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
    means: npt.NDArray[np.float32] = squares.sum(axis=(3, 5), dtype=np.float32) / np.float32(factor**2)
    return means  # correctly rounded, since the sums are whole numbers below 2²⁴
