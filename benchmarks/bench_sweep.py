"""What a second worker gains, and what the run store costs: ratios within one run of this file."""

import os
import statistics
import tempfile
import time
from concurrent.futures import Executor

import noisysgd.validation.training.loop as training
from noisysgd.theory.common.parallel import usable_cores
from noisysgd.validation import RunStore, Sweep, TrainConfig, local_executor, run_one

BASE = TrainConfig(learning_rate=1.0, batch_size=64, steps=60)
SWEEP = Sweep(base=BASE, batch_sizes=[64], momenta=[0.0, 0.9], exponents=[-2, -1, 0], seeds=3, bracket=None)
REPEATS = 5
RUN_SECONDS = 5.0


def wake(seconds: float) -> None:
    """Imports what runs need; long enough for every worker to get one."""
    import noisysgd.validation.training.loop  # noqa: F401

    time.sleep(seconds)


def sweep_seconds(executor: Executor, workers: int) -> float:
    """Of the whole sweep, with workers that have started."""
    for future in [executor.submit(wake, 1.0) for _ in range(2 * workers)]:
        future.result()
    started = time.perf_counter()
    SWEEP.run(RunStore(tempfile.mkdtemp()), executor)
    return time.perf_counter() - started


def store_seconds() -> float:
    """What run_one adds to a run: looking, claiming, writing, flushing to disk, removing the claim."""
    record = training.train(BASE.with_(steps=1))
    real = training.train
    training.train = lambda config, **options: record | {"config": config.as_dict()}  # type: ignore[assignment]
    try:
        store = RunStore(tempfile.mkdtemp())
        run_one(store, BASE)  # provenance is looked up once per process
        times = []
        for seed in range(1, 200):
            started = time.perf_counter()
            run_one(store, BASE.with_(seed=seed))
            times.append(time.perf_counter() - started)
        return statistics.median(times)
    finally:
        training.train = real


if __name__ == "__main__":
    with local_executor(1) as single, local_executor(2) as double:
        pairs = [(sweep_seconds(single, 1), sweep_seconds(double, 2)) for _ in range(REPEATS)]
    for one, two in pairs:
        print(f"{len(SWEEP.plan())} runs: one worker {one:.2f} s, two {two:.2f} s, {one / two:.2f} times as fast")
    ratio = statistics.median(one / two for one, two in pairs)
    load = os.getloadavg()[0]  # two of our own; what exceeds that makes the ratio meaningless
    print(f"two workers on {usable_cores()} cores: {ratio:.2f} times as fast as one (wanted: 1.8); load {load:.1f}")
    added = store_seconds()
    print(f"the store adds {1e3 * added:.2f} ms: {added / RUN_SECONDS:.3%} of a 5-second run (wanted: 1 %)")
