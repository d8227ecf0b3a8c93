"""Claims about all public functions of ``theory`` at once, on the table of calls in ``theory_calls``."""

import functools
from types import ModuleType

import numpy as np
import pytest
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
