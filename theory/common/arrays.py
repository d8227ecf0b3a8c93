"""Names for array types, in a module of their own because kernels import them.

Compiled code is thrown away when any module that its kernel imports has changed (``compiling``), so kernels import few.
"""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
