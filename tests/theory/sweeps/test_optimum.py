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
    judged = [rate for rate, row in table.items() if sum(v is not None for v in row) >= keep]
    assert bool(best.bracketed) == (expected[1] > judged[0] and expected[2] < judged[-1])


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


def test_two_records_of_one_point_are_refused():
    run = {"momentum": 0.0, "batch_size": 1, "learning_rate": 1.0, "seed": 0, "status": "complete", "train_loss": 1.0}
    with pytest.raises(ValueError, match="one record per point"):
        theory.sweep_from_records([run, run], source="training", metrics=["train_loss"])
