"""From a network's measured curvature and gradient noise to its regimes, without any result of a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.special import digamma

from noisysgd import theory
from noisysgd.theory.common import checks

EXACT_MODES = 32
"""Number of leading modes of a calibrated spectrum that are kept one by one; further down, neighbours are grouped."""


def predict_regimes(measurements: Sequence[Mapping[str, Any]], *, momentum: npt.ArrayLike = (0.0, 0.9)) -> xr.Dataset:
    """Critical learning rates and boundary batch sizes from measured states of a network.

    The critical learning rate is 2(1+m)/λ_max (paper, section 3.1). Without momentum the regimes are expected to meet
    at B_simple (McCandlish et al. 2018: ε_max/(1 + B_simple/B)). At small batches the optimum depends on ε/(1−m) alone
    (section 3.3): heavy ball continues along the same line up to its own critical effective learning rate, and its
    boundary lies at a batch size (1+m)/(1−m) times as large.

    Curvature and noise change as a network learns: each measured state gives a prediction of its own.

    Parameters
    ----------
    measurements : sequence of mappings
        Each has ``step`` and the fields of :class:`noisysgd.validation.Measurement` as plain values, of which
        ``lambda_max`` and ``B_simple`` are used.
    momentum : scalar or (M,) array_like
        Heavy-ball coefficients m, 0 ≤ m < 1.

    Returns
    -------
    xarray.Dataset
        Over (momentum, step): ``critical_learning_rate``, ``critical_effective_learning_rate`` and
        ``boundary_batch_size``; over step: ``lambda_max`` and ``B_simple``. NaN where a measurement gives no value:
        λ_max ≤ 0, or |G|² is not known to be positive.

    Raises
    ------
    ValueError
        If there are no measurements, or a momentum is out of range.

    Examples
    --------
    >>> state = {"step": 0, "lambda_max": {"value": 4.0}, "B_simple": {"value": 64.0}}
    >>> predicted = predict_regimes([state], momentum=[0.0, 0.9])
    >>> predicted.critical_effective_learning_rate.values.ravel().round(6)
    array([0.5, 9.5])
    >>> predicted.boundary_batch_size.values.ravel().round(6)
    array([  64., 1216.])
    """
    remedy = "Pass Measurement.as_dict() of each, with the step."
    states = checks.several("measurements", measurements, Mapping, remedy=remedy)
    checks.require(bool(states), "measurements", "at least one", measurements, "Measure a network first.")
    _has_fields(states, ("step", "lambda_max", "B_simple"))
    inertia = checks.vector("momentum", checks.momentum(momentum))
    curvature = np.array([_positive(state["lambda_max"]["value"]) for state in states])
    noise_scale = np.array([_positive(state["B_simple"]["value"]) for state in states])
    critical = np.full((inertia.size, curvature.size), np.nan)
    for k in np.flatnonzero(np.isfinite(curvature)):
        critical[:, k] = theory.critical_learning_rate(
            theory.NoisyQuadratic([curvature[k]], noise=0.0), momentum=inertia
        )
    reach = ((1 + inertia) / (1 - inertia))[:, None]
    dims = ("momentum", "step")
    return xr.Dataset(
        {
            "critical_learning_rate": (dims, critical),
            "critical_effective_learning_rate": (dims, critical / (1 - inertia[:, None])),
            "boundary_batch_size": (dims, noise_scale * reach),
            "lambda_max": ("step", curvature),
            "B_simple": ("step", noise_scale),
        },
        coords={"momentum": inertia, "step": [int(state["step"]) for state in measurements]},
        attrs={"source": "measurement"},
    )


def calibrated_quadratic(measurement: Mapping[str, Any], *, loss: float) -> theory.NoisyQuadratic:
    """The noisy quadratic with a network's measured λ_max, |G|², tr F and loss.

    Four numbers do not fix a spectrum, so the one of Zhang et al. 2019 is assumed: λ_i = λ_max/i for i = 1…D, gradient
    noise F ∝ Λ, and the same E θ₀² in every direction. Then E θ₀² follows from |G|² = Σ λ² E θ₀², and D from the loss
    ½ Σ λ E θ₀². Nothing else of the network enters, and nothing of a sweep.

    Parameters
    ----------
    measurement : mapping
        Fields of :class:`noisysgd.validation.Measurement` as plain values, with ``lambda_max``,
        ``gradient_norm_squared`` and ``trace_noise``, at the state in which training starts.
    loss : float
        Training loss of that state above its minimum, in nats.

    Returns
    -------
    NoisyQuadratic
        Beyond the first 32 modes neighbours are grouped, and the modes of a group share one curvature. λ_max, |G|²,
        tr F and the loss are reproduced exactly all the same.

    Raises
    ------
    ValueError
        If a measured number is not positive, or the loss is too small or too large for the gradient and the curvature.

    Examples
    --------
    >>> state = {name: {"value": x} for name, x in
    ...          {"lambda_max": 3.0, "gradient_norm_squared": 2.0, "trace_noise": 150.0}.items()}
    >>> problem = calibrated_quadratic(state, loss=2.3)
    >>> round(float(problem.initial_loss), 6), float(problem.largest_eigenvalue), round(float(problem.noise.sum()), 6)
    (2.3, 3.0, 150.0)
    """
    names = ("lambda_max", "gradient_norm_squared", "trace_noise")
    _has_fields([measurement], names)
    excess_loss = checks.scalar("loss", loss, remedy="Pass the loss above its floor.")
    values = {name: _positive(measurement[name]["value"]) for name in names} | {"loss": _positive(excess_loss)}
    for name, value in values.items():
        remedy = "Measure another state, or with more units."
        checks.require(bool(np.isfinite(value)), name, "a positive measured value", value, remedy)
    top, gradient, noise, excess = values.values()
    # Groups of neighbouring modes edges[k] ≤ i < edges[k+1], each with the mean of 1/i over the group: differences of
    # the digamma function are the sums of 1/i.
    edges = np.unique(np.concatenate([np.arange(1, EXACT_MODES + 2), np.geomspace(EXACT_MODES + 1, 1e8, 200).round()]))
    counts = np.diff(edges)
    curvature = top * np.diff(digamma(edges)) / counts
    curvature[0] = top
    # The loss over |G|² is ½ Σ λ / Σ λ², whatever E θ₀² is; it grows with D without bound, and so fixes D.
    wanted = 2 * excess / gradient
    reached = np.cumsum(counts * curvature) / np.cumsum(counts * curvature**2)
    least = bool(wanted >= reached[0])
    expected = f"at least |G|²/(2 λ_max) = {gradient / (2 * top):.3g}"
    checks.require(least, "loss", expected, excess, "Check the loss: a smaller one cannot have this gradient.")
    most = bool(wanted <= reached[-1])
    expected = f"at most {reached[-1] * gradient / 2:.3g}, that of 10⁸ modes"
    checks.require(most, "loss", expected, excess, "Check the gradient: a larger loss cannot have one so small.")
    last = int(np.searchsorted(reached, wanted))
    weights = counts[: last + 1].copy()
    curvature = curvature[: last + 1]
    # D modes end inside of a group: the weight of the last group is chosen so that Σ λ / Σ λ² is exact.
    rest, rest2 = weights[:-1] @ curvature[:-1], weights[:-1] @ curvature[:-1] ** 2
    if last > 0:
        weights[-1] = (wanted * rest2 - rest) / (curvature[-1] * (1 - wanted * curvature[-1]))
    displacement = gradient / (weights @ curvature**2)
    return theory.NoisyQuadratic(
        curvature,
        noise=noise * weights * curvature / (weights @ curvature),
        initial_variance=weights * displacement,
    )


def observed_boundary(best: xr.Dataset) -> xr.Dataset:
    """The batch size at which linear scaling from the smallest batch's optimum reaches the largest optimum seen.

    Parameters
    ----------
    best : xarray.Dataset
        Optimal learning rates from :func:`noisysgd.theory.optimum`, over (optimizer, batch_size).

    Returns
    -------
    xarray.Dataset
        Over optimizer: ``boundary_batch_size``, with ``boundary_batch_size_low`` and ``_high`` from the next learning
        rates outside the error bars of both optima, so that the steps of the grid are included; and the ``plateau``,
        the largest optimum itself. Where the optimum is still rising at the largest batch, the boundary is a lower
        bound; where one is at the end of its grid, an end of the interval is 0 or ``inf``.

    Examples
    --------
    >>> from noisysgd import theory
    >>> sweep = theory.predict_sweep(theory.power_law(20), theory.EpochBudget(20, 4096), batch_sizes=[4, 2048],
    ...     effective_learning_rates=theory.powers_of_two(-8, 0), momentum=0.0)
    >>> observed_boundary(theory.optimum(sweep, "expected_loss")).boundary_batch_size.values
    array([512.])
    """
    found = [f"effective_learning_rate{end}" for end in ("", "_low", "_high")]
    checks.dataset("best", best, ("batch_size", *found), remedy="Pass what theory.optimum returned.")
    first = best.isel(batch_size=0)
    top = best.isel(batch_size=best.effective_learning_rate.fillna(-1).argmax("batch_size"))
    size = float(best.batch_size[0])
    with np.errstate(divide="ignore"):  # no learning rate was judged below the optimum
        low = size * top.effective_learning_rate_lower / first.effective_learning_rate_upper
        high = size * top.effective_learning_rate_upper / first.effective_learning_rate_lower
    return xr.Dataset(
        {
            "boundary_batch_size": size * top.effective_learning_rate / first.effective_learning_rate,
            "boundary_batch_size_low": low,
            "boundary_batch_size_high": high,
            "plateau": top.effective_learning_rate,
        }
    ).reset_coords(drop=True)


def _has_fields(measurements: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    remedy = "Pass Measurement.as_dict(), with the step."
    for state in measurements:
        checks.instance("measurement", state, Mapping, remedy=remedy)
    lacking = next((sorted(set(names) - set(state)) for state in measurements if set(names) - set(state)), None)
    checks.require(lacking is None, "measurements", f"the fields {list(names)}", f"none of {lacking}", remedy)


def _positive(value: float | None) -> float:
    return float(value) if value is not None and value > 0 else float("nan")
