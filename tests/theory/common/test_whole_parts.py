"""Whole parts of products of rounded factors, against integer arithmetic."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisysgd import theory
from noisysgd.theory.common.whole_parts import whole_part
from noisysgd.validation.configuration import TrainConfig
from noisysgd.validation.sweeps.paper import PAPER

SIZES = (50, 64, 100, 128, 250, 500, 1000, 1024)


def test_steps_of_tenths_of_epochs_are_those_of_whole_numbers():
    tenths = [(k, size) for k in range(1, 199) for size in SIZES]
    assert len(tenths) == 1584
    for k, size in tenths:
        assert theory.EpochBudget(k / 10, 50_000).steps(size) == k * 50_000 // (10 * size)
    assert theory.EpochBudget(2.3, 50_000).steps(50) == 2300


def test_the_same_in_floats_is_off_for_some_so_that_the_check_can_fail():
    assert any(int(k / 10 * 50_000 / size) != k * 50_000 // (10 * size) for k in range(1, 199) for size in SIZES)


@given(
    st.integers(1, 10**6), st.integers(0, 6), st.integers(1, 10**7), st.integers(1, 10**6), st.sampled_from([1, 10, 7])
)
def test_whole_part_is_that_of_the_decimal_that_was_written(digits, places, count, divisor, share):
    exact = Fraction(digits, 10**places * share)
    assert whole_part(float(exact), count, divisor) == exact * count // divisor


@given(st.integers(1, 10**7), st.integers(1, 10**7), st.integers(1, 10**5))
def test_epochs_computed_from_steps_give_these_steps_back(steps, size, batch_size):
    """B·n/N epochs, in floats, of N examples are n steps at batch size B."""
    assert whole_part(steps * batch_size / size, size, batch_size) == steps


def test_infinite_batches_take_no_whole_step():
    assert whole_part(10.0, 100, float("inf")) == 0
    with pytest.raises(ValueError, match="a budget of at least one step"):
        theory.EpochBudget(10, 100).steps(float("inf"))


def test_epochs_may_be_fractions_and_shares_of_a_run_are_exact_too():
    assert theory.EpochBudget(Fraction(1, 3), 3).steps([1]).tolist() == [1]
    assert PAPER["figure 1"].steps(50, 2.3) == 2300
    config = TrainConfig(learning_rate=0.1, batch_size=16, steps=100, warmup=0.29)
    assert config.schedule(1000).lengths[:29].tolist() == [1] * 29
    assert config.schedule(1000).lengths[29] > 1
    assert theory.two_scale(50, 2.0, steep=0.29).eigenvalues.tolist().count(1.0) == 15
