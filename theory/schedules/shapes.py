"""Learning-rate schedules in common use: cosine, linear, warm-up–stable–decay, inverse square root, or one's own.

Each is a function of the number of steps and has one multiplier per step. Step k, counted from 0, is a share k/steps of
the run, as in torch's schedulers: the last step lies one step before the end.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.whole_parts import whole_part
from noisysgd.theory.schedules.schedule import Schedule

MOST_STEPS = 10**8
"""Largest number of steps with a multiplier each: their arrays have to fit into memory."""
DECAYS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "linear": lambda share: 1.0 - share,
    # (1 + cos πt)/2, which keeps its digits at the end.
    "cosine": lambda share: np.cos(0.5 * np.pi * share) ** 2,
    "sqrt": lambda share: 1.0 - np.sqrt(share),
}
"""What is left of the way from the initial to the final multiplier after a share of the decay."""


def cosine(steps: int, final: float = 0.0) -> Schedule:
    """Half a period of a cosine from 1 to `final` (Loshchilov & Hutter 2017): f + (1−f)(1 + cos(πk/steps))/2 at step k.

    Parameters
    ----------
    steps : int
    final : float
        Multiplier f ≥ 0 at the end, which is one step after the last.

    Raises
    ------
    ValueError
        If `steps` is not a positive integer, or `final` is negative or not finite.

    Examples
    --------
    >>> cosine(4, final=0.1).multipliers.round(3)
    array([1.   , 0.868, 0.55 , 0.232])
    """
    return _decay("cosine", _count(steps), _final(final))


def linear(steps: int, final: float = 0.0) -> Schedule:
    """A straight line from 1 to `final`: 1 − (1−f) k/steps at step k. Parameters are those of :func:`cosine`.

    >>> linear(4, final=0.2).multipliers.round(3)
    array([1. , 0.8, 0.6, 0.4])
    """
    return _decay("linear", _count(steps), _final(final))


def warmup_stable_decay(
    steps: int, warmup: float = 0.0, decay: float = 0.2, final: float = 0.0, shape: str = "linear"
) -> Schedule:
    """A rise, a constant learning rate, and a decay at the end (WSD: Hu et al. 2024; Hägele et al. 2024).

    Parameters
    ----------
    steps : int
        All steps, warm-up included.
    warmup, decay : float
        Shares of the steps, rounded down to whole steps; together at most 1. Of w steps of warm-up, step k has the
        multiplier (k+1)/(w+1), as by :func:`~noisysgd.theory.warmup`.
    final : float
        Multiplier ≥ 0 at the end of the decay.
    shape : {"linear", "cosine", "sqrt"}
        What is left of the way to `final` after a share t of the decay: 1−t, (1 + cos πt)/2, or 1−√t.

    Raises
    ------
    ValueError
        For numbers that are no such shares, another shape, or as for :func:`cosine`.

    Examples
    --------
    >>> warmup_stable_decay(8, warmup=0.25, decay=0.5).multipliers.round(3)
    array([0.333, 0.667, 1.   , 0.75 , 0.5  , 0.25 ])
    """
    count, last = _count(steps), _final(final)
    rise, fall = (_share(name, share, count) for name, share in (("warmup", warmup), ("decay", decay)))
    fits = rise + fall <= count
    checks.require(fits, "warmup, decay", "shares of at most 1 together", (warmup, decay), "Shorten one of them.")
    checks.one_of("shape", shape, list(DECAYS))
    level = np.ones(count - rise - fall)
    return Schedule(np.ones(count), np.concatenate([_rise(rise), level, _falling(shape, fall, last)]))


def inverse_sqrt(steps: int, warmup: float = 0.0) -> Schedule:
    """A rise over w steps, then √(w/n) at the n-th step (Vaswani et al. 2017), whatever the number of steps to come.

    Parameters
    ----------
    steps : int
    warmup : float
        Share of the steps over which the multiplier rises as n/w. It is rounded down to w steps, but to no less than
        one: without a warm-up the multiplier is 1/√n.

    Raises
    ------
    ValueError
        For a number that is no such share, or as for :func:`cosine`.

    Examples
    --------
    >>> inverse_sqrt(8, warmup=0.5).multipliers.round(3)
    array([0.25 , 0.5  , 0.75 , 1.   , 0.894, 0.816, 0.756, 0.707])
    """
    count = _count(steps)
    rise = max(1, _share("warmup", warmup, count))
    number = np.arange(1.0, count + 1.0)
    return Schedule(np.ones(count), np.minimum(number / rise, np.sqrt(rise / number)))


def per_step(multipliers: ArrayLike | Callable[[int], float], steps: int | None = None) -> Schedule:
    """Any schedule, from one multiplier per step.

    Parameters
    ----------
    multipliers : (n,) array or callable
        Multipliers ≥ 0, or a function of the step, which counts from 0.
    steps : int, optional
        Number of steps, for a function; of an array it is the length.

    Raises
    ------
    ValueError
        For negative or infinite multipliers, no steps, a function without a number of steps, or an array with another.

    Examples
    --------
    >>> per_step([1.0, 1.0, 0.5]).lengths
    array([2, 1])
    >>> per_step(lambda step: 0.5**step, steps=3).multipliers
    array([1.  , 0.5 , 0.25])
    """
    count = None if steps is None else _count(steps)
    given: Any = multipliers
    if callable(multipliers):
        remedy = "Say for how many steps the function is to be called."
        checks.require(count is not None, "steps", "a number of steps beside a function", steps, remedy)
        given = [checks.scalar(f"multipliers({k})", multipliers(k)) for k in range(count or 0)]
    values = checks.vector("multipliers", checks.at_least("multipliers", given, 0.0, remedy="Give one ≥ 0 per step."))
    remedy = "Leave out steps for an array."
    checks.require(count in (None, values.size), "steps", f"{values.size}, as multipliers", steps, remedy)
    return Schedule(np.ones(values.size), values)


def _decay(shape: str, count: int, final: float) -> Schedule:
    return Schedule(np.ones(count), _falling(shape, count, final))


def _falling(shape: str, count: int, final: float) -> FloatArray:
    """Multipliers from 1 towards `final`, which would be that of the step after the last."""
    left = DECAYS[shape](np.arange(count) / max(count, 1))
    return np.asarray(final + (1.0 - final) * left)


def _rise(count: int) -> FloatArray:
    return np.arange(1.0, count + 1.0) / (count + 1.0)


def _count(steps: ArrayLike) -> int:
    count = checks.integer("steps", steps, 1, remedy="A schedule has at least one step.")
    remedy = "Use theory.piecewise, with a multiplier for many steps."
    checks.require(count <= MOST_STEPS, "steps", f"at most {MOST_STEPS:.0e}, with a multiplier each", steps, remedy)
    return count


def _final(final: float) -> float:
    value = checks.scalar("final", final)
    checks.require(0 <= value < np.inf, "final", "a finite multiplier ≥ 0", final, "It multiplies the learning rate.")
    return value


def _share(name: str, share: float, count: int) -> int:
    """A share of the steps as a number of steps."""
    value = checks.scalar(name, share)
    checks.require(0 <= value <= 1, name, "a share of the steps, 0…1", share, "Divide a number of steps by all steps.")
    return min(whole_part(value, count), count)
