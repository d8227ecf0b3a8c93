"""How far a compressed spectrum can be trusted: bounds on its error in the loss, and the steps up to which they hold.

``spectral_quadrature`` bounds the error of a rule by K(ϱ) · max |f| over a Bernstein ellipse of complex eigenvalues. In
the loss after t steps f is one of two functions of x = ελ:

- q_t², what is left of E θ² of a mode without noise: (1 − x)^2t for plain SGD;
- Σ_{s≤t} p_s², the noise built up, with p_s what the s-th last kick has left of itself: (1 − x)^(s−1) for plain SGD.

Both are analytic, so |f| is largest on the boundary of an ellipse; it is bounded on annular sectors that cover the
boundary. Arrays of bounds are (C, K, E): configurations, compressed bins, ellipses.
"""

from dataclasses import dataclass

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.problems.spectral_quadrature import SpectralRule

CERTIFIED = 1e-9
"""Largest error of the loss, as a share of the target, with which a compressed spectrum is used."""


@dataclass(frozen=True)
class Growth:
    """Bounds, each (C, K, E), on complex modes over the boundary of each ellipse.

    |q_t|² ≤ amplitude · e^(growth·t) and |p_t|² ≤ impulse · e^(growth·(t−1)). The noise of any number of steps is at
    most `settled`, which is ``inf`` if it may grow without bound.
    """

    growth: FloatArray
    amplitude: FloatArray
    impulse: FloatArray
    settled: FloatArray

    def take(self, chosen: IntArray) -> "Growth":
        """The bounds of the chosen configurations."""
        return Growth(self.growth[chosen], self.amplitude[chosen], self.impulse[chosen], self.settled[chosen])


def sgd_growth(boundary: FloatArray, rates: FloatArray) -> Growth:
    """Bounds for plain SGD at the learning rates `rates`, (C,); `boundary` is that of a ``SpectralRule``."""
    eps = rates[:, None, None]
    largest = np.full((rates.size, *boundary.shape[:2]), -np.inf)
    for arc in np.moveaxis(boundary, 2, 0):
        low, high, cosine = eps * arc[..., 0], eps * arc[..., 1], arc[..., 3]
        # |1−x|² − 1 = |x|(|x| − 2 cos arg x) is convex in |x| and grows with |arg x|: largest at a corner.
        largest = np.maximum(largest, np.maximum(low * (low - 2.0 * cosine), high * (high - 2.0 * cosine)))
    lowest, highest = eps * boundary[..., 0].min(axis=-1), eps * boundary[..., 1].max(axis=-1)
    # The noise is (1 − (1−x)^2t)/(x(2−x)), with a numerator of at most 2.
    stable = (largest <= 0.0) & (highest < 2.0)
    settled = np.divide(2.0, lowest * (2.0 - highest), where=stable, out=np.full(stable.shape, np.inf))
    one = np.ones_like(largest)
    return Growth(np.log1p(largest), one, one, settled)


def momentum_growth(boundary: FloatArray, rates: FloatArray, momenta: FloatArray) -> Growth:
    """Bounds for heavy ball at learning rates and momenta, both (C,).

    With r₁, r₂ the roots of r² − (1+m−x) r + m, q_t = [r₁^t (r₁−m) − r₂^t (r₂−m)]/(r₁−r₂) and
    p_t = (r₁^t − r₂^t)/(r₁−r₂). Three facts bound them:

    - The larger root R has |R| + m/|R| = (|x − x₋| + |x − x₊|)/2, with the critical dampings x∓ = (1 ∓ √m)²: values x
      whose larger root has the same modulus lie on an ellipse with these foci.
    - (r₁−r₂)² = (x − x₋)(x − x₊).
    - (|r₁−m| + |r₂−m|)² = ½(|1−m−x|² + |r₁−r₂|²) + 2m|x|, by the parallelogram law and (r₁−m)(r₂−m) = mx.
    """
    eps, m = rates[:, None, None], momenta[:, None, None]
    upper = (1.0 + np.sqrt(m)) ** 2
    lower = ((1.0 - m) / (1.0 + np.sqrt(m))) ** 2
    shape = (rates.size, *boundary.shape[:2])
    largest, most, least = np.zeros(shape), np.zeros(shape), np.full(shape, np.inf)
    for arc in np.moveaxis(boundary, 2, 0):
        low, high, inner, outer = eps * arc[..., 0], eps * arc[..., 1], arc[..., 2], arc[..., 3]
        # Sums of distances are convex in |x| and grow with the argument: largest at a corner of the sector.
        near_lower, near_upper = _distance(low, outer, lower), _distance(low, outer, upper)
        far_lower, far_upper = _distance(high, outer, lower), _distance(high, outer, upper)
        quarter = 0.25 * np.maximum(near_lower + near_upper, far_lower + far_upper)
        largest = np.maximum(
            largest, quarter + np.sqrt(np.maximum(quarter * quarter - m, 0.0))
        )  # |R|, from |R| + m/|R|
        # |r₁−r₂|² is bounded from below by the distances of the sector from both critical dampings.
        apart = _nearest(low, high, inner, lower) * _nearest(low, high, inner, upper)
        square = np.maximum(near_lower, far_lower) * np.maximum(near_upper, far_upper)
        square += np.maximum(_distance(low, outer, 1.0 - m), _distance(high, outer, 1.0 - m)) ** 2
        with np.errstate(divide="ignore"):  # where critical damping is inside, or may be
            most = np.maximum(most, (0.5 * square + 2.0 * m * high) / apart)
        least = np.minimum(least, apart)
    with np.errstate(divide="ignore"):
        growth, impulse = 2.0 * np.log(largest), 4.0 * largest * largest / least
    settled = np.divide(impulse, -np.expm1(growth), where=growth < 0.0, out=np.full(shape, np.inf))
    return Growth(growth, most, impulse, settled)


def quadrature_error(steps: FloatArray, rule: SpectralRule, growth: Growth) -> tuple[FloatArray, FloatArray]:
    """Bounds, (C,), on the errors of the decaying part of the loss and of its noise per ε²γ, up to `steps`, (C,).

    For each bin the ellipse with the smallest bound is chosen, and the bins are added up.
    """
    t = steps[:, None, None]
    with np.errstate(over="ignore"):
        factor = rule.amplification * np.exp(np.maximum(growth.growth, 0.0) * t)
    # Close to critical damping, where the bounds diverge, |q_t| ≤ 2(t+1) and |p_t| ≤ t times powers of |R| say more.
    decaying = factor * np.minimum(growth.amplitude, 4.0 * (t + 1.0) ** 2)
    noise = np.minimum(factor * np.minimum(growth.impulse, t * t) * t, rule.amplification * growth.settled)
    return decaying.min(axis=-1).sum(axis=-1), noise.min(axis=-1).sum(axis=-1)


def horizons(
    decay: SpectralRule,
    noise: SpectralRule,
    rates: FloatArray,
    factors: FloatArray,
    momenta: FloatArray | None,
    targets: FloatArray,
    last: float,
) -> tuple[FloatArray, FloatArray]:
    """Steps up to which the error of two rules in the loss is certainly at most CERTIFIED · target, and that bound.

    Arrays of shape (C,), as the arguments are; `momenta` is None for plain SGD. The steps are 0 if already the first
    step may have a larger error, and at most `last`.
    """
    low, high, errors = np.zeros(rates.size), np.full(rates.size, last), np.zeros(rates.size)
    if decay.exact and noise.exact:
        return high, errors
    kicks, open_ = rates**2 * factors, np.arange(rates.size)
    with np.errstate(all="ignore"):  # bounds that are infinite say nothing
        if momenta is None:
            # Most configurations are stable in every bin, so that a bound for all steps exists, and is small enough.
            error = _error_for_good(decay, rates)[0] + _times(kicks, _error_for_good(noise, rates)[1])
            certain = error <= CERTIFIED * targets
            low[certain], errors[certain], open_ = last, error[certain], np.flatnonzero(~certain)
        if open_.size == 0:
            return low, errors
        growths = _growths((decay, noise), rates[open_], None if momenta is None else momenta[open_])
        # The bound grows with the number of steps. Try `last` first, then bisect between `low`, which is certain, and
        # `high`, which is not: geometrically, since horizons span many decades, and no finer than to a fifth.
        row = np.arange(open_.size)
        steps = high.copy()
        while open_.size:
            first, second = (growth.take(row) for growth in growths)
            error = quadrature_error(steps[open_], decay, first)[0]
            error += _times(kicks[open_], quadrature_error(steps[open_], noise, second)[1])
            good = error <= CERTIFIED * targets[open_]
            low[open_[good]], errors[open_[good]] = steps[open_[good]], error[good]
            high[open_[~good]] = steps[open_[~good]]
            steps = np.floor(np.where(high > 8.0, np.sqrt(np.maximum(low, 1.0) * high), 0.5 * (low + high)))
            more = (low[open_] < 0.8 * high[open_]) & (steps[open_] > low[open_])
            row, open_ = row[more], open_[more]
    return low, errors


def _growths(
    rules: tuple[SpectralRule, SpectralRule], rates: FloatArray, momenta: FloatArray | None
) -> tuple[Growth, Growth]:
    """Bounds on the bins of the rule for decay and of that for noise; often the bins are the same."""

    def growth(rule: SpectralRule) -> Growth:
        if momenta is None:
            return sgd_growth(rule.boundary, rates)
        return momentum_growth(rule.boundary, rates, momenta)

    one = growth(rules[0])
    return one, one if np.array_equal(rules[0].boundary, rules[1].boundary) else growth(rules[1])


def _error_for_good(rule: SpectralRule, rates: FloatArray) -> tuple[FloatArray, FloatArray]:
    """:func:`quadrature_error` of plain SGD for any number of steps; infinite if a bin has no stable ellipse."""
    eps = rates[:, None, None]
    low, high, cosine = rule.boundary[..., 0], rule.boundary[..., 1], rule.boundary[..., 3]
    stable = eps <= (2.0 * cosine / high).min(axis=-1)  # |1 − x| ≤ 1 at |x| ≤ 2 cos arg x
    lowest, highest = eps * low.min(axis=-1), eps * high.max(axis=-1)
    decaying = np.where(stable, rule.amplification, np.inf)
    noise = np.where(stable & (highest < 2.0), rule.amplification * (2.0 / (lowest * (2.0 - highest))), np.inf)
    return decaying.min(axis=-1).sum(axis=-1), noise.min(axis=-1).sum(axis=-1)


def _times(kicks: FloatArray, errors: FloatArray) -> FloatArray:
    """kicks · errors, with 0 · inf = 0: without noise there is no error of the noise."""
    return np.where(kicks > 0.0, kicks * errors, 0.0)


def _distance(radius: FloatArray, cosine: FloatArray, focus: FloatArray) -> FloatArray:
    """|x − focus| of complex x from |x| and the cosine of its argument, focus ≥ 0."""
    return np.sqrt((radius - focus) ** 2 + 2.0 * radius * focus * (1.0 - cosine))


def _nearest(low: FloatArray, high: FloatArray, cosine: FloatArray, focus: FloatArray) -> FloatArray:
    """Smallest |x − focus| over low ≤ |x| ≤ high and |arg x| ≥ arccos(cosine), for cosine ≥ 0 and focus ≥ 0."""
    return _distance(np.minimum(np.maximum(focus * cosine, low), high), cosine, focus)
