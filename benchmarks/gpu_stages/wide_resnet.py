"""The Wide-ResNet of the stages that train, its data set, and the memory that it takes."""

from typing import Any

import torch

from gpu_stages.rows import Order
from noisysgd.validation import TrainConfig, load_dataset

DATASETS = ("folder:cifar10-jpeg", "fashion-mnist", "digits")
"""Data sets for curvature and campaign: the first one that is there. The first is CIFAR-10 as JPEG of quality 75."""


def wide_resnet(order: Order, batch_size: int, **changes: Any) -> TrainConfig:
    """Return the paper's network and optimizer, at a learning rate so small that random labels do no harm."""
    settings: dict[str, Any] = {"learning_rate": 1e-4, "momentum": 0.9, "steps": 10**6, "augment": True}
    settings |= {"ghost_batch_size": 64, "depth": order.sizes.depth, "width": order.sizes.width, "device": order.device}
    return TrainConfig(batch_size=batch_size, **settings | changes)


def prepare() -> tuple[str, int]:
    """Return the first of `DATASETS` that can be read, and the size of its training set."""
    for name in DATASETS:
        try:
            TrainConfig(learning_rate=0.1, batch_size=64, steps=1, dataset=name)
            return name, load_dataset(name).train_size
        except (FileNotFoundError, ImportError, ValueError) as error:
            print(f"{name} is not used: {error}", flush=True)
    raise ValueError(f"data set: expected one of {DATASETS}, got none. Set NOISYSGD_DATA to its folder.")


def reset_peak(device: str) -> int:
    """Count the peak of GPU memory from here on, and return the bytes that are taken already."""
    if device == "cpu":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak(device: str, before: int) -> dict[str, Any]:
    """Return the most bytes of GPU memory that were taken besides those `before`."""
    if device == "cpu":
        return {"peak_bytes": None}
    return {"peak_bytes": torch.cuda.max_memory_allocated(device) - before}
