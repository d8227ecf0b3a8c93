"""The table of costs.md: what the paper's table 1 and figures 1 to 3 would cost."""

import math

from noisysgd.validation.sweeps.cost import CostModel
from noisysgd.validation.sweeps.paper import MICRO_BATCH, PAPER

FLOPS = 40e12
"""Assumed: floating-point operations per second that training reaches on one GPU."""
SECONDS_PER_STEP = 0.008
"""Assumed: time per pass of a batch, or of a piece of it, whatever its size; mostly for launching kernels."""


def wide_resnet_macs(depth: int = 16, width: int = 4, classes: int = 10) -> int:
    """Multiplications of one forward pass of a Wide-ResNet on a 3×32×32 image: convolutions and the last layer."""
    blocks, channels, total = (depth - 4) // 6, 16, 9 * 3 * 16 * 32**2
    for stage, side in enumerate((32, 16, 8)):
        out = 16 * width * 2**stage
        total += side**2 * out * (9 * channels + channels + 9 * out)  # the first block, with its projection
        total += (blocks - 1) * side**2 * 2 * 9 * out * out
        channels = out
    return total + channels * classes


def model() -> CostModel:
    """Two operations per multiplication; the backward pass costs two forward passes."""
    each = 3 * 2 * wide_resnet_macs() / FLOPS
    return CostModel(seconds_per_step=SECONDS_PER_STEP, seconds_per_example=each, source="assumed")


def table() -> str:
    """Markdown: runs, updates, passes, examples and GPU-hours of every experiment."""
    cost = model()
    lines = ["| experiment | runs | updates | passes | examples | GPU-hours |", "|---|---|---|---|---|---|"]
    for name, paper in PAPER.items():
        passes, examples = paper.total_passes(MICRO_BATCH), paper.total_examples
        hours = (passes * cost.seconds_per_step + examples * cost.seconds_per_example) / 3600
        numbers = f"{paper.total_runs} | {paper.total_steps:.3g} | {passes:.3g} | {examples:.3g} | {hours:,.0f}"
        lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines)


def learning_rate_hours(batch_size: int) -> float:
    """GPU-hours that one more learning rate costs in table 1: all its runs at one batch size."""
    paper = PAPER["table 1"]
    passes = math.ceil(batch_size / MICRO_BATCH)
    steps = int(paper.budgets[0])
    return paper.runs * model().seconds(steps=steps, batch_size=batch_size, passes=passes) / 3600


if __name__ == "__main__":
    print(f"{wide_resnet_macs():,} multiplications per image; {model().seconds_per_example * 1e6:.1f} µs per example\n")
    print(table())
    print("\none more learning rate in table 1, in GPU-hours:")
    print(", ".join(f"{learning_rate_hours(size):.1f} at B = {size}" for size in PAPER["table 1"].batch_sizes))
