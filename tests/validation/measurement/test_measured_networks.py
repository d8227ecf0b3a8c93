"""Networks of the user's own: what measure() has to switch off, hold fixed, recognise, or refuse."""

import itertools
import random
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from small_networks import GHOST, dataset, dense_hessian, examples, flat_gradient, seeded, small_network
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from noisysgd.validation.measurement.curvature import loss_gradient, loss_hessian_vector_product
from noisysgd.validation.measurement.measurement import measure
from noisysgd.validation.measurement.options import MeasurementOptions
from noisysgd.validation.measurement.sharpness import batch_sharpness

QUICK = {"units": 8, "products": 2, "probes": 2, "noise_draws": 2, "steps": 2, "sharpness_batches": 2}


def values(found) -> dict[str, object]:
    return {**found.as_dict(), "seconds": 0}


def mlp(*middle: nn.Module) -> nn.Module:
    return seeded(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), *middle, nn.Tanh(), nn.Linear(8, 3)))


# --- precision --------------------------------------------------------------------------------------------------


FLAGS = ((torch.backends.cudnn, "allow_tf32"), (torch.backends.cuda.matmul, "allow_tf32"))


class Watched(torch.autograd.Function):
    """The identity; keeps the settings it was computed under, in both directions."""

    seen: ClassVar[set[tuple[str, bool, bool]]] = set()

    @staticmethod
    def forward(ctx, x):
        Watched.seen.add(("forward", *(getattr(*flag) for flag in FLAGS)))
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        Watched.seen.add(("backward", *(getattr(*flag) for flag in FLAGS)))
        return slope


class Watch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        watched: torch.Tensor = Watched.apply(x)
        return watched


@pytest.fixture
def tensor_float_32():
    """All that a GPU could be told to compute less exactly."""
    before = [getattr(*flag) for flag in FLAGS]
    for place, name in FLAGS:
        setattr(place, name, True)
    yield
    for (place, name), value in zip(FLAGS, before, strict=True):
        setattr(place, name, value)


@pytest.mark.usefixtures("tensor_float_32")
def test_nothing_is_computed_in_tensor_float_32() -> None:
    model = mlp(Watch())
    images, labels = examples(8)
    works = {
        "measure": lambda: measure(model, dataset(), **QUICK),
        "batch_sharpness": lambda: batch_sharpness(model, images, labels, np.arange(8).reshape(2, 4)),
    }
    for name, work in works.items():
        Watched.seen.clear()
        work()
        assert Watched.seen == {("forward", False, False), ("backward", False, False)}, name
    assert all(getattr(*flag) for flag in FLAGS)


@pytest.mark.parametrize("micro_batch", [None, 8])
def test_double_precision_networks_are_measured_in_it(micro_batch: int | None) -> None:
    model = small_network(ghost=False).double()
    options = {**QUICK, "max_products": 52, "rtol": 1e-9, "micro_batch": micro_batch}
    found = measure(model, dataset(), **options)
    images, labels = examples(48)
    exact = float(torch.linalg.eigvalsh(dense_hessian(model, images.double(), labels))[-1])
    assert found.lambda_max.value == pytest.approx(exact, rel=1e-12)
    assert found.lambda_max.residual < 1e-9 * exact


# --- which examples share statistics ----------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [None, GHOST, 4 * GHOST])
def test_with_torchs_batch_norm_the_curvature_is_the_mean_over_units(micro_batch: int | None) -> None:
    """Against dense Hessians of single units; that of the loss of all examples at once is another matrix."""
    model = mlp(nn.BatchNorm1d(8)).double()
    data, options = dataset(8), {**QUICK, "max_products": 60, "steps": 30, "rtol": 1e-6}
    found = measure(model, data, ghost_batch_size=GHOST, micro_batch=micro_batch, **options)
    images, labels = data.train_images.double(), data.train_labels
    tops, lengths = [], []
    for first in ([0, *three] for three in itertools.combinations(range(1, 8), 3)):
        units = [list(first), [k for k in range(8) if k not in first]]
        hessian = sum(dense_hessian(model, images[unit], labels[unit]) for unit in units) / 2
        slope = sum(flat_gradient(model, images[unit], labels[unit]) for unit in units) / 2
        tops.append(float(torch.linalg.eigvalsh(hessian)[-1]))
        lengths.append(float(slope.square().sum()))
    chosen = int(np.argmin(np.abs(np.array(tops) - found.lambda_max.value)))
    assert found.lambda_max.value == pytest.approx(tops[chosen], rel=1e-9)
    assert found.spectrum.gradient.sum() == pytest.approx(lengths[chosen], rel=1e-9)
    together = float(torch.linalg.eigvalsh(dense_hessian(model, images, labels))[-1])
    assert abs(together / tops[chosen] - 1) > 0.02


def test_models_without_batch_norm_need_no_ghost_batch_size() -> None:
    found = measure(mlp(), dataset(), **QUICK)
    assert found.ghost_batch_size == 1
    assert found.curvature_examples == 48
    assert values(found) == values(measure(mlp(), dataset(), ghost_batch_size=1, **QUICK))
    assert measure(mlp(nn.LayerNorm(8)), dataset(), **QUICK).ghost_batch_size == 1


def test_models_with_torchs_batch_norm_do() -> None:
    with pytest.raises(ValueError, match=r"got \['2'\]. Pass ghost_batch_size, the number of examples per unit"):
        measure(mlp(nn.BatchNorm1d(8)), dataset(), **QUICK)
    both = nn.Sequential(small_network(), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="GhostBatchNorm2d layers of one ghost batch size"):
        measure(both, dataset(), **QUICK)
    with pytest.raises(ValueError, match=r"got \['model'\]"):
        measure(nn.BatchNorm2d(1), dataset(), **QUICK)


# --- randomness -------------------------------------------------------------------------------------------------


class Attentive(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=rate, batch_first=True)
        self.linear = nn.Linear(16, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.squeeze(1)
        logits: torch.Tensor = self.linear((rows + self.attention(rows, rows, rows)[0]).flatten(1))
        return logits


class Recurrent(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.layers = nn.GRU(4, 4, num_layers=2, dropout=rate, batch_first=True)
        self.linear = nn.Linear(16, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(self.layers(images.squeeze(1))[0].flatten(1))
        return logits


@pytest.mark.parametrize("make", [Attentive, Recurrent])
def test_dropout_inside_torchs_own_layers_is_off(make: type[nn.Module]) -> None:
    model, plain = seeded(make(0.5)), seeded(make(0.0))
    assert values(measure(model, dataset(), **QUICK)) == values(measure(plain, dataset(), **QUICK))
    assert [m.dropout for m in model.modules() if hasattr(m, "dropout")] == [0.5]


class Transformer(nn.Module):
    """Attention without weights to return: torch then takes a kernel that cannot be differentiated twice."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=rate, batch_first=True)
        self.linear = nn.Linear(16, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(self.layer(images.squeeze(1)).flatten(1))
        return logits


def test_transformers_are_measured() -> None:
    model = seeded(Transformer(0.5)).double()
    found = measure(model, dataset(), **{**QUICK, "max_products": 60, "rtol": 1e-6})
    images, labels = dataset().train_images.double(), dataset().train_labels
    with sdpa_kernel(SDPBackend.MATH):
        hessian = dense_hessian(seeded(Transformer(0.0)).double(), images, labels)
    assert found.lambda_max.value == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-6)


class Randomised(nn.Module):
    """Adds noise from one of the places that noise may come from."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.own = source, torch.Generator()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.source == "dropout":
            return F.dropout(x, 0.5, self.training)
        if self.source == "rarely":  # stochastic depth of whole batches
            return x * float(torch.rand(()) < 0.8)
        if self.source == "own":
            return x + torch.randn(x.shape, generator=self.own)
        return x + (random.random() if self.source == "python" else np.random.uniform())  # noqa: NPY002


def generators() -> list[object]:
    return [torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())]  # noqa: NPY002


@pytest.mark.parametrize("source", ["dropout", "rarely", "own", "python", "numpy"])
def test_a_random_loss_is_refused_and_global_generators_stay(source: str) -> None:
    model, before = mlp(Randomised(source)), generators()
    for _ in range(5):
        with pytest.raises(
            ValueError, match=r"model: expected the same logits .* Only dropout modules are switched off"
        ):
            measure(model, dataset(), **QUICK)
    assert generators() == before


def test_drawing_without_using_it_is_allowed() -> None:
    class Idle(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.rand(3)
            return x

    idle, plain, before = mlp(Idle()), mlp(), generators()
    assert values(measure(idle, dataset(), **QUICK)) == values(measure(plain, dataset(), **QUICK))
    assert generators() == before


def test_a_diverged_network_is_measured_all_the_same() -> None:
    model = mlp()
    nn.init.constant_(model[1].weight, float("nan"))
    assert np.isnan(measure(model, dataset(), **QUICK).lambda_max.value)


# --- what must not move -----------------------------------------------------------------------------------------


def test_frozen_parameters_and_buffers_are_those_of_the_moment() -> None:
    model = mlp(nn.BatchNorm1d(8, affine=False))
    model.register_module("shift", nn.Identity())
    model[1].weight.requires_grad_(False)
    product = loss_hessian_vector_product(model, *examples(8), micro_batch=GHOST)
    vector = torch.ones(sum(p.numel() for p in model.parameters() if p.requires_grad))
    before = product(vector)
    with torch.no_grad():
        model[1].weight.mul_(3)
    assert torch.equal(product(vector), before)
    assert not torch.equal(loss_hessian_vector_product(model, *examples(8), micro_batch=GHOST)(vector), before)


def test_layers_that_change_their_buffers_leave_the_function_what_it_is() -> None:
    spectral = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(16, 8))
    model = seeded(nn.Sequential(nn.Flatten(), spectral, nn.Tanh(), nn.Linear(8, 3)))
    buffers = [buffer.clone() for buffer in model.buffers()]
    images, labels = examples(16)
    product = loss_hessian_vector_product(model, images, labels, micro_batch=GHOST)
    vector = torch.linspace(-1, 1, sum(p.numel() for p in model.parameters()))
    once = product(vector)
    assert torch.equal(product(vector), once)
    torch.testing.assert_close(loss_hessian_vector_product(model, images, labels)(vector), once)
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), buffers, strict=True))


class Halved(nn.Module):
    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place, self.linear = in_place, nn.Linear(16, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear((images.mul_(0.5) if self.in_place else images * 0.5).flatten(1))
        return logits


@pytest.mark.parametrize("micro_batch", [None, GHOST])
def test_networks_that_change_their_input_in_place_see_the_examples(micro_batch: int | None) -> None:
    (images, labels), options = examples(16), {"micro_batch": micro_batch}
    untouched = images.clone()
    vector = torch.ones(51)
    for work in (
        lambda model: loss_hessian_vector_product(model, images, labels, **options)(vector),
        lambda model: loss_gradient(model, images, labels, **options),
    ):
        found, expected = work(seeded(Halved(in_place=True))), work(seeded(Halved(in_place=False)))
        assert torch.equal(found, expected)
        assert torch.equal(images, untouched)
    changing, data = seeded(Halved(in_place=True)), dataset()
    assert values(measure(changing, data, **options, **QUICK)) == values(
        measure(seeded(Halved(in_place=False)), data, **options, **QUICK)
    )
    assert torch.equal(data.train_images, dataset().train_images)


# --- refusals ---------------------------------------------------------------------------------------------------


class Pair(nn.Linear):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return super().forward(images.flatten(1)), None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": lambda images: images}, r"model: expected a Module, got .* Pass a torch.nn.Module"),
        ({"data": (1, 2)}, r"data: expected a ImageDataset, got \(1, 2\). Use load_dataset"),
        ({"model": Pair(16, 3)}, r"model\(images\): expected a tensor of logits, got .*tuple.* Wrap"),
        (
            {"criterion": nn.CrossEntropyLoss(reduction="none")},
            r"criterion.*a tensor of shape \(\), got \(8,\). Average",
        ),
        ({"criterion": lambda logits, labels: 1.0}, r"criterion.*a tensor of shape \(\), got .*float"),
        ({"model": mlp().requires_grad_(False)}, "model: expected trainable parameters, got 'none'"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(**{"model": mlp(), "data": dataset(), **QUICK, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [
        {"sharpness_batches": 1},
        {"sharpness_batches": -1},
        {"sharpness_batch_size": 49},
        {"probes": 1},
        {"probes": -2},
        {"noise_draws": 1},
        {"noise_draws": 5},
        {"steps": 0},
        {"products": 1},
        {"products": 9},
        {"rtol": 0},
        {"estimate_rtol": -1},
        {"max_products": 3},
        {"eigenvalues": 52},
        {"eigenvalues": 0},
        {"ghost_batch_size": 48},
        {"micro_batch": 0},
        {"seed": 1.5},
        {"l2": -1},
    ],
)
def test_arguments_are_refused_before_anything_is_computed(arguments: dict[str, float]) -> None:
    calls = []

    def counted(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return F.cross_entropy(logits, labels)

    model = small_network(ghost=False)
    name = "units" if arguments == {"noise_draws": 5} else next(iter(arguments))
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got .*\. \w.*\."):
        measure(model, dataset(), criterion=counted, **{**QUICK, **arguments})  # type: ignore[arg-type]
    assert calls == []


def test_an_unknown_option_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(TypeError, match=r"measure: expected options among \['ghost_batch_size', .*, got \['unit'\]"):
        measure(mlp(), dataset(), unit=8)
    assert MeasurementOptions() == MeasurementOptions.from_keywords({})


def test_a_measurement_is_shown_in_a_line() -> None:
    text = repr(measure(mlp(), dataset(), **{**QUICK, "probes": 4, "steps": 10}))
    assert len(text) < 300
    assert text.startswith("<Measurement of 163 parameters: λ_max = ")
    assert all(name in text for name in ("tr H = ", "tr F = ", "tr(HF) = ", " ± "))
