"""Least squares on a given, finite data set: real minibatches of real examples."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.simulators.ensembles.tiles import Configuration
from noisysgd.simulators.ensembles.windows import window_length, windows
from noisysgd.simulators.models.example_model import ExampleEnsemble, check_drawn
from noisysgd.simulators.randomness.batches import SAMPLINGS
from noisysgd.simulators.randomness.stream import Purpose, index, normals
from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.describing import brief
from noisysgd.theory.common.values import ByValue
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic


@dataclass(frozen=True, eq=False, init=False)
class FiniteLeastSquares(ByValue):
    r"""Mean over N given examples of ½ (⟨x, ω⟩ − y)², of which minibatches are sampled.

    Parameters
    ----------
    inputs : (N, D) array
        One example per row, 2 ≤ N < 2³².
    targets : (N,) array
        The y of every example.
    initial_mean, initial_variance : scalar or (D,) array
        Mean and variance of the parameters ω at step 0, whose coordinates start independent and Gaussian.

    Attributes
    ----------
    minimizer : (D,) array
        Parameters of the least loss, the shortest if there are several. Recorded losses are in excess of that loss.
    residuals : (N,) array
        y − ⟨x, minimizer⟩ of every example.
    hessian : (D, D) array
        XᵀX/N, the curvature of the loss.

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

    def __init__(
        self, inputs: ArrayLike, targets: ArrayLike, initial_mean: ArrayLike = 0.0, initial_variance: ArrayLike = 1.0
    ) -> None:
        x, y = checked_data(inputs, targets)
        dim = x.shape[1]
        remedy = "Variances are not negative."
        fields = {
            "inputs": x,
            "targets": y,
            "initial_mean": per_coordinate("initial_mean", checks.real("initial_mean", initial_mean), dim),
            "initial_variance": per_coordinate(
                "initial_variance", checks.nonnegative("initial_variance", initial_variance, remedy=remedy), dim
            ),
        }
        minimizer = np.asarray(np.linalg.lstsq(x, y, rcond=None)[0], dtype=np.float64)
        fields |= {"minimizer": minimizer, "residuals": y - x @ minimizer, "hessian": x.T @ x / len(y)}
        self._freeze(**fields)

    @classmethod
    def sample(cls, problem: LeastSquares, seed: int = 0) -> Self:
        """A data set of ``problem.dataset_size`` examples, drawn from a theoretical problem with Gaussian inputs.

        The theory takes moments over fresh inputs. Those of a data set differ from them by O(√(D/N)).

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
        drawable = bool((problem.weights == 1).all()) and problem.kurtosis == 3
        checks.require(drawable, "problem", "Gaussian inputs and weights of 1", problem, "Repeat eigenvalues instead.")
        key = int(index("seed", seed, 2**64))
        table = normals(key, Purpose.DATA, replicas=range(int(size or 0)), step=0, coordinates=range(problem.dim + 1)).T
        inputs = table[:, :-1] * np.sqrt(problem.eigenvalues)
        return cls(inputs, np.sqrt(problem.label_noise) * table[:, -1], problem.initial_mean, problem.initial_variance)

    @property
    def dataset_size(self) -> int:
        """Number N of training examples."""
        return len(self.targets)

    def noisy_quadratic(self) -> NoisyQuadratic:
        """The noisy quadratic of this curvature and initial state, whose noise is everywhere that at the minimizer.

        Coordinates are those of the Hessian's eigenbasis, centred at the minimizer. Initial coordinates are taken as
        independent there. They need not be, but the expected loss depends on their means and variances only.
        """
        values, vectors = np.linalg.eigh(self.hessian)
        # At the minimizer example i has the gradient −residualᵢ xᵢ; F is the covariance over examples.
        gradients = -self.residuals[:, None] * (self.inputs @ vectors)
        centred = gradients - gradients.mean(axis=0)
        mean = vectors.T @ (self.initial_mean - self.minimizer)
        variance = vectors.T**2 @ self.initial_variance
        noise = centred.T @ centred / len(self.targets)
        # A Hessian of less than full rank has eigenvalues of 0, which eigh may round to below it.
        return NoisyQuadratic(np.maximum(values, 0.0), noise, mean, variance, dataset_size=self.dataset_size)

    def check_batches(self, sizes: FloatArray, sampling: str) -> None:
        """Raise for batch sizes that cannot be drawn by this way of sampling."""
        check_drawn(sizes, sampling)
        checks.batch_size(sizes, None if sampling == "with_replacement" else self.dataset_size)

    def drawn(self, batch_size: float, sampling: str) -> int:
        """Number of examples that an update draws; 0 where it takes all of them, each once."""
        full = np.isinf(batch_size) or (batch_size == self.dataset_size and sampling != "with_replacement")
        return 0 if full else int(batch_size)

    def work(self, drawn: int) -> int:
        """About how many products one update of a replica takes, with `drawn` examples or 0 for all.

        A full batch takes its gradient from the Hessian, Hθ. A drawn example takes ⟨x, θ⟩ and its multiple of x.
        """
        dim = int(self.inputs.shape[1])
        return dim * (dim if drawn == 0 else 2 * drawn)

    def permuting(self, drawn: int) -> int:
        """Steps of a window, at most an epoch, that take about as long as the permutation with which it begins.

        Reshuffling has no state but the step: every window makes the permutation of its first epoch again.
        """
        epoch = self.dataset_size // drawn
        return min(epoch, 8 * epoch // int(self.inputs.shape[1]) + 1)

    def losses(
        self, run: ExampleEnsemble, configuration: Configuration, replica: int, lanes: int, stop: threading.Event | None
    ) -> Iterator[FloatArray]:
        """Excess losses of replicas replica…replica + lanes − 1, a block (records, lanes) per window of steps."""
        from noisysgd.simulators.models import least_squares_kernels as kernels

        dim = self.inputs.shape[1]
        places = range(replica, replica + lanes)
        z = normals(int(run.seed), Purpose.INITIAL_STATE, replicas=places, step=0, coordinates=range(dim)).T
        # θ is the distance from the minimizer; one replica is one contiguous row.
        theta = np.ascontiguousarray(z * np.sqrt(self.initial_variance) + (self.initial_mean - self.minimizer))
        velocity = np.zeros_like(theta)
        if run.record[0] == 0:
            losses = np.zeros((1, lanes))
            kernels.excess_losses(losses[0], theta, self.hessian)
            yield losses
        size = self.drawn(configuration.batch_size, run.sampling)
        length = window_length(lanes * self.work(size))
        # A permutation takes N swaps, however few steps follow: short windows would do little else.
        if run.sampling == "reshuffle" and size > 0:
            length = max(length, self.permuting(size))
        for window in windows(run.schedule, run.record, configuration.learning_rate, length, stop):
            losses = np.zeros((window.records, lanes))
            arguments: list[Any] = [losses, theta, velocity, self.inputs, self.residuals, self.hessian]
            arguments += [configuration.momentum, window.rates, window.slots, size, SAMPLINGS.index(run.sampling)]
            arguments += [run.seed, np.uint64(replica), np.uint64(window.step)]
            kernels.minibatch_steps(*arguments)
            yield losses


def checked_data(inputs: ArrayLike, targets: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Inputs (N, D) and targets (N,) as arrays, after checking that they are finite and fit together."""
    x, y = checks.real("inputs", inputs), checks.real("targets", targets)
    remedy = "Pass one example per row."
    checks.require(x.ndim == 2 and len(x) >= 2 and x.shape[1] >= 1, "inputs", "an (N, D) array, N ≥ 2", x.shape, remedy)
    checks.require(y.shape == x.shape[:1], "targets", f"shape {x.shape[:1]}", y.shape, "Pass one target per example.")
    finite = bool(np.isfinite(x).all() and np.isfinite(y).all())
    checks.require(finite, "inputs, targets", "finite numbers", "inf", "Remove such examples.")
    return x, y


def per_coordinate(name: str, value: FloatArray, dim: int) -> FloatArray:
    """`value`, a scalar or (D,) array, as a writable (D,) array of finite numbers."""
    checks.require(value.shape in ((), (dim,)), name, f"a scalar or shape ({dim},)", value.shape, "One per coordinate.")
    checks.require(bool(np.isfinite(value).all()), name, "finite values", value, "Pass finite numbers.")
    return np.broadcast_to(value, (dim,)).copy()
