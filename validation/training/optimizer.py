"""The paper's optimizer, u ← m u + g, ω ← ω − ε u, its relatives by a constant factor or a look ahead, and its penalty.

"An L2 coefficient of λ" can mean two penalties: ½ λ‖ω‖², whose gradient λω is PyTorch's ``weight_decay=λ``, and λ‖ω‖²,
which is twice as strong. A run's options say which of the two it has, and which parameters are exempt.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from noisysgd.theory.common import checks
from noisysgd.validation.configuration import TrainConfig
from noisysgd.validation.networks.factory import is_non_overlapping_and_dense


class HeavyBall:
    """Heavy ball, or SGD if `momentum` is 0, with one fused update of all parameters.

    u ← m u + (1−d) P (g + λω), from u = 0; then ω ← ω − ε u, or Nesterov's ω ← ω − ε (P (g + λω) + m u). The arithmetic
    is that of ``torch.optim.SGD(fused=True)``, whose own bookkeeping takes small networks more time than the arithmetic
    does; but torch takes the first gradient of each parameter undampened.

    Parameters
    ----------
    groups : list of dict
        ``params`` and ``weight_decay`` of each group, as :func:`parameter_groups` makes them.
    lr : float
        Learning rate ε; the attribute may be set anew before every step.
    momentum : float
        Coefficient m.
    nesterov : bool
        Whether the step is Nesterov's; only with momentum and without dampening.
    dampening : float
        d.
    preconditioner : mapping, optional
        Of every parameter, the diagonal P as a tensor of its shape, type and layout. The gradient in ``.grad`` is then
        multiplied in its place.

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

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        nesterov: bool = False,
        dampening: float = 0.0,
        preconditioner: Mapping[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        # The fused update walks through memory in a line, so it would change what lies in a gap.
        parameters = [parameter for group in groups for parameter in group["params"]]
        loose = [tuple(p.stride()) for p in parameters if not is_non_overlapping_and_dense(p)]
        remedy = "Make them so: parameter.data = parameter.data.contiguous()."
        checks.require(not loose, "parameters", "parameters that fill their memory without gaps", loose, remedy)
        # The fused update takes parameters of one type at a time.
        types = sorted({parameter.dtype for parameter in parameters}, key=str)
        split = [group | {"params": [p for p in group["params"] if p.dtype == t]} for group in groups for t in types]
        self.param_groups = [group for group in split if group["params"]]
        self.lr, self.momentum, self.nesterov, self.dampening = lr, momentum, nesterov, dampening
        self.preconditioner = preconditioner
        self.parameters: list[torch.Tensor] = parameters
        self.buffers: dict[torch.Tensor, torch.Tensor] = {}

    def zero_grad(self) -> None:
        """Drop all gradients."""
        # None rather than zero: a parameter that gets no gradient is not to move by its velocity or its penalty.
        for parameter in self.parameters:
            parameter.grad = None

    def allocate(self) -> None:
        """Make all velocities now, at rest, instead of with the first gradient of each: their places stay the same."""
        if self.momentum:
            for parameter in self.parameters:
                self.buffers.setdefault(parameter, torch.zeros_like(parameter))

    @torch.no_grad()
    def step(self, *, rate: torch.Tensor | None = None, refused: torch.Tensor | None = None) -> None:
        """One update of all parameters that have a gradient.

        Parameters
        ----------
        rate : tensor, optional
            The learning rate on the device, instead of ``lr``.
        refused : tensor, optional
            On the device: 1.0 if nothing is to move, and 0.0 otherwise.
        """
        for group in self.param_groups:
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moving:
                continue
            if self.momentum:
                # From u = 0 the first velocity is the gradient, without a special case for the first step.
                for parameter in moving:
                    if parameter not in self.buffers:
                        self.buffers[parameter] = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in moving if parameter.grad is not None]
            decay = group["weight_decay"]
            if self.preconditioner is not None:
                # The fused update adds the penalty's gradient itself, which would escape the preconditioner.
                if decay:
                    torch._foreach_add_(gradients, moving, alpha=decay)
                    decay = 0.0
                torch._foreach_mul_(gradients, [self.preconditioner[parameter] for parameter in moving])
            torch._fused_sgd_(
                moving,
                gradients,
                [self.buffers[parameter] for parameter in moving] if self.momentum else [],
                weight_decay=decay,
                momentum=self.momentum,
                lr=self.lr if rate is None else rate,
                dampening=self.dampening,
                nesterov=self.nesterov,
                maximize=False,
                is_first_step=False,
                found_inf=refused,
            )


def heavy_ball(
    model: nn.Module, config: TrainConfig, preconditioner: Mapping[torch.Tensor, torch.Tensor] | None = None
) -> HeavyBall:
    """The optimizer of a run, with the penalty that its configuration asks for."""
    groups = parameter_groups(model, l2=config.l2, convention=config.l2_convention, exempt=config.l2_exempt)
    return HeavyBall(
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        dampening=config.dampening,
        preconditioner=preconditioner,
    )


def weight_decay(l2: float, convention: str) -> float:
    """The factor of ω in the penalty's gradient: torch's ``weight_decay`` for an L2 coefficient of either convention.

    >>> weight_decay(5e-4, "half"), weight_decay(5e-4, "full")
    (0.0005, 0.001)
    """
    return l2 if convention == "half" else 2.0 * l2


def parameter_groups(model: nn.Module, *, l2: float, convention: str, exempt: str) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: those that decay and, if there are any, those that are exempt.

    Exempting "normalization and biases" spares all parameters with fewer than two axes. In this project's networks
    these are the scales and shifts of normalisation, the biases, and SkipInit's α.
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
    """The value of the L2 penalty, for the parameter groups of an optimizer.

    >>> import torch
    >>> penalty([{"params": [torch.tensor([3.0, 4.0])], "weight_decay": 0.2}])
    2.5
    """
    squares = [(g["weight_decay"], sum(float(p.double().square().sum()) for p in g["params"])) for g in groups]
    return float(sum(0.5 * decay * square for decay, square in squares))
