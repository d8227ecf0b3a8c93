"""How much is measured: at full size, and at the toy size of ``--tiny``."""

from dataclasses import dataclass

KINDS = ("diagonal", "full")
"""Noise of the quadratics whose bits are compared."""
PRECISIONS = ("float64", "float32", "mixed")
"""Precisions of the simulators."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured, at full size by default."""

    modes: int = 64
    """Modes of a simulated quadratic."""
    bits_steps: int = 300
    """Steps of the ensembles whose bits are compared."""
    bits_replicas: int = 2000
    """Their replicas."""
    replicas: tuple[int, ...] = (2**10, 2**13, 2**16, 2**19)
    """Replicas of the ensembles that are timed."""
    configurations: tuple[int, ...] = (1, 4, 16)
    """Numbers of configurations that are simulated at once."""
    simulator_seconds: float = 1.0
    """About how long one ensemble is timed."""
    normals: int = 2**27
    """Numbers in the array that libraries fill."""
    images: int = 50_000
    """Random images to train on."""
    side: int = 32
    """Pixels in a row of an image."""
    depth: int = 16
    """Depth of the Wide-ResNet."""
    width: int = 4
    """Its width."""
    batches: tuple[int, ...] = (64, 256, 1024, 4096)
    """Batch sizes, of which the paper's ghost batch of 64 is the smallest."""
    update_seconds: float = 1.2
    """About how long one kind of update is timed."""
    processes: tuple[int, ...] = (1, 4, 16)
    """Numbers of small runs side by side."""
    process_seconds: float = 3.0
    """How long they are timed."""
    small_examples: int = 256
    """Examples behind the Hessian of the small network."""
    curvature_examples: int = 2048
    """Examples behind that of the Wide-ResNet."""
    curvature_steps: int = 300
    """Updates before the second measurement of the Wide-ResNet."""
    octaves: tuple[int, ...] = (0, 1, -1, 2, -2, 3, -3)
    """Learning rates of the campaign around the middle of each curve, in octaves, in the order they are run in."""
    workers: int = 4
    """Runs of the campaign side by side."""


FULL = Sizes()
TINY = Sizes(
    modes=8,
    bits_steps=20,
    bits_replicas=300,
    replicas=(128, 256),
    configurations=(1, 2),
    simulator_seconds=0.02,
    normals=2**16,
    images=512,
    side=8,
    depth=10,
    width=1,
    batches=(64, 128),
    update_seconds=0.05,
    processes=(1, 2),
    process_seconds=0.1,
    small_examples=64,
    curvature_examples=64,
    curvature_steps=3,
    octaves=(0, 1),
    workers=1,
)
