"""Intervals hold their level: how often they miss, over many curves of one known quadratic."""

import functools
from math import comb

import numpy as np
import pytest

from noisysgd import theory
from noisysgd.theory.fits.power_laws import PowerLaws, Reference

FLOOR, FITS, LEVEL = 2.0, 20, 0.95
MANY = 7
"""Misses of one number that would be an alarm."""
SETTINGS = {"learning_rate": 0.5, "batch_size": 16}
TRUTH = PowerLaws(0.3, 0.5, 0.1, 1.2, 2.0, 0.0)
REFERENCE = Reference(progress=300.0, temperature=0.5 / 16, loss=0.3, furthest=1000.0)
SCHEDULES = [theory.constant(2000), theory.piecewise([1000, 1000], [1.0, 0.2])]
AT = np.arange(40, 2001, 40)


def measured(seed: int) -> list[theory.MeasuredCurve]:
    """Two curves with independent relative errors of 0.2 %."""
    stream = np.random.default_rng(seed)
    curves = []
    for schedule in SCHEDULES:
        loss = FLOOR + theory.loss_curve(TRUTH.problem(REFERENCE), schedule, at=AT, **SETTINGS)
        noisy = loss * np.exp(2e-3 * stream.standard_normal(AT.size))
        curves.append(theory.MeasuredCurve(AT, noisy, schedule=schedule, **SETTINGS))
    return curves


@functools.cache
def fits() -> list[theory.QuadraticFit]:
    return [theory.fit_quadratic(measured(seed), noise="additive", level=LEVEL) for seed in range(FITS)]


def truths(reference: Reference) -> dict[str, float]:
    """The numbers of the truth, where a fit states them."""
    return {
        "floor": FLOOR,
        "excess": TRUTH.excess * (reference.progress / REFERENCE.progress) ** -TRUTH.exponent,
        "exponent": TRUTH.exponent,
        "noise": TRUTH.noise * reference.temperature / REFERENCE.temperature,
        "noise_exponent": TRUTH.noise_exponent,
    }


def misses(narrower: float = 1.0) -> dict[str, int]:
    """How many intervals of each number would miss it, were they narrower by a factor."""
    count = dict.fromkeys(truths(REFERENCE), 0)
    for fit in fits():
        for name, truth in truths(fit.reference).items():
            value = fit.parameters[name]
            scale = np.log if name in ("excess", "noise") else np.asarray
            low, high = scale(value.low), scale(value.high)
            count[name] += bool(abs(scale(truth) - 0.5 * (low + high)) > 0.5 * (high - low) / narrower)
    return count


def at_least(count: int, share: float) -> float:
    """Probability of `count` or more misses among the fits."""
    return sum(comb(FITS, k) * share**k * (1 - share) ** (FITS - k) for k in range(count, FITS + 1))


@pytest.mark.slow
def test_intervals_miss_as_rarely_as_their_level_says() -> None:
    """False alarms: 5 numbers × P(7 or more misses of 20 at 5 %) = 1.7e-4."""
    assert 5 * at_least(MANY, 1 - LEVEL) < 2e-4
    found = misses()
    assert max(found.values()) < MANY, found


@pytest.mark.slow
def test_intervals_of_a_third_of_the_width_would_be_caught() -> None:
    """Power: they would miss every other time."""
    assert max(misses(narrower=3.0).values()) >= MANY


@pytest.mark.slow
def test_an_edge_that_is_called_identified_is_there() -> None:
    """The curvature lies at half of what the runs allow, where few of them show it."""
    edges = [fit.parameters["largest_eigenvalue"] for fit in fits()]
    claimed = [edge for edge in edges if edge.identified]
    wrong = [edge for edge in claimed if not edge.low <= TRUTH.largest_eigenvalue <= edge.high]
    assert len(wrong) <= 3
