"""Ensembles of trajectories of SGD: checks what is asked for, runs it on the CPU or a GPU, and labels the result."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from noisysgd.simulators import output_axes
from noisysgd.simulators.cuda import backend as cuda
from noisysgd.simulators.cuda import device as gpu
from noisysgd.simulators.ensembles import tile_moments, tiles
from noisysgd.simulators.ensembles.tiles import Configuration
from noisysgd.simulators.models.example_model import ExampleEnsemble, ExampleModel, check_whole
from noisysgd.simulators.randomness import stream
from noisysgd.simulators.randomness.batches import SAMPLINGS
from noisysgd.simulators.randomness.number_formats import (
    DOUBLE,
    SINGLE,
    Precision,
    check_damping,
    check_range,
    precision,
)
from noisysgd.simulators.randomness.stream import LAWS, NoiseLaw
from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.parallel import checked_threads
from noisysgd.theory.moments.segments import noise_schedule
from noisysgd.theory.moments.update_rule import UpdateRule, update_rule
from noisysgd.theory.problems.l2 import L2
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.schedules.effective_rate import effective_learning_rate, temperature
from noisysgd.theory.schedules.schedule import Schedule

Option = TypeVar("Option")


def simulate(
    problem: NoisyQuadratic | ExampleModel,
    schedule: Schedule,
    *,
    learning_rate: ArrayLike | xr.DataArray,
    batch_size: ArrayLike | xr.DataArray | Schedule,
    momentum: ArrayLike | xr.DataArray = 0.0,
    nesterov: bool = False,
    l2: L2 | None = None,
    tail: float = 0.0,
    dynamics: str = "sgd",
    substeps: int | None = None,
    noise: str = "gaussian",
    degrees_of_freedom: float | None = None,
    sampling: str | None = None,
    replicas: int = 1024,
    record: ArrayLike | None = None,
    seed: int = 0,
    replica_offset: int = 0,
    backend: str = "cpu",
    dtype: str = "float64",
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    keep_tiles: bool = False,
) -> xr.Dataset:
    r"""Mean loss of an ensemble of simulated runs, at chosen steps.

    Every replica starts at θ₀ ~ N(initial_mean, initial_variance) and follows heavy ball with gradient noise, Gaussian
    unless told otherwise (Smith, Elsen & De 2020, eq. 2), in the eigenbasis of the curvature:

        g = λθ + ξ,  cov ξ = F · ``problem.noise_factor(batch_size)``;  u ← m u + g;  θ ← θ − ε · multiplier · u.

    u starts at 0 and is carried across changes of the learning rate. Without momentum this is SGD, which is also the
    Euler–Maruyama scheme of eq. 3 with time step ε. Models made of training examples follow the same updates, with the
    gradients of their own losses.

    Parameters
    ----------
    problem : NoisyQuadratic, FiniteLeastSquares or DiagonalNetwork
        Curvature, gradient noise and initial state of D modes; or a model and the examples that minibatches are drawn
        from.
    schedule : Schedule
        Multipliers of the learning rate, step by step.
    learning_rate, batch_size, momentum : float or array
        ε ≥ 0; 1 ≤ B ≤ N, ``inf`` for no noise; 0 ≤ m < 1. They broadcast. Scalars make no axis; if one of them is 1-D,
        its axis has the name of the parameter; the dimensions of an ``xarray.DataArray`` are kept, and each 1-D array
        beside it has an axis with the name of its parameter; otherwise plain arrays broadcast by position to
        ``axis_0``, ``axis_1``, …. The batch size may also be a Schedule of as many steps, one for all configurations,
        whose multipliers are the batch sizes; for noisy quadratics on the CPU. The coordinates ``batch_size`` and
        ``temperature`` are then those of the first step.
    nesterov : bool
        Whether θ takes Nesterov's step in torch's form, θ ← θ − ε · multiplier · (g + m u), not the heavy ball's.
    l2 : L2, optional
        A penalty that is trained on beside the loss, ``theory.L2(strength, origin)``. The recorded loss is without it.
    tail : float
        Share 0…1 of the updates whose last iterates are averaged with equal weights: the loss is that of their mean.
        1 averages all iterates before each record (Polyak and Ruppert); with another share the end is the only record.
        These three are for noisy quadratics on the CPU, and not for "sde"; `tail` is for "sgd" alone.
    dynamics : {"sgd", "sde", "jump", "minibatch"}
        "sgd": the updates above. "jump": the same law, but one exact Gaussian transition from record to record, so that
        cost goes with records and not with steps; u is followed too. "sde": the diffusion of eq. 3 itself,
        dθ = −Λθ dt + √(T F) dW with T = γε/(1−m), γ = ``problem.noise_factor(batch_size)``, of which one update is the
        time ε/(1−m). "minibatch": gradients of minibatches of real examples. A noisy quadratic can follow "sgd", "sde"
        and "jump", :class:`FiniteLeastSquares` only "minibatch", and :class:`DiagonalNetwork` all but "jump": its "sgd"
        and "sde" have Gaussian noise of the covariance that its minibatches have.
    substeps : int, optional
        Time steps of "sde" for each update; 16 by default. The scheme is Euler–Maruyama: weak order 1 in ε/substeps,
        stable where ε/(1−m) < 2·substeps/λ_max. Its moments are those of SVAG with that factor
        (:func:`noisysgd.theory.svag_loss`). Where an ensemble is so large that its standard errors resolve the distance
        to the diffusion itself, take more substeps or compare with SVAG.
    noise : {"gaussian", "student_t", "uniform"}
        Law of the independent numbers z in ξ = √γ · F^½ z. All laws have variance 1, so that the expected loss is the
        same, except Student's t with ν ≤ 2, whose variance is infinite: there F is a scale, the mean loss does not
        exist, and linear scaling fails. Jumps are always Gaussian; in the SDE every time step draws from the law.
    degrees_of_freedom : float, optional
        ν ≥ 0.5 of Student's t; 3 by default.
    sampling : {"without_replacement", "with_replacement", "reshuffle"}, optional
        How the minibatches of models made of training examples are drawn: as a uniform subset (the default),
        independent from update to update, as in the paper; as independent examples; or from a fresh permutation every
        epoch, which is cut into ⌊N/B⌋ batches.
    replicas : int
        Independent runs of each configuration, ≥ 2.
    record : int or array of int, optional
        Steps to record. None: the end only. An int n: n evenly spaced steps, the last one the end. An array: those
        steps, where 0 is the initial state and s the state after s updates; the end is always recorded too.
    seed : int
        Key of the random stream, 0 ≤ seed < 2⁶⁴.
    replica_offset : int
        Index of the first replica in the random stream. Two runs with disjoint replicas are independent, and together
        are the replicas of one longer run.
    backend : {"cpu", "cuda"}
        "cuda" runs on an NVIDIA GPU through CuPy (``pip install 'noisysgd[cuda12]'``), in the same arithmetic. Without
        GPU or CuPy it raises an error instead of running on the CPU. It has not run on a GPU yet: see ``docs/gpu.md``.
    dtype : {"float64", "float32", "mixed"}
        Type of states, noise and settings; losses are summed in float64. "float32" is about twice as fast, is there for
        "sgd" and "sde" with Gaussian noise, and draws other random numbers. It rounds θ to 24 bits after every update:
        changes below 6·10⁻⁸ of θ are lost, which may happen at minute learning rates or with very many substeps.
        "mixed" has the same noise in states of double precision, which keep such changes, and takes nearly the same
        time as "float32". Its noise still has the limits of single precision: 24 bits, and no normal beyond ±6.77.
    threads : int, optional
        Threads of the CPU to use; all usable cores by default.
    progress : callable, optional
        Called from this thread as ``progress(done, total)``, counting tiles of 128 replicas. See
        :class:`noisysgd.simulators.TimeLeft`.
    keep_tiles : bool
        Whether to return the moments of every tile of 128 replicas too. :func:`noisysgd.simulators.join` needs them to
        make one result of the parts of an ensemble.

    Returns
    -------
    xarray.Dataset
        ``loss``, the mean over replicas of ½ Σ λθ², and ``loss_stderr``, its standard error, over the axes of the
        settings and ``step``; other models have losses of other names, such as ``train_loss``. Both are ``inf`` where
        any replica diverged. Coordinates ``learning_rate``, ``batch_size``, ``momentum``,
        ``effective_learning_rate`` = ε/(1−m) and ``temperature`` = ε/(B(1−m)). With `keep_tiles` also
        ``loss_tile_mean`` and ``loss_tile_deviations``, the mean and the sum of squared deviations over the replicas of
        a tile, over those axes and ``tile``, and ``tile_replicas``, the number of replicas of each tile.

    Raises
    ------
    ValueError
        For settings, replicas, records or seeds out of their ranges, for options that do not apply, such as `substeps`
        with "sgd", and for combinations that this version lacks.

    Notes
    -----
    A jump costs O(D) per record and replica, or O(D²) for a full F, after O(log steps) matrix products and, for a full
    F, one eigen-decomposition of order D (2D with momentum) per record; rounding grows like steps · 2⁻⁵³. It draws
    other random numbers than the updates do: the two agree in law.

    The result is a function of the arguments that describe the experiment: `threads`, and which configurations run
    beside one another, never change a bit. Configurations share random numbers (see
    `noisysgd.simulators.randomness.stream`), so their errors are positively correlated. A full (D, D) covariance F is
    decomposed by LAPACK; its results agree in the last bits only between processes with the same LAPACK, processor and
    number of LAPACK's threads.

    Memory: each thread holds one tile, which takes 2 KiB · D with momentum and 1 KiB · D without, up to 1 MiB for
    losses, and for a full F another 8 D² + 1 KiB · D bytes; states in single precision take half of that. A full F
    itself takes 8 D² bytes, and four times that while it is prepared. The transitions of jumps take up to 256 MiB, or
    one of them if that is more. Results take 16 bytes per configuration and record, and `keep_tiles` another 16 per
    configuration, record and tile. Of a GPU, up to half of the free memory is taken, and the settings come on top
    (`noisysgd.simulators.cuda.backend`).

    Examples
    --------
    >>> from noisysgd import simulators, theory
    >>> problem = theory.power_law(dim=10)
    >>> schedule = theory.half_then_decay(200)
    >>> result = simulators.simulate(problem, schedule, learning_rate=[0.1, 0.4], batch_size=8, replicas=256, record=4)
    >>> dict(result.sizes)
    {'learning_rate': 2, 'step': 4}
    >>> exact = theory.expected_loss(problem, schedule, learning_rate=[0.1, 0.4], batch_size=8)
    >>> last = result.isel(step=-1)
    >>> bool((abs(last.loss - exact) < 5 * last.loss_stderr).all())
    True
    """
    known, metrics = _describes_a_run(problem, schedule)
    checks.one_of("dynamics", dynamics, known)
    made_of_examples = not isinstance(problem, NoisyQuadratic)
    checks.one_of("noise", noise, LAWS)
    substeps = _where(dynamics == "sde", "substeps", substeps, 16, "dynamics='sde'")
    ν = _where(noise == "student_t", "degrees_of_freedom", degrees_of_freedom, 3.0, "noise='student_t'")
    sampling = _where(made_of_examples, "sampling", sampling, SAMPLINGS[0], "a model made of examples")
    fine = checks.integer("substeps", substeps, 1, remedy="Pass how many time steps of the SDE make one update.")
    remedy = "Use fewer substeps: the random stream ends there."
    steps = fine * schedule.steps if dynamics == "sde" else schedule.steps
    checks.require(steps <= stream.STEPS, "substeps", f"at most {stream.STEPS} time steps", steps, remedy)
    law = NoiseLaw(noise, ν)
    checks.one_of("sampling", sampling, SAMPLINGS)
    gaussian = not made_of_examples or noise == "gaussian"
    checks.require(gaussian, "noise", "'gaussian' for models made of examples", noise, "Their examples make the noise.")
    jumpy = dynamics != "jump" or noise == "gaussian"
    checks.require(jumpy, "noise", "'gaussian' for jumps", noise, "Only Gaussian noise has exact transitions here.")
    checks.one_of("backend", backend, ("cpu", "cuda"))
    known_there = backend == "cpu" or cuda.runs(problem)
    checks.require(known_there, "backend", "'cpu' for this model", backend, "It has kernels for the CPU alone.")
    kind = precision(dtype)
    _precision_is_possible(kind, dynamics, noise, problem)
    keep_tiles = checks.boolean("keep_tiles", keep_tiles)
    runs = tiles.replica_range(replicas, replica_offset)
    record = record_steps(record, schedule.steps)
    called = progress is None or callable(progress)
    checks.require(called, "progress", "a function of (done, total)", progress, "Pass simulators.TimeLeft().")
    growth = batch_size if isinstance(batch_size, Schedule) else None
    factor = _noise_schedule(problem, schedule, growth, backend)
    first_size: Any = batch_size if growth is None else float(growth.multipliers[0])
    output_axes.require_free_names(metrics, learning_rate=learning_rate, batch_size=first_size, momentum=momentum)
    settings, dataset = output_axes.labelled(learning_rate=learning_rate, batch_size=first_size, momentum=momentum)
    rates = checks.learning_rate(settings["learning_rate"].values)
    sizes = settings["batch_size"].values
    # What a batch size may be depends on who makes the noise: theory has a formula, real batches need whole examples.
    if isinstance(problem, NoisyQuadratic):
        sizes = checks.batch_size(sizes, problem.dataset_size)
    else:
        sizes = checks.batch_size(sizes)
        problem.check_batches(sizes, sampling)
        if dynamics == "minibatch":
            check_whole(sizes)
    momenta = checks.momentum(settings["momentum"].values)
    if kind is SINGLE:
        check_range("learning_rate", rates)
        check_range("momentum", momenta)
        check_damping(momenta)
    seed = int(stream.index("seed", seed, stream.SEEDS))
    workers = checked_threads(threads)
    rule = update_rule(nesterov, l2, tail)
    _rule_is_possible(rule, dynamics, backend, record, made_of_examples=made_of_examples)
    device = gpu.device() if backend == "cuda" else None

    # A step of the SDE is an update of a schedule of `substeps` times as many steps, and is simulated as one.
    finer = Schedule(fine * schedule.lengths, schedule.multipliers) if dynamics == "sde" else schedule
    finer_record = fine * record if dynamics == "sde" else record
    finer_factor = factor
    if factor is not None and dynamics == "sde":
        finer_factor = Schedule(fine * factor.lengths, factor.multipliers)
    shared: tiles.Ensemble | ExampleEnsemble
    if isinstance(problem, NoisyQuadratic):
        factors = np.broadcast_to(problem.noise_factor(sizes) if factor is None else 1.0, rates.shape)
        configurations = _quadratic_configurations(rates, momenta, factors, fine if dynamics == "sde" else 0)
        jumps = dynamics == "jump"
        shared = tiles.ensemble(
            problem,
            finer,
            finer_record,
            seed,
            exact_jumps=jumps,
            law=law,
            precision=kind,
            rule=rule,
            noise=finer_factor,
        )
    else:
        points = zip(rates.flat, momenta.flat, np.broadcast_to(sizes, rates.shape).flat, strict=True)
        configurations = [Configuration(float(ε), float(m), batch_size=float(b)) for ε, m, b in points]
        shared = ExampleEnsemble(problem, finer, finer_record, np.uint64(seed), dynamics, sampling, fine)
    # Before the simulation and not after it: a name that is taken would cost its result.
    if keep_tiles:
        tile_moments.require_free_axis((*settings["learning_rate"].dims, *dataset.coords))
    per_tile = tile_moments.room(len(configurations), shared.rows, len(runs)) if keep_tiles else None
    if device is not None:
        mean, spread = cuda.simulate_all(device, shared, configurations, runs, progress, per_tile)
    else:
        mean, spread = tiles.simulate_all(shared, configurations, runs, workers, progress, per_tile)

    dims, shape = (*settings["learning_rate"].dims, "step"), (*rates.shape, record.size, len(metrics))
    stderr = tile_moments.standard_error(spread, len(runs))
    dataset = dataset.assign_coords(step=("step", record, {"long_name": "updates done"}))
    for k, (name, meaning) in enumerate(metrics.items()):
        about = {"long_name": f"mean of {meaning} over replicas", "units": "loss"}
        dataset[name] = (dims, mean.reshape(shape)[..., k], about)
        about = {"long_name": f"standard error of {name}", "units": "loss"}
        dataset[f"{name}_stderr"] = (dims, stderr.reshape(shape)[..., k], about)
    dataset = _describe(dataset)
    if per_tile is not None:
        # LAPACK may find another root in another process, and with it other bits: parts say which one they have.
        root = shared.noise_root if isinstance(shared, tiles.Ensemble) else 0.0
        experiment = tile_moments.fingerprint(problem, schedule, root, *([] if growth is None else [growth]))
        counts = tiles.tile_sizes(len(runs))
        dataset = tile_moments.attach(dataset, list(metrics), per_tile, counts, experiment)
    return dataset.assign_attrs(
        source="simulator",
        dynamics=dynamics,
        **({"substeps": fine} if dynamics == "sde" else {}),
        noise=noise,
        **({"sampling": sampling} if made_of_examples else {}),
        **({"degrees_of_freedom": law.degrees_of_freedom} if noise == "student_t" else {}),
        replicas=len(runs),
        replica_offset=runs[0],
        seed=seed,
        stream_version=stream.STREAM_VERSION,
        backend=backend,
        dtype=dtype,
    )


def _noise_schedule(
    problem: NoisyQuadratic | ExampleModel, schedule: Schedule, batch_size: Schedule | None, backend: str
) -> Schedule | None:
    """The noise factors of a schedule of the batch size, after checking that there are kernels for it."""
    if batch_size is None:
        return None
    quadratic = isinstance(problem, NoisyQuadratic)
    remedy = "Models made of examples draw batches of one size."
    checks.require(quadratic, "batch_size", "numbers for a model made of examples", batch_size, remedy)
    remedy = "CUDA kernels have one batch size."
    checks.require(backend == "cpu", "batch_size", "numbers with backend='cuda'", batch_size, remedy)
    assert isinstance(problem, NoisyQuadratic)
    return noise_schedule(problem, schedule, batch_size)


def _rule_is_possible(
    rule: UpdateRule, dynamics: str, backend: str, record: IntArray, *, made_of_examples: bool
) -> None:
    """Check that updates other than the paper's have kernels for what is asked for."""
    if rule.plain:
        return
    name = "nesterov" if rule.nesterov else "l2" if rule.l2 is not None else "tail"
    remedy = "Models made of examples follow the paper's SGD and heavy ball."
    checks.require(not made_of_examples, name, "none for a model made of examples", name, remedy)
    checks.require(backend == "cpu", name, "none with backend='cuda'", name, "These updates have no CUDA kernels.")
    remedy = "The SDE of Nesterov's step is the heavy ball's; penalties and averages are simulated update by update."
    checks.require(dynamics != "sde", name, "none with dynamics='sde'", name, remedy)
    jumpy = dynamics == "sgd" or rule.tail == 0.0
    checks.require(jumpy, "tail", "none with dynamics='jump'", rule.tail, "Jumps pass over the iterates to average.")
    only_end = rule.tail in (0.0, 1.0) or record.size == 1
    remedy = "Each record has other last iterates: record the end alone, or take all with tail=1."
    checks.require(only_end, "record", "no record but the end beside a tail", record, remedy)


def _quadratic_configurations(
    rates: FloatArray, momenta: FloatArray, factors: FloatArray, substeps: int
) -> list[Configuration]:
    """One configuration for each point of the settings; with `substeps` > 0, for the time steps of the SDE."""
    points = zip(rates.flat, momenta.flat, factors.flat, strict=True)
    if substeps:
        # A step of time h = ε/((1−m)·substeps) adds the variance hTF = h²·(substeps·γ)·F: an SGD of its own.
        return [Configuration(float(ε / (1 - m) / substeps), 0.0, float(substeps * γ)) for ε, m, γ in points]
    return [Configuration(float(ε), float(m), float(γ)) for ε, m, γ in points]


def _where(applies: bool, name: str, value: Option | None, default: Option, where: str) -> Option:
    """`value` or its default, for an option that means something in one case only; elsewhere it may not be given."""
    checks.require(applies or value is None, name, f"nothing without {where}", value, "Pass both or neither.")
    return default if value is None else value


def _describes_a_run(
    problem: NoisyQuadratic | ExampleModel, schedule: Schedule
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Check problem and schedule; return the dynamics that the problem can follow, and its losses by name, in words."""
    if isinstance(problem, NoisyQuadratic):
        unweighted = bool((problem.weights == 1).all())
        remedy = "A trajectory has single modes: repeat an eigenvalue as often as its weight says."
        checks.require(unweighted, "problem", "weights of 1", problem.weights, remedy)
        known: tuple[str, ...] = ("sgd", "sde", "jump")
        metrics = {"loss": "½ θᵀΛθ"}
    else:
        made = "Make one with theory.power_law, theory.NoisyQuadratic or simulators.sparse_regression."
        sampled = "Draw a data set with simulators.FiniteLeastSquares.sample."
        remedy = sampled if isinstance(problem, LeastSquares) else made
        simulable = all(hasattr(problem, member) for member in ("dynamics", "metrics", "check_batches", "losses"))
        expected = "a NoisyQuadratic, FiniteLeastSquares or DiagonalNetwork"
        checks.require(simulable, "problem", expected, problem, remedy)
        known, metrics = problem.dynamics, {name: name.replace("_", " ") for name in problem.metrics}
    remedy = "Make one with theory.half_then_decay or theory.constant."
    checks.require(isinstance(schedule, Schedule), "schedule", "a Schedule", schedule, remedy)
    short = schedule.steps <= stream.STEPS
    checks.require(short, "schedule", f"at most {stream.STEPS} steps", schedule.steps, "The random stream ends there.")
    return known, metrics


def _precision_is_possible(kind: Precision, dynamics: str, noise: str, problem: NoisyQuadratic | ExampleModel) -> None:
    """Check that a precision other than double has what is asked for, and that its range holds the problem."""
    if kind is DOUBLE:
        return
    if not isinstance(problem, NoisyQuadratic):
        remedy = "Models made of examples are in double precision."
        checks.require(False, "dtype", "'float64' for this model", kind.name, remedy)
        return
    stepwise = dynamics != "jump"
    checks.require(stepwise, "dtype", "'float64' for jumps", kind.name, "Exact transitions are in double precision.")
    gaussian = noise == "gaussian"
    remedy = "Single precision draws Gaussian noise only."
    checks.require(gaussian, "dtype", f"'float64' for noise={noise!r}", kind.name, remedy)
    if kind is not SINGLE:
        return
    check_range("eigenvalues", problem.eigenvalues)
    check_range("initial_mean", problem.initial_mean)
    check_range("initial_variance", np.sqrt(problem.initial_variance))
    check_range("noise", np.sqrt(np.diagonal(problem.noise) if problem.noise.ndim == 2 else problem.noise))


def record_steps(record: ArrayLike | None, steps: int) -> IntArray:
    """List the recorded steps that `record` asks for: sorted, unique, ending with `steps`.

    >>> record_steps(4, 10), record_steps([0, 5], 10)
    (array([ 2,  5,  7, 10]), array([ 0,  5, 10]))
    """
    if record is None:
        return np.array([steps])
    if np.ndim(record) == 0:
        count = checks.integer("record", record, 1, remedy="Pass a number of records, or an array of steps.")
        remedy = "Pass an array of steps to choose them yourself."
        checks.require(count <= steps, "record", f"at most one record per step ({steps})", record, remedy)
        return np.array([steps * k // count for k in range(1, count + 1)])
    remedy = "0 is the initial state, the schedule's number of steps its end."
    wanted = checks.real("record", record, remedy=remedy)
    whole = wanted.ndim == 1 and bool(np.all((wanted == np.floor(wanted)) & (wanted >= 0) & (wanted <= steps)))
    checks.require(whole, "record", f"a one-dimensional array of steps in 0…{steps}", record, remedy)
    return np.union1d(wanted.astype(np.int64), [steps])


def _describe(dataset: xr.Dataset) -> xr.Dataset:
    """Add the derived coordinates of the settings, and say what every coordinate is."""
    rate, size, momentum = (dataset[name].variable for name in ("learning_rate", "batch_size", "momentum"))
    dataset = dataset.assign_coords(
        effective_learning_rate=xr.apply_ufunc(effective_learning_rate, rate, momentum),
        temperature=xr.apply_ufunc(temperature, rate, size, momentum),
    )
    names = {
        "learning_rate": "learning rate ε",
        "batch_size": "batch size B",
        "momentum": "momentum coefficient m",
        "effective_learning_rate": "effective learning rate ε/(1−m)",
        "temperature": "temperature ε/(B(1−m))",
    }
    for name, long_name in names.items():
        dataset[name].attrs.update(long_name=long_name, units="examples" if name == "batch_size" else "1")
    return dataset
