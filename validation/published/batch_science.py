"""Reader of the data of Shallue et al. 2019, "Measuring the Effects of Data Parallelism on Neural Network Training".

They are published as `batch_science_data.tar.bz2`, unpacked into the layout that the README of
https://github.com/google-research/google-research/tree/master/batch_science describes:

    dataset/model/optimizer/batch_size/study.json
    dataset/model/optimizer/batch_size/trial_id/metadata.json
    dataset/model/optimizer/batch_size/trial_id/measurements.csv
"""

import csv
import io
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from noisysgd.theory.common import checks
from noisysgd.theory.schedules.budget import Budget
from noisysgd.validation.data.litter import is_litter
from noisysgd.validation.published.trials import (
    PublishedTrial,
    Selection,
    checked_share,
    checked_step,
    checked_trial,
    completed,
    metric_names,
    parsed_json,
    sweep_from_trials,
    whole_file,
)

if TYPE_CHECKING:
    import xarray as xr

OPTIMIZERS = ("sgd", "momentum", "nesterov_momentum")
STATUSES = ("COMPLETE", "INCOMPLETE", "INFEASIBLE")
COLUMNS = metric_names(
    {"train": "train", "val": "validation", "test": "test"},
    {
        "cross_entropy_error": "loss",
        "classification_error": "accuracy",
        "average_precision": "average_precision",
    },
)
"""Our name of each column that is read. Accuracies are one minus the error; Open Images has average precisions."""
REMEDY = "Unpack the archive again, or point to a folder dataset/model/optimizer."


def read_batch_science(
    workload: str | os.PathLike[str],
    *,
    batch_sizes: Collection[int] | None = None,
    budget: Budget | None = None,
    fraction: int | None = None,
) -> "xr.Dataset":
    """The trials of one workload of Shallue et al. 2019 as a Sweep.

    Parameters
    ----------
    workload : path
        A folder ``dataset/model/optimizer``, with one study per batch size.
    batch_sizes : collection of int, optional
        Batch sizes of the studies to read; all by default.
    budget : Budget, optional
        Take the last measurement within this budget; by default, the last one of each trial.
    fraction : int, optional
        Move trials to the grid of powers of 2^(1/fraction) in ε/(1−m) and 1/(1−m). The search was random: otherwise no
        two trials share a point.

    Returns
    -------
    xarray.Dataset
        A Sweep over (optimizer, batch_size, learning_rate, seed) with ``train_loss``, ``train_accuracy``, the same for
        ``validation`` and ``test`` where measured, and ``trial``, the number of each trial.

    Raises
    ------
    ValueError
        If the folder does not follow the published layout; the message names the path, and the line of a table.

    Notes
    -----
    COMPLETE trials are complete, INFEASIBLE ones diverged. INCOMPLETE ones, and those that did not reach the budget or
    measured nothing, are left out; the configuration counts them as ``left_out``. A metric that a trial did not measure
    at its last step is NaN, and counted as ``unmeasured``.

    Learning rates are initial ones. How each trial decayed it, and its other metaparameters, are not in the Sweep.
    Optimizers are labelled by their momentum; the configuration says whether it is Nesterov's.
    """
    root = Path(workload)
    selection = Selection(batch_sizes, budget)
    studies: list[dict[str, Any]] = []
    found: list[PublishedTrial | str] = []
    for folder in _numbered(root, "study"):
        study = _read_study(folder)
        if not selection.wants(study["batch_size"]):
            continue
        studies.append(study)
        limit = selection.last_step(study["batch_size"])
        found += [_read_trial(place, study, limit) for place in _numbered(folder, "trial")]
    checks.require(bool(studies), "batch_sizes", f"some of those in {root}", batch_sizes, "Choose others, or None.")
    for name in ("dataset", "model", "optimizer"):
        kinds = sorted({str(study.get(name)) for study in studies})
        checks.require(len(kinds) == 1, f"{root}", f"studies of one {name}", kinds, REMEDY)
    sizes = [study["batch_size"] for study in studies]
    checks.require(len(set(sizes)) == len(sizes), f"{root}", "one study per batch size", sizes, REMEDY)
    configuration = {name: studies[0].get(name) for name in ("dataset", "model", "optimizer")} | {
        "origin": "Shallue et al. 2019, batch_science",
        "train_steps": {str(study["batch_size"]): study.get("train_steps") for study in studies},
        "budget": repr(budget),
    }
    return sweep_from_trials(found, fraction=fraction, configuration=configuration)


def _numbered(root: Path, kind: str) -> list[Path]:
    """The subfolders of a folder, whose names must be numbers, in the order of these."""
    got = "a file" if root.is_file() else "none"  # the archive itself, perhaps
    checks.require(root.is_dir(), f"{root}", "a folder", got, REMEDY)
    folders = [path for path in root.iterdir() if path.is_dir() and not is_litter(PurePath(path.name))]
    # Numbers with leading zeros are refused: 07 would be a second 7.
    odd = sorted(path.name for path in folders if not re.fullmatch(r"0|[1-9][0-9]{0,17}", path.name))
    checks.require(not odd, f"{root}", f"one folder per {kind}, each named by a number", odd, REMEDY)
    checks.require(bool(folders), f"{root}", f"one folder per {kind}", "none", REMEDY)
    return sorted(folders, key=lambda path: int(path.name))


def _read_study(folder: Path) -> dict[str, Any]:
    path = folder / "study.json"
    study = _read_json(path, ("batch_size", "optimizer"))
    study["batch_size"] = checks.integer(f"{path}: batch_size", study["batch_size"], 1, remedy=REMEDY)
    known = study["optimizer"] in OPTIMIZERS
    remedy = "Only these have a learning rate and momentum of a Sweep's meaning."
    checks.require(known, f"{path}: optimizer", f"one of {OPTIMIZERS}", study["optimizer"], remedy)
    return study


def _read_trial(folder: Path, study: dict[str, Any], limit: float) -> PublishedTrial | str:
    """The trial in a folder, with its metrics at the last measurement up to step `limit`; or why it is left out."""
    path = folder / "metadata.json"
    metadata = _read_json(path, ("parameters", "status"))
    status, parameters = metadata["status"], metadata["parameters"]
    checks.require(status in STATUSES, f"{path}: status", f"one of {STATUSES}", status, REMEDY)
    if status == "INCOMPLETE":
        return "incomplete"
    needed = ["learning_rate"] + ["momentum"] * (study["optimizer"] != "sgd")
    lacking = _lacking(parameters, needed)
    checks.require(not lacking, f"{path}: parameters", f"{needed}", f"none of {lacking}", REMEDY)
    momentum = parameters["momentum"] if study["optimizer"] != "sgd" else 0.0
    trial = checked_trial(str(path), int(folder.name), momentum, study["batch_size"], parameters["learning_rate"])
    # What was measured before a trial diverged is not its result: the table is not even opened.
    if status == "INFEASIBLE":
        return trial
    steps, curves = _read_table(folder / "measurements.csv")
    return completed(trial, steps, curves, COLUMNS, limit)


def _read_json(path: Path, needed: Collection[str]) -> dict[str, Any]:
    """The object in a JSON file, which must have the `needed` names."""
    values = parsed_json(str(path), whole_file(path, REMEDY), REMEDY)
    lacking = _lacking(values, needed)
    checks.require(not lacking, f"{path}", f"an object with {sorted(needed)}", f"none of {lacking}", REMEDY)
    return dict(values)


def _lacking(values: object, needed: Iterable[str]) -> list[str]:
    """Those of the `needed` names that a value from JSON lacks; all of them if it is no object."""
    return [name for name in needed if not isinstance(values, dict) or name not in values]


def _read_table(path: Path) -> tuple[list[float], dict[str, list[float]]]:
    """The steps in a table of measurements, and its columns in :data:`COLUMNS` by name; empty entries are NaN."""
    content = whole_file(path, REMEDY)
    try:
        text = content.decode("utf-8-sig")  # programs of Windows begin files with a mark
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{line}: expected a table in UTF-8, got other bytes. {REMEDY}") from error
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)  # strict: a quote that is never closed is an error
    try:
        return _table(path, lines)
    except csv.Error as error:
        raise ValueError(f"{path}:{lines.line_num}: expected a table, got: {error}. {REMEDY}") from error


def _table(path: Path, lines: Any) -> tuple[list[float], dict[str, list[float]]]:
    """The table in the lines of a file; `path` is for error messages."""
    header = _without_blank_end([name.strip() for name in next(lines, [])], 0)
    known = [name for name in header if name in COLUMNS]
    expected = f"a column `step` and some of {sorted(COLUMNS)}"
    checks.require("step" in header and bool(known), f"{path}:1", expected, header, REMEDY)
    table: dict[str, list[float]] = {name: [] for name in ["step", *known]}
    # Other columns are of no interest; a repeated one that is read would silently hide the first.
    once = all(header.count(name) == 1 for name in table)
    checks.require(once, f"{path}:1", "each column once", header, REMEDY)
    for row in lines:
        where = f"{path}:{lines.line_num}"
        if not any(map(str.strip, row)):  # a blank line, which may have commas
            continue
        row = _without_blank_end(row, len(header))
        checks.require(len(row) == len(header), where, f"{len(header)} entries", row, REMEDY)
        for name, text in zip(header, row, strict=True):
            if name in table:
                table[name].append(_number(text, where, name))
    checks.require(bool(table["step"]), f"{path}", "at least one measurement", "none", REMEDY)
    return table.pop("step"), table


def _without_blank_end(row: list[str], least: int) -> list[str]:
    """A row without the empty entries that commas at its end stand for, and with at least so many.

    >>> _without_blank_end(["1", "", "", ""], 2)
    ['1', '']
    """
    while len(row) > least and not row[-1].strip():
        row = row[:-1]
    return row


def _number(text: str, where: str, name: str) -> float:
    """An entry of the column `name` as a number: NaN if it is empty, except for a step."""
    if not text.strip() and name != "step":
        return float("nan")
    try:
        if "_" in text or not text.isascii():  # float() takes 1_000 and digits of other scripts
            raise ValueError
        value = float(text)
    except ValueError:
        raise ValueError(f"{where}: expected a number for {name}, got {checks.shorten(text)}. {REMEDY}") from None
    if name == "step":
        return checked_step(f"{where}: step", value, REMEDY)
    return checked_share(f"{where}: {name}", COLUMNS[name], value, REMEDY)
