"""First passages of noisy quadratics, for many configurations at once.

The loss is a sum over modes, so a long spectrum can be replaced by a short quadrature rule (``SpectralRule``) whose
error in the loss is bounded. Every configuration is scanned on a small rule up to the step at which that bound becomes
too large beside the target, from there on a larger rule, and so on, in the end on the spectrum itself. Only certain
results are kept: a loss that differs from its target by less than the error bound is examined again on the next rule.
"""

import threading
import warnings
import weakref
from dataclasses import dataclass, field, replace

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.parallel import map_slices
from noisysgd.theory.moments.segments import Pieces, Runs, add_losses
from noisysgd.theory.passage.quadrature_bounds import horizons
from noisysgd.theory.passage.search import (
    LAST_STEP,
    NEVER,
    PENDING,
    REACHED,
    TINY,
    Passages,
    Questions,
    search,
    settle_at_once,
)
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.problems.quadratic import natural_units
from noisysgd.theory.problems.spectral_quadrature import SpectralRule, spectral_rule

OSCILLATIONS = (0.0, 256.0, 4096.0, 16384.0, 65536.0, np.inf)
"""Phases in radians that the rules resolve, in the order in which they are tried; infinity is the full spectrum."""
WORTHWHILE = 0.6
"""A rule is used only if it has at most this share of the spectrum's modes."""
TRUSTED = 1e-10
"""Rounding error, as a share of the target, of heavy-ball states that were advanced by products of step matrices."""
ATTEMPTS = 64
"""How often a close call of a configuration is recomputed, and its scan resumed, before a bisection decides."""


@dataclass
class _Spectrum:
    """What each mode of a noisy quadratic weighs in the loss, and the rules for that, made when first asked for.

    `decay` is ½wλ E θ₀², `noise` is ½wλF, both (D,).
    """

    eigenvalues: FloatArray
    decay: FloatArray
    noise: FloatArray
    made: dict[float, tuple[SpectralRule, SpectralRule] | None] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def rules(self, oscillations: float) -> tuple[SpectralRule, SpectralRule] | None:
        """Rules for decay and for noise that resolve that phase; None if they would not save enough."""
        with self.lock:
            if oscillations not in self.made:
                found = [spectral_rule(self.eigenvalues, mass, oscillations) for mass in (self.decay, self.noise)]
                size = sum(rule.nodes.size for rule in found)
                full = sum(np.count_nonzero(mass) for mass in (self.decay, self.noise))
                worth = oscillations == np.inf or size <= WORTHWHILE * full
                self.made[oscillations] = (found[0], found[1]) if worth else None
            return self.made[oscillations]


_SPECTRA: "weakref.WeakKeyDictionary[NoisyQuadratic, _Spectrum]" = weakref.WeakKeyDictionary()


def _spectrum(given: NoisyQuadratic) -> _Spectrum:
    """What is known of the problem, in natural units."""
    found = _SPECTRA.get(given)
    if found is None:
        problem, _ = natural_units(given)
        half = 0.5 * problem.weights * problem.eigenvalues
        masses = half * problem.initial_second_moment, half * problem.noise_diagonal
        found = _SPECTRA.setdefault(given, _Spectrum(problem.eigenvalues, *masses))
    return found


@search.register
def _(problem: NoisyQuadratic, asked: Questions, known: Passages, last: float) -> None:
    settle_at_once(problem, asked, known)
    spectrum = _spectrum(problem)
    problem, unit = natural_units(problem)
    asked = replace(asked, rates=asked.rates * unit)

    def work(part: slice) -> None:
        _scan(problem, spectrum, asked.take(part), known.of(part), last)

    # What a configuration costs is the size of the rule that it starts on; momentum is about 30 times slower.
    smallest = next(rules for rules in map(spectrum.rules, OSCILLATIONS) if rules is not None)
    nodes = sum(rule.nodes.size for rule in smallest)
    heavy = bool(np.any(asked.momenta >= TINY))
    map_slices(work, asked.rates.size, cost=nodes * (30 if heavy else 1))


def _scan(problem: NoisyQuadratic, spectrum: _Spectrum, asked: Questions, known: Passages, last: float) -> None:
    """Scan on rule after rule, then decide one by one what is closer to its target than rounding allows to tell."""
    for oscillations in OSCILLATIONS:
        pending = _pending(known, last)
        if pending.size == 0:
            return
        rules = spectrum.rules(oscillations)
        if rules is not None:
            _scan_rules(rules, asked, known, last, pending)
    # Plain SGD is settled now. What is pending of heavy ball has a loss within rounding of its target, or more strides
    # ahead of it than one scan takes: decide the step at hand by the closed form, then let the scan go on.
    full = spectrum.rules(np.inf)
    assert full is not None
    for _ in range(ATTEMPTS):
        pending = _pending(known, last)
        for c in pending:
            _recompute(problem, asked, known, int(c))
        pending = _pending(known, last)
        if pending.size == 0:
            return
        _scan_rules(full, asked, known, last, pending)
    for c in _pending(known, last):
        _bisect(problem, full, asked, known, int(c), last)


def _pending(known: Passages, last: float) -> IntArray:
    return np.flatnonzero((known.status == PENDING) & (known.steps <= last))


def _scan_rules(
    rules: tuple[SpectralRule, SpectralRule],
    asked: Questions,
    known: Passages,
    last: float,
    pending: IntArray,
) -> None:
    """Scan the pending configurations as far as the error bounds of these rules allow."""
    # Plain SGD and heavy ball have kernels of their own.
    for heavy in (False, True):
        chosen = pending[(asked.momenta[pending] >= TINY) == heavy]
        if chosen.size == 0:
            continue
        part, known_part = asked.take(chosen), known.at(chosen)
        # The kernels look for a loss that is *possibly* at the target, up to target + error, and no further than to the
        # step up to which the error bound holds.
        limits, errors = horizons(*rules, part.rates, part.factors, part.momenta if heavy else None, part.targets, last)
        if heavy:
            # Products of step matrices have rounding errors, whatever the rule; plain SGD's powers are fresh each time.
            errors = np.maximum(errors, TRUSTED * part.targets)
        status, steps, losses = known_part.status, known_part.steps, np.full((chosen.size, 2), np.inf)
        if heavy:
            from noisysgd.theory.passage.momentum import momentum_passages

            momentum_passages(
                *rules, part.rates, part.factors, part.momenta, part.targets, limits, errors, status, steps, losses
            )
        else:
            from noisysgd.theory.passage.sgd_kernels import sgd_passages

            decay, noise = rules
            masses = (decay.nodes, decay.weights, noise.nodes, noise.weights)
            sgd_passages(*masses, part.rates, part.factors, part.targets, limits, errors, status, steps, losses)
        reported = status == REACHED
        # A kernel that stops at its limit has ruled out that step too: past `last` nothing is left to search.
        steps[(status == PENDING) & (steps >= last)] = last + 1.0
        # A passage at the very step where this scan began has its predecessor in an earlier scan, if anywhere.
        losses[:, 0] = np.where(reported & np.isinf(losses[:, 0]), known_part.losses[:, 0], losses[:, 0])
        known.steps[chosen] = np.where(status == NEVER, np.inf, steps)
        known.losses[chosen] = losses
        # Within the error bound of its target a loss may be on either side of it: a better rule resumes at that step.
        certain = losses[:, 1] <= part.targets - errors
        known.status[chosen] = np.where(reported & ~certain, PENDING, status)


def _loss(problem: NoisyQuadratic, asked: Questions, c: int, step: float) -> float:
    """The loss of configuration `c` after `step` steps, by the closed forms of ``moments``."""
    loss = np.zeros((1, 1))
    runs = Runs(asked.rates[c : c + 1], asked.factors[c : c + 1], asked.momenta[c : c + 1], np.zeros(1))
    add_losses(problem, runs, Pieces.of_one_batch_size(np.array([int(step)]), np.ones(1), np.zeros(1, np.int64)), loss)
    return float(loss[0, 0])


def _recompute(problem: NoisyQuadratic, asked: Questions, known: Passages, c: int) -> None:
    """Decide a close call by the closed form; if the loss is still too high, go on one step later."""
    loss = _loss(problem, asked, c, known.steps[c])
    if loss <= asked.targets[c]:
        known.status[c], known.losses[c, 1] = REACHED, loss
    else:
        known.steps[c], known.losses[c] = known.steps[c] + 1.0, (loss, np.inf)


def _bisect(
    problem: NoisyQuadratic,
    rules: tuple[SpectralRule, SpectralRule],
    asked: Questions,
    known: Passages,
    c: int,
    last: float,
) -> None:
    """Settle configuration `c`, whose loss stays within rounding of its target for long, by bisection of closed forms.

    The crossing is sought between the first pending step and the first one at which the loss is certainly below the
    target. There may be earlier crossings, but none that rounding could tell from a loss that only comes close.
    """
    # A target lower by twice the rounding error is reached only where the true loss is below the target for certain.
    below, end, first = asked.take([c]), Passages.unknown(1), known.steps[c]
    below.targets[0] *= 1.0 - 2.0 * TRUSTED
    end.steps[0] = first
    for _ in range(ATTEMPTS):
        _scan_rules(rules, below, end, last, np.zeros(1, np.int64))
        found = end.losses[0, 1] < np.inf
        if found or end.status[0] == NEVER or end.steps[0] > last:
            break
    else:
        got = f"learning rate {asked.rates[c]!r}, momentum {asked.momenta[c]!r}, target {asked.targets[c]!r}"
        warnings.warn(
            f"{got}: the loss stays so close to the target that its passage may not be the first", stacklevel=2
        )
    latest = end.steps[0] if found else last
    # Distances that double find, in few evaluations, an interval over which the loss falls to the target.
    looked_at = first + 2.0 ** np.arange(1.0 + np.log2(LAST_STEP)) - 1.0
    looked_at = np.append(looked_at[looked_at < latest], latest)
    reached = (k for k in range(looked_at.size) if _loss(problem, asked, c, looked_at[k]) <= asked.targets[c])
    high_at = next(reached, None)
    if high_at is None:
        known.settle([c], np.inf)
        return
    # The loss is above the target at `low` (step first − 1 has been ruled out before) and at or below it at `high`.
    low, high = (looked_at[high_at - 1] if high_at else first - 1.0), looked_at[high_at]
    while high - low > 1.0:
        middle = np.floor(0.5 * (low + high))
        low, high = (low, middle) if _loss(problem, asked, c, middle) <= asked.targets[c] else (middle, high)
    known.settle([c], high)
    known.losses[c] = _loss(problem, asked, c, low) if low >= 0.0 else np.inf, _loss(problem, asked, c, high)
