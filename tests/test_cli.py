"""The command line of sweeps and single runs: what it prints, its exit statuses, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib

import pytest

from noisysgd.validation import RunStore, TrainConfig, cli
from noisysgd.validation.experiments import NAMES, experiment_file
from noisysgd.validation.plan import EXAMPLE, read_plan

COMMAND = [sys.executable, "-m", "noisysgd.validation.cli"]
SMALL = """
[budget]
kind = "step"
steps = 3
[grid]
batch_sizes = [64]
momenta = [0.0]
exponents = [-1, 0]
[protocol]
runs = 2
keep = 2
metrics = []
[cost]
seconds_per_step = 3600
price_per_hour = 2
"""


@pytest.fixture
def call(capsys, monkeypatch):
    """``call(*arguments)`` runs the command in this process: (exit status, standard output, standard error)."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # handlers are for processes of their own

    def run(*arguments):
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A sweep's file whose runs are done, in this process."""
    from concurrent.futures import ThreadPoolExecutor

    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    with ThreadPoolExecutor(1) as executor:
        read_plan(file).sweep.run(RunStore(tmp_path / "small-runs"), executor)
    return file


def test_plan_says_what_it_would_cost_and_starts_nothing(call, tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    status, out, _ = call("sweep", "plan", file, "--workers", 2)
    assert status == 0
    assert "4 runs to do now: 12 steps, about 12 h 0 min of device time, 6 h 0 min on 2 workers, price 24.00" in out
    assert "stated in the file" in out
    assert list(tmp_path.iterdir()) == [file]


def test_plan_counts_what_grids_may_grow_to(call, tmp_path):
    file = tmp_path / "grows.toml"
    file.write_text(SMALL.replace("metrics = []", 'metrics = ["train_loss"]\nextensions = 3'))
    _, out, _ = call("sweep", "plan", file)
    assert "12 runs more at most" in out


def test_status_export_import_and_on_again(call, finished, tmp_path):
    assert "4 of 4 runs done, 0 of them diverged" in call("sweep", "status", finished, "--check")[1]
    status, out, _ = call("sweep", "export", finished, tmp_path / "x.nc")
    assert (status, out) == (0, f"{tmp_path / 'x.nc'}: 4 runs\n")
    status, out, _ = call("sweep", "import", tmp_path / "x.nc", tmp_path / "new-runs", "--plan", tmp_path / "new.toml")
    assert status == 0
    assert "4 runs added" in out
    assert tomllib.loads((tmp_path / "new.toml").read_text()) == tomllib.loads(SMALL)
    status, out, _ = call("sweep", "run", tmp_path / "new.toml", "--out", tmp_path / "y.nc")
    assert status == 0
    assert (tmp_path / "x.nc").read_bytes() == (tmp_path / "y.nc").read_bytes()
    copies = list((tmp_path / "new-runs").glob("plan-*.toml"))
    assert [tomllib.loads(copy.read_text()) for copy in copies] == [tomllib.loads(SMALL)]


def test_status_of_an_unfinished_sweep(call, tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    assert call("sweep", "status", file)[:2] == (0, "0 of 4 runs done, 0 of them diverged\n")
    assert call("sweep", "status", file, "--check")[0] == 3


def test_status_says_what_is_not_bracketed(call, finished):
    finished.write_text(SMALL.replace("metrics = []", 'metrics = ["train_loss"]\nextensions = 0'))
    status, _, errors = call("sweep", "status", finished, "--check")
    assert status == 3
    assert errors.startswith("not bracketed: train_loss at momentum 0, B = 64")


def test_a_run_is_repeated_from_the_file_that_its_store_keeps(call, finished):
    beside = sorted((finished.parent / "small-runs").glob("*/config.toml"))[0]
    status, out, _ = call("train", beside)
    again = json.loads(out)
    assert status == 0
    stored = RunStore(finished.parent / "small-runs").read(TrainConfig.from_dict(again["config"]))
    assert {k: v for k, v in stored.items() if k not in ("seconds", "provenance")} == {
        k: v for k, v in again.items() if k != "seconds"
    }


@pytest.mark.parametrize("arguments", [["sweep", "plan"], ["sweep", "run"], ["sweep", "status"], ["train"]])
def test_files_that_are_missing_or_wrong_are_named_without_a_traceback(call, tmp_path, arguments):
    status, _, errors = call(*arguments, tmp_path / "none.toml")
    assert status == 1
    assert "none.toml" in errors
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[budget]\nepochs = 'many'\n[grid]\nbatch_sizes = [64]\nmomenta = [0]\nexponents = [0, 1]\n")
    status, _, errors = call(*arguments, wrong)
    assert status == 1
    assert errors.startswith(f"noisysgd: {wrong}: ")
    assert "Traceback" not in errors


def test_tracebacks_are_for_debugging(call, tmp_path):
    with pytest.raises(FileNotFoundError):
        call("sweep", "plan", tmp_path / "none.toml", "--debug")


def test_a_defect_is_told_as_one(call, tmp_path, monkeypatch):
    def broken(_):
        raise KeyError("oh")

    monkeypatch.setattr("noisysgd.validation.plan.read_plan", broken)
    status, _, errors = call("sweep", "plan", tmp_path / "x.toml")
    assert (status, errors) == (1, "noisysgd: KeyError: 'oh' (a defect; --debug shows where)\n")


@pytest.mark.parametrize(
    "command",
    [(), ("demo",), ("train",), ("sweep",)]
    + [("sweep", v) for v in ("plan", "run", "status", "export", "import", "example")],
)
def test_help_has_examples(call, command):
    status, out, _ = call(*command, "--help")
    assert status == 0
    if command:
        assert "examples:" in out
        assert f"  noisysgd {' '.join(command)}" in out


def test_bad_usage_is_2(call):
    assert call("sweep")[0] == 2
    assert call("sweep", "plan")[0] == 2
    assert call("sweep", "run", "x.toml", "--devices", "a")[0] == 2


def test_help_names_the_papers_experiments(call):
    _, out, _ = call("sweep", "example", "--help")
    assert all(name in out for name in NAMES)


def test_the_example_is_a_sweep(call):
    assert call("sweep", "example")[:2] == (0, EXAMPLE)
    assert call("sweep", "example", "table-1")[:2] == (0, experiment_file("table-1"))
    status, _, error = call("sweep", "example", "table-2")
    assert (status, "expected one of" in error) == (1, True)


def test_help_is_quick():
    """No heavy module is loaded: the time itself depends on the machine."""
    code = "import sys; from noisysgd.validation.cli import main\n"
    code += "try: main(['sweep', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numpy', 'xarray', 'distributed'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_says_so_and_goes_on(tmp_path, sign):
    file = tmp_path / "sweep.toml"
    file.write_text(SMALL.replace("steps = 3", "steps = 60").replace("runs = 2", "runs = 6"))
    command = [*COMMAND, "sweep", "run", str(file), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    store = tmp_path / "sweep-runs"
    deadline = time.monotonic() + 90
    while len(list(store.glob("[0-9a-f]*/record.json"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, sign)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Nothing finished is lost: the same command goes on from there." in errors
    assert "Traceback" not in errors
    before = {path: path.stat().st_mtime_ns for path in store.glob("[0-9a-f]*/record.json")}
    assert 2 <= len(before) < 12
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "12 runs in" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
