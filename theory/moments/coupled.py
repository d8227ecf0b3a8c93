"""How the second moments of least squares advance, exactly, although its modes are coupled through the loss.

v_i = E θ_i² obeys a linear map that couples the modes only through L = Σ w λ v (Bordelon & Pehlevan 2021). Its
eigenvalues are therefore roots of one scalar equation (``secular_kernels``), and a segment of the schedule costs O(D²)
however long it is. Heavy ball also has fast eigenvalues, below (1+m)/2 in absolute value and mostly complex. They are
not computed but left to die out: a segment starts with 80/(1−m) plain steps, and takes more of them until the slow
eigenvectors explain the state, so that it costs O(D² + D/(1−m)). Short segments are stepped through.
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

# Smaller ratios than these have no effect within 2⁵³ steps of double precision, but would make products underflow.
FLAT = 1e-40  # a mode's curvature over the largest
SILENT = 1e-90  # a minibatch's noise covariance over that of one example, γ
STILL = 1e-60  # a learning rate over 1/λ_max

GONE = 1e-290
"""A loss below this is taken to be 0 from there on, since slow modes could not be told from rounding."""

UNEXPLAINED = 1e-12
"""Fast modes count as gone when the slow ones leave no more than this share of the loss unexplained."""


@dataclass(frozen=True)
class CoupledModes:
    """Curved modes in ascending order of curvature, with the noise of their problem."""

    eigenvalues: FloatArray
    weights: FloatArray
    label_noise: float
    kurtosis: float


def at_rest(second_moment: FloatArray) -> FloatArray:
    """The state (E θ², E θu, E u²), shape (3, D), of modes that have not moved yet; u is in units of λ_max θ."""
    return np.stack([second_moment, np.zeros_like(second_moment), np.zeros_like(second_moment)])


def advance(
    modes: CoupledModes,
    noise: float | FloatArray,
    momentum: float,
    state: FloatArray,
    rates: FloatArray,
    lengths: IntArray,
) -> FloatArray:
    """Loss after each piece of the schedule, (P,), with the state advanced in place.

    `noise` is γ, a number or one for each piece; `state` has the shape and units of :func:`at_rest`; `rates` and
    `lengths`, (P,), are the pieces.
    """
    losses = np.full(lengths.size, np.inf)
    momentum = momentum if momentum > 1e-30 else 0.0  # so small a momentum rounds to none beside 1
    factors = np.broadcast_to(noise, rates.shape)
    updates: dict[tuple[float, float], CoupledUpdate] = {}
    # Pieces of one map are advanced together, and the eigenvectors found for it serve later ones too.
    for pieces in _runs(rates, factors):
        rate, factor = float(rates[pieces.start]), float(factors[pieces.start])
        step = rate * float(modes.eigenvalues[-1])
        if modes.label_noise == 0.0 and not state.any():  # nothing is there, and nothing will be
            losses[pieces] = 0.0
        elif step < STILL:
            _hold(modes, factor, momentum, state, int(lengths[pieces].sum()))
            losses[pieces] = 0.5 * (modes.weights * modes.eigenvalues * state[0]).sum()
        else:
            update = updates.setdefault((rate, factor), CoupledUpdate(modes, factor, momentum, rate))
            # An update's state has U = εu in place of u/λ_max.
            units = np.power(step, np.arange(3.0))[:, None]
            state *= units
            losses[pieces] = 0.5 / rate * update.segment(state, lengths[pieces])
            state /= units
        overflow = ~np.isfinite(losses[pieces])  # of either sign, once E θu has overflowed
        if overflow.any():
            losses[pieces.start + int(overflow.argmax()) :] = np.inf
            break
    return losses


def _runs(rates: FloatArray, factors: FloatArray) -> Iterator[slice]:
    """Slices of consecutive pieces that are equal in both."""
    changes = [np.diff(each, prepend=-1.0, append=-1.0) != 0.0 for each in (rates, factors)]
    edges = np.flatnonzero(changes[0] | changes[1])
    return (slice(a, b) for a, b in itertools.pairwise(edges.tolist()))


def _hold(modes: CoupledModes, noise: float, momentum: float, state: FloatArray, count: int) -> None:
    """`count` heavy-ball steps at learning rate 0: θ stands still while u relaxes towards its gradients."""
    moment, cross, square = state
    # The variance of the gradients, which stays what it is, in units of λ_max².
    curvature = modes.eigenvalues / modes.eigenvalues[-1]
    feedback = (modes.weights * curvature * moment).sum() + modes.label_noise / modes.eigenvalues[-1]
    variance = noise * curvature * (feedback + (modes.kurtosis - 2.0) * curvature * moment)
    # u forgets the share 1 − m^count of itself, and approaches λθ/(1−m) by the same share.
    lost = -math.expm1(count * math.log(momentum)) if momentum > 0 else 1.0
    keep, grow = 1.0 - lost, curvature * lost / (1.0 - momentum)
    square *= keep**2
    square += 2.0 * keep * grow * cross + grow**2 * moment + variance * lost * (1.0 + keep) / (1.0 - momentum**2)
    cross *= keep
    cross += grow * moment


@dataclass(frozen=True)
class CoupledUpdate:
    """One update at a fixed learning rate ε, in the notation of ``secular_kernels``.

    States are (E θ², E θU, E U²) with U = εu, shape (3, D), and S = ε Σ w λ E θ² is 2ε times the loss. `noise` is γ.
    """

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
        """wελ, the share of each E θ² in S."""
        return self.modes.weights * self.x

    @property
    def excess(self) -> float:
        """k = γ(κ−2), the strength of the noise that a mode makes for itself, beside that which the loss makes."""
        return self.noise * (self.modes.kurtosis - 2.0)

    @cached_property
    def kx2(self) -> FloatArray:
        """kx², the share of E θ² that a mode's own noise adds to it in one step of SGD."""
        return self.excess * self.x**2

    @cached_property
    def decay(self) -> FloatArray:
        """1 − (1−x)² − kx², the share of E θ² that one step of SGD takes away; accurate at x → 0 and x → 2."""
        return self.x * ((2.0 - self.x) - self.excess * self.x)

    @property
    def kick(self) -> float:
        """εσ², which label noise adds to S where S is the source of noise."""
        return self.rate * self.modes.label_noise

    @cached_property
    def slow(self) -> "SlowModes":
        """The update's slow eigenvectors; finding them costs O(D²), once."""
        return _slow_modes(self)

    def iterate(self, state: FloatArray, kick: float, count: int) -> float:
        """S after `count` plain steps, which advance the state in place; `kick` is εσ², or 0 without label noise."""
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
        # A jump pays once it saves more steps than fast modes take to die out and eigenvectors cost to be found.
        worth_jumping = 3 * self.fading + 30 * self.x.size + 20_000
        return self.jump(state, lengths) if lengths.sum() > worth_jumping else self.walk(state, lengths)

    @property
    def fading(self) -> int:
        """Steps in which an eigenvalue of (1+m)/2 fades to 1e-17; 0 for plain SGD, where every mode counts as slow."""
        return math.ceil(80.0 / (1.0 - self.momentum)) if self.momentum > 0 else 0

    def walk(self, state: FloatArray, lengths: IntArray) -> FloatArray:
        """S after each piece, by taking every step; the state is advanced in place."""
        return np.array([self.iterate(state, self.kick, count) for count in lengths.tolist()])

    def jump(self, state: FloatArray, lengths: IntArray) -> FloatArray:
        """S after each piece, by powers of eigenvalues once fast modes are gone; the state is advanced in place."""
        ends, slow = np.cumsum(lengths), self.slow
        sums, at = np.zeros(ends.size), 0
        # What label noise builds up from rest (`forced`) is kept apart from what is left of the start (`state`): where
        # the one is much smaller than the other, it would be a small difference of their sum.
        forced, rest = np.zeros_like(state), np.zeros_like(state)
        settled = self.momentum == 0.0
        if settled:
            shares = slow.project(state)
        while not settled:
            # Wait for as long as fast modes should take to die out, and record the pieces that end meanwhile.
            stop = min(at + self.fading, int(ends[-1]))
            for end in np.union1d(ends[(ends > at) & (ends < stop)], stop).tolist():
                total = self.iterate(state, 0.0, end - at) + self.iterate(forced, self.kick, end - at)
                sums[ends == end] = total
                at = end
            if at == ends[-1]:
                state += forced
                return sums
            # The rest of the schedule is known already if the loss has vanished, or has overflowed.
            gone = abs(total) < GONE
            if gone or not total < math.inf:
                sums[ends > at] = 0.0 if gone else total
                state[:] = 0.0 if gone else state + forced
                return sums
            # Settled when the slow eigenvectors alone make up the state, as far as the loss can tell.
            shares = slow.project(state)
            unexplained = (self.wx * np.abs(state - slow.combine(shares))[0]).sum()
            settled = bool(unexplained <= UNEXPLAINED * total)
            # By then the fast part of what label noise builds up is stationary, so that it stays what it is now.
            rest = forced - slow.combine(slow.built_up(self.kick, at))
        for piece in np.flatnonzero(ends > at).tolist():
            end = int(ends[piece])
            held = slow.decayed(shares, end - at) + slow.built_up(self.kick, end)
            sums[piece] = held.sum() + (self.wx * rest[0]).sum()  # each share is that part's contribution to S
        state[:] = slow.combine(held) + rest
        return sums


@dataclass(frozen=True)
class SlowModes:
    """K slow eigenvectors of an update. An eigenvalue z is held as 1 − z = base + τ; `slopes` are −f′ there."""

    coupled: "Coupled"
    order: IntArray  # the order in which `coupled` has the modes
    bases: FloatArray
    taus: FloatArray
    slopes: FloatArray

    def project(self, state: FloatArray) -> FloatArray:
        """The part of S that each eigenvector holds in a state, (K,), found by left eigenvectors."""
        from noisysgd.theory.moments import secular_kernels as kernels

        ordered = state[:, self.order]
        return np.asarray(kernels.project(self.coupled, self.bases, self.taus, self.slopes, *ordered))

    def combine(self, shares: FloatArray) -> FloatArray:
        """The state, (3, D), in which the eigenvectors hold these parts of S: the sum of right eigenvectors."""
        from noisysgd.theory.moments import secular_kernels as kernels

        state = np.zeros((3, self.order.size))
        kernels.combine(self.coupled, self.bases, self.taus, shares, *state)
        state[:, self.order] = state.copy()
        return state

    @cached_property
    def complements(self) -> FloatArray:
        """1 − z of every eigenvalue z, accurate for z close to 1."""
        return self.bases + self.taus

    @cached_property
    def log_modulus(self) -> FloatArray:
        """log |z|, accurate for z close to 1, where powers of z remain after many steps."""
        eta = self.complements
        return np.where(eta < 1.0, np.log1p(-eta), np.log(np.abs(eta - 1.0)))

    def decayed(self, shares: FloatArray, count: int) -> FloatArray:
        """What `count` steps leave of these parts of S: shares · z^count."""
        # Eigenvalues z < 0, whose powers alternate, occur for plain SGD at kurtosis below 2.
        odd = (self.complements > 1.0) & (count % 2 == 1)
        power = np.where(odd, -1.0, 1.0) * np.exp(count * self.log_modulus)
        return np.where(shares == 0.0, 0.0, shares * power)  # never 0 · inf

    def built_up(self, kick: float, count: int) -> FloatArray:
        """Parts of S that label noise builds up from rest in `count` steps: kick/(−f′) · (1 − z^count)/(1 − z)."""
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
        # Roots are wanted up to `limit`, that is z ≥ (1+m)/2. Poles are sought a little beyond: close to a pole D(η) is
        # a small difference, unless it is computed from that pole. D → ∞ for η → −∞, so that D < 0 shows a pole below.
        limit, reference = 0.5 * (1.0 - m), 0.75 * (1.0 - m)
        rest = _response_denominator(reference, x, kx2, m)
        has_pole = rest < 0.0
        anchor = np.where(has_pole, _poles(x, kx2, m, reference), reference)
        rest[has_pole] = 0.0
    order = np.lexsort((anchor, ~has_pole))
    count = int(np.count_nonzero(has_pole))
    anchor = anchor[order]
    for i in range(1, count):  # gaps between poles must not be empty: equal poles are moved apart by a rounding error
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
        # One root lies below each pole, and one more between the last pole and `limit` if f < 0 at `limit`.
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
    # φ ≈ (1−m²)η for small η; where that overshoots, the bracket brings the iteration back.
    eta = np.clip(at_zero / ((1.0 - m) * (1.0 + m)), 0.0, limit)
    low, high = np.full(x.size, -np.inf), np.full(x.size, limit)
    for _ in range(100):
        value = _response_denominator(eta, x, kx2, m)
        # D is positive to the left of its zero and negative to the right.
        low, high = np.where(value > 0.0, eta, low), np.where(value > 0.0, high, eta)
        fall = 1.0 - (m / (1.0 - eta)) ** 2 + 2.0 * m * kx2 / (1.0 - m - eta) ** 2
        new = eta + value / fall
        before, eta = eta, np.where((new >= low) & (new <= high), new, 0.5 * (low + high))
        if np.all(np.abs(eta - before) <= 1e-12 * np.abs(eta)):
            break
    return eta
