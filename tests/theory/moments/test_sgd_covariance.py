"""The closed form of pairs of modes under plain SGD, where both of its differences nearly cancel."""

import mpmath
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from noisysgd import theory
from noisysgd.theory.moments.pair_kernels import covariance_rows

# Values of ελ: drifting and alternating modes, at the edges 0 and 2, beyond the latter, and where a mode is wiped out.
CLOSE = st.sampled_from([0.0, 1e-300, 1e-17, 1e-9, 1.0, 1.0 - 2**-53, 2.0, 2.0 - 1e-13, 2.0 + 1e-13, 2.0 + 1e-3, 1e-3])
STEPS_OF = st.one_of(CLOSE, st.floats(0.0, 2.2))


@given(
    x=st.tuples(STEPS_OF, STEPS_OF),
    count=st.sampled_from([1, 2, 3, 40, 999, 1000, 10**6]),
    correlation=st.sampled_from([-1.0, 0.3, 1.0]),
)
def test_pairs_equal_the_closed_form_in_extended_precision(x, count, correlation):
    noise = np.array([[1.0, correlation], [correlation, 1.0]])
    problem = theory.NoisyQuadratic([*x, 1.0], np.pad(noise, (0, 1)), initial_variance=0.7)
    settings = {"learning_rate": 1.0, "batch_size": 4}
    got = theory.covariance(problem, theory.constant(count), **settings)[:2, :2]
    with mpmath.workdps(400):
        factors = [1 - mpmath.mpf(value) for value in x]
        for i in range(2):
            for j in range(2):
                p = factors[i] * factors[j]
                built_up = (1 - p**count) / (1 - p) if p != 1 else mpmath.mpf(count)
                kept = (mpmath.mpf(0.7) * p**count if i == j else 0) + noise[i, j] / mpmath.mpf(4) * built_up
                if abs(kept) < 1e300:
                    assert abs(got[i, j] - kept) <= 1e-11 * abs(kept) + 1e-300
                else:
                    assert got[i, j] > 1e299


@given(
    problem=st.integers(0, 1000),
    multipliers=st.lists(st.sampled_from([0.0, 0.01, 0.3, 1.0]), min_size=1, max_size=4),
    rate=st.floats(0.01, 2.1),
)
def test_pairs_equal_what_is_built_up_along_binary_digits(problem, multipliers, rate):
    """The kernel for heavy ball and averages takes no momentum too, and shares no formula with the closed form."""
    rng = np.random.default_rng(problem)
    root = rng.standard_normal((4, 4))
    eigenvalues, noise = rng.uniform(0.0, 1.0, 4), (root @ root.T + (root @ root.T).T) / 2
    schedule = theory.piecewise(rng.integers(1, 90, len(multipliers)), multipliers)
    problem = theory.NoisyQuadratic(eigenvalues, noise)
    got = theory.covariance(problem, schedule, learning_rate=rate, batch_size=2)
    other = np.zeros((1, 4, 4))
    last = np.where(np.arange(schedule.lengths.size) == schedule.lengths.size - 1, 0, -1)
    pieces = (schedule.lengths, schedule.multipliers, np.ones(last.size), last)
    keep, fresh = np.zeros(last.size), np.ones(last.size)
    covariance_rows(eigenvalues, noise / 2, np.ones(4), rate, 0.0, 0.0, keep, fresh, *pieces, 0, 4, other)
    scale = np.sqrt(np.outer(np.diag(other[0]), np.diag(other[0])))
    np.testing.assert_array_less(np.abs(got - other[0]), 1e-12 * scale + 1e-300)
