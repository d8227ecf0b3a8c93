"""Schedules and budgets: the paper's has exactly ten drops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisysgd import theory


def test_ten_drops_at_the_papers_step_budget():
    schedule = theory.half_then_decay(9765)
    expected = [int(9765 / 2 + k * 9765 / 20) for k in range(10)]
    assert schedule.boundaries.tolist() == expected
    assert expected[0] == 4882
    np.testing.assert_array_equal(schedule.multipliers, 2.0 ** -np.arange(11))
    # A loop that drops every 488 steps from 4882 on makes an eleventh drop at step 9762.
    assert schedule.at(9764) == 2.0**-10


@given(st.integers(20, 10**7))
def test_ten_drops_at_any_number_of_steps(steps):
    schedule = theory.half_then_decay(steps)
    assert schedule.steps == steps
    assert schedule.boundaries.tolist() == [(steps * (10 + k)) // 20 for k in range(10)]


@given(st.integers(1, 19))
def test_few_steps_end_at_the_same_place(steps):
    """With fewer than 20 steps drops coincide; none is lost that a later step could feel."""
    schedule = theory.half_then_decay(steps)
    passed = sum((steps * (10 + k)) // 20 <= steps - 1 for k in range(10))
    assert schedule.at(steps - 1) == 2.0**-passed


def test_initial_to_final_is_the_same_shape():
    schedule = theory.initial_to_final(1000, initial=0.8, final=0.1)
    assert schedule.boundaries.tolist() == theory.half_then_decay(1000).boundaries.tolist()
    np.testing.assert_allclose(schedule.multipliers[[0, -1]], [0.8, 0.1])
    np.testing.assert_allclose(np.diff(np.log(schedule.multipliers)), np.log(0.125) / 10)


def test_warmup_comes_before_and_rises():
    schedule = theory.warmup(theory.constant(90), steps=10, levels=4)
    assert schedule.steps == 100
    assert (np.diff(schedule.multipliers) > 0).all()
    assert schedule.multipliers[-1] == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.5, 1.0])), min_size=1).filter(any))
def test_segments_are_merged_without_changing_any_step(segments):
    lengths, multipliers = zip(*segments, strict=True)
    if sum(lengths) == 0:
        with pytest.raises(ValueError, match="at least one step"):
            theory.piecewise(lengths, multipliers)
        return
    schedule = theory.piecewise(lengths, multipliers)
    np.testing.assert_array_equal(schedule.at(np.arange(schedule.steps)), np.repeat(multipliers, lengths))
    assert (np.diff(schedule.multipliers) != 0).all()


def test_a_schedule_cannot_be_changed():
    schedule = theory.constant(3)
    with pytest.raises(ValueError, match="read-only"):
        schedule.lengths[0] = 7


def test_budgets_count_whole_steps():
    epochs = theory.EpochBudget(epochs=200, dataset_size=50_000)
    assert epochs.steps([64, 1024, 50_000]).tolist() == [156_250, 9765, 200]
    assert theory.StepBudget(steps=9765).steps([[1], [10**6]]).tolist() == [[9765], [9765]]
