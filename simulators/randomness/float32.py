"""Standard normals in single precision: four from one Philox block, by two Box–Muller pairs.

Everything is + − × ÷ √ on float32 and integer operations, each rounded once, without branches or calls into libm, as in
`philox`. Constants are typed: Numba would take a plain 2.0 for a float64, and go on in double precision.

One word of 32 bits makes the radius, another the angle. The relative error of the logarithm is small for every word,
for small u as well as next to u = 1, and so is that of the radius: `benchmarks/single_accuracy.py` goes through all
words.
"""

import math

import numpy as np
import numpy.typing as npt

from noisysgd.simulators.randomness.philox import UintArray, words
from noisysgd.theory.common.compiling import entry, inlined

Float32Array = npt.NDArray[np.float32]

_LOW = np.uint64(0xFFFFFFFF)
_MANTISSA_BITS = np.uint64(23)
_MANTISSA = np.uint64(0x7FFFFF)
_ROOT_HALF = np.uint64(0x3F3504F3)  # the bits of √½
_ONE_OVER_ROOT_HALF = np.uint64(0x3F800000) - _ROOT_HALF
_BIAS = np.int64(127 + 32)

_HALF, _ONE, _TWO, _MINUS_TWO = np.float32(0.5), np.float32(1), np.float32(2), np.float32(-2)
_WORD_UNIT = np.float32(2.0**-32)
_LOG2_HIGH = np.float32(float.fromhex("0x1.62e3p-1"))  # so short that its products with exponents are exact
_LOG2_LOW = np.float32(math.log(2.0) - float.fromhex("0x1.62e3p-1"))
_LOG_3, _LOG_5, _LOG_7, _LOG_9 = (np.float32(2 / k) for k in (3, 5, 7, 9))

_BIT_0, _BIT_1 = np.uint64(1), np.uint64(2)
_SIGN_FROM_BIT_1 = np.uint64(30)
_EIGHTH_TURN = np.uint64(1 << 29)
_QUADRANT_BITS = np.uint64(30)
_QUADRANT = np.uint64((1 << 30) - 1)
_ANGLE_UNIT = np.float32(math.pi * 2.0**-31)
_SIN_3, _SIN_5, _SIN_7, _SIN_9 = (np.float32(s / math.factorial(k)) for s, k in ((-1, 3), (1, 5), (-1, 7), (1, 9)))
_COS_2, _COS_4, _COS_6 = (np.float32(s / math.factorial(k)) for s, k in ((-1, 2), (1, 4), (-1, 6)))
_COS_8, _COS_10 = (np.float32(s / math.factorial(k)) for s, k in ((1, 8), (-1, 10)))


@inlined
def _bits(value: np.float32) -> np.uint64:
    return np.uint64(np.float32(value).view(np.uint32))


@inlined
def _float(bits: np.uint64) -> np.float32:
    return np.uint32(bits).view(np.float32)


@inlined
def _halfway(word: np.uint64) -> np.float32:
    """``word + ½``: exact below 2²³, rounded to 24 bits beyond."""
    return np.float32(np.float32(np.uint32(word)) + _HALF)


@inlined
def log_fraction(word: np.uint64) -> np.float32:
    """Logarithm of u = (word + ½)·2⁻³², which is never 0 or 1.

    u = 2ᵉ·(1 + f) with 1 + f in [√½, √2). Where e = 0, f is taken from 1 − u = (complement + ½)·2⁻³², which keeps its
    digits. With s = f/(2+f), log(1+f) = f − ½f² + s·(½f² + R), R = ⅔s² + …, whose terms beyond s⁸ are below 2⁻²⁸.
    """
    # Adding the bits of 1 less those of √½ moves the borders of binades from 2ᵏ to √½ · 2ᵏ: the exponent bits then say
    # e, and the others say 1 + f in [√½, √2).
    shifted = _bits(_halfway(word)) + _ONE_OVER_ROOT_HALF
    exponent = np.float32(np.int32(np.int64(shifted >> _MANTISSA_BITS) - _BIAS))
    beyond = _float((shifted & _MANTISSA) + _ROOT_HALF) - _ONE
    below = -_halfway(_LOW - word) * _WORD_UNIT
    # Next to u = 1, rounding u to 24 bits leaves few digits of 1 − u, of which log u is made. The complement keeps
    # them.
    f = below if exponent == np.float32(0) else beyond
    s = f / (_TWO + f)
    z = s * s
    # f itself is added last and unrounded: what is computed with rounding is small beside it.
    square = _HALF * f * f
    rest = z * (_LOG_3 + z * (_LOG_5 + z * (_LOG_7 + z * _LOG_9)))
    low = square - (s * (square + rest) + exponent * _LOG2_LOW)
    return np.float32(exponent * _LOG2_HIGH - (low - f))


@inlined
def sin_cos(word: np.uint64) -> tuple[np.float32, np.float32]:
    """(sin, cos) of 2π·word·2⁻³².

    The quadrant comes off exactly, in integers, and leaves |x| ≤ π/4 with its own bits: both results are accurate
    relative to themselves, also next to their zeros. Taylor terms beyond x¹⁰ are below 2⁻²⁸.
    """
    # An eighth of a turn more, so that quadrants are centred at multiples of ¼ and what is left has |x| ≤ π/4.
    turned = (word + _EIGHTH_TURN) & _LOW
    quadrant = turned >> _QUADRANT_BITS
    x = np.float32(np.int32(np.int64(turned & _QUADRANT) - np.int64(_EIGHTH_TURN))) * _ANGLE_UNIT
    z = x * x
    sine = x + x * (z * (_SIN_3 + z * (_SIN_5 + z * (_SIN_7 + z * _SIN_9))))
    cosine = _ONE + z * (_COS_2 + z * (_COS_4 + z * (_COS_6 + z * (_COS_8 + z * _COS_10))))
    # A quarter turn swaps sine and cosine; signs are set in the sign bit, without a branch.
    swap = quadrant & _BIT_0 == _BIT_0
    along, across = (cosine, sine) if swap else (sine, cosine)
    minus_sine = (quadrant & _BIT_1) << _SIGN_FROM_BIT_1
    minus_cosine = ((quadrant + _BIT_0) & _BIT_1) << _SIGN_FROM_BIT_1
    return _float(_bits(along) ^ minus_sine), _float(_bits(across) ^ minus_cosine)


@inlined
def normal_pair(radial: np.uint64, angular: np.uint64) -> tuple[np.float32, np.float32]:
    """Two independent standard normals from two 32-bit words (Box & Muller 1958).

    u lies in [2⁻³³, 1 − 2⁻³³], so that log u is finite and strictly negative, and no word gives NaN or inf. No normal
    exceeds √(2 log 2³³) = 6.7638 in absolute value (probability 1.3·10⁻¹¹ under the normal law).
    """
    radius = np.sqrt(_MINUS_TWO * log_fraction(radial))
    sine, cosine = sin_cos(angular)
    return radius * cosine, radius * sine


@inlined
def draw_four(
    z: Float32Array,
    row: int,
    seed: np.uint64,
    purpose: np.uint64,
    replica: np.uint64,
    step: np.uint64,
    block: np.uint64,
) -> None:
    """Fill ``z[row]`` … ``z[row + 3]`` with the normals of coordinates 4·block … 4·block + 3, from `replica` on."""
    for lane in range(z.shape[1]):
        x0, x1, x2, x3 = words(seed, purpose, replica + np.uint64(lane), step, block)
        z[row, lane], z[row + 1, lane] = normal_pair(x0, x1)
        z[row + 2, lane], z[row + 3, lane] = normal_pair(x2, x3)


@entry
def fill_normals(z: Float32Array, seed: np.uint64, purpose: np.uint64, replica: np.uint64, step: np.uint64) -> None:
    """Fill `z`, (coordinates, replicas), from coordinate 0 and `replica` on; its rows are a multiple of four."""
    for block in range(z.shape[0] // 4):
        draw_four(z, 4 * block, seed, purpose, replica, step, np.uint64(block))


@entry
def normals_at(
    z: Float32Array, seed: np.uint64, purpose: np.uint64, replicas: UintArray, step: np.uint64, coordinates: UintArray
) -> None:
    """Fill `z`, (coordinates, replicas), with the normals of any coordinates and replicas."""
    for i in range(coordinates.size):
        for j in range(replicas.size):
            x0, x1, x2, x3 = words(seed, purpose, replicas[j], step, coordinates[i] >> np.uint64(2))
            upper = coordinates[i] & _BIT_1 == _BIT_1
            radial, angular = (x2, x3) if upper else (x0, x1)
            even, odd = normal_pair(radial, angular)
            z[i, j] = odd if coordinates[i] & _BIT_0 == _BIT_0 else even
