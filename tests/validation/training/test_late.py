"""Updates of which the host learns late: the same run as one that is asked at once, bit for bit."""

import copy
import gc
import math
import weakref

import numpy as np
import pytest
import torch
from training_runs import run_of, to_the_end

from noisysgd.theory import constant, half_then_decay
from noisysgd.validation import TrainConfig, train
from noisysgd.validation.data.augmentation import random_choices
from noisysgd.validation.training import feed as feed_module
from noisysgd.validation.training.evaluation import evaluate
from noisysgd.validation.training.feed import Feed
from noisysgd.validation.training.inputs import minibatch
from noisysgd.validation.training.late import Watch
from noisysgd.validation.training.loop import TrainingRun

CONFIG = TrainConfig(learning_rate=0.5, batch_size=32, momentum=0.9, steps=40, seed=3)
CASES = {
    "heavy ball": CONFIG,
    "sgd, augmented": CONFIG.with_(momentum=0.0, augment=True),
    "micro-batches": CONFIG.with_(batch_size=48, micro_batch_size=16, steps=10),
    "svag": CONFIG.with_(momentum=0.0, dynamics="svag", svag=3, steps=6),
    "dropout": CONFIG.with_(normalization="skipinit", dropout=0.5, steps=10),
    "warm-up and a final rate": CONFIG.with_(warmup=0.3, final_learning_rate=0.01),
    "no penalty, of one's own": CONFIG.with_(model="linear", ghost_batch_size=1, l2=0.0),
}


def assert_same_state(one, other):
    assert (one.step, one.divergence) == (other.step, other.divergence)
    for mine, theirs in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert one.curve.state() == other.curve.state()
    for mine, theirs in zip(one.optimizer.parameters, other.optimizer.parameters, strict=True):
        if one.config.momentum:
            assert torch.equal(one.optimizer.buffers[mine], other.optimizer.buffers[theirs])


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_asked_late_is_the_run_that_is_asked_at_once(case):
    assert_same_state(to_the_end(run_of(CASES[case])), to_the_end(run_of(CASES[case], late=True)))


@pytest.mark.parametrize("rate", [2.0**12, 2.0**20, 2.0**40])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_divergence_is_learnt_late_but_is_the_same(rate, momentum):
    """Same step, same words, and the very parameters and velocities that the last good update left."""
    config = CONFIG.with_(learning_rate=rate, momentum=momentum, model="linear", ghost_batch_size=1, steps=200)
    at_once, late = to_the_end(run_of(config)), run_of(config, late=True)
    while not late.finished:
        late.advance()
        assert late.divergence is None or late.step % late.feed.length == 0 or late.step == at_once.step
    assert at_once.divergence is not None
    assert 0 < at_once.step < 190
    assert_same_state(at_once, late)


def test_asking_in_between_changes_nothing():
    config = CONFIG.with_(learning_rate=2.0**12, model="linear", ghost_batch_size=1, steps=200)
    reference, asked = to_the_end(run_of(config)), run_of(config, late=True)
    while not asked.finished:
        asked.advance()
        asked.settle()
    assert_same_state(reference, asked)
    asked.settle()
    assert_same_state(reference, asked)


def test_a_late_run_goes_on_from_a_state_in_the_middle_of_a_block():
    straight = to_the_end(run_of(CONFIG, late=True))
    first = run_of(CONFIG, late=True)
    for _ in range(17):
        first.advance()
    second = run_of(CONFIG, late=True)
    for _ in range(3):
        second.advance()  # which the state undoes
    second.restore(first.state())
    assert_same_state(straight, to_the_end(second))


@pytest.mark.parametrize("late", [False, True])
def test_a_diverged_run_can_be_put_back_to_a_good_state(late):
    config = CONFIG.with_(learning_rate=2.0**12, model="linear", ghost_batch_size=1, steps=200)
    run = run_of(config, late=late)
    start = run.state()
    start = copy.deepcopy(start)
    to_the_end(run)
    assert run.divergence is not None
    run.restore(start)
    assert (run.step, run.divergence, run.finished) == (0, None, False)
    assert_same_state(to_the_end(run_of(config)), to_the_end(run))


@pytest.mark.parametrize("late", [False, True])
def test_a_run_is_gone_when_nobody_has_it(late):
    """Without waiting for the collector of circles: a network and its data set may be most of a GPU's memory."""
    run = to_the_end(run_of(CONFIG.with_(steps=3), late=late))
    gone = weakref.ref(run)
    gc.disable()
    try:
        del run
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("loss", [math.nan, math.inf, 10.1])
def test_a_watch_keeps_the_first_refused_update(loss):
    watch = Watch(10.0, "cpu", step=3, length=5)
    row = torch.zeros(1, dtype=torch.int64)
    assert watch.verdict() is None
    for value in (1.0, 10.0):
        row += 1
        watch.note(torch.tensor(value), row)
        assert float(watch.refused) == 0.0
    assert watch.losses(0, 2) == [1.0, 10.0]
    for value in (loss, 2.0, math.inf):
        row += 1
        watch.note(torch.tensor(value), row)
        assert float(watch.refused) == 1.0
    found = watch.verdict()
    assert found is not None
    assert found.step == 5
    assert found.loss == pytest.approx(loss, nan_ok=True)


@pytest.mark.parametrize("svag", [1, 4])
def test_a_feed_holds_what_single_steps_would_draw(svag):
    more = {"dynamics": "svag", "svag": svag, "momentum": 0.0} if svag > 1 else {}
    config = CONFIG.with_(augment=True, steps=75, **more)
    schedule = half_then_decay(75 * svag)
    one, other = Feed(config, schedule, 1280), Feed(config, schedule, 1280)
    for step in (*range(70), 40, 41, 74 * svag, 0):
        if step == 40:
            other.forget()
        portion = one.at(step)
        other.load(step)
        following = other.following() if step < 70 else other.at(step)
        draws = [step] if svag == 1 else [step, step + 2**40]
        for k, draw in enumerate(draws):
            batch = minibatch(3, draw, 32, 1280)
            np.testing.assert_array_equal(portion.batches[k], batch)
            np.testing.assert_array_equal(portion.crops[k], random_choices(batch, seed=3, step=draw))
        assert float(portion.rate) == config.learning_rate * float(schedule.at(step)) / svag
        assert torch.equal(portion.batches, following.batches)
        assert torch.equal(portion.crops, following.crops)
        assert torch.equal(portion.rate, following.rate)


def test_a_feed_for_many_examples_or_large_batches_holds_few_steps():
    assert Feed(CONFIG, constant(1000), 1280).length == 32
    assert Feed(CONFIG.with_(batch_size=2**20), constant(1000), 2**21).length == 4
    assert Feed(CONFIG, constant(1000), 2**25).length == 1


def test_too_little_memory_is_reported_with_what_to_do(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    monkeypatch.setattr(TrainingRun, "advance", full)
    with pytest.raises(
        RuntimeError, match=r"cpu: expected room for B = 32, got: CUDA out of memory\. Set micro_batch_size"
    ):
        train(CONFIG)


@pytest.fixture
def cuda(monkeypatch):
    """A GPU, and blocks so short that runs take several of them."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    monkeypatch.setattr(feed_module, "STEPS_ON_GPU", 8)


GPU = CONFIG.with_(device="cuda", augment=True, steps=60)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_captured_updates_are_the_uncaptured_ones_bit_for_bit(precision):
    captured, plain = (run_of(GPU.with_(precision=precision, cuda_graph=on)) for on in (True, False))
    assert_same_state(to_the_end(captured), to_the_end(plain))


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("micro_batch_size", [None, 16])
def test_on_a_gpu_a_run_has_one_result(micro_batch_size):
    config = GPU.with_(micro_batch_size=micro_batch_size)
    records = [train(config) for _ in range(2)]
    assert {k: v for k, v in records[0].items() if k != "seconds"} == {
        k: v for k, v in records[1].items() if k != "seconds"
    }


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("steps", [1, 17, 59])
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_on_a_gpu_a_resumed_run_is_the_straight_one(steps, cuda_graph):
    config = GPU.with_(cuda_graph=cuda_graph)
    straight, first, second = to_the_end(run_of(config)), run_of(config), run_of(config)
    for _ in range(steps):
        first.advance()
    second.advance()
    second.restore(first.state())
    assert_same_state(straight, to_the_end(second))


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_on_a_gpu_divergence_stops_the_parameters_where_it_shows():
    config = GPU.with_(learning_rate=2.0**40, steps=200)
    run, again = to_the_end(run_of(config)), run_of(config)
    assert run.divergence is not None
    for _ in range(run.step):
        again.advance()
    again.settle()
    assert again.divergence is None
    for mine, theirs in zip(run.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_on_a_gpu_the_shortest_runs_are_captured_too(steps):
    assert train(GPU.with_(steps=steps))["status"] == "complete"


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_on_a_gpu_looking_on_changes_nothing():
    undisturbed, watched = to_the_end(run_of(GPU)), run_of(GPU)
    while not watched.finished:
        watched.advance()
        if watched.step in (5, 20):
            evaluate(watched.model, watched.data, watched.config)
            watched.settle()
    assert_same_state(undisturbed, watched)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_on_a_gpu_the_end_of_one_run_leaves_the_others_alone():
    alone, run, other = to_the_end(run_of(GPU)), run_of(GPU), run_of(GPU.with_(seed=4))
    for _ in range(10):
        run.advance()
        other.advance()
    del other
    torch.cuda.empty_cache()
    assert_same_state(alone, to_the_end(run))
