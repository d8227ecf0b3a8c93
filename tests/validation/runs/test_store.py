"""The run store: whole records or none, whoever is interrupted."""

import errno
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import xarray as xr

from noisysgd.theory.common.files import write_text
from noisysgd.validation import RunStore, Sweep, TrainConfig, local_executor, run_one

CONFIG = TrainConfig(learning_rate=0.5, batch_size=64, steps=3)
RECORD = {"config": CONFIG.as_dict(), "status": "complete", "train_loss": 0.1 + 0.2}


def test_a_record_comes_back_exactly(tmp_path):
    store = RunStore(tmp_path)
    store.write(RECORD)
    assert store.read(CONFIG) == RECORD
    assert store.read(CONFIG.with_(seed=1)) is None
    assert [p.name for p in tmp_path.iterdir()] == [CONFIG.key]


def test_the_name_of_a_run_is_its_configuration_alone():
    """Pinned: a change here orphans every stored run."""
    assert CONFIG.key == "119936ed973dbd08"
    assert CONFIG.with_(seed=1).key != CONFIG.key
    assert TrainConfig.from_dict(json.loads(json.dumps(CONFIG.as_dict()))).key == CONFIG.key
    assert CONFIG.with_(learning_rate=1, batch_size=64.0).key == CONFIG.with_(learning_rate=1.0).key


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "other", "not json", "not text"])
def test_a_damaged_record_counts_as_none_and_is_kept_aside(tmp_path, damage, caplog):
    store = RunStore(tmp_path)
    store.write(RECORD)
    path = store.path(CONFIG) / "record.json"
    text = path.read_text()
    path.write_bytes(
        {
            "truncate": text[: len(text) // 2].encode(),
            "flip": text.replace("complete", "complote").encode(),
            "empty": b"",
            "other": text.replace("64", "65").encode(),
            "not json": b"[]",
            "not text": b"\xff\xfe\x00",
        }[damage]
    )
    assert store.read(CONFIG) is None
    assert "the run will be repeated" in caplog.text
    store.write(RECORD)
    assert store.read(CONFIG) == RECORD
    assert len(list(tmp_path.glob(".damaged-*"))) == 1


def test_of_a_damaged_record_one_warning_is_enough(tmp_path, caplog):
    """However often a sweep looks at it, before and after a process has taken the store along."""
    store = RunStore(tmp_path)
    sweep = Sweep(base=CONFIG, batch_sizes=[64], momenta=[0.0], exponents=[-1], seeds=1, bracket=None)
    (config,) = sweep.plan()
    store.write(RECORD | {"config": config.as_dict()})
    path = store.path(config) / "record.json"
    path.write_text(path.read_text().replace("complete", "complote"))
    sweep.state(store)
    with ThreadPoolExecutor(1) as executor:
        sweep.run(store, executor, work=lambda store, config: run_one(pickle.loads(pickle.dumps(store)), config))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(path) in caplog.text
    path.write_text(path.read_text().replace("complete", "complote"))
    assert store.read(config) is None
    assert len(caplog.records) == 2, "damaged anew, warned anew"


@pytest.mark.parametrize(
    ("name", "value"), [("train_loss", "x"), ("status", "weird"), ("status", ["complete"]), ("seconds", True)]
)
def test_a_whole_record_that_says_what_none_can_is_damaged_and_named(tmp_path, caplog, name, value):
    """Its checksum is right: somebody wrote it with another program."""
    store = RunStore(tmp_path)
    store.write(RECORD | {name: value})
    assert store.read(CONFIG) is None
    (warning,) = caplog.records
    assert warning.getMessage().startswith(f"{store.path(CONFIG) / 'record.json'}: damaged record ({name} {value!r})")
    sweep = Sweep(base=CONFIG, batch_sizes=[64], momenta=[0.0], exponents=[-1], seeds=1, bracket=None)
    assert sweep.state(store).found == []
    store.write(RECORD)
    assert store.read(CONFIG) == RECORD


def test_what_a_driver_killed_after_its_last_record_left_is_removed(tmp_path):
    """But not the directory of a run that a process has under way, or of one that is not finished."""
    store = RunStore(tmp_path)
    sweep = Sweep(base=CONFIG, batch_sizes=[64], momenta=[0.0], exponents=[-1, 0, 1], seeds=1, bracket=None)
    first, second, third = sweep.plan()
    for config in (first, second):
        (tmp_path / f".running-{config.key}").mkdir()
        (tmp_path / f".running-{config.key}" / "checkpoint.pt").write_text("last")
        store.write(RECORD | {"config": config.as_dict()})
    (tmp_path / f".running-{third.key}").mkdir()
    with RunStore(tmp_path).claim(second):
        store.tidy(sweep.plan())
        assert {path.name for path in store.leftovers()} == {f".running-{c.key}" for c in (second, third)}
    with ThreadPoolExecutor(1) as executor:
        sweep.run(store, executor, work=pretend)
    assert store.leftovers() == []
    (tmp_path / f".running-{first.key}").mkdir()
    sweep.run(store, lambda: pytest.fail("nothing is to be run"))
    assert store.leftovers() == []


def test_a_full_disk_is_named_with_a_remedy(tmp_path, monkeypatch):
    store = RunStore(tmp_path)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail_in_claim():
        with store.claim(CONFIG):
            full()  # as a checkpoint might

    message = re.escape(f"{tmp_path}: {os.strerror(errno.ENOSPC)}. Make room there; the same command goes on")
    with pytest.raises(OSError, match=message):
        fail_in_claim()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=message) as caught:
        store.write(RECORD)
    assert caught.value.errno == errno.ENOSPC
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(OSError, match=r"plan\.toml: .* Make room there"):
        write_text(tmp_path / "plan.toml", "x")


def test_an_emptied_record_is_simply_written_again(tmp_path):
    store = RunStore(tmp_path)
    store.write(RECORD)
    (store.path(CONFIG) / "record.json").unlink()
    assert store.read(CONFIG) is None
    store.write(RECORD)
    assert store.read(CONFIG) == RECORD


def test_a_record_of_another_format_is_refused_and_kept(tmp_path):
    store = RunStore(tmp_path)
    store.write(RECORD)
    path = store.path(CONFIG) / "record.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match="a record of format 1, got 2"):
        store.read(CONFIG)
    assert path.exists()


def test_readers_never_disturb_a_writer(tmp_path):
    """A reader that looks while records appear sees none or all of each, and all of them stay."""
    store = RunStore(tmp_path)
    configs = [CONFIG.with_(seed=seed) for seed in range(200)]
    stop = threading.Event()

    def poll():
        while not stop.is_set():
            for config in configs:
                record = store.read(config)
                assert record is None or record["config"] == config.as_dict()

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(poll) for _ in range(2)]
        for config in configs:
            store.write(RECORD | {"config": config.as_dict()})
        stop.set()
        for reader in readers:
            reader.result()
    assert all(store.read(config) is not None for config in configs)
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_write_leaves_nothing_that_a_read_accepts(tmp_path, monkeypatch):
    store = RunStore(tmp_path)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.write(RECORD)
    assert store.read(CONFIG) is None
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_writers_wins(tmp_path):
    store = RunStore(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: store.write(RECORD | {"writer": k}), range(16)))
    first = store.read(CONFIG)
    store.write(RECORD | {"writer": 99})
    assert store.read(CONFIG) == first
    assert len(list(tmp_path.iterdir())) == 1


def loss_of(config):
    """A made-up loss with its minimum at an effective learning rate of 2^3, which a window from 2^-1 to 2^1 misses."""
    return (np.log2(config.effective_learning_rate) - 3) ** 2 + 0.01 * config.seed


def pretend(store, config):
    status = "diverged" if config.effective_learning_rate > 20 else "complete"
    metrics = dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy"))
    if status == "complete":
        metrics = dict.fromkeys(metrics, loss_of(config))
    store.write({"config": config.as_dict(), "status": status, **metrics})


def test_a_sweep_grows_until_its_optimum_is_bracketed(tmp_path):
    sweep = Sweep(base=CONFIG, batch_sizes=[64], momenta=[0.0, 0.9], exponents=range(-1, 2), seeds=2, keep=2)
    seen = []
    with ThreadPoolExecutor(1) as executor:
        dataset = sweep.run(RunStore(tmp_path), executor, work=pretend, progress=lambda *a: seen.append(a))
    effective = np.log2(dataset.effective_learning_rate.where((dataset.status != 0).any("seed")).isel(batch_size=0))
    for k in range(2):
        tried = effective[k].values
        np.testing.assert_allclose(tried[np.isfinite(tried)], [-1, 0, 1, 2, 3, 4], atol=1e-9)
    assert seen[-1][0] == seen[-1][1] == 2 * 2 * 6
    assert seen[-1][2] == pytest.approx(1.0)


def test_a_sweep_with_no_room_left_stops_unbracketed(tmp_path):
    sweep = Sweep(base=CONFIG, batch_sizes=[64], momenta=[0.0], exponents=[-1, 0], seeds=1, extensions=1)
    with ThreadPoolExecutor(1) as executor:
        dataset = sweep.run(RunStore(tmp_path), executor, work=pretend)
    assert dataset.sizes["learning_rate"] == 3


def test_one_failing_run_stops_the_sweep_and_loses_nothing(tmp_path):
    store = RunStore(tmp_path)
    sweep = Sweep(base=CONFIG, batch_sizes=[64], momenta=[0.0], exponents=range(3), seeds=1, bracket=None)

    def fail_at_one(store, config):
        if config.learning_rate == 1.0:
            raise OSError("no space left on device")
        pretend(store, config)

    with ThreadPoolExecutor(1) as executor, pytest.raises(OSError, match="no space left"):
        sweep.run(store, executor, work=fail_at_one)
    with ThreadPoolExecutor(1) as executor:
        assert (sweep.run(store, executor, work=pretend).status == 1).all()


KILLED = """
import sys
from noisysgd.theory.common.files import write_text
from noisysgd.validation import RunStore, Sweep, TrainConfig, local_executor, run_one
from test_sweep_definition import sweep
if __name__ == "__main__":
    with local_executor(workers=2) as executor:
        sweep.run(RunStore(sys.argv[1]), executor, work=run_one)
"""
DEFINITION = """
from noisysgd.validation import Sweep, TrainConfig
sweep = Sweep(
    base=TrainConfig(learning_rate=1.0, batch_size=64, steps=30),
    batch_sizes=[32, 64], momenta=[0.0, 0.9], exponents=[-2, 0], seeds=2, bracket=None,
)
"""


def running(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 exists on POSIX systems only")
def test_kill_9_in_mid_sweep_then_resume(tmp_path):
    """The resumed sweep's dataset is that of an undisturbed one, bit for bit, and no worker outlives its parent."""
    (tmp_path / "killed.py").write_text(KILLED)
    (tmp_path / "test_sweep_definition.py").write_text(DEFINITION)
    root = tmp_path / "runs"
    process = subprocess.Popen([sys.executable, str(tmp_path / "killed.py"), str(root)], cwd=tmp_path)
    deadline = time.monotonic() + 120
    while len(list(root.glob("[0-9a-f]*"))) < 3:
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    process.kill()
    process.wait()
    while any(map(running, workers)):
        assert time.monotonic() < deadline, "a worker outlived its killed parent"
        time.sleep(0.02)
    finished = len(list(root.glob("[0-9a-f]*")))
    assert 3 <= finished < 16

    sweep = Sweep(
        base=TrainConfig(learning_rate=1.0, batch_size=64, steps=30),
        batch_sizes=[32, 64],
        momenta=[0.0, 0.9],
        exponents=[-2, 0],
        seeds=2,
        bracket=None,
    )
    store = RunStore(root)
    assert (sweep.dataset(store).status != 0).sum() == finished
    stamps = {path: path.stat().st_mtime_ns for path in root.glob("[0-9a-f]*/record.json")}
    with local_executor(workers=2) as executor:
        resumed = sweep.run(store, executor, work=run_one)
        undisturbed = sweep.run(RunStore(tmp_path / "other"), executor, work=run_one)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()), "a finished run was repeated"
    xr.testing.assert_identical(resumed, undisturbed)
