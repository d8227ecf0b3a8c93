"""The loss along grouped steps, for noise that may grow with the loss: compiled."""

import math

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.compiling import entry, helper
from noisysgd.theory.moments.mode_kernels import decay, discriminant_and_edge, momentum_segment, sgd_segment


@helper
def centre_of_mass(x: float, m: float, count: int) -> float:
    """Where in a piece of `count` steps, 0 … 1, the noise comes from that is left at its end: ½ for slow modes.

    The kick of step i leaves the share q^(count−1−i). With g = (1 − qⁿ)/(1 − q) the mean of (i + ½)/n under these
    weights is (n − g)/(1 − q)/(n g) + 1/(2n).
    """
    if m == 0.0:
        lost = x * (2.0 - x)
    else:
        discriminant, _ = discriminant_and_edge(x, m)
        lost = 1.0 - m
        if discriminant > 0.0 and x < 1.0 + m:
            slow = 2.0 * x / (1.0 - m + x + math.sqrt(discriminant))
            lost = slow * (2.0 - slow)
    if not 0.0 < lost < 1.0:
        return 0.5 if lost <= 0.0 else 1.0 - 0.5 / count
    y = count * lost
    if y < 1e-3:
        return 0.5 + y * (1.0 - 1.0 / count) * (1.0 + 1.0 / count) / 12.0
    g = -math.expm1(count * math.log1p(-lost)) / lost
    return (count - g) / (lost * count * g) + 0.5 / count


@entry
def curve_losses(
    eigenvalues: FloatArray,
    half_weights: FloatArray,
    noise: FloatArray,
    second_moment: FloatArray,
    constant: float,
    feedback: float,
    momentum: float,
    lengths: IntArray,
    rates: FloatArray,
    changes: FloatArray,
    recorded: IntArray,
    losses: FloatArray,
) -> None:
    """Excess loss at every record, written into `losses`: ``inf`` from where it overflows.

    The gradient noise of mode k has the variance ``noise[k] · (constant + feedback · loss)``. Within a piece the rate
    and the loss count as linear in the step, and every mode takes both at its centre of mass.
    """
    modes = eigenvalues.size
    tt, tu, uu = second_moment.copy(), np.zeros(modes), np.zeros(modes)
    built_tt, built_tu, built_uu, place = np.empty(modes), np.empty(modes), np.empty(modes), np.empty(modes)
    loss = 0.0
    for k in range(modes):
        loss += half_weights[k] * tt[k]
    log_m = math.log(momentum) if momentum > 0.0 else 0.0
    for j in range(lengths.size):
        decayed = decay(momentum, lengths[j]) if momentum > 0.0 else 0.0
        left, built, delayed = 0.0, 0.0, 0.0
        for k in range(modes):
            lam, count = eigenvalues[k], lengths[j]
            place[k] = centre_of_mass(rates[j] * lam, momentum, count)
            # To first order in the change of ε, kicks ε² and the decay that follows each add up to one factor of ε at
            # the centre of mass: slow modes keep the mean ε², and fast ones stay at ε/(2λ) for the last ε.
            strength = noise[k]
            if changes[j] != 0.0:
                strength *= 1.0 + (place[k] - 0.5) * changes[j] / rates[j]
            if momentum == 0.0:
                tt[k] = sgd_segment(tt[k], rates[j] * lam, 0.0, count)
                built_tt[k] = sgd_segment(0.0, rates[j] * lam, strength * rates[j] * rates[j], count)
            else:
                tt[k], tu[k], uu[k] = momentum_segment(
                    tt[k], tu[k], uu[k], lam, 0.0, rates[j], momentum, count, log_m, decayed
                )
                built_tt[k], built_tu[k], built_uu[k] = momentum_segment(
                    0.0, 0.0, 0.0, lam, strength, rates[j], momentum, count, log_m, decayed
                )
            left += half_weights[k] * tt[k]
            built += half_weights[k] * built_tt[k]
            # A step's noise has the strength of the loss before it, half a step earlier than its own middle.
            place[k] -= 0.5 / count
            delayed += half_weights[k] * built_tt[k] * place[k]
        # The loss at the end of the piece is part of the noise that makes it.
        room = 1.0 - feedback * delayed
        after = (left + built * constant + feedback * loss * (built - delayed)) / room if room > 0.0 else math.inf
        if not after < 1e100:
            for i in range(j, lengths.size):
                if recorded[i] >= 0:
                    losses[recorded[i]] = math.inf
            return
        for k in range(modes):
            level = constant + feedback * (loss + place[k] * (after - loss))
            tt[k] += level * built_tt[k]
            if momentum > 0.0:
                tu[k] += level * built_tu[k]
                uu[k] += level * built_uu[k]
        loss = after
        if recorded[j] >= 0:
            losses[recorded[j]] = loss
