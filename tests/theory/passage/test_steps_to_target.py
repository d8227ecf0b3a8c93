"""First passages: against looking at every step, and far beyond where every step can be looked at."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from noisysgd import theory
from noisysgd.theory import testing
from noisysgd.theory.passage import additive as passage
from noisysgd.theory.passage.quadrature_bounds import momentum_growth, quadrature_error, sgd_growth
from noisysgd.theory.problems.spectral_quadrature import spectral_rule

mpmath = pytest.importorskip("mpmath")

LONG = 2000
PLATEAU = {"curvature": 0.9996730823257651, "rate": 2.000654049168703, "target": 0.4998365406630535}
TIE = 1e-9
"""Losses this close to the target, relatively, may count as either side of it."""


def first_passage_holds(steps, curve, target):
    """Whether `steps` is the first passage of a curve that has the loss of every step, but for ties."""
    if np.isinf(steps):
        return bool((curve > target * (1 - TIE)).all())
    return bool(curve[int(steps)] <= target * (1 + TIE) and (curve[: int(steps)] > target * (1 - TIE)).all())


def bisected(curve, target):
    """What a search finds that takes the loss for monotone."""
    low, high = 0, curve.size - 1
    if curve[high] > target:
        return np.inf
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if curve[middle] <= target else (middle + 1, high)
    return float(low)


@st.composite
def runs_and_targets(draw, problem):
    """A setting of the optimizer that need not be stable, its losses, and a target that it crosses now and then."""
    size, momentum = draw(testing.batch_sizes()), draw(testing.momenta(0.999))
    rate = draw(testing.learning_rates(problem, high=1.2, batch_size=size, momentum=momentum))
    run = {"learning_rate": rate, "batch_size": size, "momentum": momentum}
    curve = theory.loss_curve(problem, theory.constant(LONG), at=np.arange(LONG + 1), **run)
    seen = float(curve[draw(st.integers(1, LONG))])
    share = draw(st.one_of(st.just(1.001), st.floats(0.01, 1.1)))
    reference = seen if 0 < seen < problem.initial_loss else float(problem.initial_loss)
    target = share * reference
    assume(target > 1e-280)
    return run, curve, target


@settings(max_examples=300)
@given(data=st.data(), problem=st.one_of(testing.problems(weights=True), testing.least_squares_problems(weights=True)))
def test_no_step_before_the_first_passage_is_at_the_target(data, problem):
    assume(problem.initial_loss > 1e-6)
    run, curve, target = data.draw(runs_and_targets(problem))
    steps = theory.steps_to_target(problem, target, max_steps=LONG, **run)
    assert first_passage_holds(float(steps), curve, target)


@settings(max_examples=30)
@given(
    frequencies=st.lists(st.floats(0.05, 2.5), min_size=1, max_size=5),
    momentum=st.floats(0.9, 0.9999),
    share=st.floats(1e-6, 0.5),
)
def test_narrow_dips_of_an_oscillating_loss_are_not_leapt_over(frequencies, momentum, share):
    """Modes that turn by these angles a step pass through zero together now and then."""
    curvatures = 1 + momentum - 2 * np.sqrt(momentum) * np.cos(np.array(frequencies))
    problem = theory.NoisyQuadratic(curvatures, 0.0, initial_variance=1 / curvatures)
    run = {"learning_rate": 1.0, "batch_size": 1, "momentum": momentum}
    curve = theory.loss_curve(problem, theory.constant(LONG), at=np.arange(LONG + 1), **run)
    target = share * float(problem.initial_loss)
    steps = theory.steps_to_target(problem, target, max_steps=LONG, **run)
    assert first_passage_holds(float(steps), curve, target)


def test_a_search_that_takes_the_loss_for_monotone_fails_that_check():
    problem = theory.NoisyQuadratic([0.01, 0.3], 0.0, initial_variance=[100.0, 1.0])
    run = {"learning_rate": 1.0, "batch_size": 1, "momentum": 0.99}
    curve = theory.loss_curve(problem, theory.constant(LONG), at=np.arange(LONG + 1), **run)
    wrong = [
        target
        for target in np.geomspace(1e-3, 0.3, 50)
        if not first_passage_holds(bisected(curve, target), curve, target)
    ]
    assert len(wrong) > 10
    right = theory.steps_to_target(problem, wrong, **run)
    assert all(first_passage_holds(steps, curve, target) for steps, target in zip(right, wrong, strict=True))


# Beyond what can be looked at step by step: the passage itself, and random steps before it.


def passes_there(problem, steps, target, run, seed=0):
    """Whether the loss is at the target after `steps` and above it one step, and at 200 random steps, before."""
    steps = int(steps)
    before = np.random.default_rng(seed).integers(0, steps, 200)
    at = np.concatenate([[steps, steps - 1], before])
    last, *earlier = theory.loss_curve(problem, theory.constant(steps), at=at, **run)
    return bool(last <= target * (1 + TIE) and np.min(earlier) > target * (1 - TIE))


@settings(max_examples=40)
@given(
    exponent=st.floats(0.5, 2.0),
    slow=st.floats(-7, -1),
    share=st.floats(1.001, 30.0),
    size=st.integers(1, 10_000),
    momentum=testing.momenta(0.99),
)
def test_long_runs_pass_where_the_exact_loss_does(exponent, slow, share, size, momentum):
    """Learning rates down to 10⁻⁷ of the critical one, so up to 10⁹ steps, on a spectrum that is compressed."""
    problem = theory.power_law(400, exponent)
    run = {"batch_size": size, "momentum": momentum}
    run["learning_rate"] = 10**slow * float(theory.critical_learning_rate(problem, momentum=momentum))
    target = share * float(theory.stationary_loss(problem, **run))
    assume(1e-4 < target < 0.9 * problem.initial_loss)
    steps = float(theory.steps_to_target(problem, target, **run))
    assert passes_there(problem, steps, target, run)


@settings(max_examples=40)
@given(
    dim=st.integers(1, 40),
    slow=st.floats(-6, -0.005),
    share=st.floats(-150, -0.3),
    size=st.integers(1, 100),
    momentum=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    kurtosis=st.sampled_from([1.0, 2.0, 3.0, 9.0]),
)
def test_long_runs_of_least_squares_do_too(dim, slow, share, size, momentum, kurtosis):
    """Exact labels, so that every target is reached, most of them beyond the steps that are taken one by one."""
    problem = theory.LeastSquares(1 / np.arange(1.0, dim + 1), label_noise=0.0, kurtosis=kurtosis)
    run = {"batch_size": size, "momentum": momentum}
    run["learning_rate"] = 10**slow * float(theory.critical_learning_rate(problem, **run))
    target = 10**share * float(problem.initial_loss)
    steps = float(theory.steps_to_target(problem, target, **run))
    assert passes_there(problem, steps, target, run)


def test_least_squares_that_alternate_pass_where_looking_says():
    """Beyond ελ = 1 + … an eigenvalue of the update can be negative; ε just below critical, 60 000 steps."""
    problem = theory.LeastSquares([1.0, 1e-5], label_noise=0.0, kurtosis=1.0, initial_variance=[1.0, 1e4])
    run = {"learning_rate": 1.9, "batch_size": 50, "momentum": 0.0}
    at = np.arange(60_001)
    curve = theory.loss_curve(problem, theory.constant(60_000), at=at, **run)
    for target in curve[[30_000, 45_000, 59_999]] * (1 + 1e-7):
        assert first_passage_holds(float(theory.steps_to_target(problem, target, **run)), curve, target)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_least_squares_at_the_edge_of_stability_never_get_there(momentum):
    """To the last bit of the critical learning rate, where an eigenvalue may come out as exactly one."""
    for curvature in np.geomspace(0.01, 10, 40):
        for size in (1, 2, 4, 64):
            problem = theory.LeastSquares([curvature, curvature / 2], label_noise=1.0)
            edge = float(theory.critical_learning_rate(problem, size, momentum))
            for rate in (edge, np.nextafter(edge, 0), np.nextafter(edge, np.inf)):
                target = 0.01 * float(problem.initial_loss)
                run = {"learning_rate": rate, "batch_size": size, "momentum": momentum}
                assert theory.steps_to_target(problem, target, **run) == np.inf


def test_a_loss_that_noise_holds_up_never_arrives_and_says_so_at_once():
    problem = theory.power_law(100)
    run = {"learning_rate": 0.1, "batch_size": 1, "momentum": [0.0, 0.9]}
    floor = theory.stationary_loss(problem, **run)
    assert np.isinf(theory.steps_to_target(problem, 0.999 * floor, **run)).all()
    assert np.isfinite(theory.steps_to_target(problem, 1.001 * floor, **run)).all()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_modes_too_slow_for_a_single_step_to_show_pass_all_the_same(momentum):
    """ε_eff = 10⁻¹⁶: t = ln(1/0.9)/(2·10⁻¹⁶), to a relative 10⁻¹², since losses have but sixteen digits."""
    problem = theory.NoisyQuadratic([1.0], 0.0)
    steps = theory.steps_to_target(problem, 0.45, learning_rate=1e-16 * (1 - momentum), batch_size=1, momentum=momentum)
    assert steps == pytest.approx(np.log(1 / 0.9) / 2e-16, rel=1e-9)


def test_on_a_plateau_that_rounding_holds_up_closed_forms_decide():
    """Noiseless, ε at the edge for the steepest mode: its loss falls by less than a digit per step."""
    curvatures = np.concatenate([[PLATEAU["curvature"]], np.linspace(0.91, 0.99, 19)])
    run = {"learning_rate": PLATEAU["rate"], "batch_size": 1, "momentum": 1e-20}
    problem, target = theory.NoisyQuadratic(curvatures, 0.0), PLATEAU["target"]
    assert theory.steps_to_target(problem, target, max_steps=30, **run) == np.inf
    steps = int(theory.steps_to_target(problem, target, **run))
    before, at = (theory.expected_loss(problem, theory.constant(n), **run) for n in (steps - 1, steps))
    assert at <= target < before
    early = theory.loss_curve(problem, theory.constant(10**6), at=2 ** np.arange(20), **run)
    assert (early > target).all()


@pytest.mark.parametrize(("momentum", "fall"), [(1e-20, 1e-6), (1e-18, 1e-9)])
def test_a_loss_that_falls_by_less_than_rounding_in_a_step_passes_and_so_do_its_neighbours(momentum, fall):
    """At ε = 2/λ one mode keeps its size but for momentum: E θ² falls by a share of 4m in a step."""
    problem, target = theory.NoisyQuadratic([1.0], 0.0), 0.5 * (1 - fall)
    run = {"learning_rate": [0.1, 2.0], "batch_size": 1, "momentum": momentum}
    steps = theory.steps_to_target(problem, target, **run)
    assert steps[0] == 1
    assert steps[1] == pytest.approx(fall / (4 * momentum), rel=1e-6)


def test_late_dips_of_an_oscillation_are_told_apart_as_far_as_its_phase_is_known():
    """Against a loop in 60 digits. After 14 000 steps a phase is known to 10⁻¹², the loss of this dip to 10⁻⁸."""
    problem, target = theory.NoisyQuadratic([1.0], 0.0), 7.648266017446475e-70
    rate, momentum = 1.652941913607382, 0.99
    run = {"learning_rate": rate, "batch_size": 64, "momentum": momentum, "max_steps": 20_000}
    with mpmath.workdps(60):
        theta, velocity, count, passages = mpmath.mpf(1), mpmath.mpf(0), 0, []
        for level in (target * (1 + 1e-7), target * (1 - 1e-7)):
            while theta * theta > 2 * mpmath.mpf(level):
                velocity = mpmath.mpf(momentum) * velocity + theta
                theta, count = theta - mpmath.mpf(rate) * velocity, count + 1
            passages.append(count)
    high, same, low = theory.steps_to_target(problem, target * np.array([1 + 1e-7, 1, 1 - 1e-7]), **run)
    assert [high, low] == passages
    assert high <= same <= low


def test_a_mode_of_a_curvature_that_hardly_is_one_still_counts():
    """10⁻¹² of the steepest curvature, alone above the target in the end: ½·10⁻¹² exp(−2ε_eff·10⁻¹²·t) passes it."""
    steps = theory.steps_to_target(
        theory.NoisyQuadratic([1.0, 1e-12], 0.0), 1.5e-13, learning_rate=0.5, batch_size=1, momentum=0.5
    )
    assert steps == pytest.approx(np.log(0.5 / 0.15) / 2e-12, rel=1e-6)


def test_a_loud_but_flat_direction_does_not_drown_the_rest():
    problem = theory.NoisyQuadratic([1.0, 1e-2, 1e-16], [0.0, 0.0, 1e9])
    run = {"learning_rate": 0.1, "batch_size": 1, "momentum": 0.9}
    steps = int(theory.steps_to_target(problem, 1e-4, **run))
    curve = theory.loss_curve(problem, theory.constant(steps), at=np.arange(steps + 1), **run)
    assert first_passage_holds(steps, curve, 1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_numbers_at_the_ends_of_the_range_are_no_trouble(momentum):
    """No warnings either: they are errors in these tests."""
    problem, run = theory.power_law(10), {"batch_size": 64, "momentum": momentum}
    steps = theory.steps_to_target(problem, 0.1, learning_rate=[0.1, 1e200, 1e308], **run)
    assert 1 < steps[0] < np.inf
    assert np.isinf(steps[1:]).all()
    best = theory.fastest_on_grid(problem, 0.1, learning_rates=[0.1, 1e200], batch_size=64, momenta=momentum)
    assert (best.learning_rate, best.steps) == (0.1, steps[0])
    tiny = theory.NoisyQuadratic([1.0, 1e-310], [1e-6, 1.0])
    alone = theory.NoisyQuadratic([1.0], [1e-6])
    both = [theory.steps_to_target(p, 1e-3, learning_rate=[0.1, 1e-320], **run) for p in (tiny, alone)]
    np.testing.assert_array_equal(*both)


def test_the_start_and_standing_still():
    problem = theory.NoisyQuadratic([1.0], 0.0)
    assert theory.steps_to_target(problem, 0.5, learning_rate=0.0, batch_size=1) == 0
    assert theory.steps_to_target(problem, 0.49, learning_rate=0.0, batch_size=1) == np.inf
    assert theory.steps_to_target(problem, 0.49, learning_rate=2.5, batch_size=1) == np.inf
    assert theory.steps_to_target(problem, 0.1, learning_rate=0.5, batch_size=1, max_steps=1) == np.inf
    assert theory.steps_to_target(problem, 0.1, learning_rate=0.5, batch_size=1, max_steps=2) == 2


# The reference table, and compressed spectra.

SIZES, STEPS, RATES = zip(
    (4, 1_515_845, 0.01292),
    (64, 95_989, 0.2154),
    (256, 25_778, 0.7743),
    (4096, 7_870, 1.8957),
    (65536, 7_079, 1.8957),
    strict=True,
)


def test_the_reference_table_comes_out():
    grid = np.logspace(-5, 0.5, 100)
    problem = theory.power_law(10_000)
    steps = theory.steps_to_target(problem, 0.01, learning_rate=grid, batch_size=np.array(SIZES)[:, None])
    assert steps.min(axis=1).tolist() == list(STEPS)
    np.testing.assert_allclose(grid[steps.argmin(axis=1)], RATES, rtol=5e-4)
    found = [theory.fastest_on_grid(problem, 0.01, learning_rates=grid, batch_size=size) for size in SIZES]
    assert [one.steps for one in found] == list(STEPS)
    assert [one.learning_rate for one in found] == grid[steps.argmin(axis=1)].tolist()


def test_a_grid_with_momenta_is_searched_as_one_configuration_after_another_is():
    problem = theory.power_law(1000)
    rates, momenta = np.logspace(-3, 0.7, 25), 1 - np.logspace(-3, 0, 7)
    for size in (16, 4096):
        steps = theory.steps_to_target(problem, 0.02, learning_rate=rates[:, None], batch_size=size, momentum=momenta)
        best = theory.fastest_on_grid(problem, 0.02, learning_rates=rates, batch_size=size, momenta=momenta)
        at = np.unravel_index(steps.argmin(), steps.shape)
        assert best.steps == steps.min()
        assert (best.learning_rate, best.momentum) == (rates[at[0]], momenta[at[1]])


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
def test_compressing_the_spectrum_changes_no_passage(momentum, monkeypatch):
    rates = np.logspace(-3, 0.3, 12)
    run = {"learning_rate": rates, "batch_size": np.array([8, 512, np.inf])[:, None], "momentum": momentum}
    compressed = theory.steps_to_target(theory.power_law(3000), 0.05, **run)
    monkeypatch.setattr(passage, "OSCILLATIONS", (np.inf,))
    np.testing.assert_array_equal(compressed, theory.steps_to_target(theory.power_law(3000), 0.05, **run))
    assert np.isfinite(compressed).sum() > 12


def decay_factor(x, momentum, steps):
    """E θ² left of 1 after `steps` noiseless steps, for an array of x = ελ."""
    problem = theory.NoisyQuadratic(x, 0.0, initial_mean=1.0, initial_variance=0.0)
    return theory.expected_parameters(problem, theory.constant(steps), learning_rate=1.0, momentum=momentum) ** 2


def quadrature_bound(rule, rate, momentum, steps):
    """On the error of Σ mass E θ²."""
    rates = np.array([rate])
    growth = sgd_growth(rule.boundary, rates)
    if momentum > 0:
        growth = momentum_growth(rule.boundary, rates, np.array([momentum]))
    return quadrature_error(np.array([float(steps)]), rule, growth)[0][0]


@settings(max_examples=150)
@given(
    logs=st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).uniform(-9, 0, 400)),
    share=st.floats(-4, -0.01),
    momentum=st.sampled_from([0.0, 0.3, 0.9, 0.99]),
    steps=st.integers(1, 3000),
    oscillations=st.sampled_from([0.0, 256.0, 4096.0]),
)
def test_the_error_of_a_compressed_spectrum_is_within_its_computed_bound(logs, share, momentum, steps, oscillations):
    eigenvalues = np.exp(logs)
    masses = np.random.default_rng(1).uniform(0, 1, 400)
    rule = spectral_rule(eigenvalues, masses, oscillations)
    assume(not rule.exact)
    rate = 10**share * 2 * (1 + momentum)
    bound = quadrature_bound(rule, rate, momentum, steps)
    exact = masses @ decay_factor(rate * eigenvalues, momentum, steps)
    found = rule.weights @ decay_factor(rate * rule.nodes, momentum, steps)
    rounding = 1e-12 * masses.sum()
    assert abs(found - exact) <= bound + rounding


def test_the_bound_is_sharp_enough_to_catch_a_rule_that_is_off_by_a_millionth():
    """Else the check above would say nothing."""
    eigenvalues = 1 / np.arange(1.0, 3001)
    rule = spectral_rule(eigenvalues, eigenvalues)
    for steps in (1, 30, 1000):
        bound = quadrature_bound(rule, 0.5, 0.0, steps)
        exact = eigenvalues @ decay_factor(0.5 * eigenvalues, 0.0, steps)
        mutant = 1.000001 * rule.weights @ decay_factor(0.5 * rule.nodes, 0.0, steps)
        assert abs(mutant - exact) > 10 * bound
        assert bound < 1e-9 * eigenvalues.sum()


# The best learning rate for a target.


@settings(max_examples=15)
@given(
    problem=testing.problems(full_noise=False, condition_number=50).filter(lambda p: p.initial_loss > 1e-2),
    size=testing.batch_sizes(),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    share=st.floats(0.02, 0.5),
)
def test_no_learning_rate_of_a_fine_grid_gets_there_sooner(problem, size, momentum, share):
    target = share * float(problem.initial_loss)
    best = theory.minimum_steps(problem, target, batch_size=size, momentum=momentum)
    edge = float(theory.critical_learning_rate(problem, momentum=momentum))
    grid = edge * np.geomspace(1e-4, 1.0, 2001)
    others = theory.steps_to_target(problem, target, learning_rate=grid, batch_size=size, momentum=momentum)
    wide = np.maximum(others[3:-3], np.minimum(others[6:], others[:-6]))  # no needles, of less than 1 %
    assert best.steps <= wide.min()
    if np.isfinite(best.steps):
        run = {"learning_rate": best.learning_rate, "batch_size": size, "momentum": momentum}
        assert theory.steps_to_target(problem, target, **run) == best.steps


def test_the_tradeoff_is_what_it_says_and_near_a_hyperbola():
    problem = theory.power_law(100, dataset_size=2**16)
    sizes = 2.0 ** np.arange(0, 17, 2)
    curve = theory.steps_examples_tradeoff(problem, 0.05, batch_sizes=sizes, momentum=[0.0, 0.9])
    best = theory.minimum_steps(problem, 0.05, batch_size=sizes, momentum=np.array([0.0, 0.9])[:, None])
    np.testing.assert_array_equal(curve.steps, best.steps)
    np.testing.assert_array_equal(curve.examples, best.steps * sizes)
    np.testing.assert_array_equal(curve.minimum_steps, best.steps[:, -1])  # the full batch
    np.testing.assert_array_equal(curve.minimum_examples, curve.examples.min("batch_size"))
    assert (np.diff(curve.steps.values) <= 0).all()
    middle = curve.hyperbola.sel(momentum=0.0).values[1:-1]
    assert ((middle > 0.05) & (middle < 20)).all()  # a constant learning rate follows McCandlish's curve that well


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 0.0}, "target: expected positive, finite losses"),
        ({"target": np.nan}, "target: expected numbers without NaN"),
        ({"learning_rate": -1.0}, "learning_rate: expected values ≥ 0"),
        ({"batch_size": 0}, "batch_size: expected values ≥ 1"),
        ({"momentum": 1.0}, "momentum: expected 0 ≤ momentum < 1"),
        ({"max_steps": -1}, "max_steps: expected an integer ≥ 0"),
        ({"target": [0.1, 0.2], "batch_size": [1, 2, 3]}, "expected shapes that broadcast"),
    ],
)
def test_bad_questions_are_refused(change, message):
    question = {"target": 0.1, "learning_rate": 0.1, "batch_size": 1} | change
    with pytest.raises(ValueError, match=message):
        theory.steps_to_target(theory.power_law(3), **question)


def test_trade_offs_of_nothing_are_refused():
    with pytest.raises(ValueError, match="problem: expected a Quadratic, got 'x'"):
        theory.steps_examples_tradeoff("x", 0.1, batch_sizes=[1])


def test_grids_that_are_none_are_refused():
    problem = theory.power_law(3)
    with pytest.raises(ValueError, match="learning_rates: expected a number or a non-empty 1-D array"):
        theory.fastest_on_grid(problem, 0.1, learning_rates=[], batch_size=1)
    with pytest.raises(ValueError, match="batch_size: expected a single number"):
        theory.fastest_on_grid(problem, 0.1, learning_rates=[0.1], batch_size=[1, 2])
