"""Exact Gaussian transitions: from one record to the next in one draw, however many steps lie between.

On a quadratic with additive Gaussian noise of covariance γF, one step takes the state z of a mode to A z + b ξ. Without
momentum z = θ, A = 1 − ελ and b = −ε; with momentum z = (θ, u), u ← m u + (λθ + ξ), θ ← θ − ε u and b = (−ε, 1). After
n steps the state of mode i is Aᵢⁿ zᵢ + ζᵢ with

    cov(ζᵢ, ζⱼ) = γ F_ij S_n,  S_n = Σ_{k<n} Aᵢᵏ b bᵀ (Aⱼᵏ)ᵀ.

Powers and sums are built along the binary digits of n, from S_{2n} = S_n + Aᵢⁿ S_n (Aⱼⁿ)ᵀ. For a single mode only
positive semi-definite terms are added: nothing cancels, and rounding grows like n · 2⁻⁵³.
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
        Whether noise adds any covariance at all.
    """

    power: FloatArray
    root: FloatArray
    noisy: bool

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return self.power.nbytes + self.root.nbytes

    @property
    def finite(self) -> bool:
        """Whether all entries are finite: beyond the critical learning rate, powers of A overflow."""
        return bool(np.isfinite(self.power).all() and np.isfinite(self.root).all())


def transition(
    curvature: FloatArray,
    covariance: FloatArray,
    rates: FloatArray,
    lengths: FloatArray,
    momentum: float,
    nesterov: bool = False,
    shares: FloatArray | None = None,
) -> Transition:
    """Exact law of the state after P consecutive segments, each of constant learning rate and noise.

    Parameters
    ----------
    curvature : (D,) array
        λ of every mode.
    covariance : (D,) or (D, D) array
        γF, the covariance of a minibatch gradient; (D,) where it is diagonal.
    rates, lengths : (P,) array
        Learning rate and number of steps of every segment.
    momentum : float
    nesterov : bool
        Whether θ takes Nesterov's step.
    shares : (P,) array, optional
        What multiplies the covariance in every segment; 1 by default.

    Examples
    --------
    Two steps of SGD at ελ = ½: (1−½)² and a variance of (¼ + ¼·¼)·F.

    >>> law = transition(np.array([1.0]), np.array([4.0]), np.array([0.5]), np.array([2]), 0.0)
    >>> law.power.item(), round(law.root.item() ** 2, 12)
    (0.25, 1.25)
    """
    # Without momentum u is the last gradient, which the next step does not need: θ alone is the state.
    size = 2 if momentum > 0 else 1
    power = np.broadcast_to(np.eye(size), (curvature.size, size, size))
    spread = np.zeros((*covariance.shape, size, size))
    # Overflow is reported by Transition.finite.
    with np.errstate(over="ignore", invalid="ignore"):
        for rate, length, share in zip(rates, lengths, np.ones(len(rates)) if shares is None else shares, strict=True):
            step, kick = _one_step(curvature, float(rate), momentum, nesterov)
            added = (share * covariance)[..., None, None] * np.outer(kick, kick)
            more_power, more_spread = _repeat(step, added, int(length))
            # The noise so far goes through this segment as the state does; the noise of the segment is independent.
            power, spread = more_power @ power, more_spread + _congruence(more_power, spread)
        noisy = bool(np.any(spread != 0.0))
        return Transition(power, _root(spread), noisy)


def between(
    schedule: Schedule, start: int, stop: int, noise: Schedule | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Multipliers, shares of noise and lengths of the segments, or parts of segments, between two steps.

    >>> from noisysgd import theory
    >>> between(theory.piecewise([5, 4], [1.0, 0.5]), 3, 7)
    (array([1. , 0.5]), array([1., 1.]), array([2, 2]))
    """
    ends = np.concatenate([np.cumsum(each.lengths) for each in (schedule, noise) if each is not None])
    edges = np.unique(np.concatenate([[start, stop], ends[(ends > start) & (ends < stop)]]))
    shares = np.ones(edges.size - 1) if noise is None else noise.at(edges[:-1])
    return schedule.at(edges[:-1]), shares, np.diff(edges)


def _one_step(curvature: FloatArray, rate: float, momentum: float, nesterov: bool) -> tuple[FloatArray, FloatArray]:
    """A of every mode, (D, s, s), and b, (s,), which all modes share."""
    if momentum == 0.0:
        return (1.0 - rate * curvature)[:, None, None], np.array([-rate])
    # θ moves by the new u: u ← m u + λθ + ξ put into θ ← θ − ε u, or into Nesterov's θ ← θ − ε (λθ + ξ + m u).
    at_once, carried = (1.0 + momentum, momentum**2) if nesterov else (1.0, momentum)
    step = np.empty((curvature.size, 2, 2))
    step[:, 0, 0], step[:, 0, 1] = 1.0 - rate * at_once * curvature, -rate * carried
    step[:, 1, 0], step[:, 1, 1] = curvature, momentum
    return step, np.array([-rate * at_once, 1.0])


def _repeat(step: FloatArray, spread: FloatArray, count: int) -> tuple[FloatArray, FloatArray]:
    """Aⁿ and S_n for n = `count` ≥ 1, from A = `step` and S_1 = `spread`, in O(log n) products."""
    power, total = step, spread
    # The leading digit of n is the one step to begin with; every further one doubles n, and a 1 adds a step.
    for digit in bin(count)[3:]:
        power, total = power @ power, total + _congruence(power, total)
        if digit == "1":
            power, total = step @ power, spread + _congruence(step, total)
    return power, total


def _congruence(power: FloatArray, spread: FloatArray) -> FloatArray:
    """Aᵢ S_ij Aⱼᵀ: of every mode with itself for (D, s, s) spreads, of every pair of modes for (D, D, s, s)."""
    if spread.ndim == 3:
        return power @ spread @ power.transpose(0, 2, 1)
    return power[:, None] @ spread @ power.transpose(0, 2, 1)[None]


def _root(spread: FloatArray) -> FloatArray:
    """A square root of a covariance (D, s, s) of single modes, or (D, D, s, s) of all; infinite if any entry is."""
    if not np.isfinite(spread).all():
        return np.full(spread.shape, np.inf)
    if spread.ndim == 4:
        dim, _, size, _ = spread.shape
        joint = spread.transpose(0, 2, 1, 3).reshape(dim * size, dim * size)
        # The root is taken of correlations. Errors of eigh are relative to the largest eigenvalue, and would drown the
        # spread of θ, which may be orders of magnitude below that of u.
        deviation = np.sqrt(np.diagonal(joint))
        unit = np.where(deviation > 0, deviation, 1.0)
        # Rounding may leave `joint` slightly asymmetric and eigenvalues of zero slightly negative.
        values, vectors = np.linalg.eigh((joint + joint.T) / 2 / unit / unit[:, None])
        root = deviation[:, None] * ((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)
        return np.ascontiguousarray(root)
    # Cholesky of 1 × 1 or 2 × 2 matrices, written out: NumPy's refuses singular ones, such as b bᵀ after a single step.
    root = np.zeros_like(spread)
    root[:, 0, 0] = np.sqrt(spread[:, 0, 0])
    if spread.shape[1] == 2:
        known = root[:, 0, 0] > 0
        np.divide(spread[:, 1, 0], root[:, 0, 0], where=known, out=root[:, 1, 0])
        root[:, 1, 1] = np.sqrt(np.maximum(spread[:, 1, 1] - root[:, 1, 0] ** 2, 0.0))
    return root
