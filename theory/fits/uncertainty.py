"""How far a fit may be off: intervals from the curvature of the misfit, widened where residuals hang together."""

import numpy as np

from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.fits.search import TUNING, Found


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


def standard_errors(found: Found, time: float) -> FloatArray:
    """Standard error of each coordinate, ``inf`` where the curves do not depend on it.

    The covariance of an M-estimator is Σψ²/(Σψ′)² · n (JᵀJ)⁻¹ (Huber 1964); ``time`` residuals count as one.
    """
    residuals, jacobian = found.residuals, found.jacobian
    count, parameters = jacobian.shape
    psi = np.clip(residuals, -TUNING, TUNING)
    share = float((np.abs(residuals) <= TUNING).mean())
    free = max(count / time - parameters, 1.0) * time
    variance = float(psi @ psi) / free / max(share, 0.1) ** 2
    size = np.sqrt((jacobian**2).sum(axis=0))
    moved = size > 0
    errors = np.full(parameters, np.inf)
    if moved.any():
        # Directions that change the residuals by less than rounding does have no information.
        columns = jacobian[:, moved] / size[moved]
        values, vectors = np.linalg.eigh(columns.T @ columns)
        covariance = (vectors**2 / np.maximum(values, 1e-14)).sum(axis=1)
        errors[moved] = np.sqrt(variance * time * covariance) / size[moved]
    return errors
