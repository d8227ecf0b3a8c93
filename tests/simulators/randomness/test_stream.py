"""The random stream: known answers, exactness, and statistics with stated false-alarm rates.

A statistical check below fails a correct stream when a standard normal exceeds `LIMIT` in absolute value: 2·10⁻⁹ each,
and below 10⁻⁶ for all the checks of this file together. Seeds are fixed, so a failure is never bad luck twice.
"""

import hashlib
import math
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from scipy import stats

from noisysgd import simulators
from noisysgd.simulators import Purpose
from noisysgd.simulators.randomness import float32, philox

mpmath = pytest.importorskip("mpmath")

LIMIT = 6.0
KS_LEVEL = 1e-9
SAMPLE_DIGEST = "13242b93545e180c89d5499ec552f6a8d5dd25fee33d174d96f9f935598d1901"


def draw(purpose: int = Purpose.GRADIENT_NOISE, *, seed: int = 7, first: int = 0, step: int = 0, coordinate: int = 0):
    """4 194 304 normals; the keywords shift the block of the stream that they come from."""
    replicas, coordinates = range(first, first + 2**16), range(coordinate, coordinate + 64)
    return simulators.normals(seed, purpose, replicas=replicas, step=step, coordinates=coordinates)


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    return draw()


def sample_digest() -> str:
    """SHA-256 of a small corner of the stream with every part of the counter in use."""
    z = simulators.normals(
        2**63 + 5, 65535, replicas=[0, 1, 2**32 - 1], step=2**40 + 3, coordinates=range(2**33 - 30, 2**33)
    )
    words = simulators.random_words(2**63 + 5, 3, replica=9, step=2**47, count=33)
    return hashlib.sha256(z.astype("<f8").tobytes() + words.astype("<u8").tobytes()).hexdigest()


# Exactness


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers_of_random123(counter: str, key: str, answer: str) -> None:
    c0, c1, c2, c3 = (int(word, 16) for word in counter.split())
    k0, k1 = (int(word, 16) for word in key.split())
    step, purpose = c1 | (c2 & 0xFFFF) << 32, c2 >> 16
    bits = simulators.random_bits(k0 | k1 << 32, purpose, replica=c3, step=step, block=c0)
    assert bits.dtype == np.uint32
    assert [f"{word:08x}" for word in bits] == answer.split()


def test_random_bits_broadcast_and_random_words_are_the_same_words() -> None:
    bits = simulators.random_bits(3, 2, replica=[[4], [5]], step=9, block=np.arange(6))
    assert bits.shape == (2, 6, 4)
    words = simulators.random_words(3, 2, replica=5, step=9, count=11)
    np.testing.assert_array_equal(bits[1].astype("<u4").view("<u8").ravel()[:11], words)


def test_normals_are_the_box_muller_transform_of_the_bits() -> None:
    z = simulators.normals(3, 1, replicas=[4, 8], step=9, coordinates=range(40))
    x = simulators.random_bits(3, 1, replica=[4, 8], step=9, block=np.arange(20)[:, None]).astype(np.uint64)
    radial, angular = x[..., 0] | x[..., 1] << np.uint64(32), x[..., 2] | x[..., 3] << np.uint64(32)
    radius = np.sqrt(-2 * np.log(((radial >> np.uint64(12)) + 0.5) * 2.0**-52))
    angle = 2 * np.pi * ((angular >> np.uint64(11)) * 2.0**-53)
    np.testing.assert_allclose(z[0::2], radius * np.cos(angle), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(z[1::2], radius * np.sin(angle), rtol=1e-13, atol=1e-14)


def test_the_bits_of_stream_version_1_never_change() -> None:
    assert simulators.STREAM_VERSION == 1
    assert sample_digest() == SAMPLE_DIGEST


def test_compiled_and_interpreted_arithmetic_agree_in_every_bit() -> None:
    # The interpreter rounds after every operation: a fused multiply–add in compiled code would show here.
    script = f"import runpy; print(runpy.run_path({__file__!r})['sample_digest']())"
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    answer = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == sample_digest()


def ulps(value: float, exact: mpmath.mpf) -> float:
    return float(abs(value - exact) / mpmath.mpf(math.ulp(float(exact))))


def test_log_is_accurate_on_every_radius() -> None:
    generator = np.random.default_rng(1)
    j = np.concatenate(
        [
            generator.integers(0, 2**52, 3000),
            np.arange(60),
            2**52 - 1 - np.arange(60),
            (2.0 ** np.arange(1, 52)).astype(np.int64),
            (2.0 ** (np.arange(2, 104) / 2)).astype(np.int64),
        ]
    )
    with mpmath.workprec(200):
        for radial in j:
            u = (int(radial) + 0.5) * 2.0**-52
            value = philox.log(u)
            assert value < 0
            assert math.isfinite(value)
            assert ulps(value, mpmath.log(mpmath.mpf(u))) <= 3


def test_sine_and_cosine_are_accurate_relative_to_themselves_on_the_whole_circle() -> None:
    generator = np.random.default_rng(2)
    eighths = np.arange(9)[:, None] * 2**50 + np.arange(-20, 21)
    j = np.concatenate([generator.integers(0, 2**53, 2000), eighths.ravel() % 2**53])
    with mpmath.workprec(200):
        for angular in j:
            sine, cosine = philox.sin_cos(np.uint64(int(angular) << 11))
            angle = 2 * mpmath.pi * mpmath.mpf(int(angular)) / 2**53
            for value, exact in ((sine, mpmath.sin(angle)), (cosine, mpmath.cos(angle))):
                if int(angular) * 4 % 2**53 == 0:
                    assert value == float(mpmath.nint(exact))
                else:
                    assert ulps(value, exact) <= 3


def test_no_word_gives_a_normal_that_is_not_a_number() -> None:
    low, high = np.uint64(0), np.uint64(0xFFFFFFFF)
    largest = math.sqrt(2 * 53 * math.log(2))
    for x0, x1, x2, x3 in np.array(np.meshgrid(*[[low, high, np.uint64(1), np.uint64(2**31)]] * 4)).reshape(4, -1).T:
        z = philox.normal_pair(x0, x1, x2, x3)
        assert all(math.isfinite(value) and abs(value) <= largest * (1 + 1e-15) for value in z)
    assert philox.normal_pair(low, low, low, low)[0] == pytest.approx(largest, rel=1e-15)
    assert 0 < philox.normal_pair(high, high, low, low)[0] < 2e-8


# Single precision

SINGLE_DIGEST = "ac24297fa100db3aefa250166fb2eb8c52afdf59a2faea9ddaa58a6cb7cadad6"


def draw_single(replicas: int = 2**16, **place: int) -> np.ndarray:
    place = {"purpose": Purpose.SINGLE_GRADIENT_NOISE, "step": 0} | place
    table = simulators.normals(7, replicas=range(replicas), coordinates=range(64), dtype="float32", **place)
    return table.astype(float)


@pytest.fixture(scope="module")
def single_sample() -> np.ndarray:
    return draw_single()


def single_digest() -> str:
    place = {"replicas": [0, 1, 2**32 - 1], "step": 2**40 + 3, "coordinates": range(2**33 - 30, 2**33)}
    z = simulators.normals(2**63 + 5, 65535, **place, dtype="float32")
    return hashlib.sha256(z.astype("<f4").tobytes()).hexdigest()


def single_ulps(value: float, exact: mpmath.mpf) -> float:
    return float(abs(float(value) - exact)) / float(np.spacing(np.float32(abs(exact))))


EDGES = [0, 1, 2, 2**23 - 1, 2**23, 2**24, 2**31, 2**32 - 1]
RADIAL = np.concatenate(
    [
        np.random.default_rng(3).integers(0, 2**32, 4000),
        np.arange(100),
        2**32 - 1 - np.arange(100),
        math.isqrt(2**63) + np.arange(-200, 200),  # √½, where the exponent and the source of f change
        (2.0 ** (np.arange(2, 64) / 2)).astype(np.int64),
        EDGES,
    ]
)


def test_four_normals_come_from_one_block() -> None:
    z = simulators.normals(3, 6, replicas=[4, 8], step=9, coordinates=range(40), dtype="float32")
    assert z.dtype == np.float32
    x = simulators.random_bits(3, 6, replica=[4, 8], step=9, block=np.arange(10)[:, None]).astype(float)
    for first in (0, 2):
        radius = np.sqrt(-2 * np.log((x[..., first] + 0.5) * 2.0**-32))
        angle = 2 * np.pi * x[..., first + 1] * 2.0**-32
        np.testing.assert_allclose(z[first::4], radius * np.cos(angle), rtol=1e-6)
        np.testing.assert_allclose(z[first + 1 :: 4], radius * np.sin(angle), rtol=1e-6)


def test_the_bits_of_single_precision_never_change() -> None:
    assert single_digest() == SINGLE_DIGEST


def test_single_precision_is_the_same_interpreted() -> None:
    # An operation promoted to float64, or a fused multiply–add, would show here.
    script = f"import runpy; print(runpy.run_path({__file__!r})['single_digest']())"
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    answer = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == single_digest()


def test_single_precision_is_not_promoted_to_double() -> None:
    compiled = numba.njit(error_model="numpy")(float32.fill_normals.py_func)  # one from the cache shows no code
    compiled(np.empty((4, 8), np.float32), *np.zeros(4, np.uint64))
    (code,) = compiled.inspect_llvm().values()
    assert "float" in code
    assert "double" not in code


def test_the_single_logarithm_is_accurate_on_every_radius() -> None:
    with mpmath.workprec(100):
        for word in RADIAL:
            value = float32.log_fraction(np.uint64(word))
            assert value < 0
            exact = mpmath.log((mpmath.mpf(int(word)) + mpmath.mpf(1) / 2) / 2**32)
            assert single_ulps(value, exact) <= 3


def test_single_sines_and_cosines_are_accurate_relative_to_themselves_on_the_whole_circle() -> None:
    eighths = np.arange(9)[:, None] * 2**29 + np.arange(-100, 101)
    with mpmath.workprec(100):
        for word in np.concatenate([RADIAL, eighths.ravel() % 2**32]):
            values = float32.sin_cos(np.uint64(word))
            angle = 2 * mpmath.pi * mpmath.mpf(int(word)) / 2**32
            for value, exact in zip(values, (mpmath.sin(angle), mpmath.cos(angle)), strict=True):
                if int(word) % 2**30 == 0:
                    assert value == float(mpmath.nint(exact))
                else:
                    assert single_ulps(value, exact) <= 3


def test_no_word_gives_a_single_normal_that_is_not_a_number() -> None:
    largest = math.sqrt(2 * 33 * math.log(2))
    for radial in map(np.uint64, EDGES):
        for angular in map(np.uint64, EDGES):
            z = float32.normal_pair(radial, angular)
            assert all(math.isfinite(value) and abs(value) <= largest * (1 + 2**-23) for value in z)
    zero = np.uint64(0)
    assert float32.normal_pair(zero, zero)[0] == pytest.approx(largest, rel=1e-6)
    # The smallest radius is 2⁻¹⁶, and known to all its digits.
    assert float32.normal_pair(np.uint64(2**32 - 1), zero)[0] == pytest.approx(2.0**-16, rel=1e-6)


def test_single_normals_are_normal(single_sample: np.ndarray) -> None:
    assert np.abs(moment_scores(single_sample)).max() < LIMIT
    louder = np.abs(moment_scores(math.sqrt(1.01) * single_sample))
    assert louder[1] > LIMIT
    ordered = np.sort(single_sample.ravel())
    assert stats.kstest(ordered, "norm").pvalue > KS_LEVEL
    assert stats.kstest(math.sqrt(1.03) * ordered, "norm").pvalue < KS_LEVEL, "the test has no power"


@pytest.mark.parametrize("shift", [1, 2, 3, 4])
def test_the_normals_of_a_block_and_its_neighbours_are_independent(single_sample: np.ndarray, shift: int) -> None:
    a, b = single_sample[:-shift], single_sample[shift:]
    assert np.abs(correlation_scores(a, b)).max() < LIMIT
    assert correlation_scores(a, math.sqrt(1 - 0.01**2) * b + 0.01 * a)[0] > LIMIT


@pytest.mark.parametrize("other", [{"purpose": Purpose.SINGLE_INITIAL_STATE}, {"step": 1}], ids=str)
def test_single_streams_are_uncorrelated_with_one_another_and_with_double(
    sample: np.ndarray, single_sample: np.ndarray, other: dict[str, int]
) -> None:
    for neighbour in (draw_single(**other), sample):
        assert np.abs(correlation_scores(single_sample, neighbour)).max() < LIMIT


def test_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype: expected one of 'float64', 'float32', got 'float16'"):
        simulators.normals(0, 0, replicas=[0], step=0, coordinates=[0], dtype="float16")


# Statistics


def moment_scores(z: np.ndarray) -> list[float]:
    """Deviations of the first four sample moments from the normal's, in exact standard errors."""
    moments = {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}  # E z^k and Var z^k
    return [(np.mean(z**k) - mean) / math.sqrt(variance / z.size) for k, (mean, variance) in moments.items()]


def correlation_scores(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Correlations of the values and of their squares, in standard errors under independence."""
    return [math.sqrt(a.size) * np.mean(a * b), math.sqrt(a.size) * np.mean((a**2 - 1) * (b**2 - 1)) / 2]


def test_moments_up_to_the_fourth(sample: np.ndarray) -> None:
    assert np.abs(moment_scores(sample)).max() < LIMIT


def test_the_moments_would_show_one_percent_of_variance(sample: np.ndarray) -> None:
    scores = np.abs(moment_scores(math.sqrt(1.01) * sample))
    assert scores[1] > LIMIT
    assert scores[3] > LIMIT


def test_the_distribution_is_normal(sample: np.ndarray) -> None:
    ordered = np.sort(sample.ravel())
    assert stats.kstest(ordered, "norm").pvalue > KS_LEVEL
    assert stats.kstest(math.sqrt(1.03) * ordered, "norm").pvalue < KS_LEVEL, "the test has no power"


def test_every_bit_of_a_word_is_fair() -> None:
    words = simulators.random_words(11, Purpose.MINIBATCH, replica=0, step=0, count=2**18)
    share = [(words >> np.uint64(bit) & np.uint64(1)).mean() for bit in range(64)]
    assert 2 * math.sqrt(words.size) * np.abs(np.array(share) - 0.5).max() < LIMIT


@pytest.mark.parametrize(
    "shift",
    [
        {"seed": 8},
        {"seed": 7 + 2**32},
        {"purpose": Purpose.INITIAL_STATE},
        {"purpose": Purpose.MINIBATCH},
        {"first": 2**16},
        {"first": 1},
        {"step": 1},
        {"step": 2**32},
        {"coordinate": 64},
        {"coordinate": 1},
        {"coordinate": 2},
    ],
    ids=str,
)
def test_streams_next_to_one_another_are_uncorrelated(sample: np.ndarray, shift: dict[str, int]) -> None:
    other = draw(**shift)
    assert np.abs(correlation_scores(sample, other)).max() < LIMIT
    mixed = math.sqrt(1 - 0.01**2) * other + 0.01 * sample
    assert abs(correlation_scores(sample, mixed)[0]) > LIMIT, "the test would not show a correlation of 1 %"


# Limits


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"seed": 2**64},
        {"seed": 0.5},
        {"purpose": 2**16},
        {"purpose": -1},
        {"replica": 2**32},
        {"replica": [-1]},
        {"replica": [0.0]},
        {"step": 2**48},
        {"step": [True]},
        {"block": 2**32},
        {"block": []},
        {"replica": [0, 1], "step": [0, 1, 2]},
    ],
    ids=str,
)
def test_what_the_counter_cannot_hold_is_rejected(change: dict[str, object]) -> None:
    place = {"seed": 0, "purpose": 0, "replica": 0, "step": 0, "block": 0} | change
    with pytest.raises(ValueError, match=r"expected .*, got "):
        simulators.random_bits(place.pop("seed"), place.pop("purpose"), **place)


def test_the_last_place_of_the_counter_is_still_a_normal() -> None:
    place = {"replicas": [2**32 - 1], "step": 2**48 - 1, "coordinates": [2**33 - 1]}
    assert np.isfinite(simulators.normals(2**64 - 1, 2**16 - 1, **place)).all()


@pytest.mark.parametrize("change", [{"replicas": 4}, {"coordinates": [2**33]}, {"step": 2**48}], ids=str)
def test_normals_reject_what_is_out_of_range(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected .*, got "):
        simulators.normals(0, 0, **({"replicas": [0], "step": 0, "coordinates": [0]} | change))


@pytest.mark.parametrize("change", [{"count": -1}, {"replica": 2**32}, {"step": -1}], ids=str)
def test_random_words_reject_what_is_out_of_range(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"expected .*, got "):
        simulators.random_words(0, 0, **({"replica": 0, "step": 0, "count": 1} | change))
