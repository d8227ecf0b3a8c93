"""The configuration of a training run: frozen, of plain values, and with a key that names its record for all time."""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from noisysgd.theory.common import checks
from noisysgd.theory.common.whole_parts import whole_part
from noisysgd.theory.schedules.batch_growth import BatchGrowth
from noisysgd.theory.schedules.budget import Budget, EpochBudget, StepBudget
from noisysgd.theory.schedules.effective_rate import effective_learning_rate
from noisysgd.theory.schedules.schedule import Schedule
from noisysgd.validation.data.catalogue import DATASETS
from noisysgd.validation.data.image_folders import PREFIX, load_image_folder, parse_name
from noisysgd.validation.schedules import DECAY, PAPER, check_rate_schedule, growing_batch, rate_schedule

L2_EXEMPTIONS = ("nothing", "normalization and biases")
L2_CONVENTIONS = ("half", "full")
NORMALIZATIONS = ("ghost_batch", "skipinit")
DYNAMICS = ("sgd", "svag")
PRECISIONS = ("float32", "tf32", "bfloat16")
WIDE_RESNET = "wide_resnet"
METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
"""What every record has of a trained network."""

FIRST_FIELDS = frozenset(
    (
        *("learning_rate", "batch_size", "momentum", "epochs", "steps", "dataset", "depth", "width"),
        *("ghost_batch_size", "l2", "l2_exempt", "seed"),
    )
)
"""Fields that are always written. Others are left out at their default, so that a new field renames no stored run."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run under the paper's protocol (section 4).

    Parameters
    ----------
    learning_rate : float
        Initial learning rate ε. Unless `rate_schedule` says otherwise, it is constant for half of the budget and then
        drops 10 times by 2.
    final_learning_rate : float, optional
        If given, the 10 drops lead to this learning rate instead, by equal factors (section 7.1), and so do the decays
        of other schedules.
    batch_size : int
        Batch size B; each batch is drawn without replacement, independently of those before (section 2).
    momentum : float
        Heavy-ball coefficient m, 0 ≤ m < 1.
    epochs, steps : float, int
        The budget, as exactly one of the two. Epochs over N examples allow ⌊epochs·N/B⌋ steps.
    dataset : str
        Name for :func:`noisysgd.validation.load_dataset`. Runs on images of one's own are filed under the name with the
        hash of their contents, ``folder:NAME@HASH``: see :meth:`pinned`.
    subset : int, optional
        Number of training examples to keep, a balanced choice
        (:func:`noisysgd.validation.data.preparation.balanced_subset`).
    subset_seed : int
        Seed of that choice; without a subset it must be 0.
    downsample : int
        Factor by which images shrink, by averages over squares.
    model : str
        "wide_resnet"; or "module:factory", imported where the run takes place and called with this configuration and
        the data set; or any other name for a network passed to :func:`~noisysgd.validation.train`. The run's key
        depends on this name alone, so give another network another name.
    depth, width : int
        Depth 6n + 4 and widening factor of the Wide-ResNet.
    normalization : {"ghost_batch", "skipinit"}
        Kind of blocks of the Wide-ResNet: see :class:`~noisysgd.validation.WideResNet`.
    dropout : float
        Probability of dropping a feature before the last layer of the Wide-ResNet.
    ghost_batch_size : int
        Examples per batch-norm group. It must divide the batch size, except under "skipinit", where examples do not
        depend on each other. For a network of your own in which they do not either, it may be 1.
    l2 : float
        Coefficient λ of the L2 penalty.
    l2_convention : {"half", "full"}
        Whether the penalty is ½ λ‖ω‖² (PyTorch's ``weight_decay``) or λ‖ω‖², which is twice that.
    l2_exempt : {"nothing", "normalization and biases"}
        Parameters that the penalty spares: none, or all with fewer than two axes.
    warmup : float
        Share of the budget, 0 ≤ w < 1, over which the learning rate rises linearly before the schedule begins.
    dynamics : {"sgd", "svag"}
        SGD (with `momentum`, heavy ball), or the stochastic variance amplified gradient, which approaches SGD's SDE as
        `svag` grows; see :func:`noisysgd.validation.training.inputs.weighted_draws`.
    svag : int
        SVAG's l: there are l times as many steps as the budget has, each with two batches and ε/l.
    augment : bool
        Whether training images are padded, cropped and flipped at random.
    device : str
        "cpu", "cuda" or "cuda:1": the device on which the network is trained.
    precision : {"float32", "tf32", "bfloat16"}
        Precision of convolutions and matrix products: exact float32 (the reference), TensorFloat-32 where the GPU has
        it, or autocast to bfloat16. Parameters and losses are always float32.
    channels_last : bool
        Whether images and convolution weights have torch's ``channels_last`` layout.
    compile : bool
        Whether to train through ``torch.compile``. Measurements always use the plain network.
    cuda_graph : bool
        Whether a GPU is given each update of the Wide-ResNet as one piece of work, instead of kernel by kernel. Results
        are the same, bit for bit. Without effect on a CPU, under `compile`, with dropout, and for networks of your own.
    deterministic : bool
        Whether cuDNN has to take algorithms with which a run has one result on a GPU. Others may be faster.
    micro_batch_size : int, optional
        Largest number of examples to pass through the network at once, a multiple of the ghost batch size. Saves
        memory, and changes results by rounding only.
    seed : int
        Seed of the initial parameters, the batches, their augmentation and dropout.
    rate_schedule : str
        What the learning rate does after the warm-up: "half_then_decay" (the paper's), "constant", "cosine", "linear",
        "warmup_stable_decay" or "inverse_sqrt", each as the function of :mod:`noisysgd.theory` of this name; or
        "multipliers", for those of `rate_multipliers`. With `final_learning_rate` decays end there; without, the
        paper's takes ten halvings, and cosine, linear and warmup_stable_decay end at 0.
    decay : float
        Share of the steps that the decay of "warmup_stable_decay" takes.
    rate_multipliers : tuple of float
        For "multipliers": multipliers of the learning rate, each in force for an equal part of the steps after the
        warm-up. With as many as these steps there is one for each.
    largest_batch_size : int, optional
        Where the schedule would divide the learning rate, the batch grows instead, in multiples of the ghost batch size
        up to this size, and the learning rate decays for the rest (:func:`noisysgd.theory.grow_batch`). The run sees as
        many examples as it would at `batch_size`, in fewer steps.
    evaluate_at : tuple of float
        Where to evaluate all metrics under way, for the learning curve in the record: whole numbers are steps, and
        numbers between 0 and 1 are shares of the run, rounded down to a step. They change nothing else of the run.
    nesterov : bool
        Whether the step is Nesterov's, ω ← ω − ε (g + m u) after u ← m u + g, in torch's form; it needs momentum, and
        no dampening.
    dampening : float
        Share d, 0 ≤ d < 1, by which gradients are dampened on their way into the velocity, u ← m u + (1−d) g from
        u = 0; it needs momentum. This is a learning rate of (1−d) ε. The first step of ``torch.optim.SGD`` differs: it
        takes the first gradient undampened.
    tail : float
        Share of the updates, the last ones, whose parameters are averaged with equal weights; 1 is the average of
        Polyak and Ruppert, 0 none. The average is evaluated beside the last parameters, and changes nothing of them.

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
    subset: int | None = None
    subset_seed: int = 0
    downsample: int = 1
    model: str = WIDE_RESNET
    normalization: str = "ghost_batch"
    dropout: float = 0.0
    l2_convention: str = "half"
    warmup: float = 0.0
    dynamics: str = "sgd"
    svag: int = 1
    augment: bool = False
    device: str = "cpu"
    precision: str = "float32"
    channels_last: bool = True
    compile: bool = False
    micro_batch_size: int | None = None
    final_learning_rate: float | None = None
    cuda_graph: bool = True
    deterministic: bool = True
    evaluate_at: tuple[float, ...] = ()
    rate_schedule: str = PAPER
    decay: float = DECAY
    rate_multipliers: tuple[float, ...] = ()
    largest_batch_size: int | None = None
    nesterov: bool = False
    dampening: float = 0.0
    tail: float = 0.0

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
        own = isinstance(self.dataset, str) and self.dataset.startswith(PREFIX)
        if own:
            parse_name(self.dataset)
        else:
            checks.one_of("dataset", self.dataset, [*DATASETS, f"{PREFIX}NAME"])
        if self.subset is not None:
            whole("subset", 1, "Keep at least one example, or pass None for all.")
        whole("subset_seed", 0, "Seeds are integers in 0…2⁶³−1.")
        unused = self.subset is not None or self.subset_seed == 0
        checks.require(unused, "subset_seed", "0 without a subset", self.subset_seed, "Give a subset or drop the seed.")
        whole("downsample", 1, "Use 1 for the images as they are.")
        whole("depth", 10, "Depths are 6n + 4, n ≥ 1.")
        checks.require(self.depth % 6 == 4, "depth", "6n + 4: 10, 16, 22, 28, …", self.depth, "Choose one of those.")
        whole("width", 1, "Width 1 is a plain ResNet.")
        checks.one_of("normalization", self.normalization, NORMALIZATIONS)
        named = isinstance(self.model, str) and bool(self.model.strip())
        checks.require(named, "model", "a name", self.model, "Pass the network itself to train(config, model=...).")
        whole("ghost_batch_size", 2 if self._normalizes_batches else 1, "Batch statistics need at least two examples.")
        whole("seed", 0, "Seeds are integers in 0…2⁶³−1.")
        _check_seed(self.seed)
        divides = self.batch_size % self.group_size == 0
        expected = f"a multiple of the ghost batch size {self.ghost_batch_size}"
        checks.require(divides, "batch_size", expected, self.batch_size, "Change one of the two.")
        if self.micro_batch_size is not None:
            whole("micro_batch_size", 1, "None takes batches whole.")
            divides = self.micro_batch_size % self.group_size == 0
            checks.require(divides, "micro_batch_size", expected, self.micro_batch_size, "Change one of the two.")
        for name in ("dropout", "warmup", "dampening"):
            scalar(name, checks.real(name, getattr(self, name)))
            value = getattr(self, name)
            checks.require(0 <= value < 1, name, "0 ≤ value < 1", value, "It is a share.")
        checks.one_of("l2_convention", self.l2_convention, L2_CONVENTIONS)
        checks.one_of("dynamics", self.dynamics, DYNAMICS)
        checks.one_of("precision", self.precision, PRECISIONS)
        whole("svag", 1, "l = 1 is SGD.")
        plain = self.dynamics == "svag" or self.svag == 1
        checks.require(plain, "svag", "1 unless dynamics='svag'", self.svag, "Choose the dynamics it is meant for.")
        still = self.dynamics == "sgd" or self.momentum == 0
        checks.require(still, "momentum", "0 under SVAG", self.momentum, "SVAG is defined for SGD without momentum.")
        for name in ("augment", "channels_last", "compile", "cuda_graph", "deterministic", "nesterov"):
            value = getattr(self, name)
            checks.instance(name, value, bool, remedy="Pass True or False.")
        self._check_update_rule()
        scalar("tail", checks.real("tail", self.tail))
        checks.require(0 <= self.tail <= 1, "tail", "a share of the updates, 0…1", self.tail, "Use 0 for no average.")
        known = isinstance(self.device, str) and re.fullmatch(r"cpu|cuda(:\d+)?", self.device) is not None
        checks.require(known, "device", "'cpu', 'cuda' or 'cuda:0' and so on", self.device, "Name one device.")
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

        object.__setattr__(self, "evaluate_at", _places(self.evaluate_at))
        scalar("decay", checks.real("decay", self.decay))
        shape: dict[str, Any] = {"rise": self.warmup, "final": self.final_learning_rate, "decay": self.decay}
        multipliers = check_rate_schedule(self.rate_schedule, **shape, multipliers=self.rate_multipliers)
        object.__setattr__(self, "rate_multipliers", multipliers)
        if self.largest_batch_size is not None:
            whole("largest_batch_size", self.batch_size, "None keeps the batch size as it is.")
            alone = self.dynamics == "sgd"
            remedy = "l updates of SVAG stand for one of SGD at one batch size."
            checks.require(alone, "largest_batch_size", "none under SVAG", self.largest_batch_size, remedy)

    def _check_update_rule(self) -> None:
        """Raise unless Nesterov's step and dampening have the momentum that they are about, and exclude each other."""
        moving = self.momentum > 0
        remedy = "Without momentum Nesterov's step is SGD's: leave nesterov out."
        checks.require(moving or not self.nesterov, "momentum", "m > 0 with nesterov", self.momentum, remedy)
        remedy = "Lower the learning rate instead: torch, for one, dampens nothing without momentum."
        checks.require(moving or not self.dampening, "momentum", "m > 0 with dampening", self.momentum, remedy)
        plain = not (self.nesterov and self.dampening)
        remedy = "Lower the learning rate instead: a dampened Nesterov step would be neither."
        checks.require(plain, "dampening", "0 with nesterov", self.dampening, remedy)

    def budget(self, dataset_size: int) -> Budget:
        """The compute budget, on a data set of `dataset_size` examples."""
        return EpochBudget(self.epochs, dataset_size) if self.epochs is not None else StepBudget(self.steps or 0)

    def schedule(self, dataset_size: int) -> Schedule:
        """The schedule over that budget, warm-up included, in multiples of the initial learning rate.

        Under SVAG it has l times the budget's steps, with the multipliers that SGD's learning rate has. Where the batch
        grows it has fewer steps than the budget.
        """
        return self.schedules(dataset_size).schedule

    def schedules(self, dataset_size: int) -> BatchGrowth:
        """The schedules of the learning rate and of the batch size, of the same number of steps."""
        steps = int(self.budget(dataset_size).steps(self.batch_size))
        final = None if self.final_learning_rate is None else self.final_learning_rate / self.learning_rate
        shape: dict[str, Any] = {"rise": self.warmup, "final": final, "decay": self.decay}
        schedule, rising = rate_schedule(self.rate_schedule, steps, **shape, multipliers=self.rate_multipliers)
        if self.largest_batch_size is not None:
            sizes: dict[str, int] = {"largest": self.largest_batch_size, "multiple_of": self.group_size}
            return growing_batch(schedule, rising, self.batch_size, **sizes)
        schedule = Schedule(self.svag * schedule.lengths, schedule.multipliers)
        return BatchGrowth(schedule, Schedule([schedule.steps], [self.batch_size]))

    def evaluation_steps(self, dataset_size: int) -> list[int]:
        """The steps at which metrics are evaluated under way, ascending: those that `evaluate_at` stands for.

        Raises
        ------
        ValueError
            If the run ends before one of them.
        """
        last = self.schedule(dataset_size).steps if self.evaluate_at else 0
        beyond = [place for place in self.evaluate_at if place > last]
        remedy = "Use shares of the run, such as 0.5, where runs have different lengths."
        checks.require(not beyond, "evaluate_at", f"steps from 0 to {last}", beyond, remedy)
        return sorted({int(p) if p == int(p) else whole_part(p, last) for p in self.evaluate_at})

    @property
    def batches_per_update(self) -> int:
        """Number of batches whose gradients make one update, two under SVAG."""
        return 1 if self.svag == 1 else 2

    @property
    def _normalizes_batches(self) -> bool:
        return self.model == WIDE_RESNET and self.normalization == "ghost_batch"

    @property
    def group_size(self) -> int:
        """Examples that must stay together because their batch statistics are shared; 1 if none are."""
        return 1 if self.model == WIDE_RESNET and self.normalization == "skipinit" else self.ghost_batch_size

    @property
    def effective_learning_rate(self) -> float:
        """(1−d) ε/(1−m): the rate of SGD that moves as far under a constant gradient. Divided by B, the temperature."""
        return (1.0 - self.dampening) * float(effective_learning_rate(self.learning_rate, self.momentum))

    def with_(self, **changes: Any) -> Self:
        """The same run with some values changed."""
        return replace(self, **changes)

    def repeated(self, runs: int) -> list[Self]:
        """The same run with so many seeds, beginning with its own."""
        _check_seed(self.seed + runs - 1)  # the largest; nothing else needs to be checked again
        shared = {name: vars(self)[name] for name in _DEFAULTS}  # without the key, which is that of the first seed
        found = [object.__new__(type(self)) for _ in range(runs)]
        for number, config in enumerate(found):
            vars(config).update(shared, seed=self.seed + number)
        return found

    def pinned(self) -> Self:
        """The same run, with the contents of its data set fixed where these are the user's own.

        Raises
        ------
        FileNotFoundError, ValueError
            If they are not there, or no data set.
        """
        if not self.dataset.startswith(PREFIX) or "@" in self.dataset:
            return self
        return self.with_(dataset=load_image_folder(self.dataset).pinned)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: the fields of the first version, and others that are not at their default."""
        own = vars(self)
        changed = {name: own[name] for name, default in _LATER.items() if own[name] != default}
        first = {name: own[name] for name in _FIRST}
        return first | {name: list(v) if isinstance(v, tuple) else v for name, v in changed.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of :meth:`as_dict`; unknown names are an error."""
        known = {field.name for field in fields(cls)}
        checks.instance("configuration", values, Mapping, remedy="Pass names of TrainConfig with their values.")
        unknown = sorted(map(str, set(values) - known))
        checks.require(not unknown, "configuration", f"names among {sorted(known)}", unknown, "Check the spelling.")
        needed = {"learning_rate", "batch_size"} - set(values)
        checks.require(not needed, "configuration", "a learning_rate and a batch_size", values, "Complete it.")
        return cls(**values)

    @functools.cached_property
    def key(self) -> str:
        """Hash of the canonical configuration: the name of its run, 16 hexadecimal digits."""
        return hashlib.sha256(_CANONICAL.encode(self.as_dict()).encode()).hexdigest()[:16]


def _check_seed(seed: int) -> None:
    checks.require(seed < 2**63, "seed", "a seed < 2⁶³", seed, "Take it modulo 2**63.")


def _places(given: Any) -> tuple[float, ...]:
    """Where a run is evaluated, ascending: steps as integers, and shares of the run between 0 and 1."""
    remedy = "Give steps such as 100, or shares of the run such as 0.5."
    checks.require(isinstance(given, list | tuple), "evaluate_at", "a list of numbers", given, remedy)
    numbers = checks.vector("evaluate_at", checks.real("evaluate_at", given)) if given else ()
    places = sorted(int(number) if number.is_integer() else float(number) for number in numbers)
    possible = all(place >= 0 and (place < 1 or isinstance(place, int)) for place in places)
    checks.require(possible, "evaluate_at", "whole steps ≥ 0, or shares between 0 and 1", given, remedy)
    checks.require(len(set(places)) == len(places), "evaluate_at", "distinct places", given, "Name each once.")
    return tuple(places)


_DEFAULTS = {field.name: field.default for field in fields(TrainConfig)}
"""Of every field; asking for the fields of a class takes time, and sweeps have many configurations."""
_FIRST = [name for name in _DEFAULTS if name in FIRST_FIELDS]
_LATER = {name: default for name, default in _DEFAULTS.items() if name not in FIRST_FIELDS}
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
