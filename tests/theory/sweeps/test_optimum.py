"""The Sweep schema and the paper's selection rule."""

import itertools

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from noisysgd import theory

RATES = [0.25, 0.5, 1.0, 2.0, 4.0]


def sweep_of(table, metric="train_loss", momentum=0.0):
    """A Sweep from {learning rate: [value per seed]}; None is missing, inf diverged."""
    records = [
        {
            "momentum": momentum,
            "batch_size": 64,
            "learning_rate": rate,
            "seed": seed,
            "status": "complete" if np.isfinite(value) else "diverged",
            metric: value if np.isfinite(value) else None,
        }
        for rate, values in table.items()
        for seed, value in enumerate(values)
        if value is not None
    ]
    return theory.sweep_from_records(records, source="training", metrics=[metric])


def rule_by_hand(table, keep, maximize=False):
    """The rule of section 4 in plain Python: (optimum, lowest, highest of the error bar)."""
    means, deviations = {}, {}
    for rate, values in table.items():
        best = sorted((v for v in values if v is not None), reverse=maximize)[:keep]
        if len(best) == keep and all(map(np.isfinite, best)):
            means[rate], deviations[rate] = np.mean(best), np.std(best, ddof=1) if keep > 1 else 0.0
    if not means:
        return None
    sign = -1 if maximize else 1
    chosen = min(means, key=lambda rate: (sign * means[rate], rate))
    bar = [r for r in means if abs(means[r] - means[chosen]) <= deviations[chosen]]
    return chosen, min(bar), max(bar)


@given(
    st.lists(
        st.lists(
            st.one_of(st.none(), st.just(np.inf), st.floats(0.1, 10).map(lambda x: round(x, 3))), min_size=4, max_size=4
        ),
        min_size=5,
        max_size=5,
    ).filter(lambda rows: any(v is not None for row in rows for v in row)),
    st.integers(1, 3),
)
def test_optimum_is_the_papers_rule(rows, keep):
    table = dict(zip(RATES, rows, strict=True))
    sweep = sweep_of(table)
    if keep > sweep.sizes["seed"]:
        return
    best = theory.optimum(sweep, "train_loss", keep=keep).squeeze()
    expected = rule_by_hand(table, keep)
    if expected is None:
        assert np.isnan(best.learning_rate)
        assert not best.bracketed
        return
    found = (best.learning_rate, best.learning_rate_low, best.learning_rate_high)
    np.testing.assert_allclose(found, expected)
    counts = {rate: sum(v is not None for v in row) for rate, row in table.items()}
    judged = [rate for rate, count in counts.items() if count >= keep]
    inside = expected[1] > judged[0] and expected[2] < judged[-1]
    lower = max((rate for rate in judged if rate < expected[1]), default=0.0)
    upper = min((rate for rate in judged if rate > expected[2]), default=np.inf)
    assert (best.learning_rate_lower, best.learning_rate_upper) == (lower, upper)
    gaps = [rate for rate, count in counts.items() if 0 < count < keep and lower < rate < upper]
    assert best.unjudged == len(gaps)
    assert str(best.unjudged_rates.item()) == ", ".join(f"{r:g} ({counts[r]} of {keep} runs)" for r in gaps)
    assert bool(best.bracketed) == (inside and not gaps)


def test_accuracy_is_maximized_and_failed_runs_are_dropped():
    table = {0.5: [0.90, 0.91, 0.10], 1.0: [0.95, 0.94, 0.12], 2.0: [0.93, 0.80, np.inf]}
    best = theory.optimum(sweep_of(table, "test_accuracy"), "test_accuracy", keep=2).squeeze()
    assert best.learning_rate == 1.0
    assert best["mean"] == pytest.approx(0.945)
    assert best.bracketed


def test_divergence_brackets_but_absence_does_not():
    tail = {4.0: [np.inf, np.inf]}
    table = {1.0: [3.0, 3.0], 2.0: [1.0, 1.0]}
    assert theory.optimum(sweep_of({0.5: [4.0, 4.0]} | table | tail), "train_loss", keep=2).bracketed.all()
    assert not theory.optimum(
        sweep_of({0.5: [4.0, 4.0]} | table | {4.0: [None, 9.0]}), "train_loss", keep=2
    ).bracketed.any()


def test_momentum_is_compared_at_effective_learning_rates():
    sweep = sweep_of({0.05: [3.0], 0.1: [1.0], 0.2: [2.0]}, momentum=0.9)
    best = theory.optimum(sweep, "train_loss", keep=1).squeeze()
    assert float(best.effective_learning_rate) == pytest.approx(1.0)
    assert float(best.temperature) == pytest.approx(1.0 / 64)


def test_rule_works_over_every_remaining_dimension_and_in_any_order():
    problem, budget = theory.power_law(10), theory.StepBudget(40)
    sweep = theory.predict_sweep(
        problem, budget, batch_sizes=[1, 16, 256], effective_learning_rates=theory.powers_of_two(-6, 5)
    )
    best = theory.optimum(sweep, "expected_loss")
    turned = theory.optimum(sweep.transpose("learning_rate", "batch_size", "optimizer"), "expected_loss")
    shuffled = theory.optimum(sweep.isel(learning_rate=np.argsort(np.sin(np.arange(24)))), "expected_loss")
    xr.testing.assert_identical(shuffled, best)
    for k, j in itertools.product(range(2), range(3)):
        here = sweep.isel(optimizer=k, batch_size=j).expected_loss
        assert best.learning_rate[k, j] == here.learning_rate[int(np.nanargmin(here.values))]
        assert turned.learning_rate.transpose("optimizer", "batch_size")[k, j] == best.learning_rate[k, j]


def test_sweep_survives_a_file(tmp_path):
    sweep = sweep_of({0.5: [1.0, np.inf], 1.0: [2.0, None]})
    sweep = sweep.assign_coords(seed=[0, 2**60])
    path = theory.save_sweep(sweep, tmp_path / "sweep.nc")
    xr.testing.assert_identical(theory.load_sweep(path), sweep)
    assert [p.name for p in tmp_path.iterdir()] == ["sweep.nc"]


def test_diverged_is_never_confused_with_missing():
    sweep = sweep_of({0.5: [1.0, np.inf], 1.0: [2.0, None]}).squeeze()
    assert sweep.status.values.tolist() == [[1, 2], [1, 0]]
    assert sweep.train_loss[0, 1] == np.inf
    assert np.isnan(sweep.train_loss[1, 1])


def test_a_damaged_or_foreign_file_is_refused(tmp_path):
    path = theory.save_sweep(sweep_of({0.5: [1.0]}), tmp_path / "sweep.nc")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="expected a Sweep"):
        theory.load_sweep(path)
    foreign = tmp_path / "foreign.nc"
    xr.Dataset({"x": ("t", [1.0])}).to_netcdf(foreign, engine="scipy")
    with pytest.raises(ValueError, match="schema version"):
        theory.load_sweep(foreign)


@pytest.mark.parametrize("name", ["test_acc", "val/acc", "top1", "auc", "accuracy_gap", "neg_log_loss", "mse"])
def test_no_direction_is_guessed(name):
    sweep = sweep_of({0.1: [0.5], 0.2: [0.8], 0.4: [0.95], 0.8: [0.9]}, name)
    assert "objective" not in sweep[name].attrs
    with pytest.raises(ValueError, match=f"objective: expected 'minimize' or 'maximize' for '{name}'"):
        theory.optimum(sweep, name, keep=1)
    best = theory.optimum(sweep, name, keep=1, objective="maximize").squeeze()
    assert (best.learning_rate, best.attrs["objective"], bool(best.bracketed)) == (0.4, "maximize", True)


@pytest.mark.parametrize("name", ["Accuracy", "test_accuracy_best", "val/accuracy", "testAccuracy", "top5_accuracy"])
def test_names_that_plainly_are_accuracies_are_maximized(name):
    sweep = sweep_of({0.1: [0.5], 0.2: [0.8], 0.4: [0.95], 0.8: [0.9]}, name)
    assert theory.optimum(sweep, name, keep=1).learning_rate == 0.4


def test_the_argument_precedes_the_attribute_and_the_attribute_the_name():
    sweep = sweep_of({0.1: [3.0], 0.2: [1.0], 0.4: [2.0]})
    assert theory.optimum(sweep, "train_loss", keep=1).learning_rate == 0.2
    sweep.train_loss.attrs["objective"] = "maximize"
    assert theory.optimum(sweep, "train_loss", keep=1).learning_rate == 0.1
    assert theory.optimum(sweep, "train_loss", keep=1, objective="minimize").learning_rate == 0.2
    with pytest.raises(ValueError, match="objective: expected one of 'minimize', 'maximize', got 'min'"):
        theory.optimum(sweep, "train_loss", keep=1, objective="min")
    sweep.train_loss.attrs["objective"] = "up"
    with pytest.raises(ValueError, match="train_loss: attribute objective: expected one of"):
        theory.optimum(sweep, "train_loss", keep=1)


def test_runs_of_one_rate_written_with_different_rounding_count_together():
    losses = {0.1: (5.0, 5.0), 0.3: (1.0, None), 0.1 * 3: (None, 1.1), 1.0: (2.0, 2.0), 3.0: (9.0, 9.0)}
    best = theory.optimum(sweep_of(losses), "train_loss", keep=2).squeeze()
    assert (best.learning_rate, bool(best.bracketed)) == (0.3, True)
    # The end of the grid is judged afterwards: the same optimum as the last value, in single precision once.
    losses = {0.1: (5.0, 5.0), 0.3: (1.0, None), float(np.float32(0.3)): (None, 1.1)}
    best = theory.optimum(sweep_of(losses), "train_loss", keep=2).squeeze()
    assert (best.learning_rate, bool(best.bracketed)) == (0.3, False)


def test_points_that_were_not_judged_forbid_an_answer_and_are_named():
    losses = {0.1: (5.0, 5.0), 0.2: (2.0, 2.0), 0.4: (1.0, None), 0.8: (3.0, 3.0), 1.6: (9.0, 9.0)}
    best = theory.optimum(sweep_of(losses), "train_loss", keep=2).squeeze()
    assert (best.learning_rate, bool(best.bracketed), int(best.unjudged)) == (0.2, False, 1)
    assert best.unjudged_rates.item() == "0.4 (1 of 2 runs)"
    # Far from the error bar it does not matter: a judged learning rate lies in between.
    losses |= {0.4: (1.0, 1.0), 3.2: (None, 0.1), 6.4: (9.0, 9.0)}
    assert theory.optimum(sweep_of(losses), "train_loss", keep=2).bracketed.all()
    # A gap in the middle of the error bar.
    losses = {0.1: (9, 9), 0.2: (1.1, 1.1), 0.4: (None, 1.0), 0.8: (0.5, 1.5), 1.6: (9, 9)}
    best = theory.optimum(sweep_of(losses), "train_loss", keep=2).squeeze()
    assert (best.learning_rate_low, best.learning_rate_high, bool(best.bracketed)) == (0.2, 0.8, False)


@pytest.mark.parametrize("metric", ["train_loss", "test_accuracy"])
def test_a_complete_run_without_a_finite_metric_is_not_judged(metric):
    values = {0.1: [0.4], 0.2: [0.5], 0.4: [0.4], 0.8: [0.1]}
    sweep = sweep_of(values, metric)
    assert theory.optimum(sweep, metric, keep=1, objective="maximize").bracketed.all()
    for hole in (np.nan, np.inf, -np.inf):
        broken = sweep.copy(deep=True)
        broken[metric][0, 0, 2, 0] = hole
        best = theory.optimum(broken, metric, keep=1, objective="maximize").squeeze()
        assert (best.learning_rate, bool(best.bracketed), int(best.unjudged)) == (0.2, False, 1), hole


def test_bounds_include_the_step_of_the_grid_even_where_the_error_bar_has_no_width():
    problem, budget = theory.power_law(10), theory.StepBudget(40)
    for fraction in (1, 2, 4):
        grid = theory.powers_of_two(-7, 3, fraction)
        sweep = theory.predict_sweep(problem, budget, batch_sizes=[4, 64], effective_learning_rates=grid, momentum=0.0)
        best = theory.optimum(sweep, "expected_loss").squeeze()
        exact = theory.optimal_learning_rate(problem, budget, batch_size=np.array([4, 64]))
        assert (best.learning_rate_low == best.learning_rate_high).all()
        assert best.bracketed.all()
        assert (best.learning_rate_lower < exact).all()
        assert (exact < best.learning_rate_upper).all()
        np.testing.assert_allclose(best.log_error, 2 / fraction / np.sqrt(12))
        assert (abs(np.log2(exact / best.learning_rate)) < 2 * best.log_error).all()
    edge = theory.optimum(sweep.isel(learning_rate=slice(0, 12)), "expected_loss").squeeze()
    assert not edge.bracketed.any()
    assert np.isnan(edge.log_error).all()
    assert np.isposinf(edge.learning_rate_upper).all()
