"""Steps in groups: the same loss as step by step, to the second order in the size of the groups."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisysgd import theory
from noisysgd.theory.fits.grouped_steps import grouped_steps
from noisysgd.theory.fits.observations import Observations, observations
from noisysgd.theory.fits.power_laws import PowerLaws, Reference

STEPS = 3000
REFERENCE = Reference(progress=1000.0, temperature=0.1, loss=0.3, furthest=3000.0)
RAMP = np.linspace(0.01, 1.0, 300)
FALL = 0.55 + 0.45 * np.cos(np.pi * np.arange(STEPS - 300) / (STEPS - 300))
SCHEDULES = {
    "constant": theory.constant(STEPS),
    "drop": theory.piecewise([1500, 1500], [1.0, 0.1]),
    "pause": theory.piecewise([1000, 500, 1500], [1.0, 0.0, 0.3]),
    "cosine, a rate for every step": theory.piecewise(np.ones(STEPS), np.concatenate([RAMP, FALL])),
}


def run(schedule: theory.Schedule, momentum: float, at: np.ndarray) -> Observations:
    rate = 0.8 * (1 - momentum)
    curve = theory.MeasuredCurve(
        at, np.ones(at.size), schedule=schedule, learning_rate=rate, batch_size=8, momentum=momentum
    )
    return observations(curve)


def exact(laws: PowerLaws, seen: Observations) -> np.ndarray:
    """Step by step, by the project's own moments of the problem that the laws describe."""
    curve = seen.curve
    settings = {"learning_rate": curve.learning_rate, "batch_size": curve.batch_size, "momentum": curve.momentum}
    return theory.loss_curve(laws.problem(REFERENCE), curve.schedule, at=curve.steps, **settings)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_grouped_steps_give_the_loss_of_single_ones(name: str, share: float, momentum: float) -> None:
    seen = run(SCHEDULES[name], momentum, np.arange(0, STEPS + 1, 60))
    laws = PowerLaws(0.2, 0.5, 0.05, 1.3, 1.0, share)
    truth = exact(laws, seen)
    coarse = np.abs(seen.excess_losses(laws, REFERENCE) / truth - 1).max()
    fine = np.abs(replace(seen, coarse=0.005).excess_losses(laws, REFERENCE) / truth - 1).max()
    assert coarse < 1e-3
    assert fine < max(0.3 * coarse, 1e-10)


@given(
    st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0.0, 0.01, 0.3, 0.31, 1.0])), min_size=1, max_size=8),
    st.sampled_from([0.0, 0.5]),
    st.data(),
)
@settings(max_examples=30)
def test_under_additive_noise_any_staircase_is_exact(
    stairs: list[tuple[int, float]], momentum: float, data: st.DataObject
) -> None:
    """Groups of equal rates are what the closed forms take."""
    schedule = theory.piecewise(*zip(*stairs, strict=True))
    at = np.array(sorted(data.draw(st.sets(st.integers(0, schedule.steps), min_size=1, max_size=5))))
    seen = run(schedule, momentum, at)
    laws = PowerLaws(0.2, 0.5, 0.05, 1.3, 1.0, 0.0)
    if at[-1] > 0:
        np.testing.assert_allclose(seen.excess_losses(laws, REFERENCE), exact(laws, seen), rtol=1e-3)
        np.testing.assert_allclose(
            replace(seen, coarse=1e-3).excess_losses(laws, REFERENCE), exact(laws, seen), rtol=1e-10
        )


def test_groups_are_few_and_cover_every_step_once() -> None:
    at = np.arange(128, STEPS, 128)
    schedule = SCHEDULES["cosine, a rate for every step"]
    groups = grouped_steps(schedule, 0.1, at)
    assert groups.lengths.sum() == at[-1]
    assert groups.lengths.size < 0.1 * STEPS
    assert np.all(np.isin(at, np.cumsum(groups.lengths)))
    assert list(groups.recorded[groups.recorded >= 0]) == list(range(at.size))
    total = 0.1 * schedule.at(np.arange(at[-1])).sum()
    assert abs((groups.lengths * groups.rates).sum() / total - 1) < 1e-12


def test_too_large_a_rate_gives_an_infinite_loss() -> None:
    seen = run(theory.constant(STEPS), 0.0, np.array([10, STEPS]))
    assert np.isinf(seen.excess_losses(PowerLaws(0.2, 0.5, 0.05, 1.3, 10.0, 0.5), REFERENCE)[-1])
