"""Whether a network's training-mode loss is one number, the same in every pass: otherwise it has no Hessian."""

import pickle
import random

import numpy as np
import torch
from torch import nn

from noisysgd.theory.common import checks
from noisysgd.validation.measurement.criteria import (
    LossFunction,
    check_mean,
    check_mean_elsewhere,
    with_all_labels,
)
from noisysgd.validation.measurement.curvature import own_copy
from noisysgd.validation.networks.coupling import couples, logits, near
from noisysgd.validation.networks.ghost_batch_norm import training_mode

PASSES = 32
"""Most forward passes that are compared. A layer that is skipped once in ten passes goes unnoticed with 4 % chance."""


def check_loss(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    criterion: LossFunction,
    *,
    of_data: torch.Tensor | None = None,
    unit: int | None = None,
) -> None:
    """Raise unless the training-mode loss of these few examples is a mean over them that does not change at random.

    Two passes must agree to rounding. If one of the global generators of torch, NumPy or Python was moved by the first,
    the network draws random numbers, and 32 passes must agree, each starting from where the one before left the
    generators. The generators are put back in the end.

    Parameters
    ----------
    model : torch.nn.Module
    images, labels : torch.Tensor
        Few examples.
    criterion : callable
    of_data : torch.Tensor, optional
        Labels of the whole data set: the criterion is tried on all of them.
    unit : int, optional
        Examples that may see each other in the network; not checked if it is left out.

    Raises
    ------
    ValueError
        For logits that are no tensor, or differ between passes, or depend on examples of another unit; and for a
        criterion whose value has axes or is not the mean over examples.

    Examples
    --------
    >>> from torch.nn.functional import cross_entropy
    >>> check_loss(nn.Linear(3, 2), torch.ones(1, 3), torch.tensor([0]), cross_entropy)
    >>> check_loss(nn.RReLU(), -torch.ones(2, 3), torch.tensor([0, 1]), cross_entropy)  # of random slopes
    Traceback (most recent call last):
    ValueError: model: expected the same logits in every training-mode pass, got 'others'. Only dropout modules
    are switched off: set the probability of all else that is random (functional dropout, stochastic depth) to 0.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 — of the user's network
    expected = "the same logits in every training-mode pass"
    remedy = (
        "Only dropout modules are switched off: set the probability of all else that is random (functional dropout, "
        "stochastic depth) to 0."
    )
    checks.function("criterion", criterion, remedy="Pass a function of (logits, labels), such as F.cross_entropy.")
    try:
        with torch.no_grad(), training_mode(model):
            before = _positions(model)
            first = _logits(model, images)
            moved = _positions(model) != before
            for _ in range(PASSES - 1 if moved else 1):
                checks.require(near(_logits(model, images), first), "model", expected, "others", remedy)
            check_mean(criterion, first, labels)
            if of_data is not None:
                check_mean_elsewhere(criterion, *with_all_labels(first, labels, of_data))
        if unit is not None and len(images) >= 2 * unit:
            expected = f"logits that depend on no other examples than those of a unit, here {unit}"
            remedy = "Give ghost_batch_size, the examples that see each other in training, and an equal micro_batch."
            alone = not couples(model, own_copy(images[: 2 * unit], model), unit)
            checks.require(alone, "model", expected, "others beside other examples", remedy)
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def _logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The logits of one pass that leaves the model's buffers alone."""
    found: object = logits(model, own_copy(images, model))
    remedy = "Wrap a network that returns more than the logits."
    checks.require(isinstance(found, torch.Tensor), "model(images)", "a tensor of logits", type(found), remedy)
    return torch.as_tensor(found)


def _positions(model: nn.Module) -> list[object]:
    """The states of all global generators that a pass through `model` may use."""
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
    numpy_state = pickle.dumps(np.random.get_state())  # noqa: NPY002
    return [*(state.numpy().tobytes() for state in states), numpy_state, random.getstate()]
