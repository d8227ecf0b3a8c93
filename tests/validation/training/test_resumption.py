"""A network whose run could not go on from a checkpoint is refused before its first update, not at the checkpoint."""

import collections
import enum
import pathlib
import types

import numpy as np
import pytest
import torch
from torch import nn

from noisysgd.validation import RunStore, TrainConfig, load_dataset, measure, run_one, train
from noisysgd.validation.networks import factory
from noisysgd.validation.training import checkpoint as checkpoints
from noisysgd.validation.training.resumption import check_resumable

CONFIG = TrainConfig(learning_rate=0.1, batch_size=64, steps=6, model="own", ghost_batch_size=1)


class Keeping(nn.Linear):
    """A classifier of digits that keeps something beside its tensors."""

    def __init__(self, kept):
        super().__init__(64, 10)
        self.kept = kept
        self.passes = 0

    def forward(self, images):
        self.passes += 1
        return super().forward(images.flatten(1))

    def get_extra_state(self):
        return self.kept

    def set_extra_state(self, state):
        self.kept = state


class Level(enum.IntEnum):
    LOW = 1


def endless():
    found = []
    found.append(found)
    return found


ODD = {
    "tuple": (1, 2),
    "set": {1},
    "bytes": b"abc",
    "number of NumPy": np.float64(1.0),
    "array": np.zeros(2),
    "enumeration": Level.LOW,
    "path": pathlib.Path("x"),
    "function": len,
    "object": types.SimpleNamespace(a=1),
    "numbers as keys": {1: "x"},
    "deep": {"a": [{"b": (1,)}]},
    "default dict": collections.defaultdict(int, a=1),
    "module": nn.Linear(1, 1),
    "sparse tensor": torch.eye(2).to_sparse(),
    "derived tensor": torch.Tensor._make_subclass(type("Derived", (torch.Tensor,), {}), torch.zeros(2)),
    "meta tensor": torch.zeros(2, device="meta"),
    "endless": endless(),
}
PLAIN = {
    "nothing": None,
    "number": 3,
    "dict": {"a": [1, 2.5, True, None, "x"]},
    "ordered dict": collections.OrderedDict(a=1),
    "tensors": {"a": torch.arange(3), "b": [torch.zeros(2, dtype=torch.complex64).conj()]},
    "far apart": float("inf"),
}


@pytest.mark.parametrize("kind", ODD)
def test_state_of_odd_types_is_refused_before_the_first_pass(kind, tmp_path):
    model = Keeping(ODD[kind])
    with pytest.raises(ValueError, match=r"model\.state_dict\(\)\['_extra_state'\].*expected"):
        train(CONFIG, model=model, checkpoint=tmp_path / "run.pt")
    assert model.passes == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ODD)
def test_a_run_without_checkpoints_needs_none(kind):
    assert train(CONFIG, model=Keeping(ODD[kind]))["status"] == "complete"


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_state_is_kept_and_comes_back(kind, tmp_path):
    path = tmp_path / "run.pt"
    straight = train(CONFIG, model=Keeping(PLAIN[kind]).train(), checkpoint=path, checkpoint_every=4)
    again = Keeping("something else")
    again.load_state_dict(checkpoints.read(path)["model"])
    assert checkpoints.digest({"x": again.kept}) == checkpoints.digest({"x": PLAIN[kind]})
    resumed = train(CONFIG, model=Keeping("something else"), checkpoint=path)
    assert resumed["train_loss"] == straight["train_loss"]


class Forgetful(Keeping):
    def set_extra_state(self, state):
        self.kept = {}


class OneWay(nn.Linear):
    def get_extra_state(self):
        return 1


class Renamed(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self._register_state_dict_hook(lambda module, state, prefix, _: state.update(extra=torch.zeros(1)))


@pytest.mark.parametrize("make", [lambda: Forgetful({"a": 1}), lambda: OneWay(64, 10), lambda: Renamed(64, 10)])
def test_a_network_that_does_not_take_back_its_state_is_refused_and_stays_what_it_is(make):
    model = make()
    before = checkpoints.digest({"weight": model.weight})
    with pytest.raises(ValueError, match=r"model: expected a network that takes back its own state_dict\(\)"):
        check_resumable(model)
    assert checkpoints.digest({"weight": model.weight}) == before


class Late(nn.Module):
    """Makes a part of itself in its first pass."""

    def __init__(self, part):
        super().__init__()
        self.linear, self.part, self.passes = nn.Linear(64, 10), part, 0

    def forward(self, images):
        if self.passes == 0:
            if self.part == "parameter":
                self.extra = nn.Parameter(torch.zeros(10))
            elif self.part == "buffer":
                self.register_buffer("extra", torch.zeros(10))
        self.passes += 1
        return self.linear(images.flatten(1)) + getattr(self, "extra", 0.0)

    def get_extra_state(self):
        return (1, 2) if self.part == "state" and self.passes else None

    def set_extra_state(self, state):
        pass


def test_a_parameter_made_in_the_first_pass_would_never_be_trained_and_is_refused():
    with pytest.raises(ValueError, match=r"no parameters but those it began with, got \"new ones: \['extra'\]\""):
        train(CONFIG, model=Late("parameter"))


@pytest.mark.parametrize(("part", "message"), [("buffer", "the same names"), ("state", "tensors and plain types")])
def test_state_that_the_first_update_brings_is_refused_after_it(part, message, tmp_path):
    model = Late(part)
    with pytest.raises(ValueError, match=message):
        train(CONFIG, model=model, checkpoint=tmp_path / "run.pt")
    assert model.passes == 1
    assert train(CONFIG, model=Late(part))["status"] == "complete"


LAZY = {
    "linear": lambda *_: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)),
    "batch norm": lambda *_: nn.Sequential(nn.LazyBatchNorm2d(affine=False), nn.Flatten(), nn.Linear(64, 10)),
    "meta": lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(64, 10, device="meta")),
}


@pytest.mark.parametrize("kind", LAZY)
def test_layers_without_values_are_refused_with_a_remedy(kind):
    message = r"model: expected parameters and buffers with values, got \[.*\] without\. Pass an image through"
    with pytest.raises(ValueError, match=message):
        train(CONFIG, model=LAZY[kind])
    with pytest.raises(ValueError, match=message):
        measure(LAZY[kind](), load_dataset("digits"))


def test_the_remedy_for_lazy_layers_works():
    def made(config, data):
        model = nn.Sequential(nn.Flatten(), nn.LazyLinear(data.classes))
        model(data.train_images[:1])
        return model

    assert train(CONFIG, model=made)["network"]["parameters"] == 650


def test_a_stored_run_of_such_a_network_is_refused_at_once(tmp_path, monkeypatch):
    made = []

    def keeping(config, data):
        made.append(Keeping((1, 2)))
        return made[-1]

    monkeypatch.setattr(factory, "imported", lambda name: keeping)
    with pytest.raises(ValueError, match="got 'tuple'"):
        run_one(RunStore(tmp_path), CONFIG)
    assert made[0].passes == 0
