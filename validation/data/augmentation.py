"""Augmentation of training images: pad, crop at random, flip from left to right (section 4 of the paper).

What happens to an image is a function of (seed, step, index of the image in its data set). It does not depend on what
else is in the batch, on how the batch is cut, or on the device. Padding is with zeros, which in standardised images are
the mean pixel.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from noisysgd.simulators.randomness.stream import Purpose, random_bits
from noisysgd.theory.common import checks

PADDING = 4


def augment(
    images: torch.Tensor,
    *,
    indices: npt.ArrayLike | torch.Tensor,
    seed: int,
    step: int,
    padding: int = PADDING,
    flip: bool = True,
) -> torch.Tensor:
    """Pad each image, crop it at random to its former size, and flip it with probability ½.

    Parameters
    ----------
    images : (B, C, H, W) tensor
        Images on any device and of any type.
    indices : (B,) array or tensor of int
        Index of each image in its data set.
    seed, step : int
        Seed of the run, and number of the update that the images are for.
    padding : int
        Zeros added on every side; crops have the original size and 2·padding + 1 offsets per axis, all equally likely.
    flip : bool
        Whether to mirror each image from left to right with probability ½.

    Returns
    -------
    (B, C, H, W) tensor
        On the device and in the memory format of `images`. Pixels are only moved, so the bits are the same everywhere.

    Raises
    ------
    ValueError
        If the images do not have four axes, or there is not one index for each.

    Examples
    --------
    >>> images = torch.rand(3, 1, 8, 8)
    >>> whole = augment(images, indices=[5, 9, 2], seed=0, step=7)
    >>> bool((augment(images[1:2], indices=[9], seed=0, step=7) == whole[1:2]).all())
    True
    """
    checks.instance("images", images, torch.Tensor, remedy="Pass a tensor of shape (B, C, H, W).")
    checks.require(images.ndim == 4, "images", "shape (B, C, H, W)", tuple(images.shape), "Reshape them.")
    padding = checks.integer("padding", padding, 0, remedy="Use 0 for no cropping.")
    places = checks.indices("indices", indices.detach().cpu() if isinstance(indices, torch.Tensor) else indices)
    one_each = places.shape == (len(images),)
    checks.require(one_each, "indices", f"one index for each of {len(images)} images", places.shape, "Pass the batch.")
    choices = torch.from_numpy(random_choices(places, seed=seed, step=step, padding=padding)).to(images.device)
    return crop_and_flip(images, choices, padding=padding, flip=checks.boolean("flip", flip))


def crop_and_flip(
    images: torch.Tensor, choices: torch.Tensor, *, padding: int = PADDING, flip: bool = True
) -> torch.Tensor:
    """The crops and flips of :func:`augment`, by `choices` that were drawn before: (B, 3) integers on the device."""
    # The images are never cropped one by one: each crop is a set of rows and columns of the padded image, and a flip is
    # the columns in reverse order.
    down, right, mirrored = choices.unbind(1)
    _, channels, height, width = images.shape
    rows = down[:, None] + torch.arange(height, device=images.device)
    columns = right[:, None] + torch.arange(width, device=images.device)
    if flip:
        columns = torch.where(mirrored[:, None] == 1, columns.flip(1), columns)
    padded = functional.pad(images, (padding,) * 4)
    numbers = torch.arange(len(images), device=images.device)
    if images.is_contiguous(memory_format=torch.channels_last) and channels > 1:
        pixels = padded.permute(0, 2, 3, 1)[numbers[:, None, None], rows[:, :, None], columns[:, None, :]]
        return pixels.permute(0, 3, 1, 2)
    # One gather over the flat pixels of each channel, at the same places in every channel.
    wide = width + 2 * padding
    flat = (rows[:, :, None] * wide + columns[:, None, :]).reshape(len(images), 1, height * width)
    pixels = padded.reshape(len(images), channels, -1).gather(2, flat.expand(-1, channels, -1))
    return pixels.reshape(images.shape)


def random_choices(indices: npt.NDArray[Any], *, seed: int, step: int, padding: int = PADDING) -> npt.NDArray[np.int64]:
    """What is done to each image: (B, 3) integers, the offsets of the crop down and to the right, and 1 for a flip.

    Offsets are 0 … 2·padding. From a 32-bit random word w an offset is ⌊(2·padding + 1) · w / 2³²⌋, whose probabilities
    are equal to within 2⁻³². The flip
    is the highest bit of the third word.

    >>> random_choices(np.array([3, 4]), seed=0, step=0).shape
    (2, 3)
    """
    words = random_bits(seed, Purpose.AUGMENTATION, replica=indices, step=step, block=0).astype(np.uint64)
    scale = np.array([2 * padding + 1, 2 * padding + 1, 2], np.uint64)
    return (words[:, :3] * scale >> np.uint64(32)).astype(np.int64)
