"""No terminal, pipe or file makes a command fail because its encoding lacks a character."""

import ast
import codecs
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import commands

from noisysgd.validation.cli import main as cli
from noisysgd.validation.cli.output_encoding import SPELLING, spelling
from noisysgd.validation.sweeps.paper import NAMES

codecs.register_error(SPELLING, spelling)

ENCODINGS = ("ascii", "cp1252", "cp437", "utf-8")
PACKAGE = Path(cli.__file__).resolve().parents[2]


@pytest.fixture(params=ENCODINGS)
def call(request, monkeypatch):
    """``call(*arguments)`` runs the command with streams of an encoding: (exit status, standard output and error)."""
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def run(*arguments):
        files = [io.BytesIO(), io.BytesIO()]
        streams = [io.TextIOWrapper(file, encoding=request.param) for file in files]  # errors="strict"
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            try:
                status = cli.main([str(argument) for argument in arguments])
            except SystemExit as end:
                status = end.code
        for stream in streams:
            stream.flush()
        return status, *(file.getvalue().decode(request.param) for file in files)

    return run


def test_every_help_is_printed_whatever_the_encoding(call):
    for words, _ in commands(cli._parser()):
        status, out, errors = call(*words, "--help")
        assert (status, errors) == (0, ""), words
        assert out.startswith("usage: noisysgd")
        assert "\\u" not in out


def test_examples_are_the_same_in_every_encoding_since_they_become_files(call):
    for name in ((), *((name,) for name in NAMES)):
        status, out, errors = call("sweep", "example", *name)
        assert (status, errors) == (0, "")
        assert out.isascii()


def test_the_data_sets_are_listed_whatever_the_encoding(call, tmp_path):
    for arguments in (("list",), ("where",), ("where", "cifar10", "--folder", tmp_path)):
        status, out, errors = call("data", *arguments)
        assert (status, errors) == (0, "")
        assert "cifar10" in out
        assert "\\u" not in out


def test_names_that_are_no_text_are_printed(call, tmp_path):
    folder = tmp_path / "naïve \udcff λ"
    folder.mkdir()
    status, out, _ = call("data", "where", "cifar10", "--folder", folder)
    assert status == 0
    assert "\\udcff" in out
    status, _, errors = call("train", folder / "run.toml")
    assert status == 1
    assert "\\udcff" in errors


def test_errors_are_told_whatever_the_encoding(call):
    status, _, errors = call("sweep", "run", "x.toml", "--workers", "0")
    assert status == 2
    assert "expected an integer " in errors
    assert "\\u" not in errors


def test_the_demonstrations_claims_are_printed_whatever_the_encoding(call, tmp_path, monkeypatch):
    claim = SimpleNamespace(seen=True, statement="the optimum is ε = 2⁻³ ± ½", evidence="λ_max ≤ 3 ≠ 4")
    room = "noisysgd.validation.demo"
    monkeypatch.setattr(f"{room}.demonstration.run_demo", lambda *_, **__: None)
    monkeypatch.setattr(f"{room}.report.write_report", lambda *_: tmp_path / "report.html")
    monkeypatch.setattr(f"{room}.report.demo_claims", lambda _: [claim])
    status, out, errors = call("demo", "--quick", "--out", tmp_path)
    assert (status, errors) == (0, "")
    assert "optimum" in out
    assert "\\u" not in out


def test_a_measurement_is_printed_in_a_process_of_its_own(tmp_path):
    (tmp_path / "run.toml").write_text("learning_rate = 0.5\nbatch_size = 64\nsteps = 2\n")
    options = ["--at", "0", "--units", "8", "--products", "2", "--curvature-examples", "64", "--probes", "0"]
    command = [sys.executable, "-m", "noisysgd.validation.cli", "measure", "run.toml", *options]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    out = done.stdout.decode("ascii")
    assert "lambda_max" in out
    assert "critical epsilon" in out
    assert " +/- " in out


def test_the_streams_are_left_as_they_were(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="xmlcharrefreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["sweep", "example"]) == 0
    assert stream.errors == "xmlcharrefreplace"


def spelled(text, encoding="ascii"):
    return text.encode(encoding, SPELLING).decode(encoding)


def test_no_sign_is_spelled_as_its_opposite():
    assert spelled("a ≠ b ∤ c ≰ d") == "a != b \\u2224 c \\u2270 d"
    assert spelled("2½ × 10⁻¹² − λᵢ²") == "2(1/2) x 10^-12 - lambda_i^2"
    assert spelled("Ångström, naïve, e\u0304") == "Angstrom, naive, e\\u0304"
    assert spelled("ε ± ½", "cp1252") == "epsilon ± ½"


def test_every_letter_and_sign_that_the_commands_print_has_a_spelling():
    """Those of the command line's and the demonstration's own texts."""
    for path in [*(PACKAGE / "cli").glob("*.py"), *(PACKAGE / "demo").glob("*.py")]:
        if path.name == "output_encoding.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert "\\u" not in spelled(node.value), (path.name, node.value)
