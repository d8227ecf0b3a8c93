"""The L2 penalty, with its convention and its exemptions said aloud.

Papers mean two things by "an L2 coefficient of λ": ½ λ‖ω‖², whose gradient λω is PyTorch's ``weight_decay=λ``, and
λ‖ω‖², which is twice as strong.
"""

from typing import Any

import torch
from torch import nn


def weight_decay(l2: float, convention: str) -> float:
    """The factor of ω in the penalty's gradient.

    >>> weight_decay(5e-4, "half"), weight_decay(5e-4, "full")
    (0.0005, 0.001)
    """
    return l2 if convention == "half" else 2.0 * l2


def parameter_groups(model: nn.Module, *, l2: float, convention: str, exempt: str) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer: those that decay and, if there are any, those that are spared.

    "normalization and biases" spares parameters with fewer than two axes: in this project's networks the scales and
    shifts of normalisation, biases, and SkipInit's α.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    spared = [parameter for parameter in trainable if exempt != "nothing" and parameter.ndim < 2]
    decaying = [parameter for parameter in trainable if exempt == "nothing" or parameter.ndim >= 2]
    groups = [
        {"params": decaying, "weight_decay": weight_decay(l2, convention)},
        {"params": spared, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


@torch.no_grad()
def penalty(groups: list[dict[str, Any]]) -> float:
    """The penalty's value, of an optimizer's parameter groups.

    >>> import torch
    >>> penalty([{"params": [torch.tensor([3.0, 4.0])], "weight_decay": 0.2}])
    2.5
    """
    squares = [(g["weight_decay"], sum(float(p.double().square().sum()) for p in g["params"])) for g in groups]
    return float(sum(0.5 * decay * square for decay, square in squares))
