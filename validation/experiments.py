"""The paper's experiments as files for ``noisysgd sweep``: its protocol in full, on CIFAR-10, for GPUs.

What the paper says is taken from :data:`~noisysgd.validation.presets.PAPER`. It prints no grids: the learning rates to
begin with are ours, around the optima that the paper reports, and every grid grows until its optima are bracketed.
"""

import math

from noisysgd.theory import checks
from noisysgd.validation.presets import PAPER, Experiment
from noisysgd.validation.toml import to_toml

MICRO_BATCH = 1024
"""Examples passed through the network at once: larger batches come in pieces."""
SKIPINIT_DROPOUT = 0.6
"""Assumed: the paper refers to De & Smith (2020) for it."""

HEADER = """\
# {source}
# The learning rates to begin with are assumptions, and so is the [cost]: replace it, or leave it out to time a run.
# Needs CIFAR-10 (noisysgd data fetch cifar10) and a GPU. The [cost] is for "tf32"; "float32" is exact and slower.
"""

NAMES = ("table-1", "figure-1", "figure-2", "figure-2-skipinit", "figure-3")


def experiment_file(name: str) -> str:
    """The text of a sweep's file.

    Parameters
    ----------
    name : {"table-1", "figure-1", "figure-2", "figure-2-skipinit", "figure-3"}

    Examples
    --------
    >>> from noisysgd.validation.plan import parse_plan
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
    """Exponents of two to begin with."""
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
    """About where the paper has the best effective learning rate, as an exponent of two.

    With epochs fixed it grows with the batch from 2² at B = 512, up to there without momentum and to 2⁵ with it
    (Figure 1c). With steps fixed it goes from 2² at B = 256 to 2⁵ at 32768 (Table 1).

    >>> guess(0.0, 64, fixed_steps=False), guess(0.0, 4096, fixed_steps=False), guess(0.9, 4096, fixed_steps=False)
    (-1, 2, 5)
    """
    octaves = round(math.log2(batch_size))
    if fixed_steps:
        return 2 + (octaves - 8) // 2
    return min(octaves - 7, 5 if momentum else 2)
