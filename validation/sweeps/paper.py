"""The experiments of the paper: how many runs they have, and files with which ``noisysgd sweep`` repeats them.

The paper prints no grids of learning rates. The initial grids here are ours, around the optima that it reports, and
every grid grows until its optima are bracketed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from noisysgd.theory.common import checks
from noisysgd.theory.common.whole_parts import whole_part
from noisysgd.validation.data.catalogue import CIFAR10
from noisysgd.validation.runs.toml_files import to_toml

RUNS_AND_KEEP = {"paper": (15, 12), "paper-pairs": (7, 5)}
"""Runs per learning rate, and how many of them count: from section 4, and from section 7.1 for pairs."""

MICRO_BATCH = 1024
"""Examples that go through the network at once: larger batches are split into pieces of this size."""
SKIPINIT_DROPOUT = 0.6
"""Dropout with SkipInit. An assumption: the paper refers to De & Smith (2020) for it."""

HEADER = """\
# {source}
# The learning rates to begin with are assumptions, and so is the [cost]: replace it, or leave it out to time a run.
# Needs CIFAR-10 (noisysgd data fetch cifar10) and a GPU. The [cost] is for "tf32"; "float32" is exact and slower.
"""
NAMES = ("table-1", "figure-1", "figure-2", "figure-2-skipinit", "figure-3")


def preset_runs(preset: str) -> tuple[int, int]:
    """Runs per learning rate (or pair of them), and how many of them count, under a protocol of the paper.

    >>> preset_runs("paper"), preset_runs("paper-pairs")
    ((15, 12), (7, 5))
    """
    checks.one_of("preset", preset, list(RUNS_AND_KEEP))
    return RUNS_AND_KEEP[preset]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One table or figure of the paper: the numbers on which the cost of its runs depends.

    Parameters
    ----------
    name : str
    source : str
        The section of the paper, and what is trained.
    batch_sizes : tuple of int
    budgets : tuple of float
        In epochs of CIFAR-10, or in steps.
    unit : {"epochs", "steps"}
    variants : int
        Number of optimizers times number of networks.
    learning_rates : int
        Number of learning rates, or of pairs, for each variant, batch size and budget. The paper does not state it: it
        is our assumption of how many are needed to bracket an optimum and its error bar, for both metrics where both
        are optimised.
    runs : int
        Runs per learning rate.
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
        return int(budget) if self.unit == "steps" else whole_part(budget, CIFAR10.training_examples, batch_size)

    @property
    def total_runs(self) -> int:
        """Number of training runs."""
        return len(self.batch_sizes) * len(self.budgets) * self.variants * self.learning_rates * self.runs

    @property
    def total_steps(self) -> int:
        """Number of updates of all runs."""
        return self._sum(lambda size: 1)

    def total_passes(self, micro_batch_size: int) -> int:
        """Number of passes through the network in all runs, if at most `micro_batch_size` examples pass at once.

        >>> PAPER["table 1"].total_passes(1024) / PAPER["table 1"].total_steps
        8.125
        """
        return self._sum(lambda size: math.ceil(size / micro_batch_size))

    @property
    def total_examples(self) -> int:
        """Number of examples in the batches of all updates of all runs."""
        return self._sum(lambda size: size)

    def _sum(self, of_batch: Callable[[int], int]) -> int:
        """Sum over all updates of all runs of a function of the batch size."""
        each = self.variants * self.learning_rates * self.runs
        return each * sum(
            self.steps(size, budget) * of_batch(size) for size in self.batch_sizes for budget in self.budgets
        )


DOUBLING_EPOCHS = tuple(50.0 * 2**k for k in range(8))
"""Budgets of figures 2 and 3, in epochs: 50 to 6400."""

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
"""The experiments in the main text of Smith, Elsen & De 2020, by name.

The text does not list the batch sizes of figure 1. They are assumed to be the powers of two from 64, one ghost batch,
to 16384: three octaves below and five above the boundary between the regimes at 512."""


def experiment_file(name: str) -> str:
    """The text of a TOML file with which ``noisysgd sweep`` repeats an experiment of the paper.

    Parameters
    ----------
    name : {"table-1", "figure-1", "figure-2", "figure-2-skipinit", "figure-3"}

    Returns
    -------
    str
        Read by :func:`noisysgd.validation.sweeps.plan.parse_plan`.

    Examples
    --------
    >>> from noisysgd.validation.sweeps.plan import parse_plan
    >>> sweep = parse_plan(experiment_file("table-1")).sweep
    >>> len(sweep.plan()), sweep.seeds, sweep.keep
    (840, 15, 12)
    """
    checks.one_of("name", name, NAMES)
    skipinit = name.endswith("-skipinit")
    paper = PAPER[name.removesuffix("-skipinit").replace("-", " ")]
    run = {"dataset": "cifar10", "depth": 16, "width": 4, "augment": True, "device": "cuda", "precision": "tf32"}
    if skipinit:
        run |= {"normalization": "skipinit", "dropout": SKIPINIT_DROPOUT, "ghost_batch_size": 1}
    else:
        run |= {"ghost_batch_size": 64}
    if max(paper.batch_sizes) > MICRO_BATCH:
        run |= {"micro_batch_size": MICRO_BATCH}
    whole = [int(budget) for budget in paper.budgets]
    sections = {
        "run": run,
        "budget": {"kind": paper.unit.removesuffix("s"), paper.unit: whole if len(whole) > 1 else whole[0]},
        "grid": {"batch_sizes": list(paper.batch_sizes), "momenta": _momenta(name)} | _rates(name, paper),
        "protocol": {"preset": "paper-pairs" if name == "figure-3" else "paper"},
        "cost": {"seconds_per_step": 0.008, "seconds_per_example": 5.89e-5},
    }
    return HEADER.format(source=f"Smith, Elsen & De 2020, {paper.source}.") + "\n" + to_toml(sections).lstrip()


def _momenta(name: str) -> list[float]:
    return [0.0, 0.9] if name == "figure-1" else [0.9]


def _rates(name: str, paper: Experiment) -> dict[str, object]:
    """The part of the section ``[grid]`` that states the initial exponents of learning rates."""
    if name == "figure-3":
        width = math.isqrt(paper.learning_rates) - 1
        return {"initial": [2 - width, 2], "final": [-7 - width, -7]}
    if name.startswith("figure-2"):
        return {"exponents": [2 - (paper.learning_rates - 1), 2]}
    reach = (paper.learning_rates - 1) // 2
    points = [(momentum, size) for momentum in _momenta(name) for size in paper.batch_sizes]
    centres = [guess(momentum, size, fixed_steps=name == "table-1") for momentum, size in points]
    return {
        "window": [
            {"momentum": momentum, "batch_size": size, "exponents": [centre - reach, centre + reach]}
            for (momentum, size), centre in zip(points, centres, strict=True)
        ]
    }


def guess(momentum: float, batch_size: int, *, fixed_steps: bool) -> int:
    """Roughly the exponent k of the best effective learning rate ε/(1−m) = 2^k in the paper.

    At a fixed number of epochs (Figure 1c) it is proportional to the batch size, with k = 2 at B = 512, until it levels
    off: at k = 2 without momentum and at k = 5 with it. At a fixed number of steps (Table 1) it grows as the square
    root of the batch size, from k = 2 at B = 256 to k = 5 at B = 32768.

    Parameters
    ----------
    momentum, batch_size : float, int
    fixed_steps : bool
        Whether the number of steps is fixed, or that of epochs.

    >>> guess(0.0, 64, fixed_steps=False), guess(0.0, 4096, fixed_steps=False), guess(0.9, 4096, fixed_steps=False)
    (-1, 2, 5)
    """
    octaves = round(math.log2(batch_size))
    if fixed_steps:
        return 2 + (octaves - 8) // 2
    return min(octaves - 7, 5 if momentum else 2)
