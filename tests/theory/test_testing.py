"""The strategies that are offered to others draw what they say."""

import dataclasses
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from noisysgd import theory
from noisysgd.theory import testing
from noisysgd.theory.scaling.regime_map import CURVATURE_DOMINATED, NOISE_DOMINATED, NOISE_INSTABILITY, regime_labels

REGIMES = (NOISE_DOMINATED, CURVATURE_DOMINATED, NOISE_INSTABILITY)

either_kind = st.one_of(
    testing.problems(weights=True), testing.problems(condition_number=1e3), testing.least_squares_problems(weights=True)
)

STRATEGIES = {  # how to call each strategy that is offered, and what it draws
    "batch_sizes": (testing.batch_sizes, int),
    "budgets": (testing.budgets, theory.EpochBudget | theory.StepBudget),
    "learning_rates": (lambda: testing.learning_rates(theory.power_law(3)), float),
    "least_squares_problems": (testing.least_squares_problems, theory.LeastSquares),
    "momenta": (testing.momenta, float),
    "problems": (testing.problems, theory.NoisyQuadratic),
    "schedules": (testing.schedules, theory.Schedule),
    "settings_in": (lambda: testing.settings_in(NOISE_DOMINATED, theory.power_law(3)), testing.Setting),
    "spectra": (testing.spectra, np.ndarray),
}
OTHER = {"Setting", "register"}


def test_every_public_name_is_a_strategy_listed_here_or_no_strategy():
    assert set(testing.__all__) == set(STRATEGIES) | OTHER


@pytest.mark.parametrize("name", testing.__all__)
def test_every_public_name_is_documented(name):
    documentation = getattr(testing, name).__doc__
    assert documentation
    assert name == "Setting" or ">>> " in documentation, "an example is missing"


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_draws_what_it_says(name):
    make, kind = STRATEGIES[name]

    @settings(max_examples=20)
    @given(make())
    def check(value):
        assert isinstance(value, kind)

    check()


def exists(strategy, condition):
    """Whether 200 examples contain such a one."""
    once = settings(max_examples=200, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    try:
        find(strategy, condition, settings=once, random=random.Random(0))
    except NoSuchExample:
        return False
    return True


@settings(max_examples=100)
@given(testing.spectra(max_dim=4))
def test_spectra_are_within_their_ranges(eigenvalues):
    assert 1 <= eigenvalues.size <= 4
    curved = eigenvalues[eigenvalues > 0]
    assert ((eigenvalues == 0) | ((eigenvalues > 0.99e-6) & (eigenvalues < 101))).all()
    assert curved.size >= 1
    assert 0.99e-2 < eigenvalues[0] < 101


@settings(max_examples=100)
@given(testing.spectra(condition_number=50.0))
def test_spectra_of_a_condition_number_keep_to_it(eigenvalues):
    assert eigenvalues[0] == eigenvalues.max()
    assert eigenvalues.max() / eigenvalues.min() <= 50 * (1 + 1e-12)


def test_spectra_of_a_condition_number_reach_it():
    assert exists(testing.spectra(condition_number=50.0), lambda eigenvalues: np.ptp(np.log(eigenvalues)) > np.log(25))


PRESENT = {
    "flat modes": lambda problem: (problem.eigenvalues == 0).any(),
    "several modes": lambda problem: problem.dim >= 3,
    "a start at the minimum": lambda problem: problem.initial_loss == 0,
    "a start away from it": lambda problem: problem.initial_loss > 0,
    "a data set of known size": lambda problem: problem.dataset_size == 1000,
    "examples that never run out": lambda problem: problem.dataset_size is None,
    "weights": lambda problem: (problem.weights != 1).any(),
}


@pytest.mark.parametrize("feature", PRESENT)
@pytest.mark.parametrize("strategy", [testing.problems(weights=True), testing.least_squares_problems(weights=True)])
def test_problems_come_in_all_kinds(strategy, feature):
    assert exists(strategy, PRESENT[feature])


def test_noise_comes_in_all_kinds():
    for present in (
        lambda problem: problem.noise.ndim == 1,
        lambda problem: problem.noise.ndim == 2 and (problem.noise != np.diag(problem.noise_diagonal)).any(),
        lambda problem: not problem.noise.any(),
    ):
        assert exists(testing.problems(weights=True), present)
    for present in (
        lambda problem: problem.label_noise == 0,
        lambda problem: problem.label_noise > 0,
        lambda problem: problem.kurtosis == 3,
        lambda problem: problem.kurtosis < 2,
    ):
        assert exists(testing.least_squares_problems(), present)


@settings(max_examples=50)
@given(testing.problems(), testing.problems(full_noise=False, weights=True), testing.least_squares_problems())
def test_options_leave_out_what_they_say(unweighted, diagonal, regression):
    assert (unweighted.weights == 1).all()
    assert diagonal.noise.ndim == 1
    assert (regression.weights == 1).all()


@settings(max_examples=100)
@given(problem=either_kind)
def test_problems_are_within_their_ranges(problem):
    assert problem.dim <= 6
    assert ((problem.weights >= 1) & (problem.weights <= 100)).all()
    assert (np.abs(problem.initial_mean) <= 2).all()
    assert ((problem.initial_variance >= 0) & (problem.initial_variance <= 2)).all()
    if isinstance(problem, theory.LeastSquares):
        assert problem.label_noise == 0 or 1e-3 <= problem.label_noise <= 2
        assert 1 <= problem.kurtosis <= 9
    else:
        assert problem.noise_diagonal.max() <= max(2, problem.dim)


@settings(max_examples=30)
@given(budget=testing.budgets(max_steps=300, max_epochs=5), problem=testing.problems(), size=testing.batch_sizes())
def test_budgets_have_a_step_for_every_batch_size_and_suit_every_problem(budget, problem, size):
    steps = budget.steps(size)
    if isinstance(budget, theory.StepBudget):
        assert 1 <= steps <= 300
    else:
        assert 1000 // size <= steps <= 5 * 1000 // size
    theory.optimal_learning_rate(
        theory.NoisyQuadratic([1.0], 1.0, dataset_size=problem.dataset_size), budget, batch_size=size
    )


@pytest.mark.parametrize("kind", [theory.EpochBudget, theory.StepBudget])
def test_budgets_are_of_either_kind(kind):
    assert exists(testing.budgets(), lambda budget: isinstance(budget, kind))


@settings(max_examples=100)
@given(data=st.data(), problem=either_kind, size=testing.batch_sizes(), momentum=testing.momenta(0.8))
def test_learning_rates_are_shares_of_the_critical_one(data, problem, size, momentum):
    assert momentum == 0.0 or 0.01 <= momentum <= 0.8
    rate = data.draw(testing.learning_rates(problem, 0.1, 0.5, batch_size=size, momentum=momentum))
    share = rate / theory.critical_learning_rate(problem, size, momentum)
    assert 0.1 * (1 - 1e-12) <= share <= 0.5 * (1 + 1e-12)


@settings(max_examples=100)
@given(data=st.data(), problem=either_kind, factor=st.floats(2, 1e4))
def test_noise_dominated_settings_are_far_below_the_critical_learning_rate(data, problem, factor):
    setting = data.draw(testing.settings_in(NOISE_DOMINATED, problem, factor=factor))
    critical = theory.critical_learning_rate(problem, setting.batch_size)
    share = theory.effective_learning_rate(setting.learning_rate, setting.momentum) / critical
    assert 0.01 / factor * (1 - 1e-12) <= share <= (1 + 1e-12) / factor
    assert problem.noise_factor(setting.batch_size) > 0


@settings(max_examples=100)
@given(data=st.data(), problem=either_kind)
def test_curvature_dominated_settings_are_within_a_factor_of_two_of_it_and_stable(data, problem):
    setting = data.draw(testing.settings_in(CURVATURE_DOMINATED, problem))
    critical = theory.critical_learning_rate(problem, setting.batch_size, setting.momentum)
    assert 0.5 * (1 - 1e-12) <= setting.learning_rate / critical <= 0.99 * (1 + 1e-12)
    assert setting.learning_rate >= 0.5 * theory.critical_learning_rate(problem, momentum=setting.momentum)
    loss = theory.expected_loss(problem, theory.constant(10**6), **setting._asdict())
    assert np.isfinite(loss)


@settings(max_examples=100)
@given(data=st.data(), problem=testing.least_squares_problems(), regime=st.sampled_from(REGIMES))
def test_settings_have_the_label_that_regimes_would_give(data, problem, regime):
    sizes = st.integers(1, 2) if regime == NOISE_INSTABILITY else None
    setting = data.draw(testing.settings_in(regime, problem, batch_size=sizes))
    edge = theory.critical_learning_rate(problem, setting.batch_size, setting.momentum)
    critical = theory.critical_learning_rate(problem, momentum=setting.momentum)
    assert regime_labels(np.array(setting.learning_rate), edge, critical) == regime


def test_settings_take_strategies_of_ones_own():
    setting = find(
        testing.settings_in(CURVATURE_DOMINATED, theory.power_law(3), batch_size=st.just(7), momentum=st.just(0.25)),
        lambda setting: True,
    )
    assert setting[1:] == (7, 0.25)


def test_settings_with_noise_never_take_the_full_batch():
    problem = theory.power_law(3, dataset_size=10)
    assert exists(testing.settings_in(CURVATURE_DOMINATED, problem), lambda setting: setting.batch_size == 10)
    assert not exists(testing.settings_in(NOISE_DOMINATED, problem), lambda setting: setting.batch_size == 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("noisy", theory.power_law(3)), "regime: expected one of 'noise dominated', 'curvature dominated'"),
        ((NOISE_DOMINATED, theory.power_law(3), 1.5), "factor: expected values ≥ 2, got 1.5"),
        ((NOISE_INSTABILITY, theory.power_law(3)), "problem: expected a LeastSquares"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    regime, problem, *factor = arguments
    strategy = testing.settings_in(regime, problem, **({"factor": factor[0]} if factor else {}))
    with pytest.raises(ValueError, match=message):
        find(strategy, lambda setting: True)


@pytest.mark.parametrize(
    "kind",
    [
        theory.NoisyQuadratic,
        theory.LeastSquares,
        theory.Quadratic,
        theory.Schedule,
        theory.EpochBudget,
        theory.StepBudget,
        theory.Budget,
    ],
)
def test_registered_types_are_drawn_by_from_type(kind):
    testing.register()

    @settings(max_examples=20)
    @given(st.from_type(kind))
    def check(value):
        if kind is theory.Budget:
            assert value.steps(1) >= 1
        else:
            assert isinstance(value, kind)

    check()


def test_builds_fills_in_registered_types():
    testing.register()

    @dataclasses.dataclass
    class Experiment:
        problem: theory.NoisyQuadratic
        schedule: theory.Schedule

    @settings(max_examples=20)
    @given(st.builds(Experiment))
    def check(experiment):
        loss = theory.expected_loss(experiment.problem, experiment.schedule, learning_rate=0.1, batch_size=1)
        assert not np.isnan(loss)

    check()
