"""Reader of PD1, the tuning data of Wang et al., "Pre-trained Gaussian processes for Bayesian optimization" (HyperBO).

They are published as `pd1.tar.gz` (https://github.com/google-research/hyperbo#pd1-benchmark). Its README describes four
files ``pd1_{matched,unmatched}_phase{0,1}_results.jsonl``, compressed by gzip or not, with one trial per line. Of each
trial these entries are read:

=============================  =====================================================================================
``status``                     "done" or "diverged"
``study_group``                ``name,dataset,model,variant,batch size``: the task, and the batch size
``hps.batch_size``             the batch size again
``hps.lr_hparams.…``           ``initial_value``: the learning rate before its polynomial decay
``hps.opt_hparams.momentum``   m, of Nesterov's momentum
``global_step``                steps at which the curves were measured
``train/ce_loss`` and others   the curves, see :data:`CURVES`; null where one was not measured
``trial_dir``                  identifies the trial
=============================  =====================================================================================
"""

import gzip
import io
import os
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisysgd.theory.common import checks
from noisysgd.theory.schedules.budget import Budget
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
)

if TYPE_CHECKING:
    import xarray as xr

RATE, MOMENTUM, SIZE = "hps.lr_hparams.initial_value", "hps.opt_hparams.momentum", "hps.batch_size"
NEEDED = ("status", "study_group", SIZE, RATE, MOMENTUM)
CURVES = metric_names(
    {"train": "train", "valid": "validation", "test": "test"}, {"ce_loss": "loss", "error_rate": "accuracy"}
)
"""Our name of each curve that is read; accuracies are one minus the error rate."""
REMEDY = "Fetch the file again."
ARCHIVES = {
    (257, b"ustar"): "a tar archive",
    (0, b"PK\x03\x04"): "a zip archive",
    (0, b"BZh"): "a file compressed by bzip2",
    (0, b"\xfd7zXZ"): "a file compressed by xz",
    (0, b"\x28\xb5\x2f\xfd"): "a file compressed by zstd",
}
"""What begins so, at which byte. PD1 itself is published as a tar of four files, from different searches."""
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def read_pd1(
    paths: Paths,
    *,
    task: str | None = None,
    batch_sizes: Collection[int] | None = None,
    budget: Budget | None = None,
    fraction: int | None = None,
) -> "xr.Dataset":
    """The trials of one task of PD1 as a Sweep.

    Parameters
    ----------
    paths : path or sequence of paths
        Files of JSON lines, as they are or compressed by gzip; several are read as one. They are members of
        ``pd1.tar.gz``, which has to be unpacked: its files are of different searches.
    task : str, optional
        One of the tasks that :func:`pd1_tasks` lists, such as ``"cifar10_wrn,cifar10,wide_resnet,wrn"``. It may be left
        out if the files have only one.
    batch_sizes : collection of int, optional
        Batch sizes to read; all by default.
    budget : Budget, optional
        Take the last measurement within this budget; by default, the last one of each trial.
    fraction : int, optional
        Move trials to the grid of powers of 2^(1/fraction) in ε/(1−m) and 1/(1−m). The search was random: otherwise no
        two trials share a point.

    Returns
    -------
    xarray.Dataset
        A Sweep over (optimizer, batch_size, learning_rate, seed) with ``train_loss``, ``train_accuracy``, the same for
        ``validation`` and ``test`` where measured, and ``trial``, the number of the trial's line, counted over all
        files.

    Raises
    ------
    ValueError
        If the task is not there, or not named where there are several; or if a line does not follow the published
        layout: the message then names path and line.

    Notes
    -----
    Trials that are "done" are complete. Those without a measurement, and those that did not reach the budget, are left
    out; the configuration counts them as ``left_out``. A metric that a trial did not measure at its last step is NaN,
    and counted as ``unmeasured``.
    """
    files, selection = _files(paths), Selection(batch_sizes, budget)
    if task is None:
        tasks = _tasks(files)
        expected = f"the name of one of {len(tasks)} tasks: {tasks}"
        checks.require(len(tasks) == 1, "task", expected, task, "Name one as task=….")
        task = tasks[0]
    found: list[PublishedTrial | str] = []
    seen: dict[str, str] = {}  # by trial_dir, the file and line of each trial
    tasks_here = set()
    for number, (where, row) in enumerate(_rows(files), start=1):
        name, size = _study_group(where, row)
        tasks_here.add(name)
        if name != task or not selection.wants(size):
            continue
        # A file given twice, or one that contains another, would count its trials twice.
        folder = str(row.get("trial_dir") or where)
        checks.require(folder not in seen, where, "a trial_dir of its own", f"that of {seen.get(folder)}", REMEDY)
        seen[folder] = where
        found.append(_trial(where, number, row, size, selection.last_step(size)))
    checks.require(task in tasks_here, "task", f"one of {sorted(tasks_here)}", task, "Name one of those.")
    checks.require(bool(seen), "batch_sizes", f"some of those of {task}", batch_sizes, "Choose others, or None.")
    configuration = {
        "origin": "PD1 (Wang et al., HyperBO)",
        "task": task,
        "optimizer": "nesterov_momentum",
        "files": [path.name for path in files],
        "budget": repr(budget),
    }
    return sweep_from_trials(found, fraction=fraction, configuration=configuration)


def pd1_tasks(paths: Paths) -> list[str]:
    """The tasks in files of PD1: combinations of dataset, model and variant, each with trials of several batch sizes.

    Parameters
    ----------
    paths : path or sequence of paths
        Files of JSON lines, as they are or compressed by gzip.

    Returns
    -------
    list of str
        In alphabetical order.
    """
    return _tasks(_files(paths))


def _tasks(files: Sequence[Path]) -> list[str]:
    return sorted({_study_group(where, row)[0] for where, row in _rows(files)})


def _files(paths: Paths) -> list[Path]:
    if isinstance(paths, str | os.PathLike):
        return [Path(paths)]
    files = [Path(path) for path in checks.several("paths", paths, str | os.PathLike, remedy="Name the files.")]
    checks.require(bool(files), "paths", "at least one file", paths, "Name one.")
    return files


def _rows(files: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """For every line that is not blank, its place "path:line", and the trial as a dict."""
    for path in files:
        line = 0
        try:
            with path.open("rb") as file, _unzipped(file) as lines:
                for line, text in enumerate(lines, start=1):
                    if line == 1:
                        _check_kind(path, text)
                    if text.strip():
                        yield f"{path}:{line}", _row(path, line, text)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}:{line + 1}: expected a whole text file, got {error}. {REMEDY}") from error
        except OSError as error:
            expected = f"{path}: expected a file that can be read"
            raise ValueError(f"{expected}, got: {error.strerror or error}. Correct the path.") from error


def _unzipped(file: io.BufferedReader) -> io.BufferedIOBase:
    """The contents of a file, which may be compressed by gzip, whatever its name: browsers unzip files or do not."""
    return gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file


def _check_kind(path: Path, start: bytes) -> None:
    """Raise if a file, by its first line, is an archive: which of its searches is meant is not for us to guess."""
    kinds = [kind for (at, mark), kind in ARCHIVES.items() if start[at : at + len(mark)] == mark]
    remedy = "Unpack it, and name the files to be read, such as pd1_matched_phase1_results.jsonl.gz."
    checks.require(not kinds, f"{path}", "a file of JSON lines, as it is or compressed by gzip", "".join(kinds), remedy)


def _row(path: Path, line: int, text: bytes) -> dict[str, Any]:
    """The JSON object in a line, which must have the :data:`NEEDED` names."""
    row = parsed_json(str(path), text, REMEDY, line=line)
    lacking = [name for name in NEEDED if not isinstance(row, dict) or row.get(name) is None]
    checks.require(not lacking, f"{path}:{line}", f"values for {NEEDED}", f"none for {lacking}", REMEDY)
    return dict(row)


def _study_group(where: str, row: dict[str, Any]) -> tuple[str, int]:
    """Task and batch size of a trial, from its study_group, which must end with the batch size."""
    size = checks.integer(f"{where}: {SIZE}", row[SIZE], 1, remedy=REMEDY)
    task, _, last = str(row["study_group"]).rpartition(",")
    expected = f"a study_group task,…,{size}"
    checks.require(bool(task) and last == str(size), where, expected, row["study_group"], REMEDY)
    return task, size


def _trial(where: str, number: int, row: dict[str, Any], size: int, limit: float) -> PublishedTrial | str:
    """The trial of a line, with its metrics at the last measurement up to step `limit`; or why it is left out."""
    trial = checked_trial(where, number, row[MOMENTUM], size, row[RATE])
    known = row["status"] in ("done", "diverged")
    checks.require(known, f"{where}: status", "'done' or 'diverged'", row["status"], REMEDY)
    # What was measured before a trial diverged is not its result: the curves are not even looked at.
    if row["status"] == "diverged":
        return trial
    measured = {name: row[name] for name in CURVES if row.get(name) is not None}
    steps = row.get("global_step")
    if not measured or not steps:
        return "without measurements"
    for name, values in ({"global_step": steps} | measured).items():
        same = isinstance(values, list) and isinstance(steps, list) and len(values) == len(steps)
        checks.require(same, f"{where}: {name}", "a list as long as global_step", values, REMEDY)
    at = f"{where}: global_step"
    places = [checked_step(at, value, REMEDY) for value in _numbers(at, steps)]
    curves = {name: _curve(f"{where}: {name}", CURVES[name], values) for name, values in measured.items()}
    return completed(trial, places, curves, CURVES, limit)


def _curve(where: str, metric: str, values: list[Any]) -> list[float]:
    """A list from JSON as the values of a metric; `where` begins the error message."""
    return [checked_share(where, metric, value, REMEDY) for value in _numbers(where, values)]


def _numbers(where: str, values: list[Any]) -> list[float]:
    """A list from JSON as numbers, with NaN for null; `where` begins the error message."""
    numeric = all(x is None or (isinstance(x, int | float) and not isinstance(x, bool)) for x in values)
    checks.require(numeric, where, "numbers, or null", values, REMEDY)
    try:
        return [float("nan") if x is None else float(x) for x in values]
    except OverflowError as error:
        raise ValueError(f"{where}: expected numbers of ordinary size, got: {error}. {REMEDY}") from error
