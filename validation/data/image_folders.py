"""Data sets of the user's own: ``NAME/{train,test}/CLASS/*.png`` or ``*.jpg``, as a folder or as a tar of it.

Images are decoded once a process, by Pillow, and kept as bytes; nothing is ever unpacked to disk. A data set is
identified by a hash of its contents, which is the same for a folder and for a tar of it, whatever the compression. The
hash is part of the name under which runs are filed: ``folder:NAME@HASH``.
"""

import functools
import hashlib
import io
import itertools
import math
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from noisysgd.theory.common import checks
from noisysgd.validation.data.catalogue import DATASETS, Source
from noisysgd.validation.data.litter import is_litter
from noisysgd.validation.data.raw_images import RawImages
from noisysgd.validation.data.search_path import VARIABLE, check_folder, data_folder

PREFIX = "folder:"
ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.xz")
IMAGES = (".png", ".jpg", ".jpeg")
SPLITS = ("train", "test")
CHANNELS = {"L": 1, "RGB": 3}
"""Numbers per pixel, by Pillow's modes: grey and colour."""

MOST_FILES = 5_000_000
MOST_BYTES_OF_A_FILE = 2**26
MOST_BYTES = 2**33
"""Of all files together, and of all pixels: an archive that holds more is taken for a bomb, not for a data set."""
DIGITS_OF_HASH = 16


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """A data set of the user's own: its images, its classes and its identity.

    Parameters
    ----------
    name : str
        Without prefix and hash.
    raw : RawImages
    classes : tuple of str
        Names of the classes in ascending order; a label is a place in it.
    digest : str
        The first 16 hexadecimal digits of the SHA-256 of names and contents of all images.
    """

    name: str
    raw: RawImages
    classes: tuple[str, ...]
    digest: str

    @property
    def pinned(self) -> str:
        """The name under which runs are filed: it fixes the contents as well."""
        return f"{PREFIX}{self.name}@{self.digest}"


def parse_name(dataset: str) -> tuple[str, str | None]:
    """Name and hash, which may be absent, of ``folder:NAME`` or ``folder:NAME@HASH``.

    Raises
    ------
    ValueError
        For a name that could lead out of the folder of data sets, or a hash that is none.

    Examples
    --------
    >>> parse_name("folder:birds"), parse_name("folder:birds@0123456789abcdef")
    (('birds', None), ('birds', '0123456789abcdef'))
    """
    name, at, digest = dataset.removeprefix(PREFIX).partition("@")
    plain = dataset.startswith(PREFIX) and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name) is not None
    remedy = f"Put the images at {VARIABLE}/NAME/train/CLASS/ and NAME/test/CLASS/, and use letters, digits, . _ and -."
    checks.require(plain, "dataset", "'folder:NAME'", dataset, remedy)
    whole = not at or re.fullmatch(rf"[0-9a-f]{{{DIGITS_OF_HASH}}}", digest) is not None
    checks.require(
        whole, "dataset", f"{DIGITS_OF_HASH} hexadecimal digits after @", dataset, "Leave @… out: it is added."
    )
    return name, digest if at else None


def load_image_folder(dataset: str, folder: str | os.PathLike[str] | None = None) -> ImageFolder:
    """The data set that ``folder:NAME`` or ``folder:NAME@HASH`` names.

    Parameters
    ----------
    dataset : str
    folder : path, optional
        Where NAME, or NAME.tar, .tar.gz, .tgz or .tar.xz, lies; by default ``$NOISYSGD_DATA``.

    Raises
    ------
    FileNotFoundError
        If there is no such folder or archive.
    ValueError
        If the contents are not those of HASH; for anything but images in class folders; for images that are broken, of
        unequal sizes, or neither grey nor RGB; for classes that differ between train and test; for links; for archives
        that are damaged or far too large. The message names the file and the remedy.
    """
    name, digest = parse_name(dataset)
    check_folder(folder)
    place = _find(name, data_folder() if folder is None else Path(folder))
    found = _read(name, place, _stamp(place))
    remedy = "Put the images back that it was used with, or leave out @… for a data set of its own."
    expected = f"contents with the hash {digest}"
    checks.require(digest in (None, found.digest), str(place), expected, found.digest, remedy)
    return found


def described(dataset: str) -> Source:
    """What there is to know of a data set without its pixels; one of the user's own has to be read for it.

    Raises
    ------
    FileNotFoundError, ValueError
        As for :func:`load_image_folder`.

    Examples
    --------
    >>> described("cifar10").training_examples
    50000
    """
    if not dataset.startswith(PREFIX):
        return DATASETS[dataset]
    found = load_image_folder(dataset)
    count, channels, height, width = found.raw.train_images.shape
    return Source(
        found.pinned,
        "images of one's own",
        (),
        classes=len(found.classes),
        training_examples=count,
        test_examples=len(found.raw.test_images),
        side=math.gcd(height, width),  # by which down-sampling has to divide
        channels=channels,
    )


def _find(name: str, root: Path) -> Path:
    places = [root / name, *(root / f"{name}{ending}" for ending in ENDINGS)]
    found = [place for place in places if place.is_dir() or (place.name != name and place.is_file())]
    if not found:
        expected = f"a folder {name} or an archive {', '.join(place.name for place in places[1:])}"
        raise FileNotFoundError(
            f"{PREFIX}{name}: expected {expected} in {root}; not there. Put it there, or set {VARIABLE} to its folder."
        )
    checks.require(
        len(found) == 1, name, f"one folder or archive in {root}", [p.name for p in found], "Remove all but one."
    )
    return found[0]


def _stamp(place: Path) -> tuple[int, int, int]:
    """Number, total size and latest date of the files: what changes when one of them does."""
    files = [path.lstat() for path in (place.rglob("*") if place.is_dir() else [place])]
    return len(files), sum(file.st_size for file in files), max(file.st_mtime_ns for file in files)


@functools.lru_cache(maxsize=2)
def _read(name: str, place: Path, stamp: tuple[int, int, int]) -> ImageFolder:
    """Decode all images, once for as long as the `stamp` of the files is the same."""
    files = _of_folder(place) if place.is_dir() else _of_archive(place)
    members = sorted((_place_of(path, place), content) for path, content in files)
    _check_classes(members, place)
    digest = hashlib.sha256()
    for (split, kind, file), content in members:
        digest.update(f"{split}/{kind}/{file}\0".encode() + hashlib.sha256(content).digest())
    classes = sorted({kind for (_, kind, _), _ in members})
    label = {kind: k for k, kind in enumerate(classes)}
    pixels, labels = {}, {}
    shape: tuple[int, ...] | None = None
    for split in SPLITS:
        chosen = [(where, content) for where, content in members if where[0] == split]
        decoded = []
        for where, content in chosen:
            image = _decoded(content, f"{place}: {'/'.join(where)}")
            shape = image.shape if shape is None else shape
            if image.shape != shape:
                _refuse(
                    place,
                    f"images of one size, {_size(shape)}",
                    f"{'/'.join(where)} of {_size(image.shape)}",
                    "Resize them.",
                )
            decoded.append(image)
            if len(decoded) * image.size > MOST_BYTES:
                _refuse(place, f"at most {MOST_BYTES} bytes of pixels", "more", "Take fewer or smaller images.")
        pixels[split] = np.stack(decoded)
        labels[split] = np.array([label[where[1]] for where, _ in chosen], dtype=np.int64)
    short = digest.hexdigest()[:DIGITS_OF_HASH]
    origin = f"{place}, contents {short}; classes {', '.join(classes)}; ordered by class and file name"
    raw = RawImages(pixels["train"], labels["train"], pixels["test"], labels["test"], 255, origin)
    return ImageFolder(name, raw, tuple(classes), short)


def _of_folder(root: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Files below a folder, with their paths in it. Links are refused: they could lead anywhere."""
    total = 0
    for path in sorted(root.rglob("*")):
        where = PurePosixPath(path.relative_to(root).as_posix())
        if is_litter(where):  # links too: editors lock files by them
            continue
        if path.is_symlink():
            _refuse(root, "plain files and folders", f"the link {where}", "Replace it by the file that it points to.")
        if path.is_dir():
            continue
        if not path.is_file():
            _refuse(root, "plain files and folders", f"the special file {where}", "Remove it.")
        total += path.stat().st_size
        _check_size(root, where, path.stat().st_size, total)
        yield where, path.read_bytes()


def _of_archive(archive: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Files in a tar, read one after the other; names only decide what a file is, so that none can point anywhere."""
    total = count = 0
    try:
        with tarfile.open(archive, mode="r|*") as tar:
            for member in tar:
                where, count, total = PurePosixPath(member.name), count + 1, total + max(0, member.size)
                if not (member.isfile() or member.isdir()):
                    _refuse(
                        archive, "plain files and folders", f"{member.name!r}, a link or special file", "Pack files."
                    )
                if where.is_absolute() or ".." in where.parts:
                    _refuse(archive, "names inside the archive's folder", repr(member.name), "Pack it anew.")
                if count > MOST_FILES:
                    _refuse(archive, f"at most {MOST_FILES} files", "more", "Take fewer images.")
                _check_size(archive, where, member.size, total)
                file = tar.extractfile(member) if member.isfile() and not is_litter(where) else None
                if file is not None:
                    yield where, file.read()
    except (EOFError, OSError, tarfile.TarError, ValueError) as error:
        if isinstance(error, ImageFolderError):
            raise
        _refuse(archive, "a whole tar archive", f"a damaged one ({error})", "Pack or copy it anew.")


def _check_size(place: Path, where: PurePosixPath, size: int, total: int) -> None:
    if size > MOST_BYTES_OF_A_FILE:
        _refuse(place, f"files of at most {MOST_BYTES_OF_A_FILE} bytes", f"{where} of {size}", "Make it smaller.")
    if total > MOST_BYTES:
        _refuse(place, f"at most {MOST_BYTES} bytes in all", "more", "Take fewer or smaller images.")


def _place_of(where: PurePosixPath, place: Path) -> tuple[str, str, str]:
    """(split, class, file) of a path; one folder may stand around train and test, as in a tar of the folder NAME."""
    parts = where.parts[1:] if len(where.parts) == 4 else where.parts
    if len(parts) != 3 or parts[0] not in SPLITS or where.suffix.lower() not in IMAGES:
        expected = f"images as {'/'.join(('{train,test}', 'CLASS', 'FILE'))} with FILE ending in {', '.join(IMAGES)}"
        _refuse(place, expected, str(where), "Move, convert or remove it.")
    return parts[0], parts[1], parts[2]


def _check_classes(members: list[tuple[tuple[str, str, str], bytes]], place: Path) -> None:
    found = {split: sorted({where[1] for where, _ in members if where[0] == split}) for split in SPLITS}
    lacking = [split for split in SPLITS if not found[split]]
    if lacking:
        _refuse(place, "folders train and test with images", f"none in {' and '.join(lacking)}", "Add them.")
    if found["train"] != found["test"]:
        differing = sorted(set(found["train"]) ^ set(found["test"]))
        _refuse(
            place,
            "the same classes in train and test",
            f"{checks.shorten(differing)} in one alone",
            "Add or remove them.",
        )
    if len(found["train"]) < 2:
        _refuse(
            place, "at least two classes", checks.shorten(found["train"]), "A classifier has something to tell apart."
        )
    names = [where for where, _ in members]
    if len(set(names)) < len(names):
        twice = next(a for a, b in itertools.pairwise(names) if a == b)
        _refuse(place, "every file once", f"{'/'.join(twice)} twice", "Pack it anew.")


def _decoded(content: bytes, what: str) -> npt.NDArray[np.uint8]:
    """An image as (C, H, W) bytes."""
    from PIL import Image, UnidentifiedImageError  # a tenth of a second, which other data sets need not cost

    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            if image.mode not in CHANNELS:
                raise ImageFolderError(f"{what}: expected grey or RGB, got mode {image.mode}. Convert it.")
            if image.width * image.height > MOST_BYTES_OF_A_FILE:
                got = f"{image.width}×{image.height}"
                raise ImageFolderError(f"{what}: expected at most {MOST_BYTES_OF_A_FILE} pixels, got {got}. Shrink it.")
            image.load()
            pixels = np.asarray(image, dtype=np.uint8)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, ImageFolderError):
            raise
        raise ImageFolderError(
            f"{what}: expected a whole PNG or JPEG, got a broken one ({error}). Replace it."
        ) from error
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _size(shape: Any) -> str:
    return f"{shape[2]}×{shape[1]} pixels and {shape[0]} channels"


class ImageFolderError(ValueError):
    """A folder or an archive that is no data set; the message names the file and the remedy."""


def _refuse(place: Path, expected: str, got: str, remedy: str) -> NoReturn:
    raise ImageFolderError(f"{place}: expected {expected}, got {got}. {remedy}")
