"""Compute budgets: how many steps a run may take at each batch size (paper, section 2)."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from noisysgd.theory.common import checks
from noisysgd.theory.common.arithmetic import ignoring_underflow
from noisysgd.theory.common.arrays import IntArray
from noisysgd.theory.common.describing import html_table
from noisysgd.theory.common.whole_parts import whole_part


class Budget(Protocol):
    """The interface of all budgets: the steps allowed at each batch size, and N where the budget knows the data set."""

    @property
    def dataset_size(self) -> int | None:
        """Number of training examples, if the budget is stated in epochs of them."""

    def steps(self, batch_size: ArrayLike) -> IntArray:
        """Steps allowed at each batch size."""


@dataclass(frozen=True)
class EpochBudget:
    """A constant number of passes over the data: ⌊epochs·N/B⌋ steps, inversely proportional to the batch size.

    The product is exact, and a float stands for the decimal or the fraction that was rounded to it: 2.3 epochs are
    23/10, not the binary number below that, whose product may fall short of a whole number of steps.

    Parameters
    ----------
    epochs : float
        Passes over the data set, > 0.
    dataset_size : int
        Number N of training examples.

    Examples
    --------
    The paper's: 200 epochs of CIFAR-10 at batch size 1024.

    >>> int(EpochBudget(epochs=200, dataset_size=50_000).steps(1024))
    9765
    """

    epochs: float
    dataset_size: int

    _repr_html_ = html_table

    def __post_init__(self) -> None:
        epochs = checks.scalar("epochs", self.epochs)
        checks.require(0 < epochs < np.inf, "epochs", "a positive, finite number", self.epochs, "Allow some training.")
        size = checks.integer("dataset_size", self.dataset_size, 1, remedy="Pass the number of training examples.")
        object.__setattr__(self, "epochs", epochs)
        object.__setattr__(self, "dataset_size", size)

    @ignoring_underflow
    def steps(self, batch_size: ArrayLike) -> IntArray:
        """Steps allowed at each batch size 1 ≤ B ≤ N; an array of the shape of `batch_size`."""
        sizes = checks.batch_size(batch_size, self.dataset_size)
        steps = [whole_part(self.epochs, self.dataset_size, size) for size in sizes.ravel().tolist()]
        remedy = "Allow more epochs or use a smaller batch."
        some = all(count >= 1 for count in steps)
        checks.require(some, "batch_size", "a budget of at least one step", batch_size, remedy)
        countable = all(count < 2**53 for count in steps)
        checks.require(countable, "epochs", "fewer than 2⁵³ steps", self.epochs, "Allow fewer epochs.")
        return np.array(steps, dtype=np.int64).reshape(sizes.shape)


@dataclass(frozen=True, init=False)
class StepBudget:
    """A constant number of steps, whatever the batch size.

    Parameters
    ----------
    steps : int
        Steps allowed, ≥ 1.

    Examples
    --------
    >>> StepBudget(steps=9765).steps([256, 32768])
    array([9765, 9765])
    """

    total: int

    _repr_html_ = html_table

    def __init__(self, steps: int) -> None:
        object.__setattr__(self, "total", _countable(steps))

    @property
    def dataset_size(self) -> None:
        """``None``: a step budget does not refer to a data set."""

    @ignoring_underflow
    def steps(self, batch_size: ArrayLike) -> IntArray:
        """Steps allowed at each batch size B ≥ 1; an array of the shape of `batch_size`."""
        return np.full(checks.batch_size(batch_size).shape, self.total, dtype=np.int64)


@dataclass(frozen=True)
class UnlimitedBudget:
    """As many steps as it takes to reach a target loss at a constant learning rate (paper, section 2).

    Parameters
    ----------
    target : float
        Expected excess training loss to reach, > 0.

    Examples
    --------
    >>> from noisysgd import theory
    >>> budget = UnlimitedBudget(target=0.1)
    >>> rates = theory.optimal_learning_rate(theory.power_law(20), budget, batch_size=[4, 8])
    >>> bool(rates[1] > 1.5 * rates[0])
    True
    """

    target: float

    _repr_html_ = html_table

    def __post_init__(self) -> None:
        target = checks.scalar("target", self.target)
        remedy = "No loss of zero is reached in finite time; choose a loss below the initial one."
        checks.require(0 < target < np.inf, "target", "a positive, finite loss", self.target, remedy)
        object.__setattr__(self, "target", target)

    @property
    def dataset_size(self) -> None:
        """``None``: an unlimited budget does not refer to a data set; give the size of one to the problem."""

    @ignoring_underflow
    def steps(self, batch_size: ArrayLike) -> IntArray:
        """Always a ``ValueError``, since the number of steps depends on the problem and the learning rate."""
        remedy = "Ask theory.steps_to_target, or use an EpochBudget or StepBudget."
        raise ValueError(f"budget: expected one that fixes the number of steps, got {self}. {remedy}")


def _countable(steps: ArrayLike) -> int:
    total = checks.integer("steps", steps, 1, remedy="Allow at least one step.")
    checks.require(total < 2**53, "steps", "fewer than 2⁵³", steps, "Allow fewer.")
    return total
