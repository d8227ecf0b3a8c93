import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.datasets import load_digits

from noisysgd.validation import TrainConfig, train
from noisysgd.validation.cli import data as data_cli
from noisysgd.validation.data import preparation
from noisysgd.validation.data.catalogue import DATASETS
from noisysgd.validation.data.datasets import ImageDataset, load_dataset
from noisysgd.validation.data.preparation import average_pool, balanced_subset


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
    with pytest.raises(
        ValueError, match="name: expected one of 'digits', 'fashion-mnist', 'cifar10', 'cifar100', got 'mnist'"
    ):
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


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100"])
def test_data_sets_that_are_not_here_say_how_to_get_them(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"Run `noisysgd data fetch {name}`"):
        load_dataset(name, folder=tmp_path)


def test_digits_have_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="folder: expected none for the digits"):
        load_dataset("digits", folder=tmp_path)


def test_digits_are_those_of_earlier_versions() -> None:
    """To the bit: results of earlier runs stay comparable. Made by this expression at commit 8696bd1."""
    digits = load_dataset("digits")
    pixels = digits.train_images.numpy().tobytes() + digits.test_images.numpy().tobytes()
    known = "ad3478b85b3c6960d8e44afeaecd0372b16530d1aa2cefb3db653d805bc8648c"
    assert hashlib.sha256(pixels).hexdigest() == known


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    seed=st.integers(0, 2**63 - 1),
    data=st.data(),
)
def test_subsets_are_balanced_nested_and_in_order(labels: list[int], seed: int, data: st.DataObject) -> None:
    array = np.array(labels)
    sizes = sorted(data.draw(st.tuples(*[st.integers(1, len(labels))] * 2)))
    small, large = (balanced_subset(array, size, seed) for size in sizes)
    assert [len(small), len(large)] == sizes
    assert set(small) <= set(large)
    assert small.tolist() == sorted(set(small.tolist()))
    available, kept = np.bincount(array, minlength=4), np.bincount(array[small], minlength=4)
    short = available > kept  # classes that could give more must have at least as many, to within one, as any other
    assert not short.any() or kept[short].min() >= kept.max() - 1


def test_what_does_not_divide_evenly_falls_to_any_class() -> None:
    """Of 40 subsets of one example; all in one of the two classes would be a false alarm once in 2³⁹."""
    labels = np.repeat([0, 1], 40)
    assert {int(labels[balanced_subset(labels, 1, seed)[0]]) for seed in range(40)} == {0, 1}


def test_subsets_are_a_uniform_choice_within_a_class() -> None:
    """Each of 40 examples of a class is kept in a fifth of 2000 subsets; χ² at a false-alarm rate of 1e-4."""
    labels = np.arange(80) % 2
    counts = np.zeros(80)
    for seed in range(2000):
        counts[balanced_subset(labels, 16, seed)] += 1
    # A count is binomial(2000, 1/5), and the 40 of a class sum to 16000: a χ² with 39 degrees of freedom each.
    statistic = ((counts - 400) ** 2 / (400 * 0.8)).sum() * 39 / 40
    assert stats.chi2.sf(statistic, 78) > 1e-4
    assert stats.chi2.sf(((counts * np.where(np.arange(80) < 8, 1.2, 1) - 400) ** 2 / 320).sum(), 78) < 1e-4


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    factor=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_down_sampling_averages_squares(shape: tuple[int, int, int, int], factor: int, seed: int) -> None:
    count, channels, height, width = shape
    size = (count, channels, height * factor, width * factor)
    pixels = np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)
    small = average_pool(pixels, factor)
    reference = torch.nn.functional.avg_pool2d(torch.from_numpy(pixels).double(), factor).numpy()
    np.testing.assert_array_equal(small, reference.astype(np.float32))


def test_subset_and_down_sampling_are_recorded_and_standardised() -> None:
    digits = load_dataset("digits", subset=320, subset_seed=7, downsample=2)
    assert digits.train_images.shape == (320, 1, 4, 4)
    assert digits.test_images.shape == (517, 1, 4, 4)
    assert digits.train_labels.bincount().tolist() == [32] * 10
    assert abs(float(digits.train_images.double().mean())) < 1e-6
    assert abs(float(digits.train_images.double().std(correction=0)) - 1) < 1e-6
    for part in ("balanced subset of 320 training examples, seed 7", "averaged over squares of 2×2 pixels"):
        assert part in digits.provenance
    assert repr(digits.standardisation.mean[0]) in digits.provenance  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"subset": 0}, "subset: expected an integer ≥ 1"),
        ({"subset": 1281}, "subset: expected at most the 1280 training examples, got 1281"),
        ({"downsample": 3}, "downsample: expected a divisor of 8 and 8, got 3"),
        ({"downsample": 0}, "downsample: expected an integer ≥ 1"),
        ({"downsample": 8, "subset": 1}, "images: expected pixels that vary in every channel"),
    ],
)
def test_impossible_choices_are_refused(choice: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset("digits", **choice)  # type: ignore[arg-type]


def test_large_sets_are_standardised_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (23, 3, 4, 4)).astype(np.uint8)
    monkeypatch.setattr(preparation, "CHUNK", 5)
    constants = preparation.measure_standardisation(pixels)
    np.testing.assert_allclose(constants.mean, pixels.mean((0, 2, 3)), rtol=1e-14)
    np.testing.assert_allclose(constants.deviation, pixels.std((0, 2, 3)), rtol=1e-14)
    whole = (pixels - pixels.mean((0, 2, 3), keepdims=True)) / pixels.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(constants.apply(pixels), whole, rtol=1e-6, atol=1e-7)


def test_configurations_of_earlier_versions_keep_their_names() -> None:
    """The names were made at commit 8696bd1, before a configuration had anything to say about its data."""
    first = TrainConfig(learning_rate=0.5, batch_size=64, epochs=20)
    second = TrainConfig(learning_rate=0.5, batch_size=64, steps=3, momentum=0.9, seed=7)
    assert (first.key, second.key) == ("c500a6d90625b5a1", "f0357028ad744654")
    assert "subset" not in first.as_dict()


@pytest.mark.parametrize(
    "choice", [{"subset": 640}, {"subset": 640, "subset_seed": 1}, {"downsample": 2}, {"augment": True}]
)
def test_choices_of_data_are_part_of_a_configuration(choice: dict[str, Any]) -> None:
    plain = TrainConfig(learning_rate=0.5, batch_size=64, steps=2)
    config = plain.with_(**choice)
    assert config.key != plain.key
    assert choice.items() <= config.as_dict().items()
    assert TrainConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    record = train(config)
    assert record["config"] == config.as_dict()
    assert record["train_loss"] != train(plain)["train_loss"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"subset": 0}, "subset: expected an integer ≥ 1"),
        ({"subset_seed": 1}, "subset_seed: expected 0 without a subset, got 1"),
        ({"downsample": 0.5}, "downsample: expected an integer"),
        ({"augment": 1}, "augment: expected a bool, got 1"),
    ],
)
def test_configurations_refuse_impossible_choices(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(learning_rate=0.5, batch_size=64, steps=2, **choice)


@pytest.mark.checkout
def test_the_program_of_the_page_on_data_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    exec(program, {})
    assert "Standardisation(mean=(" in capsys.readouterr().out


def test_the_command_line_offers_every_data_set_there_is():
    assert tuple(DATASETS) == data_cli.NAMES
