import copy
import itertools
import json
import math

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import (
    GHOST,
    dataset,
    dense_hessian,
    examples,
    flat_gradient,
    flat_loss,
    seeded,
    skip_init,
    small_network,
)
from torch import nn

from noisysgd.validation.configuration import TrainConfig
from noisysgd.validation.data.datasets import load_dataset
from noisysgd.validation.measurement import curvature
from noisysgd.validation.measurement.curvature import flatten, loss_hessian_vector_product
from noisysgd.validation.measurement.gradient_noise import draw_ghost_batches, ghost_batch_gradients, gradient_noise
from noisysgd.validation.measurement.lanczos import Eigenvalue, MatrixVectorProduct, largest_eigenvalue
from noisysgd.validation.measurement.measurement import measure, recorder
from noisysgd.validation.networks.ghost_batch_norm import GhostBatchNorm2d
from noisysgd.validation.networks.wide_resnet import WideResNet
from noisysgd.validation.training.loop import train


def product_of(matrix: torch.Tensor) -> MatrixVectorProduct:
    return lambda vector: matrix @ vector


# --- largest eigenvalue -----------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=1, max_size=12),
    st.integers(0, 2**32 - 1),
    st.integers(2, 14),
)
def test_the_residual_bounds_the_error_and_the_value_is_a_lower_bound(
    spectrum: list[float], seed: int, max_products: int
) -> None:
    size = len(spectrum)
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    matrix = basis @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ basis.T
    found = largest_eigenvalue(product_of(matrix), size, seed=seed, rtol=1e-9, max_products=max_products)
    rounding = 1e-12 * (1 + max(abs(value) for value in spectrum))
    assert found.value <= max(spectrum) + rounding
    assert min(abs(found.value - value) for value in spectrum) <= found.residual + rounding
    assert found.converged == (found.residual <= 1e-9 * abs(found.value))
    assert found.products <= max_products


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.floats(-20, 20))
def test_it_is_the_algebraically_largest_one(seed: int, size: int, shift: float) -> None:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix = matrix + matrix.T + shift * torch.eye(size, dtype=torch.float64)  # often with a dominant negative end
    expected = float(torch.linalg.eigvalsh(matrix)[-1])
    found = largest_eigenvalue(product_of(matrix), size, seed=seed, rtol=1e-8, max_products=60)
    assert found.value == pytest.approx(expected, abs=1e-6 * max(1.0, abs(expected)))


def test_running_out_of_products_is_said() -> None:
    spectrum = torch.linspace(0, 1, 500, dtype=torch.float64)
    found = largest_eigenvalue(lambda v: spectrum * v, 500, seed=0, rtol=1e-6, max_products=5)
    assert not found.converged
    assert found.products == 5
    assert found.residual > 1e-6


def test_single_precision_converges_to_its_own_accuracy() -> None:
    spectrum = torch.linspace(-1, 1, 500) ** 3
    found = largest_eigenvalue(lambda v: spectrum * v, 500, seed=0, rtol=1e-4, dtype=torch.float32)
    assert found.converged
    assert found.value == pytest.approx(1.0, abs=2e-4)


def test_nan_products_give_a_nan_eigenvalue_and_the_zero_matrix_zero() -> None:
    assert math.isnan(largest_eigenvalue(lambda v: v * math.nan, 5, seed=0).value)
    assert largest_eigenvalue(lambda v: v * 0, 5, seed=0) == Eigenvalue(0.0, 0.0, True, 2)


@pytest.mark.parametrize("arguments", [{"dimension": 0}, {"max_products": 1}, {"rtol": 0.0}])
def test_bad_arguments_are_named(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        largest_eigenvalue(lambda v: v, **{"dimension": 3, "seed": 0, **arguments})  # type: ignore[arg-type]


# --- Hessian-vector products ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ghost", [True, False])
@pytest.mark.parametrize("micro_batch", [None, GHOST, 2 * GHOST])
def test_products_are_those_of_the_dense_hessian(ghost: bool, micro_batch: int | None) -> None:
    model = small_network(ghost=ghost).double()
    images, labels = examples(20)
    images = images.double()
    product = loss_hessian_vector_product(model, images, labels, micro_batch=micro_batch, l2=0.25)
    dense = dense_hessian(model, images, labels)
    columns = torch.stack([product(unit) for unit in torch.eye(len(dense), dtype=torch.float64)])
    torch.testing.assert_close(columns, dense + 0.25 * torch.eye(len(dense), dtype=torch.float64))
    found = largest_eigenvalue(product, len(dense), seed=0, rtol=1e-6)
    assert found.value == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]) + 0.25, rel=1e-6)


def test_products_stay_at_the_parameters_they_were_made_at() -> None:
    model, (images, labels) = small_network(), examples(8)
    product = loss_hessian_vector_product(model, images, labels, micro_batch=GHOST)
    vector = torch.ones(sum(p.numel() for p in model.parameters()))
    before = product(vector)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    assert torch.equal(product(vector), before)


def test_unused_and_frozen_parameters_are_welcome() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.frozen = nn.Linear(16, 3), nn.Linear(2, 2), nn.Linear(3, 3)
            self.frozen.requires_grad_(False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.frozen(self.used(images.flatten(1)))
            return logits

    model = Odd()
    product = loss_hessian_vector_product(model, *examples(8))
    result = product(torch.ones(51 + 6))
    assert bool(result[:51].any())
    assert not bool(result[51:].any())
    with pytest.raises(ValueError, match="model: expected trainable parameters"):
        loss_hessian_vector_product(model.requires_grad_(False), *examples(8))


def test_the_loss_is_the_training_mode_one_without_dropout_whatever_the_mode() -> None:
    vector, (images, labels) = torch.ones(51), examples(8)
    expected = loss_hessian_vector_product(small_network(), images, labels)(vector)
    assert torch.equal(loss_hessian_vector_product(small_network().eval(), images, labels)(vector), expected)
    assert torch.equal(loss_hessian_vector_product(small_network(dropout=0.5), images, labels)(vector), expected)


def test_a_model_that_draws_random_numbers_does_not_move_the_global_generator() -> None:
    class Noisy(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images + torch.rand_like(images)

    before = torch.random.get_rng_state()
    model = nn.Sequential(Noisy(), small_network())
    torch.random.set_rng_state(before)
    loss_hessian_vector_product(model, *examples(8), micro_batch=GHOST)(torch.ones(51))
    assert torch.equal(torch.random.get_rng_state(), before)


# --- gradient noise ---------------------------------------------------------------------------------------------


def enumerated_units(model: nn.Module, count: int, ghost: int) -> torch.Tensor:
    images, labels = examples(count)
    subsets = np.array(list(itertools.combinations(range(count), ghost)))
    return ghost_batch_gradients(model.double(), images.double(), labels, subsets)


@pytest.mark.parametrize("ghost_norm", [True, False])
@pytest.mark.parametrize("products", [2, 3])
def test_the_estimates_are_exactly_unbiased(products: int, ghost_norm: bool) -> None:
    # Every possible draw of three units is visited, so expectations are exact and no tolerance hides a bias.
    count, ghost = (5, 4) if ghost_norm else (4, 2)
    units = enumerated_units(small_network(ghost=ghost_norm), count, ghost)
    hessian = dense_hessian(small_network(ghost=ghost_norm).double(), examples(8)[0].double(), examples(8)[1])
    mean, spread = units.mean(dim=0), units - units.mean(dim=0)
    covariance = spread.T @ spread / len(units)
    factor = ghost * (count - 1) / (count - ghost)
    expected = {
        "trace_noise": factor * torch.trace(covariance),
        "gradient_norm_squared": mean @ mean,
        "noise_curvature_trace": factor * torch.trace(hessian @ covariance),
        "gradient_curvature": mean @ hessian @ mean,
    }
    draws = [
        gradient_noise(
            units[list(draw)],
            product_of(hessian),
            ghost_batch_size=ghost,
            dataset_size=count,
            products=products,
        )
        for draw in itertools.product(range(len(units)), repeat=3)
    ]
    for name, value in expected.items():
        assert np.mean([getattr(draw, name).value for draw in draws]) == pytest.approx(float(value), rel=1e-9), name


def test_trace_noise_is_the_covariance_of_one_example_where_examples_are_independent() -> None:
    model, count, ghost = small_network(ghost=False), 6, 2
    singles, pairs = enumerated_units(model, count, 1), enumerated_units(model, count, ghost)
    of_one = (singles - singles.mean(dim=0)).square().sum(dim=1).mean()
    of_two = (pairs - pairs.mean(dim=0)).square().sum(dim=1).mean()
    torch.testing.assert_close(of_two * ghost * (count - 1) / (count - ghost), of_one)


def test_standard_errors_are_the_spread_of_repeated_measurements() -> None:
    generator = torch.Generator().manual_seed(11)
    curvature = torch.linspace(-0.2, 2.0, 12, dtype=torch.float64)
    names = ("trace_noise", "gradient_norm_squared", "gradient_curvature", "simple_noise_scale", "noise_scale")
    values: dict[str, list[float]] = {name: [] for name in names}
    errors: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(400):
        units = 1 + torch.randn(60, 12, generator=generator, dtype=torch.float64)
        found = gradient_noise(units, lambda v: curvature * v, ghost_batch_size=4, dataset_size=1000, products=20)
        for name in names:
            values[name].append(getattr(found, name).value)
            errors[name].append(getattr(found, name).stderr)
    for name in names:
        # The standard deviation of 400 draws is known to 3.5 %; the jackknife errs on the large side.
        ratio = np.sqrt(np.mean(np.square(errors[name]))) / np.std(values[name])
        assert 0.85 < ratio < 1.35, (name, ratio)


def test_the_ghost_batch_is_the_unit() -> None:
    model, (images, labels) = small_network().double(), examples(12)
    batches = draw_ghost_batches(12, ghost_batch_size=GHOST, units=3, seed=0)
    gradients = ghost_batch_gradients(model, images.double(), labels, batches, l2=0.5)
    for row, batch in zip(gradients, batches, strict=True):
        model.zero_grad()
        F.cross_entropy(model(images.double()[batch]), labels[batch]).backward()
        slopes = flatten([p.grad for p in model.parameters() if p.grad is not None])
        torch.testing.assert_close(row, slopes + 0.5 * flatten(list(model.parameters())))


def test_units_are_subsets_and_more_units_extend_the_draw() -> None:
    few = draw_ghost_batches(9, ghost_batch_size=4, units=5, seed=2)
    many = draw_ghost_batches(9, ghost_batch_size=4, units=20, seed=2)
    assert (many[:5] == few).all()
    assert all(len(set(unit)) == 4 for unit in many.tolist())
    assert set(many.ravel()) == set(range(9))


def test_a_gradient_lost_in_noise_is_reported_not_clamped() -> None:
    units = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    found = gradient_noise(units, lambda v: v, ghost_batch_size=1, dataset_size=10)
    assert found.gradient_norm_squared.value == pytest.approx(-1 / 3)
    assert found.gradient_curvature.value == pytest.approx(-1 / 3)
    assert not found.simple_noise_scale_defined
    assert not found.noise_scale_defined
    assert math.isnan(found.simple_noise_scale.value)
    assert math.isnan(found.noise_scale.stderr)


def test_noise_scales_are_defined_where_their_denominator_stands_out() -> None:
    """A mean of 1 in one direction among noise: of |G|² and GᵀHG, what is within two errors of zero divides nothing."""
    generator = torch.Generator().manual_seed(4)
    seen = set()
    for k in range(200):
        units = torch.randn(16, 8, generator=generator, dtype=torch.float64)
        units[:, 0] += k / 200
        found = gradient_noise(units, lambda v: v, ghost_batch_size=1, dataset_size=10**6, products=8)
        pairs = (
            (found.gradient_norm_squared, found.simple_noise_scale, found.simple_noise_scale_defined),
            (found.gradient_curvature, found.noise_scale, found.noise_scale_defined),
        )
        for denominator, ratio, defined in pairs:
            assert defined == (denominator.value > 2 * denominator.stderr)
            assert math.isnan(ratio.value) == math.isnan(ratio.stderr) == (not defined)
            seen.add((denominator.value > 0, defined))
    assert seen == {(False, False), (True, False), (True, True)}


def test_sixteen_units_meet_the_hessian_by_default_or_all_if_fewer() -> None:
    options = {"probes": 0, "sharpness_batches": 0, "eigenvalues": 1}
    for units, products in ((20, 16), (8, 8)):
        found = measure(small_network(), dataset(), units=units, **options)
        assert found.hessian_products == found.lambda_max.products + products + 1


@pytest.mark.parametrize(
    ("units", "arguments", "message"),
    [
        (2, {}, "units"),
        (4, {"products": 1}, "products"),
        (4, {"products": 5}, "products: expected at most the 4 units"),
        (4, {"ghost_batch_size": 10}, "ghost_batch_size: expected < 10"),
    ],
)
def test_too_little_data_is_refused(units: int, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradient_noise(torch.ones(units, 2), lambda v: v, **{"ghost_batch_size": 2, "dataset_size": 10, **arguments})


# --- the whole measurement --------------------------------------------------------------------------------------


def snapshot(model: nn.Module) -> list[object]:
    tensors = [*model.state_dict(keep_vars=True).items()]
    state = [(n, id(t), t.requires_grad, t.detach().numpy().tobytes(), t._version) for n, t in tensors]
    slopes = [None if p.grad is None else (id(p.grad), p.grad.numpy().tobytes()) for p in model.parameters()]
    return [state, slopes, [module.training for module in model.modules()], torch.random.get_rng_state().tolist()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["wide_resnet", "batch_norm", "dropout"])
def test_the_model_and_the_global_generator_are_left_as_found(kind: str, training: bool) -> None:
    model: nn.Module
    if kind == "wide_resnet":
        model = WideResNet(10, 1, 3, 1, ghost_batch_size=GHOST)
    elif kind == "batch_norm":
        model = seeded(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)))
    else:
        model = small_network(dropout=0.5)
    parameters = list(model.parameters())
    F.cross_entropy(model(examples(8)[0]), examples(8)[1]).backward()
    parameters[0].requires_grad_(False)
    parameters[1].grad = None
    model.train(training)
    next(iter(model.children())).train(not training)
    before = snapshot(model)
    first = measure(model, dataset(), ghost_batch_size=GHOST, units=8, products=2, steps=2)
    assert snapshot(model) == before
    again = measure(model, dataset(), ghost_batch_size=GHOST, units=8, products=2, steps=2)
    assert {**first.as_dict(), "seconds": 0} == {**again.as_dict(), "seconds": 0}


def test_a_measurement_is_what_brute_force_finds() -> None:
    model, data = small_network(), dataset(6)
    options = {"probes": 0, "eigenvalues": 1}
    found = measure(
        model, data, ghost_batch_size=GHOST, curvature_examples=GHOST, units=8, products=5, rtol=1e-4, **options
    )
    # With a single ghost batch behind H, its examples are all that the seeded shuffle decides: try every subset.
    tops = []
    for subset in map(list, itertools.combinations(range(6), GHOST)):
        hessian = dense_hessian(model, data.train_images[subset], data.train_labels[subset])
        tops.append(float(torch.linalg.eigvalsh(hessian)[-1]))
    assert np.min(np.abs(np.array(tops) - found.lambda_max.value)) < 2e-4 * found.lambda_max.value
    assert found.curvature_examples == GHOST
    assert found.hessian_products == found.lambda_max.products + 6
    assert found.parameters == sum(p.numel() for p in model.parameters())


def test_records_are_strict_json_of_plain_values() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    nn.init.constant_(model[1].weight, math.nan)  # a diverged run
    found = measure(model, dataset(), ghost_batch_size=4)
    record = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert record["lambda_max"]["value"] is None
    assert record["lambda_max"]["converged"] is False
    assert record["B_simple"] == {"value": None, "stderr": None, "converged": False}
    assert record == found.as_dict()


def test_a_ragged_end_is_left_out_of_the_curvature() -> None:
    found = measure(small_network(), dataset(19), ghost_batch_size=GHOST, units=4, products=2, noise_draws=2)
    assert found.curvature_examples == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ghost_batch_size": 0}, "ghost_batch_size"),
        ({"ghost_batch_size": 4.5}, "ghost_batch_size"),
        ({"curvature_examples": 3}, "curvature_examples"),
        ({"curvature_examples": 49}, "curvature_examples: expected at most 48"),
        ({"micro_batch": 6}, "micro_batch: expected a multiple of ghost_batch_size=4"),
        ({"seed": -1}, "seed"),
        ({"units": 2}, "units"),
    ],
)
def test_bad_measurements_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(small_network(), dataset(), **{"ghost_batch_size": GHOST, **arguments})  # type: ignore[arg-type]


def test_the_unit_of_noise_is_the_models_own_ghost_batch() -> None:
    data = load_dataset("digits")
    options = {"units": 8, "products": 2, "curvature_examples": 64, "eigenvalues": 1, "max_products": 3, "probes": 0}
    model = WideResNet(10, 1, classes=10, channels=1, ghost_batch_size=32, seed=0)
    assert measure(model, data, **options).ghost_batch_size == 32
    assert measure(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data, **options).ghost_batch_size == 1
    mixed = nn.Sequential(GhostBatchNorm2d(1, 4), GhostBatchNorm2d(1, 8), nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ValueError, match=r"GhostBatchNorm2d layers of one ghost batch size, got \[4, 8\]"):
        measure(mixed, data, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_large_eigenvalue_among_many_equal_ones_is_found(dtype: torch.dtype) -> None:
    """A random start is nearly an eigenvector of the bulk: its small residual must not be believed at once."""
    spectrum = torch.ones(100_000, dtype=dtype)
    spectrum[777] = 2.0
    found = largest_eigenvalue(lambda v: spectrum * v, 100_000, seed=0, rtol=1e-2, dtype=dtype)
    assert found.converged
    assert found.value == pytest.approx(2.0, rel=1e-2)


# --- everything at once, beside dense matrices ------------------------------------------------------------------


def groupings(count: int) -> list[list[int]]:
    """Every way to put `count` = 8 examples into two ghost batches."""
    firsts = [list(c) for c in itertools.combinations(range(count), GHOST) if 0 in c]
    return [first + [k for k in range(count) if k not in first] for first in firsts]


@pytest.mark.parametrize("kind", ["ghost_batch", "skip_init", "wide_resnet"])
def test_all_of_a_measurement_is_that_of_dense_hessians_and_full_covariances(kind: str) -> None:
    """Float32, so to 1e-3 of the largest eigenvalue; what is sampled, to five standard errors."""
    make = {"ghost_batch": small_network, "skip_init": skip_init, "wide_resnet": narrow_wide_resnet}[kind]
    model, data = make(), dataset(8)
    options = {"units": 200, "products": 200, "eigenvectors": True, "sharpness_batches": 200, "max_products": 60}
    found = measure(model, data, ghost_batch_size=GHOST, **options, steps=20)
    double = make().double()
    images, labels = data.train_images.double(), data.train_labels
    # The seeded shuffle decides who shares a ghost batch: one of the 35 ways must explain all that depends on it.
    orders = [list(range(8))] if kind == "skip_init" else groupings(8)
    slopes = [flat_gradient(double, images[order], labels[order]) for order in orders]
    lengths = np.array([float(slope.square().sum()) for slope in slopes])
    chosen = int(np.argmin(np.abs(lengths - found.spectrum.gradient.sum())))
    hessian, slope = dense_hessian(double, images[orders[chosen]], labels[orders[chosen]]), slopes[chosen]
    values = torch.linalg.eigvalsh(hessian).flip(0).numpy()
    near = 1e-3 * values[0]
    np.testing.assert_allclose([pair.value for pair in found.eigenvalues], values[:3], atol=near)
    assert found.lambda_max.converged
    for pair, vector in zip(found.eigenvalues, found.eigenvectors.double(), strict=True):
        assert float((hessian @ vector - pair.value * vector).norm()) < pair.residual + near
    spectrum = found.spectrum
    if found.parameters < 9 * 20:  # the Krylov space is everything that is curved
        assert found.trace_curvature.value == pytest.approx(float(hessian.trace()), abs=10 * near)
        assert found.trace_curvature.converged
        assert spectrum.density.converged
    else:
        assert abs(found.trace_curvature.value - float(hessian.trace())) < 5 * found.trace_curvature.stderr
    for power in (0, 1, 2):  # Σ g² λ^k = gᵀH^k g
        exact = float(slope @ torch.linalg.matrix_power(hessian, power) @ slope)
        assert spectrum.gradient @ spectrum.density.nodes**power == pytest.approx(exact, rel=2e-3)
    units = ghost_batch_gradients(double, images, labels, np.array(list(itertools.combinations(range(8), GHOST))))
    covariance = units.T.cov(correction=0) * GHOST * 7 / 4
    mean = units.mean(dim=0)
    expected = {
        "trace_noise": covariance.trace(),
        "gradient_norm_squared": mean @ mean,
        "noise_curvature_trace": (hessian @ covariance).trace(),
        "gradient_curvature": mean @ hessian @ mean,
        "B_simple": covariance.trace() / (mean @ mean),
        "B_noise": (hessian @ covariance).trace() / (mean @ hessian @ mean),
    }
    for name, value in expected.items():
        estimate = getattr(found, name)
        assert abs(estimate.value - float(value)) < 5 * estimate.stderr, name
        assert estimate.converged == (estimate.stderr <= 0.1 * abs(estimate.value))
    for power, exact in enumerate((covariance.trace(), (hessian @ covariance).trace())):
        draws = spectrum.noise @ spectrum.density.nodes**power
        assert abs(draws.mean() - float(exact)) < 8 * draws.std(ddof=1) / 2  # Student's t, 3 degrees: once in 250
    rayleigh = []
    for unit, batch in zip(units, itertools.combinations(range(8), GHOST), strict=True):
        loss, start = flat_loss(double, images[list(batch)], labels[list(batch)])
        _, bent = torch.autograd.functional.vhp(loss, start, unit)
        rayleigh.append(float(bent @ unit / unit.square().sum()))
    assert abs(found.batch_sharpness.value - np.mean(rayleigh)) < 5 * found.batch_sharpness.stderr


def narrow_wide_resnet() -> nn.Module:
    """Ghost batch norm in a residual network with a learned scale for every layer, as deep as dense matrices allow."""
    generator = torch.Generator().manual_seed(5)
    layers = (
        nn.Conv2d(1, 3, 3, padding=1, bias=False),
        GhostBatchNorm2d(3, GHOST),
        nn.ReLU(),
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        GhostBatchNorm2d(4, GHOST),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.7, generator=generator)
    return model


def test_the_running_averages_do_not_enter_the_measurement() -> None:
    """Power: the Hessian of evaluation mode, which they do enter, is another one."""
    model, data = small_network(), dataset()
    options = {"units": 8, "products": 2, "probes": 0, "sharpness_batches": 2}
    before = measure(model, data, ghost_batch_size=GHOST, **options)
    model[1].running_mean += 1.0
    model[1].running_var *= 0.01
    after = measure(model.eval(), data, ghost_batch_size=GHOST, **options)
    assert {**before.as_dict(), "seconds": 0} == {**after.as_dict(), "seconds": 0}
    evaluated = dense_hessian(model, data.train_images, data.train_labels)
    assert abs(float(torch.linalg.eigvalsh(evaluated)[-1]) / before.lambda_max.value - 1) > 0.3


def test_a_run_is_measured_at_the_steps_asked_for_and_stays_the_same_run() -> None:
    data, states = load_dataset("digits"), []
    options = {"units": 8, "products": 2, "curvature_examples": 32, "max_products": 9, "sharpness_batches": 2}
    options |= {"steps": 2, "probes": 2, "noise_draws": 2}
    config = TrainConfig(learning_rate=0.5, batch_size=64, steps=6)
    watched = train(config, observe=recorder(data, states, **options), observe_at=(0, 3, 6))
    plain = train(config)
    assert [state["step"] for state in states] == [0, 3, 6]
    assert {**watched, "seconds": 0} == {**plain, "seconds": 0}
    assert len({state["lambda_max"]["value"] for state in states}) == 3
    for state in states:
        assert state == json.loads(json.dumps(state, allow_nan=False))
        assert len(state["spectrum"]["density"]["nodes"]) == 10
        assert len(state["eigenvalues"]) == 3


def test_regularized_skipinit_is_measured_in_training_as_another_library_has_it() -> None:
    """The paper's network without normalisation, at two steps: its Hessian by scipy's Lanczos on double backward in
    float64, its noise from the gradients of all single examples."""
    data, seen = load_dataset("digits", subset=96), []
    options = {"units": 96, "products": 2, "probes": 0, "sharpness_batches": 2, "max_products": 60, "rtol": 1e-3}

    def look(step: int, model: nn.Module) -> None:
        seen.append((measure(model, data, **options), copy.deepcopy(model).double()))

    network = {"normalization": "skipinit", "dropout": 0.5, "ghost_batch_size": 1, "subset": 96}
    train(TrainConfig(learning_rate=0.05, batch_size=32, steps=4, **network), observe=look, observe_at=(0, 4))
    for found, model in seen:
        model.eval()  # no dropout; there is nothing else that evaluation changes
        parameters = [p for p in model.parameters() if p.requires_grad]
        images, labels = data.train_images.double(), data.train_labels
        slope = torch.autograd.grad(F.cross_entropy(model(images), labels), parameters, create_graph=True)

        def product(vector: np.ndarray, parameters=parameters, slope=slope) -> np.ndarray:
            pieces = torch.split(torch.from_numpy(vector.reshape(-1)), [p.numel() for p in parameters])
            along = sum((g * piece.view_as(g)).sum() for g, piece in zip(slope, pieces, strict=True))
            return flatten(torch.autograd.grad(along, parameters, retain_graph=True)).numpy()

        size = sum(p.numel() for p in parameters)
        assert found.parameters == size
        expected = scipy.sparse.linalg.eigsh(
            scipy.sparse.linalg.LinearOperator((size, size), product, dtype=np.float64),
            k=1,
            which="LA",
            tol=1e-6,
            return_eigenvectors=False,
        )
        assert found.lambda_max.converged
        assert found.lambda_max.value == pytest.approx(float(expected[0]), rel=2e-3)
        each = [
            torch.autograd.grad(F.cross_entropy(model(x[None]), y[None]), parameters)
            for x, y in zip(images, labels, strict=True)
        ]
        gradients = torch.stack([flatten(g) for g in each])
        trace = float(gradients.var(dim=0, correction=0).sum())
        assert abs(found.trace_noise.value - trace) < 5 * found.trace_noise.stderr
        assert found.trace_noise.stderr < 0.3 * trace
    assert seen[0][0].lambda_max.value != pytest.approx(seen[1][0].lambda_max.value, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eigenvalues": 0}, "eigenvalues: expected an integer"),
        ({"probes": 1}, "probes"),
        ({"noise_draws": 1}, "noise_draws"),
        ({"sharpness_batch_size": 6}, "sharpness_batch_size: expected a multiple of ghost_batch_size=4"),
        ({"sharpness_batch_size": 52}, "sharpness_batch_size"),
        ({"sharpness_batches": 1}, "batches: expected at least two"),
    ],
)
def test_bad_sizes_of_the_newer_parts_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(small_network(), dataset(), ghost_batch_size=GHOST, units=8, products=2, steps=1, **arguments)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_a_gpu_measures_what_the_cpu_measures_however_much_fits_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    data, options = (
        load_dataset("digits"),
        {"units": 8, "products": 2, "probes": 0, "sharpness_batches": 0, "rtol": 1e-3},
    )
    model = WideResNet(10, 1, classes=10, channels=1, ghost_batch_size=16, seed=1)
    here = measure(model.double(), data, **options)
    there = measure(model.float().to("cuda"), data, **options)
    monkeypatch.setattr(curvature, "SHARE_OF_MEMORY", 1e-6)  # one ghost batch at a time
    pieces = measure(model, data, **options)
    for found in (there, pieces):
        assert found.lambda_max.value == pytest.approx(here.lambda_max.value, rel=5e-3)
        assert found.trace_noise.value == pytest.approx(here.trace_noise.value, rel=1e-3)
