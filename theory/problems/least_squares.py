"""Least squares on random inputs: gradient noise that grows with the loss."""

from dataclasses import dataclass

from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.describing import brief
from noisysgd.theory.problems.quadratic import Quadratic


@dataclass(frozen=True, eq=False, init=False)
class LeastSquares(Quadratic):
    r"""Linear regression of labels y = ⟨x, θ*⟩ + noise on fresh inputs x with covariance Λ; θ is the distance from θ*.

    The gradient of one example has mean Λθ and, averaged over θ with second moment Σ = E θθᵀ, the covariance

        F = Λ tr(ΛΣ) + ΛΣΛ + σ²Λ     (Gaussian inputs; σ² is the label noise),

    so that noise is *multiplicative*: it vanishes with the loss where labels are exact. A minibatch has
    F · ``noise_factor(batch_size)``. Second moments close: v ← [(I−εΛ)² + γε²((κ−2)Λ² + λλᵀ)] v + γε²σ²λ with
    v_i = E θ_i², γ the noise factor and κ = 3 for Gaussian inputs (Bordelon & Pehlevan 2021).

    Parameters
    ----------
    eigenvalues : (D,) array
        Variances λ ≥ 0 of the inputs along their principal axes, which are the curvatures.
    label_noise : float
        Variance σ² ≥ 0 of the labels' noise, drawn afresh with every example.
    initial_mean, initial_variance : scalar or (D,) array
        Mean and variance of θ at step 0; coordinates start independent.
    dataset_size : int, optional
        Number N of examples. When known, the covariance of a minibatch is that of drawing without replacement from a
        population of N: γ = (N−B)/((N−1)B), no noise at B = N. The population's own moments stay those above.
    weights : scalar or (D,) array
        Number of modes that each eigenvalue stands for, > 0; it need not be whole.
    kurtosis : float
        E x⁴/(E x²)² ≥ 1 of an input along a principal axis, inputs being independent along different ones: 3 for
        Gaussian, 1 for ±1. At 2 only the trace term of the noise is left, which is the setting of Velikanov, Kuznedelev
        & Yarotsky 2023 and of homogenised SGD (Paquette et al. 2021).

    Raises
    ------
    ValueError
        For negative curvature, noise or variance, NaN, or shapes that do not match.

    Examples
    --------
    >>> problem = LeastSquares([1.0, 0.5], label_noise=0.1)
    >>> float(problem.initial_loss)
    0.75
    """

    label_noise: float
    kurtosis: float

    __repr__ = brief

    @ignoring_underflow
    def __init__(
        self,
        eigenvalues: ArrayLike,
        label_noise: float = 0.1,
        initial_mean: ArrayLike = 0.0,
        initial_variance: ArrayLike = 1.0,
        dataset_size: int | None = None,
        weights: ArrayLike = 1.0,
        kurtosis: float = 3.0,
    ) -> None:
        self._set(eigenvalues, weights, initial_mean, initial_variance, dataset_size)
        remedy = "It is the variance of the labels' noise."
        noise = checks.scalar("label_noise", checks.at_least("label_noise", label_noise, 0.0, remedy=remedy))
        remedy = "No distribution has E x⁴ < (E x²)²; Gaussian inputs have 3."
        tails = checks.scalar("kurtosis", checks.at_least("kurtosis", kurtosis, 1.0, remedy=remedy))
        object.__setattr__(self, "label_noise", noise)
        object.__setattr__(self, "kurtosis", tails)
