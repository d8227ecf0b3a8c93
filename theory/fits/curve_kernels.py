"""The loss along grouped steps, for noise that may grow with the loss: compiled."""

import math

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.compiling import entry, helper
from noisysgd.theory.moments.mode_kernels import (
    advance,
    coefficients,
    decay,
    discriminant_and_edge,
    momentum_segment,
    noise_segment,
)


@helper
def centre_of_mass(lost: float, gone: float, count: int) -> float:
    """Where in a piece of `count` steps, 0 … 1, the noise comes from that is left at its end: ½ for slow modes.

    The kick of step i leaves the share qⁿ⁻¹⁻ⁱ; `lost` is 1 − q and `gone` is 1 − qⁿ. With g = gone/lost the mean of
    (i + ½)/n under these weights is (n − g)/((1 − q) n g) + 1/(2n).
    """
    if not 0.0 < lost < 1.0:
        return 0.5 if lost <= 0.0 else 1.0 - 0.5 / count
    y = count * lost
    if y < 1e-3:
        return 0.5 + y * (1.0 - 1.0 / count) * (1.0 + 1.0 / count) / 12.0
    return (count * lost - gone) / (y * gone) + 0.5 / count


@helper
def sgd_piece(x: float, count: int) -> tuple[float, float, float]:
    """What `count` steps of SGD leave of E θ², what unit kicks build up, and their centre of mass."""
    exponent = count * 2.0 * math.log1p(-min(x, 2.0 - x)) if x != 1.0 else -math.inf
    gone = -math.expm1(exponent)
    left = 1.0 - gone if exponent > -0.7 else math.exp(exponent)
    lost = x * (2.0 - x)
    return left, gone / lost if lost != 0.0 else float(count), centre_of_mass(lost, gone, count)


@helper
def slow_loss(x: float, m: float) -> float:
    """1 − |r|², r the larger root of heavy ball: the share of E θ² that a step takes away in the long run."""
    discriminant, _ = discriminant_and_edge(x, m)
    if discriminant <= 0.0 or x >= 1.0 + m:
        return 1.0 - m
    slow = 2.0 * x / (1.0 - m + x + math.sqrt(discriminant))
    return slow * (2.0 - slow)


@helper
def momentum_piece(
    tt: float,
    tu: float,
    uu: float,
    lam: float,
    s: float,
    eps: float,
    m: float,
    count: int,
    log_m: float,
    decayed: float,
) -> tuple[float, float, float, float, float, float]:
    """What `count` steps of heavy ball leave of (E θ², E θu, E u²), and what noise of variance s builds up beside."""
    if eps == 0.0:
        left = momentum_segment(tt, tu, uu, lam, 0.0, eps, m, count, log_m, decayed)
        built = momentum_segment(0.0, 0.0, 0.0, lam, s, eps, m, count, log_m, decayed)
        return left[0], left[1], left[2], built[0], built[1], built[2]
    x = eps * lam
    discriminant, edge = discriminant_and_edge(x, m)
    p, q = coefficients(x, m, count, discriminant, edge, log_m, decayed)
    tt, tu, uu = advance(tt, tu, uu, x, eps, m, p, q)
    noise_tt, noise_tu, noise_uu = noise_segment(x, m, count, p, q, discriminant, edge, log_m)
    return tt, tu, uu, eps * eps * s * noise_tt, eps * s * noise_tu, s * noise_uu


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
        eps, count = rates[j], lengths[j]
        trend = changes[j] / eps if changes[j] != 0.0 else 0.0
        for k in range(modes):
            x = eps * eigenvalues[k]
            # To first order in the change of ε, kicks ε² and the decay that follows each add up to one factor of ε at
            # the centre of mass: slow modes keep the mean ε², and fast ones stay at ε/(2λ) for the last ε.
            if momentum == 0.0:
                kept, built_up, place[k] = sgd_piece(x, count)
                strength = noise[k] * (1.0 + (place[k] - 0.5) * trend)
                tt[k] *= kept
                built_tt[k] = strength * eps * eps * built_up
            else:
                lost = slow_loss(x, momentum)
                place[k] = centre_of_mass(lost, -math.expm1(count * math.log1p(-lost)), count)
                strength = noise[k] * (1.0 + (place[k] - 0.5) * trend)
                tt[k], tu[k], uu[k], built_tt[k], built_tu[k], built_uu[k] = momentum_piece(
                    tt[k], tu[k], uu[k], eigenvalues[k], strength, eps, momentum, count, log_m, decayed
                )
            # A step's noise has the strength of the loss before it, half a step earlier than its own middle.
            place[k] -= 0.5 / count
            left += half_weights[k] * tt[k]
            built += half_weights[k] * built_tt[k]
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
