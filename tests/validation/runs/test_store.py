"""The run store: whole records or none, whoever is interrupted."""

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import torch
import xarray as xr

from noisysgd.theory.common.files import read_regular, write_text
from noisysgd.theory.sweeps.dataset import COMPLETE, DIVERGED
from noisysgd.validation import RunStore, Sweep, TrainConfig, local_executor, run_one, train
from noisysgd.validation.runs import index, records
from noisysgd.validation.runs import store as store_module
from noisysgd.validation.runs.records import encode
from noisysgd.validation.training.loop import TrainingRun

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


IMPOSSIBLE = [
    ("train_loss", "x"),
    ("train_loss", float("nan")),
    ("train_loss", float("inf")),
    ("train_loss", -0.1),
    ("test_loss", float("nan")),
    ("test_accuracy", 99),
    ("test_accuracy", 1.0000001),
    ("train_accuracy", -0.1),
    ("steps", 0.5),
    ("steps", -1),
    ("seconds", True),
    ("seconds", -1.0),
    ("seconds", 10**400),
    ("l2_term", 10**400),
    ("status", "weird"),
    ("status", ["complete"]),
]


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE)
def test_a_whole_record_that_says_what_none_can_is_damaged_and_named(tmp_path, caplog, name, value):
    """Its checksum is right: somebody wrote it with another program. The store itself writes none."""
    store = RunStore(tmp_path)
    with pytest.raises(ValueError, match="record: expected a result that a run can have, got"):
        store.write(RECORD | {name: value})
    assert list(tmp_path.iterdir()) == []
    store.write(RECORD)
    (store.path(CONFIG) / "record.json").write_bytes(encode(RECORD | {name: value}))
    assert store.read(CONFIG) is None
    (warning,) = caplog.records
    assert warning.getMessage().startswith(f"{store.path(CONFIG) / 'record.json'}: damaged record ({name} ")
    assert repr(value)[:100] in warning.getMessage()
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


def test_a_record_of_another_format_is_refused_and_kept(tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    monkeypatch.setattr(records, "FORMAT", 3)
    store.write(RECORD)
    monkeypatch.undo()
    path = store.path(CONFIG) / "record.json"
    for read in (store.read, lambda config: store.read_many([config])):
        with pytest.raises(ValueError, match=r"record\.json: expected a record of format 2, got 3\. Use the version"):
            read(CONFIG)
    assert path.exists()


def test_a_format_that_damage_made_is_no_other_version(tmp_path):
    """The checksum covers it: a flipped bit must not stop a sweep with advice to use another version."""
    store = RunStore(tmp_path)
    store.write(RECORD)
    path = store.path(CONFIG) / "record.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 3'))
    assert store.read(CONFIG) is None


def test_records_of_the_first_format_are_read(tmp_path):
    store = RunStore(tmp_path)
    body = json.dumps(RECORD, sort_keys=True)
    store.path(CONFIG).mkdir()
    payload = {"format": 1, "sha256": hashlib.sha256(body.encode()).hexdigest(), "record": body}
    (store.path(CONFIG) / "record.json").write_text(json.dumps(payload, indent=1))
    assert store.read(CONFIG) == RECORD


def test_a_flipped_bit_in_a_record_is_found_or_changes_nothing(tmp_path):
    store = RunStore(tmp_path)
    store.write(RECORD)
    path = store.path(CONFIG) / "record.json"
    whole = path.read_bytes()
    for place in np.random.default_rng(0).choice(8 * len(whole), 1500, replace=False):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        assert store.read(CONFIG) in (None, RECORD), place


def make_pipe(path):
    os.mkfifo(path)


def make_endless_link(path):
    path.symlink_to("/dev/zero")


def make_circle(path):
    path.symlink_to(path)


def make_sparse(path):
    with path.open("wb") as file:
        file.truncate(2**31)


def written(content):
    """A function that makes a file with this content."""

    def write(path):
        path.write_bytes(content)

    return write


def signed(body):
    """The file of a record whose checksum is right, whatever the record is."""
    digest = hashlib.sha256(f"record 2\n{body}".encode()).hexdigest()
    return json.dumps({"format": 2, "sha256": digest, "record": body}).encode()


BAD = {
    "pipe": make_pipe,
    "link to an endless file": make_endless_link,
    "link to itself": make_circle,
    "folder": lambda path: path.mkdir(),
    "two sparse gigabytes": make_sparse,
    "nested too deep": written(b"[" * 200_000),
    "nested too deep and signed": written(signed("[" * 200_000)),
    "number of 400 digits": written(signed(json.dumps(RECORD | {"steps": 10**400}))),
    "number of 5000 digits": written(signed(json.dumps(RECORD)[:-1] + ', "steps": 1' + "0" * 5000 + "}")),
    "list": written(signed("[]")),
    "nothing": written(signed("null")),
    "strange format": written(json.dumps({"format": [], "sha256": {}, "record": 3}).encode()),
    "configuration of another kind": written(signed(json.dumps(RECORD | {"config": [1]}))),
    "configuration of strange values": written(signed(json.dumps(RECORD | {"config": {"learning_rate": {}}}))),
    "other encoding": written(json.dumps(RECORD).encode("utf-16")),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes and links")
@pytest.mark.parametrize("kind", BAD)
def test_whatever_stands_in_the_place_of_a_record_is_none_and_moved_aside(tmp_path, kind, caplog):
    """And stops nothing: the other runs of a sweep are read as before."""
    store, other = RunStore(tmp_path), CONFIG.with_(seed=1)
    store.write(RECORD | {"config": other.as_dict()})
    store.path(CONFIG).mkdir()
    BAD[kind](store.path(CONFIG) / "record.json")
    assert store.read(CONFIG) is None
    assert list(store.read_many([CONFIG, other])) == [other.key]
    assert "the run will be repeated" in caplog.text
    store.write(RECORD)
    assert store.read(CONFIG) == RECORD
    assert [path.name[:9] for path in store.leftovers()] == [".damaged-"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes and links")
@pytest.mark.parametrize("make", [make_pipe, make_circle, make_endless_link, written(b"")])
def test_whatever_stands_in_the_place_of_a_records_folder_is_moved_aside(tmp_path, make):
    store = RunStore(tmp_path)
    make(store.path(CONFIG))
    assert store.read(CONFIG) is None
    store.write(RECORD)
    assert store.read(CONFIG) == RECORD


def test_a_record_too_large_to_be_read_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "LARGEST", 1000)
    with pytest.raises(ValueError, match="record: expected at most 1000 bytes, got"):
        RunStore(tmp_path).write(RECORD | {"note": "x" * 1000})
    assert list(tmp_path.iterdir()) == []


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


# Many records


@pytest.fixture
def indexed(tmp_path, monkeypatch):
    """A store with records that have settled, and an index of them; and their configurations."""
    store, configs = RunStore(tmp_path), [CONFIG.with_(seed=seed) for seed in range(index.LEAST + 20)]
    for config in configs:
        store.write(RECORD | {"config": config.as_dict(), "train_loss": 1.0 + config.seed})
    monkeypatch.setattr(index, "SETTLED_NANOSECONDS", 0)
    time.sleep(0.01)
    assert len(store.read_many(configs)) == len(configs)
    assert (tmp_path / ".index").exists()
    return store, configs


def from_files(store, configs):
    """What the records themselves say."""
    return {config.key: record for config in configs if (record := store.read(config)) is not None}


def counted_reads(store, monkeypatch):
    """The paths of the records that are read themselves from now on."""
    read = []
    monkeypatch.setattr(store_module, "read_regular", lambda path, most: read.append(path) or read_regular(path, most))
    return read


def test_records_that_are_indexed_are_not_read_one_by_one(indexed, monkeypatch):
    store, configs = indexed
    truth = from_files(store, configs)
    read = counted_reads(store, monkeypatch)
    assert store.read_many(configs) == truth
    assert read == []
    assert store.read_many(configs)[configs[0].key] is not store.read_many(configs)[configs[0].key]


def test_every_change_of_a_record_shows_whatever_the_index_says(indexed):
    """Of its size; of its contents alone; with the time of the last change set back; gone; or damaged."""
    store, configs = indexed
    for number, config in enumerate(configs[:5]):
        folder, before = store.path(config), (store.path(config) / "record.json").stat()
        changed = encode(RECORD | {"config": config.as_dict(), "train_loss": 9.0 if number else 123456.0})
        if number < 3:
            (folder / "record.json").write_bytes(changed)
        if number == 2:
            os.utime(folder / "record.json", ns=(before.st_atime_ns, before.st_mtime_ns))
            assert (folder / "record.json").stat().st_size == before.st_size
        if number == 3:
            shutil.rmtree(folder)
        if number == 4:
            (folder / "record.json").write_bytes(changed.replace(b"complete", b"complote"))
    found = store.read_many(configs)
    assert found == from_files(store, configs)
    assert [found[config.key]["train_loss"] for config in configs[:3]] == [123456.0, 9.0, 9.0]
    assert not {configs[3].key, configs[4].key} & found.keys()


@pytest.mark.parametrize("kind", ["flip", "cut", "empty", "other version", "pipe", "folder", "link"])
def test_an_index_that_cannot_be_used_is_made_anew_and_changes_nothing(indexed, kind):
    store, configs = indexed
    truth, path = from_files(store, configs), store.root / ".index"
    content = bytearray(path.read_bytes())
    place = content.index(b'"train_loss": 1.0') + 15
    damaged = {
        "flip": content[:place] + b"7" + content[place + 1 :],
        "cut": content[:-100],
        "empty": b"",
        "other version": content.replace(b"index 1", b"index 9", 1),
    }
    path.unlink()
    if kind in damaged:
        path.write_bytes(damaged[kind])
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    for _ in range(2):
        assert store.read_many(configs) == truth
    if kind in damaged:
        assert path.read_bytes() == bytes(content)


def test_an_index_keeps_the_runs_of_other_sweeps_and_forgets_those_that_are_gone(indexed):
    store, configs = indexed
    more = [CONFIG.with_(seed=1000 + seed) for seed in range(2 * index.LEAST)]
    for config in more:
        store.write(RECORD | {"config": config.as_dict()})
    shutil.rmtree(store.path(configs[0]))
    time.sleep(0.01)
    store.read_many(more)
    assert index.read_index(store.root).keys() == {config.key for config in (*configs[1:], *more)}


def test_a_record_that_could_change_within_a_tick_of_the_clock_is_not_indexed(tmp_path):
    store, configs = RunStore(tmp_path), [CONFIG.with_(seed=seed) for seed in range(index.LEAST)]
    for config in configs:
        store.write(RECORD | {"config": config.as_dict()})
    assert len(store.read_many(configs)) == len(configs)
    assert not (tmp_path / ".index").exists()


def test_a_store_that_can_only_be_read_is_read_without_an_index(indexed, monkeypatch):
    store, configs = indexed
    (store.root / ".index").unlink()

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(index, "write_whole", refuse)
    assert store.read_many(configs) == from_files(store, configs)


# File systems without locks


def no_locks(descriptor, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def locks_that_lock_nothing(descriptor, operation):
    pass


@pytest.fixture(params=[no_locks, locks_that_lock_nothing])
def lockless(request, monkeypatch, tmp_path):
    """A store on a file system on which every process is given every lock."""
    if store_module.fcntl is None:
        pytest.skip("there are no locks here anyway")
    monkeypatch.setattr(store_module.fcntl, "flock", request.param)
    return RunStore(tmp_path)


@pytest.mark.parametrize("moment", ["before the first checkpoint", "between two", "while one is written"])
def test_without_locks_a_run_ends_well_though_another_driver_ends_it_first(lockless, moment, monkeypatch, caplog):
    """The other one's record stays, and removes the folder of checkpoints under the hands of this one."""
    config, other, updates = CONFIG.with_(steps=6), RunStore(lockless.root), []
    straight = train(config)
    advance, save = TrainingRun.advance, torch.save

    def finish_elsewhere():
        with other.claim(config) as working:
            assert working is not None, "no lock keeps it away"
            other.write(straight | {"writer": "other"})
        assert not working.exists()

    def advance_and_finish(run):
        updates.append(run.step)
        if run.step == {"before the first checkpoint": 0, "between two": 3}.get(moment):
            finish_elsewhere()
        advance(run)

    def save_and_finish(payload, file):
        save(payload, file)
        if moment == "while one is written" and len(updates) == 3 and other.read(config) is None:
            finish_elsewhere()

    monkeypatch.setattr(TrainingRun, "advance", advance_and_finish)
    monkeypatch.setattr(torch, "save", save_and_finish)
    assert run_one(lockless, config, checkpoint_every=1)
    assert updates == [0, 1, 2, 3, 4, 5]
    assert lockless.read(config)["writer"] == "other"
    assert lockless.leftovers() == []
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


LOCKLESS = """
import fcntl, sys
from noisysgd.validation import RunStore, TrainConfig, run_one
fcntl.flock = lambda descriptor, operation: None
store = RunStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for seed in range(3):
    config = TrainConfig(learning_rate=0.5, batch_size=64, steps=12, seed=seed)
    assert run_one(store, config, checkpoint_every=1)
"""


@pytest.mark.slow
def test_without_locks_drivers_that_race_end_well_and_leave_the_records_alone(tmp_path):
    command = [sys.executable, "-c", LOCKLESS, str(tmp_path / "runs")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    drivers = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for driver in drivers:
        assert driver.stdout.readline() == "ready\n"
    for driver in drivers:
        driver.stdin.write("go\n")
        driver.stdin.flush()
    for driver in drivers:
        _, errors = driver.communicate(timeout=120)
        assert driver.returncode == 0, errors
    store = RunStore(tmp_path / "runs")
    for seed in range(3):
        config = TrainConfig(learning_rate=0.5, batch_size=64, steps=12, seed=seed)
        assert store.read(config)["train_loss"] == train(config)["train_loss"]
        store.tidy([config])
    assert store.leftovers() == []


def loss_of(config):
    """A made-up loss with its minimum at an effective learning rate of 2^3, which a window from 2^-1 to 2^1 misses."""
    return (np.log2(config.effective_learning_rate) - 3) ** 2 + 0.01 * config.seed


def pretend(store, config):
    status = "diverged" if config.effective_learning_rate > 20 else "complete"
    metrics = dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy"))
    if status == "complete":
        metrics |= dict.fromkeys(("train_loss", "test_loss"), loss_of(config))
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
from noisysgd.theory.common.files import read_regular, write_text
from noisysgd.validation.runs import index, records
from noisysgd.validation.runs import store as store_module
from noisysgd.validation.runs.records import encode
from noisysgd.validation.training.loop import TrainingRun
from noisysgd.validation import RunStore, Sweep, TrainConfig, local_executor, run_one, train
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
    assert sweep.dataset(store).status.isin([COMPLETE, DIVERGED]).sum() == finished
    stamps = {path: path.stat().st_mtime_ns for path in root.glob("[0-9a-f]*/record.json")}
    with local_executor(workers=2) as executor:
        resumed = sweep.run(store, executor, work=run_one)
        undisturbed = sweep.run(RunStore(tmp_path / "other"), executor, work=run_one)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()), "a finished run was repeated"
    xr.testing.assert_identical(resumed, undisturbed)
