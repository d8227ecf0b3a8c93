"""Gradient noise that is not Gaussian: its numbers, its distribution, and what it does to linear scaling.

Statistical checks fail a correct simulator at the levels of ``test_stream``; seeds are fixed.
"""

import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from noisysgd import simulators, theory
from noisysgd.simulators import NoiseLaw, Purpose
from noisysgd.simulators.ensembles import tiles
from noisysgd.simulators.ensembles.tiles import Configuration
from noisysgd.simulators.randomness import philox

mpmath = pytest.importorskip("mpmath")

LIMIT = 6.0
KS_LEVEL = 1e-9
LAWS = [NoiseLaw("uniform"), *(NoiseLaw("student_t", nu) for nu in (0.5, 1.5, 2.0, 3.0, 30.0))]
DISTRIBUTIONS = {
    "uniform": lambda law: stats.uniform(-math.sqrt(3), 2 * math.sqrt(3)),
    "student_t": lambda law: stats.t(law.degrees_of_freedom, scale=law.scale),
}


def sample(law: NoiseLaw, replicas: int = 2**12, coordinates: int = 64) -> np.ndarray:
    return simulators.noise(7, law, replicas=range(replicas), step=3, coordinates=range(coordinates))


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_distribution_is_the_law_s(law: NoiseLaw) -> None:
    distribution = DISTRIBUTIONS[law.name](law)
    ordered = np.sort(sample(law).ravel())
    assert stats.kstest(ordered, distribution.cdf).pvalue > KS_LEVEL
    assert stats.kstest(1.1 * ordered, distribution.cdf).pvalue < KS_LEVEL, "the test has no power"


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_coordinates_are_independent_in_size_too(law: NoiseLaw) -> None:
    """Ranks of |z| of neighbouring coordinates: the two numbers of one Box–Muller radius would show here."""
    z = np.abs(sample(law))
    ranks = np.argsort(np.argsort(z, axis=1), axis=1) / z.shape[1] - 0.5
    correlation = 12 * (ranks[0::2] * ranks[1::2]).mean()
    assert abs(correlation) * math.sqrt(ranks[0::2].size) < LIMIT


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_numbers_are_accurate_against_the_formula_in_extended_precision(law: NoiseLaw) -> None:
    coordinates = np.arange(400)
    words = simulators.random_bits(7, Purpose.OTHER_NOISE, replica=5, step=3, block=coordinates)
    found = simulators.noise(7, law, replicas=[5], step=3, coordinates=coordinates)[:, 0]
    with mpmath.workdps(40):
        for row, value in zip(words.tolist(), found, strict=True):
            u = (mpmath.mpf((row[0] | row[1] << 32) >> 12) + mpmath.mpf(1) / 2) / 2**52
            if law.name == "uniform":
                exact = (2 * u - 1) * mpmath.sqrt(3)
            else:
                nu = mpmath.mpf(law.degrees_of_freedom)
                turn = mpmath.mpf((row[2] | row[3] << 32) >> 11) / 2**53
                exact = mpmath.sqrt(nu * mpmath.expm1(-2 / nu * mpmath.log(u))) * mpmath.cos(2 * mpmath.pi * turn)
                exact *= mpmath.mpf(law.scale)
            # The exponent −2/ν log u is as large as 147: rounding it costs that many units in the last place.
            assert abs(value - exact) <= 5e-14 * abs(exact) + 1e-16


@pytest.mark.parametrize("y", [0.0, 1e-300, 1e-17, 1e-9, 0.3, 0.34657, 0.34658, 1.0, 36.7, 147.0, 700.0])
def test_the_exponential_is_accurate_relative_to_itself(y: float) -> None:
    with mpmath.workdps(60):
        exact = mpmath.expm1(mpmath.mpf(y))
        assert abs(philox.exp_minus_one(y) - exact) <= 4e-16 * exact


def digest() -> str:
    laws = [NoiseLaw("uniform"), NoiseLaw("student_t", 1.5)]
    return hashlib.sha256(b"".join(sample(law, 40, 5).tobytes() for law in laws)).hexdigest()


def test_compiled_and_interpreted_arithmetic_agree_in_every_bit() -> None:
    script = f"import runpy; print(runpy.run_path({__file__!r})['digest']())"
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    answer = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == digest()


def replica_losses(
    problem: theory.NoisyQuadratic, steps: int, law: NoiseLaw, rate: float, size: float, momentum: float, replicas: int
) -> np.ndarray:
    """Loss of every replica at the end."""
    shared = tiles.ensemble(problem, theory.constant(steps), np.array([steps]), 0, law=law)
    configuration = Configuration(rate, momentum, float(problem.noise_factor(size)))
    blocks = [tiles.tile_losses(shared, configuration, first, 128) for first in range(0, replicas, 128)]
    return np.concatenate([next(reversed(list(block)))[-1] for block in blocks])


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("law", [NoiseLaw("uniform"), NoiseLaw("student_t", 1.5)], ids=str)
def test_trajectories_are_those_of_the_definition(law: NoiseLaw, momentum: float, full: bool) -> None:
    noise = np.array([[2.0, 0.5, 0.1], [0.5, 1.0, 0.3], [0.1, 0.3, 0.5]])
    problem = theory.NoisyQuadratic([1.2, 1.0, 0.7], noise if full else np.diag(noise))
    compiled = replica_losses(problem, 6, law, 0.3, 3, momentum, 128)
    lanes, rows = range(128), range(3)
    theta = simulators.normals(0, Purpose.INITIAL_STATE, replicas=lanes, step=0, coordinates=rows)
    velocity = np.zeros_like(theta)
    root = tiles.square_root(problem.noise) * np.sqrt(problem.noise_factor(3))
    for step in range(6):
        z = simulators.noise(0, law, replicas=lanes, step=step, coordinates=rows)
        velocity = momentum * velocity + (
            problem.eigenvalues[:, None] * theta + (root @ z if full else root[:, None] * z)
        )
        theta = theta - 0.3 * velocity
    np.testing.assert_allclose(compiled, (0.5 * problem.eigenvalues[:, None] * theta**2).sum(axis=0), rtol=1e-13)


@pytest.mark.parametrize("law", ["uniform", "student_t"])
def test_the_mean_loss_is_the_theory_s_whatever_the_law(law: str) -> None:
    """Second moments know only variances. With 1 % more noise the same check fails."""
    problem = theory.NoisyQuadratic(np.linspace(0.7, 1.3, 64), 4.0)
    louder = theory.NoisyQuadratic(np.linspace(0.7, 1.3, 64), 4.08)
    settings = {"learning_rate": 0.6, "batch_size": 1, "momentum": 0.0}
    shape = {"degrees_of_freedom": 8.0} if law == "student_t" else {}
    run = {"replicas": 2**17, "noise": law} | shape | settings
    exact = float(theory.expected_loss(problem, theory.constant(12), **settings))
    for tried, right in ((problem, True), (louder, False)):
        result = simulators.simulate(tried, theory.constant(12), **run)
        assert (abs(result.loss.item() - exact) < LIMIT * result.loss_stderr.item()) == right


@pytest.mark.parametrize(
    ("law", "holds"),
    [
        (NoiseLaw(), True),
        (NoiseLaw("uniform"), True),
        (NoiseLaw("student_t", 5.0), True),
        (NoiseLaw("student_t", 1.5), False),
        (NoiseLaw("student_t", 1.0), False),
    ],
    ids=str,
)
def test_linear_scaling_holds_for_any_noise_with_a_variance_and_fails_without(law: NoiseLaw, holds: bool) -> None:
    """Equal temperature and epochs at B = 1 and 64, far below the critical learning rate (paper, appendix A).

    Noise of stability index ν adds up like n^(1/ν) over n steps, so that with ε ∝ B, n ∝ 1/B and noise ∝ 1/√B the loss
    changes by B^(1−2/ν): not at all at ν = 2, by 1/4 at ν = 1.5, by 1/64 at ν = 1. Medians, since means need not exist.
    """
    problem = theory.NoisyQuadratic([1.0, 0.9, 0.8, 0.7], 1.0, initial_variance=0.0)
    small = np.median(replica_losses(problem, 6400, law, 0.001, 1, 0.0, 4096))
    large = np.median(replica_losses(problem, 100, law, 0.064, 64, 0.0, 4096))
    nu = 2.0 if holds else law.degrees_of_freedom
    assert math.log2(large / small) == pytest.approx(6 * (1 - 2 / nu), abs=0.25)


def test_bad_laws_are_refused() -> None:
    problem, settings = theory.power_law(2), {"learning_rate": 0.1, "batch_size": 1}
    with pytest.raises(ValueError, match="noise: expected one of 'gaussian', 'student_t', 'uniform', got 'cauchy'"):
        simulators.simulate(problem, theory.constant(3), **settings, noise="cauchy")
    with pytest.raises(ValueError, match=r"degrees_of_freedom: expected values ≥ 0\.5, got 0\.1"):
        simulators.simulate(problem, theory.constant(3), **settings, noise="student_t", degrees_of_freedom=0.1)
    with pytest.raises(ValueError, match="noise: expected 'gaussian' for jumps, got 'uniform'"):
        simulators.simulate(problem, theory.constant(3), **settings, noise="uniform", dynamics="jump")
