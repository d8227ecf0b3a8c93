"""Training one network: SGD and heavy ball, as the paper runs them.

Everything random is a function of (seed, purpose, step), never of a generator's position, so that a run has one result.
"""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from noisysgd.simulators.stream import Purpose, random_words
from noisysgd.theory import checks
from noisysgd.validation.augmentation import augment
from noisysgd.validation.configuration import TrainConfig
from noisysgd.validation.curvature import training_mode
from noisysgd.validation.data import ImageDataset, load_dataset
from noisysgd.validation.wide_resnet import WideResNet

logger = logging.getLogger(__name__)

DIVERGED_ABOVE = 1e4
"""Minibatch cross-entropy, in nats, taken as divergence: guessing costs log(classes); no run returns from here."""

Observer = Callable[[int, nn.Module], None]


def train(config: TrainConfig, *, observe: Observer | None = None, observe_at: tuple[int, ...] = ()) -> dict[str, Any]:
    """Train one network and return its record.

    Parameters
    ----------
    config : TrainConfig
    observe : callable, optional
        Called as ``observe(step, model)`` before the updates numbered `observe_at` (0 is the initial state, the total
        number of steps the final one); it must leave the model as it found it, as
        :func:`noisysgd.validation.measure` does.

    Returns
    -------
    dict
        Plain values: ``config``, ``status`` ("complete" or "diverged"), ``steps`` taken, ``seconds``, and the metrics
        ``train_loss``, ``train_accuracy``, ``test_loss``, ``test_accuracy`` (``None`` if diverged). Losses are mean
        cross-entropies in nats, without the L2 term. The training loss is the one being minimised, of the whole
        training set under ghost batch statistics; test metrics use running statistics.

    Raises
    ------
    ValueError
        If the batch is larger than the data set.

    Examples
    --------
    >>> record = train(TrainConfig(learning_rate=0.5, batch_size=64, steps=2))
    >>> record["status"], record["steps"]
    ('complete', 2)
    """
    data = _dataset(config.dataset, config.subset, config.subset_seed, config.downsample)
    checks.batch_size(config.batch_size, data.train_size)
    started = time.perf_counter()
    schedule = config.schedule(data.train_size)
    model = WideResNet(
        config.depth,
        config.width,
        classes=data.classes,
        channels=data.train_images.shape[1],
        ghost_batch_size=config.ghost_batch_size,
        seed=config.seed,
    )
    optimizer = _optimizer(model, config)
    model.train()
    status, step = "complete", 0
    boundaries = {0, *schedule.boundaries.tolist()}
    for step in range(schedule.steps):
        if observe is not None and step in observe_at:
            observe(step, model)
        if step in boundaries:
            for group in optimizer.param_groups:  # a new optimizer would forget its momentum
                group["lr"] = config.learning_rate * float(schedule.at(step))
        batch = torch.from_numpy(minibatch(config.seed, step, config.batch_size, data.train_size))
        images = data.train_images[batch]
        if config.augment:
            images = augment(images, indices=batch, seed=config.seed, step=step)
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(images), data.train_labels[batch])
        if not loss.item() < DIVERGED_ABOVE:
            status = "diverged"
            break
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    else:
        step = schedule.steps
        if observe is not None and step in observe_at:
            observe(step, model)
    metrics = evaluate(model, data, config) if status == "complete" else {}
    if metrics and not metrics["train_loss"] < DIVERGED_ABOVE:
        status, metrics = "diverged", {}
    logger.debug("%s after %d steps: %s", status, step, config)
    return {
        "config": config.as_dict(),
        "status": status,
        "steps": step,
        "seconds": time.perf_counter() - started,
        **{name: metrics.get(name) for name in METRICS},
    }


METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


def minibatch(seed: int, step: int, batch_size: int, dataset_size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Indices of a batch: `batch_size` of `dataset_size` examples without replacement, in random order.

    The examples with the smallest of `dataset_size` random words; a function of (seed, step) alone, independent between
    steps (paper, section 2).

    >>> sorted(minibatch(seed=0, step=7, batch_size=4, dataset_size=4).tolist())
    [0, 1, 2, 3]
    """
    words = random_words(seed, Purpose.MINIBATCH, replica=0, step=step, count=dataset_size)
    if batch_size == dataset_size:
        return np.argsort(words)
    chosen = np.argpartition(words, batch_size)[:batch_size]
    return np.asarray(chosen[np.argsort(words[chosen])], dtype=np.int64)


@torch.no_grad()
def evaluate(model: nn.Module, data: ImageDataset, config: TrainConfig) -> dict[str, float]:
    """The metrics of a record, for a model as it stands."""
    size = config.ghost_batch_size * max(1, 256 // config.ghost_batch_size)
    whole = data.train_size - data.train_size % config.ghost_batch_size  # a ragged last group has no statistics
    # Shuffled once and for all, so that ghost batches mix classes as they do in training.
    order = torch.from_numpy(minibatch(0, 0, data.train_size, data.train_size)[:whole])
    with training_mode(model):
        train = _scores(model, data.train_images[order], data.train_labels[order], size)
    model.eval()
    test = _scores(model, data.test_images, data.test_labels, size)
    model.train()
    return {"train_loss": train[0], "train_accuracy": train[1], "test_loss": test[0], "test_accuracy": test[1]}


def _scores(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, size: int) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, in chunks of `size`."""
    logits = torch.cat([model(chunk) for chunk in torch.split(images, size)])
    loss = nn.functional.cross_entropy(logits.double(), labels)
    return float(loss), float((logits.argmax(1) == labels).double().mean())


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    spare_vectors = config.l2_exempt != "nothing"
    parameters = list(model.parameters())
    spared = [p for p in parameters if spare_vectors and p.ndim == 1]
    kept = [p for p in parameters if not (spare_vectors and p.ndim == 1)]
    groups = [{"params": kept, "weight_decay": config.l2}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        momentum=config.momentum,
        dampening=0.0,
        nesterov=False,
        foreach=True,
    )


@functools.cache
def _dataset(name: str, subset: int | None, subset_seed: int, downsample: int) -> ImageDataset:
    return load_dataset(name, subset=subset, subset_seed=subset_seed, downsample=downsample)
