"""``noisysgd runs``: from a table of one's own runs to optima, their scaling with the batch size, and figures."""

import argparse
import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisysgd.validation.cli.options import Commands, UsageError, add_command, positive

if TYPE_CHECKING:
    import xarray as xr

DESCRIPTION = """\
Read a table with one row per training run and say what it shows: the best learning rate at each batch size with an
error bar, whether the grid brackets it, the exponent of ε ∝ B^α, the boundary batch size, and which scaling rules fit.

FILE is .csv, .tsv, .jsonl or .parquet. DIR gets, for every group of rows, the Sweep (.nc), the optima (.csv) and a
figure (.png), and summary.csv with one row per group and optimizer.

examples:
  noisysgd runs runs.csv --column learning_rate=lr --column batch_size=bs --metric train_loss=loss --out found
  noisysgd runs wandb.csv --column learning_rate=config.lr --column batch_size=config.bs --column status=State \\
      --metric test_accuracy=val_acc --keep 3 --out found
  noisysgd runs steplaw.csv --column learning_rate=lr --column batch_size=bs --metric train_loss=loss --by N,D \\
      --optimizer adamw --out found

exit status: 0 done; 1 failed; 2 bad usage; 3 done, but some optimum is not bracketed; 130 interrupted.
"""
SUMMARY = ("exponent", "exponent_error", "boundary_batch_size", "boundary_low", "boundary_high")
OPTIMA = (
    *("learning_rate", "learning_rate_low", "learning_rate_high", "effective_learning_rate", "log_error"),
    *("temperature", "mean", "std", "bracketed", "unjudged_rates"),
)


def add_runs_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add ``runs`` to the command line."""
    text = "what a table of your own runs shows"
    parser = add_command(
        commands, "runs", common, _run, help=text, description=DESCRIPTION, interrupted="Finished groups are kept."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the table")
    text = "a column: learning_rate=lr; also batch_size, momentum, seed, optimizer, status, budget; or a number for all"
    parser.add_argument("--column", action="append", default=[], metavar="OURS=THEIRS", type=_pair, help=text)
    text = "a metric: train_loss=loss; the first is the one that is optimised"
    parser.add_argument("--metric", action="append", required=True, metavar="OURS=THEIRS", type=_pair, help=text)
    parser.add_argument("--objective", choices=("minimize", "maximize"), help="direction of the first metric")
    parser.add_argument("--by", default="", metavar="COLUMNS", help="columns whose values group the rows, as N,D")
    parser.add_argument("--optimizer", help="the optimizer of all runs, if no column says it")
    parser.add_argument("--state", action="append", default=[], metavar="WORD=MEANING", type=_pair, help=_STATES)
    text = "runs that are averaged at each learning rate, the best of them (1)"
    parser.add_argument("--keep", type=positive, default=1, help=text)
    text = "relative difference up to which learning rates are one, for tables that round (0)"
    parser.add_argument("--tolerance", type=float, default=0.0, help=text)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")


_STATES = "what a status means: WORD=complete, diverged, unfinished or 'leave out'"


def _pair(text: str) -> tuple[str, str]:
    """Both sides of OURS=THEIRS, where ours alone stands for both."""
    ours, _, theirs = text.partition("=")
    if not ours.strip() or text.endswith("="):
        raise argparse.ArgumentTypeError(f"expected a pair such as learning_rate=lr, got {text!r}")
    return ours.strip(), theirs.strip() or ours.strip()


def _run(options: argparse.Namespace) -> int:
    from noisysgd.theory.sweeps.tables import sweep_from_table

    _check_folder(options.out)
    metrics = dict(options.metric)
    (first, *_) = metrics
    by = [name.strip() for name in options.by.split(",") if name.strip()]
    found = sweep_from_table(
        options.file,
        {ours: _number_or_name(theirs) for ours, theirs in options.column},
        metrics,
        by=by,
        objective=None if options.objective is None else {first: options.objective},
        optimizer=options.optimizer,
        states=dict(options.state) or None,
        tolerance=options.tolerance,
    )
    groups = found if isinstance(found, dict) else {(): found}
    options.out.mkdir(parents=True, exist_ok=True)
    rows, unbracketed = [], 0
    for group, sweep in groups.items():
        name = dict(zip(by, group, strict=True))
        own, missed = _report(name, sweep, first, options)
        rows += own
        unbracketed += missed
    _write_table(options.out / "summary.csv", rows)
    print(f"{options.out / 'summary.csv'}: {len(groups)} group{'s' if len(groups) > 1 else ''}")
    return 3 if unbracketed else 0


def _number_or_name(text: str) -> str | float:
    """A number that holds for all rows, or the name of a column."""
    try:
        return float(text)
    except ValueError:
        return text


def _check_folder(path: Path) -> None:
    """Raise, before any work is done, if results cannot be written into a folder at `path`."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"--out {path}: expected a folder, or a path for a new one, got a file. Choose another.")


def _report(
    group: Mapping[str, Any], sweep: "xr.Dataset", metric: str, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], int]:
    """Write and print what one group shows; rows of the summary, and the number of optima that are not bracketed."""
    from noisysgd.theory.scaling.measured import optima_scaling
    from noisysgd.theory.sweeps.dataset import save_sweep
    from noisysgd.theory.sweeps.optimum_rule import optimum

    words = ", ".join(f"{name} = {value}" for name, value in group.items()) or str(options.file)
    if options.keep > sweep.sizes["seed"]:
        most = sweep.sizes["seed"]
        raise UsageError(
            f"--keep {options.keep}: expected at most {most}, the runs of one point in {words}. Keep fewer."
        )
    best = optimum(sweep, metric, keep=options.keep)
    for size in [name for name in best.learning_rate.dims if name not in ("optimizer", "batch_size")]:
        raise UsageError(f"--column {size}: expected one value in each group, got several. Add it to --by.")
    stem = "-".join(re.sub(r"[^\w.+-]", "_", f"{name}_{value}") for name, value in group.items()) or "runs"
    save_sweep(sweep, options.out / f"{stem}.nc")
    _write_table(options.out / f"{stem}.csv", _optima(best))
    counts = json.loads(sweep.attrs["configuration"])
    print(f"{words}: {sum(counts['runs'].values())} runs, {_counted(counts['runs'])}")
    for reason, count in counts["left_out"].items():
        print(f"  {count} rows left out: {reason}")
    for name, count in counts["unmeasured"].items():
        print(f"  {count} complete runs without {name}")
    rows, missed, scalings = [], 0, {}
    for optimizer in best.optimizer.values.tolist():
        here = best.sel(optimizer=optimizer)
        tried = (sweep.sel(optimizer=optimizer).status != 0).any(["learning_rate", "seed"]).values
        missed += int((tried & ~here.bracketed.values).sum())
        scaling = optima_scaling(best.sel(batch_size=best.batch_size.values[tried]), optimizer)
        scalings[optimizer] = scaling
        row = {**group, "optimizer": optimizer, "batch_sizes": int(tried.sum()), "bracketed": scaling.sizes["point"]}
        row |= {name: float(scaling[name]) for name in SUMMARY}
        ranked = "akaike_weight" in scaling and bool(scaling.akaike_weight.notnull().all())
        row["best_rule"] = scaling.rule.values[0].item() if ranked else ""
        row["akaike_weight"] = float(scaling.akaike_weight[0]) if ranked else float("nan")
        row["reasons"] = scaling.attrs["reasons"]
        rows.append(row)
        print(f"  {optimizer}: {_in_words(row)}")
    _draw(best, scalings, f"{words}", options.out / f"{stem}.png")
    return rows, missed


def _optima(best: "xr.Dataset") -> list[dict[str, Any]]:
    """One row per optimizer and batch size."""
    rows = []
    for optimizer in best.optimizer.values.tolist():
        for size in best.batch_size.values.tolist():
            here = best.sel(optimizer=optimizer, batch_size=size)
            values = {name: here[name].item() for name in OPTIMA}
            rows.append({"optimizer": optimizer, "batch_size": size, **values})
    return rows


def _counted(runs: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in runs.items())


def _in_words(row: Mapping[str, Any]) -> str:
    """One line on the scaling of one optimizer's optima."""
    parts = [f"{row['bracketed']} of {row['batch_sizes']} optima bracketed"]
    if row["exponent"] == row["exponent"]:
        parts.append(f"exponent {row['exponent']:.2f} ± {row['exponent_error']:.2f}")
    if row["boundary_batch_size"] == row["boundary_batch_size"]:
        low, high = row["boundary_low"], row["boundary_high"]
        parts.append(f"boundary {row['boundary_batch_size']:.3g} ({low:.3g} … {high:.3g})")
    if row["best_rule"]:
        parts.append(f"{row['best_rule']} fits best, weight {row['akaike_weight']:.2f}")
    if row["reasons"]:
        parts.append(row["reasons"])
    return "; ".join(parts)


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of one kind as CSV."""
    import io

    from noisysgd.theory.common.files import write_whole

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode("utf-8"))


def _draw(best: "xr.Dataset", scalings: Mapping[str, "xr.Dataset"], title: str, path: Path) -> None:
    """The optima with their error bars, and the rule that fits each optimizer's best."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from noisysgd.theory.plots.sweeps import plot_optimum
    from noisysgd.theory.scaling.comparison import RULES

    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    plot_optimum(best, ax)
    families = {str(getattr(family, "__name__", family)): family for family in RULES}
    for optimizer, scaling in scalings.items():
        if "akaike_weight" in scaling and bool(scaling.akaike_weight.notnull().all()):
            points = (scaling.batch_size.values, scaling.learning_rate.values)
            name = scaling.rule.values[0].item()
            rule = families[name].fit(*points, log_errors=scaling.log_error.values)
            fine = np.geomspace(points[0].min(), points[0].max(), 200)
            label = f"{name}, {optimizer}" if len(scalings) > 1 else name
            ax.plot(fine, rule.learning_rate(fine), color="0.5", lw=1.2, zorder=1, label=label)
        boundary = float(scaling.boundary_batch_size)
        if boundary == boundary:
            ax.axvline(boundary, color="0.6", ls=":", lw=1.2, label="boundary batch size")
    ax.set_title(title, fontsize=10)
    ax.legend(fontsize=8)
    figure.savefig(path, dpi=150)
