"""The command line, end to end: it writes what it says, resumes, and loses nothing on Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import xarray as xr

from noisysgd import theory
from noisysgd.validation.cli import main as cli

COMMAND = [sys.executable, "-m", "noisysgd.validation.cli"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An output directory of ``noisysgd demo --quick``, interrupted once on the way."""
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [*COMMAND, "demo", "--quick", "--out", str(out), "--seed", "5"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while len(list((out / "runs").glob("[0-9a-f]*"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Nothing finished is lost" in errors
    assert "Traceback" not in errors
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("[0-9a-f]*/record.json")}
    assert len(before) >= 2
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished run was repeated"
    return out, result


@pytest.mark.slow
def test_demo_writes_one_self_contained_report(finished):
    out, result = finished
    page = (out / "report.html").read_text()
    pictures = re.findall(r'<img [^>]*src="([^"]{40})', page)
    assert len(pictures) == len(list((out / "figures").glob("*.png"))) == 5
    assert all(source.startswith("data:image/png;base64,") for source in pictures)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert str(out / "report.html") in result.stdout
    for section in "abcde":
        assert f"<h2>({section})" in page


@pytest.mark.slow
def test_demo_shows_progress_with_time_left(finished):
    assert re.search(r"training .*left.*runs", finished[1].stderr.replace("\r", "\n"))


@pytest.mark.slow
def test_demo_keeps_the_sweep_as_netcdf(finished):
    out, _ = finished
    sweep = theory.load_sweep(out / "sweep.nc")
    assert set(sweep.dims) == {"optimizer", "batch_size", "learning_rate", "seed", "step"}  # curves lie along steps
    assert sweep.attrs["source"] == "training"
    assert {"versions", "commit", "hardware", "configuration"} <= set(sweep.attrs)
    best = theory.optimum(sweep, "train_loss", keep=1)
    assert (best.effective_learning_rate[:, -1] > best.effective_learning_rate[:, 0]).all()


@pytest.mark.slow
def test_a_second_start_computes_nothing_again(finished, capsys):
    out, _ = finished
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("record.json")} | {
        p: p.stat().st_mtime_ns for p in [out / "simulator.nc"]
    }
    before = theory.load_sweep(out / "sweep.nc")
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert cli.main(["demo", "--quick", "--out", str(out), "--seed", "5"]) == 0
    finally:
        signal.signal(signal.SIGINT, handler)
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    xr.testing.assert_equal(theory.load_sweep(out / "sweep.nc"), before)
    assert "yes" in capsys.readouterr().out


def run(*arguments):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_bad_usage_says_so_without_a_traceback(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    result = run("demo", "--quick", "--out", str(blocked))
    assert result.returncode == 1
    assert "out: expected a directory" in result.stderr
    assert "Traceback" not in result.stderr
    assert run("demo", "--quick", "--out", str(tmp_path / "x"), "--seed", "-1").returncode == 1
    assert run("dance").returncode == 2


def test_help_and_version_do_not_import_torch():
    code = (
        "import sys; from noisysgd.validation.cli.main import main\ntry: main(['--version'])\nexcept SystemExit: pass\n"
    )
    code += "assert 'torch' not in sys.modules and 'xarray' not in sys.modules"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert result.stdout.startswith("noisysgd 0.")
