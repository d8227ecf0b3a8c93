"""Noise scales against exact arithmetic, enumeration of all batches, and t-tests."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from noisysgd import theory
from noisysgd.theory import testing
from noisysgd.theory.scaling.noise_scale import (
    NoiseScales,
    interpolation_batch_size,
    noise_scales,
    steps_and_examples,
    two_batch_noise_scale,
)

FALSE_ALARM = stats.norm.isf(0.5e-6)
"""Standard errors beyond which a seeded test fails: one in a million."""


def loss_after_a_step(problem, rate, batch_size):
    """Expected loss after one step of plain SGD, in exact rational arithmetic."""
    size, count = Fraction(batch_size), problem.dataset_size
    factor = 1 / size if count is None else (count - size) / ((count - 1) * size)
    total = Fraction(0)
    modes = (problem.weights, problem.eigenvalues, problem.noise_diagonal, problem.initial_mean)
    for *mode, variance in zip(*modes, problem.initial_variance, strict=True):
        w, h, f, mean, var = map(Fraction, (*mode, variance))
        total += w * h / 2 * ((1 - rate * h) ** 2 * (mean**2 + var) + rate**2 * factor * f)
    return total


@settings(max_examples=100)
@given(problem=testing.problems(), batch_size=testing.batch_sizes())
def test_optimal_step_and_its_gain_are_those_of_the_exact_one_step_loss(problem, batch_size):
    assume((problem.eigenvalues**2 * problem.initial_second_moment).sum() > 1e-200)
    start, ahead, behind = (loss_after_a_step(problem, Fraction(rate), batch_size) for rate in (0, 1, -1))
    slope, bend = (ahead - behind) / 2, (ahead + behind - 2 * start) / 2
    scales = noise_scales(problem)
    np.testing.assert_allclose(scales.optimal_learning_rate(batch_size), float(-slope / (2 * bend)), rtol=1e-12)
    np.testing.assert_allclose(scales.largest_improvement(batch_size), float(slope**2 / (4 * bend)), rtol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 30, 1000, np.inf])
@pytest.mark.parametrize("size", [None, 1000])
def test_optimal_step_minimises_the_expected_loss_of_theory(size, batch_size):
    problem = theory.NoisyQuadratic([2.0, 0.5, 0.0], [1.0, 3.0, 2.0], [1.0, -2.0, 0.5], 0.3, size, weights=[1, 2.5, 7])

    def loss(rate):
        return theory.expected_loss(problem, theory.constant(1), learning_rate=rate, batch_size=batch_size)

    found = optimize.minimize_scalar(loss, bounds=(0.0, 3.0), options={"xatol": 1e-10})
    scales = noise_scales(problem)
    np.testing.assert_allclose(scales.optimal_learning_rate(batch_size), found.x, rtol=1e-6)
    np.testing.assert_allclose(problem.initial_loss - scales.largest_improvement(batch_size), found.fun, rtol=1e-12)


def test_the_named_formulas_agree_with_each_other():
    scales = noise_scales(theory.power_law(20))
    size = np.array([1.0, 5.0, 300.0])
    expected = scales.largest_learning_rate / (1 + scales.curvature_weighted / size)
    np.testing.assert_allclose(scales.optimal_learning_rate(size), expected, rtol=1e-14)
    equal = noise_scales(theory.NoisyQuadratic([3.0, 3.0], [1.0, 5.0], [1.0, 2.0]))
    np.testing.assert_allclose(equal.simple, equal.curvature_weighted, rtol=1e-14)


def three_points(kurtosis):
    """Values and probabilities of the symmetric law on three points with variance 1 and that kurtosis."""
    return np.array([-1.0, 0.0, 1.0]) * np.sqrt(kurtosis), np.array([0.5, kurtosis - 1, 0.5]) / kurtosis


@pytest.mark.parametrize("kurtosis", [1.0, 1.5, 3.0, 7.0])
def test_least_squares_by_enumeration_of_examples_and_starts(kurtosis):
    curvature, mean, spread, label = np.array([2.0, 0.3]), np.array([0.7, -1.1]), np.array([0.4, 0.9]), 0.25
    values, chances = three_points(kurtosis)
    squared = bent = trace = bent_trace = 0.0
    for signs in itertools.product([-1, 1], repeat=2):
        theta = mean + signs * spread
        gradient = curvature * theta
        squared += (gradient**2).sum() / 4
        bent += (curvature * gradient**2).sum() / 4
        for a, b, sign in itertools.product(range(3), range(3), (-1, 1)):
            x = np.sqrt(curvature) * values[[a, b]]
            chance = chances[a] * chances[b] / 2 / 4
            off = x * (x @ theta - sign * np.sqrt(label)) - gradient
            trace += chance * (off**2).sum()
            bent_trace += chance * (curvature * off**2).sum()
    problem = theory.LeastSquares(curvature, label, mean, spread**2, kurtosis=kurtosis)
    scales = noise_scales(problem)
    np.testing.assert_allclose(scales.gradient_squared, squared, rtol=1e-13)
    np.testing.assert_allclose(scales.gradient_curvature, bent, rtol=1e-13)
    np.testing.assert_allclose(scales.noise_trace, trace, rtol=1e-13)
    np.testing.assert_allclose(scales.noise_curvature, bent_trace, rtol=1e-13)


@pytest.mark.parametrize("kind", [theory.NoisyQuadratic, theory.LeastSquares])
def test_weights_count_modes(kind):
    arguments = {"initial_mean": [1.0, 2.0], "initial_variance": [0.5, 0.0]}
    repeated = {name: np.repeat(value, [2, 3]) for name, value in arguments.items()}
    few = noise_scales(kind([1.0, 0.2], 0.7, **arguments, weights=[2, 3]))
    many = noise_scales(kind(np.repeat([1.0, 0.2], [2, 3]), 0.7, **repeated))
    for name in ("simple", "curvature_weighted", "largest_learning_rate"):
        np.testing.assert_allclose(getattr(few, name), getattr(many, name), rtol=1e-14)


@pytest.mark.parametrize("kind", [theory.NoisyQuadratic, theory.LeastSquares])
def test_a_curve_of_second_moments_gives_a_curve_of_noise_scales(kind):
    problem = kind([1.0, 0.2, 0.0], 0.7)
    moments = np.random.default_rng(0).random((4, 2, 3))
    curve = noise_scales(problem, moments)
    assert curve.simple.shape == (4, 2)
    one_point = noise_scales(problem, moments[3, 1])
    np.testing.assert_allclose(curve.curvature_weighted[3, 1], one_point.curvature_weighted, rtol=1e-14)
    start = noise_scales(problem, problem.initial_second_moment)
    np.testing.assert_array_equal(start.simple, noise_scales(problem).simple)


def test_only_the_diagonal_of_a_covariance_matters():
    full = noise_scales(theory.NoisyQuadratic([1.0, 0.5], [[2.0, 0.9], [0.9, 1.0]]))
    diagonal = noise_scales(theory.NoisyQuadratic([1.0, 0.5], [2.0, 1.0]))
    assert (full.simple, full.curvature_weighted) == (diagonal.simple, diagonal.curvature_weighted)


def test_full_batches_and_infinite_ones_take_the_largest_step():
    scales = noise_scales(theory.power_law(5, dataset_size=100))
    np.testing.assert_array_equal(scales.optimal_learning_rate([100, np.inf]), scales.largest_learning_rate)
    assert scales.optimal_learning_rate(99) < scales.largest_learning_rate


def test_a_gradient_without_curvature_has_no_largest_step():
    scales = NoiseScales(1.0, 0.0, 2.0, 4.0)
    assert scales.curvature_weighted == scales.largest_learning_rate == np.inf
    assert scales.optimal_learning_rate(8) == 2.0
    assert NoiseScales(1.0, 0.0, 0.0, 0.0).optimal_learning_rate(8) == np.inf


@given(steps=st.floats(1, 1e6), examples=st.floats(1, 1e9), size=st.floats(1, 1e6))
def test_steps_and_examples_lie_on_the_hyperbola(steps, examples, size):
    s, e = steps_and_examples(minimum_steps=steps, minimum_examples=examples, batch_size=size)
    np.testing.assert_allclose(e, size * s, rtol=1e-12)
    # (S/S_min − 1)(E/E_min − 1) = 1, without the cancellation in the differences.
    np.testing.assert_allclose(s * e, s * examples + e * steps, rtol=1e-12)


def test_interpolation_batch_size_broadcasts():
    sizes = interpolation_batch_size(largest_squared_norm=[2.0, 4.0], largest_eigenvalue=[[0.5], [1.0]])
    np.testing.assert_array_equal(sizes, [[4.0, 8.0], [2.0, 4.0]])


def squared_norms_of_all_batches(gradients, size):
    return [
        np.sum(gradients[list(batch)].mean(0) ** 2) for batch in itertools.combinations(range(len(gradients)), size)
    ]


@pytest.mark.parametrize(("small", "big"), [(1, 2), (2, 3), (1, 6), (3, 6)])
def test_two_batch_estimates_are_unbiased_over_all_batches_of_a_data_set(small, big):
    gradients = np.random.default_rng(1).normal(np.array([0.5, 0.0, -1.0]), 1.0, (6, 3))
    squared = np.sum(gradients.mean(0) ** 2)
    trace = gradients.var(0).sum()
    samples = [squared_norms_of_all_batches(gradients, size) for size in (small, big)]
    arguments = {"small_batch_size": small, "big_batch_size": big}
    of_data = two_batch_noise_scale(*samples, **arguments, dataset_size=6)
    np.testing.assert_allclose(of_data.gradient_squared, squared, rtol=1e-12)
    np.testing.assert_allclose(of_data.noise_trace, trace, rtol=1e-12)
    np.testing.assert_allclose(of_data.noise_scale, trace / squared, rtol=1e-12)
    if big < 6:
        # Without the size: the unbiased estimates for the distribution that the six are a sample of.
        of_law = two_batch_noise_scale(*samples, **arguments)
        np.testing.assert_allclose(of_law.noise_trace, gradients.var(0, ddof=1).sum(), rtol=1e-12)
        np.testing.assert_allclose(of_law.gradient_squared, squared - trace / 5, rtol=1e-12)


def test_estimates_for_the_distribution_are_unbiased_over_data_sets():
    """All data sets of 3 from a law on two values, all batches of 1 and 2 of each."""
    law = np.array([[0.0, 1.0], [3.0, -1.0]])
    found = []
    for chosen in itertools.product([0, 1], repeat=3):
        samples = [squared_norms_of_all_batches(law[list(chosen)], size) for size in (1, 2)]
        found.append(two_batch_noise_scale(*samples, small_batch_size=1, big_batch_size=2))
    np.testing.assert_allclose(np.mean([f.noise_trace for f in found]), law.var(0).sum(), rtol=1e-12)
    np.testing.assert_allclose(np.mean([f.gradient_squared for f in found]), np.sum(law.mean(0) ** 2), rtol=1e-12)


def test_estimates_are_mccandlish_s_formulas():
    small, big = np.array([9.0, 12.0, 8.0]), np.array([4.0, 3.5])
    found = two_batch_noise_scale(small, big, small_batch_size=4, big_batch_size=64)
    squared = (64 * big.mean() - 4 * small.mean()) / 60
    trace = (small.mean() - big.mean()) / (1 / 4 - 1 / 64)
    np.testing.assert_allclose([found.gradient_squared, found.noise_trace], [squared, trace], rtol=1e-14)
    endless = two_batch_noise_scale(small, big, small_batch_size=4, big_batch_size=np.inf)
    np.testing.assert_allclose(endless.gradient_squared, big.mean(), rtol=1e-14)


def norms(rng, count, batch_size, dim=2000, squared=5.0, variance=0.25):
    """|g|² for Gaussian gradients with F = variance·I: a scaled non-central χ²."""
    scale = variance / batch_size
    return scale * rng.noncentral_chisquare(dim, squared / scale, count)


def score_of_trace(inflation):
    """Error of the estimated tr F in exact standard errors, from gradients with `inflation` times the noise."""
    rng, count, sizes, dim, squared, variance = np.random.default_rng(2), 20_000, (1, 16), 2000, 5.0, 0.25
    samples = [norms(rng, count, size, dim, squared, inflation * variance) for size in sizes]
    found = two_batch_noise_scale(*samples, small_batch_size=sizes[0], big_batch_size=sizes[1])
    spread = sum(4 * squared * variance / b + 2 * dim * (variance / b) ** 2 for b in sizes) / count
    error = np.sqrt(spread) / (1 / sizes[0] - 1 / sizes[1])
    assert found.noise_trace_error == pytest.approx(error, rel=0.05)
    return abs(found.noise_trace - dim * variance) / error


def test_sampled_gradients_give_the_trace_and_one_percent_too_much_noise_is_seen():
    assert score_of_trace(1.0) < FALSE_ALARM < score_of_trace(1.01)


def coverage(samples_of, truth, repeats, **arguments):
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(repeats):
        low, high = two_batch_noise_scale(*samples_of(rng), **arguments).interval
        inside += low <= truth <= high
    return inside / repeats


def correlated(rng, count=12, mean=(30.0, 10.0), deviation=(2.0, 1.0), correlation=0.8):
    """Paired normal measurements, for which the interval is exact at any number of them."""
    noise = rng.normal(size=(2, count))
    noise[1] = correlation * noise[0] + np.sqrt(1 - correlation**2) * noise[1]
    return mean[0] + deviation[0] * noise[0], mean[1] + deviation[1] * noise[1]


def test_intervals_cover_the_noise_scale_as_often_as_they_say():
    repeats, sizes = 2000, {"small_batch_size": 1, "big_batch_size": 8}
    truth = ((30 - 10) / (1 - 1 / 8)) / ((10 - 30 / 8) / (1 - 1 / 8))
    for level in (0.95, 0.5):
        tolerance = FALSE_ALARM * np.sqrt(level * (1 - level) / repeats)
        exact = coverage(correlated, truth, repeats, **sizes, paired=True, confidence=level)
        assert abs(exact - level) < tolerance
        # Power: without the covariance, intervals are visibly wrong.
        assert abs(coverage(correlated, truth, repeats, **sizes, confidence=level) - level) > tolerance

    def independent(rng):
        return norms(rng, 100, 4), norms(rng, 150, 64)

    sizes = {"small_batch_size": 4, "big_batch_size": 64}
    tolerance = FALSE_ALARM * np.sqrt(0.95 * 0.05 / repeats)
    assert abs(coverage(independent, 2000 * 0.25 / 5.0, repeats, **sizes) - 0.95) < tolerance


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32), level=st.sampled_from([0.5, 0.9, 0.99]), mean=st.floats(1.5, 6.0))
def test_ends_of_the_interval_are_where_a_t_test_begins_to_reject(seed, level, mean):
    small, big = np.abs(correlated(np.random.default_rng(seed), count=6, mean=(8.0, mean)))
    found = two_batch_noise_scale(small, big, small_batch_size=1, big_batch_size=4, paired=True, confidence=level)
    trace, squared = (small - big) * 4 / 3, (4 * big - small) / 3

    def p_value(ratio):
        return stats.ttest_1samp(trace - ratio * squared, 0.0).pvalue

    low, high = found.interval
    assert found.resolved == (stats.ttest_1samp(squared, 0.0).pvalue < 1 - level and squared.mean() > 0)
    if found.resolved:
        assert low < found.noise_scale < high < np.inf
        np.testing.assert_allclose([p_value(low), p_value(high)], 1 - level, rtol=1e-6)
        assert p_value((low + high) / 2) > 1 - level
        derivative = (trace - found.noise_scale * squared) / squared.mean()
        np.testing.assert_allclose(found.noise_scale_error, stats.sem(derivative), rtol=1e-9)
    else:
        assert high == found.noise_scale_error == np.inf
        if low > 0:
            np.testing.assert_allclose(p_value(low), 1 - level, rtol=1e-6)
            assert p_value(1e6) > 1 - level


def test_a_gradient_lost_in_noise_gives_an_unbounded_interval_and_unclamped_estimates():
    rng = np.random.default_rng(4)
    found = two_batch_noise_scale(
        norms(rng, 40, 1, squared=0.0), norms(rng, 40, 4, squared=0.0), small_batch_size=1, big_batch_size=4
    )
    assert not found.resolved
    assert found.interval[1] == np.inf
    assert found.interval[0] > 10  # tr F is clear, so small noise scales are excluded
    negative = two_batch_noise_scale([8.0, 8.1], [1.0, 1.1], small_batch_size=1, big_batch_size=4)
    assert negative.gradient_squared < 0
    assert negative.noise_scale < 0
    assert negative.interval == (0.0, np.inf)
    reverse = two_batch_noise_scale([1.0, 1.1], [8.0, 8.1], small_batch_size=1, big_batch_size=4)
    assert reverse.noise_trace < 0
    assert reverse.interval[0] < 0


@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_units_of_the_gradient_do_not_matter(unit):
    small, big = np.array([9.0, 12.0, 8.0]), np.array([4.0, 3.5, 3.9])
    arguments = {"small_batch_size": 4, "big_batch_size": 64}
    one, other = (two_batch_noise_scale(small * u, big * u, **arguments) for u in (1.0, unit))
    np.testing.assert_allclose(other.interval, one.interval, rtol=1e-12)
    np.testing.assert_allclose(other.noise_scale, one.noise_scale, rtol=1e-12)
    np.testing.assert_allclose(other.noise_trace_error, one.noise_trace_error * unit, rtol=1e-12)


def two_batch(small=(2.0, 3.0), big=(1.0, 1.5), **changes):
    arguments = {"small_batch_size": 1, "big_batch_size": 4} | changes
    return two_batch_noise_scale(small, big, **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: noise_scales("a quadratic"), "problem: expected a NoisyQuadratic or LeastSquares"),
        (lambda: noise_scales(theory.power_law(2), [1.0, 2.0, 3.0]), "second_moment: expected shape"),
        (lambda: noise_scales(theory.power_law(2), [-1.0, 2.0]), "second_moment: expected values ≥ 0"),
        (lambda: noise_scales(theory.power_law(2), [0.0, 0.0]), "gradient_squared: expected a gradient that is not"),
        (lambda: NoiseScales(1.0, -1.0, 1.0, 1.0), "gradient_curvature: expected values ≥ 0"),
        (lambda: NoiseScales(1.0, 1.0, [1.0, 2.0], [1.0, 2.0, 3.0]), "expected shapes that broadcast"),
        (lambda: NoiseScales(1.0, 1.0, 1.0, 1.0, 0), "dataset_size: expected an integer ≥ 1"),
        (lambda: NoiseScales(1.0, 1.0, 1.0, 1.0, 8).optimal_learning_rate(9), "batch_size: expected batch sizes ≤"),
        (lambda: NoiseScales([1.0, 2.0], 1.0, 1.0, 1.0).optimal_learning_rate([1, 2, 3]), "shapes that broadcast"),
        (lambda: steps_and_examples(minimum_steps=0, minimum_examples=1, batch_size=1), "minimum_steps: .* > 0"),
        (lambda: interpolation_batch_size(largest_squared_norm=1, largest_eigenvalue=0), "largest_eigenvalue: .* > 0"),
        (lambda: two_batch(small=[1.0]), "small_squared_norms: expected at least two measurements"),
        (lambda: two_batch(small=[1.0, -1.0]), "small_squared_norms: expected values ≥ 0"),
        (lambda: two_batch(big=[]), "big_squared_norms"),
        (lambda: two_batch(big=[1.0], dataset_size=5), "big_squared_norms: expected at least two measurements"),
        (lambda: two_batch(small=[0.0, 0.0], big=[0.0, 0.0]), "a gradient that is not zero throughout"),
        (lambda: two_batch(small_batch_size=4), "expected small < big, got '4 and 4'"),
        (lambda: two_batch(small_batch_size=8), "expected small < big"),
        (lambda: two_batch(dataset_size=3), "big_batch_size: expected batch sizes ≤"),
        (lambda: two_batch(big=[1.0, 2.0, 3.0], paired=True), "paired: expected as many small as big"),
        (lambda: two_batch(confidence=95), "confidence: expected a level between 0 and 1"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
