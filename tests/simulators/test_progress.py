"""The line that says how much longer: what it says, how often, and when it is silent."""

import io
import re

import pytest

from noisysgd import simulators, theory
from noisysgd.simulators import TimeLeft
from noisysgd.simulators.progress import duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def lines(stream: io.StringIO) -> list[str]:
    """What was written, without the blanks that cover what was there before."""
    return [re.sub(" +$", "", line, flags=re.MULTILINE) for line in stream.getvalue().split("\r")[1:]]


def test_the_time_left_is_in_proportion_to_the_work_left() -> None:
    stream, clock = Terminal(), Clock()
    line = TimeLeft(stream=stream, clock=clock)
    clock.now += 42
    line(42, 100)
    clock.now += 57
    line(99, 100)
    clock.now += 1
    line(100, 100)
    assert lines(stream) == [" 42 % · 58 s left", " 99 % · 1 s left", "100 % · 1 min 40 s\n"]


def test_it_is_written_at_most_five_times_a_second_but_always_at_the_end() -> None:
    stream, clock = Terminal(), Clock()
    line = TimeLeft(stream=stream, clock=clock)
    for done in range(1, 1001):
        clock.now += 0.001
        line(done, 1000)
    assert len(lines(stream)) <= 6
    assert lines(stream)[-1] == "100 % · 1 s\n"


def test_a_shorter_line_covers_a_longer_one() -> None:
    stream, clock = Terminal(), Clock()
    line = TimeLeft(stream=stream, clock=clock)
    for done in (0.001, 0.02, 0.5, 1.0):
        clock.now += 100
        line(done)
    shown = ""
    for each in stream.getvalue().rstrip("\n").split("\r")[1:]:
        shown = each + shown[len(each) :]
        assert shown.rstrip() == each.rstrip()


def test_it_begins_anew_after_the_end() -> None:
    stream, clock = Terminal(), Clock()
    line = TimeLeft(stream=stream, clock=clock)
    for _ in range(2):
        clock.now += 10
        line(1, 2)
        clock.now += 10
        line(2, 2)
    assert lines(stream) == [" 50 % · 10 s left", "100 % · 20 s\n"] * 2


def test_nothing_done_says_nothing() -> None:
    stream = Terminal()
    TimeLeft(stream=stream)(0, 10)
    assert stream.getvalue() == ""


def test_it_is_silent_unless_on_a_terminal_or_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet, loud = io.StringIO(), io.StringIO()
    TimeLeft(stream=quiet)(1, 1)
    TimeLeft(stream=loud, always=True)(1, 1)
    assert quiet.getvalue() == ""
    assert loud.getvalue() != ""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    TimeLeft()(1, 1)
    assert lines(terminal) == ["100 % · 0 s\n"]
    monkeypatch.setattr("sys.stderr", None)  # as in a program without a console
    TimeLeft()(1, 1)


def test_it_fits_both_simulators() -> None:
    stream, problem = Terminal(), theory.power_law(5)
    line = TimeLeft(stream=stream)
    simulators.simulate(problem, theory.constant(9), learning_rate=0.1, batch_size=1, replicas=300, progress=line)
    grid = {"batch_sizes": [1, 4], "effective_learning_rates": [0.25, 0.5]}
    simulators.simulate_sweep(problem, theory.StepBudget(20), **grid, seeds=2, replicas=8, progress=line)
    assert [each[:5] for each in lines(stream) if each.endswith("\n")] == ["100 %"] * 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.4, "0 s"),
        (59.0, "59 s"),
        (59.5, "1 min 0 s"),
        (60.0, "1 min 0 s"),
        (3599.0, "59 min 59 s"),
        (3600.0, "1 h 0 min"),
        (86399.0, "23 h 59 min"),
        (86400.0, "1 d 0 h"),
        (1e7, "115 d 17 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
