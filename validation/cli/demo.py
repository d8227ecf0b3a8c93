"""``noisysgd demo``: the demonstration, end to end."""

import argparse
import time
from pathlib import Path

from noisysgd.validation.cli.options import Commands, add_command

DESCRIPTION = """\
Predict the optimal learning rate of a noisy quadratic, check it by simulation, train a small Wide-ResNet on handwritten
digits over batch sizes and learning rates, measure its curvature and gradient noise, and compare. Writes report.html,
figures/*.png and sweep.nc. Interrupt it whenever you like: the same command goes on from there.

examples:
  noisysgd demo
  noisysgd demo --quick --out /tmp/look
"""


def add_demo_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add ``demo`` to the command line."""
    demo = add_command(
        commands,
        "demo",
        common,
        _demo,
        help="predict, simulate, train, measure and compare in a few minutes",
        description=DESCRIPTION,
        interrupted="Nothing finished is lost: the same command goes on from there.",
    )
    demo.add_argument("--out", type=Path, default=Path("noisysgd-demo"), help="output directory (%(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    demo.add_argument(
        "--quick", action="store_true", help="a much smaller sweep, to see the path in about half a minute"
    )


def _demo(options: argparse.Namespace) -> int:
    from noisysgd.validation.demo.demonstration import full_plan, quick_plan, run_demo
    from noisysgd.validation.demo.report import demo_claims, write_report

    started = time.perf_counter()
    plan = (quick_plan if options.quick else full_plan)(options.seed)
    results = run_demo(plan, options.out, seed=options.seed)
    report = write_report(results, options.out)
    for claim in demo_claims(results):
        print(f"{'yes     ' if claim.seen else 'not seen'}  {claim.statement}\n          {claim.evidence}")
    print(f"\n{report} written; {time.perf_counter() - started:.0f} s")
    return 0
