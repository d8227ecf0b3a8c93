"""Speed of steps-to-target sweeps beside the binned computation of Zhang et al. 2019, in one run on one machine.

    python benchmarks/bench_steps_to_target.py

The problem is λ_i = 1/i, i ≤ 10 000, with F = Λ and E θ₀² = 1; the target is a loss of 0.01. Both sweeps are those of
the published notebook (gd-zhang/noisy-quadratic-model), whose method is written out here anew: the spectrum in 100
geometric bins; SGD's closed form, or the eigenvectors of a 3 × 3 matrix a bin, computed afresh for every step count;
bisection between 0 and 10⁹ or 10⁷ steps, as if the loss were monotone. Ours keeps all 10 000 eigenvalues, finds first
passages, and is checked against the closed forms.
"""

import os
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from noisysgd import theory
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.parallel import usable_cores

DIM, BINS, TARGET = 10_000, 100, 0.01
RATES = np.logspace(-5, 0.5, 100)
BATCH_SIZES = 2.0 ** np.arange(20)
MOMENTUM_RATES = np.logspace(-8, 1, 100)
MOMENTA = 1 - np.logspace(-5, 0, 20)
MOMENTUM_BATCH_SIZES = (16.0, 4096.0)
NOTEBOOK_BATCH_SIZES = (64.0, 4096.0, 65536.0)
REPETITIONS = 5

Curve = Callable[[int], float]
Result = TypeVar("Result")


def binned_spectrum() -> tuple[FloatArray, FloatArray]:
    """Bin edges, and how many eigenvalues lie between an edge and the next larger one."""
    edges = np.geomspace(1.0, 1.0 / DIM, BINS)
    eigenvalues = 1.0 / np.arange(1, DIM + 1)
    edges[-1] *= 1.0 - 1e-12  # so that rounding loses no eigenvalue
    above = np.array([np.count_nonzero(eigenvalues >= edge) for edge in edges])
    return edges, np.diff(above, prepend=0).astype(float)


def bisect(loss: Curve, high: int) -> int:
    """Steps after which a falling loss is below the target."""
    low = 0
    while low < high - 1:
        middle = (low + high) // 2
        if loss(middle) < TARGET:
            high = middle
        else:
            low = middle
    return high


def binned_sgd(h: FloatArray, counts: FloatArray, batch_size: float) -> tuple[int, float]:
    """Fewest steps over the grid of learning rates, one bisection each."""

    def steps(rate: float) -> int:
        def loss(k: int) -> float:
            keep = (1 - rate * h) ** 2
            stationary = rate**2 * h / batch_size / (1 - keep + 1e-8)
            return 0.5 * float(np.sum(counts * h * (stationary + keep**k * (1 - stationary))))

        return bisect(loss, 10**9)

    return min((steps(rate), rate) for rate in RATES)


def binned_momentum(h: FloatArray, counts: FloatArray, batch_size: float, share: int) -> tuple[int, float, float]:
    """The same over learning rates and momenta, every `share`-th learning rate only."""

    def steps(rate: float, m: float) -> int:
        x = rate * h

        def loss(k: int) -> float:
            step = np.zeros((BINS, 3, 3))  # of E θ², E v² and E θv, where v ← m v − ε ĝ and θ ← θ + v
            step[:, :, 1] = m * m
            step[:, 0, 0], step[:, 1, 0], step[:, 2, 0] = (1 - x) ** 2, x**2, -x * (1 - x)
            step[:, 0, 2], step[:, 1, 2], step[:, 2, 2] = 2 * m * (1 - x), -2 * m * x, m * (1 - 2 * x)
            values, vectors = np.linalg.eig(step)
            inverse = np.linalg.inv(vectors)
            noise = np.repeat((rate**2 * h / batch_size)[:, None, None], 3, axis=1)
            start = np.zeros((BINS, 3, 1))
            start[:, 0] = 1.0
            stationary = (inverse @ noise)[..., 0] / (1 - values)
            held = values**k * ((inverse @ start)[..., 0] - stationary) + stationary
            return 0.5 * float((counts * h) @ (vectors @ held[..., None])[:, 0, 0].real)

        return bisect(loss, 10**7)

    return min((steps(rate, m), rate, m) for rate in MOMENTUM_RATES[::share] for m in MOMENTA)


def seconds(work: Callable[[], Result]) -> tuple[float, Result]:
    """Time that calling `work` took, and what it returned."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def passes(problem: theory.NoisyQuadratic, steps: float, **run: float) -> bool:
    """Whether all 10 000 modes together pass the target just there."""
    before, at = theory.loss_curve(problem, theory.constant(int(steps)), at=[int(steps) - 1, int(steps)], **run)
    return bool(before > TARGET * (1 - 1e-10) and at <= TARGET * (1 + 1e-10))


def main() -> None:
    """Print the table."""
    h, counts = binned_spectrum()
    print(f"{usable_cores()} usable cores, load {os.getloadavg()[0]:.1f}; times are per batch size")
    warm = theory.power_law(DIM)  # compiles, and loads what is cached
    theory.fastest_on_grid(warm, TARGET, learning_rates=MOMENTUM_RATES[::10], batch_size=64, momenta=MOMENTA[::5])

    def sweep_sgd() -> FloatArray:
        fresh = theory.power_law(DIM)  # what is prepared once for a spectrum counts
        return theory.steps_to_target(fresh, TARGET, learning_rate=RATES, batch_size=BATCH_SIZES[:, None])

    with np.errstate(over="ignore", invalid="ignore"):  # diverging, the notebook's way
        theirs = np.mean([seconds(lambda b=b: binned_sgd(h, counts, b))[0] for b in NOTEBOOK_BATCH_SIZES])
        binned = {b: binned_sgd(h, counts, b) for b in NOTEBOOK_BATCH_SIZES}
    runs = [seconds(sweep_sgd) for _ in range(REPETITIONS)]
    ours, steps = float(np.median([time for time, _ in runs])) / BATCH_SIZES.size, runs[0][1]
    print(f"SGD, {BATCH_SIZES.size} batch sizes × {RATES.size} learning rates, every first passage:")
    print(f"  binned {theirs * 1e3:8.1f} ms   exact {ours * 1e3:7.2f} ms   {theirs / ours:6.1f} ×")

    problem = theory.power_law(DIM)
    found = [(b, row.min(), RATES[row.argmin()]) for b, row in zip(BATCH_SIZES, steps, strict=True)]
    good = sum(passes(problem, t, learning_rate=rate, batch_size=b) for b, t, rate in found)
    print(f"  {good} of {len(found)} minima pass the target where all 10 000 modes do, to 1e-10")
    for b in NOTEBOOK_BATCH_SIZES:
        t, rate = binned[b]
        exact = dict(zip(BATCH_SIZES, found, strict=True))[b]
        print(f"  B = {b:<6.0f} exact {exact[1]:7.0f} steps at ε = {exact[2]:.4g}; binned {t:7d} at {rate:.4g}")

    print(f"momentum, {MOMENTUM_RATES.size} learning rates × {MOMENTA.size} momenta, the fewest steps:")
    share = 10
    for b in MOMENTUM_BATCH_SIZES:
        fresh = theory.power_law(DIM)
        sweep = {"learning_rates": MOMENTUM_RATES, "batch_size": b, "momenta": MOMENTA}
        ours, best = seconds(lambda fresh=fresh, sweep=sweep: theory.fastest_on_grid(fresh, TARGET, **sweep))
        part, _ = seconds(lambda b=b: binned_momentum(h, counts, b, share))
        theirs = part * share
        there = passes(problem, best[0], learning_rate=best[1], batch_size=b, momentum=best[2])
        print(f"  B = {b:<6.0f} binned {theirs:5.1f} s (from {100 // share} %)   exact {ours:6.3f} s", end="")
        print(f"   {theirs / ours:6.0f} ×   {best[0]:.0f} steps, {'confirmed' if there else 'NOT CONFIRMED'} to 1e-10")
    every = {"learning_rate": MOMENTUM_RATES[:, None], "batch_size": MOMENTUM_BATCH_SIZES[-1], "momentum": MOMENTA}
    ours, _ = seconds(lambda: theory.steps_to_target(theory.power_law(DIM), TARGET, **every))
    print(f"  B = {MOMENTUM_BATCH_SIZES[-1]:<6.0f} all first passages of the grid: {ours:.2f} s")


if __name__ == "__main__":
    main()
