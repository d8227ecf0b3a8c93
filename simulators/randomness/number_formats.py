"""The precisions of a simulation: the type of its states and its noise, and the part of the stream that makes them.

The four words of a Philox block make two normals in double precision, and four in single precision. Mixed precision is
double precision in everything but the normals of gradient noise, which are those of single precision.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from noisysgd.simulators.randomness import float32, philox
from noisysgd.simulators.randomness.stream import Purpose
from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray

StateArray = npt.NDArray[Any]
"""Array of float64 or float32."""


@dataclass(frozen=True)
class Precision:
    """Types of a simulation's numbers, and how they are drawn.

    Attributes
    ----------
    name : {"float64", "float32", "mixed"}
    dtype, noise_dtype : numpy.dtype
        Type of states, settings and arithmetic; type of the numbers that noise is made from.
    initial_state, gradient_noise : Purpose
        Purposes of the random numbers.
    fill : callable
        ``fill(z, seed, purpose, replica, step)`` fills `z`, whole blocks of rows, with the normals of initial states.
    """

    name: str
    dtype: np.dtype[Any]
    noise_dtype: np.dtype[Any]
    initial_state: Purpose
    gradient_noise: Purpose
    fill: Callable[..., None]

    def of(self, array: FloatArray) -> StateArray:
        """Copy `array`, rounded to this precision, without a warning where values are beyond its range."""
        with np.errstate(over="ignore", under="ignore"):
            return np.array(array, dtype=self.dtype, order="C")

    def scalar(self, value: float) -> Any:
        """`value` as a NumPy scalar: kernels are compiled for its type."""
        return self.dtype.type(value)

    def rows(self, dim: int) -> int:
        """Rows of the whole blocks that hold `dim` coordinates of a state."""
        return _whole_blocks(dim, self.dtype)

    def noise_rows(self, dim: int) -> int:
        """Rows of the whole blocks that hold the noise of `dim` coordinates."""
        return _whole_blocks(dim, self.noise_dtype)


def _whole_blocks(dim: int, dtype: np.dtype[Any]) -> int:
    """The least number of rows ≥ `dim` in whole blocks: a Philox block makes 16 bytes of normals."""
    width = 16 // dtype.itemsize
    return -(-dim // width) * width


_64, _32 = np.dtype("float64"), np.dtype("float32")
DOUBLE = Precision("float64", _64, _64, Purpose.INITIAL_STATE, Purpose.GRADIENT_NOISE, philox.fill_normals)
SINGLE = Precision(
    "float32", _32, _32, Purpose.SINGLE_INITIAL_STATE, Purpose.SINGLE_GRADIENT_NOISE, float32.fill_normals
)
MIXED = Precision("mixed", _64, _32, Purpose.INITIAL_STATE, Purpose.SINGLE_GRADIENT_NOISE, philox.fill_normals)


def precision(dtype: str) -> Precision:
    """The precision of this name, "float64", "float32" or "mixed"."""
    names = {"float64": DOUBLE, "float32": SINGLE, "mixed": MIXED}
    return names[checks.one_of("dtype", dtype, tuple(names))]


def check_range(name: str, values: FloatArray) -> None:
    """Raise unless `values` are 0 or normal numbers of single precision, which keep their 24 bits."""
    limits = np.finfo(np.float32)
    size = np.abs(values)
    inside = bool(np.all((size == 0) | ((size >= float(limits.tiny)) & (size <= float(limits.max)))))
    remedy = "Single precision holds no others: rescale the problem, or use dtype='float64'."
    checks.require(inside, name, f"0 or sizes from {limits.tiny:.3g} to {limits.max:.3g}", values, remedy)


def check_damping(momenta: FloatArray) -> None:
    """Raise where rounding m to single precision changes 1 − m, and with it ε/(1−m), by more than a part in 10⁴."""
    rounded = 1.0 - momenta.astype(np.float32).astype(np.float64)
    faithful = bool(np.all(np.abs(rounded - (1.0 - momenta)) <= 1e-4 * (1.0 - momenta)))
    remedy = "Single precision rounds 1 − m too much there: use dtype='mixed', which is as fast, or 'float64'."
    checks.require(faithful, "momentum", "values not so close to 1", momenta, remedy)
