"""A quadratic fitted to published curves of language models, and its errors on schedules that it has not seen.

The curves are those of Luo et al. 2025 (arXiv 2503.12811), at https://github.com/thu-yao-01-luo/MultiPowerLaw: a folder
of CSV files with columns step, lr and loss, named after their schedules, for each size of the model. Fitted are three:
cosine_24000, constant_24000 and wsdcon_9. Run as

    python benchmarks/bench_fit.py FOLDER [FOLDER …]
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np

from noisysgd import theory

PEAK, FINAL, WARMUP = 3e-4, 3e-5, 2160
FITTED = ("cosine_24000", "constant_24000", "wsdcon_9")
BATCH = 1
"""Every run has the same batch size, so that it is but a unit of the noise."""


def multipliers(name: str) -> np.ndarray:
    """Learning rates of every step over the peak, from the name of a schedule."""
    kind, number = name.split("_")[0], int(name.split("_")[-1])
    step = np.arange(1, (16_000 if kind == "wsdcon" else number) + 1)
    if kind == "constant":
        rate = np.full(step.size, PEAK)
    elif kind == "cosine":
        rate = FINAL + 0.5 * (PEAK - FINAL) * (1 + np.cos(np.pi * (step - WARMUP) / (number - WARMUP)))
    elif kind == "wsdcon":
        rate = np.where(step <= 8000, PEAK, number * 1e-5)
    else:
        begin = int(name.split("_")[1])
        share = np.clip((step - begin) / (number - begin), 0, 1)
        rate = PEAK * (FINAL / PEAK) ** share if kind == "wsd" else PEAK + (FINAL - PEAK) * share
    return np.where(step <= WARMUP, step / WARMUP, rate / PEAK)


def read(path: Path) -> theory.MeasuredCurve:
    """The curve in a file, without the rows at or beyond the end of its schedule."""
    schedule = multipliers(path.stem)
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    steps, losses = zip(*[row for row in rows if row[0] < schedule.size], strict=True)
    settings = {"schedule": theory.per_step(schedule), "learning_rate": PEAK, "batch_size": BATCH}
    return theory.MeasuredCurve(steps, losses, **settings)


def report(folder: Path) -> None:
    """Fit three of the folder's curves and print the errors on all."""
    curves = {path.stem: read(path) for path in sorted(folder.glob("*.csv"))}
    started = time.process_time()
    fit = theory.fit_quadratic([curves[name] for name in FITTED])
    seconds = time.process_time() - started
    print(f"{folder.name}: fitted in {seconds:.1f} s of one core\n{fit}")
    unseen = []
    for name, curve in curves.items():
        settings = {"learning_rate": curve.learning_rate, "batch_size": curve.batch_size}
        off = fit.loss_curve(curve.schedule, at=curve.steps, **settings) - curve.losses
        unseen += [np.abs(off).mean()] if name not in FITTED else []
        kind = "fitted" if name in FITTED else "predicted"
        print(f"{name:18s} {kind:9s} mean absolute error {np.abs(off).mean():.4f}, mean error {off.mean():+.4f}")
    print(f"mean of the {len(unseen)} predicted: {np.mean(unseen):.5f}\n")
    gains(fit)


def gains(fit: theory.QuadraticFit, steps: int = 24_000) -> None:
    """What the best staircase of twenty rates is predicted to end at, beside two usual schedules."""
    # No rate beyond the highest one that a run was stable at: nothing in the curves says what happens there.
    best = theory.optimal_schedule(fit.cautious_problem, theory.StepBudget(steps), batch_size=BATCH, segments=20)
    ends = {"best staircase of twenty rates": (best, 1.0)}
    for name in (f"cosine_{steps}", f"wsdld_{5 * steps // 6}_{steps}"):
        ends[name] = (theory.per_step(multipliers(name)), PEAK)
    for name, (schedule, rate) in ends.items():
        loss = float(fit.loss_curve(schedule, learning_rate=rate, batch_size=BATCH, at=steps))
        print(f"predicted after {steps} steps: {loss:.4f} with {name}")
    print(f"its rates over the peak: {np.round(best.multipliers / PEAK, 2)}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    for each in parser.parse_args().folders:
        report(each)
