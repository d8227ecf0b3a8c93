"""Names for the types of arrays. Kernels need these alone, so that what they are compiled from stays small."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
