"""The paper's optimizer, u ← m u + g, ω ← ω − ε u, without dampening or Nesterov's step, and its L2 penalty.

Papers mean two things by "an L2 coefficient of λ": ½ λ‖ω‖², whose gradient λω is PyTorch's ``weight_decay=λ``, and
λ‖ω‖², which is twice as strong. Which of the two, and which parameters are exempt, are options of a run.
"""

from typing import Any

import torch
from torch import nn

from noisysgd.theory.common import checks
from noisysgd.validation.networks.factory import dense


class HeavyBall:
    """Heavy ball, or SGD where `momentum` is 0, with one fused update of all parameters.

    The arithmetic is that of ``torch.optim.SGD(fused=True)``. Its class costs small networks more than the arithmetic
    does, hence this one.

    Parameters
    ----------
    groups : list of dict
        ``params`` and ``weight_decay`` of each group, as :func:`parameter_groups` makes them.
    lr, momentum : float
        ε, which may be set anew before every step, and m.

    Raises
    ------
    ValueError
        For parameters with gaps in memory, such as slices of larger tensors.

    Attributes
    ----------
    buffers : dict
        The velocity u of each parameter that has had a gradient, with the layout of the parameter.

    Examples
    --------
    >>> import torch
    >>> weight = torch.ones(1, requires_grad=True)
    >>> optimizer = HeavyBall([{"params": [weight], "weight_decay": 0.0}], lr=0.5, momentum=0.5)
    >>> for _ in range(2):
    ...     weight.grad = torch.ones(1)
    ...     optimizer.step()
    >>> weight.item(), optimizer.buffers[weight].item()
    (-0.25, 1.5)
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float) -> None:
        # The fused update walks through memory in a line, over gaps too.
        loose = [tuple(p.stride()) for group in groups for p in group["params"] if not dense(p)]
        remedy = "Make them so: parameter.data = parameter.data.contiguous()."
        checks.require(not loose, "parameters", "parameters that fill their memory without gaps", loose, remedy)
        # The fused update takes parameters of one type at a time.
        types = sorted({parameter.dtype for group in groups for parameter in group["params"]}, key=str)
        split = [group | {"params": [p for p in group["params"] if p.dtype == t]} for group in groups for t in types]
        self.param_groups = [group for group in split if group["params"]]
        self.lr, self.momentum = lr, momentum
        self.parameters: list[torch.Tensor] = [parameter for group in groups for parameter in group["params"]]
        self.buffers: dict[torch.Tensor, torch.Tensor] = {}

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One update of all parameters that have a gradient."""
        for group in self.param_groups:
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moving:
                continue
            if self.momentum:
                for parameter in moving:
                    if parameter not in self.buffers:  # from u = 0 the first velocity is the gradient
                        self.buffers[parameter] = torch.zeros_like(parameter)
            torch._fused_sgd_(
                moving,
                [parameter.grad for parameter in moving if parameter.grad is not None],
                [self.buffers[parameter] for parameter in moving] if self.momentum else [],
                weight_decay=group["weight_decay"],
                momentum=self.momentum,
                lr=self.lr,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )


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
