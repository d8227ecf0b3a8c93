"""The stages of the demonstration: predict, simulate, train, measure and compare; some minutes on two cores.

Simulation, training and measurement keep their results in the output directory, from which an interrupted demonstration
goes on.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from tqdm import tqdm

from noisysgd import simulators, theory
from noisysgd.theory.common import checks
from noisysgd.validation.configuration import TrainConfig
from noisysgd.validation.prediction.quadratic import calibrated_quadratic
from noisysgd.validation.runs.executors import local_executor
from noisysgd.validation.runs.single_run import run_one
from noisysgd.validation.runs.store import RunStore
from noisysgd.validation.sweeps.trained import Sweep

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

MOMENTA = (0.0, 0.9)
ONLY_SCALES = {"eigenvalues": 1, "probes": 0, "sharpness_batches": 0}
"""Options of ``measure`` that leave out what the report does not show; the spectrum alone would cost 90 more
Hessian-vector products at each state."""


@dataclass(frozen=True)
class DemoPlan:
    """Everything that the demonstration computes; :func:`full_plan` and :func:`quick_plan` make one each.

    Parameters
    ----------
    problem, budget
        The noisy quadratic of theory and simulation, and the budget of its runs.
    curve_batch_sizes : array_like
        Batch sizes at which theory draws its curve of the optimum.
    batch_sizes : tuple of int
        Batch sizes of the loss curves and of the simulation.
    exponents : tuple of int
        Smallest and largest k of the effective learning rates 2^k of these.
    ensembles, replicas : int
        Ensembles at each point of the simulation, and trajectories in each.
    sweep : Sweep
        The training runs.
    reference : TrainConfig
        The run along which curvature and gradient noise are measured.
    measure_at : tuple of float
        Where, as shares of its steps.
    measure_options : dict
        Further arguments of :func:`noisysgd.validation.measure`.
    """

    problem: theory.NoisyQuadratic
    budget: theory.EpochBudget
    curve_batch_sizes: ArrayLike
    batch_sizes: tuple[int, ...]
    exponents: tuple[int, int]
    ensembles: int
    replicas: int
    sweep: Sweep
    reference: TrainConfig
    measure_at: tuple[float, ...]
    measure_options: dict[str, Any] = field(default_factory=dict)


def full_plan(seed: int) -> DemoPlan:
    """The plan of ``noisysgd demo``: four batch sizes, the largest the whole data set, and three seeds."""
    base = TrainConfig(learning_rate=1.0, batch_size=64, epochs=12, seed=seed)
    windows = {
        (0.0, 16): range(-2, 2),
        (0.9, 16): range(-2, 2),
        (0.0, 64): range(-1, 3),
        (0.9, 64): range(-1, 3),
        (0.0, 256): range(0, 4),
        (0.9, 256): range(1, 5),
        (0.0, 1280): range(0, 4),
        (0.9, 1280): range(2, 6),
    }
    return DemoPlan(
        problem=_quadratic(64),
        budget=theory.EpochBudget(epochs=20, dataset_size=4096),
        curve_batch_sizes=2.0 ** np.arange(0, 12.25, 0.5),
        batch_sizes=(8, 64, 512, 2048),
        exponents=(-8, 5),
        ensembles=8,
        replicas=32,
        sweep=Sweep(
            base=base,
            batch_sizes=(16, 64, 256, 1280),
            momenta=MOMENTA,
            exponents=windows,
            seeds=3,
            keep=2,
            extensions=2,
        ),
        reference=base.with_(learning_rate=0.25),
        measure_at=(0.0, 0.05, 0.2, 0.5),
        measure_options={"units": 256, "products": 8} | ONLY_SCALES,
    )


def quick_plan(seed: int) -> DemoPlan:
    """The plan of ``noisysgd demo --quick``, for about half a minute: two batch sizes, few epochs, one seed.

    It shows every stage; the optima of single runs need not mean much.
    """
    base = TrainConfig(learning_rate=1.0, batch_size=64, epochs=3, seed=seed)
    return DemoPlan(
        problem=_quadratic(16),
        budget=theory.EpochBudget(epochs=10, dataset_size=1024),
        curve_batch_sizes=2.0 ** np.arange(0, 10.5),
        batch_sizes=(8, 512),
        exponents=(-5, 5),
        ensembles=8,
        replicas=64,
        sweep=Sweep(
            base=base,
            batch_sizes=(16, 640),
            momenta=MOMENTA,
            exponents={
                (0.0, 16): range(-2, 2),
                (0.9, 16): range(-2, 2),
                (0.0, 640): range(-1, 3),
                (0.9, 640): range(2, 6),
            },
            seeds=1,
            keep=1,
            extensions=0,
        ),
        reference=base.with_(learning_rate=0.25),
        measure_at=(0.0, 0.25),
        measure_options={"units": 64, "products": 2, "curvature_examples": 256} | ONLY_SCALES,
    )


def _quadratic(dim: int) -> theory.NoisyQuadratic:
    """The power-law spectrum scaled to λ_max = 3, with gradient noise F = Λ.

    With λ_max = 1 some learning rates of the grid, which are powers of two and halved at each drop, would have ελ = 1
    exactly, where one step removes all error: an accident of the example.
    """
    spectrum = 3.0 * theory.power_law(dim).eigenvalues
    return theory.NoisyQuadratic(spectrum, noise=spectrum)


@dataclass(frozen=True)
class DemoResults:
    """What the stages computed, for the report.

    Parameters
    ----------
    plan : DemoPlan
    regimes, exact : xarray.Dataset
        Optima of the quadratic against the batch size, and its loss curves.
    simulated, trained : xarray.Dataset
        Sweeps of the simulation and of the networks.
    reference : dict
        Record of the reference run, with its ``measurements``.
    predicted : xarray.Dataset
        Optima of the quadratic that is calibrated to the reference run before its first step.
    """

    plan: DemoPlan
    regimes: xr.Dataset
    exact: xr.Dataset
    simulated: xr.Dataset
    trained: xr.Dataset
    reference: dict[str, Any]
    predicted: xr.Dataset


def run_demo(plan: DemoPlan, out: Path, *, seed: int = 0, progress: bool = True) -> DemoResults:
    """Run all stages, each from where an earlier call with the same plan stopped, and return their results.

    Parameters
    ----------
    plan : DemoPlan
    out : Path
        Created if missing; holds ``theory.nc``, ``simulator.nc``, ``sweep.nc`` and the run stores ``runs`` and
        ``reference``.
    seed : int
        Seed of the simulated ensembles; training runs have the seeds of the plan.
    progress : bool
        Whether to show progress bars with the time left, on the standard error stream.

    Raises
    ------
    ValueError
        If `out` is something other than a directory.
    """
    progress = checks.boolean("progress", progress)
    remedy = "Choose another --out."
    checks.require(not out.exists() or out.is_dir(), "out", "a directory or a new path", str(out), remedy)
    out.mkdir(parents=True, exist_ok=True)
    rates = theory.powers_of_two(*plan.exponents)
    grid: dict[str, Any] = {"batch_sizes": plan.batch_sizes, "effective_learning_rates": rates, "momentum": MOMENTA}
    with _bar("theory", progress) as advance:
        advance(0.0)
        regimes = theory.regimes(plan.problem, plan.budget, batch_sizes=plan.curve_batch_sizes, momentum=MOMENTA)
        advance(0.8)
        # Four points per octave: smooth lines, with every simulated learning rate among them.
        fine = grid | {"effective_learning_rates": theory.powers_of_two(*plan.exponents, fraction=4)}
        exact = theory.predict_sweep(plan.problem, plan.budget, **fine)
        theory.save_sweep(exact, out / "theory.nc")
        advance(1.0)
    with _bar("simulation", progress) as advance:
        advance(0.0)
        # What the numbers depend on: a file of other numbers, from an earlier plan or version, is not reused.
        spectrum = hashlib.sha256(plan.problem.eigenvalues.tobytes() + plan.problem.noise.tobytes()).hexdigest()
        sizes = (plan.batch_sizes, plan.exponents, plan.ensembles, plan.replicas)
        identity = json.dumps([simulators.STREAM_VERSION, seed, spectrum, repr(plan.budget), MOMENTA, *sizes])
        simulated = _cached(
            out / "simulator.nc",
            identity,
            lambda: simulators.simulate_sweep(
                plan.problem,
                plan.budget,
                **grid,
                seeds=plan.ensembles,
                replicas=plan.replicas,
                seed=seed,
                progress=advance,
            ),
        )
        advance(1.0)
    # The store knows a run by its TrainConfig alone, which does not say how it was measured: one store for each way.
    measured_as = hashlib.sha256(json.dumps([plan.measure_at, plan.measure_options]).encode()).hexdigest()[:16]
    runs, reference = RunStore(out / "runs"), RunStore(out / "reference" / measured_as)
    with local_executor() as executor:
        # The reference run is submitted before the sweep, so that both share the workers from the beginning.
        measured = executor.submit(measure_reference, reference, plan.reference, plan.measure_at, plan.measure_options)
        with _bar("training", progress, unit="run") as advance:
            trained = _train(plan.sweep, runs, executor, advance)
        with _bar("measurement", progress) as advance:
            advance(0.0)
            measured.result()
            advance(1.0)
    theory.save_sweep(trained, out / "sweep.nc")
    # The measurement took place in another process, which left its result in the store.
    record = reference.read(plan.reference)
    if record is None:
        raise RuntimeError(f"{reference.root}: the record of the reference run vanished. Start again to repeat it.")
    predicted = predict_optima(record, plan.sweep)
    return DemoResults(plan, regimes, exact, simulated, trained, record, predicted)


def predict_optima(reference: dict[str, Any], sweep: Sweep) -> xr.Dataset:
    """Optimal learning rates of the quadratic that matches the network before training.

    Parameters
    ----------
    reference : dict
        Record of the reference run; its first measurement is that of the untrained network.
    sweep : Sweep
        Gives budget, schedule, momenta and batch sizes.

    Returns
    -------
    xarray.Dataset
        As :func:`noisysgd.theory.regimes` returns it.
    """
    initial = reference["measurements"][0]
    problem = calibrated_quadratic(initial, loss=initial["loss"])
    budget = sweep.base.budget(initial["dataset_size"])
    smallest, largest = min(sweep.batch_sizes), max(sweep.batch_sizes)
    # A few points per octave, with the trained batch sizes among them. They begin well below the smallest of these, to
    # show the side that gradient noise dominates.
    between = np.unique(np.geomspace(max(1, smallest // 8), largest, 33).round())
    return theory.regimes(problem, budget, batch_sizes=np.union1d(between, sweep.batch_sizes), momentum=sweep.momenta)


def _train(sweep: Sweep, store: RunStore, executor: Executor, advance: Callable[..., None]) -> xr.Dataset:
    """Run the sweep and show its progress as that of a bar."""
    return sweep.run(
        store,
        executor,
        work=run_one,
        progress=lambda done, planned, share: advance(share, f"{done}/{planned} runs"),
    )


def measure_reference(store: RunStore, config: TrainConfig, at: tuple[float, ...], options: dict[str, Any]) -> None:
    """Train one network and measure it on its way, unless the store has its record already.

    Parameters
    ----------
    store : RunStore
        Is given the record of the run, with the further entry ``measurements``: a list of dicts, one per state.
    config : TrainConfig
    at : tuple of float
        Where to measure, as shares of the run's steps.
    options : dict
        Further arguments of :func:`noisysgd.validation.measure`.
    """
    if store.read(config) is not None:
        return
    from noisysgd.theory.common.provenance import provenance
    from noisysgd.validation.data.datasets import load_dataset
    from noisysgd.validation.measurement.measurement import measure
    from noisysgd.validation.training.evaluation import evaluate
    from noisysgd.validation.training.loop import train

    data = load_dataset(config.dataset)
    steps = config.schedule(data.train_size).steps
    states: list[dict[str, Any]] = []

    def observe(step: int, model: "nn.Module") -> None:
        found = measure(model, data, ghost_batch_size=config.ghost_batch_size, seed=config.seed, **options)
        states.append(
            {"step": step, "dataset_size": data.train_size, "loss": evaluate(model, data, config)["train_loss"]}
            | found.as_dict()
        )

    record = train(config, observe=observe, observe_at=tuple(round(share * steps) for share in at))
    store.write(record | {"provenance": provenance(), "measurements": states})


def _cached(path: Path, identity: str, compute: Callable[[], xr.Dataset]) -> xr.Dataset:
    """The Sweep at `path` if it has the same `identity`; else what `compute` returns, which is saved there."""
    if path.exists():
        try:
            stored = theory.load_sweep(path)
            if stored.attrs.get("identity") == identity:
                return stored
        except ValueError as error:  # damaged, or of another version
            logger.warning("%s; computing it again", error)
    sweep = compute().assign_attrs(identity=identity)
    theory.save_sweep(sweep, path)
    return sweep


@contextmanager
def _bar(name: str, show: bool, unit: str = "") -> Iterator[Callable[..., None]]:
    """Show a progress bar in percent; yields the function ``advance(share, note)`` that moves it."""
    layout = "{desc:<12} {percentage:3.0f}% |{bar:30}| {elapsed} elapsed, {remaining} left {postfix}"
    with tqdm(total=100.0, desc=name, unit=unit, bar_format=layout, disable=not show, dynamic_ncols=True) as bar:
        begun = False

        def advance(share: float, note: str = "") -> None:
            nonlocal begun
            bar.set_postfix_str(note, refresh=False)
            # Set, not incremented: when a sweep grows its grid, the share of the work done becomes smaller.
            bar.n = max(0.0, min(100.0, 100.0 * share))
            # The bar's speed, and with it the time left, must not count what was done by an earlier start.
            if not begun:
                bar.initial, begun = bar.n, True
            bar.refresh()

        yield advance
