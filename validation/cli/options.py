"""What the commands' options have in common: lists of integers, folders that must exist. Nothing heavy is imported."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

COMMAND_STYLE = argparse.RawDescriptionHelpFormatter


class UsageError(ValueError):
    """Options that do not go together: the command ends with exit status 2, as for one that it does not know."""


def positive(text: str) -> int:
    """An integer ≥ 1.

    >>> positive("8")
    8
    """
    (number,) = integers(1, "an integer ≥ 1", most=1)(text)
    return number


def integers(least: int, expected: str, *, most: int | None = None) -> Callable[[str], tuple[int, ...]]:
    """A reader of distinct integers ≥ `least`, separated by commas; `expected` says in words what it reads.

    >>> integers(0, "steps such as 0,50,200")("0,50")
    (0, 50)
    """

    def read(text: str) -> tuple[int, ...]:
        parts = [part.strip() for part in text.split(",")]
        plain = all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts)
        numbers = tuple(map(int, parts)) if plain else ()
        right = len(numbers) == len(set(numbers)) and all(number >= least for number in numbers)
        if not plain or not right or (most is not None and len(numbers) > most):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return numbers

    return read


def check_output(option: str, path: Path | None) -> None:
    """Raise, before the work is done, unless a file can be written at `path` or is not asked for.

    Raises
    ------
    ValueError
        If the folder does not exist or cannot be written to, or `path` is a folder.
    """
    if path is None:
        return
    folder = path.parent
    for wrong, got, remedy in (
        (path.is_dir(), "a folder", "Name a file in it."),
        (not folder.is_dir(), "no such folder", f"Make {folder} first, or correct the path."),
        (not os.access(folder, os.W_OK), "one that cannot be written to", "Choose another."),
    ):
        if wrong:
            raise ValueError(f"{option} {path}: expected a file in a folder that exists, got {got}. {remedy}")
