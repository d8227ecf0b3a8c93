"""How measured optima depend on the batch size: their exponent, their boundary, and the rules that fit them."""

from typing import TYPE_CHECKING

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.scaling.comparison import compare_rules, linear_scaling_exponent
from noisysgd.theory.scaling.corner import fit_corner

if TYPE_CHECKING:
    import xarray as xr

CORNER_POINTS, RULE_POINTS = 4, 3
"""Bracketed optima that a boundary takes, one more than its curve has parameters, and that comparing rules takes."""


@ignoring_underflow
def optima_scaling(best: "xr.Dataset", optimizer: str) -> "xr.Dataset":
    """What the bracketed optima of one optimizer say about the scaling of the learning rate with the batch size.

    Optima that are not bracketed are left out, since they may lie anywhere beyond the grid. Errors are the
    ``log_error`` of :func:`~noisysgd.theory.optimum`, which includes the steps of the grid.

    Parameters
    ----------
    best : xarray.Dataset
        From :func:`~noisysgd.theory.optimum`, over (optimizer, batch_size).
    optimizer : str
        One of its optimizers.

    Returns
    -------
    xarray.Dataset
        ``batch_size``, ``learning_rate`` (the effective one) and ``log_error`` of the bracketed optima over ``point``;
        ``exponent`` α of ε ∝ B^α below the boundary and its ``exponent_error``, in theory 1;
        ``boundary_batch_size`` and its 95 % interval ``boundary_low``, ``boundary_high``, from
        :func:`~noisysgd.theory.fit_corner`; ``rule``, ``akaike_weight``, ``rms``, ``parameters`` and ``not_identified``
        of the rules compared (:func:`~noisysgd.theory.compare_rules`). What the data do not identify is NaN, and the
        attribute ``reasons`` says why.

    Raises
    ------
    ValueError
        If there is no such optimizer, or `best` has other dimensions.

    Examples
    --------
    >>> from noisysgd import theory
    >>> sweep = theory.predict_sweep(
    ...     theory.power_law(20), theory.EpochBudget(20, 4096), batch_sizes=[1, 4, 16, 64, 256, 1024], momentum=0.0,
    ...     effective_learning_rates=theory.powers_of_two(-13, 2, 2))
    >>> found = optima_scaling(theory.optimum(sweep, "expected_loss"), "sgd")
    >>> round(float(found.exponent), 1), found.attrs["reasons"]
    (1.0, 'no boundary lies between these batch sizes')
    """
    import xarray as xr

    remedy = "Pass what theory.optimum returns; choose one budget or epoch with .sel."
    checks.dataset("best", best, ("learning_rate", "optimizer", "log_error", "bracketed"), remedy=remedy)
    usable = set(map(str, best.learning_rate.dims)) == {"optimizer", "batch_size"}
    checks.require(usable, "best", "optima over optimizer and batch_size", tuple(best.learning_rate.dims), remedy)
    checks.one_of("optimizer", optimizer, [str(name) for name in best.optimizer.values])
    here = best.sel(optimizer=optimizer)
    kept = here.bracketed.values & np.isfinite(here.batch_size.values)
    sizes, rates = here.batch_size.values[kept], here.effective_learning_rate.values[kept]
    errors = here.log_error.values[kept]
    reasons = []
    if (~kept).any():
        reasons.append(f"{int((~kept).sum())} of {kept.size} optima are not bracketed")
    numbers = dict.fromkeys(
        ("exponent", "exponent_error", "boundary_batch_size", "boundary_low", "boundary_high"), np.nan
    )
    if np.unique(sizes).size >= CORNER_POINTS:
        corner = fit_corner(sizes, rates, log_errors=errors)
        numbers |= dict(zip(("boundary_low", "boundary_high"), corner.boundary_interval, strict=True))
        if "boundary_batch_size" in corner.rule.not_identified:
            reasons.append("no boundary lies between these batch sizes")
        else:
            numbers["boundary_batch_size"] = corner.rule.boundary_batch_size
    else:
        reasons.append(f"a boundary takes {CORNER_POINTS} bracketed optima")
    below = numbers["boundary_batch_size"]
    used = sizes <= below * (1 + 1e-12) if np.isfinite(below) else np.ones(sizes.size, dtype=bool)
    if np.unique(sizes[used]).size >= 2:
        slope = linear_scaling_exponent(sizes[used], rates[used], log_errors=errors[used])
        numbers |= dict(zip(("exponent", "exponent_error"), slope, strict=True))
    else:
        reasons.append("an exponent takes two bracketed optima below the boundary")
    variables: dict[str, object] = dict(numbers)
    points = {"batch_size": sizes, "learning_rate": rates, "log_error": errors}
    variables |= {name: ("point", values) for name, values in points.items()}
    found = xr.Dataset(variables, attrs={"optimizer": optimizer})
    if np.unique(sizes).size >= RULE_POINTS:
        table = compare_rules(sizes, rates, log_errors=errors)
        if not table.attrs["ranked"].startswith("by"):
            reasons.append(f"the rules are not ranked: {table.attrs['ranked']}")
        found = found.merge(table[["akaike_weight", "rms", "parameters", "not_identified"]])
    return found.assign_attrs(optimizer=optimizer, reasons="; ".join(reasons))
