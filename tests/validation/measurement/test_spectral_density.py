"""Krylov spaces of several starts, spectral densities and measures, traces."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import GHOST, dense_hessian, examples, skip_init, small_network

from noisysgd import theory
from noisysgd.validation.measurement.curvature import loss_gradient, loss_hessian_vector_product
from noisysgd.validation.measurement.gradient_noise import draw_ghost_batches, ghost_batch_gradients
from noisysgd.validation.measurement.lanczos import krylov
from noisysgd.validation.measurement.spectrum import spectral_density, spectral_measures
from noisysgd.validation.measurement.trace_estimators import hutch_plus_plus_trace, hutchinson_trace


def symmetric(spectrum, seed=0):
    spectrum = torch.as_tensor(spectrum, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=generator, dtype=torch.float64))
    return basis @ torch.diag(spectrum) @ basis.T


def product(matrix):
    return lambda vector: matrix @ vector


SKEWED = [20.0, 9.0, 4.0, *(np.linspace(-0.3, 1, 297) ** 3)]
"""Three outliers and a bulk around zero, as networks have it."""


# --- Krylov spaces ----------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 5))
def test_quadrature_is_exact_up_to_its_degree(seed, count, steps):
    generator = torch.Generator().manual_seed(seed)
    matrix = symmetric(torch.randn(25, generator=generator), seed)
    starts = torch.randn(count, 25, generator=generator, dtype=torch.float64)
    space = krylov(product(matrix), starts, count * steps)
    assert space.products == count * steps
    components = space.components(starts)
    for power in range(2 * steps):
        exact = starts @ torch.linalg.matrix_power(matrix, power) @ starts.T
        np.testing.assert_allclose((components * space.values**power) @ components.T, exact, atol=1e-8)
    residuals = [
        float((matrix @ y - value * y).norm())
        for value, y in zip(space.values, space.vectors(np.arange(space.products)), strict=True)
    ]
    np.testing.assert_allclose(residuals, space.residuals, atol=1e-10)


def test_dependent_starts_and_invariant_subspaces_end_the_space():
    matrix = symmetric([3.0, 2.0, 1.0, 0.0, 0.0, 0.0])
    start = matrix[0]
    space = krylov(product(matrix), torch.stack([start, 2 * start]), products=6)
    assert space.exhausted
    assert space.products == 3
    np.testing.assert_allclose(space.values, [3, 2, 1], atol=1e-9)


def test_single_precision_keeps_the_basis_orthogonal():
    matrix = symmetric([1e4, *np.linspace(0, 1, 199)]).float()
    starts = torch.randn(2, 200, generator=torch.Generator().manual_seed(0))
    space = krylov(product(matrix), starts, products=120)
    torch.testing.assert_close(space.basis @ space.basis.T, torch.eye(120), atol=1e-5, rtol=0)
    assert (np.abs(space.values - 1e4) < 1).sum() == 1  # no ghost copies of the outlier


# --- densities --------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=12, unique=True), st.integers(0, 2**32 - 1))
def test_with_enough_products_the_density_is_the_spectrum(spectrum, seed):
    size = len(spectrum)
    found = spectral_density(product(symmetric(spectrum, seed)), size, probes=size, steps=2, seed=seed)
    np.testing.assert_allclose(found.nodes, sorted(spectrum, reverse=True), atol=1e-9 * size)
    assert (found.weights == 1).all()
    assert found.converged
    assert found.moment(1).stderr == pytest.approx(0, abs=1e-9)


def test_outliers_count_one_and_have_no_sampling_error():
    found = spectral_density(product(symmetric(SKEWED)), 300, steps=12, seed=0)
    np.testing.assert_allclose(found.nodes[:3], SKEWED[:3], rtol=1e-6)
    assert found.single[:3].all()
    assert not found.single[3:6].any()
    assert (found.draws[:, :3] == 1).all()
    np.testing.assert_allclose(found.draws.sum(axis=1), 300)


def test_eigenvalues_that_repeat_are_not_taken_for_single_ones():
    many = spectral_density(product(torch.eye(50).double()), 50, seed=0)
    np.testing.assert_allclose(many.weights.sum(), 50)
    np.testing.assert_allclose(many.nodes, 1)
    assert not many.single.any()
    low_rank = [5.0, 4.0, *([0.0] * 98)]
    found = spectral_density(product(symmetric(low_rank)), 100, probes=2, steps=8, seed=0)
    assert found.weights[:2].tolist() == [1.0, 1.0]
    assert found.weights[np.abs(found.nodes) < 1e-8].sum() == pytest.approx(98)
    # Ten-fold: isolated and converged, but its weight is not that of a single eigenvalue.
    tenfold = spectral_density(product(symmetric([*([7.0] * 10), *np.linspace(0, 1, 90)])), 100, steps=6, seed=1)
    above = tenfold.above(3.0)
    assert abs(above.value - 10) < 5 * above.stderr
    assert above.value > 5


def test_error_bars_cover_the_truth_as_often_as_they_should():
    """Student's t with 7 degrees of freedom: 95 % within 2.365. Of 200 densities between 180 and 200 may be."""
    matrix, spectrum = symmetric(SKEWED), np.array(SKEWED)
    bulk = {"trace": float(spectrum.sum()), "square": float((spectrum**2).sum())}
    hits = dict.fromkeys(bulk, 0)
    for seed in range(200):
        found = spectral_density(product(matrix), 300, probes=8, steps=3, seed=seed)
        for name, power in (("trace", 1), ("square", 2)):
            estimate = found.moment(power)
            hits[name] += abs(estimate.value - bulk[name]) < 2.365 * estimate.stderr
    assert all(180 <= count < 200 for count in hits.values()), hits


def test_truncation_says_when_there_were_too_few_products():
    found = [spectral_density(product(symmetric(SKEWED)), 300, steps=steps, seed=0) for steps in (1, 3, 24)]
    assert math.isnan(found[0].truncation)
    assert found[1].truncation > 0.1 > found[2].truncation
    assert [density.converged for density in found] == [False, False, True]


def test_smoothing_keeps_the_number_of_eigenvalues_and_finds_the_bulk():
    found = spectral_density(product(symmetric(SKEWED)), 300, steps=16, seed=0)
    grid = np.linspace(-2, 23, 5001)
    density, error = found.smooth(grid, width=0.2)
    assert np.trapezoid(density, grid) == pytest.approx(300, rel=1e-3)
    exact = np.exp(-(((grid[:, None] - SKEWED) / 0.2) ** 2) / 2).sum(axis=1) / (0.2 * np.sqrt(2 * np.pi))
    assert (np.abs(density - exact) < 6 * error + 0.02 * exact.max()).all()


def test_the_density_is_a_theory_spectrum():
    spectrum = 1 / np.arange(1, 201)
    found = spectral_density(product(symmetric(spectrum)), 200, probes=8, steps=12, seed=0)
    problem = theory.measured_spectrum(np.maximum(found.nodes, 0), found.weights)
    exact = theory.NoisyQuadratic(spectrum, spectrum)
    options = {"learning_rate": 0.5, "batch_size": 8, "momentum": 0.9}
    one, other = (float(theory.expected_loss(p, theory.half_then_decay(300), **options)) for p in (problem, exact))
    assert one == pytest.approx(other, rel=0.1)
    assert float(theory.critical_learning_rate(problem)) == pytest.approx(2.0, rel=1e-6)


def test_lost_products_are_said_to_be_lost():
    found = spectral_density(lambda v: v * math.nan, 5, seed=0)
    assert np.isnan(found.nodes).all()
    assert not found.converged
    assert math.isnan(found.moment(1).value)
    assert not found.moment(1).converged
    units = torch.randn(8, 5)
    measures = spectral_measures(
        lambda v: v * math.nan, torch.ones(5), units, ghost_batch_size=1, dataset_size=9, noise_draws=2, seed=0
    )
    assert np.isnan(measures.gradient).all()
    assert np.isnan(measures.noise).all()


# --- measures of gradient and noise -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [small_network, skip_init])
def test_measures_are_those_of_the_dense_eigenbasis(make):
    model, (images, labels) = make().double(), examples(20)
    images = images.double()
    values, vectors = (x.flip(-1) for x in torch.linalg.eigh(dense_hessian(model, images, labels)))
    batches = draw_ghost_batches(20, ghost_batch_size=GHOST, units=24, seed=1)
    units = ghost_batch_gradients(model, images, labels, batches)
    slope = loss_gradient(model, images, labels)
    matvec = loss_hessian_vector_product(model, images, labels)
    sizes = {"ghost_batch_size": GHOST, "dataset_size": 20, "noise_draws": 3}
    found = spectral_measures(matvec, slope, units, **sizes, steps=len(values), seed=0)
    nodes = found.density.nodes
    gradient = (slope @ vectors) ** 2
    noise = torch.stack([(units[k::3] @ vectors).var(dim=0) * GHOST * 19 / 16 for k in range(3)])
    # Shifts of all logits, and of what normalisation takes out again, cost nothing: many curvatures are exactly zero.
    curved, exact = np.abs(nodes) > 1e-9, values.abs() > 1e-9
    assert exact.sum() > 30
    np.testing.assert_allclose(nodes[curved], values[exact], atol=1e-9)
    np.testing.assert_allclose(found.density.weights[curved], 1)
    assert found.density.weights.sum() == pytest.approx(len(values))
    np.testing.assert_allclose(found.gradient[curved], gradient[exact], atol=1e-9)
    np.testing.assert_allclose(found.noise[:, curved], noise[:, exact], atol=1e-9)
    np.testing.assert_allclose(found.noise.sum(axis=1), noise.sum(dim=1))


def test_truncated_noise_is_unbiased_and_keeps_its_trace():
    """Averaged over signs, Σ F λ^k is tr(H^k F) of the sample covariance; 300 seeds, four standard errors."""
    matrix = symmetric(SKEWED[:3] + SKEWED[3::10])
    size = len(matrix)
    generator = torch.Generator().manual_seed(2)
    units = torch.randn(40, size, generator=generator, dtype=torch.float64) @ (matrix + 0.2 * torch.eye(size))
    covariances = [units[k::2].T.cov() * 4 * 99 / 96 for k in range(2)]
    sizes = {"ghost_batch_size": 4, "dataset_size": 100, "noise_draws": 2, "probes": 2, "steps": 2}
    found = [spectral_measures(product(matrix), units.mean(dim=0), units, **sizes, seed=seed) for seed in range(300)]
    for k, covariance in enumerate(covariances):
        np.testing.assert_allclose([f.noise[k].sum() for f in found], float(covariance.trace()))
        for power in (1, 2):
            draws = np.array([f.noise[k] @ f.density.nodes**power for f in found])
            exact = float((torch.linalg.matrix_power(matrix, power) @ covariance).trace())
            assert abs(draws.mean() - exact) < 4 * draws.std() / np.sqrt(300) + 1e-6 * exact


# --- traces -----------------------------------------------------------------------------------------------------


def test_hutchinson_has_the_mean_and_the_variance_of_its_formula():
    """400 estimates: the mean within four standard errors, the spread (known to 3.5 %) within 15 %."""
    matrix = symmetric(SKEWED)
    found = [hutchinson_trace(product(matrix), 300, probes=4, seed=seed) for seed in range(400)]
    values = np.array([estimate.value for estimate in found])
    variance = 2 * float(matrix.square().sum() - matrix.diagonal().square().sum()) / 4
    assert abs(values.mean() - sum(SKEWED)) < 4 * math.sqrt(variance / 400)
    assert values.std() == pytest.approx(math.sqrt(variance), rel=0.15)
    assert np.sqrt(np.mean([e.stderr**2 for e in found])) == pytest.approx(math.sqrt(variance), rel=0.15)


def test_hutch_plus_plus_is_unbiased_and_better_where_few_eigenvalues_stand_out():
    matrix = symmetric(SKEWED)
    one = np.array([hutchinson_trace(product(matrix), 300, probes=30, seed=seed).value for seed in range(200)])
    found = [hutch_plus_plus_trace(product(matrix), 300, products=30, seed=seed) for seed in range(200)]
    other = np.array([estimate.value for estimate in found])
    assert abs(other.mean() - sum(SKEWED)) < 4 * other.std() / math.sqrt(200)
    assert other.std() < 0.6 * one.std()
    assert np.sqrt(np.mean([e.stderr**2 for e in found])) == pytest.approx(other.std(), rel=0.25)


def test_hutch_plus_plus_spends_what_it_is_given_and_is_exact_with_enough():
    spent = []

    def counted(vector):
        spent.append(1)
        return matrix @ vector

    matrix = symmetric([3.0, -1.0, 0.5, 2.0])
    assert hutch_plus_plus_trace(counted, 4, products=6, seed=0).stderr > 0
    assert len(spent) == 6
    exact = hutch_plus_plus_trace(product(matrix), 4, products=12, seed=0)
    assert exact.value == pytest.approx(4.5)
    assert exact.stderr == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectral_density(product(torch.eye(3)), 3, probes=1, seed=0), "probes"),
        (lambda: spectral_density(product(torch.eye(3)), 3, steps=0, seed=0), "steps"),
        (lambda: spectral_density(product(torch.eye(3)), 3, seed=-1), "seed"),
        (lambda: hutchinson_trace(product(torch.eye(3)), 3, probes=1, seed=0), "probes"),
        (lambda: hutch_plus_plus_trace(product(torch.eye(3)), 3, products=5, seed=0), "products"),
        (lambda: krylov(product(torch.eye(3)), torch.ones(2, 3), 1), "products"),
        (
            lambda: spectral_measures(
                product(torch.eye(3)), torch.ones(3), torch.ones(7, 3), ghost_batch_size=1, dataset_size=9, seed=0
            ),
            "units: expected at least two for each of 4 draws, got 7",
        ),
        (lambda: spectral_density(product(torch.eye(3).double()), 3, seed=0).smooth([0.0], width=0.0), "width"),
        (lambda: spectral_density(product(torch.eye(3).double()), 3, seed=0).moment(-1), "power"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
