"""The precision of convolutions and matrix products: exact float32 unless something faster is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

FLAGS: tuple[tuple[Any, str], ...] = ((torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32"))


@contextmanager
def arithmetic(precision: str, device: str) -> Iterator[None]:
    """Within the ``with`` block, whatever is computed is computed in that precision: :func:`products`, and autocast.

    Derivatives are to be taken under :func:`products` alone: they repeat the types of the forward pass by themselves.
    """
    kind, wanted = torch.device(device).type, precision == "bfloat16"
    with products(precision):
        if not wanted and not torch.is_autocast_enabled(kind):
            yield
        else:
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=wanted):
                yield


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Within the ``with`` block, TensorFloat-32 is on for "tf32" and off otherwise; torch's settings are put back.

    They are read when a product is computed, in a backward pass as well as in a forward pass. "float32" also turns off
    what torch turns on by itself: TensorFloat-32 in cuDNN's convolutions. There is no effect on a CPU.
    """
    before = _settings(precision == "tf32")
    try:
        for place, name, _, wanted in before:
            setattr(place, name, wanted)
        yield
    finally:
        for place, name, found, _ in before:
            setattr(place, name, found)


def _settings(tensor_float: bool) -> list[tuple[Any, str, Any, Any]]:
    """What to change: where, by which name, from what, to what."""
    found: list[tuple[Any, str, Any, Any]]
    cudnn: Any = torch.backends.cudnn
    try:
        found = [(place, name, getattr(place, name), tensor_float) for place, name in FLAGS]
    except RuntimeError:  # whoever used the newer names has made the older ones unreadable
        places = torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
        wanted, name = "tf32" if tensor_float else "ieee", "fp32_precision"
        found = [(place, name, getattr(place, name), wanted) for place in places]
    return [setting for setting in found if setting[2] != setting[3]]
