"""The two combinations of hyper-parameters that small learning rates depend on (paper, sections 3.2 and 3.3)."""

from typing import Any

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray


def effective_learning_rate(learning_rate: Any, momentum: Any) -> FloatArray:
    """ε/(1−m): the learning rate at which plain SGD moves as fast. Arguments broadcast.

    >>> round(float(effective_learning_rate(0.1, 0.9)), 12)
    1.0
    """
    rate, inertia = checks.broadcast(
        learning_rate=checks.learning_rate(learning_rate), momentum=checks.momentum(momentum)
    )
    with np.errstate(over="ignore"):
        return np.asarray(rate / (1.0 - inertia))


def temperature(learning_rate: Any, batch_size: Any, momentum: Any = 0.0) -> FloatArray:
    """T = ε/(B(1−m)), the strength of gradient noise in the SDE of eq. 3. Arguments broadcast.

    >>> float(temperature(0.5, 64))
    0.0078125
    """
    rate, size = checks.broadcast(
        effective_learning_rate=effective_learning_rate(learning_rate, momentum),
        batch_size=checks.batch_size(batch_size),
    )
    return np.asarray(rate / size)
