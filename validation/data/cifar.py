"""Reading CIFAR-10 and CIFAR-100 in their binary versions, records of labels and pixels: no pickle is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from noisysgd.validation.data.archives import read_members
from noisysgd.validation.data.checksums import AlteredFileError
from noisysgd.validation.data.idx import Bytes

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class CifarLayout:
    """How an archive is laid out (https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version").

    Parameters
    ----------
    train, test : tuple of str
        Members of the archive with the training and the test records, in order.
    records : int
        Number of records in each member of `train`.
    label_bounds : tuple of int
        Number of values of each label byte. The last of them is the label; CIFAR-100 has a coarse label before it.
    test_records : int
        Number of records in each member of `test`.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    records: int
    label_bounds: tuple[int, ...]
    test_records: int = 10_000

    @property
    def record_bytes(self) -> int:
        """Length of one record in bytes: its labels and 3·32·32 pixels."""
        return len(self.label_bounds) + PIXELS


CIFAR10_LAYOUT = CifarLayout(
    tuple(f"cifar-10-batches-bin/data_batch_{k}.bin" for k in range(1, 6)),
    ("cifar-10-batches-bin/test_batch.bin",),
    records=10_000,
    label_bounds=(10,),
)
CIFAR100_LAYOUT = CifarLayout(
    ("cifar-100-binary/train.bin",), ("cifar-100-binary/test.bin",), records=50_000, label_bounds=(20, 100)
)


def read_cifar(content: bytes, name: str, layout: CifarLayout) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """Training images and labels, test images and labels of a binary CIFAR archive.

    Parameters
    ----------
    content : bytes
        The archive.
    name : str
        What to call it in an error.
    layout : CifarLayout

    Returns
    -------
    train_images, train_labels, test_images, test_labels : arrays of uint8
        Images (N, 3, 32, 32), labels (N,); for CIFAR-100 the fine labels.

    Raises
    ------
    AlteredFileError
        If :func:`noisysgd.validation.data.archives.read_members` refuses the archive, or a label is out of range.

    Examples
    --------
    One record, of label 7 and black pixels:

    >>> images, labels = parse_records(bytes([7]) + bytes(PIXELS), "one", label_bounds=(10,))
    >>> images.shape, labels
    ((1, 3, 32, 32), array([7], dtype=uint8))
    """
    sizes = dict.fromkeys(layout.train, layout.records * layout.record_bytes)
    sizes |= dict.fromkeys(layout.test, layout.test_records * layout.record_bytes)
    members = read_members(content, name, sizes)
    train, test = (
        parse_records(b"".join(members.pop(part) for part in parts), f"{name}: {parts[0]}", layout.label_bounds)
        for parts in (layout.train, layout.test)
    )
    return *train, *test


def parse_records(content: bytes, name: str, label_bounds: Sequence[int]) -> tuple[Bytes, Bytes]:
    """Images (N, 3, 32, 32) and the last labels (N,) of consecutive records.

    Raises
    ------
    AlteredFileError
        If the content is not a whole number of records, or a label is out of range.
    """
    width = len(label_bounds)
    if len(content) % (width + PIXELS):
        raise AlteredFileError(f"{name}: expected records of {width + PIXELS} bytes, got {len(content)} bytes.")
    table = np.frombuffer(content, np.uint8).reshape(-1, width + PIXELS)
    for column, bound in enumerate(label_bounds):
        wrong = np.flatnonzero(table[:, column] >= bound)
        if wrong.size:
            got = f"{table[wrong[0], column]} in record {wrong[0]}"
            raise AlteredFileError(f"{name}: expected labels from 0 to {bound - 1}, got {got}. The archive is altered.")
    return np.ascontiguousarray(table[:, width:]).reshape(-1, 3, 32, 32), table[:, width - 1].copy()
