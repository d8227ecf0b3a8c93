"""Joining Sweeps: the same as making one of all records, and refused where they do not belong together."""

import itertools
import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from noisysgd import theory
from noisysgd.theory.sweeps.dataset import MISSING, UNFINISHED

METRICS = ["train_loss", "auc"]
OPTIONS = {"source": "training", "metrics": METRICS, "objective": {"auc": "maximize"}, "configuration": {"depth": 10}}


def a_record(momentum=0.0, size=16, rate=0.5, seed=0, **changes):
    """A record whose metrics are functions of the point."""
    metrics = {"train_loss": rate + size / 64 + momentum, "auc": 1.0 / (1 + seed + size)}
    place = {"momentum": momentum, "batch_size": size, "learning_rate": rate, "seed": seed, "status": "complete"}
    return place | metrics | changes


GRID = [a_record(*point) for point in itertools.product([0.0, 0.9], [16, 64], [0.25, 0.5, 1.0], [0, 1])]


@given(st.lists(st.integers(0, 2), min_size=len(GRID), max_size=len(GRID)), st.permutations([0, 1, 2]))
def test_joining_parts_is_making_one_sweep_of_all_records(belongs, order):
    parts = [[record for record, k in zip(GRID, belongs, strict=True) if k == part] for part in order]
    sweeps = [theory.sweep_from_records(part, **OPTIONS) for part in parts if part]
    whole = theory.sweep_from_records(GRID, **OPTIONS)
    xr.testing.assert_identical(theory.join_sweeps(sweeps), whole)
    xr.testing.assert_identical(theory.join_sweeps([*sweeps, whole]), whole)


def test_rates_that_are_equal_up_to_rounding_become_one():
    first = theory.sweep_from_records([a_record(rate=0.3, seed=0), a_record(rate=0.0039, seed=0)], **OPTIONS)
    second = theory.sweep_from_records([a_record(rate=0.1 * 3, seed=1), a_record(rate=0.003906, seed=1)], **OPTIONS)
    assert theory.join_sweeps([first, second]).learning_rate.values.tolist() == [0.0039, 0.003906, 0.3]
    near = theory.join_sweeps([first, second], tolerance=0.002)
    assert near.learning_rate.values.tolist() == [0.003906, 0.3]
    assert not (near.status == MISSING).any()


def test_what_xarray_has_concatenated_becomes_a_sweep_again():
    parts = [
        theory.sweep_from_records([a_record(size=16, rate=r) for r in (0.1, 0.3)], **OPTIONS),
        theory.sweep_from_records([a_record(size=16, rate=r, seed=1) for r in (0.1 * 3, 1.0)], **OPTIONS),
    ]
    for dim in ("learning_rate", "seed"):
        glued = xr.concat(parts, dim, join="outer", data_vars="all", coords="minimal", compat="override")
        with pytest.raises(ValueError, match=r"sweep\.(learning_rate|status): expected"):
            theory.optimum(glued, "train_loss", keep=1)
        xr.testing.assert_identical(theory.join_sweeps([glued]), theory.join_sweeps(parts))


def test_a_result_replaces_an_unfinished_run_and_another_result_does_not():
    planned = a_record(status="unfinished", train_loss=None, auc=None)
    unfinished = theory.sweep_from_records([planned, a_record(seed=1)], **OPTIONS)
    finished = theory.sweep_from_records([a_record()], **OPTIONS)
    for parts in ([unfinished, finished], [finished, unfinished]):
        joined = theory.join_sweeps(parts)
        assert not (joined.status == UNFINISHED).any()
        assert joined.train_loss.notnull().all()
    other = theory.sweep_from_records([a_record(train_loss=9.0)], **OPTIONS)
    for clash in (other, theory.sweep_from_records([a_record(status="diverged")], **OPTIONS)):
        with pytest.raises(ValueError, match=r"sweeps: {'optimizer': 'sgd', .*'seed': 0}: expected one result"):
            theory.join_sweeps([finished, clash])


def test_a_metric_that_one_sweep_lacks_is_not_measured_there():
    first = theory.sweep_from_records([a_record()], **OPTIONS)
    second = theory.sweep_from_records([a_record(), a_record(seed=1)], **OPTIONS | {"metrics": "auc"})
    joined = theory.join_sweeps([second, first])
    assert joined.train_loss.notnull().values.ravel().tolist() == [True, False]


def test_sweeps_of_theory_and_with_budgets_are_joined():
    def predicted(sizes):
        rates = theory.powers_of_two(-3, 0)
        return theory.predict_sweep(
            theory.power_law(5), theory.StepBudget(9), batch_sizes=sizes, effective_learning_rates=rates
        )

    xr.testing.assert_identical(theory.join_sweeps([predicted([4, 8]), predicted([1])]), predicted([1, 4, 8]))
    parts = [theory.sweep_from_records([a_record(budget=budget)], **OPTIONS) for budget in (23 * 0.1, 9.2)]
    assert theory.join_sweeps(parts).budget.values.tolist() == [2.3000000000000003, 9.2]


def test_attributes_that_must_agree_are_named():
    sweep = theory.sweep_from_records(GRID, **OPTIONS)

    def changed(**attributes):
        return sweep.copy(deep=True).assign_attrs(attributes)

    with pytest.raises(ValueError, match=r"the same source in all, got \['training', 'theory'"):
        theory.join_sweeps([sweep, changed(source="theory")])
    with pytest.raises(ValueError, match=r"the same configuration in all, got {'depth': \[10, 16\]}"):
        theory.join_sweeps([sweep, changed(configuration=json.dumps({"depth": 16}))])
    turned = changed()
    turned.auc.attrs["objective"] = "minimize"
    with pytest.raises(ValueError, match="sweeps: auc: expected the same objective in all"):
        theory.join_sweeps([sweep, turned])
    parts = [changed(commit=c, runs_provenance=json.dumps(p)) for c, p in (("a", ["x"]), ("b", ["y", "x"]), ("a", []))]
    joined = theory.join_sweeps(parts)
    assert (joined.attrs["commit"], joined.attrs["runs_provenance"]) == (["a", "b"], '["x", "y"]')
    assert theory.join_sweeps([joined, changed(commit="c")]).attrs["commit"] == ["a", "b", "c"]


def test_what_cannot_be_joined_is_refused():
    sweep = theory.sweep_from_records(GRID, **OPTIONS)
    with pytest.raises(ValueError, match="sweeps: expected at least one"):
        theory.join_sweeps([])
    with pytest.raises(ValueError, match="sweeps: expected the same dimensions in all"):
        theory.join_sweeps([sweep, sweep.isel(seed=0, drop=True)])
    with pytest.raises(ValueError, match="sweeps: expected dimensions"):
        theory.join_sweeps([sweep.isel(optimizer=0)])
    with pytest.raises(
        ValueError, match=r"sweeps: expected variables over all dimensions of the status, got \['count'"
    ):
        theory.join_sweeps([sweep.assign(count=("batch_size", np.arange(2)))])
    with pytest.raises(ValueError, match=r"sweep: expected an xarray\.Dataset"):
        theory.join_sweeps(["sweep"])
