"""Waiting for runs, and saying so: a sweep in which no run finishes for a while tells which are under way."""

import logging
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from noisysgd.theory.common.duration import duration
from noisysgd.validation.configuration import TrainConfig
from noisysgd.validation.runs.store import RunStore

logger = logging.getLogger(__name__)

SILENCE = 600.0
"""Seconds without a finished run after which a line says so; the next ones come after twice as long each."""
MOST_NAMED = 8


def as_they_finish(futures: Mapping[Future[Any], TrainConfig], store: RunStore) -> Iterator[Future[Any]]:
    """The futures of runs, each when it is done; now and then a warning if none is."""
    waiting, patience, since = set(futures), SILENCE, time.monotonic()
    while waiting:
        done, waiting = wait(waiting, timeout=patience, return_when=FIRST_COMPLETED)
        yield from done
        if done:
            patience, since = SILENCE, time.monotonic()
        else:
            silent = duration(time.monotonic() - since, rough=True)
            logger.warning("no run has finished for %s; %s", silent, in_words(store, [futures[one] for one in waiting]))
            patience *= 2


def in_words(store: RunStore, configs: list[TrainConfig]) -> str:
    """Which of these runs are under way, since when, and how old their checkpoints are: one that hangs writes none."""
    found = []
    for config in configs:
        begun, saved = store.begun(config)
        if begun is None:
            continue
        last = "no checkpoint yet" if saved is None else f"last checkpoint {duration(saved, rough=True)} ago"
        at = f"B = {config.batch_size}, ε = {config.learning_rate:g}, m = {config.momentum:g}, seed {config.seed}"
        found.append(f"{config.key} ({at}) for {duration(begun, rough=True)}, {last}")
    if not found:
        return "none is under way: look whether workers could start"
    more = f"; and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return f"under way: {'; '.join(sorted(found)[:MOST_NAMED])}{more}"
