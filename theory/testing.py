"""Hypothesis strategies for testing scaling laws of your own. Needs ``hypothesis``.

Draw a problem, a setting of the optimizer in one of the two regimes, a schedule or a budget, and state the law. The
docstring of every strategy says what it draws and from which ranges.

>>> from hypothesis import given, settings, strategies as st
>>> from noisysgd import theory
>>> @settings(deadline=None, max_examples=30)  # no deadline: the first loss compiles code
... @given(st.data(), problems())
... def momentum_changes_only_the_effective_learning_rate(data, problem):
...     plain = data.draw(settings_in(NOISE_DOMINATED, problem, factor=1000.0, momentum=st.just(0.0)))
...     heavy = plain._replace(learning_rate=plain.learning_rate / 2, momentum=0.5)
...     schedule = theory.constant(5000)
...     losses = [theory.expected_loss(problem, schedule, **run._asdict()) for run in (plain, heavy)]
...     noise = theory.temperature(*plain) * (problem.weights * problem.noise_diagonal).sum() / 4
...     assert abs(losses[1] - losses[0]) <= 0.01 * (problem.initial_loss + noise)
>>> momentum_changes_only_the_effective_learning_rate()
"""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.limits.stability import critical_learning_rate
from noisysgd.theory.problems.least_squares import LeastSquares
from noisysgd.theory.problems.noisy_quadratic import NoisyQuadratic
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.scaling.regime_map import CURVATURE_DOMINATED, NOISE_DOMINATED, NOISE_INSTABILITY
from noisysgd.theory.schedules.budget import Budget, EpochBudget, StepBudget
from noisysgd.theory.schedules.schedule import Schedule

__all__ = [
    "Setting",
    "batch_sizes",
    "budgets",
    "learning_rates",
    "least_squares_problems",
    "momenta",
    "problems",
    "register",
    "schedules",
    "settings_in",
    "spectra",
]


@st.composite
def spectra(draw: st.DrawFn, max_dim: int = 6, condition_number: float | None = None) -> FloatArray:
    """Curvatures λ, shape (D,), with 1 ≤ D ≤ `max_dim`, not sorted.

    The first is between 10⁻² and 10². The others are between 10⁻⁶ and 10², or zero, so that the first need not be the
    largest. With a `condition_number` κ the others lie between the first and 1/κ of it, and none is zero.

    >>> from hypothesis import find
    >>> find(spectra(), lambda eigenvalues: (eigenvalues == 0).any())
    array([1., 0.])
    """
    dim = draw(st.integers(1, max_dim))
    if condition_number is not None:
        decades = float(np.log10(condition_number))
        spread = draw(_values(dim, -decades, 0.0))
        spread[0] = 0.0
        return np.asarray(10.0 ** (draw(st.floats(-2, 2)) + spread))
    eigenvalues = 10.0 ** draw(_values(dim, -6, 2))
    eigenvalues[draw(stnp.arrays(np.bool_, dim))] = 0.0
    eigenvalues[0] = 10.0 ** draw(st.floats(-2, 2))
    return np.asarray(eigenvalues)


@st.composite
def problems(
    draw: st.DrawFn,
    max_dim: int = 6,
    full_noise: bool = True,
    weights: bool = False,
    condition_number: float | None = None,
) -> NoisyQuadratic:
    """Noisy quadratics with up to `max_dim` modes and the curvatures of :func:`spectra`, zeros included.

    The noise covariance is diagonal with entries up to 2; with `full_noise`, in half of the cases it is a full matrix
    with diagonal entries up to D. Initial means are in −2…2 and variances in 0…2. Zero is more likely than other
    values, so that some problems start at their minimum or have no noise. The data set has 1000 training examples or
    an unknown size.

    With `weights`, each eigenvalue stands for 1 to 100 modes, a number that need not be whole; if the noise is a full
    matrix, it stands for one.

    >>> from hypothesis import find
    >>> problem = find(problems(), lambda problem: problem.noise.ndim == 2 and problem.dim == 2)
    >>> problem.noise.shape
    (2, 2)
    """
    eigenvalues = draw(spectra(max_dim, condition_number))
    dim = eigenvalues.size
    weights = checks.boolean("weights", weights)
    full = checks.boolean("full_noise", full_noise) and draw(st.booleans())
    if full:
        factor = draw(stnp.arrays(np.float64, (dim, dim), elements=st.floats(-1, 1)))
        noise = factor @ factor.T
        noise = (noise + noise.T) / 2
    else:
        noise = draw(_values(dim, 0, 2))
    return NoisyQuadratic(
        eigenvalues,
        noise,
        initial_mean=draw(_values(dim, -2, 2)),
        initial_variance=draw(_values(dim, 0, 2)),
        dataset_size=draw(st.sampled_from([None, 1000])),
        weights=draw(_values(dim, 1, 100)) if weights and not full else 1.0,
    )


@st.composite
def least_squares_problems(
    draw: st.DrawFn, max_dim: int = 6, weights: bool = False, condition_number: float | None = None
) -> LeastSquares:
    """Least squares with up to `max_dim` modes, and curvatures and starts as in :func:`problems`.

    In half of the cases there is no label noise, otherwise it is in 10⁻³…2. In about half of the cases inputs are
    Gaussian (kurtosis 3), otherwise they have a kurtosis of 1…9, often 1 or 2. The data set has 1000 training examples
    or an unknown size.

    With `weights`, each eigenvalue stands for 1 to 100 modes, a number that need not be whole.

    >>> from hypothesis import find
    >>> find(least_squares_problems(), lambda problem: problem.label_noise == 0).kurtosis
    3.0
    """
    weights = checks.boolean("weights", weights)
    eigenvalues = draw(spectra(max_dim, condition_number))
    dim = eigenvalues.size
    return LeastSquares(
        eigenvalues,
        label_noise=draw(st.one_of(st.just(0.0), st.floats(1e-3, 2))),
        initial_mean=draw(_values(dim, -2, 2)),
        initial_variance=draw(_values(dim, 0, 2)),
        dataset_size=draw(st.sampled_from([None, 1000])),
        weights=draw(_values(dim, 1, 100)) if weights else 1.0,
        kurtosis=draw(st.one_of(st.just(3.0), st.sampled_from([3.0, 2.0, 1.0]), st.floats(1, 9))),
    )


@st.composite
def schedules(draw: st.DrawFn, max_segments: int = 4, max_length: int = 50) -> Schedule:
    """Piecewise-constant schedules of up to `max_segments` segments of 1 to `max_length` steps each.

    Multipliers are 0, 0.01, 0.3 or 1, so that some segments have a learning rate of zero.

    >>> from hypothesis import find
    >>> find(schedules(), lambda schedule: True).steps
    1
    """
    count = draw(st.integers(1, max_segments))
    lengths = draw(st.lists(st.integers(1, max_length), min_size=count, max_size=count))
    multipliers = draw(st.lists(st.sampled_from([0.0, 0.01, 0.3, 1.0]), min_size=count, max_size=count))
    return Schedule(lengths, multipliers)


def budgets(max_steps: int = 1000, max_epochs: float = 20.0, dataset_size: int = 1000) -> st.SearchStrategy[Budget]:
    """Budgets of 1 to `max_steps` steps, or of 1 to `max_epochs` passes over `dataset_size` training examples.

    There is at least one epoch, so that every batch size up to `dataset_size` takes at least one step. A problem with a
    known data-set size must have the same one; by default those of :func:`problems` do, and :func:`batch_sizes` does
    not exceed it.

    >>> from hypothesis import find
    >>> find(budgets(), lambda budget: budget.dataset_size is not None)
    EpochBudget(epochs=1.0, dataset_size=1000)
    """
    epochs = st.floats(1.0, max_epochs).map(lambda passes: EpochBudget(passes, dataset_size))
    return st.one_of(st.integers(1, max_steps).map(StepBudget), epochs)


def learning_rates(
    problem: Quadratic, low: float = 1e-3, high: float = 0.99, *, batch_size: ArrayLike = np.inf, momentum: float = 0.0
) -> st.SearchStrategy[float]:
    """Learning rates between `low` and `high` times the critical one, evenly spread on a logarithmic scale.

    The critical learning rate is that of plain SGD unless a `momentum` is given, and for least squares that without
    noise unless a `batch_size` is given. Above it, with `high` > 1, losses diverge.

    >>> from hypothesis import find
    >>> from noisysgd import theory
    >>> 0.002 <= find(learning_rates(theory.power_law(3)), lambda rate: rate > 0) <= 1.98
    True
    """
    remedy = "Pass shares of the critical learning rate, such as 0.001 and 0.99."
    low, high = (
        checks.interval(name, share, 0.0, np.inf, remedy=remedy) for name, share in (("low", low), ("high", high))
    )
    checks.require(low <= high, "low, high", "low ≤ high", (low, high), remedy)
    critical = checks.scalar("batch_size, momentum", critical_learning_rate(problem, batch_size, momentum))
    checks.require(np.isfinite(critical), "problem", "a finite critical learning rate", critical, "Pass curvature.")
    return _between(low, high).map(lambda share: share * critical)


def momenta(highest: float = 0.99) -> st.SearchStrategy[float]:
    """Heavy-ball coefficients in 0.01…`highest`, or 0; this and the paper's 0.9 are drawn more often than others.

    >>> from hypothesis import find
    >>> find(momenta(), lambda m: True)
    0.0
    """
    highest = checks.scalar("highest", checks.momentum(highest, "highest"))
    checks.require(highest >= 0.01, "highest", "a momentum ≥ 0.01", highest, "Use st.just(0.0) for no momentum.")
    return st.one_of(st.sampled_from([0.0, min(0.9, highest)]), st.floats(0.01, highest))


def batch_sizes(largest: int = 1000) -> st.SearchStrategy[int]:
    """Batch sizes from 1 to `largest`; these two are drawn more often than others.

    >>> from hypothesis import find
    >>> find(batch_sizes(), lambda size: size > 1)
    1000
    """
    largest = checks.integer("largest", largest, 1, remedy="A batch has at least one example.")
    return st.one_of(st.sampled_from([1, largest]), st.integers(1, largest))


class Setting(NamedTuple):
    """A setting of the optimizer; ``**setting._asdict()`` passes it to :func:`~noisysgd.theory.expected_loss`.

    Its entries have the order of the arguments of :func:`~noisysgd.theory.temperature`.
    """

    learning_rate: float
    batch_size: int
    momentum: float


@st.composite
def settings_in(
    draw: st.DrawFn,
    regime: str,
    problem: Quadratic,
    *,
    factor: float = 100.0,
    batch_size: st.SearchStrategy[int] | None = None,
    momentum: st.SearchStrategy[float] | None = None,
) -> Setting:
    """Learning rate, batch size and momentum in one regime of a problem, by the paper's inequalities.

    *Noise dominated*: the effective learning rate ε/(1−m) is at most ε_crit/`factor` and at least a hundredth of that,
    where ε_crit is the critical learning rate of plain SGD (section 3.3: ε_eff ≪ ε_crit). Batches have noise: B < N if
    N is known.

    *Curvature dominated*: the learning rate is at least half of the curvature constraint 2(1+m)/λ_max, and at most 0.99
    of the critical one at that momentum and batch size, so that no loss diverges.

    *Noise instability*: it is between 0.5 and 0.99 of the critical one, but below half of the curvature constraint.
    Only least squares has this regime, at batch sizes that are small enough.

    These are the labels that :func:`~noisysgd.theory.regimes` gives if the learning rate is the best one, which depends
    on budget and noise as well.

    Parameters
    ----------
    regime : {"noise dominated", "curvature dominated", "noise instability"}
        As ``NOISE_DOMINATED`` and so on in :mod:`noisysgd.theory.scaling.regime_map`.
    problem : NoisyQuadratic or LeastSquares
        Draw it first, then ``data.draw(settings_in(regime, problem))``.
    factor : float
        How far below the critical learning rate the noise-dominated ones are, ≥ 2. Corrections to the SDE are of order
        1/factor, times 1/(1−m) with momentum.
    batch_size, momentum : strategy
        By default :func:`batch_sizes`, up to 1000 or N, and :func:`momenta`.

    Returns
    -------
    strategy for Setting

    Examples
    --------
    >>> from hypothesis import find
    >>> from noisysgd import theory
    >>> problem = theory.power_law(3)
    >>> setting = find(settings_in(CURVATURE_DOMINATED, problem), lambda setting: setting.momentum > 0)
    >>> critical = theory.critical_learning_rate(problem, momentum=setting.momentum)
    >>> bool(0.5 * critical <= setting.learning_rate <= 0.99 * critical)
    True
    """
    checks.one_of("regime", regime, (NOISE_DOMINATED, CURVATURE_DOMINATED, NOISE_INSTABILITY))
    if regime == NOISE_INSTABILITY:
        checks.instance("problem", problem, LeastSquares, remedy="Additive noise makes no instability.")
    remedy = "Within a factor of two of the critical learning rate curvature dominates."
    factor = checks.scalar("factor", checks.at_least("factor", factor, 2.0, remedy=remedy))
    largest = 1000 if problem.dataset_size is None else min(1000, problem.dataset_size)
    sizes = batch_sizes(largest) if batch_size is None else batch_size
    inertia = draw(momenta() if momentum is None else momentum)
    if regime == NOISE_DOMINATED:
        size = draw(sizes.filter(lambda b: bool(problem.noise_factor(b) > 0)))
        effective = draw(learning_rates(problem, 0.01 / factor, 1.0 / factor, batch_size=size))
        return Setting(effective * (1.0 - inertia), size, inertia)
    curvature = float(critical_learning_rate(problem, momentum=inertia))

    def shares(size: int) -> tuple[float, float]:
        """Smallest and largest share of the critical learning rate that are in the regime."""
        half = 0.5 * curvature / float(critical_learning_rate(problem, size, inertia))
        # One part in 10¹² keeps products of these shares, which are rounded, on the right side of one half.
        return (half * (1 + 1e-12), 0.99) if regime == CURVATURE_DOMINATED else (0.5, min(0.99, half * (1 - 1e-12)))

    size = draw(sizes.filter(lambda b: shares(b)[0] <= shares(b)[1]))
    return Setting(draw(learning_rates(problem, *shares(size), batch_size=size, momentum=inertia)), size, inertia)


def register() -> None:
    """Let ``st.from_type`` and ``st.builds`` find these strategies for the types of :mod:`noisysgd.theory`.

    Call it once, for instance in a ``conftest.py``. It is not a plugin that Hypothesis loads by itself: that would
    import these types too, and ``import hypothesis`` would take 0.40 s instead of 0.17 s in every other project.

    >>> from hypothesis import find
    >>> from noisysgd import theory
    >>> register()
    >>> find(st.from_type(theory.StepBudget), lambda budget: True)
    StepBudget(total=1)
    """
    st.register_type_strategy(NoisyQuadratic, problems())
    st.register_type_strategy(LeastSquares, least_squares_problems())
    st.register_type_strategy(Quadratic, st.one_of(problems(), least_squares_problems()))
    st.register_type_strategy(Schedule, schedules())
    st.register_type_strategy(EpochBudget, budgets().filter(lambda budget: isinstance(budget, EpochBudget)))
    st.register_type_strategy(StepBudget, budgets().filter(lambda budget: isinstance(budget, StepBudget)))
    st.register_type_strategy(Budget, budgets())


def _values(dim: int, low: float, high: float) -> st.SearchStrategy[FloatArray]:
    """Arrays of `dim` numbers between `low` and `high`."""
    return stnp.arrays(np.float64, dim, elements=st.floats(low, high))


def _between(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers between `low` and `high`, even on a logarithmic scale."""
    return st.floats(np.log(low), np.log(high)).map(lambda x: float(np.exp(x)))
