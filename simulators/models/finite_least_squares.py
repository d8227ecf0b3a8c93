"""Least squares on a given, finite data set: real minibatches of real examples."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from noisysgd.simulators.ensembles.tiles import Configuration
from noisysgd.simulators.models.example_model import ExampleEnsemble, check_drawn, window_length, windows
from noisysgd.simulators.randomness.batches import SAMPLINGS
from noisysgd.simulators.randomness.stream import Purpose, index, normals
from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.describing import brief
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic


@dataclass(frozen=True, eq=False, init=False)
class FiniteLeastSquares:
    r"""Mean over N given examples of ½ (⟨x, ω⟩ − y)², of which minibatches are sampled.

    Parameters
    ----------
    inputs : (N, D) array
        One example per row, 2 ≤ N < 2³².
    targets : (N,) array
    initial_mean, initial_variance : scalar or (D,) array
        Of the parameters ω at step 0, whose coordinates start independent and Gaussian.

    Attributes
    ----------
    minimizer : (D,) array
        Parameters of the least loss, the shortest if there are several. Losses are in excess of theirs.
    residuals : (N,) array
        Targets less what the minimizer predicts.
    hessian : (D, D) array
        XᵀX/N.

    Raises
    ------
    ValueError
        For shapes that do not match, numbers that are not finite, or negative variances.

    Examples
    --------
    >>> data = FiniteLeastSquares([[1.0], [2.0]], [1.0, 1.0], initial_variance=0.0)
    >>> data.minimizer, data.hessian
    (array([0.6]), array([[2.5]]))
    """

    inputs: FloatArray
    targets: FloatArray
    initial_mean: FloatArray
    initial_variance: FloatArray
    minimizer: FloatArray
    residuals: FloatArray
    hessian: FloatArray

    dynamics = ("minibatch",)
    metrics = ("loss",)

    __repr__ = brief

    def __init__(self, inputs: Any, targets: Any, initial_mean: Any = 0.0, initial_variance: Any = 1.0) -> None:
        x, y = examples(inputs, targets)
        dim = x.shape[1]
        remedy = "Variances are not negative."
        fields = {
            "inputs": x,
            "targets": y,
            "initial_mean": per_coordinate("initial_mean", checks.real("initial_mean", initial_mean), dim),
            "initial_variance": per_coordinate(
                "initial_variance", checks.at_least("initial_variance", initial_variance, 0.0, remedy=remedy), dim
            ),
        }
        minimizer = np.asarray(np.linalg.lstsq(x, y, rcond=None)[0], dtype=np.float64)
        fields |= {"minimizer": minimizer, "residuals": y - x @ minimizer, "hessian": x.T @ x / len(y)}
        for name, value in fields.items():
            value = np.ascontiguousarray(value)
            value.flags.writeable = False
            object.__setattr__(self, name, value)

    @classmethod
    def sample(cls, problem: LeastSquares, seed: int = 0) -> Self:
        """A data set of ``problem.dataset_size`` examples drawn from a theoretical problem with Gaussian inputs.

        The theory takes moments over fresh inputs; a data set has moments of its own, which differ by O(√(D/N)).

        Raises
        ------
        ValueError
            If the problem has no data-set size, weights other than 1, or inputs that are not Gaussian.

        Examples
        --------
        >>> from noisysgd import theory
        >>> FiniteLeastSquares.sample(theory.LeastSquares([1.0, 0.5], dataset_size=100)).inputs.shape
        (100, 2)
        """
        checks.instance("problem", problem, LeastSquares, remedy="Make one with theory.LeastSquares.")
        size, remedy = problem.dataset_size, "Give the problem a dataset_size."
        checks.require(size is not None, "problem", "a data-set size", size, remedy)
        single = bool((problem.weights == 1).all()) and problem.kurtosis == 3
        checks.require(single, "problem", "Gaussian inputs and weights of 1", problem, "Repeat eigenvalues instead.")
        key = int(index("seed", seed, 2**64))
        table = normals(key, Purpose.DATA, replicas=range(int(size or 0)), step=0, coordinates=range(problem.dim + 1)).T
        inputs = table[:, :-1] * np.sqrt(problem.eigenvalues)
        return cls(inputs, np.sqrt(problem.label_noise) * table[:, -1], problem.initial_mean, problem.initial_variance)

    @property
    def dataset_size(self) -> int:
        """Number N of examples."""
        return len(self.targets)

    def noisy_quadratic(self) -> NoisyQuadratic:
        """The additive-noise model of it: curvature, gradient noise at the minimizer, and the initial state, projected.

        Coordinates are those of the Hessian's eigenbasis, centred at the minimizer. Initial coordinates are taken as
        independent there, which the loss without momentum, seeing variances alone, does not notice.
        """
        values, vectors = np.linalg.eigh(self.hessian)
        gradients = -self.residuals[:, None] * (self.inputs @ vectors)
        centred = gradients - gradients.mean(axis=0)
        mean = vectors.T @ (self.initial_mean - self.minimizer)
        variance = vectors.T**2 @ self.initial_variance
        noise = centred.T @ centred / len(self.targets)
        return NoisyQuadratic(np.maximum(values, 0.0), noise, mean, variance, dataset_size=self.dataset_size)

    def check_batches(self, sizes: FloatArray, sampling: str) -> None:
        """Raise for batch sizes that it cannot sample."""
        check_drawn(sizes, sampling)
        checks.batch_size(sizes, None if sampling == "with_replacement" else self.dataset_size)

    def drawn(self, batch_size: float, sampling: str) -> int:
        """Examples that an update draws; 0 where it takes all of them, each once."""
        full = np.isinf(batch_size) or (batch_size == self.dataset_size and sampling != "with_replacement")
        return 0 if full else int(batch_size)

    def work(self, drawn: int) -> int:
        """Products of one update of a replica, about."""
        dim = int(self.inputs.shape[1])
        return dim * (dim if drawn == 0 else 2 * drawn)

    def permuting(self, drawn: int) -> int:
        """Steps of a window that take as long as the permutation with which it begins; no more than an epoch."""
        epoch = self.dataset_size // drawn
        return min(epoch, 8 * epoch // int(self.inputs.shape[1]) + 1)

    def losses(
        self, run: ExampleEnsemble, configuration: Configuration, replica: int, lanes: int, stop: threading.Event | None
    ) -> Iterator[FloatArray]:
        """Excess losses of replicas replica…replica + lanes − 1, a block (records, lanes) per window of steps."""
        from noisysgd.simulators.models import least_squares_kernels as example_kernels

        dim = self.inputs.shape[1]
        places = range(replica, replica + lanes)
        z = normals(int(run.seed), Purpose.INITIAL_STATE, replicas=places, step=0, coordinates=range(dim)).T
        theta = np.ascontiguousarray(z * np.sqrt(self.initial_variance) + (self.initial_mean - self.minimizer))
        velocity = np.zeros_like(theta)
        if run.record[0] == 0:
            losses = np.zeros((1, lanes))
            example_kernels.excess_losses(losses[0], theta, self.hessian)
            yield losses
        size = self.drawn(configuration.batch_size, run.sampling)
        length = window_length(lanes * self.work(size))
        if run.sampling == "reshuffle" and size > 0:
            length = max(length, self.permuting(size))
        for step, rates, slots in windows(run, configuration.learning_rate, length, stop):
            losses = np.zeros((int(slots.max()) + 1, lanes))
            arguments: list[Any] = [losses, theta, velocity, self.inputs, self.residuals, self.hessian]
            arguments += [configuration.momentum, rates, slots, size, SAMPLINGS.index(run.sampling)]
            arguments += [run.seed, np.uint64(replica), np.uint64(step)]
            example_kernels.minibatch_steps(*arguments)
            yield losses


def examples(inputs: Any, targets: Any) -> tuple[FloatArray, FloatArray]:
    """Inputs (N, D) and targets (N,), checked."""
    x, y = checks.real("inputs", inputs), checks.real("targets", targets)
    remedy = "Pass one example per row."
    checks.require(x.ndim == 2 and len(x) >= 2 and x.shape[1] >= 1, "inputs", "an (N, D) array, N ≥ 2", x.shape, remedy)
    checks.require(y.shape == x.shape[:1], "targets", f"shape {x.shape[:1]}", y.shape, "Pass one target per example.")
    finite = bool(np.isfinite(x).all() and np.isfinite(y).all())
    checks.require(finite, "inputs, targets", "finite numbers", "inf", "Remove such examples.")
    return x, y


def per_coordinate(name: str, value: FloatArray, dim: int) -> FloatArray:
    """A scalar or (D,) array as a (D,) array."""
    checks.require(value.shape in ((), (dim,)), name, f"a scalar or shape ({dim},)", value.shape, "One per coordinate.")
    checks.require(bool(np.isfinite(value).all()), name, "finite values", value, "Pass finite numbers.")
    return np.broadcast_to(value, (dim,)).copy()
