"""The claims of the demonstration, each with the numbers that it rests on and whether these support it."""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy import stats

from noisysgd import theory
from noisysgd.theory.sweeps.dataset import COMPLETE


@dataclass(frozen=True)
class Claim:
    """A statement, whether it is seen in the data, and the evidence in words."""

    statement: str
    seen: bool
    evidence: str


def simulation_claim(exact: xr.Dataset, simulated: xr.Dataset, *, level: float = 1e-3) -> Claim:
    """The claim that the simulator agrees with the exact moments, within its statistical error.

    At each point the mean over all trajectories is compared with the exact loss, in standard errors of that mean. The
    largest deviation is judged as a normal variate with a Bonferroni correction for the number of points, which is
    valid however the points are correlated.

    Parameters
    ----------
    exact, simulated : xarray.Dataset
        From :func:`noisysgd.theory.predict_sweep` and :func:`noisysgd.simulators.simulate_sweep`. The grid of the
        former may contain more learning rates.
    level : float
        The claim is seen if the probability of such a deviation is larger.

    Examples
    --------
    >>> from noisysgd import simulators, theory
    >>> grid = dict(batch_sizes=[1, 64], effective_learning_rates=[0.25, 0.5, 1.0])
    >>> problem, budget = theory.power_law(10), theory.StepBudget(20)
    >>> claim = simulation_claim(theory.predict_sweep(problem, budget, **grid),
    ...                          simulators.simulate_sweep(problem, budget, **grid))
    >>> claim.seen
    True
    """
    points, worst = deviations(exact, simulated)
    chance = float(min(1.0, points * 2 * stats.norm.sf(worst))) if points else 0.0
    evidence = (
        f"largest of {points} deviations: {worst:.1f} standard errors; chance of such a one: {chance:.2g} at most"
    )
    return Claim("The simulator reproduces the exact losses within its error bars.", chance > level, evidence)


def deviations(exact: xr.Dataset, simulated: xr.Dataset) -> tuple[int, float]:
    """Number of points compared, and the largest deviation of a simulated mean loss, in its standard errors.

    Points whose exact loss is a million times the smallest are left out. There instability amplifies a few trajectories
    that make up most of the mean, and the estimated standard error means little.
    """
    tame = exact.expected_loss <= 1e6 * exact.expected_loss.min()
    both = (simulated.status == COMPLETE).all("seed") & (exact.status == COMPLETE) & tame
    losses, errors = simulated.expected_loss.where(both), simulated.standard_error.where(both)
    # Ensembles have equally many replicas: their means average to the overall mean, with this standard error.
    error = np.sqrt((errors**2).mean("seed") / simulated.sizes["seed"])
    z = abs(losses.mean("seed") - exact.expected_loss.where(both)) / error.where(error > 0)
    return int(z.count()), float(z.max())


def regime_claims(best: xr.Dataset) -> list[Claim]:
    """The claims of the paper's section 5 on two optimizers, plain SGD first, at the smallest and the largest batch.

    Parameters
    ----------
    best : xarray.Dataset
        From :func:`noisysgd.theory.optimum`, over (optimizer, batch_size).

    Examples
    --------
    >>> from noisysgd import theory
    >>> sweep = theory.predict_sweep(theory.power_law(20), theory.EpochBudget(20, 4096), batch_sizes=[1, 4096],
    ...                              effective_learning_rates=theory.powers_of_two(-12, 6))
    >>> [claim.seen for claim in regime_claims(theory.optimum(sweep, "expected_loss"))]
    [True, True, True, True]
    """
    rate, low, high = (best[f"effective_learning_rate{end}"] for end in ("", "_low", "_high"))
    names = [str(name) for name in best.optimizer.values]
    sizes = best.batch_size.values

    def range_of(k: int, j: int) -> str:
        value, a, b = (power(float(x[k, j])) for x in (rate, low, high))
        return f"{names[k]} {value}" + (f" ({a} to {b})" if a != b else "")

    # The grid resolves factors of two: optima one step apart, with a ratio below 2.1, count as the same. If every run
    # diverged the optimum is NaN; comparisons with it are false, and the claim is not seen.
    apart = float(rate[:, 0].max(skipna=False) / rate[:, 0].min(skipna=False))
    growth = (rate[:, -1] / rate[:, 0]).values
    ahead = bool(low[-1, -1] > 2.1 * high[0, -1])
    small, large = (", ".join(range_of(k, j) for k in range(len(names))) for j in (0, -1))
    grown = ", ".join(f"{name} ×{g:.3g}" for name, g in zip(names, growth, strict=True))
    missing = [f"{names[k]} at B = {sizes[j]:g}" for k, j in zip(*np.nonzero(~best.bracketed.values), strict=True)]
    return [
        Claim(
            f"At B = {sizes[0]:g} both optimizers share the optimal effective learning rate, to a factor of 2.",
            apart < 2.1,
            small,
        ),
        Claim(
            f"The optimal effective learning rate grows from B = {sizes[0]:g} to {sizes[-1]:g}.",
            bool((growth > 1.5).all()),
            grown,
        ),
        Claim(f"At B = {sizes[-1]:g} momentum reaches the larger one, by more than a factor of 2.", ahead, large),
        Claim(
            "Every optimum by training loss, and its error bar, lie inside the grid.",
            not missing,
            "all bracketed" if not missing else "not bracketed: " + ", ".join(missing),
        ),
    ]


def power(value: float) -> str:
    """A learning rate in words: as a power of two if it is one, to three digits if not.

    >>> power(0.25), power(0.3)
    ('2⁻²', '0.3')
    """
    if not np.isfinite(value) or value <= 0:
        return "none"
    exponent = np.log2(value)
    if abs(exponent - round(exponent)) > 1e-6:
        return f"{value:.3g}"
    return "2" + str(round(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def all_claims(exact: xr.Dataset, simulated: xr.Dataset, trained: xr.Dataset, *, keep: int) -> list[Claim]:
    """Every claim of the demonstration, in the order of its stages."""
    best = theory.optimum(trained, "train_loss", keep=keep)
    return [simulation_claim(exact, simulated), *regime_claims(best)]
