"""Fewer modes with the same expected losses, and a bound on the difference under any schedule of SGD.

The loss is Σ a g(λ) + γ Σ b h(λ), with a = ½ w λ E θ₀² and b = ½ w λ F. Each sum gets a Gauss rule of its own
(``spectral_quadrature``), whose error is at most K(ϱ) times the largest |g|, or |h|, in an ellipse of complex λ. Let
c = cos arg λ and ε the largest learning rate of the schedule. Where ε|λ| ≤ 2c, every factor of g = Π (1 − ε_s λ)² is at
most 1 in absolute value, |1 − x|² = 1 − |x|(2c − |x|), so that |g| ≤ 1. With ϰ = |λ|(2c − ε|λ|), each factor is at most
1 − ε_s ϰ, and Σ_k ε_k² Π_{s>k} (1 − ε_s ϰ) ≤ (ε/ϰ) Σ_k ε_k ϰ Π_{s>k} (1 − ε_s ϰ) ≤ ε/ϰ, since that last sum telescopes:
so |h| ≤ ε/ϰ. Neither bound depends on the number of steps.
"""

from typing import NamedTuple

import numpy as np

from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.problems.spectral_quadrature import SpectralRule, spectral_rule

STEEP = 0.75
"""Modes with ελ above this are kept: the ellipses of others are wide enough for errors of 10⁻¹³ with 11 nodes."""


class Rules(NamedTuple):
    """Rules for what is left of the start and for the noise, with bounds on their errors in the loss.

    The second bound is that per noise factor γ.
    """

    start: SpectralRule
    noise: SpectralRule
    start_error: float
    noise_error: float


def rules(
    eigenvalues: FloatArray, start: FloatArray, noise: FloatArray, rate: float, count: int, oscillations: float
) -> Rules:
    """Rules for the masses a = `start` and b = `noise`, all (D,), and learning rates of at most `rate`."""
    above = STEEP / rate if rate > 0.0 else np.inf
    both = [spectral_rule(eigenvalues, mass, oscillations, count=count, above=above) for mass in (start, noise)]
    return Rules(both[0], both[1], _errors(both[0], rate)[0], _errors(both[1], rate)[1])


def _errors(rule: SpectralRule, rate: float) -> tuple[float, float]:
    """Bounds on the error of the rule for g and for h: the sum over its bins, in the best ellipse of each."""
    if rule.exact:
        return 0.0, 0.0
    low, high, cosine = rule.boundary[..., 0], rule.boundary[..., 1], rule.boundary[..., 3]
    stable = (rate * high <= 2.0 * cosine).all(axis=-1)
    # ϰ is concave in |λ|, so that it is smallest at an end of each sector, where |arg λ| is largest.
    pull = np.minimum(low * (2.0 * cosine - rate * low), high * (2.0 * cosine - rate * high)).min(axis=-1)
    with np.errstate(divide="ignore"):
        ends = np.where(stable & (pull > 0.0), rate / np.maximum(pull, 0.0), np.inf)
    largest = np.where(stable, 1.0, np.inf)
    return tuple(float((rule.amplification * most).min(axis=-1).sum()) for most in (largest, ends))  # type: ignore[return-value]
