"""From measurements to predictions, and the claims of the demonstration."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisysgd import simulators, theory
from noisysgd.validation import calibrated_quadratic, observed_boundary, predict_regimes
from noisysgd.validation.demo.claims import power, regime_claims, simulation_claim


def state(**values):
    return {name: {"value": value} for name, value in values.items()}


@given(
    top=st.floats(0.1, 100),
    gradient=st.floats(1e-3, 10),
    noise=st.floats(1, 1e4),
    stretch=st.floats(1.001, 8.0),
)
def test_calibration_meets_every_measured_number(top, gradient, noise, stretch):
    loss = stretch * gradient / (2 * top)
    problem = calibrated_quadratic(state(lambda_max=top, gradient_norm_squared=gradient, trace_noise=noise), loss=loss)
    assert float(problem.largest_eigenvalue) == pytest.approx(top)
    assert (problem.eigenvalues**2 * problem.initial_second_moment).sum() == pytest.approx(gradient, rel=1e-9)
    assert float(problem.initial_loss) == pytest.approx(loss, rel=1e-9)
    assert problem.noise.sum() == pytest.approx(noise)


def test_grouping_modes_changes_nothing_that_matters():
    """Against the same spectrum with every mode for itself: D = 1000, λ = 3/i."""
    curvature = 3.0 / np.arange(1, 1001)
    full = theory.NoisyQuadratic(curvature, noise=40 * curvature, initial_variance=0.2)
    measured = state(lambda_max=3.0, gradient_norm_squared=(curvature**2).sum() * 0.2, trace_noise=40 * curvature.sum())
    grouped = calibrated_quadratic(measured, loss=float(full.initial_loss))
    assert grouped.dim < 120
    budget = theory.EpochBudget(epochs=12, dataset_size=1280)
    sizes = [16, 128, 1280]
    one, other = (theory.regimes(p, budget, batch_sizes=sizes).effective_learning_rate for p in (full, grouped))
    np.testing.assert_allclose(other, one, rtol=0.05)


def test_critical_rates_and_boundaries_of_each_state():
    states = [
        {"step": 0} | state(lambda_max=4.0, B_simple=64.0),
        {"step": 10} | state(lambda_max=-1.0, B_simple=None),
    ]
    predicted = predict_regimes(states, momentum=[0.0, 0.9])
    np.testing.assert_allclose(predicted.critical_learning_rate.sel(step=0), [0.5, 0.95])
    np.testing.assert_allclose(predicted.critical_effective_learning_rate.sel(step=0), [0.5, 9.5])
    np.testing.assert_allclose(predicted.boundary_batch_size.sel(step=0), [64, 64 * 19])
    assert np.isnan(predicted.sel(step=10).critical_learning_rate).all()
    assert np.isnan(predicted.sel(step=10).boundary_batch_size).all()


def two_regimes(ceiling_sgd, ceiling_momentum):
    """A Sweep whose optimum is min(B/16, ceiling), per optimizer."""
    records = []
    for momentum, ceiling in ((0.0, ceiling_sgd), (0.9, ceiling_momentum)):
        for size in (16, 64, 256):
            best = min(size / 16, ceiling)
            for exponent in range(-3, 8):
                loss = 1 + (exponent - np.log2(best)) ** 2
                records.append(
                    {
                        "momentum": momentum,
                        "batch_size": size,
                        "learning_rate": 2.0**exponent * (1 - momentum),
                        "seed": 0,
                        "status": "complete",
                        "train_loss": loss,
                    }
                )
    sweep = theory.sweep_from_records(records, source="training", metrics=["train_loss"])
    return theory.optimum(sweep, "train_loss", keep=1)


def test_observed_boundary_is_where_scaling_meets_the_plateau():
    seen = observed_boundary(two_regimes(4, 16))
    np.testing.assert_allclose(seen.boundary_batch_size, [64, 256])
    np.testing.assert_allclose(seen.plateau, [4, 16])


@pytest.mark.parametrize(("dim", "largest"), [(5, 2048), (40, 256)])  # all curves have a single minimum
def test_the_interval_of_a_boundary_includes_the_steps_of_the_grid(dim, largest):
    """However coarse the grid, the boundary on a fine one lies inside; where an optimum is at the end, it is open."""
    problem, budget = theory.power_law(dim), theory.EpochBudget(20, 4096)

    def boundary(grid):
        options = {"batch_sizes": [4, 64, largest], "effective_learning_rates": grid, "momentum": [0.0, 0.9]}
        return observed_boundary(theory.optimum(theory.predict_sweep(problem, budget, **options), "expected_loss"))

    fine = boundary(theory.powers_of_two(-12, 6, 8)).boundary_batch_size
    for shift in (1.0, 1.3, 1.7):
        coarse = boundary(shift * theory.powers_of_two(-12, 6))
        assert (coarse.boundary_batch_size_low < fine).all()
        assert (fine < coarse.boundary_batch_size_high).all()
    cut = boundary(theory.powers_of_two(-12, -2))
    assert np.isposinf(cut.boundary_batch_size_high).all()


def test_claims_are_seen_when_there_and_not_when_not():
    assert [claim.seen for claim in regime_claims(two_regimes(4, 16))] == [True] * 4
    assert [claim.seen for claim in regime_claims(two_regimes(4, 4))] == [True, True, False, True]
    assert [claim.seen for claim in regime_claims(two_regimes(1, 1))] == [True, False, False, True]
    assert [claim.seen for claim in regime_claims(two_regimes(4, 128))] == [True, True, True, True]


def test_nothing_to_compare_is_nothing_seen():
    exact = theory.predict_sweep(
        theory.power_law(3), theory.StepBudget(5), batch_sizes=[1], effective_learning_rates=[0.5], momentum=0.0
    )
    empty = exact.assign(standard_error=exact.expected_loss, status=0 * exact.status).expand_dims("seed")
    empty["status"] = empty.status.expand_dims("seed") if "seed" not in empty.status.dims else empty.status
    assert not simulation_claim(exact, empty).seen
    best = two_regimes(4, 16)
    lost = best.copy(deep=True)
    for name in ("effective_learning_rate", "effective_learning_rate_low", "effective_learning_rate_high"):
        lost[name][1, 0] = np.nan
    assert not regime_claims(lost)[0].seen


def test_a_simulation_with_too_much_noise_is_found_out():
    """Power: the claim must fail for a simulator whose gradient noise has 10 % too much variance."""
    budget = theory.StepBudget(60)
    grid = {"batch_sizes": [1, 4], "effective_learning_rates": [0.25, 0.5, 1.0], "momentum": 0.0}
    right = theory.NoisyQuadratic(np.ones(64), 1.0)
    wrong = theory.NoisyQuadratic(np.ones(64), 1.1)
    exact = theory.predict_sweep(right, budget, **grid)
    assert simulation_claim(exact, simulators.simulate_sweep(right, budget, **grid)).seen
    assert not simulation_claim(exact, simulators.simulate_sweep(wrong, budget, **grid)).seen


def test_powers_of_two_are_written_as_such():
    assert [power(x) for x in (0.25, 1.0, 1024.0, 0.3, float("nan"))] == ["2⁻²", "2⁰", "2¹⁰", "0.3", "none"]


def test_models_made_of_examples_are_sent_to_their_own_sweep():
    grid = {"batch_sizes": [4], "effective_learning_rates": [0.1]}
    with pytest.raises(ValueError, match=r"got .DiagonalNetwork.\. simulators\.bracketed_sweep takes"):
        simulators.simulate_sweep(simulators.sparse_regression(), theory.StepBudget(10), **grid)
