"""One tile of replicas of minibatch SGD on least squares, through a window of steps, compiled.

Replicas are outermost: the parameters of one replica, a row, stay in the first-level cache for the whole window, and
examples stream past them. Every sum is taken in its natural order, over coordinates in a product and over examples in a
gradient, which `simulate.cu` repeats. Such a sum waits for each addition to end before the next; what keeps the
processor busy all the same is that the sums of several examples advance side by side.
"""

import numpy as np

from noisysgd.simulators.randomness.batches import draw_batch
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.compiling import entry, helper

SPARE = 8
"""By how much the array that `products` writes to must be longer than the number of its products."""


@helper
def products(out: FloatArray, rows: FloatArray, chosen: IntArray, point: FloatArray) -> None:
    """Products ⟨rows[chosen[k]], point⟩ into ``out[k]``, for all k; entries beyond are overwritten (`SPARE`)."""
    count = chosen.size
    # Eight independent sums at a time. A last group of fewer repeats the last row, whose results land in the spare
    # entries.
    for k in range(0, count, 8):
        last = count - 1
        a, b = rows[chosen[k]], rows[chosen[min(k + 1, last)]]
        c, d = rows[chosen[min(k + 2, last)]], rows[chosen[min(k + 3, last)]]
        e, f = rows[chosen[min(k + 4, last)]], rows[chosen[min(k + 5, last)]]
        g, h = rows[chosen[min(k + 6, last)]], rows[chosen[min(k + 7, last)]]
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
        for j in range(point.size):
            x = point[j]
            s0 += a[j] * x
            s1 += b[j] * x
            s2 += c[j] * x
            s3 += d[j] * x
            s4 += e[j] * x
            s5 += f[j] * x
            s6 += g[j] * x
            s7 += h[j] * x
        out[k], out[k + 1], out[k + 2], out[k + 3] = s0, s1, s2, s3
        out[k + 4], out[k + 5], out[k + 6], out[k + 7] = s4, s5, s6, s7


@helper
def add_rows(out: FloatArray, factors: FloatArray, rows: FloatArray, chosen: IntArray) -> None:
    """Add ``factors[k] * rows[chosen[k]]`` to `out` for all k, in their order."""
    # Four in one pass over `out`, which is then read and written a fourth as often; the brackets keep the order of
    # sums.
    whole = chosen.size - chosen.size % 4
    for k in range(0, whole, 4):
        a, b, c, d = rows[chosen[k]], rows[chosen[k + 1]], rows[chosen[k + 2]], rows[chosen[k + 3]]
        p, q, r, s = factors[k], factors[k + 1], factors[k + 2], factors[k + 3]
        for j in range(out.size):
            out[j] = (((out[j] + p * a[j]) + q * b[j]) + r * c[j]) + s * d[j]
    for k in range(whole, chosen.size):
        row, factor = rows[chosen[k]], factors[k]
        for j in range(out.size):
            out[j] += factor * row[j]


@helper
def excess_loss(theta: FloatArray, hessian: FloatArray, every: IntArray, forces: FloatArray) -> float:
    """½ θᵀHθ of one replica; `every` is the array 0…D−1, and `forces`, (D + `SPARE`,), is scratch for Hθ."""
    products(forces, hessian, every, theta)
    total = 0.0
    for i in range(theta.size):
        total += theta[i] * forces[i]
    return 0.5 * total


@entry
def excess_losses(losses: FloatArray, theta: FloatArray, hessian: FloatArray) -> None:
    """Put ½ θᵀHθ of every lane of `theta`, (lanes, D), into `losses`, (lanes,)."""
    every, forces = np.arange(theta.shape[1]), np.empty(theta.shape[1] + SPARE)
    for lane in range(losses.size):
        losses[lane] = excess_loss(theta[lane], hessian, every, forces)


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
    """Advance `theta` and `velocity`, (lanes, D), by ``rates.size`` updates; a batch size of 0 means the full gradient.

    `theta` is the distance from the minimizer, whose `residuals` are (N,). After update t the lanes' losses are put
    into ``losses[slots[t]]``, unless the slot is negative; `step` and `replica` are those of the first update and lane.
    """
    dim, population = theta.shape[1], residuals.size
    gradient, forces, every = np.empty(dim), np.empty(dim + SPARE), np.arange(dim)
    residual = np.empty(batch_size + SPARE)
    chosen, order, picks = np.empty(batch_size, np.int64), np.arange(population), np.empty(population, np.int64)
    for lane in range(theta.shape[0]):
        place, speed = theta[lane], velocity[lane]
        who = replica + np.uint64(lane)
        for t in range(rates.size):
            # At the minimizer the full gradient is 0, so that elsewhere it is Hθ: D² products instead of 2·N·D.
            if batch_size == 0:
                products(forces, hessian, every, place)
                gradient[:] = forces[:dim]
            else:
                gradient[:] = 0.0
                draw_batch(chosen, order, picks, sampling, seed, who, step + np.uint64(t), t == 0)
                # ⟨x, ω⟩ − y = ⟨x, θ⟩ − (residual at the minimizer).
                products(residual, inputs, chosen, place)
                for k in range(batch_size):
                    residual[k] -= residuals[chosen[k]]
                add_rows(gradient, residual, inputs, chosen)
                for j in range(dim):
                    gradient[j] /= batch_size
            for j in range(dim):
                speed[j] = momentum * speed[j] + gradient[j]
                place[j] -= rates[t] * speed[j]
            if slots[t] >= 0:
                losses[slots[t], lane] = excess_loss(place, hessian, every, forces)
