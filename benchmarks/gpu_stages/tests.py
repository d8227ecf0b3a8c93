"""The tests that need a GPU: whether all files of tests can be read, and whether the tests pass."""

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_stages.rows import NO_GPU, Order, Rows

ROOT = Path(__file__).resolve().parents[2]


def measure_all(order: Order, rows: Rows) -> None:
    """Collect the tests that need a GPU, then run them. Without one, see that some are found and skipped."""
    if importlib.util.find_spec("pytest") is None:
        return rows.add("pytest -m gpu", skipped="no pytest")
    rows.attempt("collection", lambda: collected(order))
    rows.attempt("pytest -m gpu", lambda: run_tests(order))
    return None


def collected(order: Order) -> dict[str, Any]:
    """Return how many tests are found, and which files cannot be read: an error there is no failure of a test."""
    found = run_pytest(order, max(order.left / 3, 1), "--collect-only")
    text = found.pop("text")
    number = re.search(r"^(\d+)(/\d+)? tests? collected", text, re.MULTILINE)
    unread = re.findall(r"^ERROR (\S+)", text, re.MULTILINE)
    return found | {"tests": int(number[1]) if number else 0, "unread": unread}


def run_tests(order: Order) -> dict[str, Any]:
    """Return counts, exit status and the end of the output; what there is of them if time is up first."""
    # Six processes where pytest-xdist is there.
    workers = ["-n", "6"] if importlib.util.find_spec("xdist") is not None and order.on_gpu else []
    found = run_pytest(order, max(order.left - 3, 1), "--durations=5", *workers)
    text = found.pop("text")
    row = found | {"counts": counts(text), "tail": text[-3000:]}
    return row if order.on_gpu else row | {"skipped": NO_GPU}


def run_pytest(order: Order, seconds: float, *options: str) -> dict[str, Any]:
    """Return exit status (None if time was up first), seconds and output of ``pytest -m gpu``."""
    # Elsewhere a warning is an error; here it would be one of whatever versions of libraries this machine has. A file
    # that cannot be read, for want of a library, does not keep the others from running.
    plain = ["-q", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    some = [] if order.on_gpu else ["tests/validation/training/test_late.py"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        command = [sys.executable, "-m", "pytest", *plain, f"--basetemp={folder}/pytest", *options, *some]
        start = time.perf_counter()
        with output.open("w", encoding="utf-8") as file:
            streams: dict[str, Any] = {"stdout": file, "stderr": subprocess.STDOUT}
            status: int | None = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = subprocess.call(command, cwd=ROOT, env=test_environment(order), timeout=seconds, **streams)
        text = output.read_text(encoding="utf-8", errors="replace")
    print(text, flush=True)
    return {"exit": status, "seconds": time.perf_counter() - start, "text": text}


def test_environment(order: Order) -> dict[str, str]:
    """Return the environment: on a GPU a skipped test has failed; nothing is inherited of a pytest that runs this."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return kept | ({"NOISYSGD_REQUIRE_GPU": "1"} if order.on_gpu else {})


def counts(output: str) -> dict[str, int]:
    r"""Return the numbers of tests in pytest's last line.

    >>> counts("...\n3 passed, 1 failed in 2.10s")
    {'passed': 3, 'failed': 1}
    """
    last = [line for line in output.splitlines() if re.search(r"\d+ \w+.* in [\d.]+s", line)]
    found = re.findall(r"(\d+) (passed|failed|errors?|skipped|deselected|xfailed)", last[-1]) if last else []
    return {kind: int(number) for number, kind in found}
