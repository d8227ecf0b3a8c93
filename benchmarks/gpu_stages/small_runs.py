"""Small runs side by side, each in a process of its own."""

import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

from gpu_stages.rows import Order, wait
from noisysgd.validation import TrainConfig, load_dataset
from noisysgd.validation.training.loop import TrainingRun


class SmallRun:
    """A process with a small network, which trains when it is asked to.

    Parameters
    ----------
    order : Order
    """

    def __init__(self, order: Order) -> None:
        context = multiprocessing.get_context("spawn")
        self._order = order
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=small_run, args=(theirs, order.device), daemon=True)
        self._process.start()
        theirs.close()  # so that a process that has ended can be noticed
        self.ready = False

    def get_ready(self) -> None:
        """Wait until the process has taken its first update."""
        self.ready = self.ready or self.answer() == "ready"

    def ask(self, start: float, seconds: float) -> None:
        """Have it train from a time of the clock on, for some seconds."""
        self._connection.send((start, seconds))

    def answer(self) -> Any:
        """Return what the process says; ``TimeoutError`` if it says nothing until the deadline."""
        if not self._connection.poll(max(self._order.left - 1, 0)):
            raise TimeoutError("expected a word of a small run before the deadline, got none")
        return self._connection.recv()

    def end(self) -> None:
        """End the process."""
        self._process.kill()


def small_run(connection: Any, device: str) -> None:
    """Be such a process: say "ready", and then, for each (start, seconds), how many updates took how many seconds."""
    config = TrainConfig(learning_rate=1e-3, batch_size=64, momentum=0.9, steps=10**6, device=device)
    run = TrainingRun(config, load_dataset("digits"))
    run.advance()
    wait(device)
    connection.send("ready")
    while True:
        start, seconds = connection.recv()
        time.sleep(max(start - time.time(), 0))
        first, began = run.step, time.perf_counter()
        while time.perf_counter() - began < seconds:
            for _ in range(8):
                run.advance()
            wait(device)
        connection.send((run.step - first, time.perf_counter() - began))


@contextlib.contextmanager
def side_by_side(order: Order, count: int) -> Iterator[list[SmallRun]]:
    """Within the ``with`` block there are `count` small runs, which idle unless they are asked to train."""
    crew: list[SmallRun] = []
    try:
        for _ in range(count):
            crew.append(SmallRun(order))
        yield crew
    finally:
        for run in crew:
            run.end()


def total_speed(order: Order, crew: list[SmallRun], processes: int) -> dict[str, Any]:
    """Return updates per second of some of the small runs at once, the others being idle."""
    for run in crew:
        run.get_ready()
    start = time.time() + 0.2
    for run in crew[:processes]:
        run.ask(start, order.sizes.process_seconds)
    speeds = [steps / seconds for steps, seconds in (run.answer() for run in crew[:processes])]
    return {"updates_per_s": sum(speeds), "slowest": min(speeds), "batch_size": 64, "network": "WRN-10-1, digits"}
