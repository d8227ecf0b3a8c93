"""Which examples an update sees, and in which pieces: functions of (seed, step), never of a generator's position."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from noisysgd.simulators.randomness.stream import Purpose, random_words
from noisysgd.theory.common import checks
from noisysgd.theory.limits.svag import svag_coefficients
from noisysgd.validation.data.datasets import ImageDataset
from noisysgd.validation.networks.coupling import couples
from noisysgd.validation.networks.factory import batch_norms

SECOND = 2**40
"""Added to the step to find the random numbers of SVAG's second batch; the stream has room for steps below 2⁴⁸."""


def minibatch(seed: int, step: int, batch_size: int, dataset_size: int) -> npt.NDArray[np.int64]:
    """Indices of a batch: `batch_size` of `dataset_size` examples without replacement, in random order.

    Every example draws a random word, and those with the smallest words are taken. The batch is a function of (seed,
    step) alone, and batches of different steps are independent of each other (paper, section 2).

    >>> sorted(minibatch(seed=0, step=7, batch_size=4, dataset_size=4).tolist())
    [0, 1, 2, 3]
    """
    words = random_words(seed, Purpose.MINIBATCH, replica=0, step=step, count=dataset_size)
    if batch_size == dataset_size:
        return np.argsort(words)
    # Finding the smallest words and sorting only these takes less time than sorting all. The order of random words is
    # a random order.
    chosen = np.argpartition(words, batch_size)[:batch_size]
    return np.asarray(chosen[np.argsort(words[chosen])], dtype=np.int64)


def weighted_draws(dynamics: str, svag: int, step: int) -> list[tuple[float, int]]:
    """The batches of update `step`, each as (weight of its loss, step whose random numbers it is drawn with).

    SVAG (Li, Malladi & Arora 2021, arXiv 2102.12470) takes two batches, drawn independently of each other, and updates
    along c₁∇L_B₁ + c₂∇L_B₂ with learning rate ε/l, l times for each update of SGD. The mean of this gradient is that of
    SGD's, and the covariance of its noise is l times as large. As l grows the run approaches the first-order SDE of
    SGD: where the results of SVAG do not depend on l, the SDE describes SGD. With l = 1 it is SGD, bit for bit.

    >>> weighted_draws("sgd", 1, 7)
    [(1.0, 7)]
    >>> [weight for weight, _ in weighted_draws("svag", 5, 7)]
    [2.0, -1.0]
    """
    if dynamics != "svag" or svag == 1:
        return [(1.0, step)]
    # c₁ + c₂ = 1 keeps the mean of the gradient, and c₁² + c₂² = l multiplies the covariance of its noise by l.
    first, second = svag_coefficients(svag)
    return [(float(first), step), (float(second), step + SECOND)]


def micro_batches(batch_size: int, micro_batch_size: int | None) -> list[slice]:
    """Consecutive parts of a batch, none larger than `micro_batch_size`.

    Since both sizes are multiples of the ghost batch size, every part is made of whole ghost batches, the same as in
    the whole batch.

    >>> micro_batches(80, 32)
    [slice(0, 32, None), slice(32, 64, None), slice(64, 80, None)]
    >>> micro_batches(80, None)
    [slice(0, 80, None)]
    """
    size = batch_size if micro_batch_size is None else micro_batch_size
    return [slice(start, min(start + size, batch_size)) for start in range(0, batch_size, size)]


def check_separable(model: nn.Module, images: torch.Tensor, group: int) -> None:
    """Raise if a batch's loss would depend on how the batch is cut, as it does with torch's own batch norms.

    Parameters
    ----------
    model : torch.nn.Module
    images : torch.Tensor
        Examples to try a network on: two groups, if there are so many.
    group : int
        Examples that are never cut apart.

    Raises
    ------
    ValueError
        If the logits of one group of examples depend on another.
    """
    coupled = batch_norms(model)
    remedy = "Use GhostBatchNorm2d, whose groups micro-batches leave whole, or take batches whole."
    checks.require(not coupled, "micro_batch_size", "a network without torch's batch norms", coupled, remedy)
    expected = f"a network in which examples see none but those of their group of {group}"
    try:
        apart = len(images) < 2 * group or not couples(model, images[: 2 * group], group)
    except RuntimeError:  # of a network that cannot take such images at all: the first update says so in words
        apart = True
    checks.require(apart, "micro_batch_size", expected, "logits that depend on other groups", remedy)


def resident(data: ImageDataset, device: str, *, channels_last: bool = True) -> ImageDataset:
    """The data set on `device`, its images in the layout of the network, so that no batch needs copying again."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    train, test = (images.to(device=device, memory_format=layout) for images in (data.train_images, data.test_images))
    return replace(
        data,
        train_images=train,
        test_images=test,
        train_labels=data.train_labels.to(device),
        test_labels=data.test_labels.to(device),
    )


def take(images: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    """``images[batch]`` in the layout of `images`, which indexing alone would lose."""
    if images.is_contiguous():
        return images[batch]
    # In this order of axes a channels_last tensor is contiguous, so that what indexing returns has its layout.
    return images.permute(0, 2, 3, 1)[batch].permute(0, 3, 1, 2)
