"""What a network of the user's own may do to the command line: nothing that is not told, and nothing while reading."""

import subprocess
import sys

import pytest

from noisysgd.validation import RunStore
from noisysgd.validation.configuration import METRICS
from noisysgd.validation.sweeps.plan import read_plan

COMMAND = [sys.executable, "-m", "noisysgd.validation.cli"]
SWEEP = """
[run]
model = "mine:make"
ghost_batch_size = 1
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
"""
RUN = 'model = "mine:make"\nghost_batch_size = 1\nlearning_rate = 0.5\nbatch_size = 64\nsteps = 10\n'
A_NETWORK = """
import pathlib
from torch import nn
pathlib.Path("executed").touch()
def make(config, data):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def in_a_child(folder, *arguments):
    """The command in a process of its own, in a folder: (exit status, standard output, standard error)."""
    done = subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def own_network(tmp_path):
    """A folder with a sweep whose network is a module of the user's own."""
    (tmp_path / "small.toml").write_text(SWEEP)
    (tmp_path / "run.toml").write_text(RUN)
    (tmp_path / "mine.py").write_text(A_NETWORK)
    return tmp_path


def test_reading_a_sweep_executes_none_of_its_network(own_network, call, monkeypatch):
    monkeypatch.chdir(own_network)
    config = read_plan("small.toml").sweep.plan()[0]
    metrics = dict.fromkeys(METRICS, 0.5)
    record = {"config": config.as_dict(), "status": "complete", "steps": 3, "seconds": 1.0, **metrics}
    RunStore("small-runs").write(record)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert call("sweep", "status", "small.toml", "--check")[:2] == (3, "1 of 4 runs done, 0 of them diverged\n")
    assert call("sweep", "export", "small.toml", "x.nc")[0] == 0
    assert call("sweep", "import", "x.nc", "others", "--plan", "other.toml")[0] == 0
    assert "mine" not in sys.modules
    assert not (own_network / "executed").exists()
    status, out, _ = call("sweep", "plan", "small.toml")
    assert (status, "3 runs to do now" in out) == (0, True)
    assert (own_network / "executed").exists(), "the plan of what is to be run finds out whether it can be"


def test_a_finished_sweep_needs_its_network_no_more(own_network, call, monkeypatch):
    command = ("sweep", "run", "small.toml", "--workers", "1")
    assert in_a_child(own_network, *command)[0] == 0
    (own_network / "mine.py").unlink()
    (own_network / "executed").unlink()
    monkeypatch.chdir(own_network)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    for arguments in (command, ("sweep", "status", "small.toml", "--check"), ("sweep", "plan", "small.toml")):
        status, _, errors = call(*arguments)
        assert status == 0, errors


NETWORK_THAT_ENDS = """
import sys
from torch import nn
{import}
class Net(nn.Linear):
    def forward(self, x):
        {forward}
        return super().forward(x.flatten(1))
def make(config, data):
    {factory}
    return Net(64, 10)
"""
PLACES = ("import", "factory", "forward")


@pytest.mark.parametrize("end", ["sys.exit()", "raise GeneratorExit"])
@pytest.mark.parametrize("place", PLACES)
def test_a_network_that_ends_the_program_is_an_error_of_every_command(own_network, call, monkeypatch, place, end):
    monkeypatch.chdir(own_network)
    text = NETWORK_THAT_ENDS.format(**{name: end if name == place else "pass" for name in PLACES})
    (own_network / "mine.py").write_text(text)
    commands = [("train", "run.toml"), ("measure", "run.toml"), ("train", "run.toml", "--store", "runs")]
    if place == "import":  # the driver of a sweep makes no network
        commands += [("sweep", verb, "small.toml") for verb in ("plan", "run")]
    for arguments in commands:
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        status, _, errors = call(*arguments)
        assert status == 1, errors
        assert "expected" in errors
        assert "Exit" in errors
    status, out, _ = call("sweep", "status", "small.toml", "--check")
    assert (status, out) == (3, "0 of 4 runs done, 0 of them diverged\n")


def test_a_network_that_ends_the_program_in_a_worker_is_an_error_of_the_sweep(own_network):
    text = NETWORK_THAT_ENDS.format(**dict.fromkeys(PLACES, "pass") | {"forward": "sys.exit()"})
    (own_network / "mine.py").write_text(text)
    status, _, errors = in_a_child(own_network, "sweep", "run", "small.toml", "--workers", "1")
    assert status == 1
    assert "noisysgd: mine:make: expected a result or an error, got SystemExit" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_network_that_ends_its_worker_at_once_is_told_of_as_a_broken_executor(own_network):
    (own_network / "mine.py").write_text("import os\ndef make(config, data):\n    os._exit(0)\n")
    status, _, errors = in_a_child(own_network, "sweep", "run", "small.toml", "--workers", "1")
    assert status == 1
    assert "look for os._exit in code of your own" in errors


@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_no_command_ends_with_success_because_something_ended_the_program(call, tmp_path, monkeypatch, debug):
    def end(_):
        raise SystemExit(0)

    monkeypatch.setattr("noisysgd.validation.sweeps.plan.read_plan", end)
    if debug:
        with pytest.raises(RuntimeError, match="the command: expected a result or an error"):
            call("sweep", "status", tmp_path / "x.toml", *debug)
    else:
        status, _, errors = call("sweep", "status", tmp_path / "x.toml")
        assert (status, "the command: expected a result or an error, got SystemExit(0)" in errors) == (1, True)
