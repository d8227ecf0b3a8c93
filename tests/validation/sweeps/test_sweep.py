"""Sweeps: what is planned, how it grows, and that the result depends on nothing but the plan and the records.

Training is replaced by made-up losses wherever it is not what is tested.
"""

import itertools
import os
import re
import runpy
import subprocess
import sys
import threading
import tomllib
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from bitwise import assert_bitwise
from hypothesis import given, settings
from hypothesis import strategies as st

from noisysgd import theory
from noisysgd.theory.sweeps.rate_pairs import best_pair
from noisysgd.validation import RunStore, Sweep, TrainConfig, WideResNet, load_dataset, run_one, train
from noisysgd.validation.networks.factory import imported
from noisysgd.validation.runs import executors, single_run
from noisysgd.validation.runs.dask_executor import local_cluster, worker_options
from noisysgd.validation.runs.toml_files import to_toml
from noisysgd.validation.sweeps.cost import CostEstimate, CostModel, relative_cost, steps_of
from noisysgd.validation.sweeps.export import export, import_runs, load, plan_of, save
from noisysgd.validation.sweeps.paper import NAMES, PAPER, experiment_file, preset_runs
from noisysgd.validation.sweeps.plan import EXAMPLE, parse_plan, read_plan
from noisysgd.validation.sweeps.trained import Unlimited
from noisysgd.validation.sweeps.trained_pairs import PairSweep
from noisysgd.validation.training import checkpoint, loop
from noisysgd.validation.training.loop import TrainingRun

BASE = TrainConfig(learning_rate=1.0, batch_size=64, steps=100)
METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


def record_of(config, loss, accuracy, status="complete"):
    values = dict.fromkeys(METRICS)
    if status == "complete":
        values = {"train_loss": loss, "train_accuracy": accuracy, "test_loss": loss, "test_accuracy": accuracy}
    record = {"config": config.as_dict(), "status": status, "steps": config.steps or 1, "seconds": 0.5, **values}
    # Some records are of a version without curves; diverged runs have the first half of one.
    return record if config.seed % 3 == 2 else record | {"curve": curve_of(steps_of(config), loss, status)}


def curve_of(steps, loss, status="complete"):
    half = [None, None] if status == "diverged" else [loss + 0.1, loss]
    evaluated = {"steps": [0, steps], "test_loss": [3.0, loss]} if status == "complete" else None
    curve = {"edges": [0, steps // 4, steps // 2, 3 * steps // 4, steps], "loss": [3.0, 0.2, *half]}
    curve |= {"std": [None, 0.1, *(None if each is None else 0.1 for each in half)]}
    return curve | ({"evaluated": evaluated} if evaluated else {})


def two_optima(store, config):
    """Training loss is best at an effective learning rate of 2^-4, test accuracy at 2^3; beyond 2^5 runs diverge."""
    k = np.log2(config.effective_learning_rate)
    noise = 1e-3 * (config.seed % 8)
    status = "diverged" if k > 5 else "complete"
    store.write(record_of(config, (k + 4) ** 2 + noise, 1 / (1 + 0.01 * (k - 3) ** 2) - noise, status))


def run(sweep, root, work=two_optima):
    with ThreadPoolExecutor(2) as executor:
        return sweep.run(RunStore(root), executor, work=work)


def grid(**changes):
    choice = {"batch_sizes": [64], "momenta": [0.0, 0.9], "exponents": range(-1, 2), "seeds": 3, "keep": 2}
    return Sweep(base=BASE, **(choice | {"extensions": 9} | changes))


def tried(dataset, k):
    """Exponents of effective learning rates that have a run."""
    there = (
        (dataset.status != 0)
        .isel(optimizer=k)
        .any([d for d in dataset.status.dims if d not in ("optimizer", "learning_rate")])
    )
    return sorted(np.round(np.log2(dataset.effective_learning_rate.values[k][there.values]), 6))


# Growing


def test_every_metric_asked_for_has_its_own_optimum_bracketed(tmp_path):
    sweep = grid(bracket=("train_loss", "test_accuracy"))
    dataset = run(sweep, tmp_path)
    for k in range(2):
        assert tried(dataset, k) == list(range(-5, 5))
    for metric, exponent in (("train_loss", -4), ("test_accuracy", 3)):
        best = theory.optimum(dataset, metric, keep=2)
        assert best.bracketed.all()
        np.testing.assert_allclose(np.log2(best.effective_learning_rate), exponent, atol=1e-9)
    assert sweep.unbracketed(sweep.state(RunStore(tmp_path)).windows, dataset) == []


def test_one_metric_alone_makes_it_grow_to_one_side_only(tmp_path):
    assert tried(run(grid(bracket="train_loss"), tmp_path), 0) == list(range(-5, 2))


def test_extensions_are_a_limit_and_what_is_not_bracketed_is_named(tmp_path):
    sweep = grid(bracket=("train_loss", "test_accuracy"), extensions=2)
    dataset = run(sweep, tmp_path)
    assert tried(dataset, 0) == list(range(-3, 4))
    named = sweep.unbracketed(sweep.state(RunStore(tmp_path)).windows, dataset)
    assert len(named) == 4
    assert "train_loss at momentum 0, B = 64" in named


def test_runs_beyond_the_initial_plan_never_exceed_the_extra_that_was_announced(tmp_path):
    sweep = grid(bracket=("train_loss", "test_accuracy"), extensions=2)
    announced = {config.key for config in [*sweep.plan(), *sweep.extra(sweep.start())]}
    run(sweep, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == announced


def test_several_budgets_are_a_dimension_with_windows_of_their_own(tmp_path):
    """The optimum falls by a factor of two when the budget doubles."""

    def work(store, config):
        k = np.log2(config.effective_learning_rate * config.steps / 100)
        store.write(record_of(config, k**2, 0.5))

    dataset = run(grid(budgets=[100, 200, 800], exponents=[0, 1]), tmp_path, work)
    assert dataset.budget.values.tolist() == [100, 200, 800]
    assert dataset.budget.attrs["units"] == "steps"
    best = theory.optimum(dataset, "train_loss", keep=2)
    assert best.bracketed.all()
    np.testing.assert_allclose(np.log2(best.effective_learning_rate.isel(optimizer=0, batch_size=0)), [0, -1, -3])


@pytest.mark.parametrize(("target", "budgets"), [(None, [100, 200, 400, 800]), (0.85, [100, 200, 400]), (2.0, 6)])
def test_an_unlimited_budget_doubles_for_as_long_as_it_helps(tmp_path, target, budgets):
    """Accuracy 0.8, 0.84, 0.88, 0.88, …: the fourth budget is the first that does not help."""

    def work(store, config):
        k = np.log2(config.effective_learning_rate)
        gained = min(np.log2(config.steps / 100), 2) * 0.04
        store.write(record_of(config, k**2, 0.8 + gained - 0.1 * k**2 - 1e-3 * config.seed))

    rule = Unlimited(metric="test_accuracy", target=target, doublings=5)
    dataset = run(grid(unlimited=rule, bracket=("test_accuracy",)), tmp_path, work)
    found = dataset.budget.values.tolist()
    assert found == budgets if isinstance(budgets, list) else len(found) == budgets


def test_more_training_is_judged_at_tuned_learning_rates_only():
    """Else a rule could say "enough" at the edge of the grid."""
    rule = Unlimited(metric="test_accuracy")
    with pytest.raises(ValueError, match="metric: expected the unlimited budget's metric 'test_accuracy' among"):
        grid(unlimited=rule, bracket="train_loss")
    text = EXAMPLE.replace('kind = "epoch" ', 'kind = "unlimited"').replace(', "test_accuracy"]', "]")
    with pytest.raises(ValueError, match=r"got \['train_loss'\]\. Whether more training helps is judged at tuned"):
        parse_plan(text)


@pytest.mark.parametrize("bracket", [(), ("test_accuracy",)])
def test_a_rule_that_decides_at_the_edge_of_the_grid_is_named(tmp_path, bracket):
    """The best accuracy is at 2^3, and the grid ends at 2^1."""
    rule = Unlimited(metric="test_accuracy", doublings=2)
    sweep = grid(unlimited=rule, bracket=bracket, extensions=0, momenta=[0.0])
    dataset = run(sweep, tmp_path)
    windows = sweep.state(RunStore(tmp_path)).windows
    assert [place[2] for place in windows] == [100, 200]
    expected = [f"test_accuracy at momentum 0, B = 64, {budget} steps" for budget in (100, 200)]
    assert sweep.unbracketed(windows, dataset) == expected


@pytest.mark.parametrize("target", [None, 0.9])
def test_no_budget_is_doubled_where_every_run_diverges(tmp_path, target):
    def work(store, config):
        store.write(record_of(config, None, None, "diverged"))

    rule = Unlimited(metric="train_loss", target=target, doublings=5)
    dataset = run(grid(unlimited=rule, extensions=2, exponents=[0, 1]), tmp_path, work)
    assert dataset.budget.values.tolist() == [100]


@pytest.mark.parametrize("bracket", [(), ("test_accuracy",)])
def test_the_announced_runs_include_all_doublings(bracket):
    """Whether or not the grids of learning rates grow as well."""
    sweep = grid(unlimited=Unlimited(doublings=3), bracket=bracket, extensions=1, budgets=[50, 100])
    rates = 5 if bracket else 3
    limits = sweep.limits(sweep.start())
    assert sorted({place[2] for place in limits}) == [50, 100, 200, 400, 800]
    assert {len(axes["learning_rate"]) for axes in limits.values()} == {rates}
    assert len(sweep.extra(sweep.start())) == 2 * 3 * (5 * rates - 2 * 3)


def test_grids_end_where_doubles_do():
    sweep = grid(exponents=[-1000, 1000], extensions=3)
    assert sweep.extra(sweep.start()) == [
        config for config in sweep.plan(sweep.limits(sweep.start())) if config not in sweep.plan()
    ]
    exponents = sweep.limits(sweep.start())[0.0, 64, None]["learning_rate"]
    assert (exponents[0], exponents[-1]) == (-1000, 1000)


@given(order=st.randoms(use_true_random=False))
@settings(max_examples=4)
def test_the_dataset_does_not_depend_on_what_was_there_already(order, tmp_path_factory):
    sweep = grid(bracket=("train_loss", "test_accuracy"))
    whole, part = (tmp_path_factory.mktemp("store") for _ in range(2))
    expected = run(sweep, whole)
    planned = sweep.plan()
    for config in order.sample(planned, len(planned) // 2):
        two_optima(RunStore(part), config)
    assert_bitwise(run(sweep, part), expected)


def test_seventy_one_pairs_of_learning_rates_are_bracketed_for_both_metrics(tmp_path):
    """Best training loss at (2^-3, 2^-9), best accuracy at (2^1, 2^-13): higher early and lower late (figure 3)."""

    def work(store, config):
        unit = 1 - config.momentum
        i, f = np.log2(config.learning_rate / unit), np.log2(config.final_learning_rate / unit)
        noise = 1e-3 * config.seed
        store.write(
            record_of(
                config, (i + 3) ** 2 + (f + 9) ** 2 / 4 + noise, 1 - 0.01 * ((i - 1) ** 2 + (f + 13) ** 2) - noise
            )
        )

    base = BASE.with_(momentum=0.9)
    pairs = PairSweep(base=base, initial=[-2, -1], final=[-9, -7], seeds=3, keep=2, extensions=5)
    dataset = run(pairs, tmp_path, work)
    state = pairs.state(RunStore(tmp_path))
    assert pairs.unbracketed(state.windows, dataset) == []
    for metric, (i, f) in {"train_loss": (-3, -9), "test_accuracy": (1, -13)}.items():
        best = best_pair(dataset, metric, 2)
        assert (float(best.initial), float(best.final)) == (2.0**i, 2.0**f)
    assert {c.key for c in pairs.extra(pairs.start())} >= {c.key for c in state.configs} - {c.key for c in pairs.plan()}


def test_a_run_ends_at_its_final_learning_rate():
    config = BASE.with_(learning_rate=0.5, final_learning_rate=0.125)
    schedule = config.schedule(1280)
    assert schedule.at(0) == 1.0
    assert 0.5 * float(schedule.at(99)) == pytest.approx(0.125, rel=1e-12)
    assert schedule.boundaries.tolist() == BASE.schedule(1280).boundaries.tolist()
    halving = BASE.with_(learning_rate=0.5, final_learning_rate=0.5 / 1024).schedule(1280)
    np.testing.assert_allclose(halving.multipliers, BASE.schedule(1280).multipliers, rtol=1e-12)
    one, other = (train(config.with_(steps=4, final_learning_rate=final))["train_loss"] for final in (0.125, None))
    assert one != other


# Executors and claims


def test_a_broken_executor_is_replaced_as_long_as_runs_get_finished(tmp_path):
    sweep = grid(bracket=None)
    made = []

    @contextmanager
    def fragile():
        made.append(0)
        with ThreadPoolExecutor(1) as pool:
            yield pool

    def work(store, config):
        made[-1] += 1
        if made[-1] > 5:
            raise BrokenExecutor("a worker died.")
        two_optima(store, config)

    dataset = sweep.run(RunStore(tmp_path), fragile, work=work)
    assert (dataset.status != 0).sum() == 18
    assert len(made) == 4


def test_executors_that_break_at_once_are_given_up(tmp_path):
    def work(store, config):
        raise BrokenExecutor("a worker died.")

    with pytest.raises(RuntimeError, match="two executors in a row broke and finished no run: a worker died"):
        grid(bracket=None).run(RunStore(tmp_path), lambda: ThreadPoolExecutor(1), work=work)


def test_a_store_that_workers_do_not_share_is_an_error_and_no_endless_loop(tmp_path):
    with ThreadPoolExecutor(1) as executor, pytest.raises(RuntimeError, match="must see the same store"):
        grid(bracket=None).run(RunStore(tmp_path), executor, work=lambda store, config: True)


def test_a_run_under_way_elsewhere_is_waited_for_and_not_run_twice(tmp_path):
    store, config = RunStore(tmp_path), BASE.with_(steps=2)
    sweep = Sweep(base=config, batch_sizes=[64], momenta=[0.0], exponents=[0], seeds=1, bracket=None)
    here = sweep.plan()[0]
    asked = threading.Event()

    def work(store, config):
        done = run_one(store, config)
        asked.set()
        return done

    with ThreadPoolExecutor(1) as driver, ThreadPoolExecutor(1) as executor:
        with store.claim(here) as working:
            assert working is not None
            assert run_one(RunStore(tmp_path), here) is False
            waiting = driver.submit(sweep.run, store, executor, work=work)
            assert asked.wait(20)
            store.write(record_of(here, 0.25, 0.5))
        dataset = waiting.result(timeout=20)
    assert float(dataset.train_loss.squeeze()) == 0.25
    assert [path.name for path in tmp_path.iterdir()] == [here.key]


def test_a_claim_outlives_failures_and_ends_with_the_record(tmp_path):
    store = RunStore(tmp_path)

    def fail():
        with store.claim(BASE) as working:
            (working / "checkpoint.pt").write_text("half-way")
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fail()
    assert [path.name for path in store.leftovers()] == [f".running-{BASE.key}"]
    with store.claim(BASE) as working:
        assert (working / "checkpoint.pt").read_text() == "half-way"
        store.write(record_of(BASE, 1.0, 0.5))
    assert store.leftovers() == []


@pytest.fixture
def interrupted(tmp_path):
    """A store in which a run was killed half-way, and the path of its checkpoint."""
    config, store = BASE.with_(steps=6), RunStore(tmp_path)
    with store.claim(config) as working:
        run = TrainingRun(config, load_dataset("digits"))
        for _ in range(3):
            run.advance()
        checkpoint.write(working / single_run.CHECKPOINT, run.state(seconds=1000.0))
    return store, config, working / single_run.CHECKPOINT


def test_a_killed_run_goes_on_from_its_checkpoint(interrupted):
    store, config, _ = interrupted
    assert run_one(store, config)
    record, straight = store.read(config), train(config)
    assert record["seconds"] > 1000.0  # those of the first half are remembered
    assert {name: record[name] for name in straight if name != "seconds"} == {
        name: value for name, value in straight.items() if name != "seconds"
    }
    assert store.leftovers() == []


def test_a_run_with_a_damaged_checkpoint_starts_over(interrupted, caplog):
    store, config, path = interrupted
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert run_one(store, config)
    assert "starts over" in caplog.text
    record = store.read(config)
    assert record["seconds"] < 1000.0
    assert record["train_loss"] == train(config)["train_loss"]
    assert store.leftovers() == []


def other_state(config):
    """A whole checkpoint, of another run."""
    return TrainingRun(config.with_(seed=99), load_dataset("digits")).state()


@pytest.mark.parametrize(
    "state",
    [other_state, lambda c: {"config": 3}, lambda c: other_state(c) | {"config": c.as_dict(), "momentum": 3}],
    ids=["another run", "no state", "no momentum"],
)
def test_a_run_with_a_whole_checkpoint_that_is_not_its_own_starts_over(interrupted, caplog, state):
    store, config, path = interrupted
    checkpoint.write(path, state(config))
    assert run_one(store, config)
    assert "starts over" in caplog.text
    assert store.read(config)["seconds"] < 1000.0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_run_with_a_pipe_for_a_checkpoint_starts_over(interrupted):
    store, config, path = interrupted
    path.unlink()
    os.mkfifo(path)
    assert run_one(store, config)
    assert store.leftovers() == []


@pytest.mark.slow
def test_pool_workers_are_pinned_to_distinct_gpus():
    with executors.local_executor(devices=[3, 5]) as pool:
        barrier = [pool.submit(visible, 1.0) for _ in range(2)]
        assert sorted(future.result() for future in barrier) == ["3", "5"]


def test_pool_workers_share_gpus_evenly():
    with executors.local_executor(devices=[3, 5], runs_per_device=2) as pool:
        together = [pool.submit(visible, 1.0) for _ in range(4)]
        assert sorted(future.result() for future in together) == ["3", "3", "5", "5"]
    too_many = executors.local_executor(5, devices=[3, 5], runs_per_device=2)
    with pytest.raises(ValueError, match="at most 2 for each of the 2 devices"), too_many:
        pass


def visible(seconds):
    import os
    import time

    time.sleep(seconds)
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_gpus_are_named_once_and_workers_do_not_share_them():
    with (
        pytest.raises(ValueError, match="devices: expected distinct numbers"),
        executors.local_executor(devices=[1, 1]),
    ):
        pass
    with pytest.raises(ValueError, match="at most one for each"), executors.local_executor(3, devices=[0, 1]):
        pass
    with pytest.raises(ValueError, match="one for each of the 2 devices"):
        local_cluster(3, devices=[0, 1])
    assert worker_options([7])["env"]["CUDA_VISIBLE_DEVICES"] == "7"
    assert "CUDA_VISIBLE_DEVICES" not in worker_options()["env"]
    assert worker_options()["nthreads"] == 1


# Plans


def test_the_example_is_a_plan_and_its_text_comes_back():
    plan = parse_plan(EXAMPLE)
    assert tomllib.loads(plan.text) == tomllib.loads(EXAMPLE)
    assert plan.sweep.extensions == 4


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_files_have_the_runs_and_the_steps_that_the_costs_page_counts(name):
    plan = parse_plan(experiment_file(name))
    paper = PAPER[name.removesuffix("-skipinit").replace("-", " ")]
    share = 2 if name.startswith("figure-2") else 1  # two networks, two files
    configs = plan.sweep.plan()
    assert share * len(configs) == paper.total_runs
    cost = CostEstimate.of(configs, plan.cost, workers=1)
    assert share * cost.steps == paper.total_steps
    assert share * sum(steps_of(config) * config.batch_size for config in configs) == paper.total_examples
    assert {config.normalization for config in configs} == {"skipinit" if "skip" in name else "ghost_batch"}
    assert all(config.augment and config.dataset == "cifar10" for config in configs)


def test_the_papers_files_begin_around_the_papers_optima():
    table = {256: 2, 512: 2, 1024: 3, 2048: 3, 4096: 4, 8192: 2, 16384: 5, 32768: 5}  # Table 1's exponents
    windows = parse_plan(experiment_file("table-1")).sweep.exponents
    assert all(windows[0.9, size][1] <= best <= windows[0.9, size][-2] for size, best in table.items())


def test_presets_are_the_papers():
    text = EXAMPLE.replace("runs = 3 ", "#").replace("keep = 2", 'preset = "paper"')
    sweep = parse_plan(text).sweep
    assert (sweep.seeds, sweep.keep) == (15, 12)
    assert preset_runs("paper-pairs") == (7, 5)
    pairs = parse_plan(
        "[run]\nghost_batch_size = 16\n[budget]\nepochs = [50, 100]\n"
        "[grid]\nbatch_sizes = [64]\nmomenta = [0.9]\ninitial = [-3, 0]\nfinal = [-12, -4, 2]\n"
    ).sweep
    assert isinstance(pairs, PairSweep)
    assert (pairs.seeds, pairs.keep, pairs.metrics) == (7, 5, ("train_loss", "test_accuracy"))
    assert len(pairs.plan()) == 2 * 4 * 5 * 7


def test_windows_of_single_points_stand_beside_the_common_one():
    text = EXAMPLE.replace(
        "[protocol]", "[[grid.window]]\nmomentum = 0.9\nbatch_size = 64\nexponents = [2, 4]\n[protocol]"
    )
    sweep = parse_plan(text).sweep
    assert sweep.exponents[0.9, 64] == (2, 3, 4)
    assert sweep.exponents[0.0, 16] == (-1, 0, 1, 2)


WINDOW = "[[grid.window]]\nmomentum = 0.9\nbatch_size = 64\nexponents = [2, 4]\n"
PAIRS = "[budget]\nepochs = [50, 100]\n[grid]\nbatch_sizes = [64]\nmomenta = [0.9]\ninitial = [-3, 0]\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("exponents = [-1, 2]", "exponents = [2000, 2001]", "exponents from -1000 to 1000, got [2000, 2001]. Learning"),
        ("extensions = 4", "extensions = 5000", "extensions: expected at most 100, got 5000. Use 0"),
        ("momenta = [0.0, 0.9]", 'momenta = ["x"]', "momenta: expected real numbers, got 'x'. Pass"),
        ("momenta = [0.0, 0.9]", "momenta = [[0.0]]", "momenta: expected a single number, got array([0.]). Pass"),
        ("momenta = [0.0, 0.9]", "momenta = [nan]", "momenta: expected numbers without NaN, got nan. Pass"),
        ("runs = 3", "runs = 0", "runs: expected an integer ≥ 1, got 0. Run"),
        ("keep = 2", "keep = 4", "keep: expected at most the 3 runs, got 4. Keep"),
        ('"test_accuracy"]', '"test_acuracy"]', "metrics: expected names among ('train_loss',"),
        ('"test_accuracy"]', '"train_loss"]', "metrics: expected distinct metrics"),
        ('kind = "epoch"', 'kind = "unlimited"\ndoublings = 2000', "doublings: expected at most 30, got 2000. Begin"),
        ("epochs = 12", "epochs = [12, 12]", "epochs: expected distinct budgets, got [12, 12]. Name"),
        ("epochs = 12", "epochs = 1e-9", "batch_size: expected a budget of at least one step"),
        ("[protocol]", f"{WINDOW}{WINDOW}[protocol]", "[[grid.window]]: expected one for each point"),
        ("exponents = [-1, 2]", "exponents = [-1, 2]\nwindow = [3]", "window: expected a dict, got 3. Write"),
        ("[grid", "x = = 1", "text: expected TOML, got something else: "),
        ("[grid", f"x = {5000 * '1'}\n[grid", "text: expected TOML, got something else: Exceeds the limit"),
        ("[grid", f"x = {5000 * '['}\n[grid", "text: expected TOML of a few levels, got too many to read. Correct"),
        ("[grid", "x = {a = 1,}\n[grid", "text: expected TOML, got something else: "),
        ("batch_sizes = [16, 64]", "batch_sizes = [1600]", "batch_sizes: expected at most the 1280 training examples"),
        ("[run] ", "[run]\nsubset = 32 #", "batch_sizes: expected at most the 32 training examples, got 64. Batches"),
        ("[run] ", "[run]\nsubset = 1281 #", "subset: expected at most the 1280 training examples, got 1281. Leave"),
        ("[run] ", "[run]\ndownsample = 3 #", "downsample: expected a divisor of the images' side, 8, got 3. Choose"),
        ("[run] ", '[run]\nmodel = "no_such:f" #', "(ModuleNotFoundError: No module named 'no_such'). Name a function"),
        ("[run] ", '[run]\nmodel = "mine" #', "config.model: expected 'module:factory', or a network passed along"),
        ("[run] ", '[run]\nmodel = "math:pi" #', "config.model: expected a function that makes a network, got 3.14"),
    ],
)
def test_a_file_that_no_run_could_follow_says_what_was_expected_and_what_to_do(old, new, message):
    assert old in EXAMPLE
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_plan(EXAMPLE.replace(old, new, 1)).check_network()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PAIRS + WINDOW, "[grid]: expected exponents and windows, or initial and final"),
        (PAIRS + "window = 3\n", "[grid]: expected exponents and windows, or initial and final"),
        (
            PAIRS.replace("epochs = [50, 100]", "kind = 'step'\nsteps = [2, 2]"),
            "steps: expected distinct budgets, got [2, 2]",
        ),
        (PAIRS.replace("[-3, 0]", "[2000, 2001]"), "initial: expected exponents from -1000 to 1000"),
    ],
)
def test_pairs_are_read_as_strictly(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_plan(text)
    parse_plan(PAIRS)


def test_whole_numbers_may_be_written_as_floats():
    sweep = parse_plan(EXAMPLE.replace("runs = 3", "runs = 3.0").replace("[16, 64]", "[16.0, 64]")).sweep
    assert len(sweep.plan()) == 48
    assert sweep.batch_sizes == (16, 64)


def test_a_file_is_text_in_utf_8_with_or_without_a_mark(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text(EXAMPLE, encoding="utf-8-sig")
    assert read_plan(file).text == parse_plan(EXAMPLE).text
    file.write_bytes(EXAMPLE.replace("\n", "\r\n").encode())
    assert read_plan(file).text == parse_plan(EXAMPLE).text
    file.write_bytes(EXAMPLE.rstrip("\n").encode())
    assert read_plan(file).text == parse_plan(EXAMPLE).text
    file.write_bytes(EXAMPLE.encode("utf-16"))
    with pytest.raises(ValueError, match=r"sweep\.toml: text: expected UTF-8, got byte 0xff at 0\. Save the file"):
        read_plan(file)
    file.write_bytes(b"# \xff")
    with pytest.raises(ValueError, match=r"sweep\.toml: text: expected UTF-8, got byte 0xff at 2\. Save the file"):
        read_plan(file)


def test_a_file_that_is_not_there_is_named_with_a_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.toml: expected a TOML file, got: no such file.*Check the path"):
        read_plan(tmp_path / "none.toml")
    with pytest.raises(IsADirectoryError, match=r"expected a TOML file, got: is a directory\. Check the path"):
        read_plan(tmp_path)


@pytest.mark.checkout
@pytest.mark.slow
def test_the_pages_network_of_ones_own_is_trained_by_the_command(tmp_path):
    """With the console script's path, which lacks the current folder, and in worker processes."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    section = page[page.index("### A network of your own") :]
    program, table = (
        re.search(rf"^```{kind}\n(.*?)^```$", section, re.DOTALL | re.M)[1] for kind in ("python", "toml")
    )
    (tmp_path / "mynetworks.py").write_text(program)
    rest = "[budget]\nsteps = 2\nkind = 'step'\n" + GRID.format(momenta=[0], exponents=[0, 1])
    (tmp_path / "sweep.toml").write_text(table + rest + "[protocol]\nruns = 1\nkeep = 1\nmetrics = []\n")
    code = "import sys; sys.path.remove(''); from noisysgd.validation.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "sweep", "run", "sweep.toml", "--workers", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    (record,) = list(tmp_path.glob("sweep-runs/*/record.json"))[:1]
    assert "mynetworks:perceptron" in record.read_text()


def test_a_module_of_the_current_folder_hides_no_other(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise RuntimeError('hidden')\n")
    (tmp_path / "broken_networks.py").write_text("def make(config, data) return None\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert imported("json:loads")("1") == 1
    with pytest.raises(ValueError, match=r"got 'broken_networks:make' \(SyntaxError.*current folder"):
        imported("broken_networks:make")
    assert sys.path == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[run]", "[runs]", "section: expected one of 'run'"),
        ("dataset =", "datasett =", "datasett"),
        ('"digits"', '"nothing"', "dataset: expected one of"),
        ('kind = "epoch"', 'kind = "step"', "of kind 'step': expected steps"),
        ("epochs = 12", "", "of kind 'epoch': expected epochs"),
        ("exponents = [-1, 2]", "exponents = [2, -1]", "low ≤ high"),
        ("exponents = [-1, 2]", "", "[grid]: expected exponents"),
        ("batch_sizes = [16, 64]", "batch_sizes = [17]", "multiple of the ghost batch size"),
        ("keep = 2", "keep = 4", "keep: expected at most the 3 runs"),
        ("keep = 2", "", "expected runs and keep"),
        ('"test_accuracy"]', '"test_acuracy"]', "test_acuracy"),
        ("[grid]", "[grid", "Expected"),
        ("extensions = 4", "extensions = -1", "extensions"),
    ],
)
def test_a_file_that_means_nothing_says_where(old, new, message):
    assert old in EXAMPLE
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_plan(EXAMPLE.replace(old, new))


scalars = st.one_of(
    st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False), st.text(st.characters(codec="utf-8"))
)


@settings(max_examples=30)
@given(
    st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), scalars | st.lists(scalars), max_size=4),
    st.dictionaries(st.text(min_size=1, alphabet="ab-_. é"), scalars, max_size=3),
)
def test_toml_comes_back_as_it_was(top, inner):
    values = {**top, "table": inner, "rows": [inner, {"x": 1}]}
    assert tomllib.loads(to_toml(values)) == values


def test_a_stored_run_can_be_repeated_from_the_file_beside_its_record(tmp_path):
    store = RunStore(tmp_path)
    config = BASE.with_(learning_rate=0.1 * 3, final_learning_rate=1e-7, seed=2**60)
    store.write(record_of(config, 1.0, 0.5))
    beside = tomllib.loads((store.path(config) / "config.toml").read_text())
    assert TrainConfig.from_dict(beside) == config


# Cost


def test_the_fitted_cost_is_the_one_that_made_the_records():
    true = CostModel(seconds_per_run=0.3, seconds_per_step=0.002, seconds_per_example=1e-4)
    configs = [BASE.with_(batch_size=b, steps=n) for b in (16, 64, 256) for n in (10, 100)]
    records = [{"config": c.as_dict(), "steps": c.steps, "seconds": true.of(c)} for c in configs]
    found = CostModel.from_records(records)
    for name in ("seconds_per_run", "seconds_per_step", "seconds_per_example"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-6)
    assert CostModel.from_records([]) is None


def test_an_estimate_adds_up():
    configs = [BASE.with_(steps=n, seed=seed) for n in (10, 1000) for seed in range(3)]
    model = CostModel(seconds_per_step=0.01, price_per_hour=36.0)
    cost = CostEstimate.of(configs, model, workers=2)
    assert (cost.runs, cost.steps) == (6, 3030)
    assert cost.device_seconds == pytest.approx(30.3)
    assert cost.price == pytest.approx(0.303)
    assert cost.wall_seconds == pytest.approx(15.15)
    assert CostEstimate.of(configs, model, workers=100).wall_seconds == pytest.approx(10)


def test_every_piece_of_a_batch_costs_a_pass():
    """Launches recur for each micro-batch."""
    whole, cut = BASE.with_(batch_size=80, steps=10), BASE.with_(batch_size=80, steps=10, micro_batch_size=32)
    model = CostModel(seconds_per_step=1.0, seconds_per_example=0.5)
    assert (model.of(whole), model.of(cut)) == (10 * (1 + 40), 10 * (3 + 40))
    assert relative_cost(cut) > relative_cost(whole)
    configs = [BASE.with_(batch_size=b, steps=n, micro_batch_size=32) for b in (16, 64, 96) for n in (10, 100)]
    records = [{"config": c.as_dict(), "steps": c.steps, "seconds": model.of(c)} for c in configs]
    found = CostModel.from_records(records)
    assert found.seconds_per_step == pytest.approx(1.0)
    assert found.seconds_per_example == pytest.approx(0.5)


def test_svag_costs_two_batches_for_each_of_its_l_steps():
    plain, svag = BASE.with_(steps=10), BASE.with_(steps=10, dynamics="svag", svag=4)
    model = CostModel(seconds_per_step=1.0)
    assert (model.of(plain), model.of(svag)) == (10.0, 80.0)
    assert relative_cost(svag) == 8 * relative_cost(plain)
    assert model.of(plain.with_(dynamics="svag")) == 10.0  # l = 1 is SGD
    records = [{"config": c.as_dict(), "steps": steps_of(c), "seconds": model.of(c)} for c in (plain, svag)]
    assert CostModel.from_records(records).of(svag) == pytest.approx(80.0)


def test_the_papers_experiments_have_the_steps_that_their_configurations_have():
    """Two routes to the number of steps: the preset's arithmetic, and the budget of the theory."""
    figure = PAPER["figure 2"]
    for epochs in figure.budgets:
        budget = theory.EpochBudget(epochs=epochs, dataset_size=50_000)
        assert figure.steps(64, epochs) == int(budget.steps(64))
    assert PAPER["table 1"].total_runs == 8 * 7 * 15
    assert PAPER["table 1"].total_examples == 7 * 15 * 9765 * sum(2**k for k in range(8, 16))


def test_a_timed_run_foretells_roughly_what_a_run_takes():
    configs = [BASE.with_(batch_size=b, steps=100) for b in (16, 64)]
    model = CostModel.from_timed_runs(configs)
    seconds = train(configs[1])["seconds"]
    assert seconds / 8 < model.of(configs[1]) < 8 * seconds
    assert steps_of(BASE.with_(steps=None, epochs=2.0)) == 40


def test_runs_are_timed_with_the_one_thread_that_runs_have(monkeypatch):
    seen, real = [], loop._train
    monkeypatch.setattr(loop, "_train", lambda *given: (seen.append(torch.get_num_threads()), real(*given))[1])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        CostModel.from_timed_runs([BASE.with_(steps=4)])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


@pytest.mark.parametrize("given", list(itertools.product([0.0, 0.25], repeat=3)))
def test_a_cost_in_words_leaves_out_what_is_zero(given):
    names = ("seconds_per_run", "seconds_per_step", "seconds_per_example")
    words = CostModel(**dict(zip(names, given, strict=True))).in_words()
    assert "0 s" not in words.replace("0.25 s", "")
    assert words.count("0.25 s") == sum(value > 0 for value in given)
    assert words.count("and 0.25") == (sum(value > 0 for value in given) > 1)


# Export and import

GRID = "[grid]\nbatch_sizes = [64]\nmomenta = {momenta}\nexponents = {exponents}\n"


@pytest.mark.parametrize("kind", ["grid", "budgets", "pairs", "nesterov"])
def test_an_exported_sweep_is_imported_and_goes_on(tmp_path, kind):
    """Half of the runs travel by file; the rest is run elsewhere; both stores then export the same bytes."""
    sections = {
        "grid": "[budget]\nkind = 'step'\nsteps = 100\n" + GRID.format(momenta=[0, 0.9], exponents=[4, 6]),
        "budgets": "[budget]\nepochs = [0.3, 2]\n" + GRID.format(momenta=[0.9], exponents=[5, 6]),
        "pairs": "[budget]\nepochs = [1, 3]\n[grid]\nbatch_sizes = [64]\nmomenta = [0.9]\n"
        "initial = [5, 6]\nfinal = [-2, 0]\n",
        "nesterov": "nesterov = true\ntail = 0.5\n[budget]\nkind = 'step'\nsteps = 100\n"
        + GRID.format(momenta=[0.5, 0.9], exponents=[4, 6]),
    }
    text = "[run]\nseed = 9007199254740993\n" + sections[kind] + "[protocol]\nruns = 2\nkeep = 1\nextensions = 1\n"
    plan = parse_plan(text)
    here, there = RunStore(tmp_path / "here"), RunStore(tmp_path / "there")
    for config in plan.sweep.plan()[::2]:
        two_optima(here, config)
    path = save(export(plan, here), tmp_path / "half.nc")
    found = load(path)
    done = import_runs(found, there)
    assert (done.added, done.known, done.different) == (len(plan.sweep.plan()[::2]), 0, ())
    for config in plan.sweep.plan()[::2]:
        assert there.read(config) == here.read(config) | {"provenance": []}
    assert import_runs(found, there).known == done.added
    goes_on = parse_plan(found.attrs["plan"])
    assert_bitwise(run(goes_on.sweep, there.root), run(plan.sweep, here.root))
    label = "nesterov" if kind == "nesterov" else "momentum"
    assert kind == "pairs" or found.optimizer.values.tolist()[-1] == f"{label} 0.9"
    assert (export(plan, here).status == 2).any(), "some runs are to diverge"
    one, two = (save(export(plan, store), tmp_path / f"{store.root.name}.nc").read_bytes() for store in (here, there))
    assert one == two


@pytest.mark.parametrize("kind", ["grid", "pairs"])
def test_grids_of_effective_rates_have_no_dampened_runs(kind):
    """Their datasets would call ε/(1−m) what is (1−d) ε/(1−m)."""
    rates = "exponents = [0, 1]\n" if kind == "grid" else "initial = [0, 1]\nfinal = [-4, -2]\n"
    text = "[budget]\nsteps = 5\nkind = 'step'\n[grid]\nbatch_sizes = [64]\nmomenta = [0.9]\n" + rates
    assert parse_plan(text).sweep.plan()
    with pytest.raises(ValueError, match=r"dampening: expected 0 in a sweep, got 0\.5\. Leave it out: a dampened"):
        parse_plan("[run]\ndampening = 0.5\n" + text)


def test_nesterovs_step_needs_momentum_everywhere_in_a_grid():
    text = "[run]\nnesterov = true\n[budget]\nsteps = 5\nkind = 'step'\n"
    configs = parse_plan(text + GRID.format(momenta=[0.5, 0.9], exponents=[0, 1])).sweep.plan()
    assert all(config.nesterov for config in configs)
    with pytest.raises(ValueError, match=r"momentum: expected m > 0 with nesterov, got 0\.0"):
        parse_plan(text + GRID.format(momenta=[0.0, 0.9], exponents=[0, 1]))


def test_an_import_never_replaces_a_result(tmp_path):
    text = "[budget]\nkind = 'step'\nsteps = 5\n" + GRID.format(momenta=[0], exponents=[0, 1])
    plan = parse_plan(text + "[protocol]\nruns = 1\nkeep = 1\n")
    first, second = RunStore(tmp_path / "1"), RunStore(tmp_path / "2")
    for config in plan.sweep.plan():
        first.write(record_of(config, 1.0, 0.5))
        second.write(record_of(config, 2.0, 0.5))
    done = import_runs(export(plan, first), second)
    assert sorted(done.different) == sorted(config.key for config in plan.sweep.plan())
    assert second.read(plan.sweep.plan()[0])["train_loss"] == 2.0


def exported(tmp_path):
    """A store with a sweep of two runs, and its dataset."""
    text = "[budget]\nkind = 'step'\nsteps = 5\n" + GRID.format(momenta=[0], exponents=[0, 1])
    plan, store = parse_plan(text + "[protocol]\nruns = 1\nkeep = 1\nmetrics = []\n"), RunStore(tmp_path / "runs")
    for config in plan.sweep.plan():
        store.write(record_of(config, 1.0, 0.5))
    return store, export(plan, store)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("train_loss", np.nan, "complete without a train_loss"),
        ("train_loss", np.inf, "train_loss inf"),
        ("train_loss", -0.5, "train_loss -0.5"),
        ("test_loss", np.inf, "test_loss inf"),
        ("test_accuracy", 99.0, "test_accuracy 99.0"),
        ("steps", 0.5, "steps 0.5"),
        ("steps", -1.0, "steps -1"),
        ("seconds", -1.0, "seconds -1.0"),
    ],
)
def test_an_import_takes_no_result_that_a_run_cannot_have_and_then_none_at_all(tmp_path, name, value, words):
    _, dataset = exported(tmp_path)
    dataset[name].values.ravel()[-1] = value
    there = RunStore(tmp_path / "there")
    with pytest.raises(ValueError, match=rf"the run of .*expected a result that a run can have, got .*{words}"):
        import_runs(dataset, there)
    assert not there.root.exists()


def test_what_was_not_measured_is_imported_as_that(tmp_path):
    _, dataset = exported(tmp_path)
    dataset["test_accuracy"][:] = np.nan
    there = RunStore(tmp_path / "there")
    assert import_runs(dataset, there).added == 2
    found = there.read_many(plan_of(dataset).sweep.plan())
    assert [record["test_accuracy"] for record in found.values()] == [None, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.assign(status=d.status + 5), r"dataset\.status: expected values .*, got \[6\]"),
        (lambda d: d.assign_coords(batch_size=[64.5]), "batch_size: expected an integer"),
        (lambda d: d.assign_coords(seed=[0.5]), "seed: expected an integer"),
        (lambda d: d.assign_attrs(configuration="[]"), "expected a JSON dict in its attribute 'configuration'"),
        (lambda d: d.assign_attrs(configuration="[" * 10**5), "expected a JSON dict in its attribute 'configuration'"),
        (lambda d: d.assign_attrs(runs_provenance="3"), "expected a JSON list in its attribute 'runs_provenance'"),
    ],
)
def test_an_import_says_what_is_wrong_with_a_dataset(tmp_path, change, message):
    _, dataset = exported(tmp_path)
    with pytest.raises(ValueError, match=message):
        import_runs(change(dataset), RunStore(tmp_path / "there"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "expected the text of a plan in its attribute 'plan', got None"),
        ("rm -rf ~", "expected a plan in its attribute 'plan', got another text: text: expected TOML"),
        ("[grid]\n", "expected a plan in its attribute 'plan', got another text: file: expected a section"),
        (EXAMPLE, "expected the plan of its runs in the attribute 'plan', got .*one without the run of"),
    ],
)
def test_a_text_that_is_not_the_plan_of_its_runs_is_no_plan(tmp_path, text, message):
    _, dataset = exported(tmp_path)
    assert plan_of(dataset).text == dataset.plan
    with pytest.raises(ValueError, match=message):
        plan_of(dataset.assign_attrs(plan=text))


def test_only_training_runs_are_imported(tmp_path):
    sweep = theory.predict_sweep(
        theory.power_law(5), theory.StepBudget(5), batch_sizes=[4], effective_learning_rates=[0.5]
    )
    with pytest.raises(ValueError, match="a sweep of training runs, got \"source 'theory'\""):
        import_runs(sweep, RunStore(tmp_path))
    (tmp_path / "x.nc").write_text("no")
    with pytest.raises(ValueError, match="expected a Sweep as netCDF"):
        load(tmp_path / "x.nc")


def test_nothing_done_is_nothing_to_export(tmp_path):
    with pytest.raises(ValueError, match="at least one finished run"):
        export(parse_plan(EXAMPLE), RunStore(tmp_path))


def test_a_partial_dataset_follows_the_growth_so_far(tmp_path):
    sweep = grid(bracket=("train_loss",))
    store = RunStore(tmp_path)
    for config in sweep.plan():
        two_optima(store, config)
    state = sweep.state(store)
    assert not state.finished
    assert [c.effective_learning_rate for c in state.missing] == pytest.approx([0.25] * 6)
    assert isinstance(sweep.dataset(store), xr.Dataset)


@pytest.mark.checkout
def test_the_page_on_costs_shows_what_its_program_computes():
    """And the network's own convolutions have the multiplications that the program counts."""
    docs = Path(__file__).resolve().parents[3] / "docs"
    program = runpy.run_path(str(docs / "paper_cost.py"))
    page = (docs / "costs.md").read_text(encoding="utf-8")
    assert program["table"]() in page
    files = [parse_plan(experiment_file(name)) for name in NAMES]
    hours = [CostEstimate.of(file.sweep.plan(), file.cost, workers=1).device_seconds / 3600 for file in files]
    table, one, two, skipinit, three = hours
    shown = [float(found.replace(",", "")) for found in re.findall(r"^\| [tf]\w+ \d \|.* ([\d,]+) \|$", page, re.M)]
    np.testing.assert_allclose(shown, [table, one, two + skipinit, three], rtol=2e-3)  # c has three digits in the files
    further = program["learning_rate_hours"](32768)
    assert f"{further:.1f} GPU-hours at B = 32768 ({program['learning_rate_hours'](256):.1f} at 256" in page
    assert f"cost\n{3 * further:.0f} that" in page
    launches = (PAPER["table 1"].total_passes(1024) - PAPER["table 1"].total_steps) * 0.008 / 3600
    assert f"{launches:.0f} are those of the second and further passes" in page
    assert f"{program['wide_resnet_macs']() / 1e6:.1f} million" in page

    counted = []
    model = WideResNet(16, 4, classes=10, channels=3, ghost_batch_size=2, seed=0)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(lambda layer, _, out: counted.append(out[0].numel() * layer.weight[0].numel()))
    with torch.no_grad():
        model(torch.zeros(2, 3, 32, 32))
    assert sum(counted) == program["wide_resnet_macs"]()
