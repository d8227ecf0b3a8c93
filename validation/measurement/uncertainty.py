"""An estimated number: its value, its standard error, and whether that error is small enough."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error; both NaN where the quantity is undefined.

    Parameters
    ----------
    value, stderr : float
        The estimate and its standard error, in the same unit.
    converged : bool
        Whether the standard error is at most a given share of |value|; False where the quantity is undefined.
    """

    value: float
    stderr: float
    converged: bool

    @classmethod
    def with_tolerance(cls, value: float, stderr: float, rtol: float) -> Self:
        """An estimate that counts as converged if stderr ≤ rtol·|value|.

        Examples
        --------
        >>> Estimate.with_tolerance(2.0, 0.1, rtol=0.1)
        Estimate(value=2.0, stderr=0.1, converged=True)
        >>> Estimate.with_tolerance(math.nan, math.nan, rtol=0.1).converged
        False
        """
        return cls(float(value), float(stderr), bool(stderr <= rtol * abs(value)))


def mean_estimate(samples: npt.ArrayLike, rtol: float) -> Estimate:
    """Mean of independent samples, shape (n,), n ≥ 2, with the standard error that their spread implies.

    Examples
    --------
    >>> found = mean_estimate([1.0, 2.0, 3.0], rtol=0.1)
    >>> found.value, round(found.stderr, 6), found.converged
    (2.0, 0.57735, False)
    """
    values = np.asarray(samples, dtype=np.float64)
    return Estimate.with_tolerance(float(values.mean()), float(values.std(ddof=1) / math.sqrt(values.size)), rtol)
