"""The two precisions of a simulation: what numbers a state holds, and which part of the stream they are made from.

Four words of a Philox block are two normals in double precision, and four in single precision.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from noisysgd.simulators import philox, single
from noisysgd.simulators.stream import Purpose
from noisysgd.theory import checks
from noisysgd.theory.checks import FloatArray

StateArray = npt.NDArray[Any]
"""Of float64 or float32."""


@dataclass(frozen=True)
class Precision:
    """Numbers of a state, and how they are drawn.

    Attributes
    ----------
    name : {"float64", "float32"}
    width : int
        Normals of a block.
    initial_state, gradient_noise : Purpose
    fill : callable
        ``fill(z, seed, purpose, replica, step)`` fills whole blocks of rows.
    """

    name: str
    width: int
    initial_state: Purpose
    gradient_noise: Purpose
    fill: Callable[..., None]

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's type of the state."""
        return np.dtype(self.name)

    def of(self, array: FloatArray) -> Any:
        """Copy `array`, rounded to this precision; without a warning where it is beyond its range."""
        with np.errstate(over="ignore", under="ignore"):
            return np.array(array, dtype=self.dtype, order="C")

    def scalar(self, value: float) -> Any:
        """`value` as a NumPy scalar, which kernels take as it is typed."""
        return self.dtype.type(value)

    def rows(self, dim: int) -> int:
        """Rows of the whole blocks that hold `dim` coordinates."""
        return -(-dim // self.width) * self.width


DOUBLE = Precision("float64", 2, Purpose.INITIAL_STATE, Purpose.GRADIENT_NOISE, philox.fill_normals)
SINGLE = Precision("float32", 4, Purpose.SINGLE_INITIAL_STATE, Purpose.SINGLE_GRADIENT_NOISE, single.fill_normals)


def precision(dtype: Any) -> Precision:
    """Find the precision named `dtype`."""
    names = {"float64": DOUBLE, "float32": SINGLE}
    return names[checks.one_of("dtype", dtype, tuple(names))]


def check_range(name: str, values: FloatArray) -> None:
    """Raise unless `values` are 0 or normal numbers of single precision, which keep their 24 bits."""
    limits = np.finfo(np.float32)
    size = np.abs(values)
    inside = bool(np.all((size == 0) | ((size >= float(limits.tiny)) & (size <= float(limits.max)))))
    remedy = "Single precision holds no others: rescale the problem, or use dtype='float64'."
    checks.require(inside, name, f"0 or sizes from {limits.tiny:.3g} to {limits.max:.3g}", values, remedy)
