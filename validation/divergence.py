"""When a run has diverged, and that it is noticed at the first batch that shows it."""

import math

LIMIT_IN_GUESSES = 5000.0
"""Multiple of log(classes), the cross-entropy of guessing, beyond which a minibatch loss is taken as divergence."""


def loss_limit(classes: int) -> float:
    """Largest minibatch cross-entropy, in nats, of a run that goes on; no run returns from there.

    >>> round(loss_limit(10))
    11513
    """
    return LIMIT_IN_GUESSES * math.log(max(classes, 2))


def diverged(loss: float, limit: float) -> bool:
    """Whether `loss` is above the limit, infinite or not a number.

    >>> diverged(2.3, 10.0), diverged(11.0, 10.0), diverged(float("nan"), 10.0)
    (False, True, True)
    """
    return not loss <= limit
