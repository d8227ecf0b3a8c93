"""Sweeps of tables: every kind of table gives the same one, and what is in none of them is said."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisysgd import theory
from noisysgd.theory.sweeps.dataset import COMPLETE, DIVERGED, UNFINISHED

COLUMNS = {"learning_rate": "lr", "batch_size": "bs"}
METRICS = {"train_loss": "loss"}


def runs():
    """Two model sizes, two batch sizes, three learning rates; the second size has its optimum one rate higher."""
    return [
        {"N": n, "lr": lr, "bs": bs, "loss": abs(np.log2(lr) + 3 - n - np.log2(bs / 8)) + 0.1}
        for n in (1, 2)
        for bs in (8, 16)
        for lr in (0.0625, 0.125, 0.25, 0.5, 1.0)
    ]


def test_every_kind_of_table_gives_the_same_sweep(tmp_path):
    frame = pd.DataFrame(runs())
    tables = {"frame": frame, "columns": frame.to_dict("list"), "records": runs()}
    for name, write in {
        "runs.csv": lambda path: frame.to_csv(path, index=False),
        "runs.tsv": lambda path: frame.to_csv(path, index=False, sep="\t"),
        "runs.jsonl": lambda path: frame.to_json(path, orient="records", lines=True, double_precision=15),
        "runs.parquet": frame.to_parquet,
        "runs.csv.gz": lambda path: path.write_bytes(gzip.compress(frame.to_csv(index=False).encode())),
        "marked.csv": lambda path: path.write_text("\ufeff" + frame.to_csv(index=False), encoding="utf-8"),
    }.items():
        write(tmp_path / name)
        tables[name] = tmp_path / name
    expected = theory.sweep_from_table(runs(), COLUMNS, METRICS, by="N")
    assert list(expected) == [(1,), (2,)]
    for table in tables.values():
        found = theory.sweep_from_table(table, COLUMNS, METRICS, by=["N"])
        for group, sweep in expected.items():
            assert found[group].drop_attrs().equals(sweep.drop_attrs())


@given(st.integers(0, 2**32 - 1))
def test_optima_are_those_of_pandas(seed):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(runs())
    frame["loss"] = rng.uniform(0.1, 2.0, len(frame))
    frame = frame.sample(frac=1.0, random_state=seed % 1000)
    for (size,), sweep in theory.sweep_from_table(frame, COLUMNS, METRICS, by="N").items():
        best = theory.optimum(sweep, "train_loss", keep=1).squeeze("optimizer")
        group = frame[size == frame.N]
        expected = group.loc[group.groupby("bs").loss.idxmin()].set_index("bs")
        for batch_size, row in expected.iterrows():
            assert float(best.sel(batch_size=batch_size).learning_rate) == row.lr
            assert float(best.sel(batch_size=batch_size)["mean"]) == row.loss


def test_optimizers_are_labels_and_those_without_a_momentum_have_no_effective_rate():
    rows = [
        {"lr": 0.1, "bs": 8, "opt": name, "m": momentum, "loss": 1.0}
        for name, momentum in [("SGD", 0.0), ("sgd", 0.9), ("Nesterov", 0.9), ("adamw", None), ("lion", "")]
    ]
    columns = COLUMNS | {"optimizer": "opt", "momentum": "m"}
    sweep = theory.sweep_from_table(rows, columns, METRICS)
    assert sweep.optimizer.values.tolist() == ["sgd", "momentum 0.9", "adamw", "lion", "nesterov 0.9"]
    np.testing.assert_allclose(sweep.effective_learning_rate.values.ravel(), [0.1, 1.0, 0.1, 0.1, 1.0])
    np.testing.assert_array_equal(np.isnan(sweep.momentum), [False, False, True, True, False])
    again = theory.join_sweeps([sweep.isel(optimizer=[2, 3]), sweep.isel(optimizer=[0, 1, 4])])
    assert again.drop_attrs().equals(sweep.drop_attrs())


def test_sweeps_with_named_optimizers_are_saved(tmp_path):
    sweep = theory.sweep_from_table(runs(), COLUMNS, METRICS, optimizer="adam")
    assert theory.load_sweep(theory.save_sweep(sweep, tmp_path / "a.nc")).drop_attrs().equals(sweep.drop_attrs())


def test_runs_of_one_point_are_numbered_after_rates_are_joined():
    rows = [{"lr": lr, "bs": 8, "loss": 1.0} for lr in (0.3, 0.1 * 3, 0.1)]
    sweep = theory.sweep_from_table(rows, COLUMNS, METRICS)
    assert dict(sweep.sizes) == {"optimizer": 1, "batch_size": 1, "learning_rate": 2, "seed": 2}


def test_states_and_gaps_are_counted_and_a_crash_is_not_a_divergence():
    rows = [
        {"lr": 0.1, "bs": 8, "State": "finished", "loss": 1.0},
        {"lr": 0.2, "bs": 8, "State": "crashed", "loss": None},
        {"lr": 0.4, "bs": 8, "State": "diverged", "loss": None},
        {"lr": 0.8, "bs": 8, "State": "finished", "loss": np.inf},
        {"lr": 1.6, "bs": 8, "State": "finished", "loss": None},
        {"lr": 3.2, "bs": 8, "State": "running", "loss": 3.0},
        {"lr": None, "bs": 8, "State": "finished", "loss": 1.0},
        {"lr": 0.1, "bs": None, "State": "finished", "loss": 1.0},
        {"lr": 6.4, "bs": 8, "State": "oom", "loss": 1.0},
    ]
    columns = COLUMNS | {"status": "State"}
    with pytest.raises(ValueError, match=r"row 8: status: expected one of .*got 'oom'\. Say what it means"):
        theory.sweep_from_table(rows, columns, METRICS)
    sweep = theory.sweep_from_table(rows, columns, METRICS, states={"OOM": "leave out"})
    statuses = [COMPLETE, UNFINISHED, DIVERGED, DIVERGED, UNFINISHED, UNFINISHED]
    assert sweep.status.values.ravel().tolist() == statuses
    counts = json.loads(sweep.attrs["configuration"])
    assert counts["left_out"] == {"no learning_rate": 1, "no batch_size": 1, "status oom": 1}
    assert counts["unmeasured"] == {"train_loss": 1}


def test_a_number_in_place_of_a_column_holds_for_all_rows():
    sweep = theory.sweep_from_table([{"lr": 0.1, "loss": 1.0}], {"learning_rate": "lr", "batch_size": 256}, METRICS)
    assert sweep.batch_size.values.tolist() == [256]


def test_directions_are_stated_or_plain():
    rows = [{"lr": 0.1 * 2**k, "bs": 8, "acc": value} for k, value in enumerate((0.5, 0.8, 0.95, 0.9))]
    with pytest.raises(ValueError, match="objective"):
        theory.optimum(theory.sweep_from_table(rows, COLUMNS, "acc"), "acc", keep=1)
    for metrics, objective in (("acc", "maximize"), ({"test_accuracy": "acc"}, None)):
        sweep = theory.sweep_from_table(rows, COLUMNS, metrics, objective=objective)
        name = next(iter(sweep.data_vars.keys() - {"status"}))
        assert float(theory.optimum(sweep, name, keep=1).learning_rate.item()) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ([], {}, "table: expected at least one row"),
        (3, {}, "table: expected a table of runs, got 'int'"),
        ([1, 2], {}, "one mapping per run"),
        ({"lr": [1.0], "bs": [1, 2]}, {}, "columns of one length"),
        (
            runs(),
            {"columns": {"learning_rate": "rate"}},
            r"columns: expected columns among \['N', 'lr', 'bs', 'loss'\]",
        ),
        (runs(), {"columns": {"learning_rate": "lr"}}, r"got \"none of \['batch_size'\]\""),
        (runs(), {"columns": {"rate": "lr"}}, "columns: expected one of 'learning_rate'"),
        (runs(), {"metrics": ()}, "metrics: expected at least one metric"),
        (runs(), {"metrics": "accuracy"}, "metrics: expected columns among"),
        (runs(), {"by": "D"}, "by: expected columns among"),
        (runs(), {"optimizer": 3}, "optimizer: expected a str"),
        ([{"lr": None, "bs": 8, "loss": 1.0}], {}, "expected rows with a learning rate and a batch size"),
        ([{"lr": -1.0, "bs": 8, "loss": 1.0}], {}, r"records\[0\]: learning_rate"),
        ([{"lr": "fast", "bs": 8, "loss": 1.0}], {}, r"records\[0\]: learning_rate: expected real numbers, got 'fast'"),
    ],
)
def test_bad_tables_are_refused(table, options, message):
    arguments = {"columns": COLUMNS, "metrics": METRICS} | options
    with pytest.raises(ValueError, match=message):
        theory.sweep_from_table(table, **arguments)


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("runs.xlsx", b"", "a file of a known format"),
        ("runs.csv", None, "expected a file, got 'none'"),
        ("runs.csv", b"", "expected a csv table"),
        ("runs.jsonl", b"{", "expected a jsonl table"),
        ("runs.parquet", b"no", "expected a parquet table"),
        ("runs.csv", b"lr,bs\n\xff\xfe,1\n", "expected a csv table"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, contents, message):
    if contents is not None:
        (tmp_path / name).write_bytes(contents)
    with pytest.raises(ValueError, match=message):
        theory.sweep_from_table(tmp_path / name, COLUMNS, METRICS)
