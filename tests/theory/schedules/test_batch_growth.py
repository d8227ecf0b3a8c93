"""Growing the batch instead of decaying the learning rate: the same temperatures, times and examples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisysgd import theory

MULTIPLIERS = st.lists(st.sampled_from([1.0, 0.5, 0.25, 0.1, 2.0]), min_size=1, max_size=5)


@given(MULTIPLIERS, st.integers(1, 8), st.sampled_from([1, 4]), st.sampled_from([np.inf, 64, 100]))
def test_temperatures_are_those_of_the_decaying_learning_rate(multipliers, groups, multiple, largest):
    size = groups * multiple
    lengths = [1000] * len(multipliers)
    decaying = theory.piecewise(lengths, multipliers)
    rates, sizes = theory.grow_batch(decaying, size, largest=max(largest, size), multiple_of=multiple)
    assert rates.steps == sizes.steps
    steps = np.arange(rates.steps)
    batch, rate = sizes.at(steps), rates.at(steps)
    assert (batch % multiple == 0).all()
    assert (batch >= multiple).all()
    assert batch.max() <= max(largest, size)
    # Where a step is, in examples seen before it: there the old schedule has the same temperature.
    seen = np.concatenate([[0.0], np.cumsum(batch)])
    middle = (seen[:-1] + seen[1:]) / 2
    ends = 1000 * size * np.arange(len(lengths) + 1)
    # Each end is rounded to a whole step, of one batch size or the next.
    inside = np.abs(middle[:, None] - ends).min(axis=1) > len(lengths) * batch.max()
    at = np.minimum((middle / size).astype(int), decaying.steps - 1)
    np.testing.assert_allclose((rate / batch)[inside], (decaying.at(at) / size)[inside], rtol=1e-12)
    assert seen[-1] == pytest.approx(decaying.steps * size, abs=batch.max() * (len(lengths) + 1))


def test_time_and_examples_are_kept():
    decaying = theory.half_then_decay(2000)
    rates, sizes = theory.grow_batch(decaying, 8)
    np.testing.assert_array_equal(rates.multipliers, [1.0])
    np.testing.assert_array_equal(sizes.multipliers, 8 * 2.0 ** np.arange(sizes.multipliers.size))
    time = (decaying.lengths * decaying.multipliers).sum()
    assert rates.steps == round(time)
    assert (sizes.lengths * sizes.multipliers).sum() == pytest.approx(2000 * 8, rel=0.05)


def test_a_largest_batch_leaves_the_rest_to_the_learning_rate():
    rates, sizes = theory.grow_batch(theory.piecewise([8, 8, 8], [1.0, 0.25, 0.0625]), 16, largest=70, multiple_of=8)
    np.testing.assert_array_equal(sizes.multipliers, [16, 64])
    np.testing.assert_array_equal(rates.multipliers, [1.0, 0.25])
    np.testing.assert_array_equal(rates.lengths, [10, 2])
    np.testing.assert_array_equal(sizes.lengths, [8, 4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": theory.piecewise([5, 5], [1.0, 0.0])}, "schedule: expected positive multipliers, got 0.0"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 6, "multiple_of": 4}, "batch_size: expected a multiple of 4, got 6"),
        ({"largest": 8}, "largest: expected at least the batch size 16, got 8"),
        ({"largest": np.nan}, "largest"),
    ],
)
def test_impossible_growth_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        theory.grow_batch(**({"schedule": theory.cosine(10), "batch_size": 16} | arguments))
    with pytest.raises(ValueError, match="schedule: expected a Schedule"):
        theory.grow_batch([1.0, 0.5], 16)
