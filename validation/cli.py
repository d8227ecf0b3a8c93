"""The command ``noisysgd``. Heavy modules are imported by the subcommand that needs them."""

import argparse
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from noisysgd.validation.data_cli import add_data_commands

DESCRIPTION = "Predict, simulate and measure the two regimes of stochastic gradient descent."
DEMO_DESCRIPTION = """\
Predict the optimal learning rate of a noisy quadratic, check it by simulation, train a small Wide-ResNet on handwritten
digits over batch sizes and learning rates, measure its curvature and gradient noise, and compare. Writes report.html,
figures/*.png and sweep.nc. Interrupt it whenever you like: the same command goes on from there.

examples:
  noisysgd demo
  noisysgd demo --quick --out /tmp/look
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 bad usage, 130 interrupted."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.DEBUG if options.debug else logging.WARNING, format="%(levelname)s %(message)s")
    if options.debug:
        for noisy in ("numba", "matplotlib", "PIL"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
    # A background job of a shell starts with Ctrl-C ignored; whoever sends the signal to it means it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing finished is lost: the same command goes on from there.", file=sys.stderr)
        return 130
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if options.debug:
            raise
        print(f"noisysgd: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="log details and show tracebacks")
    parser = argparse.ArgumentParser(prog="noisysgd", description=DESCRIPTION)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(metavar="command", required=True)
    demo = commands.add_parser(
        "demo",
        parents=[common],
        help="predict, simulate, train, measure and compare in a few minutes",
        description=DEMO_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument("--out", type=Path, default=Path("noisysgd-demo"), help="output directory (%(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    demo.add_argument(
        "--quick", action="store_true", help="a much smaller sweep, to see the path in about half a minute"
    )
    demo.set_defaults(run=_demo)
    add_data_commands(commands, common)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"noisysgd {version('noisysgd')}")
        parser.exit()


def _demo(options: argparse.Namespace) -> int:
    from noisysgd.validation.demo import full_plan, quick_plan, run_demo
    from noisysgd.validation.report import demo_claims, write_report

    started = time.perf_counter()
    plan = (quick_plan if options.quick else full_plan)(options.seed)
    results = run_demo(plan, options.out, seed=options.seed)
    report = write_report(results, options.out)
    for claim in demo_claims(results):
        print(f"{'yes     ' if claim.seen else 'not seen'}  {claim.statement}\n          {claim.evidence}")
    print(f"\n{report} written; {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
