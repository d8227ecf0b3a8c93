"""``noisysgd train --curve``: the learning curve as a table and as a figure, in files and printed."""

import csv
import json

import pytest

from noisysgd.validation.cli import main as cli
from noisysgd.validation.cli.curve_files import write_curve

RUN = "learning_rate = 0.5\nbatch_size = 64\nsteps = 8\nevaluate_at = [4]\n"


@pytest.fixture
def train(tmp_path, capsys):
    """``train(*options)`` trains a small network by the command: (exit status, standard output, standard error)."""
    (tmp_path / "run.toml").write_text(RUN)

    def run(*options):
        try:
            status = cli.main(["train", str(tmp_path / "run.toml"), *map(str, options)])
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return run


def test_the_record_is_printed_with_lists_on_single_lines_or_the_table_alone(train, tmp_path):
    out = train("--curve", tmp_path / "curve.csv")[1]
    record = json.loads(out)
    assert record["curve"]["edges"][-1] == 8
    assert record["curve"]["evaluated"]["steps"] == [4]
    assert len(out.splitlines()) < 50
    assert train("--curve")[1] == (tmp_path / "curve.csv").read_text()


@pytest.mark.parametrize("stored", [False, True])
def test_a_table_has_every_bin_and_every_evaluation(train, tmp_path, stored):
    more = ("--store", tmp_path / "runs") if stored else ()
    status, out, _ = train("--evaluate-at", "0,0.5,8", "--curve", tmp_path / "curve.csv", *more)
    assert status == 0
    record = json.loads(out)
    assert record["config"]["evaluate_at"] == [0, 0.5, 8]
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    bins, evaluations = rows[:8], rows[8:]
    assert [(row["step_start"], row["step_stop"]) for row in bins] == [(str(k), str(k + 1)) for k in range(8)]
    assert all(float(row["minibatch_loss"]) > 0 for row in bins)
    assert [row["step_start"] for row in evaluations] == ["0", "4", "8"]
    assert float(evaluations[-1]["test_loss"]) == record["test_loss"]
    if stored:
        assert json.loads(train("--evaluate-at", "8,0,0.5", *more)[1]) == record


@pytest.mark.parametrize(("name", "begins"), [("c.png", b"\x89PNG"), ("c.svg", b"<?xml"), ("c.pdf", b"%PDF")])
def test_a_figure_is_what_its_name_says(train, tmp_path, name, begins):
    assert train("--curve", tmp_path / name)[0] == 0
    assert (tmp_path / name).read_bytes().startswith(begins)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--curve", "curve.txt"), 1, "--curve curve.txt: expected a name that ends in .csv, .png, .svg, .pdf, got"),
        (("--curve", "nowhere/curve.csv"), 1, "no such folder"),
        (("--evaluate-at", "early"), 2, "expected steps or shares such as 0,100,0.5, got 'early'"),
        (("--evaluate-at", "9"), 1, "evaluate_at: expected steps from 0 to 8, got [9]"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_trained(train, options, status, message):
    got, out, error = train(*options)
    assert (got, out) == (status, "")
    assert message in error


def test_a_run_without_a_curve_says_so(tmp_path):
    """One that diverges in its first batch has none."""
    with pytest.raises(ValueError, match=r"curve.csv: expected a run with a learning curve, got 'none'"):
        write_curve(None, tmp_path / "curve.csv")
