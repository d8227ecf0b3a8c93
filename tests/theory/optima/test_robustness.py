"""No optimum is a needle: the worst that changes of ±0.5 % do is no more than it is anywhere else."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter1d

from noisysgd import theory
from noisysgd.theory.optima.robustness import TOLERANCE, worst_in_box

FAMILIES = (theory.constant, theory.half_then_decay)


def random_problem(rng, largest=6):
    """Up to six modes with noise of all sizes or none, and what to ask of it."""
    dim = rng.integers(1, largest + 1)
    curvatures, variance = 10 ** rng.uniform(-2, 0.5, dim), 10 ** rng.uniform(-1, 1, dim)
    if rng.random() < 0.7:
        noise = 10 ** rng.uniform(-4, 0, dim) * (rng.random() < 0.7)
        problem = theory.NoisyQuadratic(curvatures, noise, 0.0, variance)
    else:
        problem = theory.LeastSquares(curvatures, rng.choice([0.0, 0.1]), 0.0, variance)
    run = {"batch_size": 10 ** rng.uniform(0, 3), "momentum": float(rng.choice([0.0, 0.5, 0.9, 0.99]))}
    return problem, int(10 ** rng.uniform(0, 2.6)), run


def rate_is_robust(rng):
    """Whether no rate within a factor of e⁵ has a worst loss that is lower by 1 %, but for losses next to nothing."""
    problem, steps, run = random_problem(rng)
    family = FAMILIES[rng.integers(2)]
    rate = float(theory.optimal_learning_rate(problem, theory.StepBudget(steps), schedule=family, **run))
    around = rate * np.exp(np.arange(-5.0, 5.0, TOLERANCE / 8))
    losses = theory.expected_loss(problem, family(steps), learning_rate=around, **run)
    nearby = rate * np.exp(TOLERANCE * np.linspace(-1, 1, 41))
    worst = theory.expected_loss(problem, family(steps), learning_rate=nearby, **run).max()
    return worst <= 1.01 * maximum_filter1d(losses, 17)[8:-8].min() + 1e-6 * problem.initial_loss


@pytest.mark.parametrize("seed", range(3))
def test_no_best_learning_rate_is_a_needle(seed):
    rng = np.random.default_rng(seed)
    assert all(rate_is_robust(rng) for _ in range(4))


@pytest.mark.slow
def test_nor_is_one_of_a_hundred():
    """But for the odd one: scans are not proofs."""
    rng = np.random.default_rng(1)
    assert sum(rate_is_robust(rng) for _ in range(100)) >= 98


def loss_of_pair(problem, steps, initial, final, **run):
    """Losses of pairs, one call for every ratio, of which there are few in a table that is even in the logarithms."""
    ratio = np.round(np.log(initial / final), 9)
    losses = np.empty(ratio.shape)
    for one in np.unique(ratio):
        schedule = theory.initial_to_final(steps, 1.0, float(np.exp(-one)))
        chosen = ratio == one
        losses[chosen] = theory.expected_loss(problem, schedule, learning_rate=initial[chosen], **run)
    return losses


def worst_of_pair(problem, steps, initial, final, points=5, **run):
    changes = np.exp(TOLERANCE * np.linspace(-1, 1, points))
    return loss_of_pair(problem, steps, *np.meshgrid(initial * changes, final * changes), **run).max()


def test_a_pair_whose_loss_would_rise_to_ten_to_the_tenth_is_not_returned():
    """At 4.717 and 0.212 the loss is 0.0040, but ± 0.5 % make it 10²¹; at 3.0 and 0.265 it never exceeds 0.0052."""
    problem, run = theory.power_law(100), {"batch_size": 256}
    assert worst_of_pair(problem, 100, 4.71711713, 0.21199197, **run) > 1e10
    best = theory.optimal_initial_final(problem, theory.StepBudget(100), **run)
    worst = worst_of_pair(problem, 100, float(best.initial), float(best.final), 9, **run)
    assert worst <= worst_of_pair(problem, 100, 3.0, 0.265, **run) <= 0.0052217
    assert float(best.loss) <= worst <= 1.02 * float(best.loss)


def pair_is_robust(rng, spacing):
    """Whether no pair of a table has a worst loss that is lower by 10 %, but for losses next to nothing."""
    problem, steps, run = random_problem(rng)
    best = theory.optimal_initial_final(problem, theory.StepBudget(steps), **run)
    worst = worst_of_pair(problem, steps, float(best.initial), float(best.final), **run)
    edge = np.log(float(theory.critical_learning_rate(problem, **run)))
    initial, final = np.meshgrid(
        edge + np.arange(-5.0, 2.0, spacing), edge + np.arange(-8.0, 2.0, spacing), indexing="ij"
    )
    changes = TOLERANCE * np.array([-1.0, 0.0, 1.0])
    around = np.array(
        [loss_of_pair(problem, steps, np.exp(initial + a), np.exp(final + b), **run) for a in changes for b in changes]
    )
    return worst <= 1.1 * around.max(axis=0).min() + 1e-6 * problem.initial_loss


@pytest.mark.parametrize("seed", range(3))
def test_no_pair_is_a_needle(seed):
    rng = np.random.default_rng(seed)
    assert all(pair_is_robust(rng, 0.5) for _ in range(2))


@pytest.mark.slow
def test_nor_is_one_of_dozens():
    """The search is local, from the lowest points of a grid: one in a dozen may be 10 % above the best of the table."""
    rng = np.random.default_rng(10)
    assert sum(pair_is_robust(rng, 0.3) for _ in range(36)) >= 33


def staircase_is_robust(rng):
    """Whether no changes of ± 0.5 % raise the loss by half, and none so high as those of a constant rate do.

    Without noise the loss may be next to nothing at the centre of any valley; then only the second counts.
    """
    problem, steps, run = random_problem(rng)
    segments = int(min(steps, rng.integers(2, 7)))
    budget = theory.StepBudget(steps)
    best = theory.optimal_schedule(problem, budget, segments=segments, **run)
    flat = theory.optimal_learning_rate(problem, budget, schedule=theory.constant, **run)
    ends = steps * np.arange(segments + 1) // segments
    signs = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=segments)))

    def losses(rates):
        changed = [theory.piecewise(np.diff(ends), rates * np.exp(TOLERANCE * change)) for change in signs]
        return np.array([float(theory.expected_loss(problem, one, learning_rate=1.0, **run)) for one in changed])

    found, constant = losses(best.at(ends[:-1])), losses(np.full(segments, float(flat)))
    noisy = problem.label_noise > 0 if isinstance(problem, theory.LeastSquares) else problem.noise.min() > 0
    return found.max() <= constant.max() * 1.001 and (not noisy or found.max() <= 1.5 * found[len(found) // 2])


@pytest.mark.parametrize("seed", range(3))
def test_no_staircase_is_a_needle(seed):
    rng = np.random.default_rng(seed)
    assert all(staircase_is_robust(rng) for _ in range(2))


@pytest.mark.slow
def test_nor_is_one_of_twenty():
    rng = np.random.default_rng(10)
    assert all(staircase_is_robust(rng) for _ in range(20))


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 8))
def test_the_worst_change_is_nearly_that_of_all_combinations(seed, size):
    """Of convex parabolas beside their minimum, where it is hardest to guess."""
    rng = np.random.default_rng(seed)
    root, slope = rng.normal(size=(size, size)), rng.normal(size=size) * TOLERANCE * rng.choice([0.0, 1.0])

    def parabola(x):
        return float(np.sum((root @ x) ** 2) + slope @ x)

    height, change = worst_in_box(parabola, np.zeros(size))
    corners = TOLERANCE * np.array(list(itertools.product((-1.0, 1.0), repeat=size)))
    worst = max(map(parabola, corners))
    assert height == parabola(change)
    assert np.abs(change).max() <= TOLERANCE
    assert 0.8 * worst <= height <= worst * (1 + 1e-12)


def test_the_rule_changes_nothing_where_the_loss_is_smooth():
    """One step: ε = Σ λ² E θ² / Σ λ (λ² E θ² + F/B), where a window of 1 % has its centre within 5e-4."""
    problem = theory.NoisyQuadratic([1.0, 0.3], [2.0, 1.0])
    lam = problem.eigenvalues
    exact = (lam**2).sum() / (lam * (lam**2 + problem.noise)).sum()
    rate = theory.optimal_learning_rate(problem, theory.StepBudget(1), batch_size=1, schedule=theory.constant)
    assert float(rate) == pytest.approx(exact, rel=6e-4)
