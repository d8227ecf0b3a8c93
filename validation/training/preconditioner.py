"""A fixed diagonal preconditioner P of a run: a factor for every component of the gradient, penalty included.

It stands before the momentum, u ← m u + P (g + λω), as in :meth:`noisysgd.theory.NoisyQuadratic.precondition`.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from noisysgd.theory.common import checks
from noisysgd.validation.training import checkpoint as checkpoints

Preconditioner = Mapping[str, torch.Tensor] | Callable[[nn.Module], Mapping[str, torch.Tensor]]
"""What users give: factors by the names of parameters, or a function of the network that returns them."""

REMEDY = "Give every trainable parameter a tensor of positive factors, of its own shape; of ones where nothing changes."


def factors(model: nn.Module, given: Preconditioner) -> dict[str, torch.Tensor]:
    """The factors of every trainable parameter, by its name, with the parameter's type, device and layout in memory.

    Parameters
    ----------
    model : torch.nn.Module
    given : mapping or callable
        Tensors by the names of ``model.named_parameters()``, or a function of the model that returns such a mapping and
        leaves the model as it is.

    Raises
    ------
    TypeError, ValueError
        Unless there is a tensor of finite, positive factors for every trainable parameter and none besides, also after
        rounding to the parameter's type.

    Examples
    --------
    >>> found = factors(nn.Linear(2, 1, bias=False), {"weight": torch.tensor([[1.0, 0.5]], dtype=torch.float64)})
    >>> found["weight"]
    tensor([[1.0000, 0.5000]])
    """
    wanted = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    chosen = given if isinstance(given, Mapping) else given(model) if callable(given) else None
    expected = "tensors by the names of parameters, or a function of the network that returns them"
    if not isinstance(chosen, Mapping):
        raise TypeError(f"preconditioner: expected {expected}, got {checks.shorten(given)}. {REMEDY}")
    lacking, unknown = sorted(wanted.keys() - chosen.keys()), sorted(map(str, chosen.keys() - wanted.keys()))
    got = f"none for {lacking}, others for {unknown}"
    expected = f"the {len(wanted)} trainable parameters"
    checks.require(not lacking and not unknown, "preconditioner", expected, got, REMEDY)
    return {name: _of_parameter(name, parameter, chosen[name]) for name, parameter in wanted.items()}


def hashed(named: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the factors as they are applied, with their names."""
    return checkpoints.digest(dict(named))


@torch.no_grad()
def _of_parameter(name: str, parameter: nn.Parameter, given: object) -> torch.Tensor:
    """The factors of one parameter, checked."""
    where = f"preconditioner[{name!r}]"
    real = isinstance(given, torch.Tensor) and not given.is_complex() and given.dtype != torch.bool
    checks.require(real, where, "a tensor of real numbers", checks.shorten(given), REMEDY)
    assert isinstance(given, torch.Tensor)
    fits = given.shape == parameter.shape and given.layout == torch.strided and not given.is_meta
    checks.require(fits, where, f"a dense tensor of shape {tuple(parameter.shape)}", tuple(given.shape), REMEDY)
    # Judged as it will be applied: a factor may overflow, or round to zero, in the type of the parameter.
    applied = torch.empty_like(parameter, requires_grad=False).copy_(given)
    sound = bool((torch.isfinite(applied) & (applied > 0)).all())
    expected = f"finite factors > 0 in {parameter.dtype}"
    checks.require(sound, where, expected, [given.min().item(), given.max().item()], REMEDY)
    return applied
