"""The member of the family that comes closest to measured curves, for each law of the noise."""

from dataclasses import dataclass

import numpy as np

from noisysgd.theory.common.arrays import FloatArray
from noisysgd.theory.fits.measured_curve import DivergedRun
from noisysgd.theory.fits.observations import Observations
from noisysgd.theory.fits.power_laws import PowerLaws, Reference
from noisysgd.theory.limits.stability import critical_learning_rate

ADDITIVE, PROPORTIONAL, BOTH = "additive", "proportional", "both"
COORDINATES = ("floor", "excess", "exponent", "noise", "noise_exponent", "largest_eigenvalue", "proportional_share")
LARGEST = COORDINATES.index("largest_eigenvalue")
TUNING = 1.345
"""Residuals beyond this many standard deviations count linearly (Huber); 95 % efficient for Gaussian errors."""
FAR = 10.0
"""Logarithm of a ratio of losses that stands for any larger one."""
GRID_EXPONENTS = (0.15, 0.4, 0.8, 1.5)
GRID_NOISE_EXPONENTS = (0.7, 1.2, 2.0)
GRID_REACH = (1e-3, 1e-2, 0.1, 0.6)
"""Largest curvatures to start from, as shares of the largest that the runs allow."""


@dataclass(frozen=True)
class Found:
    """A minimum: the point, residuals over their scale, their derivatives, and the scale."""

    law: str
    point: FloatArray
    residuals: FloatArray
    jacobian: FloatArray
    scale: float
    low: FloatArray
    high: FloatArray

    @property
    def spread(self) -> float:
        """Root of the mean Huber loss, in units of the residuals: their standard deviation, were they Gaussian."""
        return self.scale * float(np.sqrt(huber(self.residuals).mean()))


def huber(residuals: FloatArray) -> FloatArray:
    """Twice Huber's loss: r² up to the tuning constant, linear beyond."""
    size = np.abs(residuals)
    return np.asarray(np.where(size <= TUNING, size**2, TUNING * (2.0 * size - TUNING)))


@dataclass(frozen=True)
class Search:
    """Observations of several runs, and what else is known of the largest curvature."""

    runs: tuple[Observations, ...]
    diverged: tuple[DivergedRun, ...]
    reference: Reference
    largest_floor: float
    smallest_edge: float
    largest_edge: float

    def laws(self, law: str, point: FloatArray) -> PowerLaws:
        """The member of the family at a point, of which the floor is no part."""
        share = {ADDITIVE: 0.0, PROPORTIONAL: 1.0}.get(law)
        share = share if share is not None else float(1.0 / (1.0 + np.exp(-point[6])))
        excess, noise, largest = np.exp(point[[1, 3, 5]])
        return PowerLaws(float(excess), float(point[2]), float(noise), float(point[4]), float(largest), share)

    def residuals(self, law: str, point: FloatArray) -> FloatArray:
        """Logarithms of fitted over measured losses, times their precisions, and one of each diverged run."""
        laws = self.laws(law, point)
        parts = []
        for run in self.runs:
            fitted = np.maximum(point[0] + run.excess_losses(laws, self.reference), 1e-300)
            parts.append(run.precision * np.clip(np.log(fitted / run.losses), -FAR, FAR))
        return np.concatenate([*parts, self._too_stable(law, laws)])

    def _too_stable(self, law: str, laws: PowerLaws) -> FloatArray:
        """Of each diverged run by how far, in log ε, it lies within the stable rates; 0 beyond them."""
        if law == ADDITIVE or not self.diverged:  # there the bounds of the largest curvature say it
            return np.zeros(len(self.diverged))
        problem = laws.problem(self.reference)
        sizes, inertia, rates = np.array([(run.batch_size, run.momentum, run.learning_rate) for run in self.diverged]).T
        edges = critical_learning_rate(problem, sizes, inertia)
        return np.asarray(100.0 * self.weight * np.maximum(np.log(edges / rates), 0.0))

    @property
    def weight(self) -> float:
        """A precision that is typical of the runs."""
        return float(np.median(np.concatenate([run.precision for run in self.runs])))

    def bounds(self, law: str) -> tuple[FloatArray, FloatArray]:
        """Lowest and highest values of each coordinate."""
        unit = self.reference.loss
        low = [0.0, np.log(1e-6 * unit), 0.02, np.log(1e-7 * unit), -2.0, np.log(self._smallest(law)), -6.0]
        high = [self.largest_floor, np.log(1e3 * unit), 5.0, np.log(1e3 * unit), 8.0, np.log(self.largest_edge), 6.0]
        size = 7 if law == BOTH else 6
        return np.array(low[:size]), np.array(high[:size])

    def _smallest(self, law: str) -> float:
        """Lower bound of λ_max: under additive noise a diverged run must have met it; each run must have moved it."""
        moved = min(1.0 / self.reference.furthest, 0.1 * self.largest_edge)
        return max(self.smallest_edge, moved) if law == ADDITIVE else moved

    def starts(self, count: int) -> list[FloatArray]:
        """The best points of a grid, for additive noise: amplitudes and floor are found by linear least squares."""
        from scipy.optimize import nnls

        weight = np.concatenate([run.precision / run.losses for run in self.runs])
        target = weight * np.concatenate([run.losses for run in self.runs])
        found: list[tuple[float, FloatArray]] = []
        low, high = self.bounds(ADDITIVE)
        for reach in GRID_REACH:
            largest = float(np.clip(reach * self.largest_edge, *np.exp([low[5], high[5]])))
            descents = [self._unit(PowerLaws(1.0, a, 1e-300, 1.0, largest, 0.0)) for a in GRID_EXPONENTS]
            noises = [self._unit(PowerLaws(1e-300, 1.0, 1.0, b, largest, 0.0)) for b in GRID_NOISE_EXPONENTS]
            for alpha, descent in zip(GRID_EXPONENTS, descents, strict=True):
                for beta, noise in zip(GRID_NOISE_EXPONENTS, noises, strict=True):
                    if not (np.isfinite(descent).all() and np.isfinite(noise).all()):
                        continue
                    columns = weight[:, None] * np.stack([np.ones(weight.size), descent, noise], axis=1)
                    (floor, excess, level), misfit = nnls(columns, target)
                    with np.errstate(divide="ignore"):
                        point = np.array([floor, np.log(excess), alpha, np.log(level), beta, np.log(largest)])
                    found.append((float(misfit), np.clip(point, low, high)))
        found.sort(key=lambda pair: pair[0])
        chosen: list[FloatArray] = []
        for _, point in found:  # neighbours on the grid would lead to the same minimum
            if all(np.abs((point - other)[[2, 4, 5]] / [0.5, 0.9, 2.5]).max() > 1.0 for other in chosen):
                chosen.append(point)
        return chosen[:count]

    def starting(self, law: str, point: FloatArray) -> list[FloatArray]:
        """A point for one law of the noise as starts for another."""
        low, high = self.bounds(law)
        if law == BOTH and point.size < low.size:
            return [np.clip(np.append(point, share), low, high) for share in (-1.5, 1.5)]
        return [np.clip(point[: low.size], low, high)]

    def _unit(self, laws: PowerLaws) -> FloatArray:
        return np.concatenate([run.excess_losses(laws, self.reference) for run in self.runs])

    def minimum(self, law: str, starts: list[FloatArray]) -> Found:
        """The lowest minimum found from the starts: by least squares at first, then by Huber's loss."""
        points = [self._descend(law, start, None, 1e-4) for start in starts]
        best = min(points, key=lambda point: float((self.residuals(law, point) ** 2).sum()))
        for precision in (1e-4, 1e-7):
            best = self._descend(law, best, self._scale(self.residuals(law, best), best.size), precision)
        return self.found(law, best, self._scale(self.residuals(law, best), best.size))

    def found(self, law: str, point: FloatArray, scale: float) -> Found:
        """A point, with its residuals and their derivatives in units of a scale."""
        residuals, jacobian = self.residuals(law, point) / scale, self.jacobian(law, point) / scale
        return Found(law, point, residuals, jacobian, scale, *self.bounds(law))

    def profile(self, found: Found, spacing: float, reach: float) -> list[Found]:
        """Minima at fixed values of λ_max, equally spaced on a logarithmic scale, on both sides of a minimum.

        Each starts from its neighbour. They go on up to the bounds, or until two of them are worse by `reach` in
        Huber's loss.
        """
        low, high = float(found.low[LARGEST]), float(found.high[LARGEST])
        cells = max(int(np.ceil((high - low) / spacing)), 2)
        grid = low + (high - low) * (np.arange(cells) + 0.5) / cells
        middle = int(np.argmin(np.abs(grid - found.point[LARGEST])))
        least = float(huber(found.residuals).sum())
        minima: dict[int, Found] = {}
        for way in (range(middle, cells), range(middle - 1, -1, -1)):
            point, worse = minima[middle].point if minima else found.point, 0
            for k in way:
                start = np.array(point)
                start[LARGEST] = grid[k]
                point = self._descend(found.law, start, found.scale, 1e-5, held=LARGEST)
                minima[k] = self.found(found.law, point, found.scale)
                worse += float(huber(minima[k].residuals).sum()) > least + reach
                if worse == 2:
                    break
        return [minima[k] for k in sorted(minima)]

    def _descend(
        self, law: str, start: FloatArray, scale: float | None, precision: float, held: int | None = None
    ) -> FloatArray:
        """A local minimum of the squared residuals, or of Huber's loss at a scale, to a relative precision of it.

        The coordinate `held` stays where it is.
        """
        from scipy.optimize import least_squares

        low, high = self.bounds(law)
        margin = 1e-6 * (high - low)
        point = np.clip(start, low + margin, high - margin)
        free = np.arange(point.size) != held

        def whole(part: FloatArray) -> FloatArray:
            moved = np.array(point)
            moved[free] = part
            return moved

        found = least_squares(
            lambda part: self.residuals(law, whole(part)),
            point[free],
            jac=lambda part: self.jacobian(law, whole(part))[:, free],
            bounds=(low[free], high[free]),
            x_scale="jac",
            ftol=precision,
            xtol=precision,
            max_nfev=60,
            loss="linear" if scale is None else "huber",
            f_scale=1.0 if scale is None else TUNING * scale,
        )
        return whole(found.x)

    def _scale(self, residuals: FloatArray, parameters: int) -> float:
        """Standard deviation of residuals, by their median absolute size, corrected for fitted parameters."""
        measured = residuals[: residuals.size - len(self.diverged)]
        free = max(measured.size - parameters, 1)
        # Rounding alone leaves 1e-12 or so of exact curves.
        return float(max(np.median(np.abs(measured)) / 0.6745 * np.sqrt(measured.size / free), 1e-12 * self.weight))

    def jacobian(self, law: str, point: FloatArray) -> FloatArray:
        """Derivatives of the residuals, by differences within the bounds."""
        _, high = self.bounds(law)
        before = self.residuals(law, point)
        columns = []
        for k in range(point.size):
            step = 1e-6 * max(abs(point[k]), 1.0)
            moved = np.array(point)
            moved[k] += step if point[k] + step <= high[k] else -step
            columns.append((self.residuals(law, moved) - before) / (moved[k] - point[k]))
        return np.stack(columns, axis=1)
