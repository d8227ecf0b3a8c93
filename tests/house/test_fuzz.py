"""No public function crashes, hangs or fails without words, whatever it is given."""

import os
import subprocess
import sys
from pathlib import Path

import fuzzing
import pytest

CALLS, SEED = 10_000, 1
MOST_DEATHS = 5
"""After so many calls that ended their process there is enough to look at."""
ENVIRONMENT = {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}


def faults(log: Path, first: int, last: int) -> tuple[list[str], int]:
    """What the calls of these numbers did that no call may, and the number of the first that was not made."""
    helper = str(Path(fuzzing.__file__))
    command = [sys.executable, helper, str(SEED), str(first), str(last), str(log)]
    path = os.pathsep.join(filter(None, [str(Path(helper).parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": path},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    found, call, number = [], "no call", first - 1
    for line in log.read_text(encoding="utf-8").splitlines():
        if line[:1].isdigit():
            number, call = int(line.partition(" ")[0]), line
        elif line.startswith("FAULT"):
            found.append(f"{call}\n    {line}")
    if done.returncode:
        found.append(f"{call}\n    ended the process with {done.returncode}: {done.stderr[-2000:]}")
    return found, number + 1


def test_every_public_function_is_called_or_said_why_not() -> None:
    names = {f"{prefix}.{name}" for prefix, package in fuzzing.ROOTS.items() for name in package.__all__}
    called = {name for name in names if callable(fuzzing.function(name))}
    assert called - set(fuzzing.EXEMPT) == set(fuzzing.GOOD) & names
    assert set(fuzzing.EXEMPT) <= names


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_public_function_crashes_hangs_or_fails_without_words(tmp_path: Path) -> None:
    """Ten thousand calls, the same each time, in a process that may die of one and is started again behind it."""
    found: list[str] = []
    first, deaths = 0, 0
    while first < CALLS and deaths < MOST_DEATHS:
        new, first = faults(tmp_path / f"log-{deaths}.txt", first, CALLS)
        found, deaths = found + new, deaths + 1
    assert not found, f"{len(found)} calls:\n" + "\n".join(found[:40])
    assert first == CALLS


@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        (ValueError("x: expected 1, got 2. Pass 1."), False),
        (TypeError("x: expected 1, got 2. Pass 1."), False),
        (FileNotFoundError(2, "No such file", "x"), False),
        (ValueError("math domain error"), True),
        (AttributeError("x: expected 1, got 2. Pass 1."), True),
        (MemoryError(), True),
        (KeyboardInterrupt(), True),
        (ValueError("expected " + 3000 * "x"), True),
    ],
)
def test_what_counts_as_a_failure_without_words(monkeypatch: pytest.MonkeyPatch, what: Exception, wrong: bool) -> None:
    def fails(**_: object) -> None:
        raise what

    monkeypatch.setattr(fuzzing, "function", lambda _: fails)
    assert (fuzzing.fault("theory.constant", {"steps": "1"}) is not None) is wrong


def test_a_call_that_ends_its_process_is_a_fault_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killer = tmp_path / "killer.py"
    killer.write_text(
        "import os, sys\nopen(sys.argv[4], 'w').write('7 theory.f(x=1)\\n')\nos.kill(os.getpid(), 11)\n", "utf-8"
    )
    monkeypatch.setattr(fuzzing, "__file__", str(killer))
    (found,), following = faults(tmp_path / "log.txt", 0, 10)
    assert found.startswith("7 theory.f(x=1)\n    ended the process with -11")
    assert following == 8
