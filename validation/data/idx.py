"""IDX, the format of the MNIST family: a magic number, the dimensions, then unsigned bytes."""

import functools
import struct

import numpy as np
import numpy.typing as npt

from noisysgd.validation.data.checksums import require_genuine

Bytes = npt.NDArray[np.uint8]
UNSIGNED_BYTE = 0x08

_expect = functools.partial(require_genuine, remedy="The file is truncated, altered or another one.")


def parse_idx(content: bytes, name: str, shape: tuple[int | None, ...]) -> Bytes:
    """The array that an IDX file of unsigned bytes holds.

    Such a file consists of two zero bytes, a byte for the type, one for the number of dimensions, each dimension as a
    big-endian 32-bit number, and the entries in row-major order (Y. LeCun, "The MNIST database": file formats). Nothing
    may follow.

    Parameters
    ----------
    content : bytes
    name : str
        What to call the file in an error.
    shape : tuple of int or None
        Expected dimensions; ``None`` where any size will do.

    Returns
    -------
    array of uint8

    Raises
    ------
    AlteredFileError
        If the magic number or the dimensions differ, or bytes are missing or left over.

    Examples
    --------
    >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]), "three", shape=(None,))
    array([7, 8, 9], dtype=uint8)
    """
    rank = len(shape)
    magic = bytes([0, 0, UNSIGNED_BYTE, rank])
    _expect(content[:4] == magic, name, f"an IDX file of {rank}-dimensional bytes ({magic.hex()})", content[:4].hex())
    start = 4 + 4 * rank
    _expect(len(content) >= start, name, f"a header of {start} bytes", f"{len(content)} bytes")
    dimensions = struct.unpack(f">{rank}I", content[4:start])
    fits = all(wanted in (None, size) for wanted, size in zip(shape, dimensions, strict=True))
    _expect(fits, name, f"dimensions {_text(shape)}", str(dimensions))
    size = start + int(np.prod(dimensions, dtype=object))
    _expect(len(content) == size, name, f"{size} bytes for dimensions {dimensions}", f"{len(content)}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(dimensions)


def _text(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"
