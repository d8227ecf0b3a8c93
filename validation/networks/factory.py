"""The network of a run: the Wide-ResNet of its configuration, or one of the user's own."""

import importlib
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from noisysgd.theory.common import checks
from noisysgd.validation.configuration import WIDE_RESNET, TrainConfig
from noisysgd.validation.data.datasets import ImageDataset
from noisysgd.validation.networks.ghost_batch_norm import GhostBatchNorm2d
from noisysgd.validation.networks.torch_globals import kept_generators, usual_torch
from noisysgd.validation.networks.users_code import is_interrupt
from noisysgd.validation.networks.wide_resnet import WideResNet

Factory = Callable[[TrainConfig, ImageDataset], nn.Module]


@usual_torch()
def build_network(config: TrainConfig, data: ImageDataset, given: nn.Module | Factory | None = None) -> nn.Module:
    """The network that `config` names, or the `given` one, on the configuration's device.

    Parameters
    ----------
    config : TrainConfig
    data : ImageDataset
        Decides the number of input channels and of classes.
    given : torch.nn.Module or callable, optional
        A module is taken as it is. A factory is called as ``factory(config, data)`` with torch's global generator
        seeded by the configuration, so that its initial parameters are a function of the seed; the generator's state is
        put back afterwards.

    Raises
    ------
    ValueError
        If the configuration's name and `given` do not go together, or the factory it names cannot be imported.
    """
    if given is None and config.model == WIDE_RESNET:
        model: nn.Module = WideResNet(
            config.depth,
            config.width,
            classes=data.classes,
            channels=data.train_images.shape[1],
            normalization=config.normalization,
            ghost_batch_size=config.ghost_batch_size,
            dropout=config.dropout,
            seed=config.seed,
        )
        return _placed(model, config)
    remedy = "Name your network: config.with_(model='my network'); its runs are filed under that name."
    checks.require(config.model != WIDE_RESNET, "config.model", "a name of your own", config.model, remedy)
    given = imported(config.model) if given is None else given
    if not isinstance(given, nn.Module):
        checks.require(callable(given), "model", "a torch.nn.Module or a function that makes one", given, "Pass one.")
        with kept_generators([config.device]):
            torch.manual_seed(config.seed)
            given = _made(given, config, data)
        checks.instance("model(config, data)", given, nn.Module, remedy="The function returns the network.")
    return _placed(given, config)


def batch_norms(model: nn.Module) -> list[str]:
    """Names of torch's own batch norm layers, whose statistics are those of whatever batch they are given."""
    layers = model.named_modules()
    return [name or "model" for name, layer in layers if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def check_groups(model: nn.Module, config: TrainConfig) -> None:
    """Raise unless the groups of examples that the configuration keeps together are whole ghost batches of `model`."""
    sizes = {layer.ghost_batch_size for layer in model.modules() if isinstance(layer, GhostBatchNorm2d)}
    wanted = math.lcm(*sizes)
    remedy = f"Set ghost_batch_size={wanted}, the network's own."
    fits = config.group_size % wanted == 0
    checks.require(fits, "ghost_batch_size", f"a multiple of {wanted}", config.group_size, remedy)


def check_initialised(model: nn.Module) -> None:
    """Raise if parameters or buffers have no values yet, as those of torch's lazy layers and of the meta device.

    >>> check_initialised(nn.LazyLinear(2))
    Traceback (most recent call last):
    ValueError: model: expected parameters and buffers with values, got ['weight', 'bias'] without. Pass an image
    through a network with lazy layers in the function that makes it.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    bare = [name for name, tensor in named if is_lazy(tensor) or tensor.is_meta]
    remedy = "Pass an image through a network with lazy layers in the function that makes it."
    if bare:
        got = checks.shorten(bare)
        raise ValueError(f"model: expected parameters and buffers with values, got {got} without. {remedy}")


def is_non_overlapping_and_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill a stretch of memory without gaps, each of them once, in whatever order of the axes.

    >>> whole = torch.zeros(4, 6)
    >>> [is_non_overlapping_and_dense(part) for part in (whole.t(), whole[:, :3], torch.zeros(1).expand(3))]
    [True, False, False]
    """
    # From the innermost axis outwards, each stride must be the length of what the axes inside of it fill.
    length = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != length:
            return False
        length *= size
    return True


def _made(factory: Factory, config: TrainConfig, data: ImageDataset) -> nn.Module:
    """What the factory returns, with a ``TypeError`` explained: most often it takes other arguments."""
    try:
        return factory(config, data)
    except TypeError as error:
        expected = "a function that makes a network, called as f(config, data)"
        raise ValueError(f"model: expected {expected}, got {factory!r} ({error}). Give it two parameters.") from error


def _placed(model: nn.Module, config: TrainConfig) -> nn.Module:
    """The model on the configuration's device and in its memory layout."""
    check_initialised(model)
    for parameter in model.parameters():
        # A slice of another tensor becomes a tensor of the network's own, which the fused optimizer needs.
        if not is_non_overlapping_and_dense(parameter):
            parameter.data = parameter.data.contiguous()
    # The Wide-ResNet's constructor makes it channels_last; networks of the user's own are converted here.
    if config.model != WIDE_RESNET and config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    elif config.model == WIDE_RESNET and not config.channels_last:
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()
    return model.to(config.device)


def imported(name: str) -> Factory:
    """The function that ``module:factory`` names, of an installed module or of a file in the current folder.

    Raises
    ------
    ValueError
        If it cannot be imported, with the reason.

    Examples
    --------
    >>> imported("noisysgd.validation.networks.factory:build_network").__name__
    'build_network'
    """
    module, separator, attribute = name.partition(":")
    remedy = (
        "Name a function as 'module:factory', of an installed module or of a file in the current folder; "
        "from Python, train(config, model=...) takes the network itself."
    )
    checks.require(bool(separator), "config.model", "'module:factory', or a network passed along", name, remedy)
    try:
        with _current_folder():
            factory: Factory = getattr(importlib.import_module(module), attribute)
    except BaseException as error:  # importing runs the user's own code, which may raise anything
        if is_interrupt(error):
            raise
        got = f"{name!r} ({type(error).__name__}: {error})"
        raise ValueError(f"config.model: expected an importable 'module:factory', got {got}. {remedy}") from error
    checks.require(callable(factory), "config.model", "a function that makes a network", factory, remedy)
    return factory


_path_lock = threading.RLock()


@contextmanager
def _current_folder() -> Iterator[None]:
    """Within the block, modules of the current folder can be imported, if no other module has their name."""
    folder = str(Path.cwd())
    with _path_lock:
        added = folder not in sys.path
        if added:
            sys.path.append(folder)
        try:
            yield
        finally:
            if added:
                sys.path.remove(folder)
