"""What λ_max to 1 % costs, in gradients of the whole training set, on the digits network; and what the rest costs.

    python benchmarks/bench_measurement.py

A gradient evaluation is one forward and one backward pass over the 1280 digits in training mode; time and its ratio are
of one run on one machine, one thread, medians of repetitions taken in turns. The accuracy is judged against the same
Lanczos iteration to 1e-5. States: untrained, and after 20, 100 and 240 updates of the demonstration's reference run.
"""

import os
import statistics
import time
from collections.abc import Callable

os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")})

import numpy as np
import torch
from torch import nn

from noisysgd.validation import TrainConfig, largest_eigenvalue, load_dataset, measure, train
from noisysgd.validation.curvature import loss_gradient, loss_hessian_vector_product

RTOL, REPETITIONS, LIMIT = 1e-2, 3, 60.0
STEPS = (0, 20, 100, 240)


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print one line per state, and what a whole measurement takes."""
    torch.set_num_threads(1)
    data = load_dataset("digits")
    order = torch.from_numpy(np.random.Generator(np.random.Philox(0)).permutation(data.train_size))
    images, labels = data.train_images[order], data.train_labels[order]
    print(f"digits, WRN-10-1, ghost batches of 16, one thread, load {os.getloadavg()[0]:.1f}")
    worst = 0.0

    def observe(step: int, model: nn.Module) -> None:
        nonlocal worst

        def search(rtol: float = RTOL) -> object:
            product = loss_hessian_vector_product(model, images, labels)
            return largest_eigenvalue(product, dimension, seed=0, rtol=rtol, max_products=100, dtype=torch.float32)

        dimension = len(loss_gradient(model, images, labels))
        times = [(seconds(lambda: loss_gradient(model, images, labels)), seconds(search)) for _ in range(REPETITIONS)]
        one, whole = (statistics.median(column) for column in zip(*times, strict=True))
        found, exact = search(), search(1e-5)
        error, ratio = abs(found.value / exact.value - 1), whole / one
        worst = max(worst, ratio)
        print(
            f"step {step:3d}: λ_max {found.value:.4g}, converged {found.converged}, error {100 * error:.2g} %, "
            f"{found.products} products; {whole:.2f} s = {ratio:.0f} gradients of {one:.3f} s"
        )
        if step == STEPS[1]:
            spent = seconds(lambda: measure(model, data))
            print(f"          everything that measure() finds: {spent:.1f} s = {spent / one:.0f} gradients")

    config = TrainConfig(learning_rate=0.25, batch_size=64, epochs=12)
    train(config, observe=observe, observe_at=STEPS)
    print(f"most expensive state: {worst:.0f} gradients, asked for: at most {LIMIT:.0f}")


if __name__ == "__main__":
    main()
