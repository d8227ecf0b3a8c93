"""The precision of convolutions and matrix products: exact float32 unless something faster is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

FLAGS: tuple[tuple[Any, str], ...] = ((torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32"))


@contextmanager
def arithmetic(precision: str, device: str) -> Iterator[None]:
    """Within the ``with`` block, products are computed in that precision; torch's settings are put back on leaving.

    "float32" also turns off what torch turns on by itself: TensorFloat-32 in cuDNN's convolutions. "tf32" has an effect
    on GPUs that have it, and none on a CPU. "bfloat16" is autocast on either.
    """
    kind, tensor_float = torch.device(device).type, precision == "tf32"
    changed = [(place, name) for place, name in FLAGS if getattr(place, name) != tensor_float]
    try:
        for place, name in changed:
            setattr(place, name, tensor_float)
        wanted = precision == "bfloat16"
        if not wanted and not torch.is_autocast_enabled(kind):
            yield
        else:
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=wanted):
                yield
    finally:
        for place, name in changed:
            setattr(place, name, not tensor_float)
