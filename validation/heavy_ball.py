"""The paper's optimizer: u ← m u + g, ω ← ω − ε u, without dampening and without Nesterov's step."""

from typing import Any

import torch

from noisysgd.theory import checks


def dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill a stretch of memory, each once, in whatever order of axes.

    >>> whole = torch.zeros(4, 6)
    >>> dense(whole.t()), dense(whole[:, :3]), dense(torch.zeros(1).expand(3))
    (True, False, False)
    """
    length = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != length:
            return False
        length *= size
    return True


class HeavyBall:
    """Heavy ball, or SGD where `momentum` is 0, with one fused update of all parameters.

    The arithmetic is that of ``torch.optim.SGD(fused=True)``. Its class costs small networks more than the arithmetic
    does, hence this one.

    Parameters
    ----------
    groups : list of dict
        ``params`` and ``weight_decay`` of each group, as :func:`noisysgd.validation.l2.parameter_groups` makes them.
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
