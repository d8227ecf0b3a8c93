"""Sweeps of which runs are lacking, and runs whose learning rates round to one."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from noisysgd import theory
from noisysgd.theory.sweeps.dataset import COMPLETE, MISSING, UNFINISHED
from noisysgd.theory.sweeps.rate_pairs import best_pair
from noisysgd.validation import RunStore, Sweep, TrainConfig
from noisysgd.validation.configuration import METRICS
from noisysgd.validation.sweeps.export import import_runs, load, save
from noisysgd.validation.sweeps.trained_pairs import PairSweep

BASE = TrainConfig(learning_rate=1.0, batch_size=64, steps=100)


def work(store, config):
    """The loss is best at the effective learning rate 1, and a final one of 2^-8."""
    loss = np.log2(config.effective_learning_rate) ** 2 + 0.01 * config.seed
    if config.final_learning_rate is not None:
        loss += (np.log2(config.final_learning_rate / (1 - config.momentum)) + 8) ** 2
    values = {name: float(1 / (1 + loss) if name.endswith("accuracy") else loss) for name in METRICS}
    store.write({"config": config.as_dict(), "status": "complete", "seconds": 0.5, "provenance": {}, **values})


def finished(sweep, root):
    """The store with all runs, and their records."""
    with ThreadPoolExecutor(1) as executor:
        sweep.run(RunStore(root), executor, work=work)
    return sweep.state(RunStore(root))


@pytest.mark.parametrize("budgets", [None, [100, 200]])
def test_planned_runs_without_a_record_are_unfinished_and_bracket_nothing(tmp_path, budgets):
    choice = {"batch_sizes": [64], "momenta": [0.0, 0.9], "exponents": range(-2, 3), "seeds": 2, "keep": 1}
    sweep = Sweep(base=BASE, budgets=budgets, bracket=None, **choice)
    state = finished(sweep, tmp_path)
    whole = sweep.collect(state.windows, state.found)
    assert not (whole.status == UNFINISHED).any()
    assert (whole.status == MISSING).any(), "rates of the other optimizer"
    assert theory.optimum(whole, "train_loss", keep=1).bracketed.all()

    def lacking(exponent):
        """The dataset without the runs of momentum 0.9 at one learning rate."""
        some = [
            record
            for record in state.found
            if (record["config"]["momentum"], record["config"]["learning_rate"]) != (0.9, 2.0**exponent * (1 - 0.9))
        ]
        assert len(some) < len(state.found)
        return sweep.collect(state.windows, some)

    beside = lacking(1)
    assert int((beside.status == UNFINISHED).sum()) == 2 * (1 if budgets is None else 2)
    best = theory.optimum(beside, "train_loss", keep=1)
    assert best.bracketed.isel(optimizer=0).all()
    assert not best.bracketed.isel(optimizer=1).any()
    assert (best.unjudged.isel(optimizer=1) == 1).all()
    assert best.unjudged_rates.isel(optimizer=1).values.ravel()[0] == "0.2 (0 of 1 runs)"
    assert len(sweep.unbracketed(state.windows, beside)) == 0, "nothing was asked to be bracketed"
    assert theory.optimum(lacking(-2), "train_loss", keep=1).bracketed.all(), "far from the optimum"


def test_unfinished_runs_travel_by_file_as_what_they_are(tmp_path):
    sweep = Sweep(base=BASE, batch_sizes=[64], momenta=[0.9], exponents=[-1, 0, 1], seeds=2, bracket=None)
    some, there = RunStore(tmp_path / "some"), RunStore(tmp_path / "there")
    for config in sweep.plan()[:3]:
        work(some, config)
    found = load(save(sweep.dataset(some), tmp_path / "some.nc"))
    assert int((found.status == COMPLETE).sum()) == int((found.status == UNFINISHED).sum()) == 3
    assert import_runs(found, there).added == 3


def test_pairs_without_records_are_unfinished_where_they_were_planned(tmp_path):
    base = BASE.with_(momentum=0.9)
    sweep = PairSweep(
        base=base, initial=range(-2, 3), final=range(-10, -5), seeds=2, keep=1, bracket=(), budgets=[100, 200]
    )
    state = finished(sweep, tmp_path)
    gone = 2.0**1 * (1 - 0.9)
    some = [r for r in state.found if (r["config"]["learning_rate"], r["config"]["steps"]) != (gone, 200)]
    dataset = sweep.collect(state.windows, some)
    assert int((dataset.status == UNFINISHED).sum()) == 10
    assert bool(best_pair(dataset.sel(budget=100), "train_loss", keep=1).initial_bracketed)
    best = best_pair(dataset.sel(budget=200), "train_loss", keep=1)
    assert (bool(best.initial_bracketed), int(best.initial_unjudged)) == (False, 1)
    assert bool(best.final_bracketed)
    assert {dataset[name].attrs["objective"] for name in ("train_loss", "test_loss")} == {"minimize"}
    assert {dataset[name].attrs["objective"] for name in ("train_accuracy", "test_accuracy")} == {"maximize"}
    more = sweep.collect(state.windows, [record | {"flops": 1.0} for record in some], ["flops"])
    assert "objective" not in more.flops.attrs


def test_rates_of_two_optimizers_that_round_to_one_are_imported_as_their_own(tmp_path):
    """2·(1 − 0.95) and 1 − 0.9 are one coordinate, but two learning rates, after which runs are named."""
    sweep = Sweep(base=BASE, batch_sizes=[64], momenta=[0.9, 0.95], exponents=[-1, 0, 1], seeds=1, bracket=None)
    here, there = RunStore(tmp_path / "here"), RunStore(tmp_path / "there")
    state = finished(sweep, here.root)
    dataset = sweep.collect(state.windows, state.found)
    assert dataset.sizes["learning_rate"] == 4
    assert import_runs(load(save(dataset, tmp_path / "all.nc")), there).added == 6
    assert sweep.state(there).finished


def test_momenta_and_budgets_that_are_the_same_up_to_rounding_are_refused():
    choice = {"batch_sizes": [64], "exponents": [0], "seeds": 1}
    with pytest.raises(ValueError, match="momenta: expected distinct values"):
        Sweep(base=BASE, momenta=[0.9, 1 - (1 - 0.9)], **choice)
    epochs = TrainConfig(learning_rate=1.0, batch_size=64, epochs=1.0)
    with pytest.raises(ValueError, match="budgets: expected distinct values"):
        Sweep(base=epochs, momenta=[0.9], budgets=[2.3, 23 * 0.1], **choice)
