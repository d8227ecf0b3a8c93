"""Torch's generators, options and threads belong to the whole process: what trains or measures has them to itself."""

import logging
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from noisysgd.validation import TrainConfig, train
from noisysgd.validation.networks import torch_globals
from noisysgd.validation.networks.arithmetic_precision import fp32_precision
from noisysgd.validation.networks.ghost_batch_norm import training_mode
from noisysgd.validation.networks.torch_globals import kept_generators, torch_threads, torch_to_itself

CONFIG = TrainConfig(learning_rate=0.1, batch_size=64, steps=6, model="dropped out", ghost_batch_size=1)


def dropped_out(config, data):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.ReLU(), nn.Linear(32, 10))


def loss(seed):
    return train(CONFIG.with_(seed=seed), model=dropped_out)["train_loss"]


def test_runs_in_threads_of_one_process_are_those_of_one_thread():
    """Without turns about every second of these differs: they draw from one generator."""
    seeds = range(24)
    alone = [loss(seed) for seed in seeds]
    assert len(set(alone)) == len(seeds)
    before = torch.random.get_rng_state()
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(loss, seeds)) == alone
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_is_measured_beside_a_run_does_not_move_its_generator():
    """Measurements pass through the network in this block, which puts the generators back as it found them."""
    layer, stop = nn.Dropout(), threading.Event()

    def again():
        while not stop.is_set():
            with training_mode(layer):
                layer(torch.ones(8))

    seeds = range(8)
    alone = [loss(seed) for seed in seeds]
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(again)
        try:
            assert [loss(seed) for seed in seeds] == alone
        finally:
            stop.set()
        beside.result()


@pytest.mark.parametrize(
    "block",
    [
        torch_to_itself,
        lambda: torch_threads(1),
        lambda: kept_generators(["cpu"]),
        lambda: fp32_precision("tf32"),
        lambda: training_mode(nn.Dropout()),
    ],
    ids=["turn", "threads", "generators", "precision", "training mode"],
)
def test_who_changes_what_the_process_shares_is_alone_in_it(block):
    inside, entered = threading.Event(), threading.Event()

    def enter():
        inside.set()
        with block():
            entered.set()

    with ThreadPoolExecutor(1) as pool:
        with torch_to_itself(), block():
            waiting = pool.submit(enter)
            assert inside.wait(30)
            assert not entered.wait(0.1)
        waiting.result(timeout=30)


def test_waiting_is_told_once(caplog, monkeypatch):
    monkeypatch.setattr(torch_globals, "_told", False)
    with ThreadPoolExecutor(2) as pool, caplog.at_level(logging.WARNING):
        with torch_to_itself():
            waiting = [pool.submit(loss, 0) for _ in range(2)]
            while not caplog.records:
                assert not any(one.done() for one in waiting)
        assert waiting[0].result() == waiting[1].result()
    assert [record.message for record in caplog.records if "use processes" in record.message] == [
        caplog.records[0].message
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are POSIX")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_another_thread_has_its_turn_has_one_of_its_own():
    go, taken = threading.Event(), threading.Event()

    def hold():
        with torch_to_itself():
            taken.set()
            go.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert taken.wait(30)
        child = multiprocessing.get_context("fork").Process(target=_enter)
        child.start()
        child.join(30)
        code = child.exitcode
        child.kill()
        assert code == 0
    finally:
        go.set()
        holder.join()


def _enter():
    with torch_to_itself():
        os._exit(0)


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_uses_the_threads_it_is_given_and_puts_the_number_back(count):
    seen = []

    def observe(step, model):
        seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        train(CONFIG, model=dropped_out, observe=observe, observe_at=(0, 6), threads=count)
        with pytest.raises(RuntimeError, match="on purpose"):
            train(CONFIG, model=dropped_out, observe=fail, observe_at=(2,), threads=count)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [count, count]


def fail(step, model):
    raise RuntimeError("on purpose")


def test_a_run_uses_one_thread_unless_told_otherwise():
    seen = []
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        train(CONFIG, model=dropped_out, observe=lambda *_: seen.append(torch.get_num_threads()), observe_at=(0,))
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "two"])
def test_numbers_of_threads_that_cannot_be_are_refused(threads):
    with pytest.raises(ValueError, match="threads: expected an integer ≥ 1"):
        train(CONFIG, model=dropped_out, threads=threads)
