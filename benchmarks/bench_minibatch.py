"""Speed of minibatch SGD on real examples against a NumPy loop over steps, in one run on one machine.

    python benchmarks/bench_minibatch.py

N = 2000 examples of D = 200 inputs, 64 replicas with batches of their own, drawn without replacement; momentum 0.9, one
thread on both sides, on one core.
"""

import os
import time
from collections.abc import Callable

os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")})

import numpy as np

from noisysgd import simulators, theory

EXAMPLES, DIM, REPLICAS, STEPS, REPETITIONS = 2000, 200, 64, 50, 5
RATE, MOMENTUM = 0.01, 0.9


def numpy_loop(data: simulators.FiniteLeastSquares, size: int, steps: int, generator: np.random.Generator) -> float:
    """One batch of examples gathered for every replica, then two batched products."""
    omega = generator.standard_normal((REPLICAS, DIM))
    velocity = np.zeros_like(omega)
    for _ in range(steps):
        # The first B places of a random permutation of each row: faster than choice(replace=False), row by row.
        chosen = np.argpartition(generator.random((REPLICAS, EXAMPLES)), size - 1, axis=1)[:, :size]
        x = data.inputs[chosen]
        residual = (x @ omega[:, :, None])[:, :, 0] - data.targets[chosen]
        gradient = (residual[:, None, :] @ x)[:, 0] / size
        velocity = MOMENTUM * velocity + gradient
        omega -= RATE * velocity
    return float(((data.inputs @ omega.T - data.targets[:, None]) ** 2).mean() / 2)


def seconds(run: Callable[[int], object]) -> float:
    """Least time of STEPS steps, after one short run to compile."""
    run(1)
    times = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        run(STEPS)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print the table."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    problem = theory.LeastSquares(1.0 / np.arange(1, DIM + 1), label_noise=0.1, dataset_size=EXAMPLES)
    data = simulators.FiniteLeastSquares.sample(problem)
    generator = np.random.default_rng(0)
    print(f"N = {EXAMPLES}, D = {DIM}, {REPLICAS} replicas, {STEPS} steps, one core, load {os.getloadavg()[0]:.1f}")
    for size in (8, 32, 128, 512):
        loop = seconds(lambda steps, b=size: numpy_loop(data, b, steps, generator))
        ours = {}
        for sampling in ("without_replacement", "with_replacement", "reshuffle"):
            run = {"learning_rate": RATE, "batch_size": size, "momentum": MOMENTUM, "replicas": REPLICAS, "threads": 1}
            run |= {"dynamics": "minibatch", "sampling": sampling}
            ours[sampling] = seconds(lambda steps, r=run: simulators.simulate(data, theory.constant(steps), **r))
        ratio = loop / ours["without_replacement"]
        times = ", ".join(f"{name} {1e3 * value / STEPS:.2f} ms" for name, value in ours.items())
        print(f"B = {size:3d}: NumPy {1e3 * loop / STEPS:6.2f} ms a step; {times}: {ratio:.1f} × NumPy")


if __name__ == "__main__":
    main()
