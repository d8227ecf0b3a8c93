"""Networks small enough for dense Hessians, their data, and the dense Hessians: not by the library's own means."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from noisysgd.validation.data.datasets import ImageDataset
from noisysgd.validation.networks.ghost_batch_norm import GhostBatchNorm2d

GHOST = 4


def examples(count: int, channels: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, 4, 4, generator=generator), torch.randint(3, (count,), generator=generator)


def dataset(count: int = 48) -> ImageDataset:
    return ImageDataset("random", *examples(count), *examples(8, seed=1), classes=3, provenance="seeded normals")


def seeded(model: nn.Module, scale: float = 0.5) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, scale, generator=generator)
    return model


def small_network(*, ghost: bool = True, dropout: float = 0.0) -> nn.Module:
    norm = GhostBatchNorm2d(2, GHOST) if ghost else nn.Identity()
    layers = (nn.Conv2d(1, 2, 3), norm, nn.Softplus(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(8, 3))
    return seeded(nn.Sequential(*layers))


class SkipInit(nn.Module):
    """A residual network without normalisation: stem, one block scaled by a learned α, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3)
        self.branch = nn.Conv2d(2, 2, 3, padding=1)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.linear = nn.Linear(2, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        x = x + self.alpha * self.branch(F.softplus(x))
        logits: torch.Tensor = self.linear(F.softplus(x).mean(dim=(2, 3)))
        return logits


def skip_init(alpha: float = 0.3) -> SkipInit:
    model = seeded(SkipInit())
    assert isinstance(model, SkipInit)
    nn.init.constant_(model.alpha, alpha)
    return model


def flat_loss(model: nn.Module, images: torch.Tensor, labels: torch.Tensor):
    """The training-mode loss as a function of one flat vector, and that vector."""
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces = torch.split(flat, [shape.numel() for shape in shapes])
        state = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        value: torch.Tensor = F.cross_entropy(torch.func.functional_call(model, state, (images,)), labels)
        return value

    return loss, torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def dense_hessian(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Written with other tools than the library: a flat parameter vector and torch's dense Hessian."""
    hessian: torch.Tensor = torch.autograd.functional.hessian(*flat_loss(model, images, labels))
    return hessian


def flat_gradient(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The gradient of that loss. (Running averages may move, which torch.func forbids.)"""
    loss, start = flat_loss(model, images, labels)
    return torch.autograd.grad(loss(start.requires_grad_()), start)[0]
