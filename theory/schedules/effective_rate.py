"""The two combinations of hyper-parameters that determine training at small learning rates.

Source: sections 3.2 and 3.3 of Smith, Elsen & De 2020.
"""

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray


@ignoring_underflow
def effective_learning_rate(learning_rate: ArrayLike, momentum: ArrayLike) -> FloatArray:
    """ε/(1−m): the learning rate at which plain SGD moves as fast as heavy ball with momentum m. Arguments broadcast.

    >>> round(float(effective_learning_rate(0.1, 0.9)), 12)
    1.0
    """
    rate, inertia = checks.broadcast(
        learning_rate=checks.learning_rate(learning_rate), momentum=checks.momentum(momentum)
    )
    with np.errstate(over="ignore"):
        return np.asarray(rate / (1.0 - inertia))


@ignoring_underflow
def temperature(learning_rate: ArrayLike, batch_size: ArrayLike, momentum: ArrayLike = 0.0) -> FloatArray:
    """T = ε/(B(1−m)), the strength of gradient noise in the SDE of eq. 3. Arguments broadcast.

    >>> float(temperature(0.5, 64))
    0.0078125
    """
    rate, size, inertia = checks.broadcast(
        learning_rate=checks.learning_rate(learning_rate),
        batch_size=checks.batch_size(batch_size),
        momentum=checks.momentum(momentum),
    )
    with np.errstate(over="ignore"):
        return np.asarray(rate / (1.0 - inertia) / size)
