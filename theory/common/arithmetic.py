"""Underflow is nobody's error here, whatever NumPy is told to do about it by the program around this package."""

import numpy as np

ignoring_underflow = np.errstate(under="ignore")
"""Decorator of public functions: inside, NumPy lets numbers underflow to 0, as it does by default.

Losses that decay for long run into that everywhere. A program may let NumPy raise on it, to find mistakes of its own.
Other conditions, such as overflow of a loss that diverges, are dealt with where they can occur.
"""
