"""Foreign measurements, on small trees made to the published layouts."""

import bz2
import gzip
import json
import lzma
import os
import signal
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisysgd import theory
from noisysgd.theory.sweeps.dataset import COMPLETE, DIVERGED, MISSING, check_sweep
from noisysgd.theory.sweeps.optimizers import optimizer_name
from noisysgd.validation import RunStore, pd1_tasks, read_batch_science, read_pd1
from noisysgd.validation.cli import main as cli
from noisysgd.validation.published import trials as published_trials
from noisysgd.validation.published.trials import PublishedTrial, on_grid, sweep_from_trials
from noisysgd.validation.sweeps.export import import_runs

HEADER = "step,train/cross_entropy_error,train/classification_error,test/cross_entropy_error,test/classification_error"


def write_trial(
    study: Path, number: int, status: str, *, rows: tuple[str, ...] = ("0,2.3,0.9,2.3,0.9",), **parameters: Any
) -> Path:
    """One trial's folder, as in batch_science."""
    folder = study / str(number)
    folder.mkdir(parents=True)
    metadata = {"_internal_trial_id": number, "parameters": parameters, "status": status, "steps": 100}
    (folder / "metadata.json").write_text(json.dumps(metadata | {"trial_id": number}, indent=1))
    (folder / "measurements.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return folder


def write_study(workload: Path, batch_size: int, optimizer: str, **changes: Any) -> Path:
    folder = workload / str(batch_size)
    folder.mkdir(parents=True)
    study = {"batch_size": batch_size, "dataset": "mnist", "early_stopping": False, "model": "simple_cnn"}
    study |= {"optimizer": optimizer, "parameter_configs": {}, "train_steps": 100}
    (folder / "study.json").write_text(json.dumps(study | changes, indent=2))
    return folder


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    """Two batch sizes; complete, incomplete and diverged trials."""
    root = tmp_path / "mnist" / "simple_cnn" / "nesterov_momentum"
    small = write_study(root, 64, "nesterov_momentum")
    curve = ("0,2.3,0.9,2.4,0.8", "50,0.5,0.25,0.75,0.375", "100,0.125,0.0625,0.25,0.125")
    write_trial(small, 2, "COMPLETE", rows=curve, learning_rate=0.1, momentum=0.9, end_learning_rate_factor=0.01)
    write_trial(small, 10, "COMPLETE", rows=("0,2,1,2,1", "100,1.5,0.5,,"), learning_rate=0.2, momentum=0.5)
    write_trial(small, 3, "INFEASIBLE", learning_rate=8.0, momentum=0.9)
    write_trial(small, 4, "INCOMPLETE", learning_rate=1.0, momentum=0.9)
    large = write_study(root, 256, "nesterov_momentum")
    write_trial(large, 1, "COMPLETE", rows=("100,0.5,0.25,0.75,0.5",), learning_rate=0.1, momentum=0.9)
    return root


TABLES: dict[str, Callable[[str], str]] = {
    "a byte-order mark": lambda text: "\ufeff" + text,
    "lines that end as under Windows": lambda text: text.replace("\n", "\r\n"),
    "lines that end as they once did on the Macintosh": lambda text: text.replace("\n", "\r"),
    "no end of the last line": lambda text: text.rstrip("\n"),
    "blank lines": lambda text: text.replace("\n", "\n\n") + "\n  \n",
    "rows of commas, as spreadsheets leave": lambda text: text + ",,,,\n,,,,\n",
    "commas at the ends of lines": lambda text: text.replace("\n", ",\n"),
    "commas at the ends of rows": lambda text: text.replace("\n", ",,\n").replace(",,\n", "\n", 1),
    "commas at the end of the header": lambda text: text.replace("\n", ",,\n", 1),
    "spaces after commas": lambda text: text.replace(",", ", "),
    "quotes": lambda text: '"' + text.replace(",", '","').replace("\n", '"\n"')[:-1],
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_are_read_however_programs_wrote_them(workload: Path, kind: str) -> None:
    plain = read_batch_science(workload)
    for path in workload.rglob("measurements.csv"):
        path.write_bytes(TABLES[kind](path.read_text()).encode())
    assert read_batch_science(workload).identical(plain)


def test_json_may_begin_with_a_byte_order_mark(workload: Path) -> None:
    plain = read_batch_science(workload)
    for path in workload.rglob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_batch_science(workload).identical(plain)


def test_what_file_managers_and_notebooks_leave_in_a_workload_is_passed_over(workload: Path) -> None:
    plain = read_batch_science(workload)
    for place in (workload, workload / "64", workload / "64" / "2"):
        for name in (".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir"):
            (place / name).mkdir()
        for name in (".DS_Store", "._study.json", "Thumbs.db"):
            (place / name).write_bytes(b"x")
    assert read_batch_science(workload).identical(plain)


@pytest.mark.parametrize(("error", "accuracy"), [(1.0000001, 0.0), (-5e-8, 1.0), (1 + 2.0**-23, 0.0)])
def test_shares_are_computed_in_float32_elsewhere(tmp_path: Path, error: float, accuracy: float) -> None:
    study = write_study(tmp_path, 64, "sgd")
    write_trial(study, 1, "COMPLETE", rows=(f"9,1,{error!r},1,0.5",), learning_rate=0.5)
    assert float(read_batch_science(tmp_path).train_accuracy.squeeze()) == accuracy
    path = write_rows(tmp_path / "x.jsonl", a_row(**{"train/error_rate": [0.5, 0.5, error]}))
    assert float(read_pd1(path).train_accuracy.squeeze()) == accuracy
    path = write_rows(tmp_path / "x.jsonl", a_row(**{"train/error_rate": [0.5, 0.5, 1.0001]}))
    with pytest.raises(ValueError, match=r"train/error_rate: expected a share from 0 to 1, got 1\.0001"):
        read_pd1(path)


def test_devices_and_pipes_are_no_files_of_a_workload(workload: Path) -> None:
    path = workload / "64" / "study.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"study\.json: expected a plain file, got 'a device or pipe'"):
        read_batch_science(workload)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"study\.json: expected a plain file, got 'a device or pipe'"):
        read_batch_science(workload)


def packed(kind: str, folder: Path) -> Path:
    """An archive of PD1 of some kind, with one file of one trial."""
    member = write_rows(folder / "pd1_matched_phase1_results.jsonl.gz", a_row())
    path = folder / f"pd1.{kind}"
    if kind.startswith("tar"):
        with tarfile.open(path, f"w:{kind.removeprefix('tar').removeprefix('.')}") as tar:
            tar.add(member, member.name)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(member, member.name)
    else:
        path.write_bytes({"bz2": bz2, "xz": lzma}[kind].compress(gzip.decompress(member.read_bytes())))
    return path


@pytest.mark.parametrize("kind", ["tar.gz", "tar", "zip", "bz2", "xz", "tar.bz2"])
def test_the_archive_of_pd1_itself_is_named_with_what_to_do(tmp_path: Path, kind: str) -> None:
    path = packed(kind, tmp_path)
    message = (
        rf"pd1\.{kind}: expected a file of JSON lines, .*got 'a (tar|zip|file compressed).*Unpack it, and name the"
    )
    for read in (read_pd1, pd1_tasks):
        with pytest.raises(ValueError, match=message):
            read(path)
    with pytest.raises(ValueError, match=r"expected a folder, got 'a file'\. Unpack the archive"):
        read_batch_science(path)


def test_files_of_pd1_are_known_by_their_contents_not_by_their_names(tmp_path: Path) -> None:
    zipped = write_rows(tmp_path / "x.jsonl.gz", a_row(), a_row(**DIVERGED_ROW))
    text = gzip.decompress(zipped.read_bytes())
    (tmp_path / "y.jsonl.gz").write_bytes(text)
    (tmp_path / "z.jsonl").write_bytes(zipped.read_bytes())
    (tmp_path / "marked.jsonl").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n") + b"\r\n\r\n")
    plain = read_pd1(zipped).drop_attrs()
    for name in ("y.jsonl.gz", "z.jsonl", "marked.jsonl"):
        assert read_pd1(tmp_path / name).drop_attrs().identical(plain), name


def point(sweep: Any, momentum: float, batch_size: int, rate: float, seed: int = 0) -> Any:
    name = optimizer_name(momentum)
    return sweep.sel(optimizer=name, batch_size=batch_size, learning_rate=rate, seed=seed)


def test_a_workload_becomes_a_sweep(workload: Path) -> None:
    sweep = check_sweep(read_batch_science(workload))
    assert dict(sweep.sizes) == {"optimizer": 2, "batch_size": 2, "learning_rate": 3, "seed": 1}
    here = point(sweep, 0.9, 64, 0.1)
    assert here.status == COMPLETE
    values = {name: float(here[name]) for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy")}
    assert values == {"train_loss": 0.125, "train_accuracy": 0.9375, "test_loss": 0.25, "test_accuracy": 0.875}
    assert float(here.trial) == 2
    assert float(here.effective_learning_rate) == pytest.approx(1.0)
    diverged = point(sweep, 0.9, 64, 8.0)
    assert (diverged.status, float(diverged.train_loss), float(diverged.trial)) == (DIVERGED, np.inf, 3)
    assert np.isnan(diverged.test_accuracy)
    unmeasured = point(sweep, 0.5, 64, 0.2)
    assert unmeasured.status == COMPLETE
    assert np.isnan(unmeasured.test_loss)
    assert int((sweep.status != MISSING).sum()) == 4, "the incomplete trial is missing, not diverged"
    configuration = json.loads(sweep.attrs["configuration"])
    assert configuration["left_out"] == {"incomplete": 1}
    assert configuration["optimizer"] == "nesterov_momentum"
    assert configuration["train_steps"] == {"64": 100, "256": 100}
    assert sweep.attrs["source"] == "training"


def test_a_sweep_of_foreign_trials_survives_the_disk_and_the_optimum_rule(workload: Path, tmp_path: Path) -> None:
    sweep = read_batch_science(workload)
    theory.save_sweep(sweep, tmp_path / "foreign.nc")
    assert theory.load_sweep(tmp_path / "foreign.nc").identical(sweep)
    best = theory.optimum(sweep, "train_loss", keep=1)
    assert float(best.learning_rate.sel(optimizer="momentum 0.9", batch_size=64)) == 0.1


def test_budgets_choose_the_measurement(workload: Path) -> None:
    half = read_batch_science(workload, batch_sizes=[64], budget=theory.StepBudget(99))
    assert float(point(half, 0.9, 64, 0.1).train_loss) == 0.5
    assert dict(half.sizes)["batch_size"] == 1
    epochs = read_batch_science(workload, batch_sizes=[64], budget=theory.EpochBudget(5, 640))  # 50 steps
    assert float(point(epochs, 0.9, 64, 0.1).train_loss) == 0.5
    beyond = read_batch_science(workload, budget=theory.StepBudget(101))
    assert json.loads(beyond.attrs["configuration"])["left_out"] == {"incomplete": 1, "short of the budget": 3}
    with pytest.raises(ValueError, match="budget: expected a StepBudget, an EpochBudget or None"):
        read_batch_science(workload, budget=theory.UnlimitedBudget(0.1))


def test_plain_sgd_has_no_momentum(tmp_path: Path) -> None:
    write_trial(write_study(tmp_path, 2, "sgd"), 1, "COMPLETE", learning_rate=0.5)
    sweep = read_batch_science(tmp_path)
    assert sweep.optimizer.values.tolist() == ["sgd"]
    assert float(sweep.train_loss.squeeze()) == 2.3


def test_average_precisions_are_maximised(tmp_path: Path) -> None:
    study = write_study(tmp_path, 64, "sgd")
    for number, (rate, precision) in enumerate([(0.5, 0.3), (1.0, 0.4), (2.0, 0.1)], start=1):
        table = f"step,val/average_precision\n0,0\n9,{precision}\n"
        (write_trial(study, number, "COMPLETE", learning_rate=rate) / "measurements.csv").write_text(table)
    best = theory.optimum(read_batch_science(tmp_path), "validation_average_precision", keep=1)
    assert float(best.learning_rate.squeeze()) == 1.0


def test_measurements_are_ordered_by_step_not_by_line(tmp_path: Path) -> None:
    rows = ("100,1,0.5,1,0.5", "0,9,0.5,1,0.5")
    write_trial(write_study(tmp_path, 2, "sgd"), 1, "COMPLETE", rows=rows, learning_rate=0.5)
    assert float(read_batch_science(tmp_path).train_loss.squeeze()) == 1.0


def test_the_end_is_where_something_was_measured_last(tmp_path: Path) -> None:
    study = write_study(tmp_path, 2, "sgd")
    write_trial(study, 1, "COMPLETE", rows=("0,9,0.5,9,0.5", "50,2,0.5,,", "100,,,,"), learning_rate=0.5)
    write_trial(study, 2, "COMPLETE", rows=("0,,,,", "100,,,,"), learning_rate=0.25)
    sweep = read_batch_science(tmp_path)
    assert sweep.learning_rate.values.tolist() == [0.5]
    assert float(sweep.train_loss.squeeze()) == 2.0
    assert np.isnan(sweep.test_loss.squeeze()), "that of step 0 would not be the trial's"
    configuration = json.loads(sweep.attrs["configuration"])
    assert configuration["unmeasured"] == {"test_accuracy": 1, "test_loss": 1}
    assert configuration["left_out"] == {"without measurements": 1}


def spoil(path: Path, text: str | bytes | None) -> None:
    path.unlink()
    if isinstance(text, str):
        path.write_text(text)
    elif text is not None:
        path.write_bytes(text)


DEEP = 100_000 * "[" + 100_000 * "]"


SPOILED = {
    "no study": ("64/study.json", None, "64/study.json: expected a file, got none"),
    "study not JSON": ("64/study.json", '{\n"batch_size": 64,,\n', r"64/study.json:2: expected JSON, got"),
    "study a list": ("64/study.json", "[]", "64/study.json: expected an object with .*'batch_size'"),
    "study size": ("64/study.json", '{"batch_size": "x", "optimizer": "sgd"}', "batch_size: expected an integer"),
    "optimizer": ("64/study.json", '{"batch_size": 64, "optimizer": "adam"}', "optimizer: expected one of .* 'adam'"),
    "two workloads": (
        "64/study.json",
        '{"batch_size": 64, "optimizer": "nesterov_momentum", "dataset": "mnist", "model": "other"}',
        "expected studies of one model, got .*'other', 'simple_cnn'",
    ),
    "two studies": (
        "64/study.json",
        '{"batch_size": 256, "optimizer": "nesterov_momentum", "dataset": "mnist", "model": "simple_cnn"}',
        "expected one study per batch size",
    ),
    "no metadata": ("64/2/metadata.json", None, "64/2/metadata.json: expected a file"),
    "status": ("64/2/metadata.json", '{"parameters": {}, "status": "FINE"}', "status: expected one of .*'FINE'"),
    "no rate": ("64/2/metadata.json", '{"parameters": {}, "status": "COMPLETE"}', "expected .*'learning_rate'"),
    "bad rate": (
        "64/2/metadata.json",
        '{"parameters": {"learning_rate": -1, "momentum": 0.9}, "status": "COMPLETE"}',
        "64/2/metadata.json: learning rate: expected a positive",
    ),
    "bad momentum": (
        "64/2/metadata.json",
        '{"parameters": {"learning_rate": 1, "momentum": 1.5}, "status": "COMPLETE"}',
        "64/2/metadata.json: momentum: expected 0 ≤ momentum < 1",
    ),
    "no table": ("64/2/measurements.csv", None, "64/2/measurements.csv: expected a file"),
    "empty table": ("64/2/measurements.csv", "", "measurements.csv:1: expected a column `step`"),
    "no rows": ("64/2/measurements.csv", HEADER + "\n", "measurements.csv: expected at least one measurement"),
    "other columns": ("64/2/measurements.csv", "step,perplexity\n", "measurements.csv:1: expected a column"),
    "short row": ("64/2/measurements.csv", HEADER + "\n0,1,1,1,1\n5,1\n", "measurements.csv:3: expected 5 entries"),
    "no number": ("64/2/measurements.csv", HEADER + "\n0,x,1,1,1\n", "csv:2: expected a number for train/cross_en"),
    "no step": ("64/2/measurements.csv", HEADER + "\n,1,1,1,1\n", "csv:2: expected a number for step, got ''"),
    "two steps": ("64/2/measurements.csv", "step,step,train/cross_entropy_error\n1,2,3\n", "csv:1: expected each col"),
    "two columns": (
        "64/2/measurements.csv",
        HEADER + ",test/cross_entropy_error\n",
        "csv:1: expected each column once",
    ),
    "other bytes": (
        "64/2/measurements.csv",
        HEADER.encode() + b"\n1,1,1,1,1\n\xff",
        "csv:3: expected a table in UTF-8",
    ),
    "long field": (
        "64/2/measurements.csv",
        f"{HEADER}\n1,1,1,1,{200_000 * '1'}\n",
        "csv:2: expected a table, got: field",
    ),
    "open quote": (
        "64/2/measurements.csv",
        HEADER + '\n1,1,1,1,"0.5\n',
        "csv:2: expected a table, got: unexpected end",
    ),
    "underscore": (
        "64/2/measurements.csv",
        HEADER + "\n1_000,1,1,1,1\n",
        "csv:2: expected a number for step, got '1_000",
    ),
    "early step": ("64/2/measurements.csv", HEADER + "\n-1,1,1,1,1\n", "csv:2: step: expected a step: a whole number"),
    "step nan": ("64/2/measurements.csv", HEADER + "\nnan,1,1,1,1\n", "csv:2: step: expected a step: a whole number"),
    "half a step": ("64/2/measurements.csv", HEADER + "\n0.5,1,1,1,1\n", "csv:2: step: expected a step: a whole num"),
    "error rate": (
        "64/2/measurements.csv",
        HEADER + "\n1,1,1.5,1,1\n",
        "csv:2: train/classification_error: expected a sh",
    ),
    "deep": ("64/study.json", DEEP, "64/study.json: expected JSON of a few levels"),
    "long integer": ("64/study.json", 5000 * "1", "64/study.json: expected JSON, got Exceeds the limit"),
    "not UTF-8": ("64/study.json", b'{"\xff": 1}', "64/study.json: expected JSON in UTF-8"),
    "one line": ("64/2/metadata.json", "{", "64/2/metadata.json:1: expected JSON"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_malformed_trees_are_refused_with_path_and_line(workload: Path, case: str) -> None:
    path, text, message = SPOILED[case]
    spoil(workload / path, text)
    with pytest.raises(ValueError, match=message):
        read_batch_science(workload)


def test_folders_that_are_no_workload_are_refused(workload: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: expected a folder"):
        read_batch_science(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"expected one folder per study, each named by a number, got \['nesterov"):
        read_batch_science(workload.parent)
    with pytest.raises(ValueError, match="batch_sizes: expected some of those in"):
        read_batch_science(workload, batch_sizes=[7])
    with pytest.raises(ValueError, match=r"batch_sizes: expected a collection of integers, got 64\. Write \[64\]"):
        read_batch_science(workload, batch_sizes=64)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_sizes: expected an integer ≥ 1, got 'x'"):
        read_batch_science(workload, batch_sizes=["x"])  # type: ignore[list-item]
    (workload / "64" / "02").mkdir()
    with pytest.raises(ValueError, match=r"one folder per trial, each named by a number, got \['02'\]"):
        read_batch_science(workload)
    (workload / "64" / "02").rmdir()
    (workload / "64" / "2" / "metadata.json").unlink()
    (workload / "64" / "2" / "metadata.json").mkdir()
    with pytest.raises(ValueError, match=r"64/2/metadata\.json: expected a file that can be read, got: Is a directory"):
        read_batch_science(workload)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: expected one folder per study, got 'none'"):
        read_batch_science(tmp_path / "empty")


def a_row(**changes: Any) -> dict[str, Any]:
    """One trial of PD1, with a few of its many other fields."""
    row = {
        "dataset": "cifar10",
        "model": "wide_resnet",
        "hparams": "{}",
        "status": "done",
        "trial_dir": "dir/1",
        "study_group": "cifar10_wrn,cifar10,wide_resnet,wrn,256",
        "hps.batch_size": 256,
        "hps.lr_hparams.initial_value": 0.1,
        "hps.opt_hparams.momentum": 0.9,
        "hps.lr_hparams.power": 1.5,
        "global_step": [10, 20, 30],
        "train/ce_loss": [2.0, 1.0, 0.5],
        "train/error_rate": [0.75, 0.5, 0.25],
        "valid/ce_loss": [2.5, None, 1.5],
        "valid/error_rate": [0.875, 0.75, 0.5],
        "test/ce_loss": None,
        "best_valid/error_rate": 0.5,
    }
    return row | changes


def write_rows(path: Path, *rows: Any) -> Path:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


DIVERGED_ROW = {
    "status": "diverged",
    "trial_dir": "dir/2",
    "hps.lr_hparams.initial_value": 4.0,
    "global_step": None,
    "train/ce_loss": None,
    "train/error_rate": None,
    "valid/ce_loss": None,
    "valid/error_rate": None,
}
LARGER = {"hps.batch_size": 2048, "study_group": "cifar10_wrn,cifar10,wide_resnet,wrn,2048"}
OTHER = {"trial_dir": "dir/4", "study_group": "mnist_cnn,mnist,simple_cnn,simple_cnn,256"}


@pytest.mark.parametrize("name", ["pd1_matched_phase0_results.jsonl", "pd1_matched_phase0_results.jsonl.gz"])
def test_a_task_of_pd1_becomes_a_sweep(tmp_path: Path, name: str) -> None:
    rows = [a_row(), a_row(**DIVERGED_ROW), a_row(trial_dir="dir/3", **LARGER), a_row(**OTHER)]
    path = write_rows(tmp_path / name, *rows, "")
    assert pd1_tasks(path) == ["cifar10_wrn,cifar10,wide_resnet,wrn", "mnist_cnn,mnist,simple_cnn,simple_cnn"]
    sweep = check_sweep(read_pd1(path, task="cifar10_wrn,cifar10,wide_resnet,wrn"))
    assert dict(sweep.sizes) == {"optimizer": 1, "batch_size": 2, "learning_rate": 2, "seed": 1}
    here = point(sweep, 0.9, 256, 0.1)
    names = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "trial")
    assert [float(here[name]) for name in names] == [0.5, 0.75, 1.5, 0.5, 1.0]
    assert "test_loss" not in sweep
    gone = point(sweep, 0.9, 256, 4.0)
    assert (gone.status, float(gone.validation_loss), float(gone.trial)) == (DIVERGED, np.inf, 2)
    assert point(sweep, 0.9, 2048, 4.0).status == MISSING
    assert sweep.validation_accuracy.attrs["objective"] == "maximize"
    assert json.loads(sweep.attrs["configuration"])["files"] == [name]
    one = read_pd1(path, task="mnist_cnn,mnist,simple_cnn,simple_cnn", batch_sizes=[256])
    assert float(one.trial.squeeze()) == 4


def test_phases_are_read_as_one(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "a.jsonl", a_row())
    second = write_rows(tmp_path / "b.jsonl", a_row(trial_dir="dir/9", **{"hps.lr_hparams.initial_value": 0.2}))
    sweep = read_pd1([first, second])
    assert sweep.trial.squeeze().values.tolist() == [1.0, 2.0]
    assert sweep.learning_rate.values.tolist() == [0.1, 0.2]


def test_pd1_within_a_budget(tmp_path: Path) -> None:
    rows = [a_row(), a_row(trial_dir="short", **{"hps.lr_hparams.initial_value": 0.3, "global_step": [5, 10, 15]})]
    rows.append(a_row(trial_dir="none", **{"global_step": [], "hps.lr_hparams.initial_value": 0.4}))
    sweep = read_pd1(write_rows(tmp_path / "x.jsonl", *rows), budget=theory.StepBudget(25))
    assert float(sweep.train_loss.squeeze()) == 1.0
    assert np.isnan(sweep.validation_loss.squeeze())
    left_out = json.loads(sweep.attrs["configuration"])["left_out"]
    assert left_out == {"short of the budget": 1, "without measurements": 1}


BAD_ROWS = {
    "not JSON": ("{", "x.jsonl:2: expected one JSON object, got"),
    "a list": ("[1]", "x.jsonl:2: expected values for"),
    "no momentum": (a_row(**{"hps.opt_hparams.momentum": None}), "x.jsonl:2: expected values for .*none for"),
    "status": (a_row(status="lost", trial_dir="2"), "x.jsonl:2: status: expected 'done' or 'diverged', got 'lost'"),
    "group": (a_row(study_group="cifar10"), "x.jsonl:2: expected a study_group"),
    "group size": (a_row(**{"hps.batch_size": 512}), "x.jsonl:2: expected a study_group task,…,512"),
    "repeated": (a_row(), "x.jsonl:2: expected a trial_dir of its own, got 'that of .*x.jsonl:1'"),
    "curve length": (a_row(trial_dir="2", **{"train/ce_loss": [1.0]}), "jsonl:2: train/ce_loss: expected a list as"),
    "curve type": (a_row(trial_dir="2", **{"train/ce_loss": ["a", 1, 2]}), "jsonl:2: train/ce_loss: expected numbers"),
    "rate": (a_row(trial_dir="2", **{"hps.lr_hparams.initial_value": 0}), "jsonl:2: learning rate: expected a posit"),
    "deep": (DEEP, "x.jsonl:2: expected one JSON object of a few levels"),
    "long integer": (5000 * "1", "x.jsonl:2: expected one JSON object, got Exceeds the limit"),
    "large": (
        a_row(trial_dir="2", **{"train/ce_loss": [1, 2, 10**400]}),
        "jsonl:2: train/ce_loss: expected numbers of or",
    ),
    "step nan": (a_row(trial_dir="2", global_step=[0, 1, float("nan")]), "jsonl:2: global_step: expected a step: a wh"),
    "step null": (
        a_row(trial_dir="2", global_step=[0, 1, None]),
        "jsonl:2: global_step: expected a step: a whole numb",
    ),
    "step early": (a_row(trial_dir="2", global_step=[-1, 0, 1]), "jsonl:2: global_step: expected a step: a whole numb"),
    "share": (a_row(trial_dir="2", **{"valid/error_rate": [0, 1.5, 1]}), "jsonl:2: valid/error_rate: expected a share"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_malformed_lines_are_refused_with_path_and_line(tmp_path: Path, case: str) -> None:
    row, message = BAD_ROWS[case]
    with pytest.raises(ValueError, match=message):
        read_pd1(write_rows(tmp_path / "x.jsonl", a_row(), row))


def test_foreign_trials_are_no_runs_to_import(tmp_path: Path) -> None:
    sweep = read_pd1(write_rows(tmp_path / "x.jsonl", a_row()))
    with pytest.raises(ValueError, match=r"each with a TrainConfig, got 'trials of others, which have none: PD1"):
        import_runs(sweep, RunStore(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """``call(*arguments)`` runs ``noisysgd foreign`` here: (exit status, standard output, standard error)."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = cli.main(["foreign", *map(str, arguments)])
        except SystemExit as end:
            status = int(str(end.code))
        return status, *capsys.readouterr()

    return run


def test_the_command_writes_a_workload_as_a_sweep(call: Call, workload: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nc"
    status, text, _ = call("batch-science", workload, out)
    assert status == 0
    assert text.splitlines() == [
        f"{out}: 4 trials, 1 of them diverged, at batch sizes 64, 256",
        "1 left out: incomplete",
        "1 without test_accuracy at their last step",
        "1 without test_loss at their last step",
    ]
    assert theory.load_sweep(out).identical(read_batch_science(workload))
    options = ("--batch-sizes", "64", "--epochs", "5", "--dataset-size", "640", "--fraction", "1")
    assert call("batch-science", workload, out, *options)[0] == 0
    budget = theory.EpochBudget(5.0, 640)
    assert theory.load_sweep(out).identical(read_batch_science(workload, batch_sizes=[64], budget=budget, fraction=1))


def test_the_command_writes_a_task_of_pd1_as_a_sweep(call: Call, tmp_path: Path) -> None:
    first, second = write_rows(tmp_path / "a.jsonl", a_row()), write_rows(tmp_path / "b.jsonl.gz", a_row(**OTHER))
    task, out = "cifar10_wrn,cifar10,wide_resnet,wrn", tmp_path / "out.nc"
    assert call("pd1-tasks", first, second)[:2] == (0, f"{task}\nmnist_cnn,mnist,simple_cnn,simple_cnn\n")
    status, _, error = call("pd1", first, second, out)
    assert (status, "task: expected the name of one of 2 tasks" in error) == (1, True)
    assert call("pd1", first, second, out, "--task", task, "--steps", "25")[0] == 0
    read = read_pd1([first, second], task=task, budget=theory.StepBudget(25))
    assert theory.load_sweep(out).identical(read)


def test_the_command_minds_its_options(call: Call, workload: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nc"
    for options in (
        ("--batch-sizes", "a"),
        ("--fraction", "0"),
        ("--epochs", "5"),
        ("--epochs", "5", "--dataset-size", "640", "--steps", "3"),
    ):
        assert call("batch-science", workload, out, *options)[0] == 2
    status, _, error = call("batch-science", workload, tmp_path / "none" / "x.nc")
    assert (status, "expected a file in a folder that exists" in error) == (1, True)
    status, _, error = call("pd1", tmp_path / "none.jsonl", out)
    assert (status, error.startswith(f"noisysgd: {tmp_path / 'none.jsonl'}: expected a file")) == (1, True)
    assert not out.exists()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl: expected a file that can be read, got: No such file"):
        read_pd1(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=": expected a file that can be read, got: Is a directory"):
        read_pd1(tmp_path)
    with pytest.raises(ValueError, match=r"paths: expected a sequence of .* got 5"):
        pd1_tasks(5)  # type: ignore[arg-type]
    path = write_rows(tmp_path / "x.jsonl", a_row())
    with pytest.raises(ValueError, match=r"batch_sizes: expected a collection of integers, got 256\. Write \[64\]"):
        read_pd1(path, batch_sizes=256)  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes() + b'{"\xff": 1}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl:2: expected one JSON object in UTF-8, got other bytes"):
        read_pd1(path)


def test_truncated_zips_and_unnamed_tasks_are_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl.gz", a_row(), a_row(**OTHER))
    with pytest.raises(ValueError, match="task: expected the name of one of 2 tasks"):
        read_pd1(path)
    with pytest.raises(ValueError, match="task: expected one of"):
        read_pd1(path, task="imagenet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"x.jsonl.gz:\d: expected a whole text file"):
        pd1_tasks(path)


@given(st.floats(1e-6, 100.0), st.floats(0.0, 0.9999), st.integers(1, 4))
def test_the_grid_is_powers_of_two_and_the_nearest(rate: float, momentum: float, fraction: int) -> None:
    trial = PublishedTrial(1, momentum, 64, rate, "diverged", {})
    new_momentum, new_rate = on_grid(trial, fraction)
    assert 0 <= new_momentum < 1
    for before, after in (
        (rate / (1 - momentum), new_rate / (1 - new_momentum)),
        (1 / (1 - momentum), 1 / (1 - new_momentum)),
    ):
        exponent = np.log2(after) * fraction
        assert exponent == pytest.approx(round(exponent), abs=1e-6)
        assert abs(np.log2(after / before)) <= 0.5 / fraction + 1e-9


def test_trials_that_meet_on_the_grid_become_seeds(tmp_path: Path) -> None:
    study = write_study(tmp_path, 64, "momentum")
    for number, (rate, momentum, loss) in enumerate([(0.1, 0.9, 1.0), (0.11, 0.89, 2.0), (0.4, 0.9, 3.0)], start=1):
        row = (f"100,{loss},0.5,1,0.5",)
        write_trial(study, number, "COMPLETE", rows=row, learning_rate=rate, momentum=momentum)
    sweep = read_batch_science(tmp_path, fraction=1)
    assert dict(sweep.sizes) == {"optimizer": 1, "batch_size": 1, "learning_rate": 2, "seed": 2}
    assert sweep.effective_learning_rate.values.tolist() == [[1.0, 4.0]]
    assert sweep.trial.sel(learning_rate=0.125).squeeze().values.tolist() == [1, 2]
    assert int((sweep.status == MISSING).sum()) == 1
    assert json.loads(sweep.attrs["configuration"])["fraction"] == 1


def test_grids_too_large_for_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_trials, "POINTS", 8)
    trials = [PublishedTrial(k, 0.1 * k, 64, 1.0 + k, "diverged", {}) for k in range(3)]
    with pytest.raises(ValueError, match="trials: expected a grid of at most 8 points, got 9"):
        sweep_from_trials(trials, fraction=None, configuration={})
    with pytest.raises(ValueError, match="trials: expected at least one"):
        sweep_from_trials([], fraction=None, configuration={})
    with pytest.raises(ValueError, match="fraction: expected an integer ≥ 1"):
        sweep_from_trials(trials, fraction=0, configuration={})
