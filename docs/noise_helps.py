"""Three results of the paper from the smallest model that shows them; draws docs/figures/noise_helps.png.

    python docs/noise_helps.py [4]

The diagonal linear network of `simulators.sparse_regression` (d = 100, n = 40) stands for the Wide-ResNet, and injected
label noise for what sampling noise does there. Momentum 0.9, the paper's schedule and its selection rule: the best 12
of 15 runs, for pairs of learning rates the best 5 of 7, every optimum and error bar bracketed by the grid. The argument
multiplies both numbers of runs: minima of the training loss are so flat that a few runs see their own luck.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from noisysgd import simulators, theory

FOLDER = Path(__file__).parent / "figures"
METRICS = {"train_loss": ("training loss", "tab:blue"), "test_loss": ("test loss", "tab:red")}
STEPS, SIZES = 500, 2 ** np.arange(15)
BATCH_SIZE, EPOCHS = 8, 50 * 2 ** np.arange(8)
MOMENTUM = 0.9
TIMES = int(sys.argv[1]) if len(sys.argv) > 1 else 1
ONE, TWO = {"runs": 15 * TIMES, "keep": 12 * TIMES}, {"runs": 7 * TIMES, "keep": 5 * TIMES}


def constant_step_budget(network: simulators.DiagonalNetwork) -> dict[str, Any]:
    """Table 1: the best losses of every batch size in the same number of steps."""
    budget = theory.StepBudget(STEPS)
    sweep = simulators.bracketed_sweep(network, budget, batch_sizes=SIZES, momentum=MOMENTUM, **ONE)
    return {metric: columns(theory.optimum(sweep, metric, ONE["keep"]).squeeze()) for metric in METRICS}


def epoch_budgets(network: simulators.DiagonalNetwork) -> dict[str, Any]:
    """Figure 2: the learning rates that are best for either loss as the epoch budget grows."""
    rows: dict[str, list[Any]] = {metric: [] for metric in METRICS}
    for epochs in EPOCHS:
        budget = theory.EpochBudget(int(epochs), network.dataset_size)
        sweep = simulators.bracketed_sweep(network, budget, batch_sizes=BATCH_SIZE, momentum=MOMENTUM, **ONE)
        for metric, found in rows.items():
            found.append(columns(theory.optimum(sweep, metric, ONE["keep"]).squeeze()))
    return {metric: stacked(found) for metric, found in rows.items()}


def initial_and_final(network: simulators.DiagonalNetwork) -> dict[str, Any]:
    """Figure 3: initial and final learning rates tuned separately."""
    rows: dict[str, list[Any]] = {metric: [] for metric in METRICS}
    for epochs in EPOCHS:
        budget = theory.EpochBudget(int(epochs), network.dataset_size)
        pairs = simulators.bracketed_pairs(network, budget, batch_size=BATCH_SIZE, momentum=MOMENTUM, **TWO)
        for metric, found in rows.items():
            best = simulators.best_pair(pairs, metric, TWO["keep"])
            found.append({str(name): value.item() for name, value in best.items()})
    return {metric: stacked(found) for metric, found in rows.items()}


def columns(best: Any) -> dict[str, Any]:
    """What a figure needs of an optimum."""
    names = {"rate": "effective_learning_rate", "mean": "mean", "std": "std", "bracketed": "bracketed"}
    names |= {"low": "effective_learning_rate_low", "high": "effective_learning_rate_high"}
    return {short: best[name].values.tolist() for short, name in names.items()}


def stacked(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One list per name."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def bars(ax: Any, x: Any, found: dict[str, Any], keys: tuple[str, str, str], **style: Any) -> None:
    """Learning rates with their error bars."""
    rate, low, high = (np.array(found[key]) for key in keys)
    ax.errorbar(x, rate, yerr=[rate - low, high - rate], capsize=3, marker="o", markersize=4, **style)


def draw(results: dict[str, Any]) -> Any:
    """The figure."""
    figure, ((top_left, top_right), (left, right)) = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    twin = top_left.twinx()
    for metric, ax in (("train_loss", top_left), ("test_loss", twin)):
        name, colour = METRICS[metric]
        found = results["constant_step_budget"][metric]
        ax.errorbar(SIZES, found["mean"], yerr=found["std"], color=colour, marker="o", markersize=4, capsize=3)
        ax.set_ylabel(f"best {name}", color=colour)
        ax.tick_params(axis="y", labelcolor=colour)
    top_left.set(
        xscale="log", yscale="log", xlabel="batch size", title=f"(a) {STEPS} steps, learning rate tuned for either loss"
    )
    top_left.set_xscale("log", base=2)
    top_left.set_xticks(SIZES[::2], [str(size) for size in SIZES[::2]])
    twin.set_ylim(0, None)
    for metric, (name, colour) in METRICS.items():
        found = results["epoch_budgets"][metric]
        bars(top_right, EPOCHS, found, ("rate", "low", "high"), color=colour, label=f"best for the {name}")
        pair = results["initial_and_final"][metric]
        bars(left, EPOCHS, pair, ("initial", "initial_low", "initial_high"), color=colour, label=f"best for the {name}")
        bars(right, EPOCHS, pair, ("final", "final_low", "final_high"), color=colour, label=f"best for the {name}")
    titles = {
        top_right: ("effective learning rate", "(b) one learning rate, fixed schedule"),
        left: ("initial effective learning rate", "(c) both tuned: the initial learning rate"),
        right: ("final effective learning rate", "(d) both tuned: the final learning rate"),
    }
    for ax, (label, title) in titles.items():
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ax.set_xticks(EPOCHS, [str(epochs) for epochs in EPOCHS])
        ax.minorticks_off()
        ax.set(xlabel="epochs", ylabel=label, title=title)
        ax.legend()
    figure.suptitle(
        "Diagonal linear network with injected label noise: d = 100, n = 40, momentum 0.9; best "
        f"{ONE['keep']} of {ONE['runs']} runs, in (c) and (d) {TWO['keep']} of {TWO['runs']}"
    )
    return figure


def main() -> None:
    """Run, draw and write down everything."""
    network = simulators.sparse_regression()
    start, results = time.perf_counter(), {}
    for experiment in (constant_step_budget, epoch_budgets, initial_and_final):
        results[experiment.__name__] = experiment(network)
        print(f"{experiment.__name__}: {time.perf_counter() - start:.0f} s so far", flush=True)
    FOLDER.mkdir(exist_ok=True)
    draw(results).savefig(FOLDER / "noise_helps.png", dpi=110)
    axes = {"batch_size": SIZES.tolist(), "epochs": EPOCHS.tolist()}
    (FOLDER / "noise_helps.json").write_text(json.dumps(axes | results, indent=1) + "\n", encoding="utf-8")
    for name in ("epoch_budgets", "initial_and_final"):
        for metric, (label, _) in METRICS.items():
            found = results[name][metric]
            rates = found["rate" if name == "epoch_budgets" else "initial"]
            print(f"{name}, {label}: {rates[0]:g} … {rates[-1]:g}, falls {rates[0] / rates[-1]:g} ×")
    flags = [flag for found in results.values() for values in found.values() for flag in values.get("bracketed", [])]
    flags += [
        x
        for found in results["initial_and_final"].values()
        for x in found["initial_bracketed"] + found["final_bracketed"]
    ]
    print(f"bracketed: {sum(flags)} of {len(flags)} optima")


if __name__ == "__main__":
    main()
