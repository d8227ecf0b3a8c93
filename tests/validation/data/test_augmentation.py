"""Augmentation: the slow reference, independence of the batch, and the distribution of crops and flips."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from noisysgd.simulators import Purpose, random_bits
from noisysgd.validation import TrainConfig, augment, load_dataset, train
from noisysgd.validation.data.augmentation import random_choices


def slow(image: np.ndarray, index: int, seed: int, step: int, padding: int = 4, flip: bool = True) -> np.ndarray:
    """One image (C, H, W), one pixel at a time."""
    words = random_bits(seed, Purpose.AUGMENTATION, replica=index, step=step, block=0)
    down, right = (int(word) * (2 * padding + 1) // 2**32 for word in words[:2])
    mirrored = flip and int(words[2]) >= 2**31
    channels, height, width = image.shape
    out = np.zeros_like(image)
    for c, y, x in np.ndindex(channels, height, width):
        from_y = y + down - padding
        from_x = (width - 1 - x if mirrored else x) + right - padding
        if 0 <= from_y < height and 0 <= from_x < width:
            out[c, y, x] = image[c, from_y, from_x]
    return out


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 2**40),
    padding=st.integers(0, 5),
    flip=st.booleans(),
    last=st.booleans(),
    data=st.data(),
)
def test_equal_to_the_slow_reference(
    shape: tuple[int, int, int, int], seed: int, step: int, padding: int, flip: bool, last: bool, data: st.DataObject
) -> None:
    indices = data.draw(st.lists(st.integers(0, 59_999), min_size=shape[0], max_size=shape[0]))
    images = torch.arange(1, 1 + int(np.prod(shape)), dtype=torch.float32).reshape(shape)
    form = torch.channels_last if last else torch.contiguous_format
    images = images.contiguous(memory_format=form)
    got = augment(images, indices=indices, seed=seed, step=step, padding=padding, flip=flip)
    pairs = zip(images.numpy(), indices, strict=True)
    wanted = np.stack([slow(image, index, seed, step, padding, flip) for image, index in pairs])
    np.testing.assert_array_equal(got.numpy(), wanted)
    assert got.is_contiguous(memory_format=form)


@given(st.permutations(range(12)), st.integers(1, 12))
def test_an_image_is_treated_alike_in_any_batch(order: list[int], cut: int) -> None:
    images = torch.arange(12 * 64, dtype=torch.float32).reshape(12, 1, 8, 8)
    whole = augment(images, indices=range(12), seed=3, step=5)
    for part in torch.tensor(order).split(cut):
        assert torch.equal(augment(images[part], indices=part, seed=3, step=5), whole[part])


def test_seed_and_step_each_change_it_and_the_input_stays() -> None:
    images = torch.arange(8 * 64, dtype=torch.float32).reshape(8, 1, 8, 8)
    before = images.clone()
    first = augment(images, indices=range(8), seed=0, step=0)
    assert torch.equal(images, before)
    assert torch.equal(first, augment(images, indices=range(8), seed=0, step=0))
    assert not torch.equal(first, augment(images, indices=range(8), seed=1, step=0))
    assert not torch.equal(first, augment(images, indices=range(8), seed=0, step=1))
    assert torch.equal(images, augment(images, indices=range(8), seed=0, step=0, padding=0, flip=False))


def p_values(choices: np.ndarray, offsets: int) -> list[float]:
    """χ² tests: of the offsets together with the flip, and of the offsets at one step against those at the next."""
    cells = choices[:, 0] * offsets * 2 + choices[:, 1] * 2 + choices[:, 2]
    joint = np.bincount(cells, minlength=2 * offsets**2)
    pairs = np.bincount(choices[:-1, 0] * offsets + choices[1:, 0], minlength=offsets**2)
    return [stats.chisquare(joint).pvalue, stats.chisquare(pairs).pvalue]


def test_nine_offsets_per_axis_all_equally_likely_and_half_flipped() -> None:
    """False alarms: 2 tests at 1e-4; the mutants below have a power near 1."""
    choices = np.concatenate([random_choices(np.arange(500), seed=11, step=step) for step in range(100)])
    assert set(choices[:, 0]) == set(choices[:, 1]) == set(range(9))
    assert min(p_values(choices, 9)) > 1e-4
    eight = choices % np.array([8, 9, 2])  # an offset short
    tilted = choices.copy()
    tilted[::20, 2] = 0  # 2.5 % too few flips
    assert min(p_values(eight, 9)) < 1e-4
    assert p_values(tilted, 9)[0] < 1e-4


def test_training_augments_when_told_to() -> None:
    plain = TrainConfig(learning_rate=0.25, batch_size=64, steps=6)
    moved = plain.with_(augment=True)
    records = [train(config) for config in (plain, moved, moved)]
    assert records[0]["train_loss"] != records[1]["train_loss"]
    assert records[1]["train_loss"] == records[2]["train_loss"]
    assert records[1]["config"]["augment"] is True
    assert load_dataset("digits").train_images.shape == (1280, 1, 8, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(2, 8, 8)}, r"images: expected shape \(B, C, H, W\)"),
        ({"indices": [1]}, "indices: expected one index for each of 2 images"),
        ({"padding": -1}, "padding: expected an integer ≥ 0"),
        ({"seed": -1}, "seed: expected an integer ≥ 0"),
        ({"indices": [0.5, 1.5]}, "indices: expected whole numbers"),
    ],
)
def test_impossible_arguments_are_refused(changes: dict[str, object], message: str) -> None:
    arguments = {"images": torch.zeros(2, 1, 8, 8), "indices": [0, 1], "seed": 0, "step": 0} | changes
    with pytest.raises(ValueError, match=message):
        augment(arguments.pop("images"), **arguments)  # type: ignore[arg-type]
