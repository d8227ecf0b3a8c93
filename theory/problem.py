"""The noisy quadratic: a quadratic loss in its eigenbasis, with additive gradient noise.

Source: Zhang et al. 2019 (arXiv 1907.04164), and section 3 of Smith, Elsen & De 2020.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from noisysgd.theory import checks
from noisysgd.theory.checks import FloatArray


@dataclass(frozen=True, eq=False, init=False)
class NoisyQuadratic:
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

    Raises
    ------
    ValueError
        For negative curvature or variance, NaN, a covariance that is not one, or shapes that do not match.

    Notes
    -----
    The arrays are copied and read-only: a problem never changes after it is made.

    Examples
    --------
    >>> problem = NoisyQuadratic([1.0, 0.1], noise=[1.0, 0.1])
    >>> problem.dim, float(problem.largest_eigenvalue)
    (2, 1.0)
    >>> float(problem.initial_loss)
    0.55
    """

    eigenvalues: FloatArray
    noise: FloatArray
    initial_mean: FloatArray
    initial_variance: FloatArray
    dataset_size: int | None

    def __init__(
        self,
        eigenvalues: Any,
        noise: Any,
        initial_mean: Any = 0.0,
        initial_variance: Any = 1.0,
        dataset_size: int | None = None,
    ) -> None:
        curvatures = checks.at_least("eigenvalues", eigenvalues, 0.0, remedy="A convex quadratic has curvatures ≥ 0.")
        vector = curvatures.ndim == 1 and curvatures.size > 0
        checks.require(vector, "eigenvalues", "a non-empty (D,) array", curvatures.shape, "Flatten the spectrum.")
        some = bool(curvatures.max() > 0)
        checks.require(
            some, "eigenvalues", "at least one positive curvature", eigenvalues, "A flat loss has no optimum."
        )
        if dataset_size is not None:
            dataset_size = checks.integer(
                "dataset_size", dataset_size, 1, remedy="Pass the number of training examples."
            )
        variance = checks.at_least("initial_variance", initial_variance, 0.0, remedy="Variances are not negative.")
        mean = checks.real("initial_mean", initial_mean)
        checks.require(bool(np.isfinite(mean).all()), "initial_mean", "finite values", initial_mean, "Start somewhere.")
        values = {
            "eigenvalues": curvatures,
            "noise": _covariance(noise, curvatures.size),
            "initial_mean": _per_mode("initial_mean", mean, curvatures.size),
            "initial_variance": _per_mode("initial_variance", variance, curvatures.size),
        }
        for name, value in values.items():
            frozen = np.array(value)
            frozen.flags.writeable = False
            object.__setattr__(self, name, frozen)
        object.__setattr__(self, "dataset_size", dataset_size)
        with np.errstate(over="ignore"):
            finite = bool(np.isfinite(self.initial_loss))
        remedy = "Measure parameters in larger units."
        checks.require(finite, "initial_mean, initial_variance", "a finite initial loss", initial_mean, remedy)

    @property
    def dim(self) -> int:
        """Number D of modes."""
        return int(self.eigenvalues.size)

    @property
    def largest_eigenvalue(self) -> np.float64:
        """λ_max."""
        return np.float64(self.eigenvalues.max())

    @property
    def noise_diagonal(self) -> FloatArray:
        """F_ii, shape (D,): all that the expected loss depends on, since modes do not mix on a quadratic."""
        return self.noise if self.noise.ndim == 1 else np.diagonal(self.noise)

    @property
    def initial_second_moment(self) -> FloatArray:
        """E θ₀², shape (D,)."""
        return self.initial_mean**2 + self.initial_variance

    @property
    def initial_loss(self) -> np.float64:
        """Expected loss at step 0: ½ Σ λ E θ₀²."""
        return np.float64(0.5 * (self.eigenvalues * self.initial_second_moment).sum())

    def noise_factor(self, batch_size: Any) -> FloatArray:
        """Factor of F in the covariance of a minibatch gradient: 1/B, or (N−B)/((N−1)B) for a known data set.

        >>> NoisyQuadratic([1.0], 1.0, dataset_size=100).noise_factor([1, 100])
        array([1., 0.])
        """
        batch_size = checks.batch_size(batch_size, self.dataset_size)
        if self.dataset_size is None:
            return np.asarray(1.0 / batch_size)
        # B = inf asks for no noise, as B = N does. N = 1 leaves nothing else, whatever the denominator.
        size = np.minimum(batch_size, self.dataset_size)
        return np.asarray((self.dataset_size - size) / (max(self.dataset_size - 1, 1) * size))

    def with_dataset_size(self, dataset_size: int | None) -> Self:
        """The same problem, with batches drawn from `dataset_size` examples."""
        return replace(self, dataset_size=dataset_size)


def power_law(dim: int, exponent: float = 1.0, *, dataset_size: int | None = None) -> NoisyQuadratic:
    """The spectrum λ_i = i^−exponent, i = 1…dim, with F = Λ and E θ₀² = 1.

    The standard problem of Zhang et al. 2019 (there with exponent 1 and dim 10 000).

    Raises
    ------
    ValueError
        If `dim` is not a positive integer or `exponent` is negative or not finite.

    Examples
    --------
    >>> round(float(power_law(10_000).initial_loss), 6)
    4.893803
    """
    dim = checks.integer("dim", dim, 1, remedy="Pass the number of modes.")
    exponent = checks.scalar("exponent", checks.at_least("exponent", exponent, 0.0, remedy="Spectra here decay."))
    eigenvalues = np.arange(1, dim + 1, dtype=np.float64) ** -exponent
    return NoisyQuadratic(eigenvalues, noise=eigenvalues, dataset_size=dataset_size)


def _per_mode(name: str, value: FloatArray, dim: int) -> FloatArray:
    fits = value.ndim == 0 or value.shape == (dim,)
    checks.require(
        fits, name, f"a scalar or shape ({dim},), as the eigenvalues", value.shape, "Give one value per mode."
    )
    return np.broadcast_to(value, (dim,))


def _covariance(noise: Any, dim: int) -> FloatArray:
    covariance = checks.real("noise", noise)
    checks.require(bool(np.isfinite(covariance).all()), "noise", "finite values", noise, "A covariance is finite.")
    if covariance.ndim == 2:
        expected = f"shape ({dim}, {dim}), as the eigenvalues"
        checks.require(covariance.shape == (dim, dim), "noise", expected, covariance.shape, "Pass F in the eigenbasis.")
        scale = float(np.abs(covariance).max()) or 1.0
        asymmetry = float(np.abs(covariance - covariance.T).max())
        remedy = "Pass (F + F.T) / 2 if the difference is rounding."
        checks.require(
            asymmetry <= 1e-12 * scale, "noise", "a symmetric covariance", f"asymmetry {asymmetry:g}", remedy
        )
        smallest = float(np.linalg.eigvalsh(covariance)[0])
        remedy = "A covariance has no negative eigenvalue."
        definite = smallest >= -1e-12 * scale * dim
        checks.require(definite, "noise", "a positive semi-definite covariance", f"eigenvalue {smallest:g}", remedy)
        return covariance
    remedy = "Gradient noise has variances ≥ 0."
    checks.require(bool(np.all(covariance >= 0)), "noise", "variances ≥ 0", noise, remedy)
    fits = covariance.ndim == 0 or covariance.shape == (dim,)
    expected = f"a scalar, shape ({dim},) or shape ({dim}, {dim})"
    checks.require(fits, "noise", expected, covariance.shape, "Give F in the basis of the eigenvalues.")
    return np.broadcast_to(covariance, (dim,))
