"""Philox4x32-10 and the standard normals made from it, compiled.

Philox (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a 128-bit counter to
128 random bits, one to one, under a 64-bit key. There is no state: a number is a function of where it is used, so no
thread, tile or device can change it. Which counter belongs to which use is written in `words`, and only there.

Everything is + − × ÷ √ on float64 and integer operations, each rounded once: the bits are the same on every platform.
There are no branches and no calls into libm, so that LLVM vectorises loops over replicas. Nothing may be compiled with
fastmath, which would permit fused multiply–adds and with them other bits. Words of 32 bits travel in the lower half of
a uint64, where vector units multiply 32 × 32 → 64.
"""

import math

import numpy as np
import numpy.typing as npt

from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.compiling import entry, inlined

UintArray = npt.NDArray[np.uint64]
BitsArray = npt.NDArray[np.uint32]


_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF_WORD = np.uint64(16)
_WORD = np.uint64(32)

_MANTISSA_BITS = np.uint64(52)
_MANTISSA = np.uint64(0x000FFFFFFFFFFFFF)
_TWO_52 = np.uint64(0x4330000000000000)  # the bits of 2⁵²: a mantissa below them is the integer 2⁵² + mantissa
_ROOT_HALF = np.uint64(0x3FE6A09E667F3BCD)  # the bits of √½
_ONE_OVER_ROOT_HALF = np.uint64(0x3FF0000000000000) - _ROOT_HALF
_LOG2_HIGH = float.fromhex("0x1.62e42feep-1")  # so short that its products with exponents are exact
_LOG2_LOW = float.fromhex("0x1.a39ef35793c76p-33")

_ONE, _TWO = np.uint64(1), np.uint64(2)
_SIGN_FROM_BIT_1 = np.uint64(62)
_ANGLE_BITS = np.uint64(11)
_EIGHTH_TURN = np.uint64(1 << 50)
_QUADRANT_BITS = np.uint64(51)
_QUADRANT = np.uint64((1 << 51) - 1)


@inlined
def _bits(value: float) -> np.uint64:
    return np.float64(value).view(np.uint64)


@inlined
def _float(bits: np.uint64) -> np.float64:
    return np.uint64(bits).view(np.float64)


@inlined
def philox4x32(
    k0: np.uint64, k1: np.uint64, c0: np.uint64, c1: np.uint64, c2: np.uint64, c3: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Ten rounds of Philox4x32 on a counter of four 32-bit words under a key of two."""
    # A round multiplies two words by constants; the halves of the products change places and are mixed with the other
    # two words and the key, which moves on by a Weyl sequence.
    for _ in range(10):
        first = _MULTIPLIERS[0] * c0
        second = _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (second >> _WORD) ^ c1 ^ k0, second & _LOW, (first >> _WORD) ^ c3 ^ k1, first & _LOW
        k0 = (k0 + _WEYL[0]) & _LOW
        k1 = (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


@inlined
def words(
    seed: np.uint64, purpose: np.uint64, replica: np.uint64, step: np.uint64, block: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Make the four 32-bit words of a block; this is the counter layout of stream version 1."""
    c2 = (purpose << _HALF_WORD) | (step >> _WORD)
    x0, x1, x2, x3 = philox4x32(seed & _LOW, seed >> _WORD, block, step & _LOW, c2, replica)
    return x0, x1, x2, x3


@inlined
def log(x: float) -> np.float64:
    """Natural logarithm of a positive, normal float64.

    x = 2ᵉ·m with m in [√½, √2); with s = (m−1)/(m+1), log m = 2s + ⅔s³ + …, whose terms beyond s²¹ are below 2⁻⁵⁸.
    """
    # Adding the bits of 1 less those of √½ moves the borders of binades from 2ᵏ to √½ · 2ᵏ: the exponent bits then say
    # e, and the others say m in [√½, √2).
    shifted = _bits(x) + _ONE_OVER_ROOT_HALF
    # An integer below 2⁵² put into the mantissa of 2⁵² is converted by a subtraction, which vectorises.
    exponent = _float((shifted >> _MANTISSA_BITS) | _TWO_52) - (2.0**52 + 1023.0)
    m = _float((shifted & _MANTISSA) + _ROOT_HALF)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    # Horner's scheme, two coefficients a line.
    p = 2 / 19 + z * (2 / 21)
    p = 2 / 15 + z * (2 / 17 + z * p)
    p = 2 / 11 + z * (2 / 13 + z * p)
    p = 2 / 7 + z * (2 / 9 + z * p)
    p = 2 / 3 + z * (2 / 5 + z * p)
    # e log 2 comes in two parts: the product of e with the first is exact, and small terms are added first.
    logarithm: np.float64 = exponent * _LOG2_HIGH + ((s * z * p + exponent * _LOG2_LOW) + 2.0 * s)
    return logarithm


@inlined
def sin_cos(word: np.uint64) -> tuple[np.float64, np.float64]:
    """(sin, cos) of 2πu, u = the upper 53 bits of `word` as a binary fraction.

    The quadrant comes off exactly, in integers, and leaves |x| ≤ π/4 with its own 51 bits: both results are accurate
    relative to themselves, also next to their zeros. Taylor terms beyond x¹⁷ are below 2⁻⁵⁸.
    """
    # An eighth of a turn more, so that quadrants are centred at multiples of ¼ and what is left has |x| ≤ π/4.
    turned = (word >> _ANGLE_BITS) + _EIGHTH_TURN
    quadrant = turned >> _QUADRANT_BITS
    x = (_float((turned & _QUADRANT) | _TWO_52) - (2.0**52 + 2.0**50)) * (math.pi * 2.0**-52)
    z = x * x
    p = -1 / 1307674368000 + z * (1 / 355687428096000)
    p = -1 / 39916800 + z * (1 / 6227020800 + z * p)
    p = -1 / 5040 + z * (1 / 362880 + z * p)
    p = -1 / 6 + z * (1 / 120 + z * p)
    sine = x + x * (z * p)
    p = -1 / 87178291200 + z * (1 / 20922789888000)
    p = -1 / 3628800 + z * (1 / 479001600 + z * p)
    p = -1 / 720 + z * (1 / 40320 + z * p)
    p = -1 / 2 + z * (1 / 24 + z * p)
    cosine = 1.0 + z * p
    # A quarter turn swaps sine and cosine; signs are set in the sign bit, without a branch.
    swap = quadrant & _ONE == _ONE
    along, across = (cosine, sine) if swap else (sine, cosine)
    minus_sine = (quadrant & _TWO) << _SIGN_FROM_BIT_1
    minus_cosine = ((quadrant + _ONE) & _TWO) << _SIGN_FROM_BIT_1
    return _float(_bits(along) ^ minus_sine), _float(_bits(across) ^ minus_cosine)


@inlined
def normal_pair(x0: np.uint64, x1: np.uint64, x2: np.uint64, x3: np.uint64) -> tuple[np.float64, np.float64]:
    """Two independent standard normals from four 32-bit words (Box & Muller 1958).

    The radius takes the upper 52 bits j of (x1, x0) as u = (j + ½)·2⁻⁵², which is exact and never 0 or 1: it lies in
    [2⁻⁵³, 1 − 2⁻⁵³], so that log u is finite and strictly negative, the root real, and no counter gives NaN or inf.
    No normal exceeds √(2 log 2⁵³) = 8.5717 in absolute value (probability 10⁻¹⁷ under the normal law).
    """
    u = (_float(((x0 | (x1 << _WORD)) >> np.uint64(12)) | _TWO_52) - (2.0**52 - 0.5)) * 2.0**-52
    radius = math.sqrt(-2.0 * log(u))
    sine, cosine = sin_cos(x2 | (x3 << _WORD))
    return radius * cosine, radius * sine


@inlined
def exp_minus_one(y: float) -> np.float64:
    """eʸ − 1 for 0 ≤ y ≤ 700.

    y = k log 2 + r with |r| ≤ ½ log 2; Taylor terms of eʳ − 1 beyond r¹³ are below 2⁻⁵⁷, and 2ᵏ(eʳ − 1) + (2ᵏ − 1) is
    accurate relative to itself, also for small y.
    """
    # Beyond 2⁵² floats are integers: the addition rounds to the nearest k, and leaves its bits in the mantissa.
    rounded = y * (1.0 / math.log(2.0)) + 2.0**52
    k = rounded - 2.0**52
    r = (y - k * _LOG2_HIGH) - k * _LOG2_LOW
    q = 1 / 479001600 + r * (1 / 6227020800)
    q = 1 / 3628800 + r * (1 / 39916800 + r * q)
    q = 1 / 40320 + r * (1 / 362880 + r * q)
    q = 1 / 720 + r * (1 / 5040 + r * q)
    q = 1 / 24 + r * (1 / 120 + r * q)
    q = 1 / 2 + r * (1 / 6 + r * q)
    # 2ᵏ is made from its exponent bits, of which k + 1023 is the biased value.
    power = _float(((_bits(rounded) & _MANTISSA) + np.uint64(1023)) << _MANTISSA_BITS)
    result: np.float64 = power * (r + r * r * q) + (power - 1.0)
    return result


@inlined
def other_noise(x0: np.uint64, x1: np.uint64, x2: np.uint64, x3: np.uint64, tails: float) -> np.float64:
    """Student's t of `tails` > 0 degrees of freedom (Bailey 1994), or uniform on ±√3 for `tails` < 0."""
    u = (_float(((x0 | (x1 << _WORD)) >> np.uint64(12)) | _TWO_52) - (2.0**52 - 0.5)) * 2.0**-52
    if tails < 0.0:
        return np.float64((2.0 * u - 1.0) * math.sqrt(3.0))
    # Box–Muller for t: in the radius √(−2 log u) becomes √(ν (u^(−2/ν) − 1)), which tends to it for large ν. The power
    # comes from exp_minus_one because u^(−2/ν) is close to 1 there.
    _, cosine = sin_cos(x2 | (x3 << _WORD))
    return np.float64(math.sqrt(tails * exp_minus_one(log(u) * (-2.0 / tails))) * cosine)


@inlined
def draw_other(
    z: FloatArray, row: int, seed: np.uint64, purpose: np.uint64, replica: np.uint64, step: np.uint64, tails: float
) -> None:
    """Fill ``z[row % len(z)]`` with noise that is not Gaussian, of coordinate `row`, from `replica` on."""
    for lane in range(z.shape[1]):
        x0, x1, x2, x3 = words(seed, purpose, replica + np.uint64(lane), step, np.uint64(row))
        z[row % z.shape[0], lane] = other_noise(x0, x1, x2, x3, tails)


@inlined
def draw_pair(
    z: FloatArray, row: int, seed: np.uint64, purpose: np.uint64, replica: np.uint64, step: np.uint64, block: np.uint64
) -> None:
    """Fill ``z[row]`` and ``z[row + 1]`` with the normals of coordinates 2·block and 2·block + 1, from `replica` on."""
    for lane in range(z.shape[1]):
        x0, x1, x2, x3 = words(seed, purpose, replica + np.uint64(lane), step, block)
        z[row, lane], z[row + 1, lane] = normal_pair(x0, x1, x2, x3)


@entry
def fill_normals(z: FloatArray, seed: np.uint64, purpose: np.uint64, replica: np.uint64, step: np.uint64) -> None:
    """Fill `z`, (coordinates, replicas), from coordinate 0 and `replica` on; it has an even number of rows."""
    for block in range(z.shape[0] // 2):
        draw_pair(z, 2 * block, seed, purpose, replica, step, np.uint64(block))


@entry
def bits_at(
    bits: BitsArray, seed: np.uint64, purpose: np.uint64, replica: UintArray, step: UintArray, block: UintArray
) -> None:
    """Fill `bits`, (n, 4), with the words of n blocks, each of its own replica and step."""
    for i in range(bits.shape[0]):
        x0, x1, x2, x3 = words(seed, purpose, replica[i], step[i], block[i])
        bits[i, 0], bits[i, 1], bits[i, 2], bits[i, 3] = x0, x1, x2, x3


@entry
def word_sequence(out: UintArray, seed: np.uint64, purpose: np.uint64, replica: np.uint64, step: np.uint64) -> None:
    """Fill `out` with 64-bit words, two from each of the blocks 0, 1, …."""
    for block in range((out.size + 1) // 2):
        x0, x1, x2, x3 = words(seed, purpose, replica, step, np.uint64(block))
        out[2 * block] = x0 | (x1 << _WORD)
        if 2 * block + 1 < out.size:
            out[2 * block + 1] = x2 | (x3 << _WORD)


@entry
def normals_at(
    z: FloatArray, seed: np.uint64, purpose: np.uint64, replicas: UintArray, step: np.uint64, coordinates: UintArray
) -> None:
    """Fill `z`, (coordinates, replicas), with the normals of any coordinates and replicas."""
    for i in range(coordinates.size):
        for j in range(replicas.size):
            x0, x1, x2, x3 = words(seed, purpose, replicas[j], step, coordinates[i] >> _ONE)
            even, odd = normal_pair(x0, x1, x2, x3)
            z[i, j] = even if coordinates[i] & _ONE == np.uint64(0) else odd


@entry
def others_at(
    z: FloatArray,
    seed: np.uint64,
    purpose: np.uint64,
    replicas: UintArray,
    step: np.uint64,
    coordinates: UintArray,
    tails: float,
) -> None:
    """Fill `z`, (coordinates, replicas), with noise that is not Gaussian, of any coordinates and replicas."""
    for i in range(coordinates.size):
        for j in range(replicas.size):
            x0, x1, x2, x3 = words(seed, purpose, replicas[j], step, coordinates[i])
            z[i, j] = other_noise(x0, x1, x2, x3, tails)
