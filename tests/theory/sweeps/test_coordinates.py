"""Coordinates that are equal up to rounding are one, and no others."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisysgd.theory.sweeps.coordinates import checked_tolerance, equal_pair, joined

DECIMALS = st.integers(1, 9999).map(lambda k: k / 1000)


@given(st.lists(DECIMALS, min_size=1, unique=True), st.integers(1, 50), st.sampled_from([np.float32, np.float64]))
def test_values_that_arithmetic_has_rounded_stand_for_one(values, factor, precision):
    apart = [float(precision(x) * precision(factor) / precision(factor)) for x in values]
    assert joined("learning_rate", [*values, *apart]) == dict(zip([*values, *apart], [*values, *values], strict=True))


@given(st.lists(st.floats(1e-8, 1e8), min_size=2, max_size=20, unique=True), st.sampled_from([0.0, 1e-3]))
def test_only_values_within_the_tolerance_are_joined_in_any_order(values, tolerance):
    try:
        one = joined("learning_rate", values, tolerance)
    except ValueError:
        return
    assert one == joined("learning_rate", reversed(values), tolerance)
    for a, b in itertools.combinations(values, 2):
        difference = abs(a - b) / max(a, b)
        if difference <= max(tolerance, 8 * 2**-52):
            assert one[a] == one[b]
        if difference > max(tolerance, 2**-21) * 1.01:
            assert one[a] != one[b]
        if one[a] == one[b]:
            assert one[a] in values


def test_single_precision_next_to_double_is_one_rate_but_doubles_are_exact():
    assert set(joined("learning_rate", [0.1, float(np.float32(0.1))]).values()) == {0.1}
    near = 0.1 + 1e-8
    assert len(set(joined("learning_rate", [0.1, near]).values())) == 2


def test_momenta_are_rounded_as_numbers_near_one():
    values = [0.0, 0.9, 1 - (1 - 0.9), float(np.float32(0.9)), 0.99, 0.999, 1 - 1e-3]
    assert sorted(set(joined("momentum", values).values())) == [0.0, 0.9, 0.99, 0.999]
    assert len(set(joined("momentum", [1 - 1e-7, 1 - 2e-7]).values())) == 2


def test_whole_batches_are_exact_and_others_are_not():
    values = [64.0, 64.00000000000001, 10_000_000.0, 10_000_001.0, np.inf]
    one = joined("batch_size", values)
    assert one[64.00000000000001] == 64
    assert len(set(one.values())) == 4
    assert joined("budget", [2.3, 23 * 0.1, 230.0])[23 * 0.1] == 2.3


def test_a_tolerance_joins_what_tables_have_rounded():
    assert set(joined("learning_rate", [0.003906, 0.00391, 0.0078], 2e-3).values()) == {0.003906, 0.0078}
    assert len(set(joined("learning_rate", [0.003906, 0.00391]).values())) == 2
    with pytest.raises(
        ValueError, match="learning_rate: expected values that are either equal within the tolerance or"
    ):
        joined("learning_rate", [1.0, 1.05, 1.1], 0.06)
    with pytest.raises(ValueError, match=r"tolerance: expected relative differences from 0 to below 0\.5, got 1"):
        checked_tolerance(1)
    with pytest.raises(ValueError, match="tolerance: expected one of 'momentum', 'batch_size'"):
        checked_tolerance({"seed": 0.1})


def test_pairs_that_are_equal_are_found():
    assert equal_pair("learning_rate", [1.0, 0.3, 0.1 * 3]) == (0.3, 0.1 * 3)
    assert equal_pair("learning_rate", [1.0, 1.0]) == (1.0, 1.0)
    assert equal_pair("batch_size", [1e9, 1e9 + 1, np.inf]) is None
    assert equal_pair("learning_rate", []) is None
