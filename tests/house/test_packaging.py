"""What is shipped is what is here, and importing it is cheap."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from noisysgd import simulators, theory, validation

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("theory", "simulators", "validation")


@pytest.mark.checkout
def test_listed_packages_are_those_on_disk():
    """A package missing from the list imports fine from a checkout and is absent from the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {
        "noisysgd." + ".".join(path.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(settings["packages"]) == on_disk
    assert set(settings["package-dir"]) <= on_disk


@pytest.mark.checkout
def test_type_checkers_see_every_folder():
    for folder in FOLDERS:
        assert (ROOT / ".typing" / "noisysgd" / folder).resolve() == ROOT / folder
        assert (ROOT / folder / "py.typed").exists()


@pytest.mark.parametrize(
    "name", ["mpmath", "psutil", "distributed", "curvlinops", "nbformat", "nbclient", "pytest_timeout"]
)
def test_what_tests_would_be_skipped_without_is_installed(name):
    """A machine with a GPU may lack it and run the tests marked gpu alone; the suite must not get smaller unseen."""
    assert importlib.util.find_spec(name) is not None


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import noisysgd.theory", {"torch", "cupy", "matplotlib", "sklearn", "numba"}),
        ("import noisysgd.simulators", {"torch", "cupy", "matplotlib", "sklearn"}),
        ("import noisysgd.validation", {"torch", "sklearn", "xarray"}),
        ("from noisysgd.validation import RunStore, Sweep, TrainConfig", {"torch", "sklearn"}),
        ("from noisysgd.validation.cli import main; main._parser()", {"torch", "xarray", "numpy"}),
    ],
)
def test_imports_stay_light(code, unwanted):
    loaded = run_python(f"{code}\nimport sys; print(*sys.modules)").split()
    assert not unwanted & set(loaded)


@pytest.mark.checkout
def test_dependencies_point_one_way():
    for folder, forbidden in (("theory", ("simulators", "validation")), ("simulators", ("validation",))):
        for path in (ROOT / folder).rglob("*.py"):
            for name in forbidden:
                assert f"noisysgd.{name}" not in path.read_text().replace(f":func:`noisysgd.{name}", ""), path
                assert f"from noisysgd import {name}" not in path.read_text(), path


def test_public_names_resolve():
    import noisysgd.simulators
    import noisysgd.theory
    import noisysgd.validation

    for package in (noisysgd.theory, noisysgd.simulators, noisysgd.validation):
        assert len(set(package.__all__)) == len(package.__all__)
        for name in package.__all__:
            assert getattr(package, name) is not None


def test_design_names_exist():
    """The public contract of this version."""
    from noisysgd import simulators, theory, validation

    for package, names in {
        theory: "NoisyQuadratic power_law Schedule constant half_then_decay initial_to_final warmup piecewise "
        "EpochBudget StepBudget expected_loss loss_curve critical_learning_rate optimal_learning_rate regimes "
        "effective_learning_rate temperature optimum",
        simulators: "simulate",
        validation: "WideResNet GhostBatchNorm2d load_dataset train Sweep measure",
    }.items():
        assert set(names.split()) <= set(package.__all__)


def test_command_line_help_is_quick():
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    result = subprocess.run(
        [sys.executable, "-m", "noisysgd.validation.cli", "demo", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=True,
    )
    assert "--quick" in result.stdout


def test_packages_list_their_public_names_and_nothing_else():
    for package in (theory, simulators, validation):
        listed = [name for name in dir(package) if not name.startswith("_")]
        assert sorted(listed) == sorted({*package.__all__, *(("plots", "testing") if package is theory else ())})
        assert all(getattr(package, name) is not None for name in listed)
    with pytest.raises(AttributeError, match="no attribute 'plotz'"):
        _ = theory.plotz
