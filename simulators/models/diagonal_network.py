"""The smallest model in which noise helps the test set: a diagonal linear network with label noise.

Least squares alone never shows this: there the risk of SGD is that of gradient flow plus a positive term. A model that
is quadratic in its weights does, since noise then moves the network towards small weights (HaoChen et al. 2021; Pesme
et al. 2021; Damian, Ma & Lee 2021: label noise adds a penalty in proportion to the temperature ε/(B(1−m))). The label
noise is injected at every visit of an example: it is not the sampling noise of the paper's experiments, and a full
batch has it too.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.simulators.ensembles.tiles import Configuration
from noisysgd.simulators.ensembles.windows import window_length, windows
from noisysgd.simulators.models.example_model import ExampleEnsemble, check_drawn
from noisysgd.simulators.models.finite_least_squares import checked_data, per_coordinate
from noisysgd.simulators.randomness.batches import SAMPLINGS
from noisysgd.simulators.randomness.stream import Purpose, index, normals
from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.describing import brief
from noisysgd.theory.common.values import ByValue

MOST_INPUTS = 2**28
"""Of a data set that is drawn here: they take 2 GB."""


@dataclass(frozen=True)
class Updates:
    """The updates of one configuration, in the terms of the kernels.

    Attributes
    ----------
    learning_rate, momentum : float
        Those of one time step, where the SDE is followed.
    real : bool
        Whether batches of examples are drawn; otherwise the noise is Gaussian.
    visited : int
        Number of examples whose gradients an update takes.
    whole, rest : int
        A batch takes all examples `whole` times, and `rest` drawn ones.
    label : float
        Standard deviation of the label noise where batches are drawn; otherwise the scale of its Gaussian equivalent.
    sampled : float
        Scale of the Gaussian noise that stands for the drawing of batches.
    """

    learning_rate: float
    momentum: float
    real: bool
    visited: int
    whole: int
    rest: int
    label: float
    sampled: float


@dataclass(frozen=True, eq=False, init=False)
class DiagonalNetwork(ByValue):
    r"""f(x) = ⟨β, x⟩ with β = w₊² − w₋² (entrywise), trained on n examples by ½ (f(x) − y − ζ)².

    ζ is drawn afresh at every visit of an example. A batch of B takes a uniform subset of the n examples; beyond n it
    takes every example ⌊B/n⌋ times, each with label noise of its own, and a subset once more.

    Parameters
    ----------
    inputs : (n, d) array
        One example per row.
    targets : (n,) array
        The y of every example.
    truth : scalar or (d,) array
        Coefficients β* that the test loss compares with.
    initialization : float
        α > 0: both weights of every coordinate at step 0, so that β starts at 0. Small ones favour sparse β.
    label_noise : float
        Variance of ζ.

    Raises
    ------
    ValueError
        For shapes that do not match, numbers that are not finite, α ≤ 0, or a negative variance.

    Notes
    -----
    Recorded losses: ``train_loss``, ½ the mean squared residual on the n examples as given (so without ζ), and
    ``test_loss``, ½ |β − β*|², the excess loss on fresh inputs with independent coordinates of variance 1.

    Examples
    --------
    >>> network = DiagonalNetwork([[1.0, 0.0], [0.0, 1.0]], [1.0, 0.0], truth=[1.0, 0.0])
    >>> network.dataset_size
    2
    """

    inputs: FloatArray
    targets: FloatArray
    truth: FloatArray
    initialization: float
    label_noise: float

    dynamics = ("minibatch", "sgd", "sde")
    metrics = ("train_loss", "test_loss")

    __repr__ = brief

    def __init__(
        self,
        inputs: ArrayLike,
        targets: ArrayLike,
        truth: ArrayLike,
        initialization: float = 0.3,
        label_noise: float = 1.0,
    ) -> None:
        x, y = checked_data(inputs, targets)
        beta = per_coordinate("truth", checks.real("truth", truth), x.shape[1])
        start = checks.scalar("initialization", initialization)
        expected = "a positive, finite number"
        checks.require(0 < start < np.inf, "initialization", expected, start, "At 0 the network never moves.")
        remedy = "It is a variance; 0 is none."
        noise = checks.scalar("label_noise", checks.at_least("label_noise", label_noise, 0.0, remedy=remedy))
        self._freeze(inputs=x, targets=y, truth=beta)
        object.__setattr__(self, "initialization", start)
        object.__setattr__(self, "label_noise", noise)

    @property
    def dataset_size(self) -> int:
        """Number n of training examples."""
        return len(self.targets)

    def losses(
        self, run: ExampleEnsemble, configuration: Configuration, replica: int, lanes: int, stop: threading.Event | None
    ) -> Iterator[FloatArray]:
        """Training and test losses of a tile, a block (2 · records, lanes) per window of steps."""
        from noisysgd.simulators.models import diagonal_network_kernels as kernels

        weights = np.full((lanes, 2 * self.inputs.shape[1]), self.initialization)
        velocity = np.zeros_like(weights)
        data = (self.inputs, self.targets, self.truth)
        if run.record[0] == 0:
            losses = np.zeros((2, lanes))
            kernels.losses_of(losses, weights, *data)
            yield losses
        updates = self.updates(run, configuration)
        length = window_length(lanes * self.work(updates))
        for window in windows(run.schedule, run.record, updates.learning_rate, length, stop):
            # A diverged replica stays so. Where all have diverged, the remaining steps would change no loss.
            if not np.isfinite(weights).all(axis=1).any():
                yield np.full((2 * window.records_left, lanes), np.inf)
                return
            losses = np.zeros((2 * window.records, lanes))
            arguments: list[Any] = [losses, weights, velocity, *data, updates.momentum, window.rates, window.slots]
            if updates.real:
                arguments += [updates.whole, updates.rest, SAMPLINGS.index(run.sampling), updates.label]
            else:
                arguments += [updates.label, updates.sampled]
            arguments += [run.seed, np.uint64(replica), np.uint64(window.step)]
            (kernels.minibatch_steps if updates.real else kernels.gaussian_steps)(*arguments)
            yield losses

    def updates(self, run: ExampleEnsemble, configuration: Configuration) -> "Updates":
        """The updates of a configuration, in the terms of the kernels."""
        count, size = self.dataset_size, configuration.batch_size
        rate, momentum, amplified = configuration.learning_rate, configuration.momentum, 1.0
        # An infinite batch has no noise at all: it is the Gaussian case with scales of 0.
        if run.dynamics == "minibatch" and not np.isinf(size):
            whole, rest = (0, int(size)) if run.sampling == "with_replacement" else divmod(int(size), count)
            visited = count if whole else rest
            return Updates(rate, momentum, True, visited, whole, rest, float(np.sqrt(self.label_noise)), 0.0)
        if run.dynamics == "sde":
            # A step of time h = ε/((1−m)·substeps) gets the variance hTF = h²·(substeps·γ)·F: an SGD of its own.
            rate, momentum, amplified = rate / (1.0 - momentum) / run.substeps, 0.0, float(np.sqrt(run.substeps))
        factors = self.noise_factors(size, run.sampling)
        # Sums over the n examples, as the kernel takes them, have n times the covariances that the factors multiply.
        label, sampled = (float(amplified * np.sqrt(factor / count)) for factor in factors)
        return Updates(rate, momentum, False, count, 0, 0, label, sampled)

    def work(self, updates: "Updates") -> int:
        """About how many products one update of a replica takes, two vectors of them for every visited example."""
        return int(self.inputs.shape[1]) * (4 + 2 * updates.visited)

    def noise_factors(self, batch_size: float, sampling: str = "without_replacement") -> tuple[float, float]:
        """Factors of two covariances in that of a minibatch's gradient noise.

        Returns
        -------
        tuple of two float
            The factor of the mean of ∇f ∇fᵀ over the examples, which injected label noise adds; and that of the
            covariance over the examples of the gradients of their losses, which the drawing of the batch adds.

        Examples
        --------
        Without replacement a full batch leaves the label noise alone.

        >>> network = DiagonalNetwork([[1.0, 0.0], [0.0, 1.0]], [1.0, 0.0], truth=0.0, label_noise=3.0)
        >>> network.noise_factors(2)
        (1.5, 0.0)
        """
        if np.isinf(batch_size):
            return 0.0, 0.0
        count = self.dataset_size
        # Examples that every batch takes equally often add no sampling noise: only the subset of the rest does, with
        # the finite-population factor (n − r)/(n − 1).
        rest = batch_size % count
        subset = rest * (count - rest) / ((count - 1) * batch_size**2)
        return self.label_noise / batch_size, 1.0 / batch_size if sampling == "with_replacement" else subset

    def check_batches(self, sizes: FloatArray, sampling: str) -> None:
        """Raise for batch sizes that cannot be drawn by this way of sampling."""
        check_drawn(sizes, sampling)
        remedy = "Larger batches take every example several times: sample without replacement."
        fits = sampling != "reshuffle" or bool((sizes[np.isfinite(sizes)] <= self.dataset_size).all())
        checks.require(fits, "batch_size", f"at most {self.dataset_size} when reshuffling", sizes, remedy)


def sparse_regression(
    dim: int = 100,
    examples: int = 40,
    *,
    nonzero: int = 5,
    target_noise: float = 0.25,
    label_noise: float = 1.0,
    initialization: float = 0.3,
    seed: int = 0,
) -> DiagonalNetwork:
    """A diagonal network on Gaussian inputs whose targets depend on few of them.

    Parameters
    ----------
    dim, examples : int
        Number d of coordinates, and n of training examples.
    nonzero : int
        How many coordinates of the truth are 1; the others are 0.
    target_noise : float
        Variance of the noise that is drawn once and stays in the targets.
    label_noise, initialization : float
        As in :class:`DiagonalNetwork`.
    seed : int
        Seed of the data; runs have seeds of their own.

    Examples
    --------
    >>> sparse_regression(dim=10, examples=4, nonzero=2).truth
    array([1., 1., 0., 0., 0., 0., 0., 0., 0., 0.])
    """
    size = checks.integer("dim", dim, 1, maximum=MOST_INPUTS, remedy="The network needs a coordinate.")
    count = checks.integer("examples", examples, 2, maximum=MOST_INPUTS, remedy="A data set has two examples at least.")
    fits = count * (size + 1) <= MOST_INPUTS
    expected = f"at most {MOST_INPUTS} inputs in all"
    checks.require(fits, "dim, examples", expected, (dim, examples), "Use fewer examples or coordinates.")
    active = checks.integer("nonzero", nonzero, 0, remedy="Pass how many coefficients are 1.")
    checks.require(active <= size, "nonzero", f"at most {size}", active, "There are no more coordinates.")
    variance = checks.at_least("target_noise", target_noise, 0.0, remedy="Variances are not negative.")
    spread = float(np.sqrt(checks.scalar("target_noise", variance)))
    key = int(index("seed", seed, 2**64))
    table = normals(key, Purpose.DATA, replicas=range(count), step=0, coordinates=range(size + 1)).T
    truth = np.where(np.arange(size) < active, 1.0, 0.0)
    targets = table[:, :-1] @ truth + spread * table[:, -1]
    return DiagonalNetwork(table[:, :-1], targets, truth, initialization, label_noise)
