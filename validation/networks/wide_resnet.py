"""Wide residual networks (Zagoruyko & Komodakis 2016, arXiv 1605.07146): the paper's main architecture."""

import torch
import torch.nn.functional as F  # noqa: N812 — the name the field uses
from torch import nn

from noisysgd.theory.common import checks
from noisysgd.validation.configuration import NORMALIZATIONS
from noisysgd.validation.networks.dropout import SeededDropout
from noisysgd.validation.networks.ghost_batch_norm import MOST_FEATURES, GhostBatchNorm2d

MOST_LAYERS = 10_000
"""Of a network: the deepest that anybody has trained have about as many."""
STEM_CHANNELS = 16
STAGE_CHANNELS = (16, 32, 64)
STAGE_STRIDES = (1, 2, 2)


class PreActivationBlock(nn.Module):
    """A residual block: two 3×3 convolutions, each after normalisation and ReLU, added to a shortcut.

    With a = relu(norm(x)), the block is ``shortcut + conv(relu(norm(conv(a))))``. The shortcut is x itself, or, where
    the number of channels or the resolution changes, a strided 1×1 convolution of a (not of x).

    Parameters
    ----------
    channels_in, channels_out : int
        Channels of the input and the output.
    stride : int
        Stride of the first convolution and of the projection.
    ghost_batch_size : int
        Examples per normalisation group.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, ghost_batch_size: int) -> None:
        super().__init__()
        # The convolutions need no bias: the normalisation after them would subtract it again.
        self.norm1 = GhostBatchNorm2d(channels_in, ghost_batch_size)
        self.conv1 = _convolution(channels_in, channels_out, 3, stride)
        self.norm2 = GhostBatchNorm2d(channels_out, ghost_batch_size)
        self.conv2 = _convolution(channels_out, channels_out, 3, 1)
        projects = channels_in != channels_out or stride != 1
        self.shortcut = _convolution(channels_in, channels_out, 1, stride) if projects else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, channels_in, H, W) to (B, channels_out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        activated = F.relu(self.norm1(x))
        branch: torch.Tensor = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        shortcut: torch.Tensor = x if self.shortcut is None else self.shortcut(activated)
        return shortcut + branch


class SkipInitBlock(nn.Module):
    """A residual block without normalisation: ``shortcut + α · conv(relu(conv(relu(x))))``; α is learned, from 0.

    Source: De & Smith (2020), arXiv 2002.10444. Every convolution has a bias. Initially the block is its shortcut, and
    the gradient of the branch's convolutions is exactly zero, so that α moves first.

    Parameters
    ----------
    channels_in, channels_out : int
        Channels of the input and the output.
    stride : int
        Stride of the first convolution and of the projection, which is a 1×1 convolution of relu(x).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(channels_in, channels_out, 3, stride, bias=True)
        self.conv2 = _convolution(channels_out, channels_out, 3, 1, bias=True)
        projects = channels_in != channels_out or stride != 1
        self.shortcut = _convolution(channels_in, channels_out, 1, stride, bias=True) if projects else None
        # From α = 0 a network of any depth begins as its shortcuts, which is what normalisation does approximately.
        self.branch_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, channels_in, H, W) to (B, channels_out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        activated = F.relu(x)
        branch: torch.Tensor = self.conv2(F.relu(self.conv1(activated)))
        shortcut: torch.Tensor = x if self.shortcut is None else self.shortcut(activated)
        return shortcut + self.branch_scale * branch


class WideResNet(nn.Module):
    """A pre-activation Wide-ResNet-`depth`-`width`, with ghost batch normalisation or with SkipInit.

    A 3×3 stem to 16 channels (not widened); three stages of n = (depth − 4)/6 blocks with 16, 32 and 64 times `width`
    channels and strides 1, 2, 2; normalisation, ReLU, global average pooling, dropout and a linear layer to the logits.
    The first block of a stage projects its shortcut wherever channels or stride change; in the first stage that is when
    ``width > 1``. Convolutions pad symmetrically. Images may have any size.

    ``"ghost_batch"``: blocks are :class:`PreActivationBlock`, and convolutions carry no bias. ``"skipinit"``: there is
    no normalisation anywhere; blocks are :class:`SkipInitBlock`, and every convolution, the stem's included, has a
    bias. With dropout that is the paper's "Regularized SkipInit".

    Initialisation: convolutions and the linear weight are normal with variance 2/fan_in (He et al. 2015), biases are
    zero, as in the Wide-ResNet authors' PyTorch code; normalisation scales start at one (theirs are uniform on [0, 1])
    and shifts at zero. The draw is a pure function of `seed`; no global generator is read or moved. Parameters are
    stored ``channels_last``, which is the faster layout for this network on both CPUs and GPUs.

    Parameters
    ----------
    depth : int
        6n + 4 with n ≥ 1.
    width : int
        Widening factor.
    classes : int
        Number of logits.
    channels : int
        Channels of the input images.
    normalization : {"ghost_batch", "skipinit"}
        The kind of blocks, as described above.
    ghost_batch_size : int
        Examples per normalisation group; without effect under "skipinit".
    dropout : float
        Probability of dropping a pooled feature before the linear layer, while training.
    seed : int
        Seed of the initialisation.

    Raises
    ------
    ValueError
        For a depth that is not 6n + 4, an unknown normalisation, a probability outside [0, 1), or sizes below one.

    Examples
    --------
    >>> model = WideResNet(depth=16, width=4)
    >>> sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    2748890
    >>> import torch
    >>> WideResNet(depth=10, width=1, channels=1, ghost_batch_size=2)(torch.zeros(4, 1, 8, 8)).shape
    torch.Size([4, 10])
    >>> WideResNet(depth=10, width=1, channels=1, normalization="skipinit")(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 10])
    """

    def __init__(
        self,
        depth: int = 16,
        width: int = 4,
        classes: int = 10,
        channels: int = 3,
        normalization: str = "ghost_batch",
        ghost_batch_size: int = 64,
        *,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        blocks = _blocks_per_stage(depth)
        width, classes, channels = (
            checks.integer(name, value, 1, maximum=MOST_FEATURES, remedy="Sizes are positive whole numbers.")
            for name, value in (("width", width), ("classes", classes), ("channels", channels))
        )
        seed = checks.integer("seed", seed, 0, remedy="Pass a non-negative integer.")
        checks.require(seed < 2**63, "seed", "a seed < 2⁶³", seed, "Take it modulo 2**63.")
        self.normalization = checks.one_of("normalization", normalization, NORMALIZATIONS)
        normalizes = normalization == "ghost_batch"
        self.depth, self.width = depth, width
        self.stem = _convolution(channels, STEM_CHANNELS, 3, 1, bias=not normalizes)
        layers: list[nn.Module] = []
        incoming = STEM_CHANNELS
        # Only the first block of a stage changes the resolution; blocks with other channels project their shortcut.
        for stage_channels, stage_stride in zip(STAGE_CHANNELS, STAGE_STRIDES, strict=True):
            for block in range(blocks):
                shape = incoming, stage_channels * width, stage_stride if block == 0 else 1
                layers.append(PreActivationBlock(*shape, ghost_batch_size) if normalizes else SkipInitBlock(*shape))
                incoming = stage_channels * width
        self.blocks = nn.Sequential(*layers)
        # Pre-activation blocks end in a sum that is not normalised: one more normalisation comes before the logits.
        self.norm = GhostBatchNorm2d(incoming, ghost_batch_size) if normalizes else nn.Identity()
        self.dropout = SeededDropout(incoming, dropout)
        self.linear = nn.Linear(incoming, classes, device="meta").to_empty(device="cpu")
        _initialise(self, torch.Generator().manual_seed(seed))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of images (B, channels, H, W)."""
        features = F.relu(self.norm(self.blocks(self.stem(images))))
        logits: torch.Tensor = self.linear(self.dropout(features.mean(dim=(2, 3))))
        return logits


def _blocks_per_stage(depth: int) -> int:
    """The n of a depth 6n + 4: two convolutions in each of 3n blocks, the stem and a projection for each stage."""
    depth = checks.integer("depth", depth, 10, maximum=MOST_LAYERS, remedy="The smallest network has depth 10.")
    checks.require((depth - 4) % 6 == 0, "depth", "6n + 4 with n ≥ 1", depth, "Use 10, 16, 22, 28, 40 and so on.")
    return (depth - 4) // 6


def _convolution(channels_in: int, channels_out: int, size: int, stride: int, *, bias: bool = False) -> nn.Conv2d:
    """A convolution with memory for its weights, which `_initialise` sets."""
    # Made on the meta device: elsewhere the constructor would draw weights from torch's global generator.
    convolution = nn.Conv2d(
        channels_in, channels_out, size, stride=stride, padding=size // 2, bias=bias, device="meta"
    )  # fmt: skip
    return convolution.to_empty(device="cpu")


def _initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw all convolution and linear weights, in the order of ``model.modules()``, and set their biases to zero."""
    with torch.no_grad():
        for module in model.modules():
            # Variance 2/fan_in keeps the size of activations through a ReLU (He et al. 2015).
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            if isinstance(module, nn.Conv2d):
                # By .to, since .contiguous leaves weights with one input channel as they are: such strides count as
                # channels_last already, and the convolution, and all that follow, would take the other layout.
                module.weight.data = module.weight.data.to(memory_format=torch.channels_last)
