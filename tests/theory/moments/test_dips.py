"""Losses in the dips of an oscillation: digits are promised of its envelope, not of what a dip leaves of it."""

import mpmath
import numpy as np
import pytest

from noisysgd import theory


def exact(x, momentum, count):
    """θ and the envelope of its oscillation after `count` noiseless steps from θ = 1, by squaring in 60 digits."""
    with mpmath.workdps(60):
        x, m = mpmath.mpf(x), mpmath.mpf(momentum)
        power = mpmath.matrix([[1 + m - x, -m], [1, 0]]) ** count
        after, now = (power[row, 0] * (1 - x) + power[row, 1] for row in (0, 1))
        root = mpmath.sqrt(m)
        cosine = (1 + m - x) / (2 * root)
        quadrature = (after / root - cosine * now) / mpmath.sqrt(1 - cosine**2)
        return now, mpmath.sqrt(now**2 + quadrature**2)


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("x", [0.01, 0.5, 1.7, 3.7])
def test_errors_are_small_beside_the_envelope(momentum, x):
    first = int(0.1 / (1 - momentum))
    steps = np.unique(
        np.concatenate([np.arange(first, first + 60), np.geomspace(1, 300 / (1 - momentum), 40).astype(int)])
    )
    problem = theory.NoisyQuadratic([1.0], 0.0, initial_mean=1.0, initial_variance=0.0)
    curve = theory.loss_curve(
        problem, theory.constant(int(steps[-1])), learning_rate=x, batch_size=1, momentum=momentum, at=steps
    )
    dips = 0
    for got, count in zip(curve, steps.tolist(), strict=True):
        theta, envelope = exact(x, momentum, count)
        error = abs(mpmath.mpf(float(got)) - theta**2 / 2) / (envelope**2 / 2)
        assert error < 1e-11 + 1e-15 * count
        dips += theta**2 < 0.01 * envelope**2
    assert dips > 0  # without which the envelope would promise no less than the loss


def test_a_dip_itself_has_fewer_digits():
    """What the envelope stands for: at this step the loss is 2e-9 of it, and off by more than 1e-10 of itself."""
    problem = theory.NoisyQuadratic([1.0], 0.0, initial_mean=1.0, initial_variance=0.0)
    steps = np.arange(1, 30_000)
    settings = {"learning_rate": 0.5, "batch_size": 1, "momentum": 0.999}
    curve = theory.loss_curve(problem, theory.constant(30_000), at=steps, **settings)
    lowest = int(steps[np.argmin(curve * 0.999 ** -steps.astype(float))])
    theta, envelope = exact(0.5, 0.999, lowest)
    got = mpmath.mpf(float(curve[lowest - 1]))
    assert theta**2 < 1e-7 * envelope**2
    assert abs(got - theta**2 / 2) < 1e-11 * envelope**2 / 2
