"""The precision of convolutions and matrix products: exact float32 unless something faster is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from noisysgd.validation.networks.torch_globals import torch_to_itself

FLAGS: tuple[tuple[Any, str], ...] = ((torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32"))


@contextmanager
def autocast_precision(precision: str, device: str, *, deterministic: bool = True) -> Iterator[None]:
    """Within the ``with`` block, a forward pass is computed in `precision`: :func:`fp32_precision`, and autocast.

    Autocast is on for "bfloat16" and off otherwise, even inside a block of the caller's that turns it on. Take
    derivatives under :func:`fp32_precision` alone: the backward pass of an operation has the type that autocast chose
    for the forward pass, and torch advises against autocast around it.

    Parameters
    ----------
    precision : {"float32", "tf32", "bfloat16"}
    device : str
        Where the tensors are, such as "cuda:0": autocast is set for each kind of device by itself.
    deterministic : bool
        As for :func:`fp32_precision`.
    """
    kind, wanted = torch.device(device).type, precision == "bfloat16"
    with fp32_precision(precision, deterministic=deterministic):
        if not wanted and not torch.is_autocast_enabled(kind):
            yield
        else:
            # Without autocast's cache of converted weights, which lives until the outermost block of the caller ends:
            # after an update it would hold the weights before it.
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=wanted, cache_enabled=False):
                yield


@contextmanager
def fp32_precision(precision: str, *, deterministic: bool = True) -> Iterator[None]:
    """Within the ``with`` block, TensorFloat-32 is on for "tf32" and off otherwise; torch's settings are put back.

    Torch reads the settings whenever it computes a matrix product or a convolution, in a backward pass as well as in a
    forward pass. "float32" also turns off TensorFloat-32 in cuDNN's convolutions, which torch has on by default. With
    `deterministic`, cuDNN takes those of its algorithms that give the same bits every time. There is no effect on a
    CPU. All threads of a process share these settings: no other can be inside of such a block meanwhile.
    """
    with torch_to_itself():
        before = [*_settings(precision == "tf32"), *_repeatable(deterministic)]
        try:
            for place, name, _, wanted in before:
                setattr(place, name, wanted)
            yield
        finally:
            for place, name, found, _ in before:
                setattr(place, name, found)


def _repeatable(deterministic: bool) -> list[tuple[Any, str, Any, Any]]:
    """The same for what makes cuDNN's results repeatable; timing algorithms to choose one would not."""
    cudnn: Any = torch.backends.cudnn
    wanted = {"deterministic": deterministic, "benchmark": False}
    found = [(cudnn, name, getattr(cudnn, name), value) for name, value in wanted.items()]
    return [setting for setting in found if setting[2] != setting[3]]


def _settings(tensor_float: bool) -> list[tuple[Any, str, Any, Any]]:
    """The settings that have to change: each as (object, attribute, present value, wanted value)."""
    found: list[tuple[Any, str, Any, Any]]
    cudnn: Any = torch.backends.cudnn
    try:
        found = [(place, name, getattr(place, name), tensor_float) for place, name in FLAGS]
    except RuntimeError:  # after a program has used torch's newer names, reading the older ones is an error
        places = torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
        wanted, name = "tf32" if tensor_float else "ieee", "fp32_precision"
        found = [(place, name, getattr(place, name), wanted) for place in places]
    return [setting for setting in found if setting[2] != setting[3]]
