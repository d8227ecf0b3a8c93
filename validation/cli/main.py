"""The command ``noisysgd``. Heavy modules are imported by the subcommand that needs them."""

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
from noisysgd.validation.cli.published import add_foreign_commands
from noisysgd.validation.cli.sweep import add_sweep_commands
from noisysgd.validation.cli.train import add_train_command

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
    add_foreign_commands,
)
"""What adds each command: a function of (subparsers, options that all share), in a small module of its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 bad usage, 130 interrupted.

    A command may have statuses of its own, which its ``--help`` lists. One whose reader has gone, as in ``| head -1``,
    ends without a word, with 1.
    """
    try:
        status = _main(arguments)
        sys.stdout.flush()  # here, where an error can still be caught
        return status
    except BrokenPipeError:
        if not _forget_reader():  # the pipe was another
            raise
        return 1
    except SystemExit:  # --help
        _forget_reader()
        raise


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.DEBUG if options.debug else logging.WARNING, format="%(levelname)s %(message)s")
    if options.debug:
        for noisy in ("numba", "matplotlib", "PIL"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
    # A background job of a shell starts with Ctrl-C ignored; whoever sends the signal to it means it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Batch systems send SIGTERM first: the same orderly end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return int(options.run(options))
    except KeyboardInterrupt as end:  # which may say what is left; each command knows it otherwise
        print(f"\nInterrupted. {str(end) or options.interrupted}", file=sys.stderr)
        return 130
    except UsageError as error:
        if options.debug:
            raise
        print(f"noisysgd: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError as error:
        if _forget_reader():
            return 1
        if options.debug:
            raise
        print(f"noisysgd: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, ModuleNotFoundError, RuntimeError) as error:
        if options.debug:
            raise
        print(f"noisysgd: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if options.debug:
            raise
        print(f"noisysgd: {type(error).__name__}: {error} (a defect; --debug shows where)", file=sys.stderr)
        return 1


def _forget_reader() -> bool:
    """Whether nobody reads what is printed any more; if so, it goes nowhere from now on, when Python ends too."""
    gone = [stream for stream in (sys.stdout, sys.stderr) if _reader_gone(stream)]
    for stream in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(gone)


def _reader_gone(stream: TextIO) -> bool:
    try:
        stream.flush()
    except BrokenPipeError:
        return True
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no descriptor, or a system that cannot say
        poll = select.poll()  # what is not buffered leaves nothing to flush
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
