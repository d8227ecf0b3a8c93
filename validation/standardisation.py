"""Standardised pixels: each channel of the training images has mean 0 and variance 1."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from noisysgd.theory import checks

CHUNK = 10_000
"""Images converted to float64 at a time, which bounds the memory needed."""


@dataclass(frozen=True)
class Standardisation:
    """The constants of (pixel − mean) / deviation.

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
    """Mean and standard deviation of each channel over all images and places.

    Parameters
    ----------
    pixels : (N, C, H, W) array

    Returns
    -------
    Standardisation
        The deviation is that of the population: divided by the number of pixels.

    Raises
    ------
    ValueError
        If a channel has the same value everywhere.

    Examples
    --------
    >>> measure_standardisation(np.array([[[[0, 2]]], [[[4, 6]]]]))
    Standardisation(mean=(3.0,), deviation=(2.23606797749979,))
    """
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
