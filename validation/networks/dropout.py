"""Dropout whose masks are a function of (seed, step, place in the batch), not of a generator's position.

An interrupted run thus goes on with the masks it would have had, and cutting a batch into micro-batches changes none.
"""

import torch
from torch import nn

from noisysgd.simulators.randomness.stream import Purpose, random_words
from noisysgd.theory.common import checks


class SeededDropout(nn.Dropout):
    """Dropout of features (B, `features`) by masks that :func:`draw_masks` provides for a whole batch beforehand.

    Each feature is zeroed with probability `p` and scaled by 1/(1−p) otherwise, while training. Micro-batches take
    their rows of the batch's mask. If no masks were drawn, the layer is torch's own dropout, from the global generator.

    Parameters
    ----------
    features : int
        Number of features per example.
    p : float
        Probability of dropping, 0 ≤ p < 1.

    Raises
    ------
    ValueError
        For a probability outside [0, 1).

    Examples
    --------
    >>> import torch
    >>> layer = SeededDropout(4, p=0.5)
    >>> draw_masks(layer, seed=0, step=3, batch_size=2)
    >>> first = layer(torch.ones(2, 4))
    >>> draw_masks(layer, seed=0, step=3, batch_size=2)
    >>> bool((layer(torch.ones(2, 4)) == first).all())
    True
    """

    def __init__(self, features: int, p: float = 0.0) -> None:
        probability = checks.scalar("dropout", p)
        checks.require(0 <= probability < 1, "dropout", "0 ≤ probability < 1", p, "Use 0 for no dropout.")
        super().__init__(probability)
        self.features = features
        self.masks: torch.Tensor | None = None
        self.rows: torch.Tensor | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Features (B, `features`), some of them dropped."""
        if self.rows is None or not self.training:
            return super().forward(input)
        return input * self.rows


def has_dropout(model: nn.Module) -> bool:
    """Whether there is a :class:`SeededDropout` that drops something."""
    return bool(_layers(model))


def draw_masks(model: nn.Module, *, seed: int, step: int, batch_size: int, device: torch.device | str = "cpu") -> None:
    """Draw the masks of one batch for every :class:`SeededDropout` of `model`, each layer having its own.

    The next forward pass uses all rows; call :func:`take_rows` before passes of a part of the batch.
    """
    for number, layer in enumerate(_layers(model)):
        low = int(random_words(seed, Purpose.DROPOUT, replica=number, step=step, count=1)[0] >> 1)
        # A generator of its own on the device: uniform numbers of a large batch are slow to send there.
        generator = torch.Generator(device).manual_seed(low)
        uniform = torch.rand(batch_size, layer.features, generator=generator, device=device)
        layer.masks = (uniform >= layer.p).to(torch.float32) / (1.0 - layer.p)
        layer.rows = layer.masks


def take_rows(model: nn.Module, rows: slice) -> None:
    """Let the next forward pass of `model` use the masks of these rows of the batch."""
    for layer in _layers(model):
        if layer.masks is not None:
            layer.rows = layer.masks[rows]


def forget_masks(model: nn.Module) -> None:
    """Remove the masks, so that the layers are torch's own dropout again."""
    for layer in _layers(model):
        layer.masks = layer.rows = None


def _layers(model: nn.Module) -> list[SeededDropout]:
    return [module for module in model.modules() if isinstance(module, SeededDropout) and module.p > 0]
