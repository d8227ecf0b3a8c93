"""One tile of replicas of minibatch SGD on least squares, through a window of steps, compiled.

Replicas are outermost: the parameters of one, a row, stay in the first-level cache for the whole window, and examples
stream past them. Sums over coordinates are taken in `PARTS` interleaved parts, which vector units add side by side, in
an order that does not depend on their width.
"""

import numpy as np

from noisysgd.simulators.batches import draw_batch
from noisysgd.theory.checks import FloatArray, IntArray
from noisysgd.theory.compiling import entry, helper

PARTS = 32
"""Parts of a sum. Part of the meaning of a result's last bits."""


@helper
def dot(x: FloatArray, y: FloatArray, parts: FloatArray) -> float:
    """Σ xy in a fixed order; `parts` (PARTS,) is scratch."""
    whole = x.size - x.size % PARTS
    parts[:] = 0.0
    for j in range(0, whole, PARTS):
        for k in range(PARTS):
            parts[k] += x[j + k] * y[j + k]
    for j in range(whole, x.size):
        parts[j - whole] += x[j] * y[j]
    width = PARTS // 2
    while width > 0:
        for k in range(width):
            parts[k] += parts[k + width]
        width //= 2
    return float(parts[0])


@helper
def add_times(out: FloatArray, factor: float, x: FloatArray) -> None:
    """Add ``factor * x`` to `out`."""
    for j in range(out.size):
        out[j] += factor * x[j]


@helper
def excess_loss(theta: FloatArray, hessian: FloatArray, parts: FloatArray) -> float:
    """½ θᵀHθ."""
    total = 0.0
    for i in range(theta.size):
        total += theta[i] * dot(hessian[i], theta, parts)
    return 0.5 * total


@entry
def excess_losses(losses: FloatArray, theta: FloatArray, hessian: FloatArray) -> None:
    """That of every lane."""
    parts = np.empty(PARTS)
    for lane in range(losses.size):
        losses[lane] = excess_loss(theta[lane], hessian, parts)


@entry
def minibatch_steps(
    losses: FloatArray,
    theta: FloatArray,
    velocity: FloatArray,
    inputs: FloatArray,
    residuals: FloatArray,
    hessian: FloatArray,
    momentum: float,
    rates: FloatArray,
    slots: IntArray,
    batch_size: int,
    sampling: int,
    seed: np.uint64,
    replica: np.uint64,
    step: np.uint64,
) -> None:
    """Advance `theta` and `velocity`, (lanes, D), by ``rates.size`` updates; a batch of 0 is the noiseless gradient.

    `theta` is the distance from the minimizer, whose `residuals` are (N,). After update t the lanes' losses are put
    into ``losses[slots[t]]``, unless the slot is negative; `step` and `replica` are those of the first update and lane.
    """
    dim, population = theta.shape[1], residuals.size
    parts, gradient = np.empty(PARTS), np.empty(dim)
    chosen, order, picks = np.empty(batch_size, np.int64), np.arange(population), np.empty(population, np.int64)
    for lane in range(theta.shape[0]):
        place, speed = theta[lane], velocity[lane]
        who = replica + np.uint64(lane)
        for t in range(rates.size):
            if batch_size == 0:
                for i in range(dim):
                    gradient[i] = dot(hessian[i], place, parts)
            else:
                gradient[:] = 0.0
                draw_batch(chosen, order, picks, sampling, seed, who, step + np.uint64(t), t == 0)
                for k in range(batch_size):
                    x = inputs[chosen[k]]
                    add_times(gradient, dot(x, place, parts) - residuals[chosen[k]], x)
                for j in range(dim):
                    gradient[j] /= batch_size
            for j in range(dim):
                speed[j] = momentum * speed[j] + gradient[j]
                place[j] -= rates[t] * speed[j]
            if slots[t] >= 0:
                losses[slots[t], lane] = excess_loss(place, hessian, parts)
