"""The one random stream: every random number is a function of (seed, purpose, replica, step, coordinate).

Counter layout, version 1 (`STREAM_VERSION`; a change of any bit below is a new version):

=====  ========================================  ==================================================================
word   holds                                     limit
=====  ========================================  ==================================================================
key    seed, low word first                      seed < 2⁶⁴
c0     block = coordinate // 2                   coordinate < 2³³
       (// 4 in single precision)
c1     step, bits 0…31                           step < 2⁴⁸
c2     purpose · 2¹⁶ + bits 32…47 of step        purpose < 2¹⁶
c3     replica                                   replica < 2³²
=====  ========================================  ==================================================================

One Philox4x32-10 call makes the four 32-bit words of a block: two 64-bit words (low half first), or by Box–Muller the
two normals of coordinates 2·block (the cosine) and 2·block + 1 (the sine).

Single precision has purposes of its own. There a block is the four normals of coordinates 4·block … 4·block + 3, two
Box–Muller pairs (cosine, sine) whose radius and angle are one 32-bit word each, in the order of the words.

Gradient noise that is not Gaussian makes one number (`NoiseLaw`) from a whole block, for which block = coordinate.

Minibatches take 64-bit words in sequence, one for each example drawn. When reshuffling, step is the index of the epoch.
For label noise, coordinate is the position of the example in the batch, or in the data set where a batch takes all of
it. For data sets drawn from a law, replica is the index of the example.

The learning rate, batch size and momentum are deliberately not part of the counter. All configurations share their
random numbers, so that adding configurations to a call never changes the results of the others; estimates at different
learning rates are therefore positively correlated, and their differences more precise than their standard errors
suggest.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from noisysgd.simulators.randomness import float32, philox
from noisysgd.simulators.randomness.philox import BitsArray, UintArray
from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray

STREAM_VERSION = 1
"""Version of the counter layout and of the arithmetic that makes normals; recorded with every result."""

SEEDS, PURPOSES, REPLICAS, STEPS, COORDINATES = 2**64, 2**16, 2**32, 2**48, 2**33
"""Limits of the indices, as in the table."""
MOST_WORDS = 2**28
"""Of one call, which returns them in 2 GB."""


class Purpose(IntEnum):
    """What a random number is for; different purposes never share numbers. Values are part of the stream version."""

    INITIAL_STATE = 0
    GRADIENT_NOISE = 1
    MINIBATCH = 2
    JUMP = 3
    OTHER_NOISE = 4
    SINGLE_INITIAL_STATE = 5
    SINGLE_GRADIENT_NOISE = 6
    RESHUFFLE = 7
    LABEL_NOISE = 8
    DATA = 9
    DROPOUT = 11
    AUGMENTATION = 16
    SUBSET = 17


LAWS = ("gaussian", "student_t", "uniform")
"""Laws of the gradient noise."""


@dataclass(frozen=True)
class NoiseLaw:
    """The law of one coordinate of gradient noise, scaled to variance 1 where it has a variance.

    Parameters
    ----------
    name : {"gaussian", "student_t", "uniform"}
    degrees_of_freedom : float
        ν ≥ 0.5 of Student's t. For ν > 2 the numbers are divided by their standard deviation √(ν/(ν−2)); for ν ≤ 2
        their variance is infinite, and they are left as they are.

    Examples
    --------
    >>> NoiseLaw("student_t", 4.0).scale
    0.7071067811865476
    """

    name: str = "gaussian"
    degrees_of_freedom: float = 3.0

    def __post_init__(self) -> None:
        checks.one_of("noise", self.name, LAWS)
        remedy = "3 has a variance but no fourth moment; 2 and below have no variance."
        value = checks.at_least("degrees_of_freedom", self.degrees_of_freedom, 0.5, remedy=remedy)
        object.__setattr__(self, "degrees_of_freedom", checks.scalar("degrees_of_freedom", value))

    @property
    def tails(self) -> float:
        """The law as kernels are given it: 0 for Gaussian, ν for Student's t, −1 for uniform."""
        return {"gaussian": 0.0, "student_t": self.degrees_of_freedom, "uniform": -1.0}[self.name]

    @property
    def scale(self) -> float:
        """Factor that gives the kernels' numbers variance 1, where they have a variance."""
        heavy = self.name == "student_t" and self.degrees_of_freedom > 2
        return float(np.sqrt(1.0 - 2.0 / self.degrees_of_freedom)) if heavy else 1.0


def random_bits(seed: int, purpose: int, *, replica: ArrayLike, step: ArrayLike, block: ArrayLike) -> BitsArray:
    """Raw output of Philox4x32-10.

    Parameters
    ----------
    seed, purpose : int
        See the limits in the module's table.
    replica, step, block : int or array of int
        Broadcast against each other to shape ``(...)``; ``block`` is ``coordinate // 2``.

    Returns
    -------
    (..., 4) array of uint32
        The four words of each block.

    Raises
    ------
    ValueError
        If an index is not an integer, is out of its range, or the shapes do not broadcast.

    Examples
    --------
    The known answer of the reference implementation for the zero counter and key:

    >>> [f"{word:08x}" for word in random_bits(0, 0, replica=0, step=0, block=0)]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    key, use = index("seed", seed, SEEDS), index("purpose", purpose, PURPOSES)
    indices = _indices("replica", replica, REPLICAS), _indices("step", step, STEPS)
    blocks = _indices("block", block, COORDINATES // 2)
    try:
        places = np.broadcast_arrays(*indices, blocks)
    except ValueError:
        got = [array.shape for array in (*indices, blocks)]
        checks.require(False, "replica, step, block", "shapes that broadcast", got, "Add axes with [:, None].")
    bits = np.empty((places[0].size, 4), np.uint32)
    philox.bits_at(bits, key, use, *(np.array(place).ravel() for place in places))
    return bits.reshape(*places[0].shape, 4)


def random_words(seed: int, purpose: int, *, replica: int, step: int, count: int) -> UintArray:
    """`count` independent uniform 64-bit words: two from each of the blocks 0, 1, ….

    The first words never depend on `count`. The order that sorts them is a uniform random permutation, from which a
    minibatch can be drawn.

    Raises
    ------
    ValueError
        If an index is not an integer or is out of its range.

    Examples
    --------
    >>> first = random_words(0, Purpose.MINIBATCH, replica=0, step=7, count=3)
    >>> longer = random_words(0, Purpose.MINIBATCH, replica=0, step=7, count=1000)
    >>> bool((longer[:3] == first).all())
    True
    """
    key, use = index("seed", seed, SEEDS), index("purpose", purpose, PURPOSES)
    place = index("replica", replica, REPLICAS), index("step", step, STEPS)
    out = np.empty(int(index("count", count, MOST_WORDS)), np.uint64)
    philox.word_sequence(out, key, use, *place)
    return out


def normals(
    seed: int, purpose: int, *, replicas: ArrayLike, step: int, coordinates: ArrayLike, dtype: str = "float64"
) -> npt.NDArray[Any]:
    """Draw the standard normals that a simulation uses at one step.

    Parameters
    ----------
    seed, purpose, step : int
        See the limits in the module's table. Gradient noise at `step` drives the update from step to step + 1.
    replicas, coordinates : (R,) and (D,) arrays of int
        Which replicas and coordinates to draw for, such as ``range(8)``.
    dtype : {"float64", "float32"}
        Type of the normals, of which a block makes two or four. Simulations in single precision use the purposes
        ``SINGLE_…``.

    Returns
    -------
    (D, R) array
        Box–Muller normals of type `dtype`, accurate to a few units in the last place, never NaN or inf. |z| ≤ 8.5717
        in double and 6.7638 in single precision.

    Raises
    ------
    ValueError
        If an index is not an integer or is out of its range, an array is not one-dimensional, or `dtype` is another.

    Examples
    --------
    Any part of the stream can be drawn alone:

    >>> table = normals(1, Purpose.GRADIENT_NOISE, replicas=range(4), step=0, coordinates=range(3))
    >>> table.shape
    (3, 4)
    >>> bool(normals(1, Purpose.GRADIENT_NOISE, replicas=[2], step=0, coordinates=[1])[0, 0] == table[1, 2])
    True
    """
    key, use = index("seed", seed, SEEDS), index("purpose", purpose, PURPOSES)
    lanes, rows = _indices("replicas", replicas, REPLICAS), _indices("coordinates", coordinates, COORDINATES)
    for name, array in (("replicas", lanes), ("coordinates", rows)):
        checks.require(array.ndim == 1, name, "a one-dimensional array", array.shape, "Pass range(n) for the first n.")
    kind = checks.one_of("dtype", dtype, ("float64", "float32"))
    z: npt.NDArray[Any] = np.empty((rows.size, lanes.size), kind)
    fill = float32.normals_at if kind == "float32" else philox.normals_at
    fill(z, key, use, lanes, index("step", step, STEPS), rows)
    return z


def noise(seed: int, law: NoiseLaw, *, replicas: ArrayLike, step: int, coordinates: ArrayLike) -> FloatArray:
    """Draw the gradient noise that a simulation uses at one step, of variance 1 where the law has one.

    Parameters
    ----------
    seed, step, replicas, coordinates
        As for :func:`normals`.
    law : NoiseLaw
        What the numbers are drawn from.

    Returns
    -------
    (D, R) array
        Independent draws. Student's t by Bailey's polar method, |t| below √(ν (2^(106/ν) − 1)).

    Raises
    ------
    ValueError
        As :func:`normals`.

    Examples
    --------
    >>> table = noise(1, NoiseLaw("uniform"), replicas=range(4), step=0, coordinates=range(3))
    >>> bool((abs(table) <= 3**0.5).all())
    True
    """
    checks.instance("law", law, NoiseLaw, remedy="Make one with simulators.NoiseLaw.")
    if law.name == "gaussian":
        return normals(seed, Purpose.GRADIENT_NOISE, replicas=replicas, step=step, coordinates=coordinates)
    key, place = index("seed", seed, SEEDS), index("step", step, STEPS)
    # Here a coordinate is the index of a block, of which there are half as many as normals.
    lanes, rows = _indices("replicas", replicas, REPLICAS), _indices("coordinates", coordinates, COORDINATES // 2)
    for name, array in (("replicas", lanes), ("coordinates", rows)):
        checks.require(array.ndim == 1, name, "a one-dimensional array", array.shape, "Pass range(n) for the first n.")
    z = np.empty((rows.size, lanes.size))
    philox.others_at(z, key, np.uint64(Purpose.OTHER_NOISE), lanes, place, rows, law.tails)
    return law.scale * z


def index(name: str, value: object, limit: int) -> np.uint64:
    """`value` as an index of the stream in 0…limit − 1; a ValueError otherwise."""
    whole = checks.integer(name, value, 0, remedy="Indices of the random stream count from 0.")
    remedy = "That is all that the random stream's counter holds."
    checks.require(whole < limit, name, f"an integer < {limit}", value, remedy)
    return np.uint64(whole)


def _indices(name: str, value: ArrayLike, limit: int) -> UintArray:
    """`value` as an array of indices of the stream in 0…limit − 1; a ValueError otherwise."""
    checks.unmasked(name, value)
    remedy = "The random stream's counter takes integers from 0 up."
    try:
        array = np.asarray(value)
    except Exception:  # whatever the conversions that the value's own class defines raise
        array = np.empty(0)
    checks.require(array.size > 0 and array.dtype.kind in "iu", name, "integers", value, remedy)
    inside = bool((array >= 0).all() and (array < limit).all())
    checks.require(inside, name, f"integers in 0…{limit - 1}", value, remedy)
    return array.astype(np.uint64)
