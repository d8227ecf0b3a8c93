"""SVAG as training: updates along c₁∇L_B₁ + c₂∇L_B₂ with learning rate ε/l, l of them for one of SGD.

Li, Malladi & Arora (2021), arXiv 2102.12470. B₁ and B₂ are drawn independently of each other; the mean gradient is
SGD's, the covariance of its noise l times as large. As l grows the run approaches the SDE of SGD's first order: where
the results of SVAG do not depend on l, the SDE describes SGD. With l = 1 it is SGD, bit for bit.
"""

from noisysgd.theory.svag import svag_coefficients

SECOND = 2**40
"""Added to the step to address the second batch's random numbers; the stream allows steps below 2⁴⁸."""


def weighted_draws(dynamics: str, svag: int, step: int) -> list[tuple[float, int]]:
    """The batches of update `step`, each as (weight of its loss, step that addresses its random numbers).

    >>> weighted_draws("sgd", 1, 7)
    [(1.0, 7)]
    >>> [weight for weight, _ in weighted_draws("svag", 5, 7)]
    [2.0, -1.0]
    """
    if dynamics != "svag" or svag == 1:
        return [(1.0, step)]
    first, second = svag_coefficients(svag)
    return [(float(first), step), (float(second), step + SECOND)]
