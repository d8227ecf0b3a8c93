"""Training: images per second of whole updates, and whether runs repeat bit for bit."""

import functools
import hashlib
from typing import Any

import torch
from torch import nn

from gpu_stages.rows import Order, Rows, elapsed, wait
from gpu_stages.small_runs import side_by_side, total_speed
from gpu_stages.wide_resnet import peak, reset_peak, wide_resnet
from noisysgd.validation import GhostBatchNorm2d, ImageDataset
from noisysgd.validation.training.inputs import resident
from noisysgd.validation.training.loop import TrainingRun


def measure_all(order: Order, rows: Rows) -> None:
    """Measure images per second of whole updates, whether runs repeat, and small runs side by side."""
    sizes = order.sizes
    data = resident(random_images(sizes.images, sizes.side), order.device, channels_last=True)
    speed = functools.partial(update_speed, order, data)
    for variant, gpu_only in variants(order):
        rows.attempt("updates", speed, gpu_only=gpu_only, seconds=4 * sizes.update_seconds, **variant)
    twice = functools.partial(repeated, order, data)
    for captured, deterministic in ((True, True), (False, True), (True, False)):
        gpu_only = not (captured and deterministic)
        rows.attempt("repeated", twice, gpu_only=gpu_only, captured=captured, deterministic=deterministic)
    with side_by_side(order, max(sizes.processes)) as crew:
        for count in sizes.processes:
            rows.attempt("small runs", functools.partial(total_speed, order, crew), processes=count)


def variants(order: Order) -> list[tuple[dict[str, Any], bool]]:
    """List the kinds of updates that are timed, and whether they need a GPU.

    All precisions come first, then what differs in one thing from the precision that is usual.
    """
    usual = {"norm": "ghost", "captured": order.on_gpu, "deterministic": True}
    usual["precision"] = "tf32" if order.on_gpu else "float32"
    batches = order.sizes.batches
    changes: list[tuple[dict[str, Any], tuple[int, ...], bool]] = [
        ({"precision": "tf32"}, batches, True),
        ({"precision": "bfloat16"}, batches, False),
        ({"precision": "float32"}, batches, False),
        ({"norm": "torch"}, batches[1:], False),  # of 64 examples ghost batch norm makes one group, and is torch's
        ({"captured": False}, batches, True),
        ({"deterministic": False}, batches, True),
    ]
    return [(usual | change | {"batch_size": size}, gpu_only) for change, some, gpu_only in changes for size in some]


def random_images(examples: int, side: int) -> ImageDataset:
    """Random images in three colours, and random labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(examples, 3, side, side, generator=generator)
    labels = torch.randint(10, (examples,), generator=generator)
    return ImageDataset("random", images, labels, images[:256], labels[:256], classes=10, provenance="random numbers")


def update_speed(
    order: Order,
    data: ImageDataset,
    *,
    batch_size: int,
    precision: str,
    norm: str,
    captured: bool,
    deterministic: bool,
) -> dict[str, Any]:
    """Return time and memory of an update of the Wide-ResNet."""
    before = reset_peak(order.device)
    chosen = {"precision": precision, "cuda_graph": captured, "deterministic": deterministic}
    run = TrainingRun(wide_resnet(order, batch_size, **chosen), data)
    if norm == "torch":
        with_torch_norms(run.model)
    return time_updates(run, order.sizes.update_seconds) | peak(order.device, before) | {"divergence": run.divergence}


def with_torch_norms(model: nn.Module) -> None:
    """Put torch's batch norm in the place of every ghost batch norm, with the parameters that are there."""
    for name, layer in list(model.named_children()):
        if isinstance(layer, GhostBatchNorm2d):
            plain = nn.BatchNorm2d(layer.features, eps=layer.eps, momentum=layer.momentum).to(layer.weight.device)
            plain.weight, plain.bias = layer.weight, layer.bias
            setattr(model, name, plain)
        else:
            with_torch_norms(layer)


def time_updates(run: TrainingRun, seconds: float) -> dict[str, Any]:
    """Return the time of an update, and how much of it the host takes to ask for it, after some that warm up."""
    device = run.config.device

    def some(count: int) -> None:
        for _ in range(count):
            run.advance()

    def to_the_end(count: int) -> None:
        some(count)
        run.settle()
        wait(device)

    to_the_end(4)
    # At most two blocks of batches: what the host draws for the next one is then part of the time.
    count = max(3, min(512, round(seconds / elapsed(lambda: to_the_end(1)))))
    took = elapsed(lambda: to_the_end(count))
    asked = []
    for _ in range(5):
        asked.append(elapsed(lambda: some(2)) / 2)
        wait(device)
    size = run.config.batch_size
    return {
        "steps": count,
        "ms_per_step": 1e3 * took / count,
        "host_ms": 1e3 * min(asked),
        "images_per_s": size * count / took,
    }


def repeated(order: Order, data: ImageDataset, captured: bool, deterministic: bool, steps: int = 20) -> dict[str, Any]:
    """Return whether a run taken twice has the same parameters, and those of the captured, deterministic run."""
    precision, steps = ("float32", 2) if order.tiny else ("bfloat16", steps)

    def end(**chosen: bool) -> str:
        config = wide_resnet(order, order.sizes.batches[0], learning_rate=0.05, precision=precision, **chosen)
        run = TrainingRun(config, data)
        for _ in range(steps):
            run.advance()
        run.settle()
        return digest(run.model)

    usual, *twice = end(), *(end(cuda_graph=captured, deterministic=deterministic) for _ in range(2))
    return {"same_twice": twice[0] == twice[1], "same_as_usual": twice[0] == usual, "steps": steps}


def digest(model: nn.Module) -> str:
    """Return a hash of all parameters, bit by bit."""
    found = hashlib.sha256()
    for parameter in model.parameters():
        found.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
