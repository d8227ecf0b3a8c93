"""What the learning rate and the batch size do in a training run: the schedules that a configuration can name."""

from collections.abc import Sequence

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.whole_parts import whole_part
from noisysgd.theory.schedules.batch_growth import BatchGrowth, grow_batch
from noisysgd.theory.schedules.schedule import Schedule, constant, half_then_decay, initial_to_final, warmup
from noisysgd.theory.schedules.shapes import cosine, inverse_sqrt, linear, per_step, warmup_stable_decay

PAPER = "half_then_decay"
ENDING = (PAPER, "cosine", "linear", "warmup_stable_decay")
"""Schedules that lead to a final learning rate, if one is given."""
RATE_SCHEDULES = (*ENDING, "constant", "inverse_sqrt", "multipliers")


def rate_schedule(
    name: str, steps: int, *, rise: float, final: float | None, decay: float, multipliers: Sequence[float]
) -> tuple[Schedule, int]:
    """Multipliers of the learning rate in all steps of a run, and the number of steps of the warm-up among them.

    Parameters
    ----------
    name : str
        One of :data:`RATE_SCHEDULES`.
    steps : int
        All steps, warm-up included.
    rise, decay : float
        Shares of the steps that the warm-up takes, and the decay of "warmup_stable_decay".
    final : float, optional
        Multiplier at the end.
    multipliers : sequence of float
        For "multipliers": each is in force for an equal part of the steps after the warm-up.

    Examples
    --------
    >>> schedule, rising = rate_schedule("linear", 6, rise=0.34, final=None, decay=0.2, multipliers=())
    >>> schedule.multipliers.round(2), rising
    (array([0.33, 0.67, 1.  , 0.75, 0.5 , 0.25]), 2)
    """
    rising = min(whole_part(rise, steps), steps - 1)
    if name == "inverse_sqrt":  # what comes after its warm-up depends on how long that was
        return inverse_sqrt(steps, warmup=rise), max(rising - 1, 0)
    if name == "warmup_stable_decay":
        return warmup_stable_decay(steps, warmup=rise, decay=decay, final=final or 0.0), rising
    rest = steps - rising
    if name == "multipliers":
        edges = np.array([rest * part // len(multipliers) for part in range(len(multipliers) + 1)])
        shape = Schedule(np.diff(edges), multipliers)
    elif name == PAPER:
        shape = half_then_decay(rest) if final is None else initial_to_final(rest, 1.0, final)
    elif name == "constant":
        shape = constant(rest)
    else:
        shape = {"cosine": cosine, "linear": linear}[name](rest, final=final or 0.0)
    return (warmup(shape, rising, levels=rising) if rising else shape), rising


def growing_batch(schedule: Schedule, rising: int, batch_size: int, *, largest: int, multiple_of: int) -> BatchGrowth:
    """The schedules of a run whose batch grows, up to `largest`, where its learning rate would decay.

    In the `rising` steps of the warm-up the batch keeps its size.

    >>> decaying = warmup(constant(2), 2, levels=2)
    >>> rates, sizes = growing_batch(decaying, 2, 16, largest=64, multiple_of=16)
    >>> rates == decaying, sizes.multipliers
    (True, array([16.]))
    """
    if not rising:
        return grow_batch(schedule, batch_size, largest=largest, multiple_of=multiple_of)
    every = schedule.at(np.arange(schedule.steps))
    rates, sizes = grow_batch(per_step(every[rising:]), batch_size, largest=largest, multiple_of=multiple_of)
    lengths = np.concatenate([np.ones(rising), rates.lengths])
    return BatchGrowth(
        Schedule(lengths, np.concatenate([every[:rising], rates.multipliers])),
        Schedule(np.append(rising, sizes.lengths), np.append(batch_size, sizes.multipliers)),
    )


def check_rate_schedule(
    name: str, *, rise: float, final: float | None, decay: float, multipliers: object
) -> tuple[float, ...]:
    """The multipliers of a configuration as floats, after checking the fields that say what its learning rate does.

    Raises
    ------
    ValueError
        For fields that no run can have, or that mean nothing together.
    """
    checks.one_of("rate_schedule", name, RATE_SCHEDULES)
    expected = f"none but with one of {', '.join(ENDING)}"
    checks.require(
        final is None or name in ENDING, "final_learning_rate", expected, f"{final} with {name!r}", "Drop it."
    )
    remedy = "It is the share of the steps that the decay of 'warmup_stable_decay' takes."
    stable = name == "warmup_stable_decay"
    checks.require(stable or decay == DECAY, "decay", f"{DECAY}, as no other schedule has one", decay, remedy)
    fits = decay > 0 and decay + rise <= 1
    checks.require(not stable or fits, "decay", "a share beside that of the warm-up", decay, remedy)
    listed = isinstance(multipliers, list | tuple)
    checks.require(listed, "rate_multipliers", "a list of numbers", multipliers, "List the multipliers.")
    assert isinstance(multipliers, list | tuple)
    remedy = "Give multipliers with rate_schedule='multipliers', and only then."
    fits = bool(multipliers) == (name == "multipliers")
    checks.require(fits, "rate_multipliers", f"what goes with rate_schedule={name!r}", multipliers, remedy)
    if not multipliers:
        return ()
    remedy = "Give one ≥ 0 for each part of the run."
    values = checks.vector("rate_multipliers", checks.at_least("rate_multipliers", multipliers, 0.0, remedy=remedy))
    return tuple(values.tolist())


DECAY = 0.2
"""Share of the decay of "warmup_stable_decay" unless another is given."""
