"""SVAG, the stochastic variance amplified gradient, which interpolates SGD and its SDE (Li, Malladi & Arora 2021).

It shows on a real network whether the SDE limit describes a run. With a parameter l it descends along c₁ĝ₁ + c₂ĝ₂,
where ĝ₁ and ĝ₂ are gradients of two minibatches, at learning rate ε/l: the mean gradient is unchanged, the noise
covariance is l times as large, and l steps take the time of one. l = 1 is SGD; as l grows the run tends to the order-1
SDE, with an error proportional to 1/l.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.moments.losses import expected_loss
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.schedules.schedule import Schedule


@ignoring_underflow
def svag_coefficients(l: ArrayLike) -> tuple[FloatArray, FloatArray]:  # noqa: E741 - the paper's letter
    """Weights c₁,₂ = (1 ± √(2l−1))/2 of the two minibatch losses (Li, Malladi & Arora 2021, arXiv 2102.12470, eq. 5).

    c₁ + c₂ = 1 and c₁² + c₂² = l.

    Parameters
    ----------
    l : array_like
        Factor ≥ 1 of the noise covariance.

    Returns
    -------
    tuple of two arrays of the shape of `l`

    Raises
    ------
    ValueError
        If `l` is below 1 or not finite.

    Examples
    --------
    >>> c1, c2 = svag_coefficients([1, 5])
    >>> c1, c2
    (array([1., 2.]), array([ 0., -1.]))
    """
    factor = checks.at_least("l", l, 1.0, remedy="l = 1 is SGD, larger l come closer to the SDE.")
    root = 2.0 * np.sqrt(0.5 * factor - 0.25)  # 2l might overflow
    return np.asarray((1.0 + root) / 2.0), np.asarray((1.0 - root) / 2.0)


@ignoring_underflow
def svag_loss(
    problem: NoisyQuadratic,
    schedule: Schedule,
    *,
    l: int,  # noqa: E741 - the paper's letter
    learning_rate: ArrayLike,
    batch_size: ArrayLike,
) -> FloatArray:
    """Expected loss of SVAG at the end of a schedule: that of SGD with ε/l for ε, lF for F, and l steps for each step.

    Parameters
    ----------
    problem : NoisyQuadratic
    schedule : Schedule
        Schedule of the SGD run that SVAG stands for; SVAG takes ``l * schedule.steps`` steps.
    l : int
        Amplification ≥ 1.
    learning_rate, batch_size : array_like
        Those of the SGD run, broadcast against each other; each of SVAG's two minibatches has `batch_size` examples.

    Returns
    -------
    array of the broadcast shape

    Raises
    ------
    ValueError
        For `l` that is not a whole number ≥ 1, and as :func:`~noisysgd.theory.expected_loss`.

    Examples
    --------
    The loss tends to that of the SDE, here ½(e⁻² + 0.1(1 − e⁻²)/2) = 0.0893.

    >>> from noisysgd import theory
    >>> problem, schedule = theory.NoisyQuadratic([1.0], noise=1.0), theory.constant(10)
    >>> for l in (1, 10, 100):
    ...     print(svag_loss(problem, schedule, l=l, learning_rate=0.1, batch_size=1).round(4))
    0.0839
    0.0887
    0.0892
    """
    checks.instance("problem", problem, NoisyQuadratic, remedy="SVAG amplifies noise that does not depend on θ here.")
    checks.instance("schedule", schedule, Schedule, remedy="Make one with theory.constant(steps) or half_then_decay.")
    count = checks.integer("l", l, 1, remedy="l = 1 is SGD.")
    steps = count * schedule.steps
    checks.require(steps < 2**63, "l", "fewer than 2⁶³ steps of SVAG", float(steps), "Take a smaller l.")
    return expected_loss(
        replace(problem, noise=count * problem.noise),
        Schedule(count * schedule.lengths, schedule.multipliers),
        learning_rate=checks.learning_rate(learning_rate) / count,
        batch_size=batch_size,
    )
