"""How far a fit may be off: intervals from the curvature of the misfit, widened where residuals hang together."""

from dataclasses import dataclass

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.fits.search import LARGEST, TUNING, Found, huber


def correlation_time(residuals: FloatArray, sizes: IntArray, parameters: int) -> float:
    """1 + 2 Σ ρ_k, ≥ 1: how many neighbouring residuals count as one; `sizes` are the numbers in each run.

    The correlations of all runs are pooled. The sum ends at the first lag whose correlation could be chance. It is cut
    where it would leave fewer than two independent residuals per parameter: a fit takes the slowest components out of
    its residuals, so that longer times cannot be told from them.
    """
    runs = np.split(np.clip(residuals, -3.0 * TUNING, 3.0 * TUNING), np.cumsum(sizes)[:-1])
    power = sum(float(run @ run) for run in runs)
    total = 1.0
    for lag in range(1, int(sizes.max()) // 2):
        pairs = sum(max(run.size - lag, 0) for run in runs)
        product = sum(float(run[lag:] @ run[:-lag]) for run in runs if run.size > lag)
        correlation = product / pairs * residuals.size / power if power > 0 else 0.0
        if correlation < 2.0 / np.sqrt(residuals.size):
            break
        total += 2.0 * correlation
    return min(total, max(residuals.size / (2.0 * (parameters + 1.0)), 1.0))


def standard_errors(found: Found, time: float, held: int) -> tuple[FloatArray, float]:
    """Standard error of each coordinate while one is held, and half the logarithm of their information.

    The covariance of an M-estimator is Σψ²/(Σψ′)² · n (JᵀJ)⁻¹ (Huber 1964); ``time`` residuals count as one. An error
    is ``inf`` where the curves do not depend on a coordinate, and 0 for the one that is held.
    """
    residuals, jacobian = found.residuals, found.jacobian
    count, parameters = jacobian.shape
    psi = np.clip(residuals, -TUNING, TUNING)
    share = float((np.abs(residuals) <= TUNING).mean())
    free = max(count / time - parameters, 1.0) * time
    variance = float(psi @ psi) / free / max(share, 0.1) ** 2
    size = np.sqrt((jacobian**2).sum(axis=0))
    moved = (size > 0) & (np.arange(parameters) != held)
    errors = np.where(np.arange(parameters) == held, 0.0, np.inf)
    # Directions that change the residuals by less than rounding does have no information.
    columns = jacobian[:, moved] / size[moved]
    values, vectors = np.linalg.eigh(columns.T @ columns)
    values = np.maximum(values, 1e-14)
    errors[moved] = np.sqrt(variance * time * (vectors**2 / values).sum(axis=1)) / size[moved]
    return errors, 0.5 * float(np.log(values).sum() + 2.0 * np.log(size[moved]).sum())


@dataclass(frozen=True)
class Spread:
    """How far every coordinate may be off: a mixture of normal distributions, one for each value of λ_max.

    `points` are the minima at these values, (V, parameters), `errors` their standard errors at fixed λ_max, `weights`
    the likelihood of each value, with the others integrated out (Laplace's approximation), and `deficits` twice the
    logarithm by which the best of all is likelier than each.
    """

    points: FloatArray
    errors: FloatArray
    weights: FloatArray
    deficits: FloatArray
    cell: float

    def interval(self, coordinate: int, level: float, stretch: float) -> tuple[float, float]:
        """The central interval of one coordinate at a level, with standard errors stretched by a factor."""
        from scipy.special import ndtr

        centres = self.points[:, coordinate]
        # A value of λ_max stands for its cell of the grid.
        errors = stretch * self.errors[:, coordinate] + (0.5 * self.cell if coordinate == LARGEST else 1e-12)
        if np.isinf(errors[self.weights > 1e-6]).any():
            return -np.inf, np.inf
        ends = []
        for tail in (0.5 - 0.5 * level, 0.5 + 0.5 * level):
            low, high = float((centres - 40 * errors).min()), float((centres + 40 * errors).max())
            for _ in range(100):
                middle = 0.5 * (low + high)
                below = float(self.weights @ ndtr((middle - centres) / errors)) < tail
                low, high = (middle, high) if below else (low, middle)
            ends.append(0.5 * (low + high))
        return ends[0], ends[1]

    @property
    def middle(self) -> int:
        """The value of λ_max at the median of the likelihood."""
        return int(np.searchsorted(np.cumsum(self.weights), 0.5))


def spread(minima: list[Found], time: float) -> Spread:
    """The mixture for minima at equally spaced logarithms of λ_max."""
    found = [standard_errors(each, time, LARGEST) for each in minima]
    costs = np.array([float(huber(each.residuals).sum()) for each in minima]) / time
    deficits = costs - costs.min()
    logs = -0.5 * deficits - np.array([information for _, information in found])
    weights = np.exp(logs - logs.max())
    points = np.array([each.point for each in minima])
    cell = float(np.diff(points[:, LARGEST]).mean()) if len(minima) > 1 else 0.0
    return Spread(points, np.array([errors for errors, _ in found]), weights / weights.sum(), deficits, cell)
