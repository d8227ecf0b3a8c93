"""The GPU benchmark runs as a whole where there is no GPU, and its results make the tables of the page."""

import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from noisysgd import theory

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("environment", "tests", "simulators", "training", "curvature", "campaign")


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "NOISYSGD_DATA"}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    settings = {"capture_output": True, "encoding": "utf-8", "timeout": 240, "env": environment}
    return subprocess.run(command, **settings)


def results(folder: Path) -> dict[str, dict]:
    return {stage: json.loads((folder / f"{stage}.json").read_text(encoding="utf-8")) for stage in STAGES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results at toy size, made once for all workers of a run."""
    mine = tmp_path_factory.getbasetemp()
    folder = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "gpu-benchmark"
    folder.mkdir(exist_ok=True)
    with (folder.with_suffix(".lock")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "campaign.nc").exists():
            # A busy machine may take longer than a GPU is lent for.
            done = run("gpu.py", "--out", folder, "--device", "cpu", "--tiny", "--seconds", 1500)
            log = (folder / "log.txt").read_text(encoding="utf-8")
            assert done.returncode == 0, done.stdout + done.stderr + log[-5000:]
    return folder


@pytest.mark.checkout
@pytest.mark.slow
def test_every_stage_has_rows_and_says_what_it_left_out(folder: Path) -> None:
    for stage, found in results(folder).items():
        assert found["ended"] == "complete", stage
        assert found["about"]["tiny"]
        assert found["rows"], stage
        assert {row.get("skipped", "no GPU") for row in found["rows"]} == {"no GPU"}, stage
        assert not any("error" in row for row in found["rows"]), stage
    assert len(list(folder.iterdir())) <= 8


@pytest.mark.checkout
@pytest.mark.slow
def test_files_of_tests_that_cannot_be_read_are_told_apart_from_failures(folder: Path, tmp_path: Path) -> None:
    found = results(folder)["tests"]
    collection, tests = found["rows"]
    assert (collection["exit"], collection["unread"]) == (0, [])
    assert collection["tests"] == tests["counts"]["skipped"] > 0
    collection["unread"] = ["tests/test_broken.py"]
    (tmp_path / "tests.json").write_text(json.dumps(found), encoding="utf-8")
    assert (
        "skipped; files that could not be read: tests/test_broken.py |"
        in run("gpu_tables.py", tmp_path, "--print").stdout
    )


@pytest.mark.checkout
@pytest.mark.slow
def test_the_campaign_is_a_sweep(folder: Path) -> None:
    sweep = theory.load_sweep(folder / "campaign.nc")
    assert dict(sweep.sizes) == {"optimizer": 2, "batch_size": 2, "learning_rate": 4, "seed": 1, "step": 105}
    assert int((sweep.status > 0).sum()) == 8
    run = sweep.status.isel(batch_size=0, seed=0) > 0
    for optimizer in sweep.optimizer:
        rates = sweep.effective_learning_rate.sel(optimizer=optimizer)[run.sel(optimizer=optimizer)]
        assert rates.values == pytest.approx([0.5, 1.0])


@pytest.mark.checkout
@pytest.mark.slow
def test_the_tables_are_made_but_not_for_the_page(folder: Path, tmp_path: Path) -> None:
    printed = run("gpu_tables.py", folder, "--print").stdout
    assert "Not for the page: campaign: toy sizes (--tiny)" in printed
    assert "8 runs: dataset digits" in printed
    page = tmp_path / "gpu.md"
    page.write_text((ROOT / "docs" / "gpu.md").read_text(encoding="utf-8"), encoding="utf-8")
    before = page.read_text(encoding="utf-8")
    refused = run("gpu_tables.py", folder, "--page", page)
    assert refused.returncode != 0
    assert "expected results of a GPU at full size" in refused.stderr
    assert page.read_text(encoding="utf-8") == before


@pytest.mark.checkout
@pytest.mark.slow
def test_results_of_a_gpu_are_written_into_the_page(folder: Path, tmp_path: Path) -> None:
    """As if a GPU had made them: what is in the files decides, and everything outside the markers stays."""
    for stage, found in results(folder).items():
        found["about"] |= {"device": "cuda", "tiny": False}
        (tmp_path / f"{stage}.json").write_text(json.dumps(found), encoding="utf-8")
    page = tmp_path / "gpu.md"
    original = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    page.write_text(original, encoding="utf-8")
    assert run("gpu_tables.py", tmp_path, "--page", page).returncode == 0
    written = page.read_text(encoding="utf-8")
    assert "Measured on " in written
    outside = re.compile(r"(<!-- table: \w+ -->\n).*?(<!-- end -->)", re.DOTALL)
    assert outside.sub(r"\1\2", written) == outside.sub(r"\1\2", original)


@pytest.mark.checkout
def test_without_results_the_page_says_not_measured(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    page.write_text((ROOT / "docs" / "gpu.md").read_text(encoding="utf-8"), encoding="utf-8")
    assert run("gpu_tables.py", tmp_path / "nowhere", "--page", page).returncode == 0
    parts = re.findall(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(parts) >= 15
    assert all("not measured" in text for name, text in parts if name != "status")
    assert "Nothing here has run on a GPU yet" in dict(parts)["status"]


@pytest.mark.checkout
def test_a_campaign_without_time_for_a_run_is_told_by_the_exit_status(tmp_path: Path) -> None:
    done = run("gpu.py", "--out", tmp_path, "--device", "cpu", "--tiny", "--only", "campaign", "--seconds", "0.5")
    assert done.returncode != 0
    found = json.loads((tmp_path / "campaign.json").read_text(encoding="utf-8"))
    assert found["ended"] != "running"
