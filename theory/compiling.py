"""How kernels are compiled: without the interpreter lock, and dividing by zero as NumPy does.

An *entry* is called from Python, and cached on disk. A *helper* is called by other kernels alone, not from Python: its
code is part of theirs, and to cache and wrap it as well would lengthen the first call of everything by half. Either may
be *reordered*: its sums may be taken in any order, which lets them use vector registers, and nothing else may change.

Numba's cache sees only the date of the file an entry is in: after editing a helper in another file, touch that of the
entry.
"""

from numba import njit

entry = njit(cache=True, nogil=True, error_model="numpy")
helper = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
reordered_entry = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
reordered_helper = njit(
    nogil=True, error_model="numpy", fastmath={"reassoc", "contract"}, no_cpython_wrapper=True, no_cfunc_wrapper=True
)
