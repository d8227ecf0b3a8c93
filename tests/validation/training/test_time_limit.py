"""A run may be given a time limit: it then ends between two updates, or with its process, and goes on from there."""

import functools
import logging
import re
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import hanging_runs
import pytest
from torch import nn

from noisysgd.validation import RunStore, Sweep, TrainConfig, local_executor, run_one, train
from noisysgd.validation.sweeps import waiting
from noisysgd.validation.training import checkpoint as checkpoints
from noisysgd.validation.training.time_limit import OverdueError

CONFIG = TrainConfig(learning_rate=0.1, batch_size=64, steps=12, model="own", ghost_batch_size=1)


class Slow(nn.Linear):
    seconds = 0.05

    def forward(self, images):
        time.sleep(self.seconds)
        return super().forward(images.flatten(1))


def slow(config, data):
    return Slow(64, 10)


def test_a_run_ends_after_its_limit_and_goes_on_from_there(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    with pytest.raises(OverdueError, match=r"to end within 0\.2 s, took more, with [1-9]\d* of 12 steps done\. Its"):
        train(CONFIG, model=slow, checkpoint=path, time_limit=0.2)
    done = checkpoints.read(path)["step"]
    assert 0 < done < 12
    monkeypatch.setattr(Slow, "seconds", 0.0)
    assert train(CONFIG, model=slow, checkpoint=path)["train_loss"] == train(CONFIG, model=slow)["train_loss"]
    assert train(CONFIG, model=slow, time_limit=100)["status"] == "complete"


def test_a_limit_is_for_each_start_of_a_run(tmp_path):
    """So the same command, given again, always comes further."""
    path, steps = tmp_path / "run.pt", [0]
    while True:
        try:
            train(CONFIG, model=slow, checkpoint=path, time_limit=0.2)
            break
        except OverdueError:
            steps.append(checkpoints.read(path)["step"])
            assert steps[-1] > steps[-2]
    assert len(steps) > 1


@pytest.mark.parametrize("limit", [0, -1.0, float("inf"), float("nan"), "long", [1.0, 2.0]])
def test_limits_that_cannot_be_are_refused(limit, tmp_path):
    with pytest.raises(ValueError, match="time_limit: expected"):
        train(CONFIG, model=slow, time_limit=limit)
    with pytest.raises(ValueError, match="time_limit: expected"):
        run_one(RunStore(tmp_path), CONFIG, time_limit=limit)


def sweep(name="hanging_runs:network", seeds=3):
    base = CONFIG.with_(model=name, steps=4)
    return Sweep(base=base, batch_sizes=[64], momenta=[0.0], exponents=[-3], seeds=seeds, bracket=None)


@pytest.mark.slow
def test_a_run_that_hangs_is_ended_with_its_process_and_the_others_finish(tmp_path):
    store, plan = RunStore(tmp_path), sweep()
    with pytest.raises(OverdueError, match=r"1 of 3 runs exceeded their time limit\..*an update hung until"):
        plan.run(store, lambda: local_executor(2), work=hanging_runs.work)
    assert sorted(record["config"]["seed"] for record in plan.state(store).found) == [0, 2]


def test_slow_runs_are_named_when_the_others_are_finished(tmp_path, monkeypatch):
    plan, store, seen = sweep(seeds=4), RunStore(tmp_path), []

    def work(store, config):
        seen.append(config.seed)
        if config.seed in (1, 2):
            raise OverdueError(f"run {config.key}: too slow")
        store.write({"config": config.as_dict(), "status": "complete", "train_loss": 1.0})

    with ThreadPoolExecutor(2) as pool, pytest.raises(OverdueError, match=r"2 of 4 runs .*: too slow"):
        plan.run(store, pool, work=work)
    assert sorted(seen) == [0, 1, 2, 3]
    assert len(plan.state(store).found) == 2


def test_a_sweep_in_which_no_run_finishes_says_so_more_and_more_rarely(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(waiting, "SILENCE", 0.05)
    store, (config, *_) = RunStore(tmp_path), sweep().plan()
    one, other = Future(), Future()
    with caplog.at_level(logging.WARNING):
        threading.Timer(1.0, one.set_result, [True]).start()
        threading.Timer(1.2, other.set_result, [True]).start()
        with store.claim(config):
            assert list(waiting.as_they_finish({one: config, other: config}, store)) == [one, other]
    said = [record.message for record in caplog.records]
    # After 0.05, 0.15, 0.35 and 0.75 s; then twice more after the first has finished. A busy machine may say less.
    assert 2 <= len(said) <= 7
    assert f"; under way: {config.key} (B = 64, ε = 0.125, m = 0, seed" in said[0]
    assert said[0].startswith("no run has finished for 0.")
    assert "no checkpoint yet" in said[0]


def test_runs_that_never_began_are_no_runs_under_way(tmp_path):
    assert waiting.in_words(RunStore(tmp_path), sweep().plan()) == "none is under way: look whether workers could start"


def test_checkpoints_are_dated(tmp_path):
    store, (config, *_) = RunStore(tmp_path), sweep().plan()
    assert store.begun(config) == (None, None)
    with store.claim(config) as working:
        (working / "checkpoint.pt").write_bytes(b"x")
        begun, saved = store.begun(config)
        assert 0 <= saved < 60
        assert 0 <= begun < 60
        assert re.search(r"last checkpoint \d+\.\d s ago", waiting.in_words(store, [config]))


def test_a_note_of_an_ended_process_is_read_once(tmp_path):
    store, (config, *_) = RunStore(tmp_path), sweep().plan()
    with store.claim(config) as working:
        (working / "overdue").write_text("hung")
    assert [store.overdue(config), store.overdue(config)] == ["hung", None]


def test_the_work_of_a_sweep_may_carry_the_limit(tmp_path):
    work, store = functools.partial(run_one, time_limit=0.001), RunStore(tmp_path)
    base = TrainConfig(learning_rate=0.1, batch_size=64, steps=40)
    plan = Sweep(base=base, batch_sizes=[64], momenta=[0.0], exponents=[-3], seeds=2, bracket=None)
    with ThreadPoolExecutor(1) as pool, pytest.raises(OverdueError, match="2 of 2 runs"):
        plan.run(store, pool, work=work)
