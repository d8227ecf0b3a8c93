"""Checkpoints: whole or not there; and k steps, a stop and the rest are a straight run, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from noisysgd.validation import TrainConfig, load_dataset, train
from noisysgd.validation.training import checkpoint
from noisysgd.validation.training import loop as training_module
from noisysgd.validation.training.loop import TrainingRun

CONFIG = TrainConfig(learning_rate=0.3, batch_size=32, momentum=0.9, steps=12, seed=3)
STATE = {"step": 3, "weights": torch.arange(5.0), "more": [None, True, 0.1, {"text": "α"}], "empty": torch.empty(0)}


def same(a: object, b: object) -> bool:
    """Equality of nests of tensors and plain types, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_a_checkpoint_comes_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "run.pt"
    checkpoint.write(path, STATE)
    assert same(checkpoint.read(path), STATE)
    assert [file.name for file in path.parent.iterdir()] == ["run.pt"]
    assert set(torch.load(path, weights_only=True)) == {"format", "digest", "state"}


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@given(plain, plain)
def test_digests_tell_different_states_apart(a: object, b: object) -> None:
    assert (checkpoint.digest({"x": a}) == checkpoint.digest({"x": b})) == (repr_of(a) == repr_of(b))


def repr_of(value: object) -> str:
    """A text that is the same for equal states: keys in order; 1, 1.0 and True apart."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{repr_of(value[key])}" for key in sorted(value)) + "}"
    return "[" + ",".join(map(repr_of, value)) + "]" if isinstance(value, list) else repr(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_digests_see_every_bit_type_and_shape(dtype: torch.dtype) -> None:
    zeros = torch.zeros(2, 3, dtype=dtype)
    changed = zeros.clone()
    changed[1, 2] = 1
    digests = [checkpoint.digest(t) for t in (zeros, changed, zeros.view(3, 2), zeros.to(torch.int8))]
    assert len(set(digests)) == 4
    assert checkpoint.digest(zeros.t().contiguous().t()) == digests[0]  # a layout is not a value


@pytest.mark.parametrize("value", [object(), {1: 2}, (1, 2), torch.nn.Linear(1, 1), {"deep": [{1, 2}]}])
def test_only_tensors_and_plain_types_are_written(tmp_path: Path, value: object) -> None:
    path = tmp_path / "run.pt"
    with pytest.raises(ValueError, match="state"):
        checkpoint.write(path, {"value": value})
    assert not list(tmp_path.iterdir())


def damaged(whole: bytes, kind: str) -> bytes:
    middle = whole.index(b"\x00\x00\x80?\x00\x00\x00@")  # the floats 1 and 2 of STATE
    return {
        "cut in half": whole[: len(whole) // 2],
        "last byte lost": whole[:-1],
        "empty": b"",
        "one bit": whole[: middle + 2] + b"\x90" + whole[middle + 3 :],
        "text": b"not a checkpoint",
        "zeros": bytes(len(whole)),
    }[kind]


@pytest.mark.parametrize("kind", ["cut in half", "last byte lost", "empty", "one bit", "text", "zeros"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run.pt"
    checkpoint.write(path, STATE)
    path.write_bytes(damaged(path.read_bytes(), kind))
    with pytest.raises(ValueError, match=r"run\.pt: expected .* Delete it to start the run over"):
        checkpoint.read(path)


def test_foreign_files_and_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    torch.save({"weights": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="damaged or foreign"):
        checkpoint.read(path)
    torch.save(torch.nn.Linear(1, 1), path)  # a pickle that would run code
    with pytest.raises(ValueError, match="damaged or foreign"):
        checkpoint.read(path)
    torch.save({"format": 99, "digest": checkpoint._signature(99, {}), "state": {}}, path)
    with pytest.raises(ValueError, match="a checkpoint of format 2, got 99"):
        checkpoint.read(path)


def test_checkpoints_of_the_first_format_are_read(tmp_path: Path) -> None:
    torch.save({"format": 1, "digest": checkpoint.digest(STATE), "state": STATE}, tmp_path / "run.pt")
    assert same(checkpoint.read(tmp_path / "run.pt"), STATE)


def nested(depth: int) -> list[object]:
    """A list in a list in a list."""
    inner: list[object] = []
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    "payload",
    [
        {"format": 2, "digest": "", "state": nested(5000)},
        {"format": 2, "digest": "", "state": {1: 2, "a": 3}},
        {"format": 2, "digest": torch.ones(2), "state": {}},
        {"format": torch.ones(2), "digest": checkpoint._signature(2, {}), "state": {}},
        {"format": 2, "digest": checkpoint._signature(2, []), "state": []},
        [1, 2],
        None,
    ],
    ids=["too deep", "mixed keys", "tensor as digest", "tensor as format", "list as state", "list", "nothing"],
)
def test_whatever_a_file_holds_it_is_unusable_and_no_other_error(tmp_path: Path, payload: object) -> None:
    sys.setrecursionlimit(limit := sys.getrecursionlimit())
    try:
        sys.setrecursionlimit(100_000)  # to write it
        torch.save(payload, tmp_path / "run.pt")
    finally:
        sys.setrecursionlimit(limit)
    with pytest.raises(checkpoint.UnusableError, match=r"run\.pt: expected a .*checkpoint"):
        checkpoint.read(tmp_path / "run.pt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_or_an_endless_file_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(checkpoint.UnusableError, match="expected a regular file"):
            checkpoint.read(tmp_path / name)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.pt"
    checkpoint.write(path, STATE)

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoint.write(path, {"step": 4})
    assert same(checkpoint.read(path), STATE)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_leavings_of_killed_writers_go_after_an_hour(tmp_path: Path) -> None:
    old, fresh, foreign = (tmp_path / f".{name}.partial" for name in ("run.pt.1", "run.pt.2", "other.pt.1"))
    for file in (old, fresh, foreign):
        file.write_bytes(b"half")
    os.utime(old, (1.0, 1.0))
    os.utime(foreign, (1.0, 1.0))
    checkpoint.write(tmp_path / "run.pt", STATE)
    assert not old.exists()
    assert fresh.exists()
    assert foreign.exists()


class Dropping(nn.Module):
    """A network with torch's own dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(images)
        return result


CASES = {
    "heavy ball": {},
    "augmentation and dropout": {"augment": True, "dropout": 0.5},
    "skipinit": {"normalization": "skipinit", "dropout": 0.6, "learning_rate": 0.02},
    "micro-batches": {"micro_batch_size": 16, "dropout": 0.5, "augment": True},
    "svag": {"dynamics": "svag", "svag": 2, "steps": 6, "momentum": 0.0, "dropout": 0.5},
    "warm-up": {"warmup": 0.5},
    "bfloat16": {"precision": "bfloat16"},
    "spared": {"l2_exempt": "normalization and biases"},
    "their own": {"model": "dropping"},
}


def final_state(run: TrainingRun) -> dict[str, object]:
    while not run.finished:
        run.advance()
    return run.state()


@pytest.mark.parametrize("case", CASES)
def test_steps_a_stop_and_the_rest_are_a_straight_run(case: str, tmp_path: Path) -> None:
    config = CONFIG.with_(**CASES[case])
    data, path = load_dataset("digits"), tmp_path / "run.pt"
    model = (lambda config, data: Dropping()) if case == "their own" else None
    straight = final_state(TrainingRun(config, data, model))
    for stop in (1, 5, 6, 11):
        first = TrainingRun(config, data, model)
        while first.step < stop:
            first.advance()
        checkpoint.write(path, first.state())
        torch.rand(stop)  # whatever happened to the global generator meanwhile
        second = TrainingRun(config, data, model)
        second.restore(checkpoint.read(path))
        assert second.step == stop
        assert same(final_state(second), straight)
    assert straight["step"] == 12


def test_train_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    straight = train(CONFIG)

    class StopError(Exception):
        pass

    def stop(step: int, model: nn.Module) -> None:
        raise StopError

    with pytest.raises(StopError):
        train(CONFIG, checkpoint=path, checkpoint_every=3, observe=stop, observe_at=(8,))
    assert checkpoint.read(path)["step"] == 6
    seen: list[int] = []
    record = train(
        CONFIG,
        checkpoint=path,
        checkpoint_every=3,
        observe=lambda step, model: seen.append(step),
        observe_at=tuple(range(13)),
    )
    assert seen == list(range(6, 13))
    for name in straight.keys() - {"seconds"}:
        assert record[name] == straight[name], name
    again = train(CONFIG, checkpoint=path)
    assert again["train_loss"] == straight["train_loss"]


def test_checkpoints_come_with_the_clock_unless_steps_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(CONFIG, checkpoint=tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())  # it took less than a minute
    monkeypatch.setattr(training_module, "CHECKPOINT_SECONDS", 0.0)
    train(CONFIG, checkpoint=tmp_path / "a.pt")
    assert checkpoint.read(tmp_path / "a.pt")["step"] == 11


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    train(CONFIG, checkpoint=path, checkpoint_every=5)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"run\.pt: expected a checkpoint of this run, got .*'seed': \(4, 3\)"):
        train(CONFIG.with_(seed=4), checkpoint=path)
    narrow, wide = (lambda config, data, n=n: nn.Sequential(nn.Flatten(), nn.Linear(64, n)) for n in (10, 11))
    mine = CONFIG.with_(model="mine")
    train(mine, model=narrow, checkpoint=tmp_path / "mine.pt", checkpoint_every=5)
    with pytest.raises(ValueError, match="one momentum buffer per parameter"):
        train(mine, model=wide, checkpoint=tmp_path / "mine.pt")
    assert path.read_bytes() == before


CHILD = """
import json, os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_checkpoint as shared
from noisysgd.validation.training import checkpoint
from noisysgd.validation.training import loop as training

def child(how, path, result):
    writes, syncs, save, fsync, advance = [0], [0], torch.save, os.fsync, training.TrainingRun.advance

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def torn_save(payload, file):
        writes[0] += 1
        if writes[0] == 3:
            import io
            whole = io.BytesIO()
            save(payload, whole)
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            file.flush()
            die()
        save(payload, file)

    def doomed_fsync(descriptor):
        fsync(descriptor)
        syncs[0] += 1
        if syncs[0] == 3:  # file, folder, file
            die()

    def doomed_advance(run):
        advance(run)
        if run.step == 8:
            die()

    if how == "during a write":
        torch.save = torn_save
    elif how == "before the rename":
        os.fsync = doomed_fsync
    elif how == "between writes":
        training.TrainingRun.advance = doomed_advance
    record = training.train(shared.CONFIG.with_(augment=True, dropout=0.5), checkpoint=path, checkpoint_every=2)
    with open(result, "w") as file:
        json.dump(record, file)

# A process for each, forked before torch has computed anything: starting afresh would take most of the time.
for arguments in json.loads(sys.argv[1]):
    process = os.fork()
    if process == 0:
        child(*arguments)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    step = checkpoint.read(arguments[1])["step"]
    print(json.dumps([os.waitstatus_to_exitcode(status), step]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and kill -9")
def test_killed_during_and_between_writes_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    script, path, names = tmp_path / "child.py", str(tmp_path / "run.pt"), ("straight.json", "resumed.json")
    script.write_text(CHILD.format(tests=str(Path(__file__).parent)), encoding="utf-8")
    straight, resumed = (str(tmp_path / name) for name in names)
    plan = [("not at all", str(tmp_path / "other.pt"), straight)]
    plan += [(how, path, resumed) for how in ("during a write", "before the rename", "between writes", "not at all")]
    command = [sys.executable, str(script), json.dumps(plan)]
    done = subprocess.run(command, timeout=300, check=True, stdout=subprocess.PIPE, text=True)
    killed = -signal.SIGKILL
    # Two whole writes and half of a third; one more and one that was never renamed; then killed after step 8 itself.
    expected = [[0, 10], [killed, 4], [killed, 6], [killed, 6], [0, 10]]
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected
    assert len(list(tmp_path.glob(".run.pt.*.partial"))) == 2
    records = [json.loads((tmp_path / name).read_text()) for name in names]
    for name in records[0].keys() - {"seconds"}:
        assert records[1][name] == records[0][name], name
