"""The table of costs.md: what the paper's table 1 and figures 1 to 3 would cost."""

from noisysgd.validation.cost import CostModel
from noisysgd.validation.presets import PAPER

FLOPS = 40e12
"""Assumed: floating-point operations per second that training reaches on one GPU."""
SECONDS_PER_STEP = 0.008
"""Assumed: time per update that does not depend on the batch, mostly for launching kernels."""


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
    """Markdown: runs, updates, examples and GPU-hours of every experiment."""
    cost, lines = model(), ["| experiment | runs | updates | examples | GPU-hours |", "|---|---|---|---|---|"]
    for name, paper in PAPER.items():
        seconds = paper.total_steps * cost.seconds_per_step + paper.total_examples * cost.seconds_per_example
        numbers = f"{paper.total_runs} | {paper.total_steps:.3g} | {paper.total_examples:.3g} | {seconds / 3600:,.0f}"
        lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"{wide_resnet_macs():,} multiplications per image; {model().seconds_per_example * 1e6:.1f} µs per example\n")
    print(table())
