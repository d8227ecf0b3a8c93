"""Learning curves in a Sweep: each run's bins and evaluations come back as they were, whatever the others have."""

import numpy as np
import pytest
import xarray as xr
from bitwise import assert_bitwise
from hypothesis import given
from hypothesis import strategies as st

from noisysgd import theory
from noisysgd.theory.sweeps.curves import add_curves, curve_fault, curves_of

GOOD = {"edges": [0, 1, 4], "loss": [2.0, None], "std": [None, None]}
EVALUATED = {"steps": [0, 4], "test_loss": [3.0, None]}


def record(size, rate, curve, seed=0, **more):
    base = {"momentum": 0.0, "batch_size": size, "learning_rate": rate, "seed": seed, "status": "complete"}
    return base | {"train_loss": 1.0, "curve": curve} | more


def sweep_of(records):
    return theory.sweep_from_records(records, source="training", metrics=["train_loss"])


def by_run(sweep):
    """The curves in a Sweep by batch size, learning rate and seed."""
    dims = [str(dim) for dim in sweep.status.dims]
    wanted = ("batch_size", "learning_rate", "seed")
    return {tuple(sweep[d].values[at[dims.index(d)]] for d in wanted): curve for at, curve in curves_of(sweep).items()}


def curves(steps):
    """Curves of runs of so many steps: any losses, none from some bin on, and perhaps evaluations."""
    edges = [0, steps // 3, steps // 2, steps]
    loss = st.floats(1e-3, 1e3)

    @st.composite
    def one(draw):
        count = draw(st.integers(0, 3))
        losses = [draw(loss) for _ in range(count)] + [None] * (3 - count)
        curve = {"edges": edges, "loss": losses, "std": [value and draw(st.none() | loss) for value in losses]}
        seen = draw(st.integers(0, 2))
        if seen:
            both = {name: [draw(loss) for _ in range(seen)] for name in ("test_loss", "test_accuracy")}
            curve["evaluated"] = {"steps": [1, steps][:seen]} | both
        return curve if count or seen else None

    return one()


@given(data=st.data())
def test_every_run_gets_its_own_curve_back(data, tmp_path_factory):
    """Runs of different lengths, diverged ones, and some without curves; through a file too."""
    runs = {}
    for size in (4, 8):
        for rate in (0.5, 1.0):
            for seed in (0, 1):
                if data.draw(st.booleans()) or not runs:
                    runs[size, rate, seed] = data.draw(st.none() | curves(1200 // size))
    records = [record(size, rate, curve, seed) for (size, rate, seed), curve in runs.items()]
    sweep = sweep_of(records)
    path = theory.save_sweep(sweep, tmp_path_factory.mktemp("sweep") / "sweep.nc")
    xr.testing.assert_identical(theory.load_sweep(path), sweep)
    assert by_run(sweep) == {run: curve for run, curve in runs.items() if curve is not None}
    assert by_run(sweep.transpose("seed", ..., "batch_size")) == by_run(sweep)
    cut = data.draw(st.integers(1, len(records)))
    parts = [part for part in (records[:cut], records[cut:], records[:1]) if part]
    xr.testing.assert_identical(theory.join_sweeps(sweep_of(part) for part in parts), sweep)


def test_edges_have_the_dimensions_on_which_they_depend():
    def curve(steps):
        return {"edges": [0, steps // 2, steps], "loss": [2.0, 1.0], "std": [0.1, 0.1]}

    runs = [record(size, rate, curve(64 // size)) for size in (4, 8) for rate in (0.5, 1.0)]
    sweep = sweep_of(runs[1:])  # one of them missing
    assert sweep.step_stop.dims == ("batch_size", "step")
    np.testing.assert_array_equal(sweep.step_stop, [[8, 16], [4, 8]])
    np.testing.assert_array_equal(sweep.step_start, [[0, 8], [0, 4]])
    assert sweep_of(runs[:2]).step_stop.dims == ("step",)
    assert dict(sweep.sizes) == {"optimizer": 1, "batch_size": 2, "learning_rate": 2, "seed": 1, "step": 2}
    assert np.isnan(sweep.minibatch_loss.sel(batch_size=4, learning_rate=0.5)).all()


def test_a_sweep_without_curves_is_what_it_was():
    sweep = sweep_of([record(4, 0.5, None)])
    assert set(sweep.dims) == {"optimizer", "batch_size", "learning_rate", "seed"}
    assert add_curves(sweep, {(0, 0, 0, 0): None}) is sweep
    assert curves_of(sweep) == {}


def test_the_optimum_of_a_metric_is_found_beside_curves():
    curve = {"edges": [0, 4], "loss": [1.0], "std": [0.1]}
    plain, more = (
        sweep_of([record(4, rate, c, train_loss=abs(rate - 1.0)) for rate in (0.5, 1.0, 2.0)]) for c in (None, curve)
    )
    assert_bitwise(theory.optimum(plain, "train_loss", keep=1), theory.optimum(more, "train_loss", keep=1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (3.5, "float instead of a mapping"),
        ({"loss": None}, "no lists"),
        ({"edges": [0, 1.5, 4]}, "no lists"),
        ({"edges": [0, -1, 4]}, "no lists"),
        ({"loss": [2.0, "1"]}, "no lists"),
        ({"loss": [2.0, True]}, "no lists"),
        ({"std": [0.5]}, "3 edges for 2 losses and 1 spreads"),
        ({"edges": [0], "loss": [], "std": []}, "1 edges for 0 losses"),
        ({"edges": [0, 5, 4]}, "do not ascend"),
        ({"evaluated": {"test_loss": []}}, "evaluations without steps"),
        ({"evaluated": EVALUATED | {"test_loss": [1.0]}}, "evaluated test_loss that does not fit"),
    ],
)
def test_a_curve_that_is_none_says_why(change, words):
    assert words in curve_fault(GOOD | change if isinstance(change, dict) else change)


def test_curves_are_curves():
    assert [curve_fault(each) for each in (None, GOOD, GOOD | {"evaluated": EVALUATED})] == [None] * 3
