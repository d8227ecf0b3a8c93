"""Speed of training: ghost batch norm, a whole step against a bare PyTorch loop, and what the trainer adds to it.

    python benchmarks/bench_training.py

One thread on one core. Times are processor time of this process. Where two sides are compared they take turns, so that
load from others falls on both, and the least time of each counts. Images are random numbers of CIFAR-10's shape, and
the digits.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")})

import torch
import torch.nn.functional as F  # noqa: N812 — the name the field uses
from torch import nn

from noisysgd.validation import GhostBatchNorm2d, ImageDataset, TrainConfig, WideResNet, load_dataset
from noisysgd.validation.data.augmentation import augment
from noisysgd.validation.training.curve import LearningCurve
from noisysgd.validation.training.feed import STEPS_ON_CPU as AHEAD
from noisysgd.validation.training.inputs import resident, take
from noisysgd.validation.training.loop import TrainingRun

PAPER = TrainConfig(learning_rate=0.1, batch_size=64, momentum=0.9, steps=1000, depth=16, width=4, ghost_batch_size=64)


def cifar_like(examples: int = 512) -> ImageDataset:
    """Random images of 32×32 pixels in three colours."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(examples, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (examples,), generator=generator)
    return ImageDataset("random", images, labels, images[:64], labels[:64], classes=10, provenance="random numbers")


class PlainBlock(nn.Module):
    """A pre-activation block as PyTorch code commonly has it."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels_in), nn.BatchNorm2d(channels_out)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.short = (
            None if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One block."""
        a = F.relu(self.bn1(x))
        return (x if self.short is None else self.short(a)) + self.conv2(F.relu(self.bn2(self.conv1(a))))


class PlainWideResNet(nn.Module):
    """A Wide-ResNet with PyTorch's own layers and nothing else."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        sizes, blocks = (16, 16 * width, 32 * width, 64 * width), (depth - 4) // 6
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
        for stage in range(3):
            for block in range(blocks):
                incoming = sizes[stage] if block == 0 else sizes[stage + 1]
                layers.append(PlainBlock(incoming, sizes[stage + 1], 2 if stage > 0 and block == 0 else 1))
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(sizes[-1]), nn.ReLU())
        self.linear = nn.Linear(sizes[-1], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.linear(self.layers(x).mean((2, 3)))


def bare_loop(model: nn.Module, data: ImageDataset, size: int, layout: torch.memory_format) -> Callable[[], object]:
    """One step of the loop that everyone writes first: batches in memory, SGD with momentum and weight decay."""
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    batches = [
        (images.contiguous(memory_format=layout), labels)
        for images, labels in zip(data.train_images.split(size), data.train_labels.split(size), strict=True)
    ]
    count = 0

    def step() -> None:
        nonlocal count
        images, labels = batches[count % len(batches)]
        count += 1
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def seconds(repetitions: int, *steps: Callable[[], object]) -> list[float]:
    """Least processor time of each step, taken in turns."""
    times: list[list[float]] = [[] for _ in steps]
    for step in steps:
        step()  # allocates
    for _ in range(repetitions):
        for step, kept in zip(steps, times, strict=True):
            start = time.process_time()
            step()
            kept.append(time.process_time() - start)
    return [min(kept) for kept in times]


def without_ghosts(model: nn.Module) -> nn.Module:
    """The same network with PyTorch's batch norm over the whole batch."""
    for name, child in model.named_children():
        if isinstance(child, GhostBatchNorm2d):
            setattr(model, name, nn.BatchNorm2d(child.features))
        else:
            without_ghosts(child)
    return model


def ghost_batch_norm(repetitions: int) -> None:
    """Ghost batch norm against plain batch norm in a whole training step."""
    data = cifar_like()
    for size in (64, 128, 256):
        layout = torch.channels_last
        sides = WideResNet(16, 4), without_ghosts(WideResNet(16, 4))
        ghost, plain = seconds(repetitions, *(bare_loop(model, data, size, layout) for model in sides))
        print(
            f"ghost batch norm of 64 in a WRN-16-4 step, channels_last, B = {size:3d}: {1e3 * ghost:6.0f} ms, "
            f"batch norm {1e3 * plain:6.0f} ms: ratio {ghost / plain:.3f}"
        )


def whole_step(repetitions: int) -> None:
    """The trainer's step against a bare loop around a plain Wide-ResNet."""
    data = cifar_like()
    run = TrainingRun(PAPER, data)
    plain = bare_loop(PlainWideResNet(16, 4), data, 64, torch.contiguous_format)
    best = bare_loop(PlainWideResNet(16, 4), data, 64, torch.channels_last)
    ours, theirs, last = seconds(repetitions, run.advance, plain, best)
    print(
        f"WRN-16-4 step, B = 64: noisysgd {1e3 * ours:.0f} ms; bare loop {1e3 * theirs:.0f} ms, ratio "
        f"{ours / theirs:.3f}; bare loop in channels_last {1e3 * last:.0f} ms, ratio {ours / last:.3f}"
    )


def input_pipeline(repetitions: int) -> None:
    """Drawing a batch of CIFAR-10's 50 000 images, gathering it and augmenting it, against the step that it is for."""
    data = cifar_like(50_000)
    run = TrainingRun(replace(PAPER, augment=True, steps=10**6), data)
    layout = resident(data, "cpu").train_images
    count = 0

    def inputs() -> None:
        nonlocal count
        for _ in range(AHEAD):  # batches are drawn so many at a time
            batch = run._batch(count)
            augment(take(layout, batch), indices=batch, seed=0, step=count)
            count += 1

    (spent,) = seconds(repetitions, inputs)
    (step,) = seconds(repetitions, run.advance)
    print(
        f"WRN-16-4, B = 64, CIFAR-10's size, augmentation: step {1e3 * step:.0f} ms, its input "
        f"{1e3 * spent / AHEAD:.2f} ms: {spent / AHEAD / step:.2%}"
    )


def overhead(repetitions: int) -> None:
    """What a step of the small networks spends outside the forward and the backward pass: clocks around those two."""
    data = load_dataset("digits")
    for size in (16, 64, 256):
        config = replace(PAPER, depth=10, width=1, ghost_batch_size=16, batch_size=size, steps=10**6)
        run = TrainingRun(config, data)
        run.advance()
        steps, inside = [], []
        for _ in range(4 * repetitions):
            with passes_timed(run) as spent:
                start = time.process_time()
                for _ in range(AHEAD):  # batches are drawn so many at a time
                    run.advance()
                steps.append((time.process_time() - start) / AHEAD)
            inside.append(spent[0] / AHEAD)
        step, passes = (statistics.median(times) for times in (steps, inside))
        print(
            f"digits, WRN-10-1, B = {size:3d}: step {1e6 * step:6.0f} µs, its forward and backward passes "
            f"{1e6 * passes:6.0f} µs: {100 * (step - passes) / step:.1f} % of the step lies outside them"
        )


def recording(repetitions: int) -> None:
    """What the learning curve adds to an update, told at once or late: recording losses alone, against updates."""
    data = load_dataset("digits")
    config = replace(PAPER, depth=10, width=1, ghost_batch_size=16, batch_size=16, steps=10**6)
    loss, row, table = torch.tensor(2.0), torch.ones(1, dtype=torch.int64), torch.zeros(AHEAD + 1)

    def keep_at_once() -> None:
        curve = LearningCurve(10**6)
        for _ in range(AHEAD):
            curve.add([2.0])

    def keep_late() -> None:
        for _ in range(AHEAD):
            table.index_copy_(0, row, loss.reshape(1))  # as the watch does
        LearningCurve(10**6).add(table[1:].tolist())

    for late, name in ((False, "at once"), (True, "late")):
        run = TrainingRun(config, data, late=late)
        (spent,) = seconds(10 * repetitions, keep_late if late else keep_at_once)
        (step,) = seconds(30 * repetitions, run.advance)
        print(
            f"digits, WRN-10-1, B = 16, asked {name}: step {1e6 * step:.0f} µs, recording its loss "
            f"{1e6 * spent / AHEAD:.2f} µs: {spent / AHEAD / step:.2%}"
        )


@contextmanager
def passes_timed(run: TrainingRun) -> Iterator[list[float]]:
    """Within the block, the processor time of the network, the loss and its derivative is added up."""
    spent = [0.0]

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            start = time.process_time()
            try:
                return call(*arguments, **named)
            finally:
                spent[0] += time.process_time() - start

        return wrapper

    places = [(run, "_forward"), (F, "cross_entropy"), (torch.Tensor, "backward")]
    before = [getattr(place, name) for place, name in places]
    for (place, name), call in zip(places, before, strict=True):
        setattr(place, name, timed(call))
    try:
        yield spent
    finally:
        for (place, name), call in zip(places, before, strict=True):
            setattr(place, name, call)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="the small networks only")
    arguments = parser.parse_args()
    repetitions = arguments.repetitions
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    torch.set_num_threads(1)
    print(f"PyTorch {torch.__version__}, one thread, load {os.getloadavg()[0]:.1f}")
    overhead(repetitions)
    recording(repetitions)
    if not arguments.small:
        input_pipeline(repetitions)
        whole_step(repetitions)
        ghost_batch_norm(repetitions)


if __name__ == "__main__":
    main()
