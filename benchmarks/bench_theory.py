"""Speed of a regime map and of the first call, in one run on one machine.

    python benchmarks/bench_theory.py

The map is 73 learning rates × 13 batch sizes × 2 momenta of the power law with D = 1000 under 200 epochs of 50 000
examples and the paper's schedule. The NumPy loop advances all learning rates and modes of one batch size and momentum
at once, step by step; it is timed over some steps and extrapolated to all.
"""

import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from noisysgd import theory
from noisysgd.theory.common.parallel import usable_cores

DIM, REPETITIONS, LOOP_STEPS = 1000, 5, 300
BUDGET = theory.EpochBudget(epochs=200, dataset_size=50_000)
BATCH_SIZES = 2 ** np.arange(3, 16)
EFFECTIVE_RATES = theory.powers_of_two(-12, 6, fraction=4)
MOMENTA = (0.0, 0.9)

FIRST_CALLS = {
    "import noisysgd.theory": "",
    "expected_loss, SGD": "theory.expected_loss(p, theory.half_then_decay(99), learning_rate=0.1, batch_size=1)",
    "expected_loss, momentum": (
        "theory.expected_loss(p, theory.half_then_decay(99), learning_rate=0.1, batch_size=1, momentum=0.9)"
    ),
    "expected_loss, averaging": (
        "theory.expected_loss(p, theory.half_then_decay(99), learning_rate=0.1, batch_size=1, averaging=0.9)"
    ),
    "expected_loss, least squares": (
        "theory.expected_loss(theory.LeastSquares(p.eigenvalues), theory.half_then_decay(99), "
        "learning_rate=0.1, batch_size=1)"
    ),
    "expected_loss, least squares, averaging": (
        "theory.expected_loss(theory.LeastSquares(p.eigenvalues), theory.half_then_decay(99), "
        "learning_rate=0.1, batch_size=1, averaging=0.9)"
    ),
    "covariance": "theory.covariance(p, theory.half_then_decay(99), learning_rate=0.1, batch_size=1, momentum=0.9)",
    "steps_to_target, SGD": "theory.steps_to_target(p, 0.5, learning_rate=0.1, batch_size=9)",
    "steps_to_target, momentum": "theory.steps_to_target(p, 0.5, learning_rate=0.1, batch_size=9, momentum=0.9)",
    "steps_to_target, least squares": (
        "theory.steps_to_target(theory.LeastSquares(p.eigenvalues, 0.0), 0.1, learning_rate=1e-5, batch_size=9, "
        "momentum=0.5)"
    ),
    "regimes": "theory.regimes(p, theory.StepBudget(99), batch_sizes=[1, 8])",
    "optimal_initial_final": "theory.optimal_initial_final(p, theory.StepBudget(99), batch_size=8)",
    "optimal_schedule": "theory.optimal_schedule(p, theory.StepBudget(99), batch_size=8)",
    "fit_corner": "theory.fit_corner([1, 2, 4, 8, 16], [1, 2, 3, 4, 4])",
    "diffusion_loss": "theory.diffusion_loss(p, theory.constant(9), learning_rate=0.1, batch_size=8)",
    "plot_loss_curves": "from noisysgd.theory import plots; plots.plot_loss_curves([1, 2], [1.0, 0.5])",
}


def seconds(work: object, repetitions: int = REPETITIONS) -> float:
    """Least time that calling `work` took."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    return min(times)


def loop(problem: theory.NoisyQuadratic, batch_size: float, momentum: float, steps: int) -> np.ndarray:
    """The obvious computation: second moments of all learning rates and modes, one step after another."""
    eps = (EFFECTIVE_RATES * (1 - momentum))[:, None]
    x = eps * problem.eigenvalues
    noise = problem.noise * problem.noise_factor(batch_size)
    tt = np.broadcast_to(problem.initial_second_moment, x.shape).copy()
    if momentum == 0:
        for _ in range(steps):
            tt = (1 - x) ** 2 * tt + eps**2 * noise
    else:
        tu, uu = np.zeros_like(tt), np.zeros_like(tt)
        lam = problem.eigenvalues
        for _ in range(steps):
            uu, tu = (
                momentum**2 * uu + 2 * momentum * lam * tu + lam**2 * tt + noise,
                momentum * tu + lam * tt,
            )
            tt, tu = tt - 2 * eps * tu + eps**2 * uu, tu - eps * uu
    return 0.5 * (problem.eigenvalues * tt).sum(axis=1)


def main() -> None:
    """Print the table."""
    problem = theory.power_law(DIM, dataset_size=BUDGET.dataset_size)
    print(f"{usable_cores()} usable cores, load {os.getloadavg()[0]:.1f}")

    def regime_map() -> object:
        return theory.predict_sweep(
            problem, BUDGET, batch_sizes=BATCH_SIZES, effective_learning_rates=EFFECTIVE_RATES, momentum=MOMENTA
        )

    regime_map()
    fast = seconds(regime_map)
    slow, done, total = 0.0, 0, 0
    with np.errstate(over="ignore", invalid="ignore"):  # diverged, for lack of a place to stop
        for momentum in MOMENTA:
            per_step = seconds(lambda m=momentum: loop(problem, 64, m, LOOP_STEPS), 2) / LOOP_STEPS
            steps = int(BUDGET.steps(BATCH_SIZES).sum())
            slow, done, total = slow + per_step * steps, done + LOOP_STEPS, total + steps
    points = f"{EFFECTIVE_RATES.size} learning rates × {BATCH_SIZES.size} batch sizes × {len(MOMENTA)} momenta"
    print(f"regime map, D = {DIM}, {points}: {fast:.2f} s")
    print(f"NumPy loop over steps, from {done} of {total} steps: {slow:.0f} s, {slow / fast:.0f} × as long")
    print(f"regimes(), {BATCH_SIZES.size} batch sizes × {len(MOMENTA)} momenta, optima and boundaries: ", end="")
    print(f"{seconds(lambda: theory.regimes(problem, BUDGET, batch_sizes=BATCH_SIZES, momentum=MOMENTA), 1):.1f} s")

    print("first call in a fresh process, seconds: with nothing compiled before; with everything cached")
    for name, call in FIRST_CALLS.items():
        code = (
            "import time; t = time.perf_counter()\n"
            "from noisysgd import theory\n"
            + (f"p = theory.power_law(10)\nt = time.perf_counter()\n{call}\n" if call else "")
            + "print(time.perf_counter() - t)"
        )
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {"NUMBA_CACHE_DIR": cache}
            runs = [
                float(
                    subprocess.run(
                        [sys.executable, "-c", code], env=environment, capture_output=True, check=True
                    ).stdout
                )
                for _ in range(2)
            ]
        print(f"  {name:31s} {runs[0]:5.2f}  {runs[1]:5.2f}")


if __name__ == "__main__":
    main()
