"""Scaling rules against the curves they came from, grids of parameters, enumeration of batches, other optimisers."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from noisysgd import theory
from noisysgd.theory.scaling.comparison import RULES, compare_rules, linear_scaling_exponent
from noisysgd.theory.scaling.corner import SharpCorner, fit_corner
from noisysgd.theory.scaling.noise_scale import interpolation_batch_size
from noisysgd.theory.scaling.rules import LinearWithCap, MaBassilyBelkin, McCandlish, NoisyQuadraticRule, SquareRoot

SIZES = 2.0 ** np.arange(13)
octaves = st.floats(1.0, 11.0).map(lambda x: 2.0**x)
rates = st.floats(-20.0, 20.0).map(lambda x: 2.0**x)

RULES_WITH_A_CORNER = st.one_of(
    st.builds(lambda rate, size: LinearWithCap(rate / size, rate), rates, octaves),
    st.builds(SquareRoot, rates),
    st.builds(McCandlish, rates, octaves),
    st.builds(lambda rate, ratio: MaBassilyBelkin(ratio * rate, rate), rates, octaves),
    st.builds(SharpCorner, rates, octaves, st.floats(0.4, 5.0)),
)


@settings(max_examples=100)
@given(rule=RULES_WITH_A_CORNER, errors=st.sampled_from([None, 0.1, np.linspace(0.1, 1.0, 13)]))
def test_a_fit_finds_the_rule_that_the_data_came_from(rule, errors):
    found = type(rule).fit(SIZES, rule.learning_rate(SIZES), log_errors=errors)
    for name, value in rule.parameters.items():
        np.testing.assert_allclose(found.parameters[name], value, rtol=1e-5, err_msg=name)


def noisy(seed, spread=0.5):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(4, 14))
    sizes = 2.0 ** rng.uniform(0, 14, count)
    exponent, cap = rng.uniform(0, 1.2), rng.uniform(2, 14)
    return sizes, 2.0 ** (exponent * np.minimum(np.log2(sizes), cap) + rng.normal(0, spread, count))


def misfit(log_shape, log_rates):
    """Smallest sum of squared residuals over factors of the curve."""
    residual = log_rates - log_shape
    return ((residual - residual.mean(-1, keepdims=True)) ** 2).sum(-1)


def curves(kind, sizes):
    """Log₂ of many curves of one kind, up to factors."""
    x = np.log2(sizes)
    corner = np.linspace(-8, 22, 601)[:, None]
    if kind is LinearWithCap:
        return np.minimum(x - corner, 0)
    if kind is McCandlish:
        return -np.log2(1 + 2 ** (corner - x))
    if kind is MaBassilyBelkin:
        return np.log2([MaBassilyBelkin(2.0**c, 1.0).learning_rate(sizes) for c in np.linspace(0, 22, 600)])
    sharpness = np.geomspace(0.125, 60, 60)[:, None, None]
    return -np.logaddexp2(0.0, sharpness * (corner - x)) / sharpness


@pytest.mark.parametrize("kind", [LinearWithCap, McCandlish, MaBassilyBelkin, SharpCorner])
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_no_curve_on_a_fine_grid_of_parameters_fits_better(kind, seed):
    sizes, learning_rates = noisy(seed)
    found = kind.fit(sizes, learning_rates)
    residual = np.log2(learning_rates) - np.log2(found.learning_rate(sizes))
    assert (residual**2).sum() <= misfit(curves(kind, sizes), np.log2(learning_rates)).min() + 1e-7


@pytest.mark.parametrize("kind", RULES)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), unit=st.integers(-40, 40).map(lambda k: 2.0**k))
def test_neither_units_nor_the_order_of_data_matter(kind, seed, unit):
    sizes, learning_rates = noisy(seed)
    order = np.random.default_rng(seed).permutation(sizes.size)
    one = kind.fit(sizes, learning_rates).learning_rate(sizes)
    other = kind.fit(sizes[order], unit * learning_rates[order]).learning_rate(sizes)
    np.testing.assert_allclose(other, unit * one, rtol=1e-4)


@pytest.mark.parametrize("kind", [LinearWithCap, McCandlish, SharpCorner, SquareRoot])
def test_units_of_the_batch_size_do_not_matter(kind):
    sizes, learning_rates = noisy(5)
    one, other = kind.fit(sizes, learning_rates), kind.fit(64 * sizes, learning_rates)
    np.testing.assert_allclose(other.learning_rate(64 * sizes), one.learning_rate(sizes), rtol=1e-6)


@pytest.mark.parametrize("kind", RULES)
def test_errors_weigh_data(kind):
    sizes = np.repeat(SIZES, 2)
    good, bad = McCandlish(1.0, 64.0).learning_rate(SIZES), McCandlish(3.0, 8.0).learning_rate(SIZES)
    both, errors = np.column_stack([good, bad]).ravel(), np.tile([1e-3, 1e3], 13)
    one, other = kind.fit(SIZES, good), kind.fit(sizes, both, log_errors=errors)
    np.testing.assert_allclose(other.learning_rate(SIZES), one.learning_rate(SIZES), rtol=1e-4)


def test_the_sharp_corner_contains_its_limits():
    size = np.array([1.0, 3.0, 64.0, 1000.0, np.inf])
    smooth = SharpCorner(0.1, 64.0, 1.0).learning_rate(size)
    np.testing.assert_allclose(smooth, McCandlish(0.1, 64.0).learning_rate(size), rtol=1e-14)
    sharp = LinearWithCap(0.1 / 64, 0.1).learning_rate(size)
    np.testing.assert_allclose(SharpCorner(0.1, 64.0, np.inf).learning_rate(size), sharp, rtol=1e-14)
    np.testing.assert_allclose(SharpCorner(0.1, 64.0, 1e4).learning_rate(size), sharp, rtol=1e-4)
    np.testing.assert_array_equal(SharpCorner(0.1, 0.0, 2.0).learning_rate(size), np.full(5, 0.1))


def test_data_without_a_corner_say_so():
    rising, flat = SIZES / 10, np.full(13, 0.5)
    linear = LinearWithCap.fit(SIZES, rising)
    assert linear.cap == linear.boundary_batch_size == np.inf
    assert linear.slope == pytest.approx(0.1)
    constant = LinearWithCap.fit(SIZES, flat)
    assert constant.slope == np.inf
    assert constant.boundary_batch_size == 0
    assert constant.cap == pytest.approx(0.5)
    for kind in (McCandlish, SharpCorner):
        for learning_rates in (rising, flat):
            np.testing.assert_allclose(kind.fit(SIZES, learning_rates).learning_rate(SIZES), learning_rates, rtol=1e-5)
    assert SharpCorner.fit(SIZES, np.minimum(SIZES / 50, 1.0)).sharpness == np.inf


FLAGS = {
    "rising": {
        LinearWithCap: {"cap"},
        McCandlish: {"maximum", "noise_scale"},
        MaBassilyBelkin: {"largest"},
        SharpCorner: {"maximum", "boundary_batch_size", "sharpness"},
        SquareRoot: set(),
    },
    "flat": {
        LinearWithCap: {"slope"},
        McCandlish: {"noise_scale"},
        MaBassilyBelkin: {"beta"},
        SharpCorner: {"boundary_batch_size", "sharpness"},
        SquareRoot: set(),
    },
}
SHAPES = {"rising": SIZES / 10, "flat": np.full(13, 0.5)}


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("shape", FLAGS)
def test_fits_that_end_at_the_edge_of_their_search_say_so(kind, shape):
    """At an edge, with data that show no corner; nothing is said of data that do."""
    for scatter in (0.0, 0.02):
        data = SHAPES[shape] * 2.0 ** (scatter * np.cos(np.arange(13) * np.pi))
        assert set(kind.fit(SIZES, data).not_identified) == FLAGS[shape][kind]
    assert kind.fit(SIZES, np.minimum(SIZES / 50, 1.0)).not_identified == ()
    assert (
        set(compare_rules(SIZES, SHAPES[shape], rules=[kind]).not_identified.item().split(", ")) - {""}
        == (FLAGS[shape][kind])
    )


def test_a_corner_as_blunt_as_is_searched_is_no_corner():
    blunt = SharpCorner.fit(SIZES, SIZES**0.5)
    assert blunt.sharpness == pytest.approx(0.125, rel=0.01)
    assert set(blunt.not_identified) == set(blunt.parameters)
    assert set(fit_corner(SIZES, SIZES**0.5).rule.not_identified) == set(blunt.parameters)


@settings(max_examples=100)
@given(rule=RULES_WITH_A_CORNER)
def test_corners_inside_the_data_are_identified(rule):
    assert type(rule).fit(SIZES, rule.learning_rate(SIZES)).not_identified == ()


def test_flags_have_no_part_in_what_a_rule_is():
    fitted = LinearWithCap.fit(SIZES, SIZES / 10)
    assert fitted == LinearWithCap(fitted.slope, np.inf)
    assert hash(fitted) == hash(LinearWithCap(fitted.slope, np.inf))
    assert "not_identified=('cap',)" in repr(fitted)


def test_models_without_a_corner_in_the_data_have_no_scales():
    model = NoisyQuadraticRule(theory.power_law(20), theory.StepBudget(1000))
    sizes = np.array([1.0, 2.0, 4.0, 8.0])
    assert model.fit(sizes, sizes / 10).not_identified == ("batch_scale", "rate_scale")
    around = 2.0 ** np.arange(14)
    assert model.fit(around, 0.1 * model.learning_rate(around / 4 + 1)).not_identified == ()


def best_steps(inputs, batch):
    """Step that shrinks E|θ|² fastest in the worst direction, from all batches drawn with replacement."""
    dim = inputs.shape[1]
    hessians = []
    for chosen in itertools.product(range(len(inputs)), repeat=batch):
        hessians.append(inputs[list(chosen)].T @ inputs[list(chosen)] / batch)
    first, second = np.mean(hessians, 0), np.mean([h @ h for h in hessians], 0)

    def worst(rate):
        return np.linalg.eigvalsh(np.eye(dim) - 2 * rate * first + rate**2 * second)[-1]

    top = 3 / np.linalg.eigvalsh(first)[-1]
    return optimize.minimize_scalar(worst, bounds=(0, top), method="bounded", options={"xatol": 1e-12}).x


def test_interpolation_rule_is_the_best_step_for_inputs_of_one_length():
    beta = 2.5
    inputs = np.array([[1.0, 0.2, 0.0], [1.0, -0.3, 0.1], [1.0, 0.1, 0.5], [-1.0, 0.2, 0.1]])
    inputs *= np.sqrt(beta) / np.linalg.norm(inputs, axis=1, keepdims=True)
    curvature = np.linalg.eigvalsh(inputs.T @ inputs / 4)
    rule = MaBassilyBelkin(beta, curvature[-1], curvature[0])
    assert 1 < rule.boundary_batch_size < 4  # both branches are tried
    found = [best_steps(inputs, batch) for batch in (1, 2, 3, 4, 5)]
    np.testing.assert_allclose(rule.learning_rate([1, 2, 3, 4, 5]), found, rtol=1e-6)


@given(ratio=st.floats(1.0, 1e6), largest=rates, size=st.floats(1.0, 1e9))
def test_interpolation_rule_at_equal_curvatures_is_mccandlish_s(ratio, largest, size):
    rule = MaBassilyBelkin(ratio * largest, largest, largest)
    assert rule.boundary_batch_size == np.inf
    other = McCandlish(1 / largest, ratio - 1)
    np.testing.assert_allclose(rule.learning_rate(size), other.learning_rate(size), rtol=1e-12)


def test_interpolation_rule_saturates_beyond_the_interpolation_batch_size():
    rule = MaBassilyBelkin(beta=64.0, largest=1.0)
    assert rule.boundary_batch_size - 1 == interpolation_batch_size(largest_squared_norm=64.0, largest_eigenvalue=1.0)
    np.testing.assert_allclose(rule.learning_rate([1, 65]), [1 / 64, 65 / 64])
    assert rule.learning_rate(np.inf) == 2.0


EPOCHS, STEPS = theory.EpochBudget(epochs=20, dataset_size=1024), theory.StepBudget(500)


@pytest.mark.parametrize(
    ("budget", "momentum", "tolerance"),
    [
        (EPOCHS, 0.0, 0.02),  # as few as 20 steps, where the optimum is not quite smooth
        (STEPS, 0.9, 0.01),
    ],
)
def test_a_noisy_quadratic_is_found_up_to_its_scales(budget, momentum, tolerance):
    rule = NoisyQuadraticRule(theory.power_law(20), budget, momentum, batch_scale=0.6, rate_scale=0.02)
    sizes = 2.0 ** np.arange(9)
    found = NoisyQuadraticRule(theory.power_law(20), budget, momentum).fit(sizes, rule.learning_rate(sizes))
    np.testing.assert_allclose(found.batch_scale, 0.6, rtol=tolerance)
    np.testing.assert_allclose(found.rate_scale, 0.02, rtol=tolerance)


def test_a_noisy_quadratic_without_scales_is_the_optimum_of_theory():
    problem, budget = theory.power_law(20), EPOCHS
    rule = NoisyQuadraticRule(problem, budget, schedule=theory.constant)
    sizes = np.array([1, 50, 1024])
    expected = theory.optimal_learning_rate(problem, budget, batch_size=sizes, schedule=theory.constant)
    np.testing.assert_array_equal(rule.learning_rate(sizes), expected)


def test_a_noisy_quadratic_whose_data_span_the_whole_data_set_leaves_no_choice_of_scale():
    budget = theory.EpochBudget(epochs=20, dataset_size=50)
    rule = NoisyQuadraticRule(theory.power_law(5), budget, batch_scale=8.0, rate_scale=0.5)
    found = NoisyQuadraticRule(theory.power_law(5), budget).fit([8, 40, 400], rule.learning_rate([8, 40, 400]))
    assert found.batch_scale == pytest.approx(8.0, rel=1e-12)
    # Not closer: a batch of 5 plus rounding has a budget of ⌊1000/5⌋ − 1 steps.
    assert found.rate_scale == pytest.approx(0.5, rel=1e-2)


TRUTHS = {
    "LinearWithCap": LinearWithCap(0.01, 1.0),
    "SquareRoot": SquareRoot(0.1),
    "McCandlish": McCandlish(1.0, 100.0),
    "MaBassilyBelkin": MaBassilyBelkin(100.0, 1.0),
    "SharpCorner": SharpCorner(1.0, 100.0, 2.0),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_data_choose_the_rule_they_came_from(name):
    """A rule with a parameter to spare wins by chance where χ² of 1 degree of freedom is above 3.6: in 6 % of data.

    So at least 14 of 20 are right, except with probability 1e-4.
    """
    rng = np.random.default_rng(0)
    won = 0
    for _ in range(20):
        data = TRUTHS[name].learning_rate(SIZES) * 2.0 ** rng.normal(0, 0.03, 13)
        won += compare_rules(SIZES, data, log_errors=0.03).rule.values[0] == name
    assert won >= 14


def test_data_choose_a_noisy_quadratic():
    sizes = 2.0 ** np.arange(1, 11)
    model = NoisyQuadraticRule(theory.power_law(20, 2.0), theory.EpochBudget(epochs=20, dataset_size=1024))
    data = 0.1 * model.learning_rate(sizes) * 2.0 ** np.random.default_rng(0).normal(0, 0.03, 10)
    table = compare_rules(sizes, data, rules=[*RULES, model], log_errors=0.03)
    assert table.rule.values[0] == "NoisyQuadraticRule"
    assert float(table.akaike_weight[0]) > 0.99


def test_a_comparison_reports_what_its_fits_are():
    sizes, data = SIZES[:8], McCandlish(1.0, 8.0).learning_rate(SIZES[:8]) * 2.0 ** np.linspace(-0.1, 0.1, 8) ** 2
    table = compare_rules(sizes, data, rules=[SquareRoot, McCandlish, LinearWithCap, SquareRoot])
    assert table.rule.values.tolist() == ["McCandlish", "SquareRoot 1", "SquareRoot 2", "LinearWithCap"]
    assert table.parameter_count.values.tolist() == [2, 1, 1, 2]
    assert bool((table.aicc.diff("rule") >= 0).all())
    assert float(table.akaike_weight.sum()) == pytest.approx(1.0)
    fit = McCandlish.fit(sizes, data)
    assert table.parameters.values[0] == f"maximum={fit.maximum:.4g}, noise_scale={fit.noise_scale:.4g}"
    squares = np.sum(np.log2(data / fit.learning_rate(sizes)) ** 2)
    assert float(table.rms[0]) == pytest.approx(np.sqrt(squares / 8))
    assert float(table.aicc[0]) == pytest.approx(8 * np.log(squares / 8) + 6 + 24 / 4)
    known = compare_rules(sizes, data, rules=[McCandlish], log_errors=0.2)
    assert float(known.aicc[0]) == pytest.approx(squares / 0.04 + 4 + 12 / 5)


def test_too_few_data_do_not_choose_and_no_rule_wins_by_default():
    """At four batch sizes only one parameter can be judged: the square root would have all the weight."""
    table = compare_rules([1, 2, 4, 8], [1.0, 1.0, 1.0, 1.0])
    assert np.isnan(table.akaike_weight.values).all()
    assert table.rule.values.tolist() == [rule.__name__ for rule in RULES]
    assert np.isfinite(table.aicc.values).tolist() == [rule is SquareRoot for rule in RULES]
    unjudged = "LinearWithCap, McCandlish, MaBassilyBelkin, SharpCorner"
    assert table.ranked == f"no: with 4 data AICc is not defined for {unjudged}"
    known = compare_rules([1, 2, 4, 8], [1.0, 1.0, 1.0, 1.0], log_errors=0.1, rules=RULES[:-1])
    assert known.ranked == "by AICc"
    assert known.rule.values[-1] == "SquareRoot"
    assert float(known.akaike_weight[-1]) < 1e-6


@given(count=st.integers(3, 8), known=st.booleans())
def test_weights_are_given_exactly_where_every_rule_can_be_judged(count, known):
    sizes = 2.0 ** np.arange(count)
    table = compare_rules(sizes, np.minimum(sizes, 3.0), log_errors=0.1 if known else None)
    judged = count >= 5 + (not known)  # the corner has three parameters, and a variance if errors are not known
    assert bool(np.isfinite(table.akaike_weight.values).all()) == (table.ranked == "by AICc") == judged
    assert bool(np.isfinite(table.aicc.values).all()) == judged


def test_exact_fits_are_ranked_by_their_parameters_not_by_rounding():
    for c in (0.3, 1.0, 7.0):
        assert compare_rules(SIZES, c * McCandlish(1.0, 37.0).learning_rate(SIZES)).rule.values[0] == "McCandlish"
        assert compare_rules(SIZES, c * np.minimum(SIZES / 37, 1.0)).rule.values[0] == "LinearWithCap"


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_exponent_is_that_of_linear_regression(seed):
    sizes, data = noisy(seed)
    exponent, error = linear_scaling_exponent(sizes, data)
    other = stats.linregress(np.log(sizes), np.log(data))
    np.testing.assert_allclose([exponent, error], [other.slope, other.stderr], rtol=1e-8)
    exponent, error = linear_scaling_exponent(sizes, data, log_errors=np.full(sizes.size, 0.3))
    fit, covariance = np.polyfit(np.log2(sizes), np.log2(data), 1, w=np.full(sizes.size, 1 / 0.3), cov="unscaled")
    np.testing.assert_allclose([exponent, error], [fit[0], np.sqrt(covariance[0, 0])], rtol=1e-8)


def test_exponent_uses_batches_up_to_and_including_the_boundary():
    data = np.minimum(SIZES, 64.0)
    assert linear_scaling_exponent(SIZES, data, below=64)[0] == pytest.approx(1.0)
    assert linear_scaling_exponent(SIZES, data, below=128)[0] < 0.97
    assert linear_scaling_exponent([1, 2], [1.0, 2.0], log_errors=0.5) == pytest.approx((1.0, 0.5 * np.sqrt(2)))


def least_misfit(sizes, data, sharpness=None, boundary=None):
    """Smallest Σ residual² with sharpness or boundary held, by Nelder–Mead from several starts."""

    def height(free):
        p = np.exp(np.clip(free[1], -2.05, 4.1)) if sharpness is None else sharpness
        size = 2.0 ** free[0] if boundary is None else boundary
        return misfit(np.log2(SharpCorner(1.0, size, p).learning_rate(sizes)), np.log2(data))

    starts = itertools.product([3.0, 7.0], [-1.0, 0.5, 3.0])
    runs = [optimize.minimize(height, s, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}) for s in starts]
    return min(run.fun for run in runs)


@pytest.mark.parametrize("known", [True, False])
def test_ends_of_the_sharpness_interval_are_where_the_likelihood_ratio_is_critical(known):
    data = SharpCorner(1.0, 40.0, 1.5).learning_rate(SIZES) * 2.0 ** np.random.default_rng(1).normal(0, 0.1, 13)
    fit = fit_corner(SIZES, data, log_errors=0.1 if known else None, confidence=0.9)
    best = least_misfit(SIZES, data)
    margin = 0.01 * stats.chi2(1).ppf(0.9) if known else best * stats.f(1, 10).ppf(0.9) / 10
    for p in fit.sharpness_interval:
        assert least_misfit(SIZES, data, sharpness=p) - best == pytest.approx(margin, rel=1e-4)
    for size in fit.boundary_interval:
        assert least_misfit(SIZES, data, boundary=size) - best == pytest.approx(margin, rel=1e-4)
    low, high = fit.sharpness_interval
    assert 0.5 < low < fit.rule.sharpness < high < 5
    assert fit.boundary_interval[0] < fit.rule.boundary_batch_size < fit.boundary_interval[1]


def test_sharpness_read_off_a_grid_of_powers_of_two_keeps_the_truth():
    """The boundary is kept up to an octave: along a straight line all rounding errors are the same."""
    for sharpness in (1.0, np.inf):
        exact = SharpCorner(0.3, 90.0, sharpness).learning_rate(SIZES)
        fit = fit_corner(SIZES, 2.0 ** np.round(np.log2(exact)), log_errors=0.29)
        assert fit.sharpness_interval[0] <= sharpness <= fit.sharpness_interval[1]
        assert fit.boundary_interval[0] / 2 <= 90 <= fit.boundary_interval[1] * 2


def test_intervals_are_open_where_data_say_nothing():
    sharp = fit_corner(SIZES, np.minimum(SIZES / 64, 1.0), log_errors=0.1)
    assert sharp.sharpness_interval[1] == np.inf > sharp.sharpness_interval[0] > 2
    assert 0 < sharp.boundary_interval[0] < 64 < sharp.boundary_interval[1] < np.inf
    rising = fit_corner(SIZES, SIZES, log_errors=0.1)
    assert rising.boundary_interval[1] == np.inf
    assert rising.boundary_interval[0] > 1000
    flat = fit_corner(SIZES, np.ones(13), log_errors=0.1)
    assert flat.boundary_interval[0] == 0
    assert flat.boundary_interval[1] < 3
    power = fit_corner(SIZES, SIZES**0.5, log_errors=0.29)
    assert power.sharpness_interval[0] == 0


def quadratic(problem=None, budget=EPOCHS, **options):
    return NoisyQuadraticRule(problem or theory.power_law(3), budget, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: McCandlish.fit([4], [1.0]), "batch_sizes: expected at least 2 different batch sizes"),
        (lambda: LinearWithCap.fit([4, 4], [1.0, 2.0]), "at least 2 different batch sizes"),
        (lambda: SharpCorner.fit([4, 8], [1.0, 2.0]), "at least 3 different batch sizes"),
        (lambda: SquareRoot.fit([], []), "batch_sizes: expected a number or a non-empty"),
        (lambda: McCandlish.fit([1, 2], [1.0, 0.0]), "learning_rates: expected learning rates > 0"),
        (lambda: McCandlish.fit([1, 2], [1.0, -1.0]), "learning_rates: expected values ≥ 0"),
        (lambda: McCandlish.fit([1, 2], [1.0, np.nan]), "learning_rates: expected numbers without NaN"),
        (lambda: McCandlish.fit([1, np.inf], [1.0, 1.0]), "batch_sizes: expected finite batch sizes"),
        (lambda: McCandlish.fit([0.5, 2], [1.0, 1.0]), "batch_sizes: expected values ≥ 1"),
        (lambda: McCandlish.fit([1, 2], [1.0, 1.0, 1.0]), "expected two \\(K,\\) arrays of one size"),
        (lambda: McCandlish.fit([1, 2], [1.0, 2.0], log_errors=0.0), "log_errors: expected a value > 0"),
        (lambda: McCandlish.fit([1, 2], [1.0, 2.0], log_errors=[0.1] * 3), "log_errors: expected a value > 0, or one"),
        (lambda: McCandlish(0.0, 1.0), "maximum: expected a number > 0, finite"),
        (lambda: McCandlish(1.0, -1.0), "noise_scale: expected a number ≥ 0"),
        (lambda: SharpCorner(1.0, 1.0, 0.0), "sharpness: expected a number > 0"),
        (lambda: LinearWithCap(np.inf, np.inf), "slope, cap: expected at least one of them finite"),
        (lambda: MaBassilyBelkin(1.0, 2.0), "expected smallest ≤ largest ≤ beta"),
        (lambda: SquareRoot(1.0).learning_rate(0), "batch_size: expected values ≥ 1"),
        (lambda: quadratic().learning_rate(5000), "batch_size: expected batch sizes in 1…1024"),
        (lambda: quadratic(batch_scale=8).learning_rate(4), "batch_size: expected batch sizes in 8…8192"),
        (lambda: quadratic().fit([1, 5000], [1.0, 1.0]), "batch_sizes: expected batch sizes that span at most"),
        (lambda: quadratic(momentum=1.0), "momentum: expected 0 ≤ momentum < 1"),
        (lambda: quadratic(budget=5), "budget: expected an EpochBudget or StepBudget"),
        (lambda: quadratic(theory.NoisyQuadratic([1.0], 1.0, 0.0, 0.0)), "problem: expected a start with some loss"),
        (lambda: compare_rules([1, 2, 4], [1.0, 2.0, 4.0], rules=[]), "rules: expected at least one rule"),
        (lambda: compare_rules([1, 2, 4], [1.0, 2.0, 4.0], rules=["linear"]), "rules: expected rules that can be"),
        (lambda: linear_scaling_exponent([1, 2], [1.0, 2.0]), "expected three data"),
        (lambda: linear_scaling_exponent(SIZES, SIZES, below=1), "expected two different batch sizes"),
        (lambda: fit_corner([1, 2, 4], [1.0, 2.0, 3.0]), "expected four data to tell their scatter"),
        (lambda: fit_corner(SIZES, SIZES, confidence=1.0), "confidence: expected a level between 0 and 1"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
