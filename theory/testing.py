"""Hypothesis strategies for people who test scaling laws of their own. Needs ``hypothesis``.

>>> from hypothesis import given, settings
>>> from noisysgd import theory
>>> @settings(deadline=None)  # the first loss compiles code
... @given(problems(), schedules())
... def loss_is_finite_or_infinite_but_never_nan(problem, schedule):
...     loss = theory.expected_loss(problem, schedule, learning_rate=10.0, batch_size=1)
...     assert not np.isnan(loss)
>>> loss_is_finite_or_infinite_but_never_nan()
"""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp

from noisysgd.theory.problem import NoisyQuadratic
from noisysgd.theory.schedule import Schedule
from noisysgd.theory.stability import critical_learning_rate

__all__ = ["batch_sizes", "learning_rates", "momenta", "problems", "schedules"]


@st.composite
def problems(draw: st.DrawFn, max_dim: int = 6, full_noise: bool = True) -> NoisyQuadratic:
    """Noisy quadratics with up to `max_dim` modes, curvatures over eight decades, zeros included.

    With `full_noise`, the covariance is diagonal in half of the cases and full in the others; the data set has 1000
    examples or is of unknown size.

    >>> problems(max_dim=3).example().dim <= 3  # doctest: +SKIP
    True
    """
    dim = draw(st.integers(1, max_dim))

    def values(low: float, high: float) -> st.SearchStrategy[np.ndarray]:
        return stnp.arrays(np.float64, dim, elements=st.floats(low, high))

    eigenvalues = 10.0 ** draw(values(-6, 2))
    eigenvalues[draw(stnp.arrays(np.bool_, dim))] = 0.0
    eigenvalues[0] = 10.0 ** draw(st.floats(-2, 2))
    if full_noise and draw(st.booleans()):
        factor = draw(stnp.arrays(np.float64, (dim, dim), elements=st.floats(-1, 1)))
        noise = factor @ factor.T
        noise = (noise + noise.T) / 2
    else:
        noise = draw(values(0, 2))
    return NoisyQuadratic(
        eigenvalues,
        noise,
        initial_mean=draw(values(-2, 2)),
        initial_variance=draw(values(0, 2)),
        dataset_size=draw(st.sampled_from([None, 1000])),
    )


@st.composite
def schedules(draw: st.DrawFn, max_segments: int = 4, max_length: int = 50) -> Schedule:
    """Piecewise-constant schedules, a segment with the learning rate at zero among them now and then.

    >>> schedules(max_length=5).example().steps >= 1  # doctest: +SKIP
    True
    """
    count = draw(st.integers(1, max_segments))
    lengths = draw(st.lists(st.integers(1, max_length), min_size=count, max_size=count))
    multipliers = draw(st.lists(st.sampled_from([0.0, 0.01, 0.3, 1.0]), min_size=count, max_size=count))
    return Schedule(lengths, multipliers)


def learning_rates(problem: NoisyQuadratic, low: float = 1e-3, high: float = 0.99) -> st.SearchStrategy[float]:
    """Learning rates between `low` and `high` times the critical one of plain SGD; `high` > 1 diverges."""
    critical = float(critical_learning_rate(problem))
    return st.floats(np.log(low), np.log(high)).map(lambda x: float(np.exp(x)) * critical)


def momenta(highest: float = 0.99) -> st.SearchStrategy[float]:
    """Heavy-ball coefficients, plain SGD and the paper's 0.9 more often than others."""
    return st.one_of(st.sampled_from([0.0, 0.9]), st.floats(0.01, highest))


def batch_sizes(largest: int = 1000) -> st.SearchStrategy[int]:
    """Batch sizes from 1 to `largest`, both more often than others."""
    return st.one_of(st.sampled_from([1, largest]), st.integers(1, largest))
