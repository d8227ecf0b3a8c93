"""The sizes and tolerances of a measurement, checked against network and data before anything is computed."""

from dataclasses import dataclass

from noisysgd.theory.common import checks

PRODUCTS = 16
"""Units that meet the Hessian by default. tr(HF) comes from them alone, and gradient noise is heavy-tailed."""


@dataclass(frozen=True)
class MeasurementOptions:
    """Those arguments of :func:`~noisysgd.validation.measure` that are numbers, with nothing left to default."""

    ghost_batch_size: int
    units: int
    products: int
    curvature_examples: int
    micro_batch: int | None
    rtol: float
    max_products: int
    eigenvalues: int
    probes: int
    noise_draws: int
    steps: int
    sharpness_batches: int
    sharpness_batch_size: int
    estimate_rtol: float
    l2: float
    seed: int


def checked_options(
    *,
    train_size: int,
    parameters: int,
    ghost_batch_size: int,
    units: int,
    products: int | None,
    curvature_examples: int | None,
    micro_batch: int | None,
    rtol: float,
    max_products: int,
    eigenvalues: int,
    probes: int,
    noise_draws: int,
    steps: int,
    sharpness_batches: int,
    sharpness_batch_size: int | None,
    estimate_rtol: float,
    l2: float,
    seed: int,
) -> MeasurementOptions:
    """The options, if a network of so many parameters and a training set of so many examples can be measured so.

    Raises
    ------
    ValueError
        For the first that is out of range.
    """
    size = checks.integer("ghost_batch_size", ghost_batch_size, 1, remedy="Use the model's ghost batch size.")
    remedy = "The noise of the full batch is zero; use smaller ghost batches."
    checks.require(size < train_size, "ghost_batch_size", f"< {train_size}", size, remedy)
    seed = checks.integer("seed", seed, 0, remedy="Pass a non-negative integer.")
    units = checks.integer("units", units, 3, remedy="The jackknife needs at least three ghost batches.")
    products = min(PRODUCTS, units) if products is None else products
    products = checks.integer("products", products, 2, remedy="Use at least two.")
    checks.require(products <= units, "products", f"at most the {units} units", products, "Draw more units.")

    wanted = train_size if curvature_examples is None else curvature_examples
    remedy = "Use at least one ghost batch and at most the training set."
    wanted = checks.integer("curvature_examples", wanted, size, remedy=remedy)
    expected = f"at most {train_size} examples"
    checks.require(wanted <= train_size, "curvature_examples", expected, wanted, remedy)
    if micro_batch is not None:
        micro_batch = checks.integer("micro_batch", micro_batch, 1, remedy="Use a multiple of the ghost batch size.")
        expected = f"a multiple of ghost_batch_size={size}"
        checks.require(micro_batch % size == 0, "micro_batch", expected, micro_batch, "Round it.")

    eigenvalues = checks.integer("eigenvalues", eigenvalues, 1, remedy="The first is λ_max.")
    expected = f"at most the {parameters} trainable parameters"
    checks.require(eigenvalues <= parameters, "eigenvalues", expected, eigenvalues, "Ask for fewer.")
    remedy = "One product builds the basis, and one verifies each eigenvalue."
    max_products = checks.integer("max_products", max_products, eigenvalues + 1, remedy=remedy)

    probes = checks.integer("probes", probes, 0, remedy="Use 0 to leave the spectrum out.")
    checks.require(probes != 1, "probes", "at least two, or 0", probes, "The spread between probes is the error.")
    if probes:
        steps = checks.integer("steps", steps, 1, remedy="Every start vector needs at least one product.")
        noise_draws = checks.integer("noise_draws", noise_draws, 2, remedy="The spread between draws is the error.")
        expected = f"at least two for each of noise_draws={noise_draws}"
        checks.require(units >= 2 * noise_draws, "units", expected, units, "Draw more units.")

    batches = checks.integer("sharpness_batches", sharpness_batches, 0, remedy="Use 0 to leave it out.")
    remedy = "The spread between batches is the error."
    checks.require(batches != 1, "sharpness_batches", "at least two, or 0", batches, remedy)
    batch = size if sharpness_batch_size is None else sharpness_batch_size
    batch = checks.integer("sharpness_batch_size", batch, size, remedy="Use a multiple of the ghost batch size.")
    expected = f"a multiple of ghost_batch_size={size}, at most {train_size}"
    fits = batch % size == 0 and batch <= train_size
    checks.require(fits, "sharpness_batch_size", expected, batch, "Use the batch size of training.")
    return MeasurementOptions(
        ghost_batch_size=size,
        units=units,
        products=products,
        curvature_examples=wanted,
        micro_batch=micro_batch,
        rtol=_tolerance("rtol", rtol),
        max_products=max_products,
        eigenvalues=eigenvalues,
        probes=probes,
        noise_draws=noise_draws,
        steps=steps,
        sharpness_batches=batches,
        sharpness_batch_size=batch,
        estimate_rtol=_tolerance("estimate_rtol", estimate_rtol),
        l2=checks.scalar("l2", checks.at_least("l2", l2, 0.0, remedy="Use 0 for no penalty.")),
        seed=seed,
    )


def _tolerance(name: str, value: float) -> float:
    tolerance = checks.scalar(name, value)
    checks.require(tolerance > 0, name, "a positive number", value, "1e-2 is enough for most purposes.")
    return tolerance
