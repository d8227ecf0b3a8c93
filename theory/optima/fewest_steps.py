"""The fewest steps in which a target loss can be reached at the best learning rate, and how many examples they take.

Source: Shallue et al. 2019 (arXiv 1811.03600) for the measurement, Zhang et al. 2019 (arXiv 1907.04164) for the noisy
quadratic, McCandlish et al. 2018 (arXiv 1812.06162) for the hyperbola.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.optima.fastest_rate import FastestRate
from noisysgd.theory.passage.search import LAST_STEP, PENDING, REACHED, Passages, Questions, search
from noisysgd.theory.passage.target import configurations
from noisysgd.theory.problems.quadratic import Quadratic

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, eq=False)
class MinimumSteps:
    """Fewest steps to a target and the learning rate that needs no more than these, both of the broadcast shape.

    Attributes
    ----------
    learning_rate : array
        0 where the problem starts at the target, NaN where no passage 1 % wide reaches it in 2⁵² steps.
    steps : array
        Whole numbers, of that learning rate; ``inf`` where there is none.
    """

    learning_rate: FloatArray
    steps: FloatArray


@ignoring_underflow
def minimum_steps(
    problem: Quadratic, target: ArrayLike, *, batch_size: ArrayLike, momentum: ArrayLike = 0.0
) -> MinimumSteps:
    """Fewest steps to the target over all constant learning rates.

    A learning rate is judged by the latest arrival when it is changed by up to ±0.5 %, the rule of all optimisers here.
    So what counts is *passages*, intervals of learning rates at least 1 % wide that get there in so many steps or
    fewer; narrower ones, which a loss that oscillates makes, are passed over. Learning rates that may reach the target
    in n steps are bounded from both sides, and a grid of 1 % between these bounds misses none of the passages. (A gap
    in a passage may be overlooked if it is narrower than 0.1 %.)

    Many learning rates take the same whole number of steps. Among these the one is returned whose latest arrival nearby
    is the earliest, by the time at which the loss, interpolated between two steps, meets the target; its precision is
    1e-3.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
    target : array_like
        Expected excess training loss to reach, > 0.
    batch_size, momentum : array_like
        Broadcast against each other and the target.

    Returns
    -------
    MinimumSteps
        Two arrays of the broadcast shape. Not a dataset, since the axes of the arguments have no names.

    Raises
    ------
    ValueError
        For impossible targets, batch sizes or momenta, and shapes that do not broadcast.

    Examples
    --------
    While batches are small, twice the size halves the steps; large batches gain nothing from being larger.

    >>> from noisysgd import theory
    >>> best = minimum_steps(theory.power_law(100), 0.1, batch_size=[1, 2, 1e6, 2e6])
    >>> (best.steps[:-1] / best.steps[1:]).round(2)[[0, 2]]
    array([1.98, 1.  ])
    """
    goals, _, sizes, inertia = configurations(problem, target, 1.0, batch_size, momentum)
    factors = np.broadcast_to(problem.noise_factor(sizes), goals.shape)
    points = zip(*(a.ravel().tolist() for a in (goals, factors, inertia)), strict=True)
    found = [FastestRate(problem, goal, factor, m).find() for goal, factor, m in points]
    rates, steps = np.array(found, dtype=np.float64).reshape(-1, 2).T
    return MinimumSteps(rates.reshape(goals.shape), steps.reshape(goals.shape))


@ignoring_underflow
def steps_examples_tradeoff(
    problem: Quadratic, target: float, *, batch_sizes: ArrayLike, momentum: ArrayLike = 0.0
) -> "xr.Dataset":
    """Fewest steps S to a target loss, and the number E = B·S of training examples they take, for every batch size.

    Small batches scale perfectly: E is constant and S ∝ 1/B. For large ones S is constant instead. In between,
    McCandlish et al. 2018 expect (S/S_min − 1)(E/E_min − 1) = 1. They derive it for a learning rate that follows the
    noise as the loss falls; at a constant learning rate it is an approximation, and ``hyperbola`` tells how good a one.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
    target : float
        Expected excess training loss to reach, > 0.
    batch_sizes : (B,) array_like
    momentum : float or (M,) array_like
        An array adds a first dimension ``momentum`` to the result.

    Returns
    -------
    xarray.Dataset
        Over ``batch_size``: ``learning_rate``, ``steps``, ``examples`` and ``hyperbola``, the left-hand side above.
        Without that dimension: ``minimum_steps``, S of the full batch (of an infinite one if the data-set size is not
        known), and ``minimum_examples``, the smallest E among `batch_sizes` and a batch of 1.

    Raises
    ------
    ValueError
        For impossible targets, batch sizes or momenta.

    Examples
    --------
    >>> from noisysgd import theory
    >>> curve = steps_examples_tradeoff(theory.power_law(100), 0.1, batch_sizes=[1, 64, 4096])
    >>> [bool(value) for value in curve.steps >= curve.minimum_steps]
    [True, True, True]
    """
    import xarray as xr

    checks.instance("problem", problem, Quadratic, remedy="Make one with theory.power_law or theory.LeastSquares.")
    sizes = checks.vector("batch_sizes", checks.batch_size(batch_sizes, problem.dataset_size, "batch_sizes"))
    inertia = checks.momentum(momentum)
    goal = checks.scalar("target", target)
    largest = np.inf if problem.dataset_size is None else float(problem.dataset_size)
    # The two extreme batches, which give the minima, are searched along with the others.
    every = np.concatenate([sizes, [1.0, largest]])
    found = minimum_steps(problem, goal, batch_size=every, momentum=checks.vector("momentum", inertia)[:, None])
    steps, rates = found.steps[:, :-2], found.learning_rate[:, :-2]
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 · inf steps at the target, 0/0 beside them
        examples = np.where(steps > 0, steps * sizes, 0.0)
        least_examples = np.minimum(np.where(steps > 0, examples, 0.0).min(axis=1), found.steps[:, -2])
        least_steps = found.steps[:, -1]
        hyperbola = (steps / least_steps[:, None] - 1.0) * (examples / least_examples[:, None] - 1.0)
    names = ("momentum", "batch_size")
    curve = xr.Dataset(
        {
            "learning_rate": (names, rates),
            "steps": (names, steps),
            "examples": (names, examples),
            "hyperbola": (names, hyperbola),
            "minimum_steps": ("momentum", least_steps),
            "minimum_examples": ("momentum", least_examples),
        },
        coords={"momentum": np.atleast_1d(inertia), "batch_size": sizes},
        attrs={"target": goal, "source": "theory"},
    )
    return curve.squeeze("momentum") if inertia.ndim == 0 else curve


class Fastest(NamedTuple):
    """The point of a grid that reaches a target in the fewest steps; ``inf`` steps if none does."""

    steps: float
    learning_rate: float
    momentum: float


@ignoring_underflow
def fastest_on_grid(
    problem: Quadratic, target: float, *, learning_rates: ArrayLike, batch_size: float, momenta: ArrayLike = 0.0
) -> Fastest:
    """The fewest steps to a target over a grid of learning rates and momenta: the sweep of Zhang et al. 2019.

    All configurations are scanned up to step 64, then up to 512, and so on, until one reaches the target: so none is
    scanned beyond step 64 or eight times the steps of the fastest. Where only the best learning rate matters,
    :func:`minimum_steps` needs no grid.

    Parameters
    ----------
    problem : NoisyQuadratic or LeastSquares
    target : float
        Expected excess training loss to reach, > 0.
    learning_rates : (K,) array_like
    batch_size : float
    momenta : float or (M,) array_like

    Returns
    -------
    Fastest
        Named tuple (steps, learning_rate, momentum). Of several with the same steps, the one with the earliest learning
        rate in the grid, and of these the one with the earliest momentum.

    Raises
    ------
    ValueError
        For impossible targets, learning rates, batch sizes or momenta, and an empty grid.

    Examples
    --------
    >>> from noisysgd import theory
    >>> rates = np.logspace(-2, 0.5, 10)
    >>> problem, momenta = theory.power_law(100), [0.0, 0.5, 0.9]
    >>> fastest_on_grid(problem, 0.1, learning_rates=rates, batch_size=1e4, momenta=momenta)
    Fastest(steps=16.0, learning_rate=1.668100537200059, momentum=0.5)
    """
    rates = checks.vector("learning_rates", checks.learning_rate(learning_rates, "learning_rates"))
    inertia = checks.vector("momenta", checks.momentum(momenta, "momenta"))
    goal = checks.scalar("target", target)
    size = checks.scalar("batch_size", checks.real("batch_size", batch_size))
    grid = [a.ravel() for a in configurations(problem, goal, rates[:, None], size, inertia)]
    asked = Questions(grid[0], grid[1], problem.noise_factor(grid[2]), grid[3])
    known = Passages.unknown(grid[0].size)
    last = 64.0
    while True:
        search(problem, asked, known, last)  # goes on where the shorter search before it stopped
        reached = known.status == REACHED
        if reached.any() or last >= LAST_STEP or not (known.status == PENDING).any():
            break
        last = min(8.0 * last, LAST_STEP)
    best = int(np.argmin(np.where(reached, known.steps, np.inf)))
    steps = float(known.steps[best]) if reached.any() else np.inf
    return Fastest(steps, float(asked.rates[best]), float(asked.momenta[best]))
