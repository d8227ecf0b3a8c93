"""The growing rule, alone: it finds what it looks for, goes no further, and comes to an end."""

import signal
import threading
import time

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from noisysgd import simulators, theory
from noisysgd.theory.sweeps.grid import error_bar, wider
from noisysgd.theory.sweeps.rate_pairs import best_pair, wider_pair


@given(
    low=st.integers(-10, 10),
    length=st.integers(1, 5),
    optima=st.lists(st.integers(-25, 15), min_size=1, max_size=3),
    wide=st.integers(0, 3),
)
def test_a_grid_grows_to_hold_every_optimum_with_its_bar_and_no_further(low, length, optima, wide):
    """Each metric's best tried learning rate is the one nearest to its optimum, with a bar of `wide` on both sides."""
    grid = start = tuple(range(low, low + length))

    def bars(grid):
        best = [min(grid, key=lambda k, at=at: abs(k - at)) for at in optima]
        return [(max(grid[0], k - wide), min(grid[-1], k + wide)) for k in best]

    for _ in range(200):
        grown = wider(grid, bars(grid))
        if grown == grid:
            break
        grid = grown
    assert grown == grid, "it never comes to an end"
    assert grid == tuple(range(grid[0], grid[-1] + 1))
    assert all(grid[0] < at - wide and at + wide < grid[-1] for at in optima)
    assert grid[0] >= min(start[0], *optima) - wide - 1
    assert grid[-1] <= max(start[-1], *optima) + wide + 1


def test_where_everything_diverged_it_looks_further_down_only():
    assert wider((0, 1), [(np.nan, np.nan)]) == (-1, 0, 1)


def test_limits_hold():
    assert wider((0, 1), [(0, 1)], lowest=0, highest=2) == (0, 1, 2)
    assert wider((0, 1), [(np.nan, np.nan)], lowest=0) == (0, 1)


def test_the_error_bar_is_that_of_the_optimum_named():
    run = {"status": "complete", "seed": 0}
    rows = [
        run | {"momentum": m, "batch_size": b, "learning_rate": 2.0**k * (1 - m), "train_loss": (k - best) ** 2}
        for m, b, best in ((0.0, 16, -1), (0.0, 64, 1), (0.9, 16, 0), (0.9, 64, 2))
        for k in range(-3, 4)
    ]
    best = theory.optimum(
        theory.sweep_from_records(rows, source="training", metrics=["train_loss"]), "train_loss", keep=1
    )
    assert error_bar(best, momentum=0.0, batch_size=64) == (1, 1)
    assert error_bar(best, momentum=0.9, batch_size=16) == pytest.approx((0, 0), abs=1e-9)


def pairs_of(losses):
    """Losses (initial, final, seed) on powers of two around 1."""
    values = np.asarray(losses, dtype=np.float64)
    coordinates = {
        name: 2.0 ** np.arange(-(n // 2), n - n // 2)
        for name, n in zip(("initial", "final"), values.shape, strict=False)
    }
    return xr.Dataset({"train_loss": (("initial", "final", "seed"), values)}, coordinates)


def test_a_run_without_a_value_does_not_count():
    losses = np.array([[5.0, 4.0, 5.0], [4.0, 1.0, 4.0], [5.0, 4.0, 5.0]])[:, :, None] + np.array([0.0, 0.1, 0.2])
    losses[1, 1, 0] = np.nan
    best = best_pair(pairs_of(losses), "train_loss", keep=2)
    assert float(best["mean"]) == pytest.approx(1.15)
    assert bool(best.initial_bracketed)
    assert bool(best.final_bracketed)
    losses[1, 1, 1] = np.nan
    unjudged = best_pair(pairs_of(losses), "train_loss", keep=2)
    assert float(unjudged["mean"]) == pytest.approx(4.05)
    assert (int(unjudged.initial_unjudged), bool(unjudged.initial_bracketed)) == (1, False)


def test_pairs_beside_the_best_that_were_not_judged_forbid_an_answer():
    losses = np.array([[9.0, 8, 7, 8, 9], [8, 5, 3, 5, 8], [7, 3, 1, 3, 7], [8, 5, 3, 5, 8], [9, 8, 7, 8, 9]])[
        ..., None
    ]
    runs = losses + np.array([0.0, 0.5])
    best = best_pair(pairs_of(runs), "train_loss", keep=2)
    assert (bool(best.initial_bracketed), bool(best.final_bracketed)) == (True, True)
    for place, lacking in (((3, 2), (1, 0)), ((2, 1), (0, 1)), ((0, 2), (0, 0))):
        gap = runs.copy()
        gap[(*place, 1)] = np.nan
        best = best_pair(pairs_of(gap), "train_loss", keep=2)
        assert (int(best.initial_unjudged), int(best.final_unjudged)) == lacking
        assert (bool(best.initial_bracketed), bool(best.final_bracketed)) == tuple(n == 0 for n in lacking)
    # With a status, NaN is a diverged run's accuracy: it counts, as the worst.
    pairs = pairs_of(gap).rename(train_loss="auc")
    with pytest.raises(ValueError, match="objective: expected 'minimize' or 'maximize' for 'auc'"):
        best_pair(pairs, "auc", keep=2)
    pairs["auc"] = -pairs.auc
    pairs["status"] = pairs.auc.notnull().astype(np.int8) + 2 * pairs.auc.isnull().astype(np.int8)
    best = best_pair(pairs, "auc", keep=2, objective="maximize")
    assert (float(best.initial), int(best.initial_unjudged), bool(best.initial_bracketed)) == (1.0, 0, True)


def test_where_every_pair_diverged_there_is_no_best_and_the_grids_grow_down():
    best = best_pair(pairs_of(np.full((2, 2, 1), np.inf)), "train_loss", keep=1)
    assert np.isnan(best.initial)
    assert not bool(best.initial_bracketed)
    assert wider_pair({"initial": (-1, 0), "final": (-4, -2)}, [best]) == {
        "initial": (-2, -1, 0),
        "final": (-6, -4, -2),
    }


# What is asked of simulated models


def network():
    return simulators.sparse_regression(dim=10, examples=8, nonzero=1)


def regression():
    return simulators.FiniteLeastSquares.sample(theory.LeastSquares([1.0, 0.5], label_noise=0.1, dataset_size=7))


@pytest.mark.parametrize("make", [network, regression])
@pytest.mark.parametrize("size", [0, 0.5, 1.5, -3, np.nan, 100, 1e19])
def test_batches_that_cannot_be_sampled_are_refused(make, size):
    model = make()
    if size == 100 and make is network:
        return  # which takes examples several times
    point = theory.constant(5), simulators.Configuration(learning_rate=0.01, momentum=0.0, batch_size=size)
    with pytest.raises(ValueError, match="batch_size: expected"):
        simulators.final_losses(model, [point], 2)
    for bracketed, name in ((simulators.bracketed_sweep, "batch_sizes"), (simulators.bracketed_pairs, "batch_size")):
        with pytest.raises(ValueError, match="batch_size"):
            bracketed(model, theory.StepBudget(5), **{name: size}, runs=2, keep=1)


def test_huge_batches_with_replacement_are_refused():
    run = {"learning_rate": 0.01, "dynamics": "minibatch", "sampling": "with_replacement", "replicas": 2}
    with pytest.raises(ValueError, match=r"at most 134217728, or inf"):
        simulators.simulate(network(), theory.constant(2), batch_size=1e12, **run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": (0, -6)}, "start: expected two exponents of two, the lower first"),
        ({"start": (-6.5, 0)}, "start: expected two exponents"),
        ({"runs": "3"}, "runs: expected"),
        ({"keep": 9}, "keep: expected at most the 3 runs"),
        ({"threads": 0}, "threads: expected"),
        ({"budget": theory.EpochBudget(1, dataset_size=9)}, "budget: expected one of 8 examples"),
        ({"model": theory.power_law(3)}, "model: expected a DiagonalNetwork or FiniteLeastSquares"),
    ],
)
def test_bad_requests_are_refused_in_words(changes, message):
    request = {"model": network(), "budget": theory.StepBudget(5), "runs": 3, "keep": 2} | changes
    model, budget = request.pop("model"), request.pop("budget")
    with pytest.raises(ValueError, match=message):
        simulators.bracketed_sweep(model, budget, batch_sizes=[2], **request)
    if "start" not in changes:
        with pytest.raises(ValueError, match=message):
            simulators.bracketed_pairs(model, budget, batch_size=2, **request)


@pytest.mark.alone
@pytest.mark.parametrize("bracketed", ["sweep", "pairs"])
def test_an_interrupted_search_ends_at_once_and_leaves_no_threads(bracketed):
    """Every point would take minutes."""
    search = simulators.bracketed_sweep if bracketed == "sweep" else simulators.bracketed_pairs
    size = {"batch_sizes": [2]} if bracketed == "sweep" else {"batch_size": 2}
    # The compiler loses interrupts that reach it: LLVM calls back into Python, and what is raised there goes nowhere.
    search(network(), theory.StepBudget(5), **size, runs=2, keep=1)
    before = threading.active_count()
    interrupter = threading.Timer(1.0, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
    interrupter.start()
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        search(network(), theory.StepBudget(10**8), **size, runs=2, keep=1)
    assert time.perf_counter() - started < 8.0
    deadline = time.perf_counter() + 5.0
    while threading.active_count() > before and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert threading.active_count() == before


@pytest.mark.parametrize("bracketed", ["sweep", "pairs"])
def test_progress_counts_the_updates_of_every_round(bracketed):
    seen = []
    note = {"progress": lambda done, total: seen.append((done, total)), "runs": 3, "keep": 2}
    if bracketed == "sweep":
        simulators.bracketed_sweep(network(), theory.StepBudget(50), batch_sizes=[2], **note)
    else:
        simulators.bracketed_pairs(network(), theory.StepBudget(50), batch_size=2, **note)
    rounds = [k for k, (done, total) in enumerate(seen) if done == total]
    assert rounds[-1] == len(seen) - 1
    assert all(done <= total for done, total in seen)
    assert seen[0][0] == 50
