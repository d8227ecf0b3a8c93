"""The programs in the documentation run."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def programs(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run(path: Path, **variables: str) -> str:
    """What a program prints. One that hangs is ended, and all processes of its session with it."""
    files = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"} | variables
    command = [sys.executable, str(path)]
    with subprocess.Popen(command, **files, cwd=path.parent, env=environment, start_new_session=True) as process:
        try:
            output, errors = process.communicate(timeout=50)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, errors
    return output


@pytest.mark.checkout
@pytest.mark.slow
def test_programs_of_the_page_on_ensembles_agree(tmp_path: Path) -> None:
    """Each is a file of its own, as a reader would save it; those that print the losses print the same ones."""
    outputs = []
    for k, text in enumerate(programs("ensembles.md")):
        path = tmp_path / f"program_{k}.py"
        path.write_text(text, encoding="utf-8")
        outputs.append(run(path))
    assert len(outputs) == 3
    assert outputs[0] == ""
    assert outputs[1] == outputs[2] != ""


@pytest.mark.checkout
def test_the_program_on_where_noise_helps_finds_an_optimum(tmp_path: Path) -> None:
    (text,) = programs("noise_helps.md")
    path = tmp_path / "program.py"
    path.write_text(text, encoding="utf-8")
    assert "momentum 0.9" in run(path)


@pytest.mark.checkout
def test_the_program_on_optimizers_prints_what_its_page_says(tmp_path: Path) -> None:
    (text,) = programs("optimizers.md")
    path = tmp_path / "program.py"
    path.write_text(text, encoding="utf-8")
    assert run(path).split() == ["SGD", "1.00", "Adam", "0.50"]


@pytest.mark.checkout
def test_the_program_on_your_own_runs_prints_what_its_page_says(tmp_path: Path) -> None:
    (text,) = programs("your_own_runs.md")
    path = tmp_path / "program.py"
    path.write_text(text, encoding="utf-8")
    output = run(path).strip()
    assert f"prints `{output}`" in (DOCS / "your_own_runs.md").read_text(encoding="utf-8")


@pytest.mark.checkout
def test_the_program_on_figures_writes_one(tmp_path: Path) -> None:
    (text,) = programs("theory.md")
    path = tmp_path / "program.py"
    path.write_text(text, encoding="utf-8")
    run(path)
    picture = matplotlib.image.imread(tmp_path / "regimes.png")
    assert (picture[..., :3] < 0.5).any()  # not blank


@pytest.mark.checkout
@pytest.mark.slow
def test_the_program_on_measurement_prints_what_it_finds(tmp_path: Path) -> None:
    (text,) = programs("measurement.md")
    path = tmp_path / "program.py"
    path.write_text(text, encoding="utf-8")
    lines = run(path, OMP_NUM_THREADS="1").splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 20", "step 100"]
    assert all("2/λ_max = " in line and " ± " in line and "<Calibration" in line for line in lines)


@pytest.mark.checkout
@pytest.mark.slow
def test_the_program_on_fits_finds_a_schedule(tmp_path: Path) -> None:
    (text,) = programs("fit.md")
    path = tmp_path / "program.py"
    path.write_text(text, encoding="utf-8")
    lines = run(path).splitlines()
    assert lines[0].startswith("additive noise, 2 curves")
    best, *others = (float(line) for line in lines[-3:])
    assert best < min(others)
