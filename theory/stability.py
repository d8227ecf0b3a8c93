"""The curvature constraint: learning rates beyond which gradient descent on a quadratic diverges."""

from typing import Any

import numpy as np

from noisysgd.theory import checks
from noisysgd.theory.checks import FloatArray
from noisysgd.theory.problem import NoisyQuadratic


def critical_learning_rate(problem: NoisyQuadratic, batch_size: Any = np.inf, momentum: Any = 0.0) -> FloatArray:
    """Learning rate ε_crit = 2(1+m)/λ_max at and beyond which the loss grows without bound (paper, section 3.1).

    In effective learning rates heavy ball can go (1+m)/(1−m) times as far: 19 times at m = 0.9. Additive noise raises
    the loss but never makes it unstable, so the batch size has no influence here; it is accepted because for
    loss-dependent noise it will.

    Parameters
    ----------
    problem : NoisyQuadratic
    batch_size, momentum : array_like
        Broadcast against each other.

    Returns
    -------
    array of the broadcast shape

    Raises
    ------
    ValueError
        For impossible batch sizes or momenta.

    Examples
    --------
    >>> from noisysgd import theory
    >>> theory.critical_learning_rate(theory.power_law(10), momentum=[0.0, 0.9])
    array([2. , 3.8])
    """
    _, inertia = checks.broadcast(
        batch_size=checks.batch_size(batch_size, problem.dataset_size), momentum=checks.momentum(momentum)
    )
    return np.asarray(2.0 * (1.0 + inertia) / problem.largest_eigenvalue)
