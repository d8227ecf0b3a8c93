"""Exact Gaussian transitions: from one record to the next in one draw, however many steps lie between.

On a quadratic with additive Gaussian noise, n steps take the state z of a mode, θ or (θ, u), to Aⁿ z + ζ with
cov(ζᵢ, ζⱼ) = F_ij γ Σ_{k<n} Aᵢᵏ b bᵀ Aⱼᵏᵀ, b = −ε or (−ε, 1). Powers and sums are built along the binary digits of n,
from S_{2n} = S_n + Aⁿ S_n Aⁿᵀ: only positive terms add, and rounding grows like n · 2⁻⁵³.
"""

from dataclasses import dataclass

import numpy as np

from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.schedules.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Transition:
    """The law of the state after some steps: power · state + root · (independent standard normals).

    Attributes
    ----------
    power : (D, s, s) array
        s = 1 for θ alone (no momentum), 2 for (θ, u).
    root : (D, s, s) array, or (D·s, D·s) if modes share noise
        A square root of the covariance that noise adds; modes outermost.
    noisy : bool
        Whether it adds any.
    """

    power: FloatArray
    root: FloatArray
    noisy: bool

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.power.nbytes + self.root.nbytes

    @property
    def finite(self) -> bool:
        """Whether both are numbers: beyond the critical learning rate, powers overflow."""
        return bool(np.isfinite(self.power).all() and np.isfinite(self.root).all())


def transition(
    curvature: FloatArray, covariance: FloatArray, rates: FloatArray, lengths: FloatArray, momentum: float
) -> Transition:
    """Exact law of consecutive segments, `lengths` steps at learning rates `rates`.

    Parameters
    ----------
    curvature : (D,) array
    covariance : (D,) or (D, D) array
        Of a minibatch gradient.
    rates, lengths : (P,) array
    momentum : float

    Examples
    --------
    Two steps of SGD at ελ = ½: (1−½)² and a variance of (¼ + ¼·¼)·F.

    >>> law = transition(np.array([1.0]), np.array([4.0]), np.array([0.5]), np.array([2]), 0.0)
    >>> law.power.item(), round(law.root.item() ** 2, 12)
    (0.25, 1.25)
    """
    size = 2 if momentum > 0 else 1
    power = np.broadcast_to(np.eye(size), (curvature.size, size, size))
    spread = np.zeros((*covariance.shape, size, size))
    with np.errstate(over="ignore", invalid="ignore"):
        for rate, length in zip(rates, lengths, strict=True):
            step, kick = _one_step(curvature, float(rate), momentum)
            more_power, more_spread = _repeat(step, covariance[..., None, None] * np.outer(kick, kick), int(length))
            power, spread = more_power @ power, more_spread + _congruence(more_power, spread)
        noisy = bool(np.any(spread != 0.0))
        return Transition(power, _root(spread), noisy)


def between(schedule: Schedule, start: int, stop: int) -> tuple[FloatArray, FloatArray]:
    """Multipliers and lengths of the segments of a schedule between two steps.

    >>> from noisysgd import theory
    >>> between(theory.piecewise([5, 4], [1.0, 0.5]), 3, 7)
    (array([1. , 0.5]), array([2, 2]))
    """
    ends = np.cumsum(schedule.lengths)
    edges = np.unique(np.concatenate([[start, stop], ends[(ends > start) & (ends < stop)]]))
    return schedule.at(edges[:-1]), np.diff(edges)


def _one_step(curvature: FloatArray, rate: float, momentum: float) -> tuple[FloatArray, FloatArray]:
    """A, (D, s, s), and b, (s,)."""
    if momentum == 0.0:
        return (1.0 - rate * curvature)[:, None, None], np.array([-rate])
    step = np.empty((curvature.size, 2, 2))
    step[:, 0, 0], step[:, 0, 1] = 1.0 - rate * curvature, -rate * momentum
    step[:, 1, 0], step[:, 1, 1] = curvature, momentum
    return step, np.array([-rate, 1.0])


def _repeat(step: FloatArray, spread: FloatArray, count: int) -> tuple[FloatArray, FloatArray]:
    """Aⁿ and S_n, along the digits of n after the first."""
    power, total = step, spread
    for digit in bin(count)[3:]:
        power, total = power @ power, total + _congruence(power, total)
        if digit == "1":
            power, total = step @ power, spread + _congruence(step, total)
    return power, total


def _congruence(power: FloatArray, spread: FloatArray) -> FloatArray:
    """Aᵢ S Aⱼᵀ of every mode, or of every pair."""
    if spread.ndim == 3:
        return power @ spread @ power.transpose(0, 2, 1)
    return power[:, None] @ spread @ power.transpose(0, 2, 1)[None]


def _root(spread: FloatArray) -> FloatArray:
    if not np.isfinite(spread).all():
        return np.full(spread.shape, np.inf)
    if spread.ndim == 4:
        dim, _, size, _ = spread.shape
        joint = spread.transpose(0, 2, 1, 3).reshape(dim * size, dim * size)
        # Of correlations: θ may spread by many orders less than u does, and errors are as large as the largest.
        deviation = np.sqrt(np.diagonal(joint))
        unit = np.where(deviation > 0, deviation, 1.0)
        values, vectors = np.linalg.eigh((joint + joint.T) / 2 / unit / unit[:, None])
        root = deviation[:, None] * ((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)
        return np.ascontiguousarray(root)
    # Cholesky, written out: one mode's covariance may be singular, as after a single step.
    root = np.zeros_like(spread)
    root[:, 0, 0] = np.sqrt(spread[:, 0, 0])
    if spread.shape[1] == 2:
        known = root[:, 0, 0] > 0
        np.divide(spread[:, 1, 0], root[:, 0, 0], where=known, out=root[:, 1, 0])
        root[:, 1, 1] = np.sqrt(np.maximum(spread[:, 1, 1] - root[:, 1, 0] ** 2, 0.0))
    return root
