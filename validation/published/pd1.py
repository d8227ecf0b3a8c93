"""PD1, the tuning measurements of Wang et al., "Pre-trained Gaussian processes for Bayesian optimization" (HyperBO).

Published as `pd1.tar.gz` (https://github.com/google-research/hyperbo#pd1-benchmark), whose README describes the layout:
four files ``pd1_{matched,unmatched}_phase{0,1}_results.jsonl``, zipped or not, with one trial per line. What is read:

=============================  =====================================================================================
``status``                     "done" or "diverged"
``study_group``                ``name,dataset,model,variant,batch size``: the task, and the batch size
``hps.batch_size``             the batch size again
``hps.lr_hparams.…``           ``initial_value``: the learning rate before its polynomial decay
``hps.opt_hparams.momentum``   m, of Nesterov's momentum
``global_step``                steps at which the curves were measured
``train/ce_loss`` and others   the curves, see :data:`CURVES`; null where there is none
``trial_dir``                  identifies the trial
=============================  =====================================================================================
"""

import collections
import gzip
import os
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisysgd.theory.common import checks
from noisysgd.theory.schedules.budget import Budget
from noisysgd.validation.published.trials import (
    ForeignTrial,
    accuracy_or_loss,
    at_its_end,
    checked_share,
    checked_step,
    checked_trial,
    chosen_sizes,
    last_step,
    parsed_json,
    sweep_from_trials,
)

if TYPE_CHECKING:
    import xarray as xr

RATE, MOMENTUM, SIZE = "hps.lr_hparams.initial_value", "hps.opt_hparams.momentum", "hps.batch_size"
NEEDED = ("status", "study_group", SIZE, RATE, MOMENTUM)
CURVES = {
    f"{theirs}/{column}": f"{ours}_{metric}"
    for theirs, ours in (("train", "train"), ("valid", "validation"), ("test", "test"))
    for column, metric in (("ce_loss", "loss"), ("error_rate", "accuracy"))
}
"""Our name of each curve that is read; accuracies are one minus the error rate."""
REMEDY = "Fetch the file again."
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
        Files of JSON lines, ``.jsonl`` or ``.jsonl.gz``; several are read as one.
    task : str, optional
        One of those that :func:`pd1_tasks` lists, such as ``"cifar10_wrn,cifar10,wide_resnet,wrn"``. It may be left out
        for files with a single one.
    batch_sizes : collection of int, optional
        Which to read; all by default.
    budget : Budget, optional
        Take what was measured last within this budget; by default, at the end of each trial.
    fraction : int, optional
        Move trials to the grid of powers of 2^(1/fraction) in ε/(1−m) and 1/(1−m): the search was random, so no two
        trials share a point otherwise.

    Returns
    -------
    xarray.Dataset
        A Sweep over (optimizer, batch_size, learning_rate, seed) with ``train_loss``, ``train_accuracy``, the same for
        ``validation`` and ``test`` where measured, and ``trial``, the line counted over all files. "done" is complete.
        Trials that are done without a measurement, or short of the budget, are left out and counted in the
        configuration, as ``left_out``. A metric that a trial did not measure at its last step is NaN, counted as
        ``unmeasured``.

    Raises
    ------
    ValueError
        For a task that is not there or not named, and for a line that does not follow the layout: with path and line.
    """
    files, sizes_wanted = _files(paths), chosen_sizes(batch_sizes)
    if task is None:
        tasks = _tasks(files)
        expected = f"the name of one of {len(tasks)} tasks: {tasks}"
        checks.require(len(tasks) == 1, "task", expected, task, "Name one as task=….")
        task = tasks[0]
    trials: list[ForeignTrial] = []
    left_out: collections.Counter[str] = collections.Counter()
    seen: dict[str, str] = {}
    tasks_here = set()
    for number, (where, row) in enumerate(_rows(files), start=1):
        name, size = _study_group(where, row)
        tasks_here.add(name)
        if name != task or (sizes_wanted is not None and size not in sizes_wanted):
            continue
        folder = str(row.get("trial_dir") or where)
        checks.require(folder not in seen, where, "a trial_dir of its own", f"that of {seen.get(folder)}", REMEDY)
        seen[folder] = where
        trial = _trial(where, number, row, size, last_step(budget, size))
        if isinstance(trial, str):
            left_out[trial] += 1
        else:
            trials.append(trial)
    checks.require(task in tasks_here, "task", f"one of {sorted(tasks_here)}", task, "Name one of those.")
    checks.require(bool(seen), "batch_sizes", f"some of those of {task}", batch_sizes, "Choose others, or None.")
    configuration = {
        "origin": "PD1 (Wang et al., HyperBO)",
        "task": task,
        "optimizer": "nesterov_momentum",
        "files": [path.name for path in files],
        "left_out": dict(left_out),
        "budget": repr(budget),
    }
    return sweep_from_trials(trials, fraction=fraction, configuration=configuration)


def pd1_tasks(paths: Paths) -> list[str]:
    """Tasks in files of PD1: dataset, model and variant, whatever the batch size.

    Parameters
    ----------
    paths : path or sequence of paths

    Returns
    -------
    list of str
        In alphabetical order.
    """
    return _tasks(_files(paths))


def _tasks(files: Sequence[Path]) -> list[str]:
    return sorted({_study_group(where, row)[0] for where, row in _rows(files)})


def _files(paths: Paths) -> list[Path]:
    known = isinstance(paths, str | os.PathLike | Iterable)
    checks.require(known, "paths", "a path or several", paths, "Name the files.")
    files = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    checks.require(bool(files), "paths", "at least one file", paths, "Name one.")
    return files


def _rows(files: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path:line, trial) for every line that is not blank."""
    for path in files:
        line = 0
        try:
            with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
                for line, text in enumerate(lines, start=1):
                    if text.strip():
                        yield f"{path}:{line}", _row(path, line, text)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}:{line + 1}: expected a whole text file, got {error}. {REMEDY}") from error
        except OSError as error:
            expected = f"{path}: expected a file that can be read"
            raise ValueError(f"{expected}, got: {error.strerror or error}. Correct the path.") from error


def _row(path: Path, line: int, text: bytes) -> dict[str, Any]:
    row = parsed_json(str(path), text, REMEDY, line=line)
    lacking = [name for name in NEEDED if not isinstance(row, dict) or row.get(name) is None]
    checks.require(not lacking, f"{path}:{line}", f"values for {NEEDED}", f"none for {lacking}", REMEDY)
    return dict(row)


def _study_group(where: str, row: dict[str, Any]) -> tuple[str, int]:
    size = checks.integer(f"{where}: {SIZE}", row[SIZE], 1, remedy=REMEDY)
    task, _, last = str(row["study_group"]).rpartition(",")
    expected = f"a study_group task,…,{size}"
    checks.require(bool(task) and last == str(size), where, expected, row["study_group"], REMEDY)
    return task, size


def _trial(where: str, number: int, row: dict[str, Any], size: int, limit: float) -> ForeignTrial | str:
    """A trial, or why it is left out."""
    trial = checked_trial(where, number, row[MOMENTUM], size, row[RATE])
    known = row["status"] in ("done", "diverged")
    checks.require(known, f"{where}: status", "'done' or 'diverged'", row["status"], REMEDY)
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
    curves = {name: _numbers(f"{where}: {name}", values) for name, values in measured.items()}
    for name, values in curves.items():
        for value in values:
            checked_share(f"{where}: {name}", CURVES[name], value, REMEDY)
    return at_its_end(trial, places, accuracy_or_loss(curves, CURVES), limit)


def _numbers(where: str, values: list[Any]) -> list[float]:
    numeric = all(x is None or (isinstance(x, int | float) and not isinstance(x, bool)) for x in values)
    checks.require(numeric, where, "numbers, or null", values, REMEDY)
    try:
        return [float("nan") if x is None else float(x) for x in values]
    except OverflowError as error:
        raise ValueError(f"{where}: expected numbers of ordinary size, got: {error}. {REMEDY}") from error
