"""Modes that feel each other through the loss: how the second moments of least squares advance, exactly.

v_i = E θ_i² obeys a linear map in which modes feel each other, but only through L = Σ w λ v (Bordelon & Pehlevan 2021).
Its eigenvalues are therefore roots of one scalar equation (``secular_kernels``), and a segment of the schedule costs
O(D²) however long it is. Heavy ball also has fast eigenvalues, below (1+m)/2 in absolute value and mostly complex. They
are not computed but waited for: a segment starts with 80/(1−m) plain steps, and more of them until the slow modes
explain the state, so that it costs O(D² + D/(1−m)). Short segments are stepped through.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray

if TYPE_CHECKING:
    from noisysgd.theory.moments.secular_kernels import Coupled

# Ratios of no consequence in 2⁵³ steps of double precision, which would only make products underflow.
FLAT = 1e-40  # of a curvature to the largest
SILENT = 1e-90  # of a batch's noise to one example's
STILL = 1e-60  # of a learning rate to the critical one

GONE = 1e-290
"""A loss below which the rest of a schedule is taken to be 0: slow modes could not be told from rounding."""

UNEXPLAINED = 1e-12
"""Share of the loss that slow modes may leave unexplained when the fast ones count as gone."""


@dataclass(frozen=True)
class CoupledModes:
    """Curved modes, in ascending order of curvature."""

    eigenvalues: FloatArray
    weights: FloatArray
    label_noise: float
    kurtosis: float


def at_rest(second_moment: FloatArray) -> FloatArray:
    """State (E θ², E θu, E u²) of shape (3, D), u in units of λ_max θ."""
    return np.stack([second_moment, np.zeros_like(second_moment), np.zeros_like(second_moment)])


def advance(
    modes: CoupledModes, noise: float, momentum: float, state: FloatArray, rates: FloatArray, lengths: IntArray
) -> FloatArray:
    """Loss after each piece of the schedule, (P,), with the state advanced in place."""
    losses = np.full(lengths.size, np.inf)
    momentum = momentum if momentum > 1e-30 else 0.0  # beside 1, nothing
    updates: dict[float, CoupledUpdate] = {}
    for pieces in _runs(rates):
        rate = float(rates[pieces.start])
        step = rate * float(modes.eigenvalues[-1])
        if modes.label_noise == 0.0 and not state.any():
            losses[pieces] = 0.0
        elif step < STILL:
            _hold(modes, noise, momentum, state, int(lengths[pieces].sum()))
            losses[pieces] = 0.5 * (modes.weights * modes.eigenvalues * state[0]).sum()
        else:
            update = updates.setdefault(rate, CoupledUpdate(modes, noise, momentum, rate))
            units = np.power(step, np.arange(3.0))[:, None]
            state *= units
            losses[pieces] = 0.5 / rate * update.segment(state, lengths[pieces])
            state /= units
        overflow = ~np.isfinite(losses[pieces])  # of either sign, once E θd has overflowed
        if overflow.any():
            losses[pieces.start + int(overflow.argmax()) :] = np.inf
            break
    return losses


def _runs(rates: FloatArray) -> Iterator[slice]:
    """Slices of consecutive equal entries."""
    edges = np.flatnonzero(np.diff(rates, prepend=-1.0, append=-1.0))
    return (slice(a, b) for a, b in itertools.pairwise(edges.tolist()))


def _hold(modes: CoupledModes, noise: float, momentum: float, state: FloatArray, count: int) -> None:
    """`count` heavy-ball steps at learning rate 0: θ stands still while u relaxes towards its gradients."""
    moment, cross, square = state
    curvature = modes.eigenvalues / modes.eigenvalues[-1]
    feedback = (modes.weights * curvature * moment).sum() + modes.label_noise / modes.eigenvalues[-1]
    variance = noise * curvature * (feedback + (modes.kurtosis - 2.0) * curvature * moment)
    lost = -math.expm1(count * math.log(momentum)) if momentum > 0 else 1.0
    keep, grow = 1.0 - lost, curvature * lost / (1.0 - momentum)
    square *= keep**2
    square += 2.0 * keep * grow * cross + grow**2 * moment + variance * lost * (1.0 + keep) / (1.0 - momentum**2)
    cross *= keep
    cross += grow * moment


@dataclass(frozen=True)
class CoupledUpdate:
    """One update at a fixed learning rate ε; states hold U = εu, and S is ε Σ w λ E θ² (``secular_kernels``)."""

    modes: CoupledModes
    noise: float
    momentum: float
    rate: float

    @cached_property
    def x(self) -> FloatArray:
        """ελ of every mode."""
        return self.rate * self.modes.eigenvalues

    @cached_property
    def wx(self) -> FloatArray:
        """ελ of all the modes of one curvature together."""
        return self.modes.weights * self.x

    @property
    def excess(self) -> float:
        """γ(κ−2), the strength of the noise that a mode makes for itself; 0 where only the loss makes noise."""
        return self.noise * (self.modes.kurtosis - 2.0)

    @cached_property
    def kx2(self) -> FloatArray:
        """γ(κ−2)(ελ)², what that noise adds to E θ² in one step, as a share of it."""
        return self.excess * self.x**2

    @cached_property
    def decay(self) -> FloatArray:
        """1 − (1−x)² − kx², accurate at x → 0 and x → 2."""
        return self.x * ((2.0 - self.x) - self.excess * self.x)

    @property
    def kick(self) -> float:
        """What label noise adds to S as a source of noise: εσ²."""
        return self.rate * self.modes.label_noise

    @cached_property
    def slow(self) -> "SlowModes":
        """The update's slow eigenvectors; finding them costs O(D²), once."""
        return _slow_modes(self)

    def iterate(self, state: FloatArray, kick: float, count: int) -> float:
        """S after `count` plain steps, done in place."""
        from noisysgd.theory.moments import secular_kernels as kernels

        if self.momentum == 0.0:
            return float(kernels.sgd_steps(state[0], self.x, self.wx, self.decay, self.noise, kick, count))
        return float(
            kernels.momentum_steps(
                state[0], state[1], state[2], self.x, self.wx, self.kx2, self.momentum, self.noise, kick, count
            )
        )

    def segment(self, state: FloatArray, lengths: IntArray) -> FloatArray:
        """S after each piece, with the state advanced in place, by the cheaper of two routes."""
        worth_jumping = 3 * self.fading + 30 * self.x.size + 20_000
        return self.jump(state, lengths) if lengths.sum() > worth_jumping else self.walk(state, lengths)

    @property
    def fading(self) -> int:
        """Steps in which an eigenvalue of (1+m)/2 fades to 1e-17; 0 for plain SGD, where every mode counts as slow."""
        return math.ceil(80.0 / (1.0 - self.momentum)) if self.momentum > 0 else 0

    def walk(self, state: FloatArray, lengths: IntArray) -> FloatArray:
        """Step by step."""
        return np.array([self.iterate(state, self.kick, count) for count in lengths.tolist()])

    def jump(self, state: FloatArray, lengths: IntArray) -> FloatArray:
        """In powers of eigenvalues, once fast modes have died out."""
        ends, slow = np.cumsum(lengths), self.slow
        sums, at = np.zeros(ends.size), 0
        # What label noise builds up is kept apart: found in the whole, it would be a small difference.
        forced, rest = np.zeros_like(state), np.zeros_like(state)
        settled = self.momentum == 0.0
        if settled:
            shares = slow.project(state)
        while not settled:
            stop = min(at + self.fading, int(ends[-1]))
            for end in np.union1d(ends[(ends > at) & (ends < stop)], stop).tolist():
                total = self.iterate(state, 0.0, end - at) + self.iterate(forced, self.kick, end - at)
                sums[ends == end] = total
                at = end
            if at == ends[-1]:
                state += forced
                return sums
            gone = abs(total) < GONE
            if gone or not total < math.inf:
                sums[ends > at] = 0.0 if gone else total
                state[:] = 0.0 if gone else state + forced
                return sums
            shares = slow.project(state)
            unexplained = (self.wx * np.abs(state - slow.combine(shares))[0]).sum()
            settled = bool(unexplained <= UNEXPLAINED * total)
            rest = forced - slow.combine(slow.built_up(self.kick, at))
        for piece in np.flatnonzero(ends > at).tolist():
            end = int(ends[piece])
            held = slow.decayed(shares, end - at) + slow.built_up(self.kick, end)
            sums[piece] = held.sum() + (self.wx * rest[0]).sum()
        state[:] = slow.combine(held) + rest
        return sums


@dataclass(frozen=True)
class SlowModes:
    """Eigenvectors of an update, each with its eigenvalue's complement 1 − z = base + τ."""

    coupled: "Coupled"
    order: IntArray  # of the modes in `coupled`
    bases: FloatArray
    taus: FloatArray
    slopes: FloatArray

    def project(self, state: FloatArray) -> FloatArray:
        """Part of S that each holds in a state (left eigenvectors)."""
        from noisysgd.theory.moments import secular_kernels as kernels

        ordered = state[:, self.order]
        return np.asarray(kernels.project(self.coupled, self.bases, self.taus, self.slopes, *ordered))

    def combine(self, shares: FloatArray) -> FloatArray:
        """The state that holds these parts of S (right eigenvectors)."""
        from noisysgd.theory.moments import secular_kernels as kernels

        state = np.zeros((3, self.order.size))
        kernels.combine(self.coupled, self.bases, self.taus, shares, *state)
        state[:, self.order] = state.copy()
        return state

    @cached_property
    def complements(self) -> FloatArray:
        """1 − z of every eigenvalue z; a sum of two parts, of which the small one is known to all its digits."""
        return self.bases + self.taus

    @cached_property
    def log_modulus(self) -> FloatArray:
        """log |z|, accurate for z close to 1, where powers of z are asked for."""
        eta = self.complements
        return np.where(eta < 1.0, np.log1p(-eta), np.log(np.abs(eta - 1.0)))

    def decayed(self, shares: FloatArray, count: int) -> FloatArray:
        """What `count` steps leave of these parts of S."""
        odd = (self.complements > 1.0) & (count % 2 == 1)
        power = np.where(odd, -1.0, 1.0) * np.exp(count * self.log_modulus)
        return np.where(shares == 0.0, 0.0, shares * power)  # no share, no overflow

    def built_up(self, kick: float, count: int) -> FloatArray:
        """Parts of S that label noise builds up from rest in `count` steps."""
        if kick == 0.0:
            return np.zeros_like(self.slopes)
        eta = self.complements
        lost = np.where(eta < 1.0, -np.expm1(count * self.log_modulus), 1.0 - self.decayed(np.ones_like(eta), count))
        return kick / self.slopes * np.where(eta == 0.0, float(count), lost / eta)


def _slow_modes(update: CoupledUpdate) -> SlowModes:
    """Poles and roots of an update's secular equation: all for plain SGD, the slow ones for heavy ball."""
    from noisysgd.theory.moments import secular_kernels as kernels

    m, x, kx2 = update.momentum, update.x, update.kx2
    limit, anchor, rest = math.inf, update.decay, np.zeros_like(x)
    has_pole = np.ones(x.size, dtype=np.bool_)
    if m > 0.0:
        # Poles a little faster than the slowest root of interest, too: beside them, D(η) is a small difference.
        limit, reference = 0.5 * (1.0 - m), 0.75 * (1.0 - m)
        rest = _response_denominator(reference, x, kx2, m)
        has_pole = rest < 0.0
        anchor = np.where(has_pole, _poles(x, kx2, m, reference), reference)
        rest[has_pole] = 0.0
    order = np.lexsort((anchor, ~has_pole))
    count = int(np.count_nonzero(has_pole))
    anchor = anchor[order]
    for i in range(1, count):  # poles must differ: by a rounding error, at least
        anchor[i] = max(anchor[i], np.nextafter(anchor[i - 1], np.inf))
    coupled = kernels.Coupled(
        momentum=m,
        noise=update.noise,
        excess=update.excess,
        poles=count,
        anchor=anchor,
        rest=rest[order],
        bend=m * m / (1.0 - anchor) if m > 0.0 else np.zeros_like(anchor),
        twist=2.0 * m * kx2[order] / (1.0 - m - anchor) if m > 0.0 else np.zeros_like(anchor),
        x=x[order],
        wx=update.wx[order],
        kx2=kx2[order],
        strength=update.noise * (update.wx * x)[order],
    )
    below = int(np.count_nonzero(anchor[:count] <= limit))
    if m > 0.0:
        # One more root if f has changed sign between the last of these poles and the limit.
        gain = (1.0 + m - limit) / (1.0 - m - limit)
        below += bool(gain * (coupled.strength / _response_denominator(limit, x, kx2, m)[order]).sum() > 1.0)
    return SlowModes(coupled, order, *kernels.roots(coupled, limit, below))


def _response_denominator(eta: FloatArray | float, x: FloatArray, kx2: FloatArray, m: float) -> FloatArray:
    """D(η) of ``secular_kernels``."""
    gain = (1.0 + m - eta) / (1.0 - m - eta)
    return np.asarray(x * (2.0 * m - (x - 2.0)) - kx2 * gain - eta * ((1.0 - m) * (1.0 + m) - eta) / (1.0 - eta))


def _poles(x: FloatArray, kx2: FloatArray, m: float, limit: float) -> FloatArray:
    """The zero of D below `limit`, for modes that have one: Newton's iteration within a bracket."""
    at_zero = _response_denominator(0.0, x, kx2, m)
    eta = np.clip(at_zero / ((1.0 - m) * (1.0 + m)), 0.0, limit)
    low, high = np.full(x.size, -np.inf), np.full(x.size, limit)
    for _ in range(100):
        value = _response_denominator(eta, x, kx2, m)
        low, high = np.where(value > 0.0, eta, low), np.where(value > 0.0, high, eta)
        fall = 1.0 - (m / (1.0 - eta)) ** 2 + 2.0 * m * kx2 / (1.0 - m - eta) ** 2
        new = eta + value / fall
        before, eta = eta, np.where((new >= low) & (new <= high), new, 0.5 * (low + high))
        if np.all(np.abs(eta - before) <= 1e-12 * np.abs(eta)):
            break
    return eta
