"""What λ_max to 1 % costs, in gradients of the whole training set, on the digits network; and what the rest costs.

Then what the calibrated quadratics predict, and how often the stated error of tr(HF) holds, by the number of units that
meet the Hessian: 250 seeds, against dense matrices of a trained network with 243 parameters.

    python benchmarks/bench_measurement.py

A gradient evaluation is one forward and one backward pass over the 1280 digits in training mode; processor times are
of one run on one machine, one thread, medians of repetitions taken in turns. The accuracy is judged against the same
Lanczos iteration to 1e-5. States: untrained, and after 20, 100 and 240 updates of the demonstration's reference run.
"""

import os
import statistics
import time
from collections.abc import Callable
from functools import partial

os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")})

import numpy as np
import torch
from torch import nn

from noisysgd import theory
from noisysgd.validation import Calibration, ImageDataset, TrainConfig, largest_eigenvalue, load_dataset, measure, train
from noisysgd.validation.measurement.curvature import loss_gradient, loss_hessian_vector_product
from noisysgd.validation.measurement.gradient_noise import ghost_batch_gradients

RTOL, REPETITIONS, LIMIT = 1e-2, 3, 60.0
STEPS = (0, 20, 100, 240)
PRODUCTS, SEEDS = (8, 16, 32), 250


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call: on one thread the wall-clock time of an idle machine."""
    start = time.process_time()
    work()
    return time.process_time() - start


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


def predictions() -> None:
    """Print what the calibrated quadratics of the first states predict, with stated errors."""
    data, budget = load_dataset("digits"), theory.EpochBudget(12, 1280)
    run = {"learning_rate": 0.25, "batch_size": 64}

    def observe(step: int, model: nn.Module) -> None:
        found = measure(model, data)
        seen = Calibration.from_measurement(found)
        print(f"step {step}: {seen}")
        print(f"    negative {seen.negative_modes:.0%}, truncation {found.spectrum.density.truncation:.2f}")
        asked = {"2/λ_max": theory.critical_learning_rate}
        for size in (16, 64, 256):
            asked[f"ε, B = {size}"] = partial(theory.optimal_learning_rate, budget=budget, batch_size=size)
        asked["loss"] = partial(theory.expected_loss, schedule=theory.half_then_decay(240), **run)
        for name, of in asked.items():
            value, error = seen.predict(of)
            print(f"    {name}: {value:.7g} ± {error:.2g}")

    record = train(TrainConfig(epochs=12, **run), observe=observe, observe_at=STEPS[:3])
    print(f"training loss of the network in the end: {record['train_loss']:.4f}")


def coverage() -> None:
    """Print how errors of tr(HF) compare with the stated ones."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(512, 1, 4, 4, generator=generator) * torch.linspace(2.5, 0.1, 16).view(1, 4, 4)
    scores = images.flatten(1) @ torch.randn(16, 3, generator=generator)
    labels = (scores + 2 * torch.randn(512, 3, generator=generator)).argmax(1)
    data = ImageDataset("random", images, labels, images[:8], labels[:8], classes=3, provenance="seeded normals")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.double()
    product = loss_hessian_vector_product(model, images, labels)
    dimension = sum(p.numel() for p in model.parameters())
    hessian = torch.stack([product(unit) for unit in torch.eye(dimension, dtype=torch.float64)])
    singles = ghost_batch_gradients(model, images, labels, np.arange(512)[:, None])
    exact = float((hessian @ singles.T.cov(correction=0)).trace())
    options = {"ghost_batch_size": 8, "units": 256, "probes": 0, "sharpness_batches": 0, "eigenvalues": 1}
    for products in PRODUCTS:
        found = [measure(model, data, products=products, seed=k, **options) for k in range(SEEDS)]
        estimates = [one.noise_curvature_trace for one in found]
        z = np.array([(one.value - exact) / one.stderr for one in estimates])
        print(
            f"tr(HF) from {products:2d} products: {100 * np.mean(abs(z) < 1):.0f} % within one standard error, "
            f"{100 * np.mean(abs(z) < 2):.0f} % within two, spread {z.std():.2f}; median stated error "
            f"{100 * np.median([one.stderr / exact for one in estimates]):.0f} %"
        )


if __name__ == "__main__":
    main()
    predictions()
    coverage()
