"""Optimizers beyond the paper's heavy ball: Nesterov's step, an L2 penalty, averages of the last iterates.

They have no tables of their own (``mode_kernels``, ``coupled``). Each mode is followed by itself, in the coordinates of
``pair_kernels`` under additive noise and step by step on least squares (``averaging_kernels``).
"""

from dataclasses import dataclass, replace
from functools import singledispatch

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray, IntArray
from noisysgd.theory.common.whole_parts import ceiling
from noisysgd.theory.moments.segments import Pieces, cut
from noisysgd.theory.problems.l2 import L2
from noisysgd.theory.problems.quadratic import Quadratic
from noisysgd.theory.schedules.schedule import Schedule


@dataclass(frozen=True)
class UpdateRule:
    """How an update differs from the paper's heavy ball; the same for all configurations of a call."""

    nesterov: bool = False
    l2: L2 | None = None
    tail: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether it does not differ at all."""
        return not self.nesterov and self.l2 is None and self.tail == 0.0

    def in_units(self, factor: float) -> "UpdateRule":
        """The rule for a problem in other units: see ``natural_units``."""
        return self if self.l2 is None else replace(self, l2=self.l2.in_units(factor))

    def pull(self) -> float:
        """μ, the curvature that the penalty adds to every mode."""
        return 0.0 if self.l2 is None else self.l2.strength

    def look(self, momentum: float) -> float:
        """How far ahead of θ the gradient's coordinate lies, in units of εu: see ``pair_kernels``."""
        return momentum if self.nesterov else 0.0

    def fixed_point(self, problem: Quadratic) -> FloatArray:
        """The point around which modes contract, (D,)."""
        return np.zeros(problem.dim) if self.l2 is None else self.l2.fixed_point(problem)


HEAVY_BALL = UpdateRule()
"""The paper's update, without a penalty or an average."""


def update_rule(nesterov: object, l2: object, tail: object, *, averaging: FloatArray | None = None) -> UpdateRule:
    """The rule that a caller asks for, checked."""
    checks.boolean("nesterov", nesterov)
    remedy = "Pass theory.L2(strength, origin): the origin of the parameters is not the minimum of the loss."
    checks.require(l2 is None or isinstance(l2, L2), "l2", "a theory.L2 or None", l2, remedy)
    share = checks.scalar("tail", tail)
    remedy = "It is the share of the steps whose iterates are averaged: 1 for all, 0 for no average."
    checks.require(0.0 <= share <= 1.0, "tail", "a share of the steps, 0…1", tail, remedy)
    if share > 0 and averaging is not None:
        remedy = "An average has equal weights (tail) or exponential ones (averaging)."
        checks.require(not averaging.any(), "averaging", "0 beside tail", averaging, remedy)
    kept = l2 if isinstance(l2, L2) and l2.strength > 0 else None
    return UpdateRule(bool(nesterov), kept, share)


@dataclass(frozen=True)
class OneRun:
    """One configuration; `noise_factor` is γ and `averaging` is β, 0 for none."""

    learning_rate: float
    noise_factor: float
    momentum: float
    averaging: float


@dataclass(frozen=True)
class AveragePieces:
    """Pieces of a schedule with the weights of the average θ̄ ← keep θ̄ + fresh θ in each of them, (P,)."""

    pieces: Pieces
    keep: FloatArray
    fresh: FloatArray

    @property
    def arrays(self) -> tuple[FloatArray, FloatArray, IntArray, FloatArray, FloatArray, IntArray]:
        """keep, fresh, lengths, multipliers, noise and records: what the compiled tables take."""
        return self.keep, self.fresh, *self.pieces.arrays


def exponential(pieces: Pieces, averaging: float) -> AveragePieces:
    """The pieces, with the weights of a moving average of coefficient β = `averaging`."""
    ones = np.ones(pieces.lengths.size)
    return AveragePieces(pieces, averaging * ones, (1.0 - averaging) * ones)


def last_iterates(
    schedule: Schedule, steps: int, tail: float, noise: Schedule | None = None
) -> tuple[AveragePieces, int]:
    """The first `steps` ≥ 1 steps, of which the last ⌈tail · steps⌉ iterates are added up, and their number."""
    count = tail_length(steps, tail)
    start = steps - count
    pieces = cut(schedule, np.unique([float(start), float(steps)]), noise)
    within = np.cumsum(pieces.lengths) > start
    last = np.where(np.arange(within.size) == within.size - 1, 0, -1)
    weights = within.astype(np.float64)
    return AveragePieces(replace(pieces, recorded=last), weights, weights), count


def tail_length(steps: int, tail: float) -> int:
    """⌈tail · steps⌉ in exact arithmetic, and at least 1.

    >>> tail_length(10, 0.3), tail_length(10, 0.01)
    (3, 1)
    """
    return min(max(ceiling(tail, steps), 1), steps)


@singledispatch
def mode_moments(
    problem: Quadratic, rule: UpdateRule, run: OneRun, average: AveragePieces, records: int
) -> tuple[FloatArray, FloatArray]:
    """E (θ̄−θ̂)² and E (θ̄−θ̂) of every mode after each recorded piece, both (records, D); one method per problem.

    θ̂ is the rule's fixed point. Without a penalty only the second moments are needed, and the means may be 0.
    """
    raise NotImplementedError(f"no moments of single modes for a {type(problem).__name__}")


def add_mode_losses(
    problem: Quadratic,
    rule: UpdateRule,
    run: OneRun,
    schedule: Schedule,
    at: FloatArray,
    losses: FloatArray,
    *,
    penalized: bool,
    noise: Schedule | None = None,
) -> None:
    """Add the losses of one run after the steps `at` (increasing, (R,)), into `losses`, (R,); `noise` as for `cut`."""
    later = np.flatnonzero(at > 0)
    if rule.tail == 0.0:
        if later.size:
            average = exponential(cut(schedule, at, noise), run.averaging)
            second, mean = mode_moments(problem, rule, run, average, at.size)
            losses[later] += _losses(problem, rule, second, mean, penalized)[later]
    else:
        # Each record has an average of its own, over the last iterates before it.
        for record in later:
            average, count = last_iterates(schedule, int(at[record]), rule.tail, noise)
            second, mean = mode_moments(problem, rule, run, average, 1)
            losses[record] += _losses(problem, rule, second / count**2, mean / count, penalized)[0]
    start = problem.initial_mean - rule.fixed_point(problem)
    before = _losses(problem, rule, (start**2 + problem.initial_variance)[None], start[None], penalized)
    losses[at == 0] = before[0]


def _losses(problem: Quadratic, rule: UpdateRule, second: FloatArray, mean: FloatArray, penalized: bool) -> FloatArray:
    """½ Σ w λ E θ², (R,), from the moments about θ̂; with the penalty ½ μ Σ w E (θ−o)² if `penalized`."""
    fixed = rule.fixed_point(problem)
    loss = _half(problem.weights * problem.eigenvalues, second, mean, fixed)
    if penalized and rule.l2 is not None:
        loss += _half(rule.pull() * problem.weights, second, mean, fixed - rule.l2.place(problem))
    return loss


def _half(scale: FloatArray, second: FloatArray, mean: FloatArray, shift: FloatArray) -> FloatArray:
    """½ Σ scale · E (δ + shift)², over the modes with a positive scale; ``inf`` where a moment overflows."""
    some = scale > 0
    with np.errstate(invalid="ignore", over="ignore"):
        squares = second[:, some] + shift[some] * (2.0 * mean[:, some] + shift[some])
        # What is a square is not negative, whatever its rounding; overflows of means and squares may meet as inf − inf.
        squares = np.where(np.isfinite(squares), np.maximum(squares, 0.0), np.inf)
        return np.asarray(0.5 * squares @ scale[some])
