"""The learning rate that reaches a target in the fewest steps, found so that no passage wide enough is overlooked.

Which learning rates get to a target within n steps is a set of intervals, its *passages*. With momentum they are many
and narrow, since the loss oscillates, and no scan of a few points is sure to hit the best. But learning rates that may
get there within n steps are bounded, by what is below, and a grid of 1 % between the bounds hits all that are wider.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.optima.minimise import POINTS_PER_DECADE
from noisysgd.theory.optima.robustness import TOLERANCE
from noisysgd.theory.passage.search import LAST_STEP, REACHED, Passages, Questions, search
from noisysgd.theory.problems.quadratic import Quadratic

FIRST_LOOK = 64.0
"""Steps to which the coarse grid is searched first, then eight times as many, and so on."""
HALVINGS = 8
"""How often an end of a passage is bisected: to 1/256 of the spacing of the grid."""


@dataclass(frozen=True)
class FastestRate:
    """The search for one configuration. Learning rates are logarithms here, but for the one that is found."""

    problem: Quadratic
    target: float
    noise_factor: float
    momentum: float

    def find(self) -> tuple[float, float]:
        """The learning rate, and its steps; NaN and ``inf`` if no passage of 1 % gets there in 2⁵² steps."""
        if self.target >= self.problem.initial_loss:
            return 0.0, 0.0
        # A coarse grid says how many steps are needed at most; few passages are looked for on the fine one beyond that.
        coarse, last = np.log(10.0) / POINTS_PER_DECADE, FIRST_LOOK
        while not np.isfinite(least := self._times(self._grid(last, coarse), last)[0].min()) and last < LAST_STEP:
            last = min(8.0 * last, LAST_STEP)
        last = min(least, LAST_STEP)
        while True:
            grid = self._grid(last, 2.0 * TOLERANCE)
            steps, _ = self._times(grid, last)
            for within in np.unique(steps[np.isfinite(steps)]):
                rate, found = self._best_of(*self._passages(grid, steps <= within, within), within)
                if np.isfinite(found):
                    return rate, found
            if last >= LAST_STEP:
                return np.nan, np.inf
            last = min(2.0 * last, LAST_STEP)

    def _times(self, log_rates: FloatArray, last: float) -> tuple[FloatArray, FloatArray]:
        """Steps to the target, and the times at which it is met between two steps; ``inf`` where later than `last`."""
        goals, factors, inertia = (
            np.full(log_rates.size, value) for value in (self.target, self.noise_factor, self.momentum)
        )
        known = Passages.unknown(log_rates.size)
        search(self.problem, Questions(goals, np.exp(log_rates), factors, inertia), known, last)
        return np.where(known.status == REACHED, known.steps, np.inf), known.crossing(goals)

    def _grid(self, last: float, spacing: float) -> FloatArray:
        """Logarithms of learning rates between the bounds on those that may reach the target within `last` steps.

        *Above*: from rest, a mode with ελ ≥ 2(1+m) never has a smaller mean square than at the start. So ε is below
        2(1+m)/λ for the curvature λ from which on the modes that are as steep or steeper have more than the target.

        *Below*: from rest, until it first passes the minimum, the mean of a mode is at least 1 − ελc times its start,
        with c = Σ min(k, 1/(1−m)) over k = 1…n, since the velocity sums that many gradients at most, none larger than
        the first. So the loss after n steps is at least Σ ½wλE θ₀² · max(0, 1 − ελc)².
        """
        problem, momentum, curvatures = self.problem, self.momentum, self.problem.eigenvalues
        parts = 0.5 * problem.weights * curvatures * problem.initial_second_moment
        steepest_first = np.argsort(-curvatures, kind="stable")
        # The last entry is the initial loss, up to rounding, and the target is below that.
        above = np.flatnonzero(np.cumsum(parts[steepest_first]) > self.target)
        limiting = curvatures[steepest_first[above[0]]] if above.size else curvatures[parts > 0].min()
        high = float(np.log(2.0 * (1.0 + momentum) / limiting))
        reach = min(last / (1.0 - momentum), 0.5 * last * (last + 1.0))
        low, far = high - 200.0, high
        while far - low > 1e-3 * spacing + 1e-12:
            middle = 0.5 * (low + far)
            shares = np.maximum(0.0, 1.0 - np.exp(middle) * reach * curvatures)
            low, far = (middle, far) if float(parts @ shares**2) > self.target else (low, middle)
        return np.append(np.arange(high, low, -spacing)[::-1], high + spacing)

    def _passages(
        self, grid: FloatArray, inside: npt.NDArray[np.bool_], within: float
    ) -> tuple[FloatArray, FloatArray]:
        """Lower and upper ends of the passages that points of the grid lie in, for that many steps, by bisection."""
        changes = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]])))
        first, last = changes[::2], changes[1::2] - 1
        # The ends of the grid are beyond the bounds, where there are no passages.
        within_ends = np.concatenate([grid[first], grid[last]])
        spacing = grid[1] - grid[0]
        outside = np.concatenate([grid[first] - spacing, grid[last] + spacing])
        for _ in range(HALVINGS):
            middle = 0.5 * (within_ends + outside)
            reached = self._times(middle, within)[0] <= within
            within_ends, outside = np.where(reached, middle, within_ends), np.where(reached, outside, middle)
        return within_ends[: first.size], within_ends[first.size :]

    def _best_of(self, low: FloatArray, high: FloatArray, within: float) -> tuple[float, float]:
        """The point, of passages wide enough, whose latest time nearby is earliest, and its steps; ``inf`` if none."""
        best = (np.nan, np.inf, np.inf)
        for left, right in zip(low, high, strict=True):
            if right - left < 2.0 * TOLERANCE:
                continue
            # Eight cells are as wide as a needle, or a little wider, and a window of nine points spans them.
            cells = max(int((right - left) / (0.25 * TOLERANCE)), 8)
            places = np.linspace(left, right, cells + 1)
            steps, times = self._times(places, within)
            worst = np.lib.stride_tricks.sliding_window_view(times, 9).max(axis=1)
            k = int(np.argmin(worst))
            if worst[k] < best[2]:
                best = (float(np.exp(places[k + 4])), float(steps[k + 4]), float(worst[k]))
        return best[0], best[1]
