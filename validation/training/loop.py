"""Training one network: SGD, heavy ball and SVAG, as the paper runs them.

Everything random is a function of (seed, purpose, step), never of a generator's position, so that a run has the same
result however often it is interrupted.
"""

import functools
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 — the name the field uses
from torch import nn

from noisysgd.simulators.randomness.stream import Purpose, random_words
from noisysgd.theory.common import checks
from noisysgd.theory.common.describing import public_module
from noisysgd.theory.common.duration import duration
from noisysgd.validation.configuration import METRICS, WIDE_RESNET, TrainConfig
from noisysgd.validation.data.augmentation import crop_and_flip
from noisysgd.validation.data.datasets import ImageDataset, load_dataset
from noisysgd.validation.networks.arithmetic_precision import autocast_precision, fp32_precision
from noisysgd.validation.networks.dropout import draw_masks, forget_masks, has_dropout, take_rows
from noisysgd.validation.networks.factory import Factory, batch_norms, build_network, check_groups
from noisysgd.validation.networks.ghost_batch_norm import one_update
from noisysgd.validation.networks.torch_globals import kept_generators, torch_threads, usual_torch
from noisysgd.validation.networks.users_code import not_ending_the_program
from noisysgd.validation.training import checkpoint as checkpoints
from noisysgd.validation.training.curve import LearningCurve
from noisysgd.validation.training.evaluation import evaluate, renew_running_statistics
from noisysgd.validation.training.feed import Feed, Portion
from noisysgd.validation.training.inputs import (
    check_separable,
    micro_batches,
    resident,
    take,
    weighted_draws,
)
from noisysgd.validation.training.late import Watch, captured
from noisysgd.validation.training.optimizer import heavy_ball, penalty
from noisysgd.validation.training.preconditioner import Preconditioner, factors, hashed
from noisysgd.validation.training.resumption import check_resumable, check_still_resumable
from noisysgd.validation.training.tail_average import TailAverage
from noisysgd.validation.training.time_limit import OverdueError, checked_limit

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 60.0
"""Seconds between checkpoints, unless a number of steps is given."""
LIMIT_IN_GUESSES = 5000.0
"""Multiple of log(classes), the cross-entropy of guessing, beyond which a loss is taken as divergence."""

DEVICE_ERRORS = (torch.OutOfMemoryError, *((torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()))
"""RuntimeErrors by which torch says that a device has no room, or does not work."""

Observer = Callable[[int, nn.Module], None]


def train(
    config: TrainConfig,
    *,
    model: nn.Module | Factory | None = None,
    observe: Observer | None = None,
    observe_at: tuple[int, ...] = (),
    checkpoint: Path | None = None,
    checkpoint_every: int | None = None,
    threads: int = 1,
    time_limit: float | None = None,
    preconditioner: Preconditioner | None = None,
) -> dict[str, Any]:
    """Train one network and return its record.

    Threads of one process that call this take turns, for torch has one generator and one set of options for all of
    them. Train in several processes to train side by side.

    Parameters
    ----------
    config : TrainConfig
    model : torch.nn.Module or callable, optional
        A network of your own, or ``model(config, data)`` that makes one. ``config.model`` must name it: the name, not
        the network, is part of the run's key. A module is trained in place, from the parameters it comes with.
    observe : callable, optional
        Called as ``observe(step, model)`` before the updates numbered `observe_at` (0 is the initial state, the total
        number of steps the final one); it must leave the model as it found it, as
        :func:`noisysgd.validation.measure` does. Steps before a checkpoint that the run goes on from are not seen
        again.
    observe_at : tuple of int
        Steps at which to call `observe`, from 0 to the total number of steps.
    checkpoint : path, optional
        File in which the state is kept while the run is under way. If it exists, the run goes on from there, to exactly
        the result it would have had without the interruption. The last checkpoint is left in place: delete it once the
        record is stored.
    checkpoint_every : int, optional
        Steps between checkpoints; by default one is written whenever a minute has passed.
    threads : int
        Threads that torch may use on a CPU while this runs, as many as before when it ends. The last bits of a result
        depend on their number: with one the record is that of the same run in a sweep. More of them make large networks
        faster on idle cores, and small ones, or any beside another busy process, many times slower.
    time_limit : float, optional
        Seconds that this call may take. After the update that exceeds it a checkpoint is written, if there is one.
    preconditioner : mapping or callable, optional
        A fixed diagonal P: positive tensors by the names of all trainable parameters, of their shapes, or a function of
        the network that returns them. The gradient with the penalty is multiplied by it before momentum. It is no part
        of the configuration, so that no store takes the record.

    Returns
    -------
    dict
        Plain values: ``config``, ``status`` ("complete" or "diverged"), ``steps`` taken, ``seconds``, and the metrics
        ``train_loss``, ``train_accuracy``, ``test_loss``, ``test_accuracy`` (``None`` if diverged). Losses are mean
        cross-entropies in nats; the L2 penalty, which they leave out, is ``l2_term``. The training loss is the one that
        is minimised: over the training set, except for examples beyond its last whole ghost batch, with the statistics
        of ghost batches, or of batches where the network has torch's batch norm. Test metrics use running statistics.
        ``network`` gives the network's class and its number of parameters, ``divergence`` how the run diverged, or
        ``None``. ``curve`` is the learning curve, up to divergence
        (:meth:`noisysgd.validation.training.curve.LearningCurve.record`): minibatch losses in bins of steps, and the
        metrics at the steps of ``config.evaluate_at``. ``preconditioner`` is the SHA-256 of the factors, or ``None``.
        With ``config.tail`` there are ``averaged_updates``, how many updates were averaged, and
        ``averaged_train_loss`` and so on, the metrics of the average, with running statistics made anew for it;
        ``None`` where they are not finite.

    Raises
    ------
    RuntimeError
        If the device has too little memory; the message says what to do. Also in place of ``SystemExit``, with which
        a network or observer of your own would end the program.
    ValueError
        If the batch is larger than the data set, the device is not there, `model` and ``config.model`` do not go
        together, the network's state cannot be kept in a checkpoint, or the checkpoint is damaged or another run's.

    Examples
    --------
    >>> record = train(TrainConfig(learning_rate=0.5, batch_size=64, steps=2))
    >>> record["status"], record["steps"]
    ('complete', 2)
    >>> len([loss for loss in record["curve"]["loss"] if loss is not None])
    2

    A network of one's own:

    >>> def perceptron(config, data):
    ...     return nn.Sequential(nn.Flatten(), nn.Linear(64, data.classes))
    >>> record = train(TrainConfig(learning_rate=0.1, batch_size=64, steps=2, model="perceptron"), model=perceptron)
    >>> record["network"]["parameters"]
    650
    """
    checks.instance("config", config, TrainConfig, remedy="Make one with validation.TrainConfig.")
    config = config.pinned()
    try:
        with torch_threads(threads), usual_torch(), not_ending_the_program(config.model):
            limit = checked_limit(time_limit)
            return _train(config, model, observe, observe_at, checkpoint, checkpoint_every, limit, preconditioner)
    except torch.OutOfMemoryError as error:
        remedy = "Set micro_batch_size, which changes results by rounding alone, or share the GPU with fewer runs."
        got = str(error).partition(".")[0]
        raise RuntimeError(
            f"{config.device}: expected room for B = {config.batch_size}, got: {got}. {remedy}"
        ) from error


def _train(
    config: TrainConfig,
    model: nn.Module | Factory | None,
    observe: Observer | None,
    observe_at: tuple[int, ...],
    checkpoint: Path | None,
    checkpoint_every: int | None,
    time_limit: float | None,
    preconditioner: Preconditioner | None,
) -> dict[str, Any]:
    started = time.perf_counter()
    data = _dataset(config.dataset, config.subset, config.subset_seed, config.downsample)
    run = TrainingRun(config, data, model, preconditioner=preconditioner)
    if checkpoint_every is not None:
        checkpoint_every = checks.integer("checkpoint_every", checkpoint_every, 1, remedy="None: every minute.")
    last = run.schedule.steps
    remedy = "Pass the numbers of steps, such as (0, 10)."
    observe_at = tuple(
        checks.integer("observe_at", step, 0, remedy=remedy)
        for step in checks.several("observe_at", observe_at, object, remedy=remedy)
    )
    if observe is not None:
        checks.function("observe", observe, remedy="Pass a function of (step, model).")
    places = [step for step in observe_at if not 0 <= step <= last]
    checks.require(not places, "observe_at", f"steps from 0 to {last}", places, "The run has no others.")
    if checkpoint is not None:
        is_file = not Path(checkpoint).is_dir()
        checks.require(is_file, "checkpoint", "a file", f"the folder {checkpoint}", "Name a file in it.")
    elapsed, saved_at, first = 0.0, started, True
    evaluations = set(config.evaluation_steps(run.data.train_size))
    stops = evaluations | (set(observe_at) if observe is not None else set())
    if checkpoint is not None and config.model != WIDE_RESNET:
        check_resumable(run.model)
    names = set(run.model.state_dict())
    if checkpoint is not None:
        elapsed = _resumed(run, checkpoint)
    # The run seeds torch's global generators, for networks that draw from them; the caller gets them back as they were.
    with kept_generators([config.device]):
        while not run.finished:
            if observe is not None and run.step in observe_at:
                observe(run.step, run.model)
            if run.step in evaluations:
                run.evaluate()
            run.advance()
            if first and checkpoint is not None:
                check_still_resumable(run.model, names)
            first = False
            now = time.perf_counter()
            if run.step in stops:
                run.settle()
            # Without a number of steps, by the clock, so that checkpoints cost a bounded share of the time.
            due = run.step % checkpoint_every == 0 if checkpoint_every else now - saved_at >= CHECKPOINT_SECONDS
            late = time_limit is not None and now - started > time_limit
            due = due or late
            if checkpoint is not None and due:
                run.settle()
            if checkpoint is not None and due and not run.finished:
                checkpoints.write(checkpoint, run.state(elapsed + now - started))
                saved_at = time.perf_counter()
            if late and time_limit is not None and not run.finished:
                raise OverdueError(_overdue(run, time_limit, checkpoint))
        if run.divergence is None and observe is not None and run.step in observe_at:
            observe(run.step, run.model)
        # A last update can diverge without a minibatch that shows it: then the final training loss does.
        metrics: dict[str, Any] = dict.fromkeys(METRICS)
        if run.divergence is None:
            metrics = evaluate(run.model, run.data, config)
            if run.curve is not None and run.step in evaluations:
                run.curve.add_evaluation(run.step, metrics)
            if diverged(metrics["train_loss"], run.limit):
                run.divergence = f"final training loss {metrics['train_loss']:g}, limit {run.limit:g}"
            elif not math.isfinite(metrics["test_loss"]):  # of running statistics that have overflown, say
                run.divergence = f"final test loss {metrics['test_loss']:g}"
            if run.divergence is not None:
                metrics = dict.fromkeys(METRICS)
        averaged = run.evaluate_average()
    status = "complete" if run.divergence is None else "diverged"
    logger.debug("%s after %d steps: %s", status, run.step, config)
    return {
        "config": config.as_dict(),
        "status": status,
        "steps": run.step,
        "seconds": elapsed + time.perf_counter() - started,
        **metrics,
        **averaged,
        "l2_term": penalty(run.optimizer.param_groups) if status == "complete" else None,
        "divergence": run.divergence,
        "network": {
            "class": f"{public_module(type(run.model))}.{type(run.model).__qualname__}",
            "parameters": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
        },
        "curve": None if run.curve is None else run.curve.record(),
        "preconditioner": run.preconditioner,
    }


def _overdue(run: "TrainingRun", limit: float, checkpoint: Path | None) -> str:
    kept = "" if checkpoint is None else " Its checkpoint is kept, and it can go on from there."
    took = f"took more, with {run.step} of {run.schedule.steps} steps done"
    within = duration(limit, rough=True)
    return f"run {run.config.key}: expected to end within {within}, {took}.{kept} Raise the time limit."


def _resumed(run: "TrainingRun", checkpoint: Path) -> float:
    """Bring a run to the state in a file, if it is there, and return the seconds that it had taken until then.

    Raises
    ------
    UnusableError
        If the file is damaged, or of another run.
    """
    try:
        elapsed = run.restore(checkpoints.read(checkpoint), str(checkpoint))
    except FileNotFoundError:  # asked for by opening it: where there are no locks, another process may remove it
        return 0.0
    except DEVICE_ERRORS:
        raise
    except ValueError as error:
        raise checkpoints.UnusableError(str(error)) from error
    except (TypeError, KeyError, AttributeError, RuntimeError) as error:  # whole, but of another program
        got = f"{type(error).__name__}: {error}"
        raise checkpoints.UnusableError(f"{checkpoint}: expected the state of this run, got {got}.") from error
    logger.info("%s: going on from step %d of %d", checkpoint, run.step, run.schedule.steps)
    return elapsed


class TrainingRun:
    """A run under way: its network and its optimizer between two updates.

    Parameters
    ----------
    config : TrainConfig
    data : ImageDataset
        The data set, which is copied to the configuration's device.
    model : torch.nn.Module or callable, optional
        A network of one's own, as for :func:`train`.
    late : bool, optional
        Whether divergence is learnt only when :meth:`settle` asks for it, so that no update waits for the device. By
        default on a GPU. The run is the same.
    preconditioner : mapping or callable, optional
        As for :func:`train`.

    Attributes
    ----------
    step : int
        Number of updates taken.
    divergence : str or None
        How the run diverged, if it did.
    curve : LearningCurve or None
        The learning curve, in late runs up to the last time that the run was settled; ``None`` in a run that goes on
        from a checkpoint of a version without curves.
    average : TailAverage or None
        The average of the last parameters, if the configuration asks for one.
    preconditioner : str or None
        Hash of the preconditioner's factors.

    Examples
    --------
    >>> run = TrainingRun(TrainConfig(learning_rate=0.5, batch_size=64, steps=3), load_dataset("digits"))
    >>> run.advance()
    >>> run.step, run.finished
    (1, False)
    """

    def __init__(
        self,
        config: TrainConfig,
        data: ImageDataset,
        model: nn.Module | Factory | None = None,
        *,
        late: bool | None = None,
        preconditioner: Preconditioner | None = None,
    ) -> None:
        late = None if late is None else checks.boolean("late", late)
        checks.batch_size(config.batch_size, data.train_size)
        _check_device(config.device)
        self.config = config
        self.data = resident(data, config.device, channels_last=config.channels_last)
        self.schedule, sizes = config.schedules(data.train_size)
        checks.batch_size(sizes.multipliers, data.train_size, "largest_batch_size")
        self.model = build_network(config, data, model)
        check_groups(self.model, config)
        trainable = any(parameter.requires_grad for parameter in self.model.parameters())
        checks.require(trainable, "model", "parameters to train", "none that require gradients", "Unfreeze some.")
        if config.micro_batch_size is not None:
            own = config.model != WIDE_RESNET
            check_separable(
                self.model, self.data.train_images[: 2 * config.group_size if own else 0], config.group_size
            )
        coupled = batch_norms(self.model) if config.largest_batch_size is not None else []
        remedy = "Use GhostBatchNorm2d, whose groups have one size however large the batch is."
        checks.require(not coupled, "largest_batch_size", "a network without torch's batch norms", coupled, remedy)
        named = None if preconditioner is None else factors(self.model, preconditioner)
        self.preconditioner = None if named is None else hashed(named)
        by_name: dict[str, torch.Tensor] = dict(self.model.named_parameters())
        preconditioned = None if named is None else {by_name[name]: factor for name, factor in named.items()}
        self.optimizer = heavy_ball(self.model, config, preconditioned)
        self.limit = loss_limit(data.classes)
        self.step = 0
        self.divergence: str | None = None
        self.curve: LearningCurve | None = LearningCurve(self.schedule.steps)
        parameters = self.optimizer.parameters
        self.average = TailAverage(parameters, self.schedule.steps, config.tail) if config.tail else None
        # The compiled network is for training alone: measurements differentiate twice, which compiled code cannot.
        self._forward: Any = torch.compile(self.model) if config.compile else self.model
        self._output_checked = False
        self._has_dropout = has_dropout(self.model)
        self.feed = Feed(config, self.schedule, data.train_size, sizes)
        on_gpu = torch.device(config.device).type == "cuda"
        late = on_gpu if late is None else late
        self._watch = Watch(self.limit, config.device, length=self.feed.length) if late else None
        # What depends on the step in other ways than through the feed cannot be the same work every time.
        alike = config.model == WIDE_RESNET and not self._has_dropout and not config.compile
        self._capture = on_gpu and alike and config.cuda_graph
        self._launch: Callable[[], None] | None = None
        self._captured_size = 0
        if self._watch is not None:
            self.optimizer.allocate()
        self.model.train()

    @property
    def finished(self) -> bool:
        """Whether the budget is used up or the run has diverged."""
        return self.divergence is not None or self.step >= self.schedule.steps

    def advance(self) -> None:
        """Take one update, unless the loss of its batch shows divergence: then only `divergence` is set."""
        if self._watch is not None:
            return self._advance_late()
        portion = self.feed.at(self.step)
        self.optimizer.zero_grad()
        loss = float(self._differentiate(portion))
        # The loss is that of the parameters before this update, which is not made any more once it shows divergence.
        if diverged(loss, self.limit):
            return self._stop(loss)
        if self.curve is not None:
            self.curve.add([loss])
        self.optimizer.lr = float(portion.rate)  # a new optimizer would forget its momentum
        self.optimizer.step()
        self._count()
        return None

    def settle(self) -> None:
        """Learn whether the run has diverged, and if so, be back at the step of the update that showed it.

        Waits for the device where divergence is learnt late. :meth:`advance` does it by itself every so many updates,
        and after the last one.
        """
        if self._watch is None or self.divergence is not None:
            return
        found = self._watch.verdict()
        if found is not None:
            self.step = found.step
        # Losses beyond that step are those of updates that were refused.
        if self.curve is not None and self.curve.step < self.step:
            first = self.feed.first
            self.curve.add(self._watch.losses(self.curve.step - first, self.step - first))
        if found is not None:
            self._stop(found.loss)

    def evaluate(self) -> None:
        """Add the metrics of the network as it is now to the learning curve, unless they are there; settle before."""
        if self.curve is not None and not self.curve.evaluated_at(self.step):
            self.curve.add_evaluation(self.step, evaluate(self.model, self.data, self.config))

    def evaluate_average(self) -> dict[str, float | None]:
        """What a record says of the average of the last parameters: nothing if there is none.

        The network is left as it is.
        """
        if self.average is None:
            return {}
        found: dict[str, float | None] = dict.fromkeys(f"averaged_{name}" for name in METRICS)
        if self.divergence is None and self.average.count:
            with self.average.in_place(self.model, self.optimizer.parameters):
                renew_running_statistics(self.model, self.data, self.config)
                metrics = evaluate(self.model, self.data, self.config)
            found |= {f"averaged_{name}": value for name, value in metrics.items() if math.isfinite(value)}
        return {"averaged_updates": self.average.count if self.divergence is None else None} | found

    def _count(self) -> None:
        """One more update has been taken, or asked for."""
        self.step += 1
        if self.average is not None:
            self.average.add(self.step, self.optimizer.parameters)

    def _advance_late(self) -> None:
        self.feed.load(self.step)
        if self._capture and (self._launch is None or self._captured_size != self.feed.size):
            self._launch, self._captured_size = captured(self._update, self._changed()), self.feed.size
        (self._launch or self._update)()
        self._count()
        # The next block takes the place of this one, whose losses have to be read before.
        if self.step == self.feed.end or self.step >= self.schedule.steps:
            self.settle()

    def _update(self) -> None:
        """One update, without a word from the device: the portion that its counter points to, and a step or none."""
        assert self._watch is not None
        portion = self.feed.following()
        self.optimizer.zero_grad()
        self._watch.note(self._differentiate(portion), self.feed.row)
        self.optimizer.step(rate=portion.rate, refused=self._watch.refused)

    def _changed(self) -> list[torch.Tensor]:
        """All tensors that an update changes."""
        assert self._watch is not None
        network = [*self.model.parameters(), *self.model.buffers()]
        return [*network, *self.optimizer.buffers.values(), *self._watch.tensors, self.feed.row]

    def _stop(self, loss: float) -> None:
        self.divergence = f"minibatch cross-entropy {loss:g} at step {self.step}, limit {self.limit:g}"

    def state(self, seconds: float = 0.0) -> dict[str, Any]:
        """What a checkpoint holds: all that the configuration and the step do not determine. It settles the run."""
        self.settle()
        # A parameter without a gradient so far has no velocity: None keeps its place in the list.
        buffers = [self.optimizer.buffers.get(parameter) for parameter in self.optimizer.parameters]
        return {
            "config": self.config.as_dict(),
            "step": self.step,
            "seconds": seconds,
            "model": dict(self.model.state_dict()),
            "momentum": buffers,
            "curve": None if self.curve is None else self.curve.state(),
            "average": None if self.average is None else self.average.state(),
            "preconditioner": self.preconditioner,
        }

    def restore(self, state: dict[str, Any], name: str = "state") -> float:
        """Continue from `state`, and return the seconds that the run had taken until then.

        Parameters
        ----------
        state : dict
            From :meth:`state`.
        name : str
            What to call it in an error.

        Raises
        ------
        ValueError
            If it is the state of another run, or its network has other parameters.
        """
        remedy = "Delete it to start this run, or resume with the configuration it was written by."
        missing = sorted({"config", "step", "seconds", "model", "momentum"} - state.keys())
        checks.require(not missing, name, "the state of a run", f"none of {missing}", remedy)
        ours, theirs = self.config.as_dict(), state["config"]
        pairs = {field: (ours.get(field), theirs.get(field)) for field in ours.keys() | theirs.keys()}
        differing = {field: pair for field, pair in pairs.items() if pair[0] != pair[1]}
        expected = "a checkpoint of this run"
        checks.require(not differing, name, expected, f"another's (ours, theirs): {differing}", remedy)
        same = state.get("preconditioner") == self.preconditioner
        checks.require(same, name, expected, "one under another preconditioner, or none", remedy)
        parameters = self.optimizer.parameters
        shapes = [None if buffer is None else buffer.shape for buffer in state["momentum"]]
        fitting = len(shapes) == len(parameters) and all(
            shape in (None, p.shape) for shape, p in zip(shapes, parameters, strict=True)
        )
        checks.require(fitting, name, "one momentum buffer per parameter", shapes, remedy)
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ValueError(f"{name}: expected the parameters of this network ({error}). {remedy}") from error
        for parameter, buffer in zip(parameters, state["momentum"], strict=True):
            # A copy with the memory layout of the parameter, which the fused update takes for granted; and in the place
            # that a captured update knows, if there is one.
            if buffer is not None:
                self.optimizer.buffers.setdefault(parameter, torch.empty_like(parameter)).copy_(buffer)
            elif parameter in self.optimizer.buffers:  # at rest, as a velocity that is not there yet
                self.optimizer.buffers[parameter].zero_()
        self.step = state["step"]
        self.divergence = None
        past = state.get("curve")  # versions without curves wrote none, and what they have seen cannot be made up
        self.curve = None if past is None else LearningCurve(self.schedule.steps)
        if self.curve is not None and past is not None:
            self.curve.restore(past)
        if self.average is not None:
            self.average.restore(state["average"])
        self.feed.forget()
        if self._watch is not None:
            self._watch.restart(self.step)
        return float(state["seconds"])

    def _differentiate(self, portion: Portion) -> torch.Tensor:
        """Add the gradient of the update's loss to ``.grad``, and return the mean cross-entropy of its batches."""
        config = self.config
        draws = weighted_draws(config.dynamics, config.svag, self.step)
        pieces = micro_batches(portion.batches.shape[-1], config.micro_batch_size)
        if len(draws) == 1 and len(pieces) == 1:
            return self._differentiate_batch(portion, 0, *draws[0])
        # Several passes make one update: running averages must move once, and l updates of SVAG as far as one of SGD.
        with one_update(self.model, substeps=config.svag):
            losses = [self._differentiate_batch(portion, k, *draw) for k, draw in enumerate(draws)]
        return torch.stack(losses).mean()

    def _differentiate_batch(self, portion: Portion, number: int, weight: float, draw: int) -> torch.Tensor:
        """Add `weight` times the gradient of one batch's loss to ``.grad``, and return the batch's cross-entropy."""
        batch, config, device = portion.batches[number], self.config, self.config.device
        size = len(batch)
        pieces = micro_batches(size, config.micro_batch_size)
        images, labels = take(self.data.train_images, batch), self.data.train_labels[batch]
        if portion.crops is not None:
            images = crop_and_flip(images, portion.crops[number])
        if self._has_dropout:
            draw_masks(self.model, seed=config.seed, step=draw, batch_size=size, device=device)
        # A network of the user's own may draw from the global generator, as torch's dropout does.
        if config.model != WIDE_RESNET:
            word = random_words(config.seed, Purpose.DROPOUT, replica=2**31, step=draw, count=1)[0]
            torch.manual_seed(int(word >> 1))
        try:
            if len(pieces) == 1:
                return self._differentiate_micro_batch(images, labels, weight)
            # The batch's loss is a mean, so a micro-batch counts by its share of the examples. The sum stays on the
            # device, since reading each term would wait for the GPU.
            total = torch.zeros((), device=device)
            for rows in pieces:
                share = (rows.stop - rows.start) / size
                take_rows(self.model, rows)
                total += share * self._differentiate_micro_batch(images[rows], labels[rows], weight * share)
            return total
        finally:
            if self._has_dropout:
                forget_masks(self.model)

    def _differentiate_micro_batch(self, images: torch.Tensor, labels: torch.Tensor, weight: float) -> torch.Tensor:
        # Autocast ends before the backward pass; the precision of float32 products has to hold in both.
        precision, repeatable = self.config.precision, {"deterministic": self.config.deterministic}
        with fp32_precision(precision, **repeatable):
            with autocast_precision(precision, self.config.device, **repeatable):
                logits = self._logits(images)
            loss = F.cross_entropy(logits.float(), labels)
            (loss if weight == 1.0 else weight * loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        """The network's output, checked once: the user's own may expect other images or return something else."""
        if self._output_checked:
            logits: torch.Tensor = self._forward(images)
            return logits
        layout = "channels_last " if self.config.channels_last else ""
        size = len(images), self.data.classes
        expected = f"a network that maps {layout}float32 images {tuple(images.shape)} to logits {size}"
        try:
            logits = self._forward(images)
        except DEVICE_ERRORS:  # which say nothing about the network
            raise
        except RuntimeError as error:
            remedy = "Use .reshape or channels_last=False where .view fails, and parameters of type float32."
            raise ValueError(f"model: expected {expected}, got an error: {error}. {remedy}") from error
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        checks.require(found == size, "model", expected, found, "Return one logit for each class and image.")
        # A parameter that the first pass has made is none that the optimizer knows: it would never be trained.
        known = {id(parameter) for parameter in self.optimizer.parameters}
        new = [name for name, p in self.model.named_parameters() if p.requires_grad and id(p) not in known]
        remedy = "Make all parameters in __init__, or pass an image through in the function that makes the network."
        checks.require(not new, "model", "no parameters but those it began with", f"new ones: {new}", remedy)
        self._output_checked = True
        return logits


def loss_limit(classes: int) -> float:
    """Largest cross-entropy, in nats, that does not count as divergence; no run recovers from one so large.

    >>> round(loss_limit(10))
    11513
    """
    return LIMIT_IN_GUESSES * math.log(max(classes, 2))


def diverged(loss: float, limit: float) -> bool:
    """Whether `loss` is above the limit, infinite or not a number.

    >>> diverged(2.3, 10.0), diverged(11.0, 10.0), diverged(float("nan"), 10.0)
    (False, True, True)
    """
    return not loss <= limit


def _check_device(device: str) -> None:
    there = torch.device(device).type != "cuda" or torch.cuda.is_available()
    remedy = "Use device='cpu', or a machine with a GPU and PyTorch's CUDA build."
    checks.require(there, "device", "a device that PyTorch finds here", device, remedy)


@functools.cache
def _dataset(name: str, subset: int | None, subset_seed: int, downsample: int) -> ImageDataset:
    return load_dataset(name, subset=subset, subset_seed=subset_seed, downsample=downsample)
