"""Image data sets, always split and standardised in the same way."""

import importlib.util
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from noisysgd.theory.common import checks
from noisysgd.validation.data.catalogue import DATASETS, DIGITS
from noisysgd.validation.data.image_folders import PREFIX, load_image_folder
from noisysgd.validation.data.preparation import Standardisation, average_pool, balanced_subset, measure_standardisation
from noisysgd.validation.data.raw_images import RawImages, read_raw


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Standardised images and labels, in a fixed order and a fixed split.

    Parameters
    ----------
    name : str
        Name of the data set, as for `load_dataset`.
    train_images, test_images : torch.Tensor
        float32, shape (N, C, H, W).
    train_labels, test_labels : torch.Tensor
        int64, shape (N,), values 0 … classes − 1.
    classes : int
        Number of classes.
    provenance : str
        Where the data come from, how they were split and standardised.
    standardisation : Standardisation, optional
        The constants that the pixels were standardised with, if they are known.

    Raises
    ------
    ValueError
        If a tensor has another type or shape.

    Examples
    --------
    >>> import torch
    >>> images, labels = torch.zeros(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64)
    >>> ImageDataset("mine", images, labels, images, labels, classes=2, provenance="zeros").train_size
    6
    """

    name: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: int
    provenance: str
    standardisation: Standardisation | None = None

    def __post_init__(self) -> None:
        _check_split("train", self.train_images, self.train_labels, self.classes)
        _check_split("test", self.test_images, self.test_labels, self.classes)

    @property
    def train_size(self) -> int:
        """Number N of training examples."""
        return len(self.train_images)


def load_dataset(
    name: str,
    *,
    folder: str | os.PathLike[str] | None = None,
    subset: int | None = None,
    subset_seed: int = 0,
    downsample: int = 1,
    allow_altered: bool = False,
) -> ImageDataset:
    """Load a data set by name.

    ``"digits"``: scikit-learn's 1797 hand-written digits of 8×8 pixels, which come with the package. The first 1280
    examples in the package's order are the training set, the last 517 the test set. The order is not random: the
    labels repeat one form of about 130 digits fourteen times, so consecutive examples share a writer (scikit-learn's
    description names 13 writers, without giving the order). The cut falls seven digits before the end of a form;
    the other 510 test digits come from forms with no example in the training set.

    ``"fashion-mnist"``, ``"cifar10"`` and ``"cifar100"`` (fine labels) come from files, which ``noisysgd data fetch``
    downloads, in their published split and order.

    ``"folder:NAME"``: images of one's own, ``NAME/{train,test}/CLASS/*.png`` or ``*.jpg``, as a folder or a tar of it
    (:func:`noisysgd.validation.data.image_folders.load_image_folder`); ``"folder:NAME@HASH"`` if its contents have that
    hash.

    Pixels are standardised channel by channel, with mean and standard deviation of the training pixels that are used:
    those of the subset, after down-sampling. The result has these constants as `standardisation`, and a description of
    all that was done as `provenance`.

    Parameters
    ----------
    name : {"digits", "fashion-mnist", "cifar10", "cifar100"} or "folder:NAME"
        Name of the data set.
    folder : path, optional
        Folder with its files; otherwise they are looked for in the places that ``noisysgd data where`` lists.
    subset : int, optional
        Number of training examples to keep, chosen by :func:`noisysgd.validation.data.preparation.balanced_subset`;
        the test set stays whole.
    subset_seed : int
        Seed of that choice.
    downsample : int
        Factor by which images shrink, by averages over squares
        (:func:`noisysgd.validation.data.preparation.average_pool`).
    allow_altered : bool
        Whether to accept files with other checksums than the published ones, if they have the same layout.

    Returns
    -------
    ImageDataset
        Tensors on the CPU.

    Raises
    ------
    ValueError
        If the name is unknown, the subset or the factor is impossible, or a file is not the published one.
    FileNotFoundError
        If a file is in none of the places that are searched.

    Examples
    --------
    >>> digits = load_dataset("digits")
    >>> digits.train_images.shape, digits.test_images.shape
    (torch.Size([1280, 1, 8, 8]), torch.Size([517, 1, 8, 8]))
    >>> load_dataset("digits", subset=100, downsample=2).train_images.shape
    torch.Size([100, 1, 4, 4])
    """
    allow_altered = checks.boolean("allow_altered", allow_altered)
    if isinstance(name, str) and name.startswith(PREFIX):
        checks.require(not allow_altered, "allow_altered", "False for images of one's own", True, "Leave it out.")
        own = load_image_folder(name, folder)
        return _prepared(own.pinned, own.raw, len(own.classes), subset, subset_seed, downsample)
    checks.one_of("name", name, list(DATASETS))
    if name == "digits":
        expected = "none for the digits, which come with scikit-learn"
        checks.require(folder is None, "folder", expected, str(folder), "Leave it out.")
        raw = _digits()
    else:
        raw = read_raw(name, folder, allow_altered=allow_altered)
    return _prepared(name, raw, DATASETS[name].classes, subset, subset_seed, downsample)


def _prepared(
    name: str, raw: RawImages, classes: int, subset: int | None, subset_seed: int, downsample: int
) -> ImageDataset:
    train, labels, notes = raw.train_images, raw.train_labels, [raw.origin]
    if subset is not None:
        kept = balanced_subset(labels, subset, subset_seed)
        train, labels = train[kept], labels[kept]
        notes.append(f"balanced subset of {subset} training examples, seed {subset_seed}")
    train, test = average_pool(train, downsample), average_pool(raw.test_images, downsample)
    if downsample != 1:
        notes.append(f"averaged over squares of {downsample}×{downsample} pixels")
    constants = measure_standardisation(train)
    mean, deviation = (", ".join(map(repr, values)) for values in (constants.mean, constants.deviation))
    notes.append(
        f"pixels 0–{raw.levels} standardised with the training pixels' mean {mean} and standard deviation {deviation}"
    )
    return ImageDataset(
        name,
        torch.from_numpy(constants.apply(train)),
        torch.from_numpy(labels),
        torch.from_numpy(constants.apply(test)),
        torch.from_numpy(raw.test_labels),
        classes,
        "; ".join(notes),
        constants,
    )


def _digits() -> RawImages:
    rows = _digits_table()
    pixels, labels = rows[:, :-1].reshape(-1, 1, 8, 8), rows[:, -1].astype(np.int64)
    cut = DIGITS.training_examples
    origin = (
        f"sklearn.datasets.load_digits, scikit-learn {metadata.version('scikit-learn')} (UCI optical recognition of "
        f"handwritten digits, its test part); first {cut} examples train, last {len(pixels) - cut} test"
    )
    return RawImages(pixels[:cut], labels[:cut], pixels[cut:], labels[cut:], 16, origin)


def _digits_table() -> npt.NDArray[np.float64]:
    """Rows of 64 pixels and a label, from the file that scikit-learn ships.

    The file is read without importing the library: that takes longer than anything else when a worker starts.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if path.exists():
        return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits  # another version, which keeps its file elsewhere

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])


def _check_split(split: str, images: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
    shaped = images.dtype == torch.float32 and images.ndim == 4
    got = (images.dtype, tuple(images.shape))
    checks.require(shaped, f"{split}_images", "float32 of shape (N, C, H, W)", got, "Convert or reshape the images.")
    matched = labels.dtype == torch.int64 and labels.shape == images.shape[:1]
    got = (labels.dtype, tuple(labels.shape))
    expected = f"int64 of shape ({len(images)},)"
    checks.require(matched, f"{split}_labels", expected, got, "Pass one integer label per image.")
    inside = labels.numel() == 0 or bool((labels.min() >= 0) & (labels.max() < classes))
    expected = f"labels from 0 to {classes - 1}"
    checks.require(inside, f"{split}_labels", expected, labels, "Renumber the labels or correct `classes`.")
