"""What one GPU does with all of this library: tests, simulators, training, curvature, and a small sweep. One command.

    python benchmarks/gpu.py --out DIR                                   # 515 seconds on the GPU
    PYTHONPATH=.typing python benchmarks/gpu.py --out DIR --seconds 300  # from a checkout, without an installation
    python benchmarks/gpu.py --out DIR --device cpu --tiny               # all of it at toy size, where there is no GPU

The stages, and the seconds that each may take of 515 (`SECONDS`; other totals scale them), are modules of gpu_stages/:

| stage       | seconds  | finds                                                                                     |
|-------------|----------|-------------------------------------------------------------------------------------------|
| environment | 20       | versions, the device, clocks, and the compiler of the kernels                             |
| tests       | 90       | whether ``pytest -m gpu`` passes                                                          |
| simulators  | 70       | whether CPU and GPU have the same bits; updates per second                                |
| training    | 130      | images per second by precision, normalisation and launch; small runs side by side         |
| curvature   | 50       | whether CPU and GPU agree on λ_max; what it costs for WRN-16-4                            |
| campaign    | the rest | a sweep over learning rates, batch sizes and momentum, on the best data set that is there |

Every stage is a process with a deadline, and DIR/STAGE.json is written anew, under another name that is then changed,
as soon as there is a new row: a crash or a stop costs what was not measured yet, of that stage alone. A row that could
not be measured says why, as ``skipped`` or ``error``. What a stage leaves unused goes to the campaign, of which
DIR/campaign.nc is the Sweep. DIR/log.txt has all output. Then ``python benchmarks/gpu_tables.py DIR`` makes the tables
of docs/gpu.md.

The exit status is 0 if every stage delivered: it did not crash, measured something, and none of its rows is an error.
Tests that fail, networks that do not fit into memory, and stages that were stopped at their deadline, are results.

Data sets are looked for below ``$NOISYSGD_DATA``; see gpu_stages/wide_resnet.py.
"""

import argparse
import contextlib
import datetime
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from gpu_stages.rows import NO_TIME, Order, Rows, read_json, write_json

TOTAL = 515.0
SECONDS = {"environment": 20.0, "tests": 90.0, "simulators": 70.0, "training": 130.0, "curvature": 50.0}
"""Seconds that a stage may take of `TOTAL`. The campaign, which comes last, has what is left."""
STAGES = (*SECONDS, "campaign")
LAST_SECONDS = 8.0
"""Of `TOTAL`, what is kept for writing the Sweep after the last stage."""
GRACE = 5.0
"""Seconds after its deadline at which a stage that has not ended by itself is killed."""


def drive(order: Order, seconds: float, chosen: list[str]) -> int:
    """Run the stages one after the other, and return the exit status."""
    order.out.mkdir(parents=True, exist_ok=True)
    scale = seconds / TOTAL
    delivered = []
    for stage in chosen:
        share = SECONDS.get(stage, TOTAL) * scale
        deadline = min(time.time() + share, order.deadline - LAST_SECONDS * scale)
        delivered.append(run_stage(Order(order.out, order.device, order.tiny, deadline), stage, seconds))
    if "campaign" in chosen:
        delivered.append(attempt_sweep(order))
    files = sorted(path.name for path in order.out.iterdir())
    print(f"{seconds - order.left:.0f} s, {', '.join(files)}", flush=True)
    return 0 if all(delivered) else 1


def attempt_sweep(order: Order) -> bool:
    """Write the Sweep of the campaign, and return whether there is one."""
    try:
        # It takes the library, and a library that is missing or broken is no reason to end here.
        from gpu_stages.sweep import write_sweep

        written = write_sweep(order.out)
    except Exception:
        traceback.print_exc()
        return False
    print(f"campaign.nc: {'written' if written else 'no runs'}", flush=True)
    return written


def run_stage(order: Order, stage: str, seconds: float) -> bool:
    """Run one stage in a process of its own, say in its file how it ended, and return whether it delivered."""
    path, start = order.out / f"{stage}.json", time.time()
    about = {"device": order.device, "tiny": order.tiny, "seconds": seconds}
    about["started"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(path, {"stage": stage, "about": about, "ended": "running", "rows": []})
    print(f"{stage}: at most {order.left:.0f} s", flush=True)
    with (order.out / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"\n=== {stage}, {about['started']}\n")
        log.flush()
        ended = outcome(order, stage, log)
    for left in path.parent.glob(f".{path.name}.*.partial"):  # of a stage that was ended while it wrote
        left.unlink()
    content = read_json(path) | {"ended": ended, "took": time.time() - start}
    write_json(path, content)
    rows = content["rows"]
    failed = [row["what"] for row in rows if "error" in row]
    skipped = sum("skipped" in row for row in rows)
    print(f"  {ended}: {content['took']:.0f} s, {len(rows)} rows, {skipped} skipped, errors: {failed}", flush=True)
    measured = any(row.get("skipped") != NO_TIME for row in rows)
    return measured and not failed and ended in ("complete", "stopped at its deadline")


def outcome(order: Order, stage: str, log: Any) -> str:
    """Wait for the process of a stage, end it if it is late, and say how it ended."""
    size = ["--tiny"] if order.tiny else []
    command = [sys.executable, str(Path(__file__).resolve()), "--stage", stage, "--deadline", str(order.deadline)]
    command += ["--out", str(order.out.resolve()), "--device", order.device, *size]
    # A session of its own, so that whatever the stage has started can be ended with it.
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=stage_environment()
    )
    try:
        status = process.wait(max(order.left, 0) + GRACE)
        return "complete" if status == 0 else f"crashed, exit status {status}"
    except subprocess.TimeoutExpired:
        return "stopped at its deadline"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stage_environment() -> dict[str, str]:
    """Return the environment of a stage: one thread for operations on the CPU, paths that hold in every folder."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    path = os.pathsep.join(
        str(Path(part).resolve()) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part
    )
    return threads | os.environ | {"PYTHONIOENCODING": "utf-8"} | ({"PYTHONPATH": path} if path else {})


def stages(text: str) -> list[str]:
    """Return the stages that are named, in their order."""
    named = text.split(",")
    unknown = sorted(set(named) - set(STAGES))
    if unknown:
        raise argparse.ArgumentTypeError(f"expected names among {', '.join(STAGES)}, got {', '.join(unknown)}")
    return [stage for stage in STAGES if stage in named]


def main() -> int:
    """Drive all stages; or be one of them, if the driver asks for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=TOTAL, help=f"time for everything, {TOTAL:.0f} by default")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="what to measure")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see whether everything runs")
    parser.add_argument("--only", type=stages, default=list(STAGES), metavar="STAGE,…", help="some of the stages")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    order = Order(given.out, given.device, given.tiny, given.deadline or time.time() + given.seconds)
    if given.stage is None:
        return drive(order, given.seconds, given.only)
    # Here, and not at the top: a library that is missing or broken then costs the stages alone that need it.
    importlib.import_module(f"gpu_stages.{given.stage}").measure_all(order, Rows(order, given.stage))
    return 0


if __name__ == "__main__":
    sys.exit(main())
