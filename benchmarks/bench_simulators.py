"""Speed of the simulator against a NumPy loop over steps, in one run on one machine.

    python benchmarks/bench_simulators.py

An update is one coordinate of one replica in one step: a normal drawn and the state advanced. D = 64, 8192 replicas,
the best of five repetitions each. On two cores of an AMD EPYC with AVX-512 (Python 3.11, NumPy 2.4, Numba 0.68): 310 to
350 million updates a second on one of them, 6.2 to 7.2 times the NumPy loop; exact jumps over 100 000 steps with ten
records are 1180 to 1340 times as fast as the steps. In float32, 600 to 750 million, 9 to 13 times NumPy's float32 loop
(two runs, the slower one under a load of 5).
Two threads need two idle cores: read the load.
"""

import itertools
import os
import time
from collections.abc import Callable

import numpy as np

from noisysgd import simulators, theory
from noisysgd.theory.common.parallel import usable_cores

DIM, REPLICAS, STEPS, REPETITIONS = 64, 8192, 100, 5
LONG = 100_000
RATE, BATCH = 0.1, 8


def numpy_loop(
    problem: theory.NoisyQuadratic, steps: int, momentum: float, generator: np.random.Generator, dtype: str
) -> float:
    """The obvious vectorised simulation: one array operation after another over all replicas."""
    theta = generator.standard_normal((DIM, REPLICAS), dtype)
    velocity = np.zeros_like(theta)
    curvature = problem.eigenvalues[:, None].astype(dtype)
    deviation = np.sqrt(problem.noise * problem.noise_factor(BATCH))[:, None].astype(dtype)
    for _ in range(steps):
        velocity = momentum * velocity + (curvature * theta + deviation * generator.standard_normal(theta.shape, dtype))
        theta -= RATE * velocity
    return float(0.5 * (curvature * theta**2).sum(axis=0).mean())


def updates_per_second(run: Callable[[int], object], steps: int = STEPS) -> float:
    """Best rate of `run(steps)`, after one short run to compile."""
    run(1)
    seconds = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        run(steps)
        seconds.append(time.perf_counter() - start)
    return DIM * REPLICAS * steps / min(seconds)


def seconds_of_jumps(problem: theory.NoisyQuadratic, momentum: float) -> float:
    """Least time of an ensemble over LONG steps with ten records, by exact transitions."""
    settings = {"learning_rate": RATE, "batch_size": BATCH, "momentum": momentum, "replicas": REPLICAS}
    times = []
    for _ in range(REPETITIONS + 1):  # the first one compiles
        start = time.perf_counter()
        simulators.simulate(problem, theory.constant(LONG), **settings, dynamics="jump", record=10)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print the table."""
    problem = theory.power_law(DIM)
    generator = np.random.default_rng(0)
    print(
        f"D = {DIM}, {REPLICAS} replicas, {STEPS} steps, {usable_cores()} usable cores, load {os.getloadavg()[0]:.1f}"
    )

    def simulate(momentum: float, threads: int, dtype: str) -> Callable[[int], object]:
        return lambda steps: simulators.simulate(
            problem,
            theory.constant(steps),
            learning_rate=RATE,
            batch_size=BATCH,
            momentum=momentum,
            replicas=REPLICAS,
            threads=threads,
            dtype=dtype,
        )

    for momentum, dtype in itertools.product((0.0, 0.9), ("float64", "float32")):
        loop = updates_per_second(lambda n, m=momentum, d=dtype: numpy_loop(problem, n, m, generator, d), STEPS // 5)
        one, two = (updates_per_second(simulate(momentum, threads, dtype)) for threads in (1, 2))
        print(f"momentum {momentum}, {dtype}: NumPy loop {loop / 1e6:6.1f} M updates/s")
        print(f"              1 thread   {one / 1e6:6.1f} M updates/s, {one / loop:.1f} × NumPy")
        print(f"              2 threads  {two / 1e6:6.1f} M updates/s, {two / one:.2f} × 1 thread")
        if dtype == "float32":
            continue  # jumps are in double precision
        jump = seconds_of_jumps(problem, momentum)
        steps = LONG * DIM * REPLICAS / two
        print(f"              {LONG} steps, 10 records: jump {jump:.3f} s, {steps / jump:.0f} × as fast as steps")


if __name__ == "__main__":
    main()
