"""The command ``noisysgd``. Heavy modules are imported by the subcommand that needs them."""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

from noisysgd.validation.data_cli import add_data_commands
from noisysgd.validation.demo_cli import add_demo_command
from noisysgd.validation.sweep_cli import add_sweep_commands
from noisysgd.validation.train_cli import add_train_command

DESCRIPTION = "Predict, simulate and measure the two regimes of stochastic gradient descent."
COMMANDS = (add_demo_command, add_train_command, add_sweep_commands, add_data_commands)
"""What adds each command: a function of (subparsers, options that all share), in a small module of its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 bad usage, 130 interrupted.

    A command may have statuses of its own, which its ``--help`` lists.
    """
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
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing finished is lost: the same command goes on from there.", file=sys.stderr)
        return 130
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


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="log details and show tracebacks")
    parser = argparse.ArgumentParser(prog="noisysgd", description=DESCRIPTION)
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


if __name__ == "__main__":
    sys.exit(main())
