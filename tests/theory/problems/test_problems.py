"""Problems: named spectra, weights, preconditioning."""

import copy
import pickle
from dataclasses import fields
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import integrate

from noisysgd import theory
from noisysgd.theory import testing
from noisysgd.theory.problems.quadratic import natural_units

RUN = {"learning_rate": 0.3, "batch_size": 7}


@settings(max_examples=20)
@given(ratio=st.floats(0.05, 20.0).filter(lambda r: abs(r - 1) > 1e-3), share=st.floats(0.02, 0.98))
def test_marchenko_pastur_quantiles_hold_their_share_of_the_density(ratio, share):
    """By integrating the published density with an adaptive rule that knows nothing of the substitution used."""
    dim = 400
    eigenvalues = theory.marchenko_pastur(dim, ratio).eigenvalues
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2

    def density(x):
        return np.sqrt(max((high - x) * (x - low), 0.0)) / (2 * np.pi * ratio * x)

    k = int(share * dim * min(1.0, 1.0 / ratio))
    above = integrate.quad(density, eigenvalues[k], high, limit=200)[0]
    assert above == pytest.approx((k + 0.5) / dim, abs=1e-6)
    assert np.count_nonzero(eigenvalues) == pytest.approx(dim * min(1.0, 1.0 / ratio), abs=1)


def test_marchenko_pastur_spectrum_is_that_of_random_inputs():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((800, 400))
    sampled = np.linalg.eigvalsh(inputs.T @ inputs / 800)[::-1]
    np.testing.assert_allclose(theory.marchenko_pastur(400, ratio=0.5).eigenvalues, sampled, atol=0.05)


def test_two_scales_have_their_condition_number_and_share():
    eigenvalues = theory.two_scale(10, condition_number=50.0, steep=0.3).eigenvalues
    np.testing.assert_array_equal(eigenvalues, [1.0] * 3 + [1 / 50.0] * 7)
    assert theory.two_scale(3, 10.0, steep=0.01).eigenvalues.tolist() == [1.0, 0.1, 0.1]


@settings(max_examples=30)
@given(
    problem=testing.problems(full_noise=False),
    counts=st.lists(st.integers(1, 4), min_size=6, max_size=6),
    momentum=testing.momenta(),
)
def test_weights_count_modes(problem, counts, momentum):
    counts = np.array(counts[: problem.dim])
    fields = (problem.noise, problem.initial_mean, problem.initial_variance)
    weighted = theory.NoisyQuadratic(problem.eigenvalues, *fields, weights=counts)
    repeated = theory.NoisyQuadratic(np.repeat(problem.eigenvalues, counts), *(np.repeat(f, counts) for f in fields))
    schedule = theory.half_then_decay(50)
    few, many = (
        theory.expected_loss(p, schedule, momentum=momentum, learning_rate=0.3, batch_size=7)
        for p in (weighted, repeated)
    )
    np.testing.assert_allclose(few, many, rtol=1e-12)
    np.testing.assert_allclose(weighted.initial_loss, repeated.initial_loss, rtol=1e-12)


@settings(max_examples=30)
@given(problem=testing.problems(), power=st.floats(-0.5, 1.5), momentum=st.sampled_from([0.0, 0.9]))
def test_a_preconditioner_is_a_change_of_problem(problem, power, momentum):
    """Against descent along P ĝ in the old variables, moments of (θ, u) step by step."""
    steps, rate = 12, 0.1
    lam = problem.eigenvalues
    p = np.where(lam > 0, np.where(lam > 0, lam, 1.0) ** -power, 1.0)
    rate = rate / (p * lam).max()
    noise = problem.noise if problem.noise.ndim == 2 else np.diag(problem.noise)
    factor = problem.noise_factor(5)
    tt = problem.initial_second_moment.copy()
    tu, uu = np.zeros_like(tt), np.zeros_like(tt)
    for _ in range(steps):
        uu = momentum**2 * uu + 2 * momentum * lam * tu + lam**2 * tt + factor * np.diag(noise)
        tu = momentum * tu + lam * tt
        tt, tu = tt - 2 * rate * p * tu + (rate * p) ** 2 * uu, tu - rate * p * uu
    loss = theory.expected_loss(
        problem.precondition(power), theory.constant(steps), learning_rate=rate, batch_size=5, momentum=momentum
    )
    np.testing.assert_allclose(loss, 0.5 * (lam * tt).sum(), rtol=1e-9, atol=1e-14 * problem.initial_loss)


def test_full_preconditioning_makes_every_curvature_one():
    problem = theory.LeastSquares([4.0, 0.5, 0.0], initial_mean=[1.0, 2.0, 3.0])
    whitened = problem.precondition(1.0)
    np.testing.assert_allclose(whitened.eigenvalues, [1.0, 1.0, 0.0])
    assert whitened.initial_loss == pytest.approx(problem.initial_loss)
    assert whitened.label_noise == problem.label_noise


def test_a_measured_spectrum_keeps_its_weights():
    problem = theory.measured_spectrum([2.0, 0.1], weights=[1.5, 98.5])
    assert problem.initial_loss == pytest.approx(0.5 * (2.0 * 1.5 + 0.1 * 98.5))
    np.testing.assert_array_equal(problem.noise, problem.eigenvalues)


BAD = {
    "zero weight": (lambda: theory.NoisyQuadratic([1.0], 1.0, weights=0.0), "weights: expected values > 0"),
    "weights shape": (lambda: theory.NoisyQuadratic([1.0, 2.0], 1.0, weights=[1.0]), "weights: expected a scalar or"),
    "weights and F": (
        lambda: theory.NoisyQuadratic([1.0, 2.0], np.eye(2), weights=[1.0, 2.0]),
        "weights of 1 beside a full covariance",
    ),
    "label noise": (lambda: theory.LeastSquares([1.0], label_noise=-1.0), "label_noise: expected values ≥ 0"),
    "kurtosis": (lambda: theory.LeastSquares([1.0], kurtosis=0.5), "kurtosis: expected values ≥ 1"),
    "power": (lambda: theory.power_law(3).precondition(np.inf), "power: expected a power that keeps"),
    "condition number": (lambda: theory.two_scale(4, 0.5), "condition_number: expected values ≥ 1"),
    "one mode, two scales": (lambda: theory.two_scale(1, 2.0), "dim: expected an integer ≥ 2"),
    "ratio": (lambda: theory.marchenko_pastur(4, 0.0), "ratio: expected a positive ratio"),
    "all flat": (lambda: theory.marchenko_pastur(1, 1e6), "dim, ratio: expected at least one curved mode"),
    "negative node": (lambda: theory.measured_spectrum([-1.0, 1.0], [1, 1]), "eigenvalues: expected values ≥ 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_problems_are_refused(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_weighted_problems_are_not_simulated():
    simulators = pytest.importorskip("noisysgd.simulators")
    with pytest.raises(ValueError, match="weights of 1"):
        simulators.simulate(theory.measured_spectrum([1.0], [2.0]), theory.constant(3), **RUN, replicas=2)


@settings(max_examples=60)
@given(st.data())
def test_merging_equal_modes_changes_no_expected_loss(data):
    count = data.draw(st.integers(1, 8))
    numbers = st.floats(0.05, 2.0)
    draw = lambda: data.draw(st.lists(numbers, min_size=count, max_size=count))  # noqa: E731
    eigenvalues = data.draw(st.lists(st.sampled_from([0.0, 0.2, 0.7, 1.0]), min_size=count, max_size=count))
    assume(max(eigenvalues) > 0)
    shared = {"initial_mean": draw(), "initial_variance": draw(), "weights": draw(), "dataset_size": 64}
    for problem in (
        theory.NoisyQuadratic(eigenvalues, draw(), **shared),
        theory.LeastSquares(eigenvalues, label_noise=0.3, **shared),
    ):
        merged = problem.merged()
        assert merged.dim == len(set(eigenvalues))
        assert merged.dataset_size == 64
        run = {"learning_rate": [0.1, 0.4], "batch_size": 4}
        np.testing.assert_allclose(
            theory.expected_loss(merged, theory.half_then_decay(30), **run),
            theory.expected_loss(problem, theory.half_then_decay(30), **run),
            rtol=1e-12,
        )


def test_a_full_covariance_is_merged_by_its_diagonal():
    root = np.random.default_rng(0).normal(size=(4, 4))
    problem = theory.NoisyQuadratic([1.0, 1.0, 0.5, 0.5], root @ root.T)
    settings = {"learning_rate": 0.3, "batch_size": 2}
    losses = [theory.expected_loss(p, theory.constant(20), **settings) for p in (problem, problem.merged())]
    assert losses[0] == pytest.approx(losses[1], rel=1e-13)
    assert theory.power_law(5).merged().dim == 5


@pytest.mark.parametrize(("capacity", "source"), [(1.5, 0.5), (2.0, 0.25), (1.2, 1.0)])
def test_source_and_capacity_set_the_slope_of_gradient_descent(capacity, source):
    problem = theory.source_capacity(20_000, capacity=capacity, source=source)
    assert problem.initial_loss == pytest.approx(0.5)
    at = [100, 1000, 10_000] if capacity < 2 else [100, 1000]
    curve = theory.loss_curve(problem, theory.constant(at[-1]), learning_rate=0.5, batch_size=np.inf, at=at)
    np.testing.assert_allclose(np.diff(np.log10(curve)), -2 * source, rtol=0.05)


def test_exponents_that_are_none_are_refused():
    with pytest.raises(ValueError, match="capacity: expected an exponent > 1"):
        theory.source_capacity(10, capacity=1.0, source=0.5)
    with pytest.raises(ValueError, match="source: expected an exponent > 0"):
        theory.source_capacity(10, capacity=1.5, source=0.0)


@pytest.mark.parametrize(
    "given", [{}, {"power": 1.0, "diagonal": 1.0}, {"diagonal": [1.0, 0.0]}, {"diagonal": [1.0, np.inf]}]
)
def test_a_preconditioner_is_one_positive_diagonal(given):
    with pytest.raises(ValueError, match="expected"):
        theory.NoisyQuadratic([1.0, 0.5], 1.0).precondition(**given)


@pytest.mark.parametrize("share", [1e-17, 1e-13])
def test_values_below_zero_by_rounding_are_zero(share):
    """As eigenvalue solvers and projections of a covariance leave them."""
    problem = theory.NoisyQuadratic([2.0, -2 * share], [3.0, -3 * share], initial_variance=[-share, 1.0])
    assert problem == theory.NoisyQuadratic([2.0, 0.0], [3.0, 0.0], initial_variance=[0.0, 1.0])
    full = theory.NoisyQuadratic([2.0, 1.0], [[1.0, 0.0], [0.0, -share]])
    assert full.noise_diagonal.tolist() == [1.0, 0.0]
    assert theory.LeastSquares([2.0, -2 * share]) == theory.LeastSquares([2.0, 0.0])
    assert theory.noise_scales(theory.power_law(2), [1.0, -share]) == theory.noise_scales(
        theory.power_law(2), [1.0, 0.0]
    )


@settings(max_examples=20)
@given(rotation=st.integers(0, 2**32 - 1), rank=st.integers(1, 4))
def test_a_projected_covariance_is_accepted(rotation, rank):
    """A covariance of rank below D, seen in another basis, has a few eigenvalues of −1e-16."""
    rng = np.random.default_rng(rotation)
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    root = basis[:, :rank] * rng.uniform(0.1, 1.0, rank)
    eigenvalues = np.linalg.eigvalsh(root @ root.T)
    problem = theory.NoisyQuadratic(np.ones(6), eigenvalues)
    np.testing.assert_array_equal(problem.noise, np.maximum(eigenvalues, 0.0))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda x: theory.NoisyQuadratic([1.0, x], 1.0), "eigenvalues"),
        (lambda x: theory.NoisyQuadratic([1.0, 1.0], [1.0, x]), "noise"),
        (lambda x: theory.NoisyQuadratic([1.0, 1.0], 1.0, initial_variance=[1.0, x]), "initial_variance"),
    ],
)
def test_values_below_zero_by_more_than_rounding_are_refused(make, name):
    for value in (-1e-11, -0.1, -np.inf):
        with pytest.raises(ValueError, match=f"{name}: expected values ≥ 0"):
            make(value)


PROBLEMS_AND_SCHEDULES = {
    "diagonal": (lambda x: theory.NoisyQuadratic([1.0, x], [1.0, 0.5], weights=[1, 2], dataset_size=100)),
    "full": (lambda x: theory.NoisyQuadratic([1.0, 0.5], [[1.0, 0.2 * x], [0.2 * x, 1.0]])),
    "least squares": (lambda x: theory.LeastSquares([1.0, 0.5], label_noise=x)),
    "schedule": (lambda x: theory.piecewise([10, 5], [1.0, x])),
    "epochs": (lambda x: theory.EpochBudget(x, 100)),
    "steps": (lambda x: theory.StepBudget(int(100 * x))),
    "target": (lambda x: theory.UnlimitedBudget(x)),
    "penalty": (lambda x: theory.L2(1.0, [x, 2.0])),
    "noise scales": (lambda x: theory.NoiseScales(x, 1.0, 1.0, 1.0)),
    "rule": (lambda x: theory.NoisyQuadraticRule(theory.power_law(3), theory.StepBudget(9), rate_scale=x)),
}


@pytest.mark.parametrize("kind", PROBLEMS_AND_SCHEDULES)
def test_objects_are_their_values(kind):
    """Equal numbers, equal objects: after copying, deep copying and pickling too, with arrays that stay read-only."""
    make = PROBLEMS_AND_SCHEDULES[kind]
    thing = make(0.5)
    assert thing != make(0.25)
    assert thing != "something else"
    for twin in (make(0.5), copy.copy(thing), copy.deepcopy(thing), pickle.loads(pickle.dumps(thing))):
        assert twin == thing
        assert hash(twin) == hash(thing)
        assert {thing: 1}[twin] == 1
        arrays = [value for value in vars(twin).values() if isinstance(value, np.ndarray)]
        assert not any(array.flags.writeable for array in arrays)


def test_equal_objects_hash_alike_whatever_the_sign_of_zero():
    signed, plain = (theory.LeastSquares([1.0], zero, initial_mean=zero) for zero in (-0.0, 0.0))
    assert signed == plain
    assert hash(signed) == hash(plain)


@pytest.mark.parametrize("kind", [kind for kind in PROBLEMS_AND_SCHEDULES if kind != "rule"])
def test_notebooks_show_a_table_of_the_fields(kind):
    thing = PROBLEMS_AND_SCHEDULES[kind](0.5)
    shown = thing._repr_html_()
    ElementTree.fromstring(shown)  # well-formed
    assert type(thing).__name__ in shown
    assert all(f"<th>{field.name}</th>" in shown for field in fields(thing))


@given(problem=st.one_of(testing.problems(), testing.least_squares_problems()), exponent=st.integers(-300, 300))
def test_natural_units_keep_every_digit_of_the_loss(problem, exponent):
    assume(np.all((problem.eigenvalues == 0) | (problem.eigenvalues > 1e-5)))
    scaled = theory.LeastSquares(problem.eigenvalues * 2.0**exponent, 0.1)
    natural, factor = natural_units(scaled)
    assert 1 <= natural.largest_eigenvalue < 4
    np.testing.assert_array_equal(natural.eigenvalues * factor, scaled.eigenvalues)
    assert natural.initial_loss == scaled.initial_loss
