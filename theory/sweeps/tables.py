"""Sweeps from tables of runs: data frames, columns, lists of dictionaries, or files that pandas reads.

A table has a row for every run. Which column is the learning rate, which the batch size, and what a run's state means,
is said by whoever has the table; nothing is guessed but what Weights & Biases calls its states.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.sweeps.records import sweep_from_records

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Group = tuple[Any, ...]
"""The values of the columns by which rows are grouped."""

COORDINATES = ("learning_rate", "batch_size", "momentum", "seed", "optimizer", "status", "budget")
"""What a column can be, besides a metric."""
STATES: Mapping[str, str] = {
    **dict.fromkeys(("finished", "complete", "completed", "done", "success"), "complete"),
    **dict.fromkeys(("diverged", "nan"), "diverged"),
    **dict.fromkeys(("crashed", "failed", "killed", "preempted", "preempting"), "unfinished"),
    **dict.fromkeys(("running", "pending", "queued", "unfinished"), "unfinished"),
}
"""What the states of runs mean, as Weights & Biases and others call them. A crash says nothing of the learning rate."""
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
EXTRA = "pip install 'noisysgd[tables]'"


@ignoring_underflow
def sweep_from_table(
    table: "pd.DataFrame | Mapping[str, Sequence[Any]] | Iterable[Mapping[str, Any]] | str | os.PathLike[str]",
    columns: Mapping[str, str | float] | None = None,
    metrics: Mapping[str, str] | str | Iterable[str] = (),
    *,
    by: str | Iterable[str] = (),
    objective: str | Mapping[str, str] | None = None,
    optimizer: str | None = None,
    states: Mapping[str, str] | None = None,
    tolerance: float | Mapping[str, float] = 0.0,
    source: str = "training",
    configuration: Mapping[str, Any] | None = None,
) -> "xr.Dataset | dict[Group, xr.Dataset]":
    """The Sweep of a table with one row per run, or one Sweep for each group of rows.

    Parameters
    ----------
    table : DataFrame, mapping of columns, iterable of mappings, or path
        Paths end in .csv, .tsv, .jsonl (a JSON object per line) or .parquet, perhaps with .gz behind; pandas reads
        them, Parquet with the extra ``tables``.
    columns : mapping
        From our names to the table's: learning_rate and batch_size, which every table needs, and momentum, seed,
        optimizer, status and budget if it has them. A number instead of a name holds for all rows, as
        ``{"batch_size": 256}``. A column that has our name need not be given. Without momentum and optimizer, all runs
        are plain SGD; runs of one point without a seed are numbered in the order of the table.
    metrics : mapping, str or iterable of str
        From our names of metrics to the table's columns; or names that are the same in both.
    by : str or iterable of str
        Columns by whose values the rows are grouped, such as the size of the model.
    objective : str or mapping, optional
        "minimize" or "maximize", of one metric or of each by our names; needed for metrics that are not plainly a
        loss, an error or an accuracy by our name.
    optimizer : str, optional
        The optimizer of all runs, such as "adamw". Names are labels of the dimension ``optimizer``: "sgd" and
        "momentum" stand for the paper's optimizer at the row's momentum; for others, such as "nesterov" or "adam", the
        momentum, if there is one, is part of the label. Only SGD, heavy ball and Nesterov have ε/(1−m) as the effective
        learning rate; of others it is the learning rate itself.
    states : mapping, optional
        What words in the column `status` mean: "complete", "diverged", "unfinished" or "leave out"; beyond those of
        Weights & Biases and the like (:data:`STATES`). A crashed run is unfinished, which is not the same as diverged.
    tolerance, source, configuration
        As in :func:`~noisysgd.theory.sweep_from_records`.

    Returns
    -------
    xarray.Dataset, or dict of tuple to xarray.Dataset
        One Sweep; with `by`, one for each combination of values that occurs, in order. A finished run whose losses are
        all absent or NaN is unfinished, one with an infinite loss diverged. The attribute ``configuration`` counts the
        rows that were left out, by reason (``left_out``), the statuses (``runs``), and values of metrics that are
        absent in complete runs (``unmeasured``).

    Raises
    ------
    ValueError
        For a file that cannot be read, columns that are not there, values that cannot be, states that are not known, or
        a table from which nothing is left.

    Examples
    --------
    >>> from noisysgd import theory
    >>> table = {"lr": [0.1, 0.2, 0.4, 0.1], "bs": [8, 8, 8, 16], "loss": [0.9, 0.5, 0.7, 1.0]}
    >>> sweep = theory.sweep_from_table(
    ...     table, columns={"learning_rate": "lr", "batch_size": "bs"}, metrics={"train_loss": "loss"})
    >>> float(theory.optimum(sweep, "train_loss", keep=1).sel(batch_size=8).learning_rate.item())
    0.2
    """
    frame = _frame(table)
    places = _places(frame, {} if columns is None else columns, optimizer)
    measured = _metric_columns(frame, metrics)
    meanings = _meanings(states)
    keys = [by] if isinstance(by, str) else checks.several("by", by, str, remedy="Name columns of the table.")
    _require_columns(frame, "by", keys)
    if configuration is not None:
        checks.instance("configuration", configuration, Mapping, remedy="Give names to what determines the numbers.")
    shared: dict[str, Any] = {
        "source": source,
        "metrics": list(measured),
        "objective": objective,
        "tolerance": tolerance,
    }
    about = {"table": str(table) if isinstance(table, str | os.PathLike) else None, **(configuration or {})}
    if not keys:
        return _sweep(frame, places, measured, meanings, optimizer, shared, about)
    groups = {}
    absent = frame[keys].isna().any(axis=1)
    for values, rows in frame[~absent].groupby(keys, sort=True):
        group = tuple(value.item() if isinstance(value, np.generic) else value for value in values)
        own = about | {"group": dict(zip(keys, group, strict=True)), "rows_without_group": int(absent.sum())}
        groups[group] = _sweep(rows, places, measured, meanings, optimizer, shared, own)
    checks.require(bool(groups), "by", f"values in {keys}", "none in any row", "Group by other columns.")
    return groups


def _frame(table: object) -> "pd.DataFrame":
    """The table as a data frame with at least one row, numbered from 0."""
    import pandas as pd

    if isinstance(table, str | os.PathLike):
        frame = _read(Path(table).expanduser())
    else:
        remedy = "Pass a DataFrame, columns by name, one dictionary per run, or the path of a file."
        rows = isinstance(table, Iterable) and not isinstance(table, bytes)
        checks.require(rows, "table", "a table of runs", type(table).__name__, remedy)
        try:
            given: Any = table if isinstance(table, Mapping | pd.DataFrame) else list(table)  # type: ignore[call-overload]
            named = not isinstance(given, list) or all(isinstance(row, Mapping) for row in given)
            checks.require(named, "table", "one mapping per run", shorten_types(given), remedy)
            frame = pd.DataFrame(given)
        except (TypeError, ValueError) as error:
            if str(error).startswith("table: expected"):
                raise
            raise ValueError(f"table: expected columns of one length, got: {error}. {remedy}") from error
    checks.require(len(frame) > 0, "table", "at least one row", "none", "Export the runs again.")
    twice = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]})
    checks.require(not twice, "table", "distinct names of columns", twice, "Rename or drop the repetitions.")
    return frame.reset_index(drop=True)


def shorten_types(rows: Sequence[object]) -> list[str]:
    """Names of the types that occur."""
    return sorted({type(row).__name__ for row in rows})


def _read(path: Path) -> "pd.DataFrame":
    """The table in a file."""
    import pandas as pd

    kind = next((suffix for suffix in reversed(path.suffixes) if suffix.lower() in SUFFIXES), "").lower()
    remedy = f"Name it after its format: {', '.join(SUFFIXES)}; .gz may follow."
    checks.require(kind != "", f"{path}", "a file of a known format", path.name, remedy)
    checks.require(path.is_file(), f"{path}", "a file", "none", "Check the path.")
    try:
        if kind == ".parquet":
            return pd.read_parquet(path)
        if kind == ".jsonl":
            return pd.read_json(path, lines=True, precise_float=True)
        separator = "\t" if kind == ".tsv" else ","
        return pd.read_csv(path, sep=separator, encoding="utf-8-sig")
    except ImportError as error:
        raise ModuleNotFoundError(f"{path}: reading Parquet needs pyarrow. {EXTRA}") from error
    except (ValueError, UnicodeError, OSError) as error:
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: expected a {kind[1:]} table, got: {problem}. Export it again.") from error


def _require_columns(frame: "pd.DataFrame", argument: str, names: Sequence[object]) -> None:
    known = [str(name) for name in frame.columns]
    lacking = [name for name in names if name not in frame.columns]
    checks.require(not lacking, argument, f"columns among {checks.shorten(known, 400)}", lacking, "Check the spelling.")


def _places(frame: "pd.DataFrame", columns: Mapping[str, str | float], optimizer: str | None) -> dict[str, Any]:
    """From our names to a column, or to the value of all rows; learning_rate and batch_size are there."""
    known = isinstance(columns, Mapping)
    checks.require(
        known, "columns", "a mapping from our names to the table's", columns, "Write {'learning_rate': 'lr'}."
    )
    for name in columns:
        checks.one_of("columns", name, COORDINATES)
    _require_columns(frame, "columns", [column for column in columns.values() if isinstance(column, str)])
    places: dict[str, Any] = {name: name for name in COORDINATES if name in frame.columns and name not in columns}
    places |= columns
    lacking = [name for name in ("learning_rate", "batch_size") if name not in places]
    remedy = "Write columns={'learning_rate': 'lr', 'batch_size': 'bs'}, or a number that holds for all rows."
    checks.require(not lacking, "columns", "learning_rate and batch_size", f"none of {lacking}", remedy)
    if optimizer is not None:
        checks.instance("optimizer", optimizer, str, remedy="Pass a name such as 'adamw'.")
        remedy = "Leave out one of the two."
        checks.require("optimizer" not in columns, "optimizer", "nothing beside a column", optimizer, remedy)
        places.pop("optimizer", None)
    return places


def _metric_columns(frame: "pd.DataFrame", metrics: object) -> dict[str, str]:
    """From our names of metrics to the table's columns."""
    if isinstance(metrics, str):
        found = {metrics: metrics}
    elif isinstance(metrics, Mapping):
        found = dict(metrics)
    else:
        remedy = "Write {'train_loss': 'loss'}."
        checks.require(isinstance(metrics, Iterable), "metrics", "names of metrics", metrics, remedy)
        found = {name: name for name in checks.several("metrics", metrics, str, remedy=remedy)}
    remedy = "Write metrics={'train_loss': 'loss'}: our name of the metric, and the table's."
    checks.require(bool(found), "metrics", "at least one metric", metrics, remedy)
    _require_columns(frame, "metrics", list(found.values()))
    return found


def _meanings(states: Mapping[str, str] | None) -> dict[str, str]:
    """What each state means, in lower case."""
    if states is not None:
        checks.instance("states", states, Mapping, remedy="Write {'finished': 'complete'}.")
    own = {} if states is None else {str(word).lower(): meaning for word, meaning in states.items()}
    for word, meaning in own.items():
        checks.one_of(f"states: {word}", meaning, ("complete", "diverged", "unfinished", "leave out"))
    return dict(STATES) | own


def _sweep(
    frame: "pd.DataFrame",
    places: Mapping[str, Any],
    metrics: Mapping[str, str],
    meanings: Mapping[str, str],
    optimizer: str | None,
    shared: Mapping[str, Any],
    about: Mapping[str, Any],
) -> "xr.Dataset":
    """The Sweep of the rows of one group."""
    left_out: dict[str, int] = {}
    records = []
    for line, row in zip(frame.index, frame.to_dict("records"), strict=True):
        record = _record(int(line), row, places, metrics, meanings, optimizer)
        if isinstance(record, str):
            left_out[record] = left_out.get(record, 0) + 1
        else:
            records.append(record)
    expected = "rows with a learning rate and a batch size"
    checks.require(bool(records), "table", expected, left_out, "Check `columns`, or keep more states.")
    statuses = [record["status"] for record in records]
    complete = [record for record in records if record["status"] == "complete"]
    unmeasured = {name: sum(record.get(name) is None for record in complete) for name in metrics}
    runs = {status: statuses.count(status) for status in sorted(set(statuses))}
    counts = {"left_out": left_out, "runs": runs, "unmeasured": {k: n for k, n in unmeasured.items() if n}}
    return sweep_from_records(records, **shared, configuration={**about, **counts})


def _record(
    line: int,
    row: Mapping[str, Any],
    places: Mapping[str, Any],
    metrics: Mapping[str, str],
    meanings: Mapping[str, str],
    optimizer: str | None,
) -> dict[str, Any] | str:
    """One record, or why the row is left out."""
    record = {name: row[place] if isinstance(place, str) else place for name, place in places.items()}
    absent = [name for name, value in record.items() if _is_absent(value)]
    # An optimizer without momentum has an empty cell there; any other coordinate says which point a run is of.
    for name in absent:
        if name != "momentum":
            return f"no {name}"
    state = str(record.get("status", "complete")).strip().lower()
    remedy = "Say what it means: states={...: 'complete', 'diverged', 'unfinished' or 'leave out'}."
    checks.require(state in meanings, f"row {line}: status", f"one of {sorted(meanings)}", state, remedy)
    if meanings[state] == "leave out":
        return f"status {state}"
    record["status"] = meanings[state]
    if optimizer is not None:
        record["optimizer"] = optimizer
    if "optimizer" not in record:
        record.setdefault("momentum", 0.0)
        if "momentum" in absent:
            return "no momentum"
    elif "momentum" in absent:
        record["momentum"] = None
    for name, column in metrics.items():
        value = row[column]
        record[name] = None if _is_absent(value) else value
    return record


def _is_absent(value: object) -> bool:
    """Whether a cell is empty: None, NaN, pandas' NA, or no text."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    try:
        return bool(value != value)
    except TypeError:  # pandas' NA has no truth
        return True
    except ValueError:  # nor has an array, which is something
        return False
