"""First passages of least squares: step by step at first, then as a sum of powers.

The noise of one mode depends on all others, so a spectrum cannot be compressed as that of a noisy quadratic is. But
once the modes that heavy ball damps quickly have died out, S = Σ w x E θ², with x = ελ, is a constant plus
Σ h z^τ + Σ f (1 − z^τ) over the eigenvalues z of one update (``moments.coupled``). Terms with h > 0 are convex in τ,
those with f > 0 are concave and saturate: the same kinds of parts that the scan of plain SGD can bound.
"""

import numpy as np

from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.common.parallel import map_slices
from noisysgd.theory.moments.coupled import SILENT, UNEXPLAINED, CoupledUpdate, SlowModes, at_rest
from noisysgd.theory.moments.least_squares import coupled_modes, without_noise
from noisysgd.theory.passage.search import NEVER, PENDING, REACHED, TINY, Passages, Questions, search, settle_at_once
from noisysgd.theory.problems.least_squares import LeastSquares

FALL = 1e-6
"""Share of its first value down to which S is followed before its terms are computed anew."""
Found = tuple[int, float, float, float]
"""Status, step, and the values of S one step before and at that step."""


@search.register
def _(problem: LeastSquares, asked: Questions, known: Passages, last: float) -> None:
    settle_at_once(problem, asked, known)
    # Without gradient noise the modes are independent: a noisy quadratic, which ``additive`` searches.
    silent = asked.factors < SILENT
    for chosen, quiet in ((silent, True), (~silent, False)):
        if chosen.any():
            part = known.at(np.flatnonzero(chosen))
            if quiet:
                search(without_noise(problem), asked.take(chosen), part, last)
            else:
                _search_noisy(problem, asked.take(chosen), part, last)
            known.status[chosen], known.steps[chosen], known.losses[chosen] = part.status, part.steps, part.losses


def _search_noisy(problem: LeastSquares, asked: Questions, known: Passages, last: float) -> None:
    """Find all pending passages up to the step `last` of configurations that have gradient noise."""
    modes, means, constant = coupled_modes(problem)

    def work(part: slice) -> None:
        for c in np.arange(asked.rates.size)[part]:
            if known.status[c] != PENDING:
                continue
            rate, momentum = float(asked.rates[c]), float(asked.momenta[c])
            momentum = momentum if momentum >= TINY else 0.0
            update = CoupledUpdate(modes, float(asked.factors[c]), momentum, rate)
            # The loss is S/(2ε), plus that of directions that never move.
            level = 2.0 * rate * (float(asked.targets[c]) - constant)
            with np.errstate(all="ignore"):  # z = 0 has no logarithm, and powers of z > 1 overflow
                status, step, *sums = _first(update, means, level, last)
            known.status[c] = status
            known.steps[c] = np.inf if status == NEVER else step
            with np.errstate(over="ignore"):  # ratios of losses that are still numbers may not be
                known.losses[c] = np.array(sums) / (2.0 * rate) + constant

    map_slices(work, asked.rates.size, cost=20_000 * means.size // 50)


def _first(update: CoupledUpdate, means: FloatArray, level: float, last: float) -> Found:
    """First step, up to `last`, at which S is at most `level`, for a start at rest with E θ² = `means`."""
    if level <= 0.0:
        return NEVER, np.inf, np.inf, np.inf
    # Single steps are cheaper than eigenvalues up to about so many, as for losses (``CoupledUpdate``). They also give
    # the fast modes of heavy ball the time to fade.
    state = at_rest(means)
    walk = min(last, 3.0 * update.fading + 30.0 * means.size + 20_000.0)
    found = _walk(update, state, level, 0.0, walk)
    if found[0] != PENDING or walk == last:
        return found
    powers = _Powers.of(update, state, found[3])
    while update.momentum > 0.0 and update.kick == 0.0 and abs(powers.total - found[3]) > UNEXPLAINED * found[3]:
        # The slow modes do not add up to S: from a start that hardly has any, fast ones still make up S, however small
        # it has become. Walk on until the sum of powers explains S.
        before, walk = walk, min(last, walk + update.fading)
        found = _walk(update, state, level, before, walk)
        if found[0] != PENDING or walk == last:
            return found
        powers = _Powers.of(update, state, found[3])
    if not powers.regular:  # no bound is known: every step has to be taken
        return _walk(update, state, level, walk, last)
    while True:
        # The scan rewrites terms of the wrong sign with the help of constants, beside which a far smaller S would be
        # lost in rounding. So S is followed in stages, and its terms are computed anew at the end of each.
        near = max(level, FALL * powers.total)
        status, step, before, at = powers.first(near, last - walk)
        if status != REACHED or at <= level:
            return status, walk + step, before, at
        powers, walk = powers.after(step), walk + step


def _walk(update: CoupledUpdate, state: FloatArray, level: float, first: float, last: float) -> Found:
    """Steps one by one from the step `first`, which `state` is at, until S ≤ `level` or up to `last`."""
    from noisysgd.theory.passage import sgd_kernels as kernels

    found = kernels.coupled_steps(
        state,
        update.x,
        update.wx,
        update.momentum,
        update.noise,
        update.modes.kurtosis - 2.0,
        update.kick,
        level,
        int(first),
        int(last),
    )
    return found[0], float(found[1]), found[2], found[3]


class _Powers:
    """S(τ) = constant + Σ held z^τ + Σ forced (1 − z^τ), τ steps after the state it was made from.

    `complements` are 1 − z, and `logs` the logarithms of |z|; z may be negative. The constant and all arrays count
    in units of S.
    """

    def __init__(
        self, constant: float, complements: FloatArray, logs: FloatArray, held: FloatArray, forced: FloatArray
    ) -> None:
        self.constant, self.complements, self.logs, self.held, self.forced = constant, complements, logs, held, forced
        # At the edge of stability, z = 1, nothing saturates: f (1 − z^τ) is drift · τ.
        self.drift = np.where(logs == 0.0, forced * complements, 0.0)

    @classmethod
    def of(cls, update: CoupledUpdate, state: FloatArray, total: float) -> "_Powers":
        slow: SlowModes = update.slow
        held = slow.project(state)
        complements = np.where(slow.complements == 0.0, 1e-300, slow.complements)
        forced = update.kick / slow.slopes / complements
        # For SGD the slow modes are all there are, and hold all of S. The fast modes of heavy ball have died out but
        # for their response to label noise, a constant. Without label noise a difference would be rounding, and in the
        # end, when S has fallen, it would be taken for S.
        rest = total - held.sum() if update.momentum > 0 and update.kick > 0 else 0.0
        return cls(rest, complements, np.maximum(slow.log_modulus, -2000.0), held, forced)

    @property
    def regular(self) -> bool:
        """Whether growing modes only add to S, as the bounds of the scan require."""
        growing = self.complements < 0.0
        return bool(np.all(self.held[growing] >= 0) and np.all(self.forced[growing] <= 0))

    @property
    def total(self) -> float:
        """S(0)."""
        return float(self.constant + self.held.sum())

    def after(self, steps: float) -> "_Powers":
        """The same sum, with τ counted from `steps` steps later."""
        # f (1 − z^(s+τ)) = f (1 − z^s) + f z^s (1 − z^τ): a part of each forced term becomes constant.
        odd = (self.complements > 1.0) & (steps % 2 == 1)
        left = np.where(odd, -1.0, 1.0) * np.exp(steps * self.logs)
        constant = self.constant + float((self.forced * (1.0 - left) + self.drift * steps).sum())
        return _Powers(constant, self.complements, self.logs, self.held * left, self.forced * left)

    def first(self, level: float, last: float) -> Found:
        """First τ in 1…last at which S ≤ level."""
        z = 1.0 - self.complements
        if np.all(z >= 0):
            return self._scan(self.constant, self.logs, self.held, self.forced, self.drift, level, last)
        # Powers of a negative z alternate in sign and have no bound. At even τ, and at odd ones, they do not: then S is
        # a sum of powers of z².
        odd_constant = self.constant + (self.forced * self.complements).sum()
        logs, drift = 2.0 * self.logs, 2.0 * self.drift
        even = self._scan(self.constant, logs, self.held, self.forced, drift, level, last // 2)
        odd = self._scan(odd_constant, logs, z * self.held, z * self.forced, drift, level, (last - 1) // 2)
        options = [(even[0], 2.0 * even[1], np.inf, even[3]), (odd[0], 2.0 * odd[1] + 1.0, np.inf, odd[3])]
        reached = [found for found in options if found[0] == REACHED]
        if reached:
            return min(reached, key=lambda found: found[1])
        return (NEVER if even[0] == odd[0] == NEVER else PENDING), last, np.inf, np.inf

    def _scan(
        self,
        constant: float,
        logs: FloatArray,
        held: FloatArray,
        forced: FloatArray,
        drift: FloatArray,
        level: float,
        last: float,
    ) -> Found:
        """First τ in 0…last at which S ≤ level, for eigenvalues with logarithms `logs`, by the scan of plain SGD.

        The scan needs falling terms and saturating noise with coefficients ≥ 0. Of stable modes, a negative one changes
        kind: −h z^τ = −h + h (1 − z^τ), −f (1 − z^τ) = −f + f z^τ.
        """
        from noisysgd.theory.passage import sgd_kernels as kernels

        order = np.argsort(-logs, kind="stable")  # growing modes first, as the kernel expects them
        logs, held, forced = logs[order], held[order], forced[order]
        stable = logs < 0.0
        back, forth = np.where(stable, np.minimum(held, 0.0), 0.0), np.where(stable, np.minimum(forced, 0.0), 0.0)
        shift = constant + back.sum() + forth.sum()
        weights = held - back - forth
        kicks = np.where(logs == 0.0, drift[order], forth - forced + back)
        status, step, before, at = kernels.sgd_scan(logs, weights, logs, kicks, 0.0, level - shift, last)
        return status, step, before + shift, at + shift
