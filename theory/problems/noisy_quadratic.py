"""The noisy quadratic: a quadratic loss in its eigenbasis, with additive gradient noise.

Source: Zhang et al. 2019 (arXiv 1907.04164), and section 3 of Smith, Elsen & De 2020.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.describing import brief
from noisysgd.theory.problems.compression import rules
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.problems.spectral_quadrature import NODES


class Compressed(NamedTuple):
    """Result of :meth:`NoisyQuadratic.compressed`: a problem of fewer modes, and bounds on the error of its losses.

    Under SGD losses differ from those of the full problem by at most start_error + γ · noise_error.
    """

    problem: "NoisyQuadratic"
    start_error: float
    noise_error: float


@dataclass(frozen=True, eq=False, init=False)
class NoisyQuadratic(Quadratic):
    """The loss ½ θᵀΛθ, seen through minibatch gradients Λθ + ξ with cov ξ = F · ``noise_factor(batch_size)``.

    Parameters
    ----------
    eigenvalues : (D,) array
        Curvatures λ ≥ 0, at least one of them positive; units of loss per squared parameter.
    noise : scalar, (D,) or (D, D) array
        Covariance F of one example's gradient: a scalar means F = noise · I, (D,) its diagonal, (D, D) the full
        covariance in the eigenbasis (symmetric, positive semi-definite), which need not commute with Λ.
    initial_mean, initial_variance : scalar or (D,) array
        Mean and variance of θ at step 0; coordinates start independent. The default makes E θ₀² = 1.
    dataset_size : int, optional
        Number N of training examples. When it is known, batches are drawn without replacement, so that the noise is
        F/B · (N−B)/(N−1): exactly none at B = N. Without it, examples never run out and the noise is F/B.
    weights : scalar or (D,) array
        Number of modes that each eigenvalue stands for, > 0; as in a measured spectrum it need not be whole. Each of
        these modes has the noise and the initial moments given for its eigenvalue. Needs diagonal noise.

    Raises
    ------
    ValueError
        For negative curvature or variance, NaN, a covariance that is not symmetric and positive semi-definite, or
        shapes that do not match.

    Examples
    --------
    >>> problem = NoisyQuadratic([1.0, 0.1], noise=[1.0, 0.1])
    >>> problem.dim, float(problem.largest_eigenvalue)
    (2, 1.0)
    >>> float(problem.initial_loss)
    0.55
    """

    noise: FloatArray

    __repr__ = brief

    @ignoring_underflow
    def __init__(
        self,
        eigenvalues: ArrayLike,
        noise: ArrayLike,
        initial_mean: ArrayLike = 0.0,
        initial_variance: ArrayLike = 1.0,
        dataset_size: int | None = None,
        weights: ArrayLike = 1.0,
    ) -> None:
        self._set(eigenvalues, weights, initial_mean, initial_variance, dataset_size)
        self._freeze(noise=_covariance(noise, self.dim))
        single = self.noise.ndim == 1 or bool(np.all(self.weights == 1))
        checks.require(single, "weights", "weights of 1 beside a full covariance", weights, "Repeat the modes instead.")

    @property
    def noise_diagonal(self) -> FloatArray:
        """F_ii, shape (D,): all that the expected loss depends on, since modes do not mix on a quadratic."""
        return self.noise if self.noise.ndim == 1 else np.diagonal(self.noise)

    @ignoring_underflow
    def compressed(self, learning_rate: float, *, nodes: int = NODES, oscillations: float = 0.0) -> "Compressed":
        r"""A problem of far fewer modes with nearly the same expected losses, and bounds on the difference.

        Modes are replaced by the nodes of Gauss rules in bins of log λ a factor of 4 wide (see
        :mod:`noisysgd.theory.problems.spectral_quadrature`). A full noise covariance is reduced to its diagonal, on
        which losses alone depend. Only losses are kept: tr F, say, is another.

        Under SGD with any schedule of learning rates up to `learning_rate`, and any number of steps, the losses differ
        by at most ``start_error`` + γ · ``noise_error``, with γ the problem's ``noise_factor(batch_size)``, apart from
        rounding. With momentum nothing is guaranteed: where modes oscillate, compare with more `nodes`.

        Parameters
        ----------
        learning_rate : float
            The largest learning rate, > 0, of the schedules in question. Modes with ελ > 0.75 are kept as they are.
        nodes : int
            Nodes for each bin; bins with no more modes than that keep them. Errors fall by a factor of 10 or more with
            each.
        oscillations : float
            For heavy ball: a phase in radians through which the steepest mode turns before it has died out. Bins are
            then divided, and given more nodes, until they resolve it.

        Returns
        -------
        Compressed
            Named tuple (problem, start_error, noise_error). A spectrum too short to gain from it is merged only.

        Raises
        ------
        ValueError
            For a learning rate that is not positive and finite, fewer than 2 nodes, or a negative phase.

        Examples
        --------
        >>> from noisysgd import theory
        >>> problem = theory.power_law(10_000)
        >>> few = problem.compressed(learning_rate=1.0)
        >>> few.problem.dim, few.start_error < 1e-11
        (140, True)
        >>> settings = {"learning_rate": 1.0, "batch_size": 8}
        >>> losses = [theory.expected_loss(p, theory.half_then_decay(900), **settings) for p in (problem, few.problem)]
        >>> bool(abs(losses[1] - losses[0]) < 1e-12)
        True
        """
        rate = checks.scalar("learning_rate", learning_rate)
        remedy = "It is the largest learning rate that the compressed problem is for."
        checks.require(0 < rate < np.inf, "learning_rate", "a positive, finite number", learning_rate, remedy)
        count = checks.integer("nodes", nodes, 2, remedy="11 are as exact as rounding allows.")
        phase = checks.scalar(
            "oscillations", checks.at_least("oscillations", oscillations, 0.0, finite=False, remedy="Use 0 for SGD.")
        )
        half = 0.5 * self.weights * self.eigenvalues
        found = rules(
            self.eigenvalues, half * self.initial_second_moment, half * self.noise_diagonal, rate, count, phase
        )
        sizes = (found.start.nodes.size, found.noise.nodes.size)
        # One more mode, without start and noise, keeps the largest curvature even where nothing moves there.
        eigenvalues = np.concatenate([[self.largest_eigenvalue], found.start.nodes, found.noise.nodes])
        masses = np.concatenate([[0.0], found.start.weights, found.noise.weights])
        moments = 2.0 * masses / eigenvalues
        first = np.arange(eigenvalues.size) <= sizes[0]
        few = NoisyQuadratic(
            eigenvalues,
            np.where(first, 0.0, moments),
            initial_variance=np.where(first, moments, 0.0),
            dataset_size=self.dataset_size,
        ).merged()
        if few.dim >= self.dim:
            return Compressed(self.merged(), 0.0, 0.0)
        return Compressed(few, found.start_error, found.noise_error)

    def _merged_noise(self, mean: Callable[[FloatArray], FloatArray]) -> dict[str, Any]:
        return {"noise": mean(self.noise_diagonal)}

    def _rescaled_noise(self, root: FloatArray) -> dict[str, Any]:
        return {"noise": root**2 * self.noise if self.noise.ndim == 1 else root * self.noise * root[:, None]}


def _covariance(noise: ArrayLike, dim: int) -> FloatArray:
    """`noise`, checked, as a (D,) diagonal or a (D, D) covariance."""
    covariance = checks.real("noise", noise)
    if covariance.ndim == 2:
        return _full_covariance(covariance, dim)
    variances = checks.nonnegative("noise", noise, remedy="Gradient noise has variances ≥ 0.")
    fits = variances.ndim == 0 or variances.shape == (dim,)
    expected = f"a scalar, shape ({dim},) or shape ({dim}, {dim})"
    checks.require(fits, "noise", expected, variances.shape, "Give F in the basis of the eigenvalues.")
    return np.broadcast_to(variances, (dim,))


def _full_covariance(covariance: FloatArray, dim: int) -> FloatArray:
    """`covariance`, checked to be one of D modes."""
    expected = f"shape ({dim}, {dim}), as the eigenvalues"
    checks.require(covariance.shape == (dim, dim), "noise", expected, covariance.shape, "Pass F in the eigenbasis.")
    finite = bool(np.isfinite(covariance).all())
    checks.require(finite, "noise", "finite values", covariance, "A covariance is finite.")
    # Rounding may leave a computed covariance slightly asymmetric or indefinite, relative to its largest entry.
    scale = float(np.abs(covariance).max()) or 1.0
    asymmetry = float(np.abs(covariance - covariance.T).max())
    remedy = "Pass (F + F.T) / 2 if the difference is rounding."
    symmetric = asymmetry <= checks.ROUNDING * scale
    checks.require(symmetric, "noise", "a symmetric covariance", f"asymmetry {asymmetry:g}", remedy)
    smallest = float(np.linalg.eigvalsh(covariance / scale)[0]) * scale  # scaled, so that no product underflows
    definite = smallest >= -checks.ROUNDING * scale * dim
    remedy = "A covariance has no negative eigenvalue."
    checks.require(definite, "noise", "a positive semi-definite covariance", f"eigenvalue {smallest:g}", remedy)
    rounded = np.array(covariance)
    np.fill_diagonal(rounded, np.maximum(np.diagonal(covariance), 0.0))
    return rounded
