"""Several eigenpairs at once, gradients and products of any loss, batch sharpness; beside an independent library."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import GHOST, dense_hessian, examples, flat_gradient, skip_init, small_network
from torch import nn

from noisysgd.validation.measurement.curvature import loss_gradient, loss_hessian_vector_product
from noisysgd.validation.measurement.gradient_noise import draw_ghost_batches, ghost_batch_gradients
from noisysgd.validation.measurement.lanczos import leading_eigenpairs
from noisysgd.validation.measurement.sharpness import batch_sharpness, stability
from noisysgd.validation.measurement.spectrum import spectral_density
from noisysgd.validation.measurement.trace_estimators import hutch_plus_plus_trace
from noisysgd.validation.measurement.uncertainty import Estimate

# --- leading eigenpairs -----------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 5))
def test_leading_eigenpairs_are_those_of_the_dense_matrix(seed, size, count):
    count = min(count, size)
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix = matrix + matrix.T
    found = leading_eigenpairs(lambda v: matrix @ v, size, count, seed=seed, rtol=1e-9, max_products=80)
    values, _ = torch.linalg.eigh(matrix)
    expected = values.flip(0)[:count].numpy()
    np.testing.assert_allclose([pair.value for pair in found.values], expected, atol=1e-6 * float(values.abs().max()))
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(count, dtype=torch.float64))
    for pair, vector in zip(found.values, found.vectors, strict=True):
        assert float((matrix @ vector - pair.value * vector).norm()) == pytest.approx(pair.residual, abs=1e-10)
    assert {pair.products for pair in found.values} == {found.products}


def test_more_eigenvalues_than_one_start_can_reach_are_found_from_another():
    spectrum = torch.tensor([3.0, 3.0, 1.0, 1.0], dtype=torch.float64)
    found = leading_eigenpairs(lambda v: spectrum * v, 4, 4, seed=0)
    assert [round(pair.value, 9) for pair in found.values] == [3.0, 3.0, 1.0, 1.0]
    few = leading_eigenpairs(lambda v: spectrum * v, 4, 3, seed=0, max_products=4)
    assert [pair.converged for pair in few.values] == [False] * 3
    assert np.isnan(few.values[1].value)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"count": 4}, "count: expected at most"), ({"max_products": 2}, "max_products")]
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        leading_eigenpairs(lambda v: v, **{"dimension": 3, "count": 2, "seed": 0, **arguments})


# --- gradients and products of any loss -------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [None, GHOST])
@pytest.mark.parametrize("make", [small_network, skip_init])
def test_the_gradient_is_that_of_the_flat_loss(make, micro_batch):
    model, (images, labels) = make(), examples(20)
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    expected = flat_gradient(model, images, labels) + 0.25 * start
    torch.testing.assert_close(loss_gradient(model, images, labels, l2=0.25, micro_batch=micro_batch), expected)


def test_another_criterion_has_its_own_gradient_and_hessian():
    """Squared error of a linear layer: H = X'X/N for every class, exactly."""
    images, labels = examples(20)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False))

    def squared(logits, labels):
        return 0.5 * (logits - F.one_hot(labels, 3)).square().sum(dim=1).mean()

    product = loss_hessian_vector_product(model, images, labels, criterion=squared)
    x = images.flatten(1)
    vector = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(product(vector.flatten()), (vector @ x.T @ x / 20).flatten())
    residual = model(images) - F.one_hot(labels, 3)
    expected = (residual.T @ x / 20).flatten().detach()
    torch.testing.assert_close(loss_gradient(model, images, labels, criterion=squared), expected)
    single = ghost_batch_gradients(model, images, labels, np.arange(20)[:, None], criterion=squared)
    torch.testing.assert_close(single.mean(dim=0), expected)


# --- batch sharpness --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [GHOST, 2 * GHOST])
@pytest.mark.parametrize("make", [small_network, skip_init])
def test_batch_sharpness_is_that_of_dense_hessians_of_the_batches(make, size):
    model, (images, labels) = make().double(), examples(9)
    images = images.double()
    batches = np.array(list(itertools.combinations(range(9), size)))[:20]
    expected = []
    for batch in batches:
        slope = flat_gradient(model, images[batch], labels[batch])
        hessian = dense_hessian(model, images[batch], labels[batch])
        expected.append(float(slope @ hessian @ slope / slope.square().sum()))
    found = batch_sharpness(model, images, labels, batches)
    assert found.value == pytest.approx(np.mean(expected), rel=1e-9)
    assert found.stderr == pytest.approx(np.std(expected, ddof=1) / np.sqrt(len(batches)), rel=1e-9)
    assert batch_sharpness(model, images, labels, batches, rtol=10.0).converged


def test_gradient_descent_at_the_edge_has_a_stability_of_one():
    """A full batch that moves along the leading eigenvector of a quadratic: sharpness λ_max, edge 2/λ_max."""
    images = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).reshape(4, 1, 1, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    nn.init.zeros_(model[1].weight)
    with torch.no_grad():
        model[1].weight[0, 0] = 3.0  # X'X/4 = diag(2, ½)

    def squared(outputs, targets):
        return 0.5 * outputs.square().mean()

    whole = np.tile(np.arange(4), (2, 1))
    found = batch_sharpness(model, images, torch.zeros(4, dtype=torch.int64), whole, criterion=squared)
    assert stability(found, learning_rate=1.0) == Estimate(1.0, 0.0, True)
    # Batches of one see the curvature of their own example: 4 or 1, of which only the first has a gradient.
    alone = batch_sharpness(model, images, torch.zeros(4, dtype=torch.int64), np.array([[0], [1]]), criterion=squared)
    assert alone.value == pytest.approx(4.0)
    lost = batch_sharpness(model, images, torch.zeros(4, dtype=torch.int64), np.array([[0], [2]]), criterion=squared)
    assert np.isnan(lost.value)
    assert not lost.converged


def test_one_batch_has_no_error_bar():
    with pytest.raises(ValueError, match="batches: expected at least two"):
        batch_sharpness(small_network(), *examples(8), np.arange(4)[None])


# --- beside curvlinops ------------------------------------------------------------------------------------------


THEIRS = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of one of curvlinops' dependencies


@pytest.fixture
def beside():
    """A SkipInit network, where examples are independent, and two linear operators by another library."""
    import curvlinops

    model, (images, labels) = skip_init().double(), examples(20)
    data = [(images[:12].double(), labels[:12]), (images[12:].double(), labels[12:])]
    parameters = list(model.parameters())
    hessian = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), parameters, data)
    fisher = curvlinops.EFLinearOperator(model, nn.CrossEntropyLoss(), parameters, data)
    return model, images.double(), labels, hessian, fisher


@THEIRS
def test_products_are_those_of_curvlinops(beside):
    model, images, labels, hessian, _ = beside
    product = loss_hessian_vector_product(model, images, labels)
    generator = torch.Generator().manual_seed(0)
    for vector in torch.randn(5, hessian.shape[0], generator=generator, dtype=torch.float64):
        torch.testing.assert_close(product(vector), hessian @ vector)


@THEIRS
def test_eigenvalues_and_traces_are_those_of_curvlinops(beside):
    from scipy.sparse.linalg import eigsh

    model, images, labels, hessian, _ = beside
    size = hessian.shape[0]
    product = loss_hessian_vector_product(model, images, labels)
    theirs = eigsh(hessian.to_scipy(), k=3, which="LA", return_eigenvectors=False)[::-1]
    found = leading_eigenpairs(product, size, 3, seed=0, rtol=1e-6)
    np.testing.assert_allclose([pair.value for pair in found.values], theirs, rtol=1e-9)
    dense = float(torch.trace(hessian @ torch.eye(size, dtype=torch.float64)))
    density = spectral_density(product, size, probes=4, steps=size, seed=0)
    assert density.moment(1).value == pytest.approx(dense, rel=1e-6)
    sketched = hutch_plus_plus_trace(product, size, products=60, seed=0)
    assert abs(sketched.value - dense) < 5 * sketched.stderr


@THEIRS
def test_gradient_noise_is_that_of_curvlinops_empirical_fisher(beside):
    """F is the mean outer product of examples' gradients less that of the mean: of units, too, by (N−1)/(N−g)."""
    model, images, labels, _, fisher = beside
    size, count = fisher.shape[0], len(images)
    second = fisher @ torch.eye(size, dtype=torch.float64)
    mean = loss_gradient(model, images, labels)
    covariance = second - torch.outer(mean, mean)
    singles = ghost_batch_gradients(model, images, labels, np.arange(count)[:, None])
    torch.testing.assert_close((singles - mean).T @ (singles - mean) / count, covariance)
    pairs = ghost_batch_gradients(model, images, labels, np.array(list(itertools.combinations(range(count), 2))))
    spread = (pairs - mean).T @ (pairs - mean) / len(pairs)
    torch.testing.assert_close(spread * 2 * (count - 1) / (count - 2), covariance)


def test_units_of_a_ghost_batch_norm_network_are_whole_ghost_batches():
    """Where statistics are shared, units are whole ghost batches; the number of units does not change one of them."""
    model, (images, labels) = small_network(), examples(12)
    batches = draw_ghost_batches(12, ghost_batch_size=GHOST, units=4, seed=0)
    one = ghost_batch_gradients(model, images, labels, batches)
    torch.testing.assert_close(ghost_batch_gradients(model, images, labels, batches[:2]), one[:2])
    with pytest.raises(ValueError, match="multiple of ghost_batch_size=4"):
        ghost_batch_gradients(model, images, labels, batches[:, :3])
