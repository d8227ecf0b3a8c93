"""The image data sets: how many images of what size, in which files, with which checksums.

Nothing is read here, so that a sweep can be planned and a configuration checked without the data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from noisysgd.theory.common import checks


@dataclass(frozen=True)
class SourceFile:
    """One file of a data set.

    Parameters
    ----------
    name : str
        The published name.
    url : str
        The address at which it is published.
    digests : mapping
        Hexadecimal checksum by algorithm ("md5", "sha256"); every one of them must match.
    unpacked : bool
        Whether the checksums are those of the unzipped content. Such a file may also lie unzipped, without ``.gz``.
    limit : int
        Size in bytes that no genuine copy exceeds; a longer download is broken off.
    """

    name: str
    url: str
    digests: Mapping[str, str]
    limit: int
    unpacked: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names under which the file is recognised."""
        return (self.name, self.name.removesuffix(".gz")) if self.unpacked else (self.name,)


@dataclass(frozen=True)
class Source:
    """A data set made of files.

    Parameters
    ----------
    name : str
        Name for :func:`noisysgd.validation.load_dataset`.
    title : str
        What the images show.
    files : tuple of SourceFile
        Empty for the digits, which come with scikit-learn.
    classes, training_examples, test_examples : int
        Number of classes, and of examples in each split.
    side, channels : int
        Height and width of the images in pixels, and their number of colours.
    system_folders : tuple of Path
        Where a Linux distribution's package puts the files.
    """

    name: str
    title: str
    files: tuple[SourceFile, ...]
    classes: int
    training_examples: int
    test_examples: int
    side: int
    channels: int
    system_folders: tuple[Path, ...] = field(default=())

    @property
    def shape(self) -> str:
        """How many images there are and of what size, in words.

        >>> CIFAR10.shape
        '50000 + 10000 images of 32×32×3'
        """
        size = f"{self.side}×{self.side}×{self.channels}"
        return f"{self.training_examples} + {self.test_examples} images of {size}"


_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_TORONTO = "https://www.cs.toronto.edu/~kriz"


def _idx(name: str, sha256: str) -> SourceFile:
    return SourceFile(f"{name}.gz", f"{_FASHION}/{name}.gz", {"sha256": sha256}, 64 * 2**20, unpacked=True)


DIGITS = Source(
    "digits",
    "handwritten digits, grey (scikit-learn's; UCI)",
    (),
    classes=10,
    training_examples=1280,  # 20 × 64: divisible by every batch size of a power-of-two grid up to 256
    test_examples=517,
    side=8,
    channels=1,
)
FASHION_MNIST = Source(
    "fashion-mnist",
    "articles of clothing, grey (Xiao, Rasul & Vollgraf 2017)",
    (
        # Checksums of the unzipped content, `zcat FILE | sha256sum`, since Debian's package takes name and time out of
        # the gzip headers. With these put back (31 August 2017, 10:50:06 and 10:50:27 UTC) its four files have the MD5s
        # in the README of https://github.com/zalandoresearch/fashion-mnist.
        _idx("train-images-idx3-ubyte", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        _idx("train-labels-idx1-ubyte", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        _idx("t10k-images-idx3-ubyte", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        _idx("t10k-labels-idx1-ubyte", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    ),
    classes=10,
    training_examples=60_000,
    test_examples=10_000,
    side=28,
    channels=1,
    system_folders=(Path("/usr/share/datasets/fashion-mnist"),),
)


def _cifar(classes: int, kinds: str, md5: str, sha256: str) -> Source:
    file = f"cifar-{classes}-binary.tar.gz"
    return Source(
        f"cifar{classes}",
        f"photographs of {kinds} kinds of things, colour (Krizhevsky 2009)",
        (SourceFile(file, f"{_TORONTO}/{file}", {"md5": md5, "sha256": sha256}, 256 * 2**20),),
        classes=classes,
        training_examples=50_000,
        test_examples=10_000,
        side=32,
        channels=3,
    )


# MD5 as published at https://www.cs.toronto.edu/~kriz/cifar.html; SHA-256, which that page lacks, as in the checksum
# lists of TensorFlow Datasets.
CIFAR10 = _cifar(
    10,
    "ten",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
CIFAR100 = _cifar(
    100,
    "a hundred",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
)
DATASETS: Mapping[str, Source] = {source.name: source for source in (DIGITS, FASHION_MNIST, CIFAR10, CIFAR100)}
"""All data sets by name."""
SOURCES: Mapping[str, Source] = {name: source for name, source in DATASETS.items() if source.files}
"""The data sets that are read from files, by name."""


def source_named(name: str) -> Source:
    """The data set of that name, one of :data:`SOURCES`.

    >>> source_named("cifar10").files[0].name
    'cifar-10-binary.tar.gz'
    """
    return SOURCES[checks.one_of("name", name, tuple(SOURCES))]
