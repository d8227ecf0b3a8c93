"""First passages of many configurations: which spectra to compress for them, and what to do where that is not enough.

A configuration is scanned on a small ``SpectralRule`` as long as the rule's error is certainly small beside the target,
then on larger ones, in the end on the spectrum itself. Each scan goes on where the last had to stop. What counts is
certain: a loss that is closer to the target than the error may be is looked at again on the next rule.
"""

import threading
import warnings
import weakref
from dataclasses import dataclass, field
from typing import Any

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
from noisysgd.theory.passage.spectral_quadrature import SpectralRule, spectral_rule
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic

OSCILLATIONS = (0.0, 256.0, 4096.0, 16384.0, 65536.0, np.inf)
"""Radians that the rules resolve, one after another."""
WORTHWHILE = 0.6
"""Share of the spectrum that a rule may have left, or it is skipped."""
TRUSTED = 1e-10
"""Rounding, as a share of the target, in states advanced from step to step; closer calls are recomputed."""
REFUSALS = 64
"""Closer calls of one configuration that are recomputed one by one before a bisection decides."""


@dataclass
class _Spectrum:
    """The masses of a noisy quadratic's modes, and rules for them, made when first asked for."""

    eigenvalues: FloatArray
    decay: FloatArray
    noise: FloatArray
    made: dict[float, tuple[SpectralRule, SpectralRule] | None] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)

    def rules(self, oscillations: float) -> tuple[SpectralRule, SpectralRule] | None:
        """Rules for decay and noise; None if they would not save enough."""
        with self.lock:
            if oscillations not in self.made:
                found = [spectral_rule(self.eigenvalues, mass, oscillations) for mass in (self.decay, self.noise)]
                size = sum(rule.nodes.size for rule in found)
                full = sum(np.count_nonzero(mass) for mass in (self.decay, self.noise))
                worth = oscillations == np.inf or size <= WORTHWHILE * full
                self.made[oscillations] = (found[0], found[1]) if worth else None
            return self.made[oscillations]


_SPECTRA: "weakref.WeakKeyDictionary[NoisyQuadratic, _Spectrum]" = weakref.WeakKeyDictionary()


def _spectrum(problem: NoisyQuadratic) -> _Spectrum:
    if problem not in _SPECTRA:
        half = 0.5 * problem.weights * problem.eigenvalues
        masses = half * problem.initial_second_moment, half * problem.noise_diagonal
        _SPECTRA[problem] = _Spectrum(problem.eigenvalues, *masses)
    return _SPECTRA[problem]


@search.register
def _(problem: NoisyQuadratic, asked: Questions, known: Passages, last: float) -> None:
    settle_at_once(problem, asked, known)
    spectrum = _spectrum(problem)

    def work(part: slice) -> None:
        _scan(problem, spectrum, asked.take(part), known.of(part), last)

    smallest = next(rules for rules in map(spectrum.rules, OSCILLATIONS) if rules is not None)
    nodes = sum(rule.nodes.size for rule in smallest)
    heavy = bool(np.any(asked.momenta >= TINY))
    map_slices(work, asked.rates.size, cost=nodes * (30 if heavy else 1))


def _scan(problem: NoisyQuadratic, spectrum: _Spectrum, asked: Questions, known: Passages, last: float) -> None:
    """Scan on rule after rule, then decide closer calls of heavy ball one by one."""
    for oscillations in OSCILLATIONS:
        pending = _pending(known, last)
        if pending.size == 0:
            return
        rules = spectrum.rules(oscillations)
        if rules is not None:
            _scan_rules(rules, asked, known, last, pending, TRUSTED)
    full = spectrum.rules(np.inf)
    assert full is not None
    for _ in range(REFUSALS):
        pending = _pending(known, last)
        for c in pending:
            _recompute(problem, asked, known, int(c))
        pending = _pending(known, last)
        if pending.size == 0:
            return
        _scan_rules(full, asked, known, last, pending, TRUSTED)
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
    trusted: float,
) -> None:
    """Scan pending configurations as far as these rules are certain about them."""
    for heavy in (False, True):
        chosen = pending[(asked.momenta[pending] >= TINY) == heavy]
        if chosen.size == 0:
            continue
        part, known_part = asked.take(chosen), known.at(chosen)
        limits, errors = horizons(*rules, part.rates, part.factors, part.momenta if heavy else None, part.targets, last)
        if heavy:
            errors = np.maximum(errors, trusted * part.targets)
        status, steps, losses = known_part.status, known_part.steps, np.full((chosen.size, 2), np.inf)
        if heavy:
            from noisysgd.theory.passage.momentum import momentum_passages

            momentum_passages(
                *rules, part.rates, part.factors, part.momenta, part.targets, limits, errors, status, steps, losses
            )
        else:
            from noisysgd.theory.passage.sgd_kernels import sgd_passages

            decay, noise = rules
            arguments: tuple[Any, ...] = (decay.nodes, decay.weights, noise.nodes, noise.weights)
            arguments += (part.rates, part.factors, part.targets, limits, errors, status, steps, losses)
            sgd_passages(*arguments)
        called = status == REACHED
        steps[(status == PENDING) & (steps >= last)] = last + 1.0
        # A loss at the first step in question has no known predecessor here; an earlier scan may have left it.
        losses[:, 0] = np.where(called & np.isinf(losses[:, 0]), known_part.losses[:, 0], losses[:, 0])
        known.steps[chosen] = np.where(status == NEVER, np.inf, steps)
        known.losses[chosen] = losses
        certain = losses[:, 1] <= part.targets - errors
        known.status[chosen] = np.where(called & ~certain, PENDING, status)


def _loss(problem: NoisyQuadratic, asked: Questions, c: int, step: float) -> float:
    """The loss of one configuration after so many steps, by the closed forms of ``moments``."""
    loss = np.zeros((1, 1))
    runs = Runs(asked.rates[c : c + 1], asked.factors[c : c + 1], asked.momenta[c : c + 1], np.zeros(1))
    add_losses(problem, runs, Pieces(np.array([int(step)]), np.ones(1), np.zeros(1, np.int64)), loss)
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
    """Where a loss stays within rounding of its target for long, the crossing that bisection by closed forms finds.

    It is sought up to the first step that is certainly below the target. Before that, or ever, there may be other
    crossings, but none that rounding could tell from a loss that only comes near.
    """
    below, end, first = asked.take([c]), Passages.unknown(1), known.steps[c]
    below.targets[0] *= 1.0 - 2.0 * TRUSTED
    end.steps[0] = first
    for _ in range(REFUSALS):
        _scan_rules(rules, below, end, last, np.zeros(1, np.int64), TRUSTED)
        found = end.losses[0, 1] < np.inf
        if found or end.status[0] == NEVER or end.steps[0] > last:
            break
    else:
        got = f"learning rate {asked.rates[c]!r}, momentum {asked.momenta[c]!r}, target {asked.targets[c]!r}"
        warnings.warn(
            f"{got}: the loss stays so close to the target that its passage may not be the first", stacklevel=2
        )
    latest = end.steps[0] if found else last
    looked_at = first + 2.0 ** np.arange(1.0 + np.log2(LAST_STEP)) - 1.0
    looked_at = np.append(looked_at[looked_at < latest], latest)
    reached = (k for k in range(looked_at.size) if _loss(problem, asked, c, looked_at[k]) <= asked.targets[c])
    high_at = next(reached, None)
    if high_at is None:
        known.settle([c], np.inf)
        return
    low, high = (looked_at[high_at - 1] if high_at else first - 1.0), looked_at[high_at]
    while high - low > 1.0:
        middle = np.floor(0.5 * (low + high))
        low, high = (low, middle) if _loss(problem, asked, c, middle) <= asked.targets[c] else (middle, high)
    known.settle([c], high)
    known.losses[c] = _loss(problem, asked, c, low) if low >= 0.0 else np.inf, _loss(problem, asked, c, high)
