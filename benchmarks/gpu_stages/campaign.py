"""The campaign: a sweep over learning rates, batch sizes and momentum, for as long as there is time."""

import concurrent.futures
import itertools
import multiprocessing
import os
import sys
import time
from typing import Any

from gpu_stages.rows import Order, Rows
from gpu_stages.wide_resnet import DATASETS, prepare
from noisysgd.validation import TrainConfig, train

CENTRES = {64: 0.5, 128: 0.5, 256: 1.0, 1024: 2.0, 4096: 4.0}
"""Effective learning rate in the middle of the curve of each batch size."""
MOMENTA = (0.9, 0.0)
MOST_AT_ONCE = 1024
"""Examples that go through the network at once: several runs share the memory of the GPU."""
LONGER = 10_000
"""Size of a training set below which a run gets more epochs, to have some hundreds of updates as well."""


def measure_all(order: Order, rows: Rows) -> None:
    """Train as many runs as there is time for, several at once, and add the record of each as it ends."""
    spawn = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(order.sizes.workers, mp_context=spawn)
    try:
        # Every process reads the data set for itself, all at the same time, and keeps it.
        ready = [pool.submit(prepare) for _ in range(order.sizes.workers)]
        name, examples = ready[0].result(timeout=max(order.left, 1))
        rows.add("data set", dataset=name, examples=examples, workers=order.sizes.workers)
        futures = {pool.submit(train_one, config): config for config in planned(order, name, examples)}
        for future in concurrent.futures.as_completed(futures, timeout=max(order.left - 1, 1)):
            rows.add("run", **record_of(future, futures[future]))
        rows.add("end", finished=True)
    except TimeoutError:
        rows.add("end", finished=False)
        # The runs under way are given up: the driver ends all processes of a stage.
        sys.stdout.flush()
        os._exit(0)
    pool.shutdown()


def record_of(future: concurrent.futures.Future[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a run that has ended; or what it was, and the error that ended it."""
    error = future.exception()
    return future.result() if error is None else {"asked": config, "error": f"{type(error).__name__}: {error}"[:600]}


def planned(order: Order, dataset: str, examples: int) -> list[dict[str, Any]]:
    """List the runs, the middle of all curves first and then outwards: an early stop leaves whole, shorter curves."""
    big, sizes = examples >= LONGER, order.sizes
    shared: dict[str, Any] = {"dataset": dataset, "depth": sizes.depth, "width": sizes.width, "ghost_batch_size": 64}
    shared |= {"device": order.device, "precision": "bfloat16" if order.on_gpu else "float32"}
    shared |= {"epochs": 1.0 if order.tiny else 2.0 if big else 12.0, "augment": dataset == DATASETS[0]}
    listed = []
    for octave, size, momentum in itertools.product(sizes.octaves, sizes.batches, MOMENTA):
        if size > examples:
            continue
        rate = round(CENTRES[size] * 2.0**octave * (1 - momentum), 12)  # 1 − 0.9 is not quite 0.1
        pieces: dict[str, Any] = {"micro_batch_size": MOST_AT_ONCE} if size > MOST_AT_ONCE else {}
        config = TrainConfig(learning_rate=rate, momentum=momentum, batch_size=size, **shared, **pieces)
        listed.append(config.as_dict())
    return listed


def train_one(config: dict[str, Any]) -> dict[str, Any]:
    """Train one run of the campaign and return its record."""
    record = train(TrainConfig.from_dict(config))
    # The learning curve belongs here, as record["losses"], once train() offers the losses of minibatches: evaluating
    # anything more would cost runs.
    return record | {"ended": time.time()}
