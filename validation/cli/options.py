"""What the commands share: how they are added to the command line, and readers and checks of their options."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

COMMAND_STYLE = argparse.RawDescriptionHelpFormatter
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What ``ArgumentParser.add_subparsers`` returns; argparse has no public name for it."""


class UsageError(ValueError):
    """Options that do not go together: the command ends with exit status 2, as it does for unknown options."""


def add_command(
    commands: Commands,
    name: str,
    common: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int],
    *,
    help: str,
    description: str,
    interrupted: str | None = None,
) -> argparse.ArgumentParser:
    """Add a command, or a verb of one, to the command line; returns its parser, to which options can be added.

    Parameters
    ----------
    commands
        The commands, or verbs, that there are already.
    name : str
    common : ArgumentParser
        Options that all commands have.
    run : callable
        Carries out the command with the parsed options and returns the exit status.
    help, description : str
        One line for the list of commands, and the text that ``--help`` shows.
    interrupted : str, optional
        What an interruption leaves, for whoever interrupts the command.
    """
    parser = commands.add_parser(
        name, parents=[common], help=help, description=description, formatter_class=COMMAND_STYLE
    )
    parser.set_defaults(run=run)
    if interrupted is not None:
        parser.set_defaults(interrupted=interrupted)
    return parser


def add_verbs(commands: Commands, name: str, *, help: str, description: str) -> Commands:
    """Add a command that consists of verbs; returns the verbs, to which :func:`add_command` can add."""
    parser = commands.add_parser(name, help=help, description=description, formatter_class=COMMAND_STYLE)
    return parser.add_subparsers(metavar="verb", required=True)


def positive(text: str) -> int:
    """Read an integer ≥ 1.

    >>> positive("8")
    8
    """
    (number,) = integers(1, "an integer ≥ 1", most=1)(text)
    return number


def integers(least: int, expected: str, *, most: int | None = None) -> Callable[[str], tuple[int, ...]]:
    """A function that reads distinct integers ≥ `least`, separated by commas, from the text of an option.

    Parameters
    ----------
    least : int
    expected : str
        What is expected, in words, for the error message.
    most : int, optional
        Largest number of integers.

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
    """Raise, before any work is done, if no file can be written at `path`; ``None`` means that none is wanted.

    Raises
    ------
    ValueError
        If the folder does not exist or cannot be written to, or `path` is a folder, a link, a device or a pipe.
    """
    if path is None:
        return
    folder = path.parent
    from noisysgd.theory.common.files import require_regular_or_new

    require_regular_or_new(option, path)
    for wrong, got, remedy in (
        (not folder.is_dir(), "no such folder", f"Make {folder} first, or correct the path."),
        (not os.access(folder, os.W_OK), "one that cannot be written to", "Choose another."),
    ):
        if wrong:
            raise ValueError(f"{option} {path}: expected a file in a folder that exists, got {got}. {remedy}")


def add_time_limit(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """Add ``--time-limit``; `otherwise` says what holds without it."""
    text = f"seconds that a run may take before it is ended, its checkpoint kept ({otherwise})"
    parser.add_argument("--time-limit", type=positive, metavar="SECONDS", help=text)
