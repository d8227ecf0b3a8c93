"""The noisy quadratic: a quadratic loss in its eigenbasis, with additive gradient noise.

Source: Zhang et al. 2019 (arXiv 1907.04164), and section 3 of Smith, Elsen & De 2020.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.describing import brief
from noisysgd.theory.problems.quadratic import Quadratic


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
