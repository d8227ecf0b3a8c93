"""A quadratic fitted to two learning curves of a small Wide-ResNet, and what it predicts for runs it has not seen.

    python docs/own_network_fit.py RUNS

RUNS is a folder that keeps the training runs (a few minutes on one core); run again, it goes on from there. The network
is that of ``noisysgd demo``: WRN-10-1 with ghost batch norm, 12 epochs of scikit-learn's digits, the paper's schedule.
"""

import sys
from pathlib import Path

import numpy as np

from noisysgd import theory
from noisysgd.validation import TrainConfig
from noisysgd.validation.runs.single_run import run_one
from noisysgd.validation.runs.store import RunStore

BASE = TrainConfig(learning_rate=1.0, batch_size=64, epochs=12)
FITTED = ((0.0, 64, -2), (0.0, 64, 0))
"""Momentum, batch size and log₂ of the effective learning rate of the runs that the fit sees."""
HELD_OUT = {
    (0.0, 16): range(-4, 2),
    (0.9, 16): range(-4, 2),
    (0.0, 64): range(-3, 3),
    (0.9, 64): range(-3, 3),
    (0.0, 256): range(-2, 4),
    (0.9, 256): range(-1, 5),
    (0.0, 1280): range(-1, 4),
    (0.9, 1280): range(0, 6),
}
EXAMPLES = 1280
"""Of the digits, those that the network is trained on."""


def record(store: RunStore, momentum: float, batch_size: int, exponent: int) -> dict:
    """The record of one run, which is trained if the store lacks it."""
    rate = 2.0**exponent * (1.0 - momentum)
    config = BASE.with_(learning_rate=rate, batch_size=batch_size, momentum=momentum)
    run_one(store, config)
    found = store.read(config)
    assert found is not None
    return found


def curve(run: dict) -> theory.MeasuredCurve:
    """The minibatch losses of a run, bin by bin, each at the middle of its bin."""
    config = TrainConfig.from_dict(run["config"])
    edges, losses = np.array(run["curve"]["edges"]), np.array(run["curve"]["loss"], dtype=float)
    known = np.isfinite(losses)  # some bins hold no update
    steps, first = np.unique(((edges[:-1] + edges[1:]) // 2)[known], return_index=True)
    settings = {"learning_rate": config.learning_rate, "batch_size": config.batch_size, "momentum": config.momentum}
    return theory.MeasuredCurve(steps, losses[known][first], schedule=config.schedule(EXAMPLES), **settings)


def main() -> None:
    """Train, fit, predict, and print the table."""
    store = RunStore(Path(sys.argv[1]))
    seen = [record(store, *run) for run in FITTED]
    fit = theory.fit_quadratic([curve(run) for run in seen])
    print(fit)
    print("momentum  batch  log2(rate)  measured  predicted  ratio")
    ratios, best = [], {}  # of runs with their distance from the predicted optimum, in octaves
    for (momentum, size), exponents in HELD_OUT.items():
        rows = []
        for exponent in exponents:
            run = record(store, momentum, size, exponent)
            config = TrainConfig.from_dict(run["config"])
            schedule = config.schedule(EXAMPLES)
            settings = {"learning_rate": config.learning_rate, "batch_size": size, "momentum": momentum}
            predicted = float(fit.loss_curve(schedule, **settings, at=schedule.steps))
            measured = float(curve(run).losses[-1]) if run["status"] == "complete" else np.inf
            rows.append((exponent, measured, predicted))
            if (momentum, size, exponent) not in FITTED and np.isfinite([measured, predicted]).all():
                ratios.append((momentum, size, exponent, predicted / measured))
            row = f"{momentum:8g} {size:6d} {exponent:11d} {measured:9.4f} {predicted:10.3g}"
            print(row, f"{predicted / measured:6.3g}")
        table = np.array(rows)
        best[momentum, size] = [int(table[np.argmin(table[:, column]), 0]) for column in (1, 2)]
    print("optima, log2 of the effective rate (measured, predicted):", best)
    for name, some in {
        "all": ratios,
        "up to the predicted optimum": [row for row in ratios if row[2] <= best[row[0], row[1]][1]],
        "beyond it": [row for row in ratios if row[2] > best[row[0], row[1]][1]],
    }.items():
        off = np.abs(np.log([row[-1] for row in some]))
        print(f"final losses, {name}: {len(some)} runs, {np.sum(off < np.log(1.4))} within a factor of 1.4")


if __name__ == "__main__":
    main()
