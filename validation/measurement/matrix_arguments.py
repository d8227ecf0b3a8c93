"""Checks of the arguments that all functions of a matrix share which is given by its products with vectors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch

from noisysgd.theory.common import checks

MatrixVectorProduct: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

MOST_PRODUCTS = 1_000_000
"""Of a matrix with vectors in one estimate: they are made one after the other."""
MOST_ROWS = 2**29
"""Of a matrix: a vector of as many numbers takes 4 GB in double precision."""
MOST_NUMBERS = 2**36
"""In all vectors that are kept at one time: half a terabyte in double precision."""


@dataclass(frozen=True)
class MatrixArguments:
    """The checked arguments, as plain numbers."""

    dimension: int
    seed: int
    rtol: float


def matrix_arguments(
    matvec: object, dimension: object, *, seed: object, rtol: object, dtype: object, device: object
) -> MatrixArguments:
    """Check what a matrix is given by, and how its vectors are drawn.

    Raises
    ------
    ValueError
        For a `matvec` that is no function, numbers that cannot be, types that hold no real numbers, or a device that is
        not there.
    """
    checks.function("matvec", matvec, remedy="Pass a function that maps a vector to the matrix times it.")
    remedy = "Pass the number of rows of the matrix."
    size = checks.integer("dimension", dimension, 1, maximum=MOST_ROWS, remedy=remedy)
    start = checks.integer("seed", seed, 0, maximum=2**63 - 1, remedy="Pass a non-negative integer.")
    tolerance = checks.interval("rtol", rtol, 0.0, float("inf"), remedy="1e-2 is enough for most purposes.")
    real = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    checks.require(real, "dtype", "torch.float64 or torch.float32", dtype, "Pass a type of real numbers.")
    known = isinstance(device, str | torch.device)
    checks.require(known, "device", 'a torch.device, or a name such as "cpu"', device, "Name one.")
    try:
        torch.empty(1, device=device)  # type: ignore[call-overload]  # which was checked just now
    except (RuntimeError, AssertionError) as error:  # torch knows no such device, or was built without it
        got = f"{device} ({str(error).splitlines()[0]})"
        raise ValueError(f'device: expected one that is there, got {got}. Use "cpu".') from error
    return MatrixArguments(size, start, tolerance)


def product(matvec: MatrixVectorProduct, vector: torch.Tensor) -> torch.Tensor:
    """Hv, without gradients; a ``ValueError`` if the user's function returns no such vector."""
    image: object = matvec(vector)
    fits = isinstance(image, torch.Tensor) and image.shape == vector.shape
    expected = f"a tensor of shape {tuple(vector.shape)}"
    remedy = "Return the matrix times the vector that it is given."
    checks.require(fits, "matvec(vector)", expected, image, remedy)
    return cast(torch.Tensor, image).detach()


@contextmanager
def room_for_vectors(name: str, count: int, dimension: int) -> Iterator[None]:
    """Raise a ``ValueError`` on `name` if so many vectors are too many for memory, at once or inside of the block."""
    expected = f"vectors of {dimension} numbers that fit into memory"
    checks.require(count * dimension <= MOST_NUMBERS, name, expected, count, "Ask for fewer.")
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise ValueError(f"{name}: expected {expected}, got {count} of them. Ask for fewer.") from error
