"""How long `noisysgd sweep status` and `export` take for a store of 10 000 finished runs, with its index and without.

The records are made up; files and commands are the real ones. CPU and elapsed seconds of whole commands, each in a
process of its own, the median of three; of these `--version` alone takes what is shown first.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from noisysgd.theory.common.provenance import provenance
from noisysgd.validation import RunStore
from noisysgd.validation.runs import index
from noisysgd.validation.sweeps.plan import parse_plan

PLAN = """
[run]
dataset = "digits"
ghost_batch_size = 16
[budget]
epochs = 12
[grid]
batch_sizes = [16, 32, 64, 128, 256, 512, 1024]
momenta = [0.0, 0.9]
exponents = [-24, 23]
[protocol]
preset = "paper"
extensions = 0
"""
REPEATS = 3


def fill(store: RunStore) -> int:
    """Write a record for every run of the plan; returns how many there are."""
    configs = parse_plan(PLAN).sweep.plan()
    real, os.fsync = os.fsync, lambda descriptor: None  # that the disk keeps them does not matter here
    try:
        for config in configs:
            loss = 0.1 + 0.01 * abs(config.effective_learning_rate - 2.0) ** 0.1 + 1e-3 * config.seed
            metrics = {"train_loss": loss, "train_accuracy": 1 / (1 + loss), "test_loss": loss}
            record = {"config": config.as_dict(), "status": "complete", "steps": 100, "seconds": 1.5, "l2_term": 0.1}
            store.write(record | metrics | {"test_accuracy": 1 / (1 + loss), "provenance": provenance()})
    finally:
        os.fsync = real
    return len(configs)


def timed(*arguments: object) -> tuple[float, float]:
    """CPU and elapsed seconds of one command."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "noisysgd.validation.cli", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    elapsed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, elapsed


def show(name: str, runs: list[tuple[float, float]], records: int) -> None:
    """Print the medians of some runs of a command, and the CPU time per record."""
    cpu, elapsed = (statistics.median(each) for each in zip(*runs, strict=True))
    print(f"{name}: {cpu:.2f} s of CPU, {elapsed:.2f} s elapsed, {1e3 * cpu / records:.2f} ms of CPU a record")


def main() -> None:
    """Make the store, and time the commands."""
    folder = Path(tempfile.mkdtemp())
    (folder / "plan.toml").write_text(PLAN, encoding="utf-8")
    store = RunStore(folder / "plan-runs")
    records = fill(store)
    time.sleep(index.SETTLED_NANOSECONDS / 1e9)  # younger records are not indexed
    print(f"{records} records")
    show("--version", [timed("--version") for _ in range(REPEATS)], records)
    for verb, more in (("status", ()), ("export", (folder / "out.nc",))):
        command = ("sweep", verb, folder / "plan.toml", *more)
        for name in ("without an index", "with one"):
            runs = []
            for _ in range(REPEATS):
                if name == "without an index":
                    (store.root / index.NAME).unlink(missing_ok=True)
                runs.append(timed(*command))
            show(f"{verb} {name}", runs, records)


if __name__ == "__main__":
    main()
