"""Ghost batch normalisation: batch norm whose statistics never see more than a fixed number of examples.

Hoffer, Hubara & Soudry (2017), "Train longer, generalize better", arXiv 1705.08741; the paper uses groups of 64.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812 — the name the field uses
from torch import nn

from noisysgd.theory.common import checks
from noisysgd.validation.networks.torch_globals import kept_generators

LOOP_FROM = 2**15
"""Size of a group, in numbers, from which on a CPU one call per group is faster than one call for all groups."""

TRACKING = "track_running_stats"  # torch's own normalisation layers have a flag of this name and meaning

MOST_FEATURES = 2**24
"""Channels of a layer: far beyond any network, and few enough for memory."""


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
        self.features = checks.integer(
            "features", features, 1, maximum=MOST_FEATURES, remedy="Pass the number of channels."
        )
        remedy = "The paper uses 64 examples."
        self.ghost_batch_size = checks.integer("ghost_batch_size", ghost_batch_size, 1, remedy=remedy)
        self.momentum = checks.interval("momentum", momentum, 0.0, 1.0, remedy="torch's default is 0.1.")
        self.eps = checks.interval("eps", eps, 0.0, float("inf"), remedy="torch's default is 1e-5.")
        self.track_running_stats = True
        # What `one_update` accumulates. In tensors, because compiled code would be compiled again for every length of a
        # list or value of a number.
        self._sums: torch.Tensor | None = None
        self._groups: torch.Tensor | None = None
        self.weight = nn.Parameter(torch.ones(self.features))
        self.bias = nn.Parameter(torch.zeros(self.features))
        self.register_buffer("running_mean", torch.zeros(self.features))
        self.register_buffer("running_var", torch.ones(self.features))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise images of shape (B, C, H, W)."""
        # Messages are made only where they are needed: this runs for every layer and pass.
        if images.ndim != 4 or images.shape[1] != self.features:
            expected = f"images of shape (B, {self.features}, H, W)"
            checks.require(False, "images", expected, tuple(images.shape), "Match the number of channels.")
        if not self.training:
            return F.batch_norm(images, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        groups, rest = divmod(len(images), self.ghost_batch_size)
        if rest or not groups:
            expected = f"a multiple of ghost_batch_size={self.ghost_batch_size} examples"
            checks.require(False, "batch", expected, len(images), "Choose a divisible batch size.")
        if groups == 1:
            return self._native(images)
        # One call for all groups copies the images twice, which shows on a CPU where groups are large. On a GPU the
        # calls themselves would be the cost: with one per group, WRN-16-4 launches thousands of kernels at B = 4096.
        looped = images.device.type == "cpu" and images.numel() >= groups * LOOP_FROM
        return self._looped(images, groups) if looped else self._folded(images, groups)

    def extra_repr(self) -> str:
        """Sizes and constants, for ``print(model)``."""
        return f"{self.features}, ghost_batch_size={self.ghost_batch_size}, momentum={self.momentum}, eps={self.eps}"

    def _native(self, images: torch.Tensor) -> torch.Tensor:
        """A single group: torch's batch norm as it is, unless its statistics are being accumulated."""
        if not self.track_running_stats:
            return F.batch_norm(images, None, None, self.weight, self.bias, True, self.momentum, self.eps)
        if self._sums is None:
            running = self.running_mean, self.running_var
            return F.batch_norm(images, *running, self.weight, self.bias, True, self.momentum, self.eps)
        return self._looped(images, 1)

    def _looped(self, images: torch.Tensor, groups: int) -> torch.Tensor:
        """One native call per group, on a view: this copies the images once in each direction, and folding twice."""
        mean, variance = self._statistics(groups)
        results = []
        for number, group in enumerate(torch.split(images, self.ghost_batch_size)):
            own_mean = None if mean is None else mean[number]
            own_variance = None if variance is None else variance[number]
            results.append(F.batch_norm(group, own_mean, own_variance, self.weight, self.bias, True, 1.0, self.eps))
        self._update(mean, variance)
        return torch.cat(results) if groups > 1 else results[0]

    def _folded(self, images: torch.Tensor, groups: int) -> torch.Tensor:
        """One native call for all groups, folded into the channel axis.

        For small images a loop over groups is slower, and nearly twice as slow when differentiated twice.
        """
        batch, channels, height, width = images.shape
        as_given = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else None
        pixels = self.ghost_batch_size * height * width
        # Batch norm normalises each column over its rows: a column for every (group, channel), a row for every pixel of
        # a group. In channels_last layout only the transposition of groups and pixels moves data.
        rows = images.permute(0, 2, 3, 1).reshape(groups, pixels, channels).transpose(0, 1)
        mean, variance = self._statistics(groups)
        own_mean = None if mean is None else mean.view(-1)
        own_variance = None if variance is None else variance.view(-1)
        weight, bias = self.weight.repeat(groups), self.bias.repeat(groups)
        rows = rows.reshape(pixels, groups * channels)
        rows = F.batch_norm(rows, own_mean, own_variance, weight, bias, True, 1.0, self.eps)
        self._update(mean, variance)
        normalised = rows.view(pixels, groups, channels).transpose(0, 1).reshape(batch, height, width, channels)
        normalised = normalised.permute(0, 3, 1, 2)
        return normalised if as_given is not None else normalised.contiguous()

    def _statistics(self, groups: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Tensors for batch norm to put the mean and unbiased variance of each group into, if they are wanted.

        It writes them as its "running" averages, which with momentum 1 are those of the group at hand.
        """
        if not self.track_running_stats:
            return None, None
        mean = self.running_mean.new_zeros(groups, self.features)
        return mean, torch.zeros_like(mean)

    @torch.no_grad()
    def _update(self, mean: torch.Tensor | None, variance: torch.Tensor | None) -> None:
        """Move the running averages by the groups' statistics, or accumulate these inside of `one_update`."""
        if mean is None or variance is None:
            return
        if self._sums is not None and self._groups is not None:
            self._sums += torch.stack([mean, variance]).sum(1, dtype=self._sums.dtype)
            self._groups += len(mean)
        else:
            self.running_mean.lerp_(mean.mean(0), self.momentum)
            self.running_var.lerp_(variance.mean(0), self.momentum)


@contextmanager
def one_update(model: nn.Module, *, substeps: int = 1) -> Iterator[None]:
    """Within the ``with`` block, all forward passes of `model` count as one for its running averages.

    This is for a batch that is passed in pieces of whole ghost batches: the running averages are updated once, on
    leaving, with the mean over the groups of all pieces, as if the batch had been whole. Nothing is updated if the
    block raises. Only :class:`GhostBatchNorm2d` layers are affected.

    Parameters
    ----------
    model : torch.nn.Module
    substeps : int
        Number of such updates that together weigh as much as a single one does otherwise: the newest statistics get
        the weight 1 − (1 − momentum)^(1/substeps).

    Examples
    --------
    >>> import torch
    >>> images = torch.arange(8.0).view(8, 1, 1, 1)
    >>> whole, pieces = GhostBatchNorm2d(1, ghost_batch_size=2), GhostBatchNorm2d(1, ghost_batch_size=2)
    >>> _ = whole(images)
    >>> with one_update(pieces):
    ...     _ = pieces(images[:2]), pieces(images[2:])
    >>> bool(pieces.running_mean == whole.running_mean)
    True
    """
    layers = [module for module in model.modules() if isinstance(module, GhostBatchNorm2d)]
    try:
        for layer in layers:
            layer._sums = layer.running_mean.new_zeros(2, layer.features, dtype=torch.float64)
            layer._groups = layer.running_mean.new_zeros((), dtype=torch.float64)
        yield
        for layer in layers:
            assert layer._sums is not None
            assert layer._groups is not None
            weight = layer.momentum if substeps == 1 else 1.0 - (1.0 - layer.momentum) ** (1.0 / substeps)
            means = (layer._sums / layer._groups.clamp(min=1)).to(layer.running_mean.dtype)
            for running, mean in zip((layer.running_mean, layer.running_var), means, strict=True):
                # A layer that no pass went through, or whose averages are frozen, keeps what it has. No branch on the
                # number of groups, which on a GPU would wait for it.
                running.lerp_(torch.where(layer._groups > 0, mean, running), weight)
    finally:
        for layer in layers:
            layer._sums = layer._groups = None


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


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Within the ``with`` block, `model` trains without dropout; running averages and global generators do not change.

    Dropout is switched off in dropout modules and inside of torch's attention and recurrent layers. A network that
    calls functional dropout stays random: see :func:`~noisysgd.validation.measurement.repeatability.check_loss`.
    """
    flags = [(module, module.training) for module in model.modules()]
    inside = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention | nn.RNNBase)]
    rates = [(module, module.dropout) for module in inside]
    try:
        with kept_generators({p.device for p in model.parameters()}), frozen_running_statistics(model):
            model.train()
            for module in model.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.eval()
            for layer in inside:
                layer.dropout = 0.0
            yield
    finally:
        for module, flag in flags:
            module.training = flag
        for layer, rate in rates:
            layer.dropout = rate
