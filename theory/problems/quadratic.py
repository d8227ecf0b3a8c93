"""The base of all problems: a quadratic loss in its eigenbasis, a start, and perhaps a data set of known size."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.describing import brief
from noisysgd.theory.common.values import ByValue


@dataclass(frozen=True, eq=False, init=False)
class Quadratic(ByValue):
    """The loss ½ Σ w λ θ² and the start θ₀; subclasses add the covariance of the gradient noise.

    λ are the curvatures, and a weight w is the number of modes that share a curvature and all else.

    Use :class:`~noisysgd.theory.NoisyQuadratic` (noise that does not depend on θ) or
    :class:`~noisysgd.theory.LeastSquares` (noise that grows with the loss).

    The arrays are copied and read-only: a problem never changes after it is made. Problems are equal if they are of one
    kind and all their numbers are.
    """

    eigenvalues: FloatArray
    weights: FloatArray
    initial_mean: FloatArray
    initial_variance: FloatArray
    dataset_size: int | None

    __repr__ = brief

    @ignoring_underflow
    def _set(
        self,
        eigenvalues: ArrayLike,
        weights: ArrayLike,
        initial_mean: ArrayLike,
        initial_variance: ArrayLike,
        dataset_size: int | None,
    ) -> None:
        curvatures = checks.nonnegative("eigenvalues", eigenvalues, remedy="A convex quadratic has curvatures ≥ 0.")
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
        counts = checks.at_least("weights", weights, 0.0, remedy="A weight counts the modes at an eigenvalue.")
        checks.require(bool(np.all(counts > 0)), "weights", "values > 0", weights, "Drop eigenvalues without modes.")
        variance = checks.nonnegative("initial_variance", initial_variance, remedy="Variances are not negative.")
        mean = checks.real("initial_mean", initial_mean)
        checks.require(
            bool(np.isfinite(mean).all()), "initial_mean", "finite values", initial_mean, "Start at a finite θ."
        )
        object.__setattr__(self, "dataset_size", dataset_size)
        self._freeze(
            eigenvalues=curvatures,
            weights=per_mode("weights", counts, curvatures.size),
            initial_mean=per_mode("initial_mean", mean, curvatures.size),
            initial_variance=per_mode("initial_variance", variance, curvatures.size),
        )
        with np.errstate(over="ignore"):
            finite = bool(np.isfinite(self.initial_loss))
        remedy = "Measure parameters in larger units."
        checks.require(finite, "initial_mean, initial_variance", "a finite initial loss", initial_mean, remedy)

    @property
    def dim(self) -> int:
        """Number D of eigenvalues; each stands for as many modes as its weight says."""
        return int(self.eigenvalues.size)

    @property
    def largest_eigenvalue(self) -> np.float64:
        """λ_max."""
        return np.float64(self.eigenvalues.max())

    @property
    @ignoring_underflow
    def initial_second_moment(self) -> FloatArray:
        """E θ₀², shape (D,)."""
        return self.initial_mean**2 + self.initial_variance

    @property
    @ignoring_underflow
    def initial_loss(self) -> np.float64:
        """Expected loss at step 0: ½ Σ w λ E θ₀²."""
        return np.float64(0.5 * (self.weights * self.eigenvalues * self.initial_second_moment).sum())

    @ignoring_underflow
    def noise_factor(self, batch_size: ArrayLike) -> FloatArray:
        """Covariance of a minibatch gradient over that of one example's: 1/B, or (N−B)/((N−1)B) for a known data set.

        The batch size may be an array, and ``inf`` for no noise; the result has its shape.

        >>> from noisysgd import theory
        >>> theory.NoisyQuadratic([1.0], 1.0, dataset_size=100).noise_factor([1, 100])
        array([1., 0.])
        """
        return noise_factor(checks.batch_size(batch_size, self.dataset_size), self.dataset_size)

    def with_dataset_size(self, dataset_size: int | None) -> Self:
        """The same problem, with batches drawn from `dataset_size` examples."""
        return replace(self, dataset_size=dataset_size)

    @ignoring_underflow
    def precondition(self, power: float | None = None, *, diagonal: ArrayLike | None = None) -> Self:
        """The problem that SGD preconditioned by P = H^−power, or by any other diagonal P, solves.

        It is a change of variables φ = P^−½ θ. Descent along P ĝ in θ is plain descent in φ, where λ → pλ,
        F → P^½ F P^½ and E θ₀² → E θ₀²/p: the same loss, hence the same training curves, with any optimizer, in theory
        and in the simulators (Zhang et al. 2019, section 2, with p = λ^−power). power = 0 changes nothing, power = 1
        gives every mode curvature 1. Flat modes stay as they are under a power of H.

        Parameters
        ----------
        power : float
            Exponent of P = H^−power.
        diagonal : scalar or (D,) array
            The entries p > 0 of a diagonal P in the eigenbasis, instead of a power.

        Raises
        ------
        ValueError
            Unless exactly one of the two is given, if `power` is not a finite number, if an entry is not positive and
            finite, or if curvatures leave the range of floating point.

        Examples
        --------
        >>> from noisysgd import theory
        >>> problem = theory.power_law(4)
        >>> problem.precondition(0.5).eigenvalues
        array([1.        , 0.70710678, 0.57735027, 0.5       ])
        >>> bool(abs(problem.precondition(0.5).initial_loss - problem.initial_loss) < 1e-15)
        True
        >>> problem.precondition(diagonal=[1.0, 1.0, 1.0, 4.0]).eigenvalues
        array([1.        , 0.5       , 0.33333333, 1.        ])
        """
        one = (power is None) != (diagonal is None)
        checks.require(one, "power, diagonal", "exactly one of the two", (power, diagonal), "Choose one P.")
        given = power if diagonal is None else diagonal
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            if diagonal is None:
                exponent = checks.scalar("power", power)
                scale = np.where(self.eigenvalues > 0, self.eigenvalues**-exponent, 1.0)
            else:
                scale = per_mode("diagonal", checks.real("diagonal", diagonal), self.dim)
            bent = scale * self.eigenvalues
            sound = bool(np.all((scale > 0) & np.isfinite(scale) & np.isfinite(bent)) and bent.max() > 0)
        name, kind = ("power", "a power that keeps") if diagonal is None else ("diagonal", "p > 0 that keep")
        remedy = "A power in 0…1, or entries of usual size, do."
        checks.require(sound, name, f"{kind} curvatures within floating point", given, remedy)
        return replace(self, **self._in_variables(scale))

    def _in_variables(self, scale: FloatArray) -> dict[str, Any]:
        """Fields after the change of variables φ = θ/√scale, (D,), which leaves the loss as it is."""
        root = np.sqrt(scale)
        return {
            "eigenvalues": scale * self.eigenvalues,
            "initial_mean": self.initial_mean / root,
            "initial_variance": self.initial_variance / scale,
            **self._rescaled_noise(root),
        }

    @ignoring_underflow
    def merged(self) -> Self:
        """A smaller problem with the same expected losses: modes of equal curvature become one of their total weight.

        The loss is linear in noise and E θ₀² at a given curvature, so that the merged mode has the means of both; its
        E θ₀² is all variance, with an `initial_mean` of 0. A full noise covariance is reduced to its diagonal. If no
        two curvatures are equal, the result is the problem itself.

        Examples
        --------
        >>> from noisysgd import theory
        >>> merged = theory.two_scale(1000, 100.0).merged()
        >>> merged.eigenvalues, merged.weights
        (array([0.01, 1.  ]), array([500., 500.]))
        """
        values, group = np.unique(self.eigenvalues, return_inverse=True)
        if values.size == self.dim:
            return self
        weights = np.asarray(np.bincount(group, self.weights), np.float64)
        share = self.weights / weights[group]

        def mean(numbers: FloatArray) -> FloatArray:
            return np.asarray(np.bincount(group, share * numbers))

        return replace(
            self,
            eigenvalues=values,
            weights=weights,
            initial_mean=np.zeros(values.size),
            initial_variance=mean(self.initial_second_moment),
            **self._merged_noise(mean),
        )

    def _merged_noise(self, mean: Callable[[FloatArray], FloatArray]) -> dict[str, Any]:
        """Noise fields of the merged problem, where `mean` averages over merged modes; none if Λ determines them."""
        return {}

    def _rescaled_noise(self, root: FloatArray) -> dict[str, Any]:
        """Noise fields after the change of variables θ → θ/root; none if Λ determines them."""
        return {}


AnyQuadratic = TypeVar("AnyQuadratic", bound=Quadratic)


def natural_units(problem: AnyQuadratic) -> tuple[AnyQuadratic, float]:
    """The same problem with parameters measured in units in which 1 ≤ λ_max < 4, and how much larger 1/λ is in those.

    Losses are the same; learning rates are multiplied by the factor returned, which covariances are divided by. It is a
    power of 4, so that no digit changes. Whatever units a problem comes in, products of several curvatures, rates or
    noises neither overflow nor underflow in these.

    >>> from noisysgd import theory
    >>> natural, factor = natural_units(theory.NoisyQuadratic([1e-200, 5e-201], noise=1e-200))
    >>> natural.eigenvalues.round(3), bool(natural.eigenvalues[0] * factor == 1e-200)
    (array([3.062, 1.531]), True)
    """
    exponent = int(np.frexp(problem.largest_eigenvalue)[1]) - 1
    factor = 4.0 ** (exponent // 2)
    if factor == 1.0:
        return problem, 1.0
    natural = copy.copy(problem)
    with np.errstate(under="ignore", over="ignore"):
        natural._freeze(**natural._in_variables(np.full(problem.dim, 1.0 / factor)))
    return natural, factor


def noise_factor(batch_size: FloatArray, dataset_size: int | None) -> FloatArray:
    """γ = 1/B, or (N−B)/((N−1)B) for batches drawn without replacement from N examples; none at B = inf in either case.

    It is the variance of a mean of B examples over that of one. Takes batch sizes that are checked already.
    """
    if dataset_size is None:
        return np.asarray(1.0 / batch_size)
    # B = inf asks for no noise, as B = N does. With N = 1 the numerator is 0 already, and 0/0 is avoided.
    size = np.minimum(batch_size, dataset_size)
    return np.asarray((dataset_size - size) / (max(dataset_size - 1, 1) * size))


def per_mode(name: str, value: FloatArray, dim: int) -> FloatArray:
    """`value`, a scalar or a (D,) array, as a (D,) array."""
    fits = value.ndim == 0 or value.shape == (dim,)
    checks.require(
        fits, name, f"a scalar or shape ({dim},), as the eigenvalues", value.shape, "Give one value per mode."
    )
    return np.broadcast_to(value, (dim,))
