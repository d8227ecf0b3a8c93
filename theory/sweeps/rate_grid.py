"""The grid that theory and simulators predict losses on: optimizers × batch sizes × effective learning rates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray


@dataclass(frozen=True, eq=False)
class RateGrid:
    """Axes of a grid of *effective* learning rates, so that optimizers are compared at the same ones.

    Attributes
    ----------
    batch_sizes, rates, momenta : (B,), (R,) and (M,) arrays
        Batch sizes, effective learning rates ε/(1−m), and momenta m.
    """

    batch_sizes: FloatArray
    rates: FloatArray
    momenta: FloatArray

    @classmethod
    def checked(
        cls, batch_sizes: ArrayLike, rates: ArrayLike, momenta: ArrayLike, dataset_size: int | None = None
    ) -> Self:
        """The grid of these arguments of a sweep; a ``ValueError`` where one is out of its range.

        >>> RateGrid.checked(8, [0.25, 0.5], 0.0).rates
        array([0.25, 0.5 ])
        """
        sizes = checks.batch_size(batch_sizes, dataset_size, "batch_sizes")
        effective = checks.learning_rate(rates, "effective_learning_rates")
        return cls(
            checks.vector("batch_sizes", sizes),
            checks.vector("effective_learning_rates", effective),
            checks.vector("momentum", checks.momentum(momenta)),
        )

    @property
    def optimizers(self) -> FloatArray:
        """Momenta as a column, (M, 1), which broadcasts against learning rates."""
        return self.momenta[:, None]

    @property
    def learning_rates(self) -> FloatArray:
        """Learning rates ε of every optimizer, (M, R)."""
        return self.rates * (1 - self.optimizers)

    def records(self, batch_size: float, seed: int, metrics: Mapping[str, FloatArray]) -> list[dict[str, Any]]:
        """Records for :func:`~noisysgd.theory.sweep_from_records` at one batch size and seed.

        Parameters
        ----------
        batch_size : float
        seed : int
        metrics : mapping of str to (M, R) array
            Among them ``expected_loss``, which says where a run diverged.
        """
        finite, learning_rates = np.isfinite(metrics["expected_loss"]), self.learning_rates
        return [
            {
                "momentum": m,
                "batch_size": batch_size,
                "learning_rate": learning_rates[i, j],
                "seed": seed,
                "status": "complete" if finite[i, j] else "diverged",
                **{name: values[i, j] for name, values in metrics.items()},
            }
            for i, m in enumerate(self.momenta)
            for j in range(self.rates.size)
        ]
