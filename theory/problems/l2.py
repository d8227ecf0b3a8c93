"""An L2 penalty that pulls towards the parameters' origin, which is not the minimum of the loss."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.values import ByValue
from noisysgd.theory.problems.quadratic import Quadratic, per_mode


@dataclass(frozen=True, eq=False, init=False)
class L2(ByValue):
    r"""The penalty ½ μ Σ w (θ − o)² of weight decay, which pulls towards the point where all parameters are 0.

    A problem measures θ from the minimum of the loss. Weight decay pulls towards ω = 0 instead, which lies at θ = o.
    With it, curvatures are λ + μ and the iterates settle at θ̂ = μ o/(λ+μ), where neither the loss nor the penalty is
    smallest.

    Parameters
    ----------
    strength : float
        μ ≥ 0, PyTorch's ``weight_decay``: the gradient is that of the loss plus μ ω.
    origin : scalar or (D,) array
        o, the point ω = 0 relative to the minimum of the loss, in the eigenbasis. For parameters that were initialised
        near 0 it is minus the displacement that training has to make.

    Raises
    ------
    ValueError
        If the strength is negative or not finite, or the origin not finite.

    Examples
    --------
    One mode with λ = 1 and μ = 1 settles half-way between the minimum and the origin:

    >>> from noisysgd import theory
    >>> problem = theory.NoisyQuadratic([1.0], noise=0.0)
    >>> penalty = theory.L2(1.0, origin=2.0)
    >>> penalty.fixed_point(problem)
    array([1.])
    """

    strength: float
    origin: FloatArray

    def __init__(self, strength: float, origin: ArrayLike) -> None:
        mu = checks.scalar("strength", strength)
        checks.require(0 <= mu < np.inf, "strength", "a finite number ≥ 0", strength, "Use 0 for no penalty.")
        place = checks.real("origin", origin)
        sound = bool(np.isfinite(place).all()) and place.ndim <= 1
        checks.require(sound, "origin", "a finite scalar or (D,) array", origin, "Give ω = 0 in the eigenbasis.")
        object.__setattr__(self, "strength", mu)
        self._freeze(origin=place)

    def in_units(self, factor: float) -> "L2":
        """The same penalty in units in which curvatures are smaller by `factor`, and θ larger by its root."""
        return L2(self.strength / factor, np.sqrt(factor) * self.origin)

    def place(self, problem: Quadratic) -> FloatArray:
        """o of each mode of `problem`, (D,)."""
        return per_mode("l2.origin", self.origin, problem.dim)

    def fixed_point(self, problem: Quadratic) -> FloatArray:
        """θ̂ = μ o/(λ+μ) of each mode of `problem`, (D,); 0 for flat modes without a penalty."""
        pull = problem.eigenvalues + self.strength
        return np.divide(self.strength * self.place(problem), pull, out=np.zeros(problem.dim), where=pull > 0)
