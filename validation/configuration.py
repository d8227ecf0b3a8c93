"""What one training run is: a frozen configuration of plain values, with one name for all time."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from noisysgd.theory import checks
from noisysgd.theory.budget import Budget, EpochBudget, StepBudget
from noisysgd.theory.schedule import Schedule, half_then_decay, initial_to_final
from noisysgd.theory.temperature import effective_learning_rate

DATASETS = ("digits",)
L2_EXEMPTIONS = ("nothing", "normalization and biases")
FIRST_FIELDS = frozenset(
    {"learning_rate", "batch_size", "momentum", "epochs", "steps", "dataset", "depth", "width"}
    | {"ghost_batch_size", "l2", "l2_exempt", "seed"}
)
"""Always written. Any other field is left out while it has its default, so that adding one renames no stored run."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run under the paper's protocol (section 4).

    Parameters
    ----------
    learning_rate : float
        Initial learning rate ε; the schedule is constant for half of the budget and then drops 10 times by 2.
    final_learning_rate : float, optional
        Drop 10 times to this one instead, by equal factors (section 7.1).
    batch_size : int
        B; each batch is drawn without replacement, independently of the batches before (section 2).
    momentum : float
        Heavy-ball coefficient, 0 ≤ m < 1.
    epochs, steps : float, int
        The budget: one of the two. Epochs allow ⌊epochs·N/B⌋ steps.
    dataset : str
        Name for :func:`noisysgd.validation.load_dataset`.
    depth, width : int
        Of the Wide-ResNet; the depth is 6n + 4.
    ghost_batch_size : int
        Examples per batch-norm group; must divide the batch size.
    l2 : float
        Coefficient λ of the penalty ½ λ‖ω‖² (PyTorch's ``weight_decay``; λ‖ω‖² would be twice that).
    l2_exempt : {"nothing", "normalization and biases"}
        Parameters that the penalty spares: none, or all vectors.
    seed : int
        Fixes the initial parameters and the batches.

    Raises
    ------
    ValueError
        For values that no run can have.

    Examples
    --------
    >>> config = TrainConfig(learning_rate=0.5, batch_size=64, epochs=20)
    >>> TrainConfig.from_dict(config.as_dict()) == config
    True
    """

    learning_rate: float
    batch_size: int
    momentum: float = 0.0
    epochs: float | None = None
    steps: int | None = None
    dataset: str = "digits"
    depth: int = 10
    width: int = 1
    ghost_batch_size: int = 16
    l2: float = 5e-4
    l2_exempt: str = "nothing"
    seed: int = 0
    final_learning_rate: float | None = None

    def __post_init__(self) -> None:
        def whole(name: str, minimum: int, remedy: str) -> None:
            object.__setattr__(self, name, checks.integer(name, getattr(self, name), minimum, remedy=remedy))

        def scalar(name: str, value: Any) -> None:
            checks.require(value.ndim == 0, name, "a single number", value, "A run has one; sweep over several.")
            object.__setattr__(self, name, float(value))

        scalar("learning_rate", checks.learning_rate(self.learning_rate))
        if self.final_learning_rate is not None:
            scalar("final_learning_rate", checks.learning_rate(self.final_learning_rate, "final_learning_rate"))
            both = self.final_learning_rate > 0 and self.learning_rate > 0
            got = f"{self.learning_rate} and {self.final_learning_rate}"
            checks.require(both, "final_learning_rate", "two positive learning rates", got, "A ratio relates them.")
        scalar("momentum", checks.momentum(self.momentum))
        scalar("l2", checks.at_least("l2", self.l2, 0.0, remedy="Use 0 for no penalty."))
        checks.one_of("l2_exempt", self.l2_exempt, L2_EXEMPTIONS)
        whole("batch_size", 1, "A batch has at least one example.")
        checks.one_of("dataset", self.dataset, DATASETS)
        whole("depth", 10, "Depths are 6n + 4, n ≥ 1.")
        checks.require(self.depth % 6 == 4, "depth", "6n + 4: 10, 16, 22, 28, …", self.depth, "Choose one of those.")
        whole("width", 1, "Width 1 is a plain ResNet.")
        whole("ghost_batch_size", 2, "Batch statistics need at least two examples.")
        whole("seed", 0, "Seeds are integers in 0…2⁶³−1.")
        checks.require(self.seed < 2**63, "seed", "a seed < 2⁶³", self.seed, "Take it modulo 2**63.")
        divides = self.batch_size % self.ghost_batch_size == 0
        expected = f"a multiple of the ghost batch size {self.ghost_batch_size}"
        checks.require(divides, "batch_size", expected, self.batch_size, "Change one of the two.")
        one = (self.epochs is None) != (self.steps is None)
        got = f"epochs={self.epochs}, steps={self.steps}"
        checks.require(one, "epochs, steps", "exactly one of the two", got, "A run has one budget.")
        if self.steps is not None:
            whole("steps", 1, "Train for at least one step.")
        else:
            epochs = checks.real("epochs", self.epochs)
            scalar("epochs", epochs)
            positive = 0 < epochs < float("inf")
            checks.require(bool(positive), "epochs", "a positive, finite number", self.epochs, "Allow some training.")

    def budget(self, dataset_size: int) -> Budget:
        """The compute budget, on a data set of `dataset_size` examples."""
        return EpochBudget(self.epochs, dataset_size) if self.epochs is not None else StepBudget(self.steps or 0)

    def schedule(self, dataset_size: int) -> Schedule:
        """The paper's schedule over that budget, in multiples of the initial learning rate."""
        steps = int(self.budget(dataset_size).steps(self.batch_size))
        if self.final_learning_rate is None:
            return half_then_decay(steps)
        return initial_to_final(steps, 1.0, self.final_learning_rate / self.learning_rate)

    @property
    def effective_learning_rate(self) -> float:
        """ε/(1−m)."""
        return float(effective_learning_rate(self.learning_rate, self.momentum))

    def with_(self, **changes: Any) -> Self:
        """The same run with some values changed."""
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: the first version's fields, and those of the others that are not at default."""
        defaults = {field.name: field.default for field in fields(self)}
        values = asdict(self)
        return {name: v for name, v in values.items() if name in FIRST_FIELDS or v != defaults[name]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of :meth:`as_dict`; unknown names are an error."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        checks.require(not unknown, "configuration", f"names among {sorted(known)}", unknown, "Check the spelling.")
        needed = {"learning_rate", "batch_size"} - set(values)
        checks.require(not needed, "configuration", "a learning_rate and a batch_size", values, "Complete it.")
        return cls(**values)

    @property
    def key(self) -> str:
        """Hash of the canonical configuration: the name of its run, 16 hexadecimal digits."""
        canonical = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]
