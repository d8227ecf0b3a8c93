"""One tile of replicas through a window of steps, compiled.

Heavy ball on a quadratic in its eigenbasis (Smith, Elsen & De 2020, eq. 2): g = λθ + ξ, u ← m u + g, θ ← θ − ε u.
State arrays are (D, lanes). A lane is one replica; lanes are innermost and contiguous, and each is computed by itself,
so that neither the number of lanes nor the vector width changes a bit. `velocity` has no rows when the momentum is 0.

With diagonal noise no coordinate depends on another: the coordinates of one Philox block run through the whole window
before the next block starts, and stay in the first-level cache. Full covariances mix coordinates, and go step by step.

States are float64 or float32 (`number_formats`), and so is everything that is combined with them: one plain float would
promote a whole float32 expression to float64. Only the numbers that noise is made from, in the scratch array `z`, may
be float32 where states are float64. Losses are summed in float64. `simulate.cu` repeats this arithmetic in the same
order, for the paper's heavy ball.

States and curvatures may be those of a penalised problem, measured from its own minimum θ̂; the loss is that of the
problem alone, ½ Σ w (θ + θ̂)² with `weight` w = λ and `shift` θ̂. An average θ̄ ← keep θ̄ + fresh θ is followed where
`average` has rows; the loss is then that of θ̄.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from noisysgd.simulators.randomness import float32
from noisysgd.simulators.randomness.float32 import draw_four
from noisysgd.simulators.randomness.number_formats import StateArray
from noisysgd.simulators.randomness.philox import draw_other, draw_pair, fill_normals
from noisysgd.simulators.randomness.stream import Purpose
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.compiling import INLINED, entry, inlined

_GRADIENT_NOISE = np.uint64(Purpose.GRADIENT_NOISE)
_JUMP = np.uint64(Purpose.JUMP)
_OTHER_NOISE = np.uint64(Purpose.OTHER_NOISE)
_SINGLE_GRADIENT_NOISE = np.uint64(Purpose.SINGLE_GRADIENT_NOISE)


def _draw_block(z: Any, seed: np.uint64, replica: np.uint64, step: np.uint64, block: np.uint64) -> None:
    """Fill `z` with the normals of one Philox block: two rows of float64, or four of float32."""
    if z.dtype == np.float32:
        draw_four(z, 0, seed, _SINGLE_GRADIENT_NOISE, replica, step, block)
    else:
        draw_pair(z, 0, seed, _GRADIENT_NOISE, replica, step, block)


# Compiled, the type of `z` selects one of the two functions, and the other leaves no trace in the kernel.
@overload(_draw_block, jit_options=INLINED)
def _compiled_draw_block(z: Any, seed: Any, replica: Any, step: Any, block: Any) -> Any:
    def draw_double(z: Any, seed: Any, replica: Any, step: Any, block: Any) -> None:
        draw_pair(z, 0, seed, _GRADIENT_NOISE, replica, step, block)

    def draw_single(z: Any, seed: Any, replica: Any, step: Any, block: Any) -> None:
        draw_four(z, 0, seed, _SINGLE_GRADIENT_NOISE, replica, step, block)

    return draw_single if z.dtype == types.float32 else draw_double


def _draw_all(z: Any, seed: np.uint64, replica: np.uint64, step: np.uint64) -> None:
    """Fill `z` with the normals of all coordinates, in the precision of `z`."""
    if z.dtype == np.float32:
        float32.fill_normals(z, seed, _SINGLE_GRADIENT_NOISE, replica, step)
    else:
        fill_normals(z, seed, _GRADIENT_NOISE, replica, step)


@overload(_draw_all, jit_options=INLINED)
def _compiled_draw_all(z: Any, seed: Any, replica: Any, step: Any) -> Any:
    def draw_double(z: Any, seed: Any, replica: Any, step: Any) -> None:
        fill_normals(z, seed, _GRADIENT_NOISE, replica, step)

    def draw_single(z: Any, seed: Any, replica: Any, step: Any) -> None:
        float32.fill_normals(z, seed, _SINGLE_GRADIENT_NOISE, replica, step)

    return draw_single if z.dtype == types.float32 else draw_double


@inlined
def _step(
    theta: StateArray,
    velocity: StateArray,
    i: int,
    noise: StateArray,
    k: int,
    scale: float,
    curvature: float,
    momentum: float,
    nesterov: bool,
    rate: float,
) -> None:
    """Advance coordinate i by one update, with gradient noise ``scale * noise[k]``."""
    # Momentum 0 is a case of its own because u is then not followed: half the memory, and `velocity` has no rows. The
    # branch is outside the loops over lanes, which have to vectorise.
    if momentum == 0.0:
        for lane in range(theta.shape[1]):
            theta[i, lane] -= rate * (curvature * theta[i, lane] + scale * noise[k, lane])
    elif nesterov:
        for lane in range(theta.shape[1]):
            gradient = curvature * theta[i, lane] + scale * noise[k, lane]
            velocity[i, lane] = momentum * velocity[i, lane] + gradient
            theta[i, lane] -= rate * (gradient + momentum * velocity[i, lane])
    else:
        for lane in range(theta.shape[1]):
            velocity[i, lane] = momentum * velocity[i, lane] + (curvature * theta[i, lane] + scale * noise[k, lane])
            theta[i, lane] -= rate * velocity[i, lane]


@inlined
def _add_loss(losses: FloatArray, slot: int, theta: StateArray, i: int, weight: float, shift: float) -> None:
    """Add the loss ½ w (θ + shift)² of coordinate i to ``losses[slot]``, in float64."""
    for lane in range(theta.shape[1]):
        # Converted first: in float32 the square alone could overflow or lose digits.
        place = np.float64(theta[i, lane]) + np.float64(shift)
        losses[slot, lane] += 0.5 * weight * (place * place)


@inlined
def _average(average: StateArray, theta: StateArray, i: int, keep: float, fresh: float) -> None:
    """Take the new θ of coordinate i into the average, if there is one."""
    if average.shape[0] > 0:
        for lane in range(theta.shape[1]):
            average[i, lane] = keep * average[i, lane] + fresh * theta[i, lane]


@entry
def initial_loss(losses: FloatArray, theta: StateArray, weight: StateArray, shift: StateArray) -> None:
    """Add each lane's loss ½ Σ w (θ + shift)² to ``losses[0]``."""
    for i in range(theta.shape[0]):
        _add_loss(losses, 0, theta, i, weight[i], shift[i])


@entry
def advance_diagonal(
    losses: FloatArray,
    theta: StateArray,
    velocity: StateArray,
    average: StateArray,
    z: StateArray,
    curvature: StateArray,
    weight: StateArray,
    shift: StateArray,
    deviation: StateArray,
    momentum: float,
    nesterov: bool,
    rates: StateArray,
    keep: StateArray,
    fresh: StateArray,
    slots: IntArray,
    seed: np.uint64,
    replica: np.uint64,
    step: np.uint64,
    tails: float,
) -> None:
    """Advance by ``rates.size`` updates with independent noise of standard deviations `deviation`, (D,).

    `tails` is the law of the noise (`NoiseLaw.tails`). After update t the lanes' losses are added to
    ``losses[slots[t]]``, unless the slot is negative. `step` and `replica` are those of the first update and lane. `z`,
    (normals of a block, lanes), is scratch for the noise, in its precision.
    """
    dim, width, averaged = theta.shape[0], z.shape[0], average.shape[0] > 0
    for block in range((dim + width - 1) // width):
        # Without noise nothing is drawn, and the update reads these zeros.
        z[:] = 0
        first = width * block
        coordinates = range(first, min(first + width, dim))
        # Random numbers are most of the cost: a block is drawn only if one of its coordinates has noise.
        noisy = False
        for i in coordinates:
            noisy = noisy or deviation[i] != 0.0
        # All steps of these coordinates before the next ones begin: their states, and `z`, stay in the cache.
        for t in range(rates.size):
            if noisy and tails == 0.0:
                _draw_block(z, seed, replica, step + np.uint64(t), np.uint64(block))
            for i in coordinates:
                # Other laws take a whole block of the stream for each coordinate.
                if noisy and tails != 0.0:
                    draw_other(z, i, seed, _OTHER_NOISE, replica, step + np.uint64(t), tails)
                _step(theta, velocity, i, z, i - first, deviation[i], curvature[i], momentum, nesterov, rates[t])
                _average(average, theta, i, keep[t], fresh[t])
                if slots[t] >= 0:
                    _add_loss(losses, slots[t], average if averaged else theta, i, weight[i], shift[i])


@entry
def advance_full(
    losses: FloatArray,
    theta: StateArray,
    velocity: StateArray,
    average: StateArray,
    z: StateArray,
    curvature: StateArray,
    weight: StateArray,
    shift: StateArray,
    root: StateArray,
    momentum: float,
    nesterov: bool,
    rates: StateArray,
    keep: StateArray,
    fresh: StateArray,
    slots: IntArray,
    seed: np.uint64,
    replica: np.uint64,
    step: np.uint64,
    tails: float,
) -> None:
    """As `advance_diagonal`, with noise ``root @ z``: `root`, (D, D), is a square root of its covariance.

    `z` has as many rows as whole blocks need for D coordinates.
    """
    dim, lanes = theta.shape
    averaged = average.shape[0] > 0
    noise = np.zeros((1, lanes), theta.dtype)
    noisy = np.any(root != 0.0)
    # `root` has scaled the noise already. A plain 1.0 would promote float32 states to float64.
    whole = theta.dtype.type(1.0)
    for t in range(rates.size):
        # Every coordinate's noise is mixed from the numbers of all, which are therefore drawn first.
        if noisy and tails == 0.0:
            _draw_all(z, seed, replica, step + np.uint64(t))
        elif noisy:
            for i in range(dim):
                draw_other(z, i, seed, _OTHER_NOISE, replica, step + np.uint64(t), tails)
        # Row by row, so that one row of noise is enough scratch.
        for i in range(dim):
            if noisy:
                _combine(noise, root, i, z)
            _step(theta, velocity, i, noise, 0, whole, curvature[i], momentum, nesterov, rates[t])
            _average(average, theta, i, keep[t], fresh[t])
            if slots[t] >= 0:
                _add_loss(losses, slots[t], average if averaged else theta, i, weight[i], shift[i])


@inlined
def _combine(noise: StateArray, root: StateArray, i: int, z: StateArray) -> None:
    """``noise[0] = root[i] @ z``, in an order of sums that does not depend on the number of lanes (BLAS's does)."""
    noise[0, :] = 0.0
    for j in range(root.shape[1]):
        for lane in range(noise.shape[1]):
            noise[0, lane] += root[i, j] * z[j, lane]


@entry
def jump_diagonal(
    losses: FloatArray,
    theta: FloatArray,
    velocity: FloatArray,
    weight: FloatArray,
    shift: FloatArray,
    power: FloatArray,
    root: FloatArray,
    noisy: bool,
    seed: np.uint64,
    replica: np.uint64,
    step: np.uint64,
) -> None:
    """Make one exact transition (`jump.Transition`) of modes with independent noise, and add losses to ``losses[0]``.

    With momentum a mode takes both normals of a block; without, two modes share a block.
    """
    dim, lanes = theta.shape
    z = np.zeros((2, lanes))
    for i in range(dim):
        # The second normal of a block is left in `z` for the next mode.
        if velocity.shape[0] == 0:
            if noisy and i % 2 == 0:
                draw_pair(z, 0, seed, _JUMP, replica, step, np.uint64(i // 2))
            for lane in range(lanes):
                theta[i, lane] = power[i, 0, 0] * theta[i, lane] + root[i, 0, 0] * z[i % 2, lane]
        else:
            if noisy:
                draw_pair(z, 0, seed, _JUMP, replica, step, np.uint64(i))
            # Both are read before either is written. `root` is lower triangular: θ has no part of the second normal.
            for lane in range(lanes):
                place, speed = theta[i, lane], velocity[i, lane]
                theta[i, lane] = (power[i, 0, 0] * place + power[i, 0, 1] * speed) + root[i, 0, 0] * z[0, lane]
                velocity[i, lane] = (power[i, 1, 0] * place + power[i, 1, 1] * speed) + (
                    root[i, 1, 0] * z[0, lane] + root[i, 1, 1] * z[1, lane]
                )
        _add_loss(losses, 0, theta, i, weight[i], shift[i])


@entry
def jump_full(
    losses: FloatArray,
    theta: FloatArray,
    velocity: FloatArray,
    weight: FloatArray,
    shift: FloatArray,
    power: FloatArray,
    root: FloatArray,
    noisy: bool,
    seed: np.uint64,
    replica: np.uint64,
    step: np.uint64,
) -> None:
    """As `jump_diagonal`, with noise ``root @ z`` of all modes: rows 2i and 2i + 1 of mode i, or i without momentum."""
    dim, lanes = theta.shape
    size = root.shape[0]
    # Normals come in pairs: one row more where their number is odd.
    z = np.zeros((size + size % 2, lanes))
    noise = np.zeros((1, lanes))
    if noisy:
        fill_normals(z, seed, _JUMP, replica, step)
    for i in range(dim):
        if velocity.shape[0] == 0:
            if noisy:
                _combine(noise, root, i, z)
            for lane in range(lanes):
                theta[i, lane] = power[i, 0, 0] * theta[i, lane] + noise[0, lane]
        else:
            if noisy:
                _combine(noise, root, 2 * i, z)
            for lane in range(lanes):
                place, speed = theta[i, lane], velocity[i, lane]
                theta[i, lane] = (power[i, 0, 0] * place + power[i, 0, 1] * speed) + noise[0, lane]
                velocity[i, lane] = power[i, 1, 0] * place + power[i, 1, 1] * speed
            # The one row of scratch is free again: θ has had its noise.
            if noisy:
                _combine(noise, root, 2 * i + 1, z)
            for lane in range(lanes):
                velocity[i, lane] += noise[0, lane]
        _add_loss(losses, 0, theta, i, weight[i], shift[i])


@entry
def moments(losses: FloatArray, mean: FloatArray, spread: FloatArray) -> None:
    """Mean and sum of squared deviations of each row, summed in the order of lanes; NaN in `losses` becomes inf."""
    lanes = losses.shape[1]
    for row in range(losses.shape[0]):
        total = 0.0
        for lane in range(lanes):
            # A run that diverged may end at inf − inf. One is enough to make the mean infinite.
            if not np.isfinite(losses[row, lane]):
                losses[row, lane] = np.inf
            total += losses[row, lane]
        mean[row] = total / lanes
        # In a second pass: the mean of squares less the square of the mean would cancel.
        spread[row] = 0.0
        for lane in range(lanes):
            spread[row] += (losses[row, lane] - mean[row]) ** 2
        if not np.isfinite(mean[row]):
            spread[row] = np.inf
