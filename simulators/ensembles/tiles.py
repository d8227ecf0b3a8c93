"""Tiles: blocks of replicas that are simulated alone, side by side, and merged in order.

A tile is `LANES` replicas of one configuration. Its result depends on nothing outside it, and tiles are merged in the
order of their replicas, so that no number of threads changes a bit.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from noisysgd.simulators.ensembles import trajectory_kernels as kernels
from noisysgd.simulators.ensembles.jump import Transition, between, transition
from noisysgd.simulators.ensembles.windows import Cancelled, Window, window_length, windows
from noisysgd.simulators.randomness.number_formats import DOUBLE, Precision, StateArray
from noisysgd.simulators.randomness.stream import REPLICAS, NoiseLaw
from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.moments.update_rule import HEAVY_BALL, UpdateRule, tail_length
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.schedules.schedule import Schedule

LANES = 128
MOST_REPLICAS = 2**28
"""Of one call: their states take 2 GB for each coordinate."""
"""Replicas of a tile. Part of the meaning of a result's last bits: tiles fix the order in which losses are summed."""

TRANSITIONS_MEMORY = 2**28
"""Bytes of the exact transitions that are kept for a configuration, unless a single one is larger."""

GAUSSIAN = NoiseLaw()

Moments = tuple[FloatArray, FloatArray]
"""Mean and sum of squared deviations over replicas: two arrays of one shape, (rows,) unless said otherwise."""


@dataclass(frozen=True, eq=False)
class Ensemble:
    """What all configurations of one call on a noisy quadratic share.

    Arrays are writable and contiguous, as the kernels were compiled. They have the precision of the state, but for
    `noise_root`, which is rounded only after a configuration has scaled it (`scaled_root`). Curvatures and initial
    states are those that the penalty of `rule` makes, measured from its fixed point; `weight` and `shift` make the loss
    of the problem alone from them. Where the batch size has a schedule, so has what multiplies the covariance of the
    noise: `noise`.
    """

    curvature: StateArray
    noise_root: FloatArray
    initial_mean: StateArray
    initial_deviation: StateArray
    schedule: Schedule
    record: IntArray
    seed: np.uint64
    exact_jumps: bool = False
    law: NoiseLaw = GAUSSIAN
    precision: Precision = DOUBLE
    rule: UpdateRule = HEAVY_BALL
    weight: StateArray = field(default_factory=lambda: np.empty(0))
    shift: StateArray = field(default_factory=lambda: np.empty(0))
    noise: Schedule | None = None

    @property
    def rows(self) -> int:
        """How many losses one replica records."""
        return self.record.size


@dataclass(frozen=True)
class Configuration:
    """One point of the broadcast settings.

    Attributes
    ----------
    learning_rate, momentum : float
    noise_factor : float
        Multiplies the covariance F of one example's gradient, where noise is not that of real batches.
    batch_size : float
        Where batches of real examples are drawn, or a model derives its noise from it.
    """

    learning_rate: float
    momentum: float
    noise_factor: float = 0.0
    batch_size: float = np.inf


class Tiled(Protocol):
    """What tiles ask of the ensembles of other models than noisy quadratics: `example_model.ExampleEnsemble`."""

    @property
    def rows(self) -> int:
        """How many losses one replica records."""

    def losses(
        self, configuration: Configuration, replica: int, lanes: int, stop: threading.Event | None
    ) -> Iterator[FloatArray]:
        """Blocks of losses, (some rows, lanes), that make up all rows one below the other."""


def ensemble(
    problem: NoisyQuadratic,
    schedule: Schedule,
    record: IntArray,
    seed: int,
    *,
    exact_jumps: bool = False,
    law: NoiseLaw = GAUSSIAN,
    precision: Precision = DOUBLE,
    rule: UpdateRule = HEAVY_BALL,
    noise: Schedule | None = None,
) -> Ensemble:
    """Prepare a problem for kernels: a square root of F, (D,) or (D, D), and plain copies of everything else."""
    fixed = rule.fixed_point(problem)
    return Ensemble(
        curvature=precision.of(problem.eigenvalues + rule.pull()),
        weight=precision.of(np.array(problem.eigenvalues)),
        shift=precision.of(fixed),
        rule=rule,
        noise_root=square_root(problem.noise),
        initial_mean=precision.of(problem.initial_mean - fixed),
        initial_deviation=precision.of(np.sqrt(problem.initial_variance)),
        schedule=schedule,
        record=record,
        seed=np.uint64(seed),
        exact_jumps=exact_jumps,
        law=law,
        precision=precision,
        noise=noise,
    )


def square_root(covariance: FloatArray) -> FloatArray:
    """Find S with SSᵀ = F: the symmetric root, which semi-definite F have too; entrywise for a diagonal (D,).

    >>> square_root(np.array([[2.0, 2.0], [2.0, 2.0]])).round(12)
    array([[1., 1.],
           [1., 1.]])
    """
    if covariance.ndim == 1:
        return np.sqrt(covariance)
    values, vectors = np.linalg.eigh(covariance)
    # An eigenvalue of zero comes out of eigh as rounding of either sign, of which the negative has no real root.
    return np.ascontiguousarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


def replica_range(replicas: int, offset: int) -> range:
    """The `replicas` of an ensemble that begins at replica `offset` of the random stream, after checking both."""
    remedy = "A standard error needs two runs; ensembles beyond a call are shared by simulators.shares."
    count = checks.integer("replicas", replicas, 2, maximum=MOST_REPLICAS, remedy=remedy)
    first = checks.integer("replica_offset", offset, 0, remedy="Replicas count from 0.")
    remedy = "The random stream has no more replicas than that; change the seed instead."
    checks.require(first + count <= REPLICAS, "replica_offset + replicas", f"at most {REPLICAS}", first + count, remedy)
    return range(first, first + count)


def cut(replicas: range, size: int = LANES) -> list[range]:
    """Cut replicas into consecutive groups of `size`, by default tiles; the last may be smaller.

    >>> cut(range(300))
    [range(0, 128), range(128, 256), range(256, 300)]
    """
    return [replicas[first : first + size] for first in range(0, len(replicas), size)]


def tile_sizes(replicas: int) -> IntArray:
    """How many replicas each tile of an ensemble has.

    >>> tile_sizes(300)
    array([128, 128,  44])
    """
    return np.diff(np.append(np.arange(0, replicas, LANES), replicas))


def tile_losses(
    shared: Ensemble | Tiled,
    configuration: Configuration,
    replica: int,
    lanes: int,
    stop: threading.Event | None = None,
    transitions: "Transitions | None" = None,
) -> Iterator[FloatArray]:
    """Losses of replicas replica…replica + lanes − 1, a block of (records, lanes) per window; inf where diverged.

    Exact jumps take their `transitions` from those that all tiles of a configuration share, or make their own.
    """
    if not isinstance(shared, Ensemble):
        yield from shared.losses(configuration, replica, lanes, stop)
        return
    dim, precision = shared.curvature.size, shared.precision
    # Random numbers come in blocks of several coordinates: the last block may have more than are left.
    theta = np.empty((precision.rows(dim), lanes), precision.dtype)
    precision.fill(theta, shared.seed, np.uint64(precision.initial_state), np.uint64(replica), np.uint64(0))
    theta = theta[:dim]
    theta *= shared.initial_deviation[:, None]
    theta += shared.initial_mean[:, None]
    velocity = np.zeros((dim if configuration.momentum > 0 else 0, lanes), precision.dtype)
    if shared.record[0] == 0:
        losses = np.zeros((1, lanes))
        kernels.initial_loss(losses, theta, shared.weight, shared.shift)
        yield losses
    if shared.exact_jumps:
        yield from _jumps(shared, transitions or Transitions(shared, configuration), theta, velocity, replica, stop)
    else:
        yield from _steps(shared, configuration, theta, velocity, replica, stop)


class Transitions:
    """Exact transitions of one configuration between its records, made when a tile asks for them.

    The ones asked for last are kept, up to `memory` bytes: tiles go from record to record side by side, and share them.
    """

    def __init__(self, shared: Ensemble, configuration: Configuration, memory: int = TRANSITIONS_MEMORY) -> None:
        self._shared, self._configuration, self._memory = shared, configuration, memory
        self._known: dict[tuple[bytes, bytes, bytes], Transition] = {}
        self._lock = threading.Lock()

    def between(self, start: int, stop: int) -> Transition:
        """The transition over the steps from `start` to `stop`."""
        shared, configuration = self._shared, self._configuration
        multipliers, shares, lengths = between(shared.schedule, start, stop, shared.noise)
        # What happens in between is the key, not where: records at equal distances share one transition.
        key = (multipliers.tobytes(), shares.tobytes(), lengths.tobytes())
        # Threads that need the same transition wait for the first of them instead of making it again.
        with self._lock:
            if key not in self._known:
                root = shared.noise_root
                covariance = (root**2 if root.ndim == 1 else root @ root.T) * configuration.noise_factor
                with np.errstate(over="ignore"):
                    rates = configuration.learning_rate * multipliers
                settings = (configuration.momentum, shared.rule.nesterov, shares)
                made = transition(shared.curvature, covariance, rates, lengths, *settings)
                while self._known and sum(each.nbytes for each in self._known.values()) + made.nbytes > self._memory:
                    del self._known[next(iter(self._known))]
                self._known[key] = made
            # A dict keeps its order of insertion: the one used last goes to the end, and is forgotten last.
            self._known[key] = self._known.pop(key)
            return self._known[key]


def _jumps(
    shared: Ensemble,
    transitions: Transitions,
    theta: StateArray,
    velocity: StateArray,
    replica: int,
    stop: threading.Event | None,
) -> Iterator[FloatArray]:
    """Losses of a tile that goes from record to record by exact transitions."""
    jump = kernels.jump_full if shared.noise_root.ndim == 2 else kernels.jump_diagonal
    ends = shared.record[shared.record > 0]
    before = 0
    for k, end in enumerate(ends.tolist()):
        if stop is not None and stop.is_set():
            raise Cancelled
        law = transitions.between(before, end)
        # Powers that overflow leave no state to go on from: this record and all later ones are infinite.
        if not law.finite:
            yield np.full((ends.size - k, theta.shape[1]), np.inf)
            return
        losses = np.zeros((1, theta.shape[1]))
        # A jump draws at the last of the steps that it covers. No other jump covers it, so that none draws the same.
        place = (shared.seed, np.uint64(replica), np.uint64(end - 1))
        jump(losses, theta, velocity, shared.weight, shared.shift, law.power, law.root, law.noisy, *place)
        yield losses
        before = end


def _steps(
    shared: Ensemble,
    configuration: Configuration,
    theta: StateArray,
    velocity: StateArray,
    replica: int,
    stop: threading.Event | None,
) -> Iterator[FloatArray]:
    """Losses of a tile that makes every update, window by window."""
    dim, lanes = theta.shape
    full = shared.noise_root.ndim == 2
    advance = kernels.advance_full if full else kernels.advance_diagonal
    noise_root = scaled_root(shared, configuration)
    z = np.zeros((shared.precision.noise_rows(dim if full else 1), lanes), shared.precision.noise_dtype)
    average = np.zeros((dim if shared.rule.tail > 0 else 0, lanes), shared.precision.dtype)
    # A full covariance costs a product of a (D, D) matrix with a vector per replica and step.
    length = window_length(dim * lanes * (dim if full else 1))
    for window in windows(shared.schedule, shared.record, configuration.learning_rate, length, stop, shared.noise):
        # A diverged replica stays so. Where all have diverged, the remaining steps would change no loss.
        if not np.isfinite(theta).all(axis=0).any():
            yield np.full((window.records_left, lanes), np.inf)
            return
        losses = np.zeros((window.records, lanes))
        keep, fresh = _averaging(shared, window)
        if shared.noise is not None:
            noise_root = scaled_root(shared, configuration, float(shared.noise.at(window.step)))
        advance(
            losses,
            theta,
            velocity,
            average,
            z,
            shared.curvature,
            shared.weight,
            shared.shift,
            noise_root,
            shared.precision.scalar(configuration.momentum),
            shared.rule.nesterov,
            shared.precision.of(window.rates),
            shared.precision.of(keep),
            shared.precision.of(fresh),
            window.slots,
            shared.seed,
            np.uint64(replica),
            np.uint64(window.step),
            shared.law.tails,
        )
        yield losses


def _averaging(shared: Ensemble, window: Window) -> tuple[FloatArray, FloatArray]:
    """keep and fresh of θ̄ ← keep θ̄ + fresh θ for each update of a window: the mean of the last iterates, or nothing."""
    if shared.rule.tail == 0.0:
        return np.zeros(window.rates.size), np.zeros(window.rates.size)
    done = window.step + 1.0 + np.arange(window.rates.size, dtype=np.float64)
    if shared.rule.tail == 1.0:
        # The mean of all iterates so far, at every step: no record needs another one.
        return (done - 1.0) / done, 1.0 / done
    number = tail_length(shared.schedule.steps, shared.rule.tail)
    within = (done > shared.schedule.steps - number).astype(np.float64)
    return within, within / number


def scaled_root(shared: Ensemble, configuration: Configuration, share: float = 1.0) -> StateArray:
    """The root of the noise covariance that a configuration multiplies the kernels' random numbers with.

    `share` multiplies its noise factor, where the batch size has a schedule.
    """
    return shared.precision.of(shared.noise_root * (shared.law.scale * np.sqrt(share * configuration.noise_factor)))


def moments_of_tile(
    shared: Ensemble | Tiled,
    configuration: Configuration,
    replica: int,
    lanes: int,
    stop: threading.Event,
    transitions: Transitions | None,
) -> Moments:
    """Mean loss and its sum of squared deviations over one tile, at every record."""
    mean, spread = np.empty(shared.rows), np.empty(shared.rows)
    done = 0
    # Each window's losses are reduced at once: those of all records would take `lanes` times the memory of their mean.
    for losses in tile_losses(shared, configuration, replica, lanes, stop, transitions):
        part = slice(done, done + len(losses))
        kernels.moments(losses, mean[part], spread[part])
        done += len(losses)
    return mean, spread


def merge(left: Moments, left_size: int, right: Moments, right_size: int) -> Moments:
    """Moments of two groups taken together (Chan, Golub & LeVeque 1979); inf where either diverged."""
    size = left_size + right_size
    with np.errstate(invalid="ignore", over="ignore"):
        gap = right[0] - left[0]
        mean = left[0] + gap * (right_size / size)
        spread = left[1] + right[1] + gap**2 * (left_size * right_size / size)
    # An infinite mean leaves inf − inf in the gap: what came out as NaN is inf by convention.
    diverged = ~np.isfinite(mean)
    return np.where(diverged, np.inf, mean), np.where(diverged | np.isnan(spread), np.inf, spread)


def merge_in_order(
    parts: Iterable[Moments],
    configurations: int,
    rows: int,
    replicas: int,
    progress: Callable[[int, int], object] | None,
    per_tile: Moments | None,
) -> Moments:
    """Moments of every configuration over all replicas, each of shape (configurations, rows).

    Parameters
    ----------
    parts : iterable of Moments
        Those of every tile, (rows,): all tiles of the first configuration, in the order of their replicas, then those
        of the next.
    configurations, rows, replicas : int
    progress : callable, optional
        Called as ``progress(done, total)`` after every tile.
    per_tile : Moments, optional
        Where the moments of every tile are written to, (configurations, rows, tiles).
    """
    means = np.empty((configurations, rows))
    spreads = np.empty_like(means)
    sizes = tile_sizes(replicas)
    for done, part in enumerate(parts):
        row, tile = divmod(done, sizes.size)
        if per_tile is not None:
            per_tile[0][row, :, tile], per_tile[1][row, :, tile] = part
        # Always the tiles so far with the next one: another grouping would round differently.
        if tile > 0:
            part = merge((means[row], spreads[row]), LANES * tile, part, int(sizes[tile]))
        means[row], spreads[row] = part
        if progress is not None:
            progress(done + 1, configurations * sizes.size)
    return means, spreads


def simulate_all(
    shared: Ensemble | Tiled,
    configurations: list[Configuration],
    replicas: range,
    threads: int,
    progress: Callable[[int, int], object] | None,
    per_tile: Moments | None = None,
) -> Moments:
    """Moments of every configuration over all replicas, by threads of the CPU; see `merge_in_order`."""
    stop = threading.Event()

    def job(configuration: Configuration, tile: range, transitions: Transitions | None) -> Callable[[], Moments]:
        return lambda: moments_of_tile(shared, configuration, tile[0], len(tile), stop, transitions)

    # Both generators run only as far as jobs are submitted. The transitions of a configuration, large for a full
    # covariance, are then made late and freed with its last job.
    every = (
        (configuration, Transitions(shared, configuration) if isinstance(shared, Ensemble) else None)
        for configuration in configurations
    )
    tiles = cut(replicas)
    jobs = (job(configuration, tile, transitions) for configuration, transitions in every for tile in tiles)
    with ThreadPoolExecutor(threads, thread_name_prefix="noisysgd") as executor:
        try:
            parts = in_order(executor, jobs, ahead=4 * threads)
            return merge_in_order(parts, len(configurations), shared.rows, len(replicas), progress, per_tile)
        except BaseException:  # KeyboardInterrupt above all: let the workers go before the executor waits for them
            stop.set()
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def in_order(executor: ThreadPoolExecutor, jobs: Iterable[Callable[[], Moments]], ahead: int) -> Iterator[Moments]:
    """Results of `jobs` in their order, with at most `ahead` of them submitted and not yet taken."""
    pending: deque[Future[Moments]] = deque()
    for job in jobs:
        pending.append(executor.submit(job))
        # To submit all at once would hold every result that comes out before its turn.
        if len(pending) == ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
