"""The pixels and labels of a data set as published: whole numbers, in the published split and order."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from noisysgd.theory.common import checks
from noisysgd.validation.data.catalogue import Source, source_named
from noisysgd.validation.data.checksums import AlteredFileError, read_checked
from noisysgd.validation.data.cifar import CIFAR10_LAYOUT, CIFAR100_LAYOUT, read_cifar
from noisysgd.validation.data.idx import parse_idx
from noisysgd.validation.data.search_path import find_files


@dataclass(frozen=True, eq=False)
class RawImages:
    """Pixels and labels, not standardised.

    Parameters
    ----------
    train_images, test_images : arrays of shape (N, C, H, W)
        Pixel values, whole numbers from 0 to `levels`.
    train_labels, test_labels : (N,) arrays of int64
    levels : int
        The largest value a pixel can have.
    origin : str
        Where the images come from and how they are split.
    """

    train_images: npt.NDArray[Any]
    train_labels: npt.NDArray[np.int64]
    test_images: npt.NDArray[Any]
    test_labels: npt.NDArray[np.int64]
    levels: int
    origin: str


def read_raw(
    name: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    allow_altered: bool = False,
    source: Source | None = None,
) -> RawImages:
    """Read a data set from its files, verified against the published checksums.

    Parameters
    ----------
    name : {"fashion-mnist", "cifar10", "cifar100"}
        Decides the layout of the files.
    folder : path, optional
        The only folder to look in; otherwise those of :func:`noisysgd.validation.data.search_path.candidate_folders`.
    allow_altered : bool
        Whether to accept files with other checksums, as long as they have the same layout.
    source : Source, optional
        Files, addresses and checksums to use instead of those in :mod:`noisysgd.validation.data.catalogue`.

    Raises
    ------
    FileNotFoundError
        If a file is in none of the folders.
    AlteredFileError
        If a file is not the published one, or does not have its layout.
    """
    allow_altered = checks.boolean("allow_altered", allow_altered)
    source = source or source_named(name)
    paths = find_files(source, folder)
    contents = {file.name: read_checked(file, paths[file.name], allow_altered=allow_altered) for file in source.files}
    train, train_labels, test, test_labels = _READERS[name](contents, paths)
    checked = "checksums not verified" if allow_altered else "checksums verified"
    origin = f"{', '.join(str(paths[file.name]) for file in source.files)} ({checked}); the published split and order"
    return RawImages(train, train_labels.astype(np.int64), test, test_labels.astype(np.int64), 255, origin)


Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]


def _read_fashion(contents: Mapping[str, bytes], paths: Mapping[str, Path]) -> Arrays:
    parts = []
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        images, labels = f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"
        pixels = parse_idx(contents[images], str(paths[images]), (count, 28, 28))
        numbers = parse_idx(contents[labels], str(paths[labels]), (count,))
        if numbers.max() > 9:
            raise AlteredFileError(
                f"{paths[labels]}: expected labels from 0 to 9, got {numbers.max()}. Fetch it again."
            )
        parts += [pixels[:, None], numbers]
    return tuple(parts)  # type: ignore[return-value]  # four, by the loop


def _read_cifar10(contents: Mapping[str, bytes], paths: Mapping[str, Path]) -> Arrays:
    ((name, content),) = contents.items()
    return read_cifar(content, str(paths[name]), CIFAR10_LAYOUT)


def _read_cifar100(contents: Mapping[str, bytes], paths: Mapping[str, Path]) -> Arrays:
    ((name, content),) = contents.items()
    return read_cifar(content, str(paths[name]), CIFAR100_LAYOUT)


_READERS: Mapping[str, Callable[[Mapping[str, bytes], Mapping[str, Path]], Arrays]] = {
    "fashion-mnist": _read_fashion,
    "cifar10": _read_cifar10,
    "cifar100": _read_cifar100,
}
