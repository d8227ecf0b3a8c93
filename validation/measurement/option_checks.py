"""Whether a network and a data set can be measured with the options given: checked before anything is computed."""

from dataclasses import dataclass, fields

from noisysgd.theory.common import checks
from noisysgd.validation.measurement.options import PRODUCTS, MeasurementOptions


@dataclass(frozen=True, kw_only=True)
class CheckedOptions(MeasurementOptions):
    """Options that are within their ranges, and of which only `micro_batch` may be None."""

    ghost_batch_size: int
    products: int
    curvature_examples: int
    sharpness_batch_size: int


def checked_options(options: MeasurementOptions, *, train_size: int, parameters: int) -> CheckedOptions:
    """The options as whole and real numbers, with values for those that depend on others or on the data.

    Parameters
    ----------
    options : MeasurementOptions
        With a `ghost_batch_size`: finding it takes the network.
    train_size : int
        Examples in the training set.
    parameters : int
        Trainable parameters of the network.

    Raises
    ------
    ValueError
        For the first option that is out of range.
    """
    values = {field.name: getattr(options, field.name) for field in fields(options)}

    def whole(name: str, least: int, remedy: str) -> int:
        values[name] = checks.integer(name, values[name], least, remedy=remedy)
        return int(values[name])

    def default(name: str, value: int) -> None:
        values[name] = value if values[name] is None else values[name]

    # In an order in which each check can rely on those before: others are compared with the ghost batch and the units.
    size = whole("ghost_batch_size", 1, "Use the model's ghost batch size.")
    remedy = "The noise of the full batch is zero; use smaller ghost batches."
    checks.require(size < train_size, "ghost_batch_size", f"< {train_size}", size, remedy)
    whole("seed", 0, "Pass a non-negative integer.")
    units = whole("units", 3, "The jackknife needs at least three ghost batches.")
    default("products", min(PRODUCTS, units))
    products = whole("products", 2, "Use at least two.")
    checks.require(products <= units, "products", f"at most the {units} units", products, "Draw more units.")

    default("curvature_examples", train_size)
    remedy = "Use at least one ghost batch and at most the training set."
    wanted = whole("curvature_examples", size, remedy)
    checks.require(wanted <= train_size, "curvature_examples", f"at most {train_size} examples", wanted, remedy)
    if options.micro_batch is not None:
        micro_batch = whole("micro_batch", 1, "Use a multiple of the ghost batch size.")
        expected = f"a multiple of ghost_batch_size={size}"
        checks.require(micro_batch % size == 0, "micro_batch", expected, micro_batch, "Round it.")

    eigenvalues = whole("eigenvalues", 1, "The first is λ_max.")
    expected = f"at most the {parameters} trainable parameters"
    checks.require(eigenvalues <= parameters, "eigenvalues", expected, eigenvalues, "Ask for fewer.")
    whole("max_products", eigenvalues + 1, "One product builds the basis, and one verifies each eigenvalue.")

    probes = whole("probes", 0, "Use 0 to leave the spectrum out.")
    checks.require(probes != 1, "probes", "at least two, or 0", probes, "The spread between probes is the error.")
    if probes:
        whole("steps", 1, "Every start vector needs at least one product.")
        noise_draws = whole("noise_draws", 2, "The spread between draws is the error.")
        expected = f"at least two for each of noise_draws={noise_draws}"
        checks.require(units >= 2 * noise_draws, "units", expected, units, "Draw more units.")

    batches = whole("sharpness_batches", 0, "Use 0 to leave it out.")
    remedy = "The spread between batches is the error."
    checks.require(batches != 1, "sharpness_batches", "at least two, or 0", batches, remedy)
    default("sharpness_batch_size", size)
    batch = whole("sharpness_batch_size", size, "Use a multiple of the ghost batch size.")
    fits = batch % size == 0 and batch <= train_size
    expected = f"a multiple of ghost_batch_size={size}, at most {train_size}"
    checks.require(fits, "sharpness_batch_size", expected, batch, "Use the batch size of training.")

    for name in ("rtol", "estimate_rtol"):
        tolerance = checks.scalar(name, values[name])
        checks.require(tolerance > 0, name, "a positive number", values[name], "1e-2 is enough for most purposes.")
        values[name] = tolerance
    values["l2"] = checks.scalar("l2", checks.at_least("l2", options.l2, 0.0, remedy="Use 0 for no penalty."))
    return CheckedOptions(**values)
