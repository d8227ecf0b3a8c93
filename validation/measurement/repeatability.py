"""Whether a network's training-mode loss is one number, the same in every pass: otherwise it has no Hessian."""

import pickle
import random

import numpy as np
import torch
from torch import nn

from noisysgd.theory.common import checks
from noisysgd.validation.measurement.curvature import LossFunction, own_copy
from noisysgd.validation.networks.ghost_batch_norm import training_mode

PASSES = 32
"""Most forward passes that are compared. A layer that is skipped once in ten passes goes unnoticed with 4 % chance."""


def check_loss(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, criterion: LossFunction) -> None:
    """Raise unless the training-mode loss of these few examples is a single number that does not change at random.

    Two passes must agree to rounding. If one of the global generators of torch, NumPy or Python was moved by the first,
    the network draws random numbers, and 32 passes must agree, each starting from where the one before left the
    generators. The generators are put back in the end.

    Raises
    ------
    ValueError
        For logits that are no tensor, a criterion whose value has axes, and logits that differ between passes.

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
    try:
        with torch.no_grad(), training_mode(model):
            before = _positions(model)
            first = _logits(model, images)
            _check_value(criterion(first, labels))
            moved = _positions(model) != before
            for _ in range(PASSES - 1 if moved else 1):
                checks.require(_agree(_logits(model, images), first), "model", expected, "others", remedy)
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def _logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The logits of one pass that leaves the model's buffers alone."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    logits = torch.func.functional_call(model, buffers, (own_copy(images, model),))
    remedy = "Wrap a network that returns more than the logits."
    checks.require(isinstance(logits, torch.Tensor), "model(images)", "a tensor of logits", type(logits), remedy)
    return torch.as_tensor(logits)


def _check_value(value: object) -> None:
    got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value)
    remedy = "Average over the examples: reduction='mean' in torch's losses."
    checks.require(got == (), "criterion(logits, labels)", "a tensor of shape ()", got, remedy)


def _agree(one: torch.Tensor, other: torch.Tensor) -> bool:
    # Passes may sum in another order, on several threads or a GPU: half of the digits have to agree.
    size = float(other.abs().nan_to_num().max()) if other.numel() else 0.0
    rounding = torch.finfo(other.dtype).eps ** 0.5 * size if other.is_floating_point() else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=rounding, equal_nan=True)


def _positions(model: nn.Module) -> list[object]:
    """The states of all global generators that a pass through `model` may use."""
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
    numpy_state = pickle.dumps(np.random.get_state())  # noqa: NPY002
    return [*(state.numpy().tobytes() for state in states), numpy_state, random.getstate()]
