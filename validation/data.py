"""Image data sets, split and standardised the same way every time."""

from dataclasses import dataclass

import numpy as np
import torch

from noisysgd.theory import checks
from noisysgd.validation.configuration import DATASETS

DIGITS_TRAINING_EXAMPLES = 1280  # 20 × 64: divisible by every batch size of a power-of-two grid up to 256


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Standardised images and labels, in a fixed order and a fixed split.

    Parameters
    ----------
    name : str
        Name for `load_dataset`.
    train_images, test_images : torch.Tensor
        float32, shape (N, C, H, W).
    train_labels, test_labels : torch.Tensor
        int64, shape (N,), values 0 … classes − 1.
    classes : int
        Number of classes.
    provenance : str
        Where the data come from, how they were split and standardised.

    Raises
    ------
    ValueError
        For tensors of another type or shape.

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

    def __post_init__(self) -> None:
        _check_split("train", self.train_images, self.train_labels, self.classes)
        _check_split("test", self.test_images, self.test_labels, self.classes)

    @property
    def train_size(self) -> int:
        """Number N of training examples."""
        return len(self.train_images)


def load_dataset(name: str) -> ImageDataset:
    """Load a data set by name.

    ``"digits"``: scikit-learn's 1797 hand-written digits of 8×8 pixels, which come with the package. The first 1280
    examples in the package's order are the training set, the last 517 the test set. The order is not random: the
    labels repeat one form of about 130 digits fourteen times, so consecutive examples share a writer (scikit-learn's
    description names 13 writers, without giving the order). The cut falls seven digits before the end of a form;
    the other 510 test digits come from forms with no example in the training set. Pixels are standardised with the
    mean and standard deviation of all training pixels, which `provenance` records.

    Parameters
    ----------
    name : {"digits"}
        Name of the data set.

    Returns
    -------
    ImageDataset
        Tensors on the CPU.

    Raises
    ------
    ValueError
        For an unknown name.

    Examples
    --------
    >>> digits = load_dataset("digits")
    >>> digits.train_images.shape, digits.test_images.shape
    (torch.Size([1280, 1, 8, 8]), torch.Size([517, 1, 8, 8]))
    """
    checks.one_of("name", name, DATASETS)
    return _digits()


def _digits() -> ImageDataset:
    # Imported here because it takes a second, which a user's own data set need not cost.
    import sklearn
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.asarray(bunch.images, dtype=np.float64)[:, None]
    labels = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    cut = DIGITS_TRAINING_EXAMPLES
    mean, deviation = float(pixels[:cut].mean()), float(pixels[:cut].std())
    images = torch.from_numpy(((pixels - mean) / deviation).astype(np.float32))
    provenance = (
        f"sklearn.datasets.load_digits, scikit-learn {sklearn.__version__} (UCI optical recognition of handwritten "
        f"digits, its test part); first {cut} examples train, last {len(images) - cut} test; "
        f"pixels 0–16 standardised with the training pixels' mean {mean!r} and standard deviation {deviation!r}"
    )
    return ImageDataset("digits", images[:cut], labels[:cut], images[cut:], labels[cut:], 10, provenance)


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
