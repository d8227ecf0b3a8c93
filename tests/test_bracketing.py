"""The growing rule, alone: it finds what it looks for, goes no further, and comes to an end."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from noisysgd import theory
from noisysgd.theory.bracketing import error_bar, wider
from noisysgd.theory.pairs import best_pair, wider_pair


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


def test_a_run_without_a_value_is_the_worst_run():
    losses = np.array([[5.0, 4.0, 5.0], [4.0, 1.0, 4.0], [5.0, 4.0, 5.0]])[:, :, None] + np.array([0.0, 0.1, 0.2])
    losses[1, 1, 0] = np.nan
    best = best_pair(pairs_of(losses), "train_loss", keep=2)
    assert float(best["mean"]) == pytest.approx(1.15)
    assert bool(best.initial_bracketed)
    assert bool(best.final_bracketed)
    losses[1, 1, 1] = np.nan
    assert float(best_pair(pairs_of(losses), "train_loss", keep=2)["mean"]) == pytest.approx(4.05)


def test_where_every_pair_diverged_there_is_no_best_and_the_grids_grow_down():
    best = best_pair(pairs_of(np.full((2, 2, 1), np.inf)), "train_loss", keep=1)
    assert np.isnan(best.initial)
    assert not bool(best.initial_bracketed)
    assert wider_pair({"initial": (-1, 0), "final": (-4, -2)}, [best]) == {
        "initial": (-2, -1, 0),
        "final": (-6, -4, -2),
    }
