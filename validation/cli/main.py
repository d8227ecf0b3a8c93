"""The command ``noisysgd``: its subcommands, and how each way of ending becomes an exit status."""

import argparse
import contextlib
import logging
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import TextIO

from noisysgd.validation.cli.data import add_data_commands
from noisysgd.validation.cli.demo import add_demo_command
from noisysgd.validation.cli.measure import add_measure_command
from noisysgd.validation.cli.options import COMMAND_STYLE, UsageError
from noisysgd.validation.cli.output_encoding import output_in_any_encoding
from noisysgd.validation.cli.published import add_published_commands
from noisysgd.validation.cli.runs import add_runs_command
from noisysgd.validation.cli.sweep import add_sweep_commands
from noisysgd.validation.cli.train import add_train_command
from noisysgd.validation.networks.users_code import not_ending_the_program

DESCRIPTION = """\
Predict, simulate and measure the two regimes of stochastic gradient descent.

examples:
  noisysgd demo --quick                        everything at once, small
  noisysgd train run.toml                      one network
  noisysgd measure run.toml --at 0,50,200      its curvature and gradient noise on the way
  noisysgd sweep example > sweep.toml          many networks, from a file to begin with
  noisysgd sweep run sweep.toml
  noisysgd data fetch cifar10                  what they are trained on
  noisysgd foreign pd1 pd1.jsonl.gz pd1.nc     what others measured
  noisysgd runs runs.csv --column learning_rate=lr --column batch_size=bs --metric train_loss=loss --out found
  noisysgd sweep run --help                    every command explains itself

exit status: 0 done; 1 failed; 2 bad usage; 3 done, but not all that was asked for (of sweep and measure, whose --help
says what it means); 130 interrupted. Tracebacks are shown with --debug only.
"""
COMMANDS = (
    add_demo_command,
    add_train_command,
    add_measure_command,
    add_sweep_commands,
    add_data_commands,
    add_published_commands,
    add_runs_command,
)
"""Functions of (commands, options that all commands share), each of which adds one command to the command line."""

EXPECTED = (ValueError, OSError, ModuleNotFoundError, RuntimeError)
"""Errors whose message is meant for the user; any other is a defect of the program."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        The exit status: 0 done, 1 failed, 2 bad usage, 130 interrupted; or another that the ``--help`` of the command
        lists. If the program that reads the output has ended, as in ``| head -1``, the status is 1 and no message is
        printed.
    """
    try:
        with output_in_any_encoding():
            status = _main(arguments)
        sys.stdout.flush()  # Python would flush at its end, where the error of a closed pipe can no longer be caught
        return status
    except BrokenPipeError:
        if not _forget_closed_output():  # then it was another pipe than that of the output
            raise
        return 1
    except SystemExit:  # argparse has printed a help text, or an error
        _forget_closed_output()
        raise


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.DEBUG if options.debug else logging.WARNING, format="%(levelname)s %(message)s")
    if options.debug:
        for noisy in ("numba", "matplotlib", "PIL"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
    # A shell starts its background jobs with Ctrl-C ignored. If the signal is sent to one, it is meant for it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Batch systems send SIGTERM some time before they kill a job: end as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with not_ending_the_program("the command"):
            return int(options.run(options))
    except KeyboardInterrupt as interrupt:  # may carry a message of its own on what is left
        print(f"\nInterrupted. {str(interrupt) or options.interrupted}", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _forget_closed_output():
            return 1
        if options.debug:
            raise
        expected = isinstance(error, EXPECTED)
        text = f"{error}" if expected else f"{type(error).__name__}: {error} (a defect; --debug shows where)"
        print(f"noisysgd: {text}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _forget_closed_output() -> bool:
    """Whether the reader of standard output or error has gone; such a stream is redirected to nowhere.

    Otherwise Python's own flush at the end of the process would fail again and print a message.
    """
    gone = [stream for stream in (sys.stdout, sys.stderr) if _reader_gone(stream)]
    for stream in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(gone)


def _reader_gone(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads any more."""
    try:
        stream.flush()
    except BrokenPipeError:
        return True
    # If nothing is buffered, flushing tells nothing: ask the system, if it can say and the stream has a descriptor.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="log details and show tracebacks")
    parser = argparse.ArgumentParser(prog="noisysgd", description=DESCRIPTION, formatter_class=COMMAND_STYLE)
    parser.set_defaults(interrupted="Nothing was changed.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(metavar="command", required=True)
    for add in COMMANDS:
        add(commands, common)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"noisysgd {version('noisysgd')}")
        parser.exit()
