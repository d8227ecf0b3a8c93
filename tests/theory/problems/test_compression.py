"""Compressed spectra: the bound on their losses, and what they keep."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisysgd import theory


@st.composite
def long_problems(draw):
    """Power laws, with masses that are smooth in λ or not at all, some of them 0."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dim = draw(st.sampled_from([60, 700, 3000]))
    eigenvalues = np.arange(1, dim + 1.0) ** -draw(st.floats(0.3, 3.0))
    rough = (
        rng.uniform(0.0, 1.0, (2, dim)) * (rng.random((2, dim)) < 0.7) + 1e-3
        if draw(st.booleans())
        else np.ones((2, dim))
    )
    noise = rough[0] * eigenvalues ** draw(st.floats(0.0, 2.0))
    return theory.NoisyQuadratic(eigenvalues, noise, initial_variance=rough[1], dataset_size=1000)


@settings(max_examples=60)
@given(
    problem=long_problems(),
    lengths=st.lists(st.sampled_from([1, 30, 1000, 10**5]), min_size=1, max_size=4),
    shares=st.lists(st.sampled_from([0.0, 0.03, 0.5, 1.0]), min_size=4, max_size=4),
    rate=st.floats(0.01, 3.0),
    nodes=st.sampled_from([2, 4, 11]),
)
def test_losses_differ_by_no_more_than_the_bound(problem, lengths, shares, rate, nodes):
    """Under any schedule with learning rates up to the one given, batches with noise and without."""
    few, start_error, noise_error = problem.compressed(rate, nodes=nodes)
    schedule = theory.piecewise(lengths, shares[: len(lengths)])
    for size in (1, 50, 1000):
        run = {"learning_rate": rate, "batch_size": size}
        exact, got = (theory.expected_loss(p, schedule, **run) for p in (problem, few))
        if exact < np.inf:
            bound = start_error + float(problem.noise_factor(size)) * noise_error
            assert abs(got - exact) <= bound + 1e-12 * exact


def test_the_bound_is_small_where_nodes_are_many_and_no_fiction_where_they_are_few():
    problem = theory.power_law(5000, exponent=1.5)
    bounds = [problem.compressed(1.0, nodes=nodes).start_error for nodes in (2, 4, 6, 8, 11)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 1e-12
    coarse = problem.compressed(1.0, nodes=2)
    run = {"learning_rate": 1.0, "batch_size": np.inf}
    errors = [
        abs(theory.expected_loss(coarse.problem, schedule, **run) - theory.expected_loss(problem, schedule, **run))
        for schedule in map(theory.constant, (1, 10, 100, 1000))
    ]
    assert max(errors) > 1e-4 * coarse.start_error  # a bound that is not idle


def test_what_decides_over_stability_is_kept():
    problem = theory.marchenko_pastur(2000, ratio=0.5)
    few = problem.compressed(0.05).problem
    assert few.dim < 500
    assert few.largest_eigenvalue == problem.largest_eigenvalue
    assert few.dataset_size == problem.dataset_size


def test_a_short_spectrum_is_kept():
    problem = theory.power_law(5)
    assert problem.compressed(0.1) == (problem, 0.0, 0.0)


@pytest.mark.parametrize(
    "given", [{"learning_rate": 0.0}, {"learning_rate": np.inf}, {"learning_rate": 1.0, "nodes": 1}]
)
def test_impossible_compression_is_refused(given):
    with pytest.raises(ValueError, match="expected"):
        theory.power_law(5).compressed(**given)
