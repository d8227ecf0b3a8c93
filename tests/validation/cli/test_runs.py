"""`noisysgd runs`: from a table to files that can be read again."""

import csv

import matplotlib.image
import pytest

from noisysgd import theory

ASKED = ("--column", "learning_rate=lr", "--column", "batch_size=bs", "--metric", "train_loss=loss")


def table(path, exponents=range(-8, 5)):
    """Two groups whose best rate is proportional to the batch size up to 16."""
    with path.open("w", encoding="utf-8") as file:
        file.write("N,lr,bs,loss\n")
        for n in (1, 2):
            for b in range(8):
                for k in exponents:
                    file.write(f"{n},{2.0**k},{2**b},{(k + 5 - min(b, 4)) ** 2 + n}\n")
    return path


def rows_of(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_a_table_becomes_sweeps_optima_figures_and_a_summary(call, tmp_path):
    out = tmp_path / "found"
    status, output, errors = call("runs", table(tmp_path / "t.csv"), *ASKED, "--by", "N", "--out", out)
    assert (status, errors) == (0, "")
    assert "N = 2: 104 runs, 104 complete" in output
    assert "8 of 8 optima bracketed; exponent 1.00 ±" in output
    rows = rows_of(out / "summary.csv")
    assert [row["N"] for row in rows] == ["1", "2"]
    assert float(rows[0]["boundary_batch_size"]) == pytest.approx(16, rel=0.3)
    sweep = theory.load_sweep(out / "N_1.nc")
    best = theory.optimum(sweep, "train_loss", keep=1)
    written = rows_of(out / "N_1.csv")
    assert [float(row["learning_rate"]) for row in written] == best.learning_rate.values.ravel().tolist()
    assert (matplotlib.image.imread(out / "N_2.png")[..., :3] < 0.5).any()


def test_an_optimum_at_the_edge_has_an_exit_status_of_its_own(call, tmp_path):
    path = table(tmp_path / "t.csv", exponents=range(-4, 5))
    status, output, _ = call("runs", path, *ASKED, "--by", "N", "--optimizer", "adam", "--out", tmp_path / "found")
    assert status == 3
    assert "adam: 6 of 8 optima bracketed" in output


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--keep", "3"), "--keep 3: expected at most 2"),
        (("--metric", "auc"), "metrics: expected columns among"),
        (("--column", "status=N"), "row 0: status"),
        (("--column", "=lr"), "expected a pair"),
    ],
)
def test_bad_options_end_in_a_message(call, tmp_path, extra, message):
    status, _, errors = call("runs", table(tmp_path / "t.csv"), *ASKED, *extra, "--out", tmp_path / "found")
    assert status in (1, 2)
    assert message in errors


def test_a_file_in_place_of_the_folder_is_left_alone(call, tmp_path):
    (tmp_path / "found").write_text("mine", encoding="utf-8")
    status, _, errors = call("runs", table(tmp_path / "t.csv"), *ASKED, "--out", tmp_path / "found")
    assert status == 1
    assert "expected a folder" in errors
    assert (tmp_path / "found").read_text(encoding="utf-8") == "mine"
