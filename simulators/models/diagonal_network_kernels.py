"""One tile of replicas of a diagonal linear network through a window of steps, compiled.

Replicas and sums are ordered as in `least_squares_kernels`.
"""

import math

import numpy as np

from noisysgd.simulators.models.least_squares_kernels import SPARE, add_rows, products
from noisysgd.simulators.randomness.batches import draw_batch
from noisysgd.simulators.randomness.philox import normal_pair, words
from noisysgd.simulators.randomness.stream import Purpose
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.compiling import entry, helper

_LABEL_NOISE, _GRADIENT_NOISE = np.uint64(Purpose.LABEL_NOISE), np.uint64(Purpose.GRADIENT_NOISE)


@helper
def fill(z: FloatArray, count: int, seed: np.uint64, purpose: np.uint64, replica: np.uint64, step: np.uint64) -> None:
    """Fill ``z[:count]``, and the next entry if `count` is odd, with the normals of coordinates 0, 1, …."""
    for block in range((count + 1) // 2):
        x0, x1, x2, x3 = words(seed, purpose, replica, step, np.uint64(block))
        z[2 * block], z[2 * block + 1] = normal_pair(x0, x1, x2, x3)


@helper
def effective(beta: FloatArray, weights: FloatArray) -> None:
    """Set β = w₊² − w₋², where ``weights`` holds w₊ and then w₋."""
    dim = beta.size
    for j in range(dim):
        beta[j] = weights[j] * weights[j] - weights[dim + j] * weights[dim + j]


@helper
def descend(
    weights: FloatArray, velocity: FloatArray, pull: FloatArray, scale: float, momentum: float, rate: float
) -> None:
    """One heavy-ball update of a replica; `pull` times `scale` is the gradient with respect to β."""
    # Chain rule: ∂β/∂w₊ = 2w₊ and ∂β/∂w₋ = −2w₋, coordinate by coordinate.
    dim = pull.size
    for j in range(dim):
        push = (2.0 * scale) * pull[j]
        velocity[j] = momentum * velocity[j] + push * weights[j]
        velocity[dim + j] = momentum * velocity[dim + j] - push * weights[dim + j]
        weights[j] -= rate * velocity[j]
        weights[dim + j] -= rate * velocity[dim + j]


@helper
def measure(
    losses: FloatArray,
    row: int,
    lane: int,
    beta: FloatArray,
    inputs: FloatArray,
    targets: FloatArray,
    truth: FloatArray,
    every: IntArray,
    outputs: FloatArray,
) -> None:
    """Put the training loss into ``losses[row, lane]`` and the test loss into the next row; `outputs` is scratch."""
    train = test = 0.0
    products(outputs, inputs, every, beta)
    for i in range(targets.size):
        train += (outputs[i] - targets[i]) * (outputs[i] - targets[i])
    for j in range(truth.size):
        test += (beta[j] - truth[j]) * (beta[j] - truth[j])
    losses[row, lane], losses[row + 1, lane] = 0.5 * train / targets.size, 0.5 * test


@entry
def losses_of(
    losses: FloatArray, weights: FloatArray, inputs: FloatArray, targets: FloatArray, truth: FloatArray
) -> None:
    """Put training and test losses of `weights`, (lanes, 2d), into `losses`, (2, lanes)."""
    beta, every, outputs = np.empty(truth.size), np.arange(targets.size), np.empty(targets.size + SPARE)
    for lane in range(weights.shape[0]):
        effective(beta, weights[lane])
        measure(losses, 0, lane, beta, inputs, targets, truth, every, outputs)


@entry
def minibatch_steps(
    losses: FloatArray,
    weights: FloatArray,
    velocity: FloatArray,
    inputs: FloatArray,
    targets: FloatArray,
    truth: FloatArray,
    momentum: float,
    rates: FloatArray,
    slots: IntArray,
    whole: int,
    rest: int,
    sampling: int,
    deviation: float,
    seed: np.uint64,
    replica: np.uint64,
    step: np.uint64,
) -> None:
    """Advance `weights`, (lanes, 2d), by ``rates.size`` updates.

    A batch takes all examples `whole` times, and `rest` drawn ones.

    `deviation` is the standard deviation of the label noise. After update t the lanes' losses are put into rows
    2·slots[t] and 2·slots[t] + 1, unless the slot is negative; `step` and `replica` are those of the first update and
    lane.
    """
    count, dim = inputs.shape
    beta, pull, every = np.empty(dim), np.empty(dim), np.arange(count)
    z, outputs = np.zeros(max(count, rest) + 1), np.empty(max(count, rest) + SPARE)
    chosen, order, picks = np.empty(rest, np.int64), np.arange(count), np.empty(count, np.int64)
    times = np.full(count, whole)
    # The gradient of a batch is the mean over all visits, those of the whole passes included.
    size = whole * count + rest
    for lane in range(weights.shape[0]):
        who = replica + np.uint64(lane)
        effective(beta, weights[lane])
        for t in range(rates.size):
            now = step + np.uint64(t)
            if rest > 0:
                draw_batch(chosen, order, picks, sampling, seed, who, now, t == 0)
            visited = rest if whole == 0 else count
            if deviation > 0.0:
                fill(z, visited, seed, _LABEL_NOISE, who, now)
            pull[:] = 0.0
            # A batch without whole passes over the examples: only the drawn ones are looked at.
            if whole == 0:
                products(outputs, inputs, chosen, beta)
                for k in range(rest):
                    outputs[k] = outputs[k] - targets[chosen[k]] - deviation * z[k]
                add_rows(pull, outputs, inputs, chosen)
            else:
                # Every example is visited: one pass over all, each weighted with how often.
                for k in range(rest):
                    times[chosen[k]] += 1
                products(outputs, inputs, every, beta)
                for i in range(count):
                    # The sum of k independent label noises of one variance is a single one of k times that variance.
                    outputs[i] = times[i] * (outputs[i] - targets[i]) - math.sqrt(times[i]) * deviation * z[i]
                add_rows(pull, outputs, inputs, every)
                # Undone, this costs O(rest); to reset all counts would cost O(n).
                for k in range(rest):
                    times[chosen[k]] -= 1
            descend(weights[lane], velocity[lane], pull, 1.0 / size, momentum, rates[t])
            effective(beta, weights[lane])
            if slots[t] >= 0:
                measure(losses, 2 * slots[t], lane, beta, inputs, targets, truth, every, outputs)


@entry
def gaussian_steps(
    losses: FloatArray,
    weights: FloatArray,
    velocity: FloatArray,
    inputs: FloatArray,
    targets: FloatArray,
    truth: FloatArray,
    momentum: float,
    rates: FloatArray,
    slots: IntArray,
    label_scale: float,
    sampling_scale: float,
    seed: np.uint64,
    replica: np.uint64,
    step: np.uint64,
) -> None:
    """As `minibatch_steps`, but with Gaussian noise of the covariance that minibatch gradients have at these weights.

    With ∇fᵢ and gᵢ the gradients of the output and of the loss of example i, the noise is `label_scale` Σ zᵢ ∇fᵢ +
    `sampling_scale` Σ z'ᵢ (gᵢ − ḡ), where z and z' are independent standard normals.
    """
    count, dim = inputs.shape
    beta, pull, every = np.empty(dim), np.empty(dim), np.arange(count)
    z, outputs = np.zeros(2 * count + 1), np.empty(count + SPARE)
    noisy = label_scale > 0.0 or sampling_scale > 0.0
    for lane in range(weights.shape[0]):
        who = replica + np.uint64(lane)
        effective(beta, weights[lane])
        for t in range(rates.size):
            mean = 0.0
            # The first n normals are for labels, the others for sampling; without sampling noise those are not drawn.
            if noisy:
                fill(z, 2 * count if sampling_scale > 0.0 else count, seed, _GRADIENT_NOISE, who, step + np.uint64(t))
                for i in range(count, 2 * count):
                    mean += z[i] / count
            pull[:] = 0.0
            products(outputs, inputs, every, beta)
            # Σ z'ᵢ (gᵢ − ḡ) = Σ (z'ᵢ − mean z') gᵢ: the noise goes into the weights of the examples, and no ḡ is
            # needed.
            for i in range(count):
                share = 1.0 / count + sampling_scale * (z[count + i] - mean)
                outputs[i] = share * (outputs[i] - targets[i]) + label_scale * z[i]
            add_rows(pull, outputs, inputs, every)
            descend(weights[lane], velocity[lane], pull, 1.0, momentum, rates[t])
            effective(beta, weights[lane])
            if slots[t] >= 0:
                measure(losses, 2 * slots[t], lane, beta, inputs, targets, truth, every, outputs)
