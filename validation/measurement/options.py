"""The options of a measurement, each listed once: its name, its default and what it means.

:func:`~noisysgd.validation.measure` and ``noisysgd measure`` both take theirs from here. The command line reads this
module to build its help, so nothing heavy is imported; :mod:`~noisysgd.validation.measurement.option_checks` says
which values are possible.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeVar, cast

T = TypeVar("T")

PRODUCTS = 16
"""Units that meet the Hessian by default. tr(HF) comes from them alone, and gradient noise is heavy-tailed."""


def _count(default: T, help: str, *, least: int = 1, otherwise: str = "") -> T:
    """A field for a whole number ≥ `least`; `otherwise` says in words what takes its place where it is None."""
    return field(default=default, metadata={"help": help, "least": least, "otherwise": otherwise})


def _real(default: float, help: str) -> float:
    """A field for a real number."""
    return field(default=default, metadata={"help": help, "least": None})


@dataclass(frozen=True, kw_only=True)
class MeasurementOptions:
    """The numbers that can be chosen for a measurement, as keywords of :func:`~noisysgd.validation.measure`.

    What each of them means is the ``help`` in the metadata of its field. A unit is one ghost batch: the examples whose
    normalisation statistics are shared, and hence the smallest set of examples that has a gradient of its own. H is the
    Hessian of the training-mode loss, F the gradient noise covariance of one example.

    Some need more than a line:

    - `ghost_batch_size` is found by itself in models with :class:`~noisysgd.validation.GhostBatchNorm2d` layers of one
      size, and is 1 for models without batch norm layers. For models with torch's own batch norms it has to be given:
      the batch size of training.
    - `micro_batch` saves memory and changes results by rounding only. With torch's own batch norms it is one unit.
    - `eigenvalues` lists a multiple eigenvalue once, since a single start vector sees a single direction of its
      eigenspace: the next in the list is then the next *different* eigenvalue.
    - `units` gradients are held in memory at once: units × parameters numbers.

    Examples
    --------
    >>> MeasurementOptions(units=64).units, MeasurementOptions().units
    (64, 256)
    >>> {option.name: option for option in fields(MeasurementOptions)}["units"].metadata["help"]
    'ghost batches drawn for the gradient noise'
    """

    ghost_batch_size: int | None = _count(None, "examples per unit", otherwise="the model's own")
    units: int = _count(256, "ghost batches drawn for the gradient noise")
    products: int | None = _count(
        None, "how many of the units meet the Hessian, for tr(HF)", otherwise=f"{PRODUCTS}, or all units if fewer"
    )
    curvature_examples: int | None = _count(
        None, "examples behind the Hessian, rounded down to whole ghost batches", otherwise="all"
    )
    micro_batch: int | None = _count(
        None, "examples differentiated at a time in Hessian products, whole ghost batches", otherwise="all"
    )
    rtol: float = _real(1e-2, "residual of an eigenvalue, as a share of it, at which it counts as converged")
    max_products: int = _count(40, "most Hessian products spent on the eigenvalues")
    eigenvalues: int = _count(3, "how many of the largest eigenvalues")
    probes: int = _count(
        4, "random vectors for the spectrum; 0 leaves it out, with tr H and what is calibrated from it", least=0
    )
    noise_draws: int = _count(4, "groups of units, each giving the spectrum one sample of the noise")
    steps: int = _count(10, "Lanczos steps for the spectrum, per start vector")
    sharpness_batches: int = _count(32, "batches for the batch sharpness; 0 leaves it out", least=0)
    sharpness_batch_size: int | None = _count(
        None, "examples in each of these batches, whole ghost batches", otherwise="one ghost batch"
    )
    estimate_rtol: float = _real(
        0.1, "standard error, or truncation of the spectrum, as a share of the value, at which it counts as converged"
    )
    l2: float = _real(0.0, "coefficient of the penalty ½·l2·‖ω‖² that the measured loss includes")
    seed: int = _count(0, "seed of all that the measurement draws at random", least=0)

    @classmethod
    def from_keywords(cls, chosen: Mapping[str, float | None]) -> Self:
        """The options with the given values, and with defaults for the others.

        Raises
        ------
        TypeError
            For names that are not options, as for any unknown keyword.

        Examples
        --------
        >>> MeasurementOptions.from_keywords({"probes": 0}).probes
        0
        """
        known = [option.name for option in fields(cls)]
        unknown = sorted(set(chosen) - set(known))
        if unknown:
            raise TypeError(f"measure: expected options among {known}, got {unknown}. Check the spelling.")
        return cls(**cast(dict[str, Any], dict(chosen)))
