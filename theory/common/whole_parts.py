"""Whole parts of products whose factors were rounded to floats: ⌊2.3 · 50 000 / 50⌋ is 2300, and 2299 in floats."""

import math
from fractions import Fraction


def whole_part(factor: float, count: int, divisor: float = 1.0) -> int:
    """⌊factor · count / divisor⌋ in exact arithmetic, for factor and divisor that stand for what was rounded to them.

    The float 2.3 lies below the number 2.3 that was written, and 1/3 below a third. So a float stands for all numbers
    that are rounded to it, and the result is the largest whole part that any of them has.

    Parameters
    ----------
    factor : float
        ≥ 0 and finite.
    count : int
    divisor : float
        > 0; ``inf`` gives 0.

    Examples
    --------
    >>> whole_part(2.3, 50_000, 50), int(2.3 * 50_000 / 50)
    (2300, 2299)
    >>> whole_part(1 / 3, 3), whole_part(0.29, 100)
    (1, 29)
    """
    if math.isinf(divisor):
        return 0
    return math.floor(_end(factor, math.inf) * count / _end(divisor, -math.inf))


def ceiling(factor: float, count: int) -> int:
    """⌈factor · count⌉ in the same sense: the smallest that any number has which is rounded to `factor`.

    >>> ceiling(0.07, 100), math.ceil(0.07 * 100)
    (7, 8)
    """
    return math.ceil(_end(factor, -math.inf) * count)


def _end(number: float, towards: float) -> Fraction:
    """The number halfway to the next float in that direction, which is the last that may be rounded to `number`."""
    return (Fraction(number) + Fraction(math.nextafter(number, towards))) / 2
