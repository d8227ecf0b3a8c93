"""Claims about all public functions of ``theory`` at once, on the table of calls in ``theory_calls``."""

import functools
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from theory_calls import CALLS, NO_NUMBERS, Units, function_of, numbers, problems

from noisysgd import theory

NOT_FOR = {("svag_loss", "least squares")}
"""Functions that take some kinds of problems only."""
CASES = [
    (name, kind)
    for name, call in CALLS.items()
    for kind in (problems(Units()) if call.problem else ["no problem"])
    if (name, kind) not in NOT_FOR
]


def call(name, kind, units=None):
    """Arguments of a row, in these units."""
    units = units or Units()
    return CALLS[name].arguments(units, problems(units).get(kind))


@functools.cache
def reference(name, kind):
    """All numbers in the result, in the units of the table."""
    return list(numbers(function_of(name)(**call(name, kind))))


def test_the_table_is_complete():
    public = {name for name in theory.__all__ if not isinstance(getattr(theory, name), ModuleType)}
    assert public == {name.partition(" ")[0] for name in CALLS} | NO_NUMBERS


UNITS = [
    Units(theta=2.0**theta, loss=2.0**loss)
    for theta, loss in [(-200, 100), (200, -100), (-150, -500), (250, 500), (0, -660), (0, 510)]
]
"""Powers of two, so that all inputs keep their digits."""


def representable(name, kind, units):
    """Whether floating point can hold all that goes in and comes out; least squares is not given F, only σ²."""
    held = [units.curvature, units.rate, units.variance, *CALLS[name].results(units).values()]
    held += [] if kind == "least squares" else [units.noise]
    return all(1e-300 < unit < 1e300 for unit in held)


@pytest.mark.parametrize(
    ("name", "kind", "units"),
    [(*case, units) for case in CASES for units in UNITS if representable(*case, units)],
    ids=str,
)
def test_units_do_not_matter(name, kind, units):
    """The same numbers, to rounding, whatever a parameter and a loss are measured in."""
    function, scale = function_of(name), CALLS[name].results(units)
    expected = reference(name, kind)
    with np.errstate(all="raise"):  # numbers of this size underflow where others do not
        got = list(numbers(function(**call(name, kind, units))))
    assert [field for field, _ in got] == [field for field, _ in expected]
    for (field, value), (_, usual) in zip(got, expected, strict=True):
        np.testing.assert_allclose(value / scale.get(field, 1.0), usual, rtol=CALLS[name].rtol, err_msg=field)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_numpys_error_handling_does_not_matter(name, kind):
    """Whoever sets NumPy to raise on underflow gets the same numbers."""
    with np.errstate(all="raise"):
        got = list(numbers(function_of(name)(**call(name, kind))))
    for (field, value), (_, usual) in zip(got, reference(name, kind), strict=True):
        np.testing.assert_array_equal(value, usual, err_msg=field)


MASKED = [
    (name, kind, argument)
    for name, kind in CASES
    if kind in ("no problem", "diagonal noise")
    for argument, value in call(name, kind).items()
    if isinstance(value, int | float | list | np.ndarray)
]


@pytest.mark.parametrize("nested", [False, True], ids=["an array", "in a list"])
@pytest.mark.parametrize(("name", "kind", "argument"), MASKED)
def test_a_mask_is_not_lost(name, kind, argument, nested):
    """What a mask hides is no number: it is refused, not used."""
    given = call(name, kind)
    hidden = np.ma.masked_array(given[argument], mask=True)
    with pytest.raises(ValueError, match=rf"{argument}: expected values without a mask, got .* masked.*\.compressed"):
        function_of(name)(**given | {argument: [hidden] if nested else hidden})


@pytest.mark.parametrize(("name", "kind", "argument"), MASKED)
def test_a_mask_that_hides_nothing_is_fine(name, kind, argument):
    given = call(name, kind)
    got = list(numbers(function_of(name)(**given | {argument: np.ma.masked_array(given[argument])})))
    for (field, value), (_, usual) in zip(got, reference(name, kind), strict=True):
        np.testing.assert_array_equal(value, usual, err_msg=field)


LABELLED = [
    (name, kind, argument)
    for name, kind, argument in MASKED
    if np.ndim(call(name, kind)[argument]) > 0 and np.asarray(call(name, kind)[argument]).dtype.kind in "iuf"
]


def labelled_forms(value):
    """The same numbers as labelled arrays, with labels that are not their places."""
    array = np.asarray(value)
    yield xr.DataArray(array, dims=[f"axis {k}" for k in range(array.ndim)])
    if array.ndim == 1:
        yield pd.Series(array, index=np.arange(array.size)[::-1])
        yield pd.Index(array)


@pytest.mark.parametrize(("name", "kind", "argument"), LABELLED)
def test_labelled_arrays_are_arrays(name, kind, argument):
    """Those of xarray and pandas are taken for their values."""
    given = call(name, kind)
    for form in labelled_forms(given[argument]):
        got = list(numbers(function_of(name)(**given | {argument: form})))
        for (field, value), (_, usual) in zip(got, reference(name, kind), strict=True):
            np.testing.assert_array_equal(value, usual, err_msg=field)


def test_labels_that_contradict_broadcasting_by_position_are_refused():
    """Values of two dimensions would be paired one by one, as if they were of one."""
    rates, sizes = xr.DataArray([0.1, 0.2], dims="rate"), xr.DataArray([4, 8], dims="size")
    with pytest.raises(
        ValueError, match="learning_rate, batch_size: expected labelled arrays with the same dimensions"
    ):
        theory.temperature(rates, sizes)
    table = xr.DataArray([[0.1, 0.2], [0.3, 0.4]], dims=("rate", "size"))
    with pytest.raises(ValueError, match="expected labelled arrays with the same dimensions"):
        theory.temperature(table, xr.DataArray([1, 2], dims="rate"))
    expected = theory.temperature(table.values, sizes.values)
    np.testing.assert_array_equal(theory.temperature(table, sizes), expected)
    np.testing.assert_array_equal(theory.temperature(table, sizes.values), expected)
    np.testing.assert_array_equal(theory.temperature(rates, sizes[:1]), theory.temperature([0.1, 0.2], 4))
    outer = theory.temperature(rates.values[:, None], sizes)
    np.testing.assert_array_equal(outer, rates.values[:, None] / sizes.values)


def test_what_the_optimum_rule_returns_is_what_fits_take():
    sizes, rates = [1, 4, 16, 64, 256], theory.powers_of_two(-10, 4, 2)
    sweep = theory.predict_sweep(
        theory.power_law(50), theory.StepBudget(200), batch_sizes=sizes, effective_learning_rates=rates, momentum=0.0
    )
    best = theory.optimum(sweep, "expected_loss").squeeze()
    assert best.bracketed.all()
    given = theory.compare_rules(best.batch_size, best.learning_rate, log_errors=best.log_error)
    plain = theory.compare_rules(sizes, best.learning_rate.values, log_errors=best.log_error.values)
    xr.testing.assert_identical(given, plain)
    table = best.learning_rate.to_series()
    assert theory.SquareRoot.fit(table.index, table) == theory.SquareRoot.fit(sizes, table.values)
