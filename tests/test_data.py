import dataclasses

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from noisysgd.validation.data import ImageDataset, load_dataset


def test_digits_are_the_package_in_its_order_with_a_fixed_cut() -> None:
    digits, raw = load_dataset("digits"), load_digits()
    assert torch.cat([digits.train_labels, digits.test_labels]).tolist() == raw.target.tolist()
    assert digits.train_images.shape == (1280, 1, 8, 8)
    assert digits.test_images.shape == (517, 1, 8, 8)
    assert (digits.name, digits.classes, digits.train_size) == ("digits", 10, 1280)
    pixels = torch.cat([digits.train_images, digits.test_images])[:, 0].double().numpy()
    slope, intercept = np.polyfit(raw.images.ravel(), pixels.ravel(), 1)
    np.testing.assert_allclose(slope * raw.images + intercept, pixels, atol=1e-6)


def test_training_pixels_are_standardised_and_the_constants_recorded() -> None:
    digits, raw = load_dataset("digits"), load_digits().images[:1280]
    assert abs(float(digits.train_images.double().mean())) < 1e-6
    assert abs(float(digits.train_images.double().std(correction=0)) - 1) < 1e-6
    assert repr(float(raw.mean())) in digits.provenance
    assert repr(float(raw.std())) in digits.provenance


def test_the_order_is_that_of_writers_filling_the_same_form() -> None:
    labels = load_digits().target
    form = labels[:130]
    starts = [start for start in range(len(labels) - 29) if np.array_equal(labels[start : start + 30], form[:30])]
    assert len(starts) >= 12  # what the docstring of load_dataset says about the split rests on this
    assert 1287 in starts


def test_unknown_names_list_what_exists() -> None:
    with pytest.raises(ValueError, match="name: expected one of 'digits', got 'mnist'"):
        load_dataset("mnist")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": torch.zeros(6, 8, 8)}, "train_images: expected float32 of shape"),
        ({"test_images": torch.zeros(6, 1, 8, 8, dtype=torch.float64)}, "test_images: expected float32"),
        ({"train_labels": torch.zeros(5, dtype=torch.int64)}, r"train_labels: expected int64 of shape \(6,\)"),
        ({"test_labels": torch.zeros(6)}, "test_labels: expected int64"),
        ({"test_labels": torch.full((6,), 3)}, "test_labels: expected labels from 0 to 2"),
    ],
)
def test_malformed_data_sets_are_refused(changes: dict[str, torch.Tensor], message: str) -> None:
    x, y = torch.zeros(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64)
    good = ImageDataset("mine", x, y, x, y, classes=3, provenance="zeros")
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(good, **changes)  # type: ignore[arg-type]
