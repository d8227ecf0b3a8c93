"""The paper's protocol by name: how many runs count of how many, and what its table and figures consist of."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from noisysgd.theory import checks

RUNS_AND_KEEP = {"paper": (15, 12), "paper-pairs": (7, 5)}
"""Runs per point and how many of them count: section 4, and section 7.1 for pairs of learning rates."""

CIFAR10_EXAMPLES = 50_000
"""Training examples of CIFAR-10."""


def runs_and_keep(preset: str) -> tuple[int, int]:
    """Runs per point, and how many of them count.

    >>> runs_and_keep("paper"), runs_and_keep("paper-pairs")
    ((15, 12), (7, 5))
    """
    checks.one_of("preset", preset, list(RUNS_AND_KEEP))
    return RUNS_AND_KEEP[preset]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One table or figure of the paper as a list of runs: everything that its cost depends on.

    The paper does not print its grids of learning rates. `learning_rates` is our assumption of how many are needed to
    bracket an optimum with its error bar, on both metrics where both are optimised.

    Parameters
    ----------
    name, source : str
    batch_sizes : tuple of int
    budgets : tuple of float
        In epochs of CIFAR-10, or in steps.
    unit : {"epochs", "steps"}
    variants : int
        Optimizers × networks.
    learning_rates : int
        Per variant, batch size and budget: learning rates, or pairs of them.
    runs : int
        Per learning rate.
    """

    name: str
    source: str
    batch_sizes: tuple[int, ...]
    budgets: tuple[float, ...]
    unit: str
    variants: int
    learning_rates: int
    runs: int

    def steps(self, batch_size: int, budget: float) -> int:
        """Updates of one run: ⌊epochs·N/B⌋, or the budget itself.

        >>> PAPER["figure 1"].steps(1024, 200)
        9765
        """
        return int(budget) if self.unit == "steps" else int(budget * CIFAR10_EXAMPLES // batch_size)

    @property
    def total_runs(self) -> int:
        """Training runs in all."""
        return len(self.batch_sizes) * len(self.budgets) * self.variants * self.learning_rates * self.runs

    @property
    def total_steps(self) -> int:
        """Updates of all runs together."""
        return self._sum(lambda size: 1)

    def total_passes(self, micro_batch_size: int) -> int:
        """Pieces of at most so many examples in which all updates' batches pass through the network.

        >>> PAPER["table 1"].total_passes(1024) / PAPER["table 1"].total_steps
        8.125
        """
        return self._sum(lambda size: math.ceil(size / micro_batch_size))

    @property
    def total_examples(self) -> int:
        """Examples that all updates together see."""
        return self._sum(lambda size: size)

    def _sum(self, of_batch: Callable[[int], int]) -> int:
        each = self.variants * self.learning_rates * self.runs
        return each * sum(
            self.steps(size, budget) * of_batch(size) for size in self.batch_sizes for budget in self.budgets
        )


DOUBLING_EPOCHS = tuple(50.0 * 2**k for k in range(8))
"""Budgets of figures 2 and 3: 50 to 6400 epochs."""

PAPER = {
    "table 1": Experiment(
        name="table 1",
        source="section 6: WRN-16-4, heavy ball, 9765 steps",
        batch_sizes=tuple(2**k for k in range(8, 16)),
        budgets=(9765.0,),
        unit="steps",
        variants=1,
        learning_rates=7,
        runs=15,
    ),
    "figure 1": Experiment(
        name="figure 1",
        source="section 5: WRN-16-4, SGD and heavy ball, 200 epochs",
        batch_sizes=tuple(2**k for k in range(6, 15)),
        budgets=(200.0,),
        unit="epochs",
        variants=2,
        learning_rates=7,
        runs=15,
    ),
    "figure 2": Experiment(
        name="figure 2",
        source="section 7: WRN-16-4 with ghost batch norm and with SkipInit, heavy ball, B = 64, 50 to 6400 epochs",
        batch_sizes=(64,),
        budgets=DOUBLING_EPOCHS,
        unit="epochs",
        variants=2,
        learning_rates=9,
        runs=15,
    ),
    "figure 3": Experiment(
        name="figure 3",
        source="section 7.1: WRN-16-4, heavy ball, B = 64, 50 to 6400 epochs, pairs of learning rates",
        batch_sizes=(64,),
        budgets=DOUBLING_EPOCHS,
        unit="epochs",
        variants=1,
        learning_rates=8 * 8,
        runs=7,
    ),
}
"""Main text of Smith, Elsen & De 2020. The text does not list the batch sizes of figure 1: they are assumed to be the
powers of two from one ghost batch, 64, to 16384, two octaves and more on either side of the boundary at 512."""
