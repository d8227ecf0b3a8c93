"""The command line of sweeps and single runs: what it prints, its exit statuses, and Ctrl-C."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
import tomllib

import pytest
from command_line import commands

from noisysgd import theory
from noisysgd.validation import (
    Calibration,
    RunStore,
    TrainConfig,
    load_dataset,
    measure,
    predict_regimes,
    recorder,
    run_one,
    train,
)
from noisysgd.validation.cli import main as cli
from noisysgd.validation.cli import measure as measure_cli
from noisysgd.validation.measurement.options import PRODUCTS
from noisysgd.validation.sweeps.paper import NAMES, experiment_file
from noisysgd.validation.sweeps.plan import EXAMPLE, read_plan
from noisysgd.validation.training import loop as training

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


@pytest.mark.parametrize(
    ("section", "option"), [("", ["--time-limit", "1"]), ("[limits]\nseconds_per_run = 1e-3\n", [])]
)
def test_a_time_limit_comes_from_the_file_or_the_option(call, tmp_path, section, option):
    file = tmp_path / "limited.toml"
    file.write_text(SMALL.replace("steps = ", "steps = 20000 #") + section)
    status, _, errors = call("sweep", "run", file, *option)
    assert status == 1
    assert "4 of 4 runs exceeded their time limit" in errors
    run = tmp_path / "run.toml"
    run.write_text("learning_rate = 0.1\nbatch_size = 64\nsteps = 20000\n")
    for more in ((), ("--store", tmp_path / "runs")):
        status, _, errors = call("train", run, "--time-limit", "1", *more)
        assert status == 1
        assert "expected to end within 1.0 s" in errors


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


RUN = "learning_rate = 0.5\nbatch_size = 64\nsteps = 10\n"


@pytest.fixture
def run_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(RUN)
    return file


def test_a_run_is_repeated_bit_for_bit_whatever_the_number_of_threads(tmp_path, run_file):
    """A child process, for this one has a single thread from the beginning."""
    config = TrainConfig(learning_rate=0.5, batch_size=64, steps=10)
    store = RunStore(tmp_path / "runs")
    assert run_one(store, config)
    code = (
        "import sys, torch; torch.set_num_threads(2); from noisysgd.validation.cli.main import main; main(sys.argv[1:])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    again = json.loads(
        subprocess.run(
            [sys.executable, "-c", code, "train", str(run_file)],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            timeout=120,
        ).stdout
    )
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in store.read(config).items() if k not in ("seconds", "provenance")
    }


def test_an_interrupted_run_without_a_store_promises_nothing(call, run_file, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training.TrainingRun, "advance", interrupt)
    status, _, errors = call("train", run_file)
    assert (status, errors) == (130, "\nInterrupted. Without --store nothing of the run is kept.\n")
    status, _, errors = call("train", run_file, "--store", run_file.parent / "runs")
    assert (status, errors) == (
        130,
        "\nInterrupted. There was no checkpoint yet: the same command starts the run over.\n",
    )


def test_an_interrupted_run_with_a_store_goes_on_from_its_checkpoint(call, run_file, monkeypatch):
    steps, advance = [], training.TrainingRun.advance

    def until_the_seventh(run):
        if run.step == 7 and 7 not in steps:
            steps.append(7)
            raise KeyboardInterrupt
        steps.append(run.step)
        advance(run)

    monkeypatch.setattr(training.TrainingRun, "advance", until_the_seventh)
    command = ("train", run_file, "--store", run_file.parent / "runs", "--checkpoint-every", 3)
    status, _, errors = call(*command)
    assert status == 130
    assert errors == "\nInterrupted. The checkpoint of step 6 is kept: the same command goes on from there.\n"
    status, out, _ = call(*command)
    assert status == 0
    assert steps == [0, 1, 2, 3, 4, 5, 6, 7, 6, 7, 8, 9]
    straight, record = train(TrainConfig(learning_rate=0.5, batch_size=64, steps=10)), json.loads(out)
    assert all(record[name] == straight[name] for name in (*training.METRICS, "status", "steps", "l2_term"))
    assert not list((run_file.parent / "runs").glob(".running-*"))
    assert json.loads(call(*command)[1]) == record, "taken from the store"
    assert call("train", run_file, "--checkpoint-every", 3)[0] == 2


def test_each_command_says_what_an_interruption_leaves(call, finished, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("noisysgd.validation.sweeps.plan.read_plan", interrupt)
    for arguments, left in (
        (("sweep", "status", finished), "Nothing was changed."),
        (("sweep", "export", finished, finished.parent / "x.nc"), "Nothing was written."),
        (("sweep", "run", finished), "Nothing finished is lost: the same command goes on from there."),
    ):
        assert call(*arguments)[::2] == (130, f"\nInterrupted. {left}\n")


QUICK = {
    "units": 8,
    "products": 2,
    "eigenvalues": 1,
    "curvature_examples": 64,
    "probes": 2,
    "noise_draws": 2,
    "steps": 3,
    "sharpness_batches": 2,
    "seed": 5,
}
QUICK_OPTIONS = [word for name, value in QUICK.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def test_measure_trains_measures_and_writes_what_the_other_functions_take(call, run_file):
    out = run_file.parent / "found.json"
    status, text, _ = call("measure", run_file, "--at", "4,0", "--out", out, *QUICK_OPTIONS)
    assert status == 0
    written = json.loads(out.read_text())
    config = TrainConfig.from_dict(written["config"])
    assert config == TrainConfig(learning_rate=0.5, batch_size=64, steps=10)
    states = []
    observe = recorder(load_dataset("digits"), states, sharpness_batch_size=64, **QUICK)
    record = train(config, observe=observe, observe_at=(0, 4))
    assert all(written["record"][name] == record[name] for name in training.METRICS)
    added = ("seconds", "critical_learning_rate")
    for ours, theirs in zip(written["states"], states, strict=True):
        assert {k: v for k, v in ours.items() if k not in added} == {k: v for k, v in theirs.items() if k not in added}
        value, error = Calibration.from_measurement(ours).predict(theory.critical_learning_rate)
        critical = ours["critical_learning_rate"]
        assert (critical["value"], critical["error"]) == (value, error)
        moving = config.with_(momentum=0.9)
        for rule in ({"nesterov": True}, {"dampening": 0.75}):
            found = measure_cli.critical_learning_rate(ours, moving.with_(**rule))
            problem = Calibration.from_measurement(ours).problem
            edge = theory.critical_learning_rate(problem, momentum=0.9, nesterov="nesterov" in rule)
            assert found["value"] == pytest.approx(float(edge) * (4 if "dampening" in rule else 1))
    assert predict_regimes(written["states"]).step.values.tolist() == [0, 4]
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert lines["step"].split() == ["step", "0", "4"]
    assert list(measure_cli.ROWS) == [name for name in lines if name in measure_cli.ROWS]
    top = written["states"][0]["lambda_max"]
    assert f"{top['value']:.4g} ± {top['residual']:.2g}" in lines["λ_max"]
    sharp = written["states"][1]["batch_sharpness"]
    assert lines["batch sharpness"].endswith(measure_cli.cell(sharp))
    assert "* not converged: " in text


def test_the_function_and_the_help_of_the_command_have_the_same_options_and_defaults(call):
    parameters = inspect.signature(measure).parameters
    options = [name for name in parameters if name not in ("model", "data", "criterion", "eigenvectors")]
    status, text, _ = call("measure", "--help")
    assert status == 0
    before, after = " ".join(text.split()).split(" options of the measurement")
    shown = dict(entry.split(maxsplit=1) for entry in after.split(" --")[1:])
    assert list(shown) == [name.replace("_", "-") for name in options]
    for name, entry in zip(options, shown.values(), strict=True):
        default = parameters[name].default
        assert default is None or entry.endswith(f" ({default:g})")
    assert shown["products"].endswith(f"({PRODUCTS}, or all units if fewer)")
    flat = inspect.signature(Calibration.from_measurement).parameters["flat"].default
    assert f"to calibrate without ({flat:g})" in before


def test_measure_without_a_spectrum_has_no_critical_learning_rate(call, run_file):
    out = run_file.parent / "found.json"
    options = ("--at", "0", "--out", out, *QUICK_OPTIONS, "--probes", 0, "--sharpness-batches", 0)
    status, text, _ = call("measure", run_file, *options)
    assert status == 0
    assert "critical ε       undefined\n" in text
    assert "tr H             not measured\n" in text
    assert "no critical learning rate: no spectrum was measured (probes = 0)\n" in text
    assert json.loads(out.read_text())["states"][0]["critical_learning_rate"]["value"] is None


def test_measure_says_what_a_diverged_run_never_reached(call, run_file):
    run_file.write_text(RUN.replace("0.5", "1e9"))
    out = run_file.parent / "found.json"
    status, text, _ = call("measure", run_file, "--out", out, *QUICK_OPTIONS)
    assert status == 3
    assert "not measured, for the run diverged: step 10: minibatch cross-entropy" in text
    assert [state["step"] for state in json.loads(out.read_text())["states"]] == [0]


def test_measure_minds_what_it_is_told_before_it_trains(call, run_file, monkeypatch):
    monkeypatch.chdir(run_file.parent)
    monkeypatch.setattr(training.TrainingRun, "advance", None)
    for wrong in ("", "a", "-1", "1,1", "1.5"):
        assert call("measure", run_file, f"--at={wrong}")[0] == 2
    status, _, errors = call("measure", run_file, "--at", "0,11")
    assert (status, errors) == (2, "noisysgd: --at: expected steps from 0 to 10, got 11. The run has no others.\n")
    status, _, errors = call("measure", run_file, "--out", "none/x.json")
    assert (status, "--out none/x.json: expected a file in a folder that exists" in errors) == (1, True)
    (run_file.parent / "measurements.json").touch()
    status, _, errors = call("measure", run_file)
    assert (status, "measurements.json: expected no file of that name" in errors) == (1, True)


def test_a_sweep_without_metrics_is_not_said_to_be_bracketed(call, finished):
    for arguments in (("status", finished, "--check"), ("run", finished)):
        status, out, _ = call("sweep", *arguments)
        assert status == 0
        assert "no optimum was judged: the plan names no metrics" in out
        assert "lie inside the grid" not in out


def test_outputs_without_a_folder_are_refused_before_anything_runs(call, tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    for arguments in (
        ("run", file, "--out", tmp_path / "none" / "x.nc"),
        ("export", file, tmp_path / "none" / "x.nc"),
        ("import", file, tmp_path / "runs", "--plan", tmp_path / "none" / "x.toml"),
    ):
        status, _, errors = call("sweep", *arguments)
        assert status == 1
        assert "expected a file in a folder that exists, got no such folder. Make " in errors
    assert "got a folder. Name a file" in call("sweep", "run", file, "--out", tmp_path)[2]
    assert list(tmp_path.iterdir()) == [file]


def test_import_replaces_no_other_plan(call, finished, tmp_path):
    dataset, plan = tmp_path / "x.nc", tmp_path / "mine.toml"
    call("sweep", "export", finished, dataset)
    plan.write_text("mine")
    status, _, errors = call("sweep", "import", dataset, tmp_path / "new", "--plan", plan)
    assert (status, "expected no file, or one with the same plan, got another" in errors) == (1, True)
    assert plan.read_text() == "mine"
    assert not (tmp_path / "new").exists()
    plan.unlink()
    for _ in range(2):
        assert call("sweep", "import", dataset, tmp_path / "new", "--plan", plan)[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workers", "0"), "argument --workers: expected an integer ≥ 1, got '0'"),
        (("--workers", "two"), "argument --workers: expected an integer ≥ 1, got 'two'"),
        (("--workers", "1,2"), "argument --workers: expected an integer ≥ 1, got '1,2'"),
        (("--devices", "0,0"), "argument --devices: expected distinct numbers of GPUs such as 0,1,2, got '0,0'"),
        (("--devices", "x"), "argument --devices: expected distinct numbers of GPUs such as 0,1,2, got 'x'"),
        (("--devices", "0,1", "--workers", "5"), "--workers: expected at most one worker for each of 2 devices, got 5"),
        (("--dask", "tcp://127.0.0.1:1", "--workers", "2"), "--dask: expected no --workers or --devices"),
        (("--dask", "local", "--devices", "0,1", "--workers", "1"), "--workers: expected one worker for each of 2"),
        (("--devices", "0", "--runs-per-device", "2", "--workers", "3"), "at most 2 workers for each of 1 devices"),
        (("--runs-per-device", "2"), "--runs-per-device: expected --devices, and no --dask"),
    ],
)
def test_workers_and_devices_that_cannot_be_are_bad_usage_though_nothing_is_to_be_run(call, finished, options, message):
    status, _, errors = call("sweep", "run", finished, *options)
    assert status == 2
    assert message in errors


def test_a_finished_sweep_needs_a_store_that_can_be_read_only(call, finished, monkeypatch):
    def refuse(path, _):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("noisysgd.theory.common.files.write_text", refuse)
    status, out, _ = call("sweep", "run", finished)
    assert (status, "4 runs in" in out) == (0, True)
    status, _, errors = call("sweep", "run", finished, "--store", finished.parent / "other")
    assert (status, "Permission denied" in errors) == (1, True)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("sweep", "example"), ("--help",)])
def test_a_reader_that_has_gone_is_no_error_to_speak_of(arguments, unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    files = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*COMMAND, *arguments], **files, text=True, env=environment) as process:
        process.stdout.close()
        errors = process.stderr.read()
        process.wait(timeout=60)
    assert errors == ""
    assert process.returncode in (0, 1)


@pytest.mark.parametrize(
    "arguments", [["sweep", "plan"], ["sweep", "run"], ["sweep", "status"], ["train"], ["measure"]]
)
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

    monkeypatch.setattr("noisysgd.validation.sweeps.plan.read_plan", broken)
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


def test_every_help_has_examples_of_its_own():
    found = dict(commands(cli._parser()))
    assert {("measure",), ("foreign", "pd1"), ("data", "list")} <= set(found)
    for words, parser in found.items():
        assert f"\n\nexamples:\n  noisysgd {' '.join(words)}".rstrip() in parser.format_help(), words


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
    code = "import sys; from noisysgd.validation.cli.main import main\n"
    code += "try: main(['sweep', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numpy', 'xarray', 'distributed'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_says_so_and_goes_on(tmp_path, sign):
    file = tmp_path / "sweep.toml"
    file.write_text(SMALL.replace("steps = 3", "steps = 25").replace("runs = 2", "runs = 6"))
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
