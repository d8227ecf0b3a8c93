"""Ghost batch normalisation: batch norm whose statistics never see more than a fixed number of examples.

Hoffer, Hubara & Soudry (2017), "Train longer, generalize better", arXiv 1705.08741; the paper uses groups of 64.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812 — the name the field uses
from torch import nn

from noisysgd.theory import checks

TRACKING = "track_running_stats"  # torch's own normalisation layers have a flag of this name and meaning


class GhostBatchNorm2d(nn.Module):
    """Normalise every group of `ghost_batch_size` consecutive examples by its own mean and variance.

    In training mode, for each group and channel, ``y = weight · (x − μ) / √(σ² + eps) + bias`` with the group's mean μ
    and biased variance σ². Every forward pass in training mode updates the running averages once, with the mean over
    groups of μ and of the unbiased variance, so the averaging horizon does not depend on the batch size. In evaluation
    mode the running averages replace the group's statistics and any batch size will do.

    The layout of the input (contiguous or ``channels_last``) is kept, and the layer can be differentiated twice.

    Parameters
    ----------
    features : int
        Number of channels C of the (B, C, H, W) input.
    ghost_batch_size : int
        Examples per group; B must be a multiple of it in training mode.
    momentum : float
        Weight of the newest statistics in the running averages, 0 < momentum ≤ 1.
    eps : float
        Added to the variance, in the units of the variance.

    Attributes
    ----------
    weight, bias : torch.nn.Parameter
        Shape (C,); start at one and zero.
    running_mean, running_var : torch.Tensor
        Buffers of shape (C,); start at zero and one.
    track_running_stats : bool
        Whether training-mode passes update the running averages; see `frozen_running_statistics`.

    Raises
    ------
    ValueError
        For arguments out of range, and in training mode for a batch that is not a whole number of groups.

    Examples
    --------
    >>> import torch
    >>> layer = GhostBatchNorm2d(2, ghost_batch_size=4)
    >>> images = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    >>> normalised = layer(images)
    >>> bool(normalised[:4].mean(dim=(0, 2, 3)).abs().max() < 1e-6)
    True
    >>> layer(images[:6])
    Traceback (most recent call last):
    ValueError: batch: expected a multiple of ghost_batch_size=4 examples, got 6. Choose a divisible batch size.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, features: int, ghost_batch_size: int = 64, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.features = checks.integer("features", features, 1, remedy="Pass the number of channels.")
        remedy = "The paper uses 64 examples."
        self.ghost_batch_size = checks.integer("ghost_batch_size", ghost_batch_size, 1, remedy=remedy)
        checks.require(0 < momentum <= 1, "momentum", "0 < momentum ≤ 1", momentum, "torch's default is 0.1.")
        checks.require(eps > 0, "eps", "a positive number", eps, "torch's default is 1e-5.")
        self.momentum = float(momentum)
        self.eps = float(eps)
        self.track_running_stats = True
        self.weight = nn.Parameter(torch.ones(self.features))
        self.bias = nn.Parameter(torch.zeros(self.features))
        self.register_buffer("running_mean", torch.zeros(self.features))
        self.register_buffer("running_var", torch.ones(self.features))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise images of shape (B, C, H, W)."""
        if images.ndim != 4 or images.shape[1] != self.features:
            expected = f"images of shape (B, {self.features}, H, W)"
            checks.require(False, "images", expected, tuple(images.shape), "Match the number of channels.")
        if not self.training:
            return F.batch_norm(images, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        groups, rest = divmod(len(images), self.ghost_batch_size)
        if rest or not groups:
            expected = f"a multiple of ghost_batch_size={self.ghost_batch_size} examples"
            checks.require(False, "batch", expected, len(images), "Choose a divisible batch size.")
        return self._native(images) if groups == 1 else self._folded(images, groups)

    def extra_repr(self) -> str:
        """Sizes and constants, for ``print(model)``."""
        return f"{self.features}, ghost_batch_size={self.ghost_batch_size}, momentum={self.momentum}, eps={self.eps}"

    def _native(self, images: torch.Tensor) -> torch.Tensor:
        mean, variance = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        return F.batch_norm(images, mean, variance, self.weight, self.bias, True, self.momentum, self.eps)

    def _folded(self, images: torch.Tensor, groups: int) -> torch.Tensor:
        # Groups folded into the channel axis: one native call instead of one per group. A loop over groups is slower
        # for small images, and nearly twice as slow when differentiated twice.
        batch, channels, height, width = images.shape
        as_given = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else None
        pixels = self.ghost_batch_size * height * width
        rows = images.permute(0, 2, 3, 1).reshape(groups, pixels, channels).transpose(0, 1)
        # With momentum 1 the "running" averages are those of this batch, unbiased variance included.
        mean = images.new_zeros(groups * channels) if self.track_running_stats else None
        variance = torch.zeros_like(mean) if mean is not None else None
        weight, bias = self.weight.repeat(groups), self.bias.repeat(groups)
        rows = F.batch_norm(
            rows.reshape(pixels, groups * channels), mean, variance, weight, bias, True, 1.0, self.eps
        )  # fmt: skip
        if mean is not None and variance is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean.view(groups, channels).mean(0), self.momentum)
                self.running_var.lerp_(variance.view(groups, channels).mean(0), self.momentum)
        normalised = rows.view(pixels, groups, channels).transpose(0, 1).reshape(batch, height, width, channels)
        normalised = normalised.permute(0, 3, 1, 2)
        return normalised if as_given is not None else normalised.contiguous()


@contextmanager
def frozen_running_statistics(model: nn.Module) -> Iterator[None]:
    """Within the ``with`` block, no normalisation layer of `model` updates its running averages.

    Training-mode outputs do not depend on the running averages, so measurements in training mode can leave them alone.
    Acts on every submodule with a ``track_running_stats`` flag: ours and torch's own batch and instance norms.

    Parameters
    ----------
    model : torch.nn.Module
        Any model; its flags are put back on leaving, also after an exception.

    Examples
    --------
    >>> import torch
    >>> layer = GhostBatchNorm2d(1, ghost_batch_size=2)
    >>> with frozen_running_statistics(layer):
    ...     _ = layer(torch.full((4, 1, 2, 2), 5.0))
    >>> layer.running_mean.item()
    0.0
    """
    # setattr, because torch types every attribute of a module as a tensor or a module.
    flags = [(module, getattr(module, TRACKING)) for module in model.modules() if hasattr(module, TRACKING)]
    try:
        for module, _ in flags:
            setattr(module, TRACKING, False)
        yield
    finally:
        for module, flag in flags:
            setattr(module, TRACKING, flag)
