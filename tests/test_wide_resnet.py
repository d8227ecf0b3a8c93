import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from noisysgd.validation.wide_resnet import WideResNet


def digits_like(batch: int, channels: int = 1, size: int = 8) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("depth", "width", "classes", "expected"),
    [(16, 4, 10, 2_748_890), (28, 10, 10, 36_479_194), (16, 4, 100, 2_772_020), (28, 10, 100, 36_536_884)],
)
def test_trainable_parameter_counts_are_the_published_ones(depth: int, width: int, classes: int, expected: int) -> None:
    model = WideResNet(depth, width, classes)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == expected


def read_forward(state: dict[str, torch.Tensor], x: torch.Tensor, blocks: int, ghost: int) -> torch.Tensor:
    """The architecture of the literature, written out a second time from the state dict alone."""

    def norm_relu(x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        groups = [F.batch_norm(group, None, None, weight, bias, training=True) for group in x.split(ghost)]
        return torch.cat(groups).clamp(min=0)

    x = F.conv2d(x, state["stem.weight"], padding=1)
    for number in range(3 * blocks):
        name = f"blocks.{number}"
        stride = 2 if number in (blocks, 2 * blocks) else 1
        a = norm_relu(x, f"{name}.norm1")
        y = F.conv2d(a, state[f"{name}.conv1.weight"], stride=stride, padding=1)
        y = F.conv2d(norm_relu(y, f"{name}.norm2"), state[f"{name}.conv2.weight"], padding=1)
        projection = state.get(f"{name}.shortcut.weight")
        assert (projection is not None) == (y.shape != x.shape)
        x = y + (x if projection is None else F.conv2d(a, projection, stride=stride))
    return F.linear(norm_relu(x, "norm").mean(dim=(2, 3)), state["linear.weight"], state["linear.bias"])


@pytest.mark.parametrize(("depth", "width", "channels", "size"), [(10, 1, 1, 8), (16, 1, 1, 8), (16, 2, 3, 16)])
@pytest.mark.parametrize("batch", [4, 12])
def test_the_forward_pass_is_the_architecture(depth: int, width: int, channels: int, size: int, batch: int) -> None:
    model = WideResNet(depth, width, 7, channels, ghost_batch_size=4, seed=3).double()
    with torch.no_grad():  # scales and shifts away from their initial values, which would hide mistakes
        for number, parameter in enumerate(model.parameters()):
            parameter += 0.1 * torch.cos(torch.arange(parameter.numel(), dtype=torch.float64) + number).view_as(
                parameter
            )
    x = digits_like(batch, channels, size).double()
    torch.testing.assert_close(model(x), read_forward(dict(model.state_dict()), x, (depth - 4) // 6, ghost=4))


def test_the_projection_takes_the_activated_input_also_in_the_first_stage() -> None:
    assert WideResNet(10, 1).blocks[0].shortcut is None
    assert isinstance(WideResNet(10, 2).blocks[0].shortcut, nn.Conv2d)


def test_the_initialisation_is_a_function_of_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = WideResNet(10, 1, seed=1), WideResNet(10, 1, seed=1), WideResNet(10, 1, seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    pairs = list(zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.stem.weight, other.stem.weight)


def test_weights_are_normal_with_the_fan_in_variance() -> None:
    model = WideResNet(16, 4)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() > 10_000:
            weight = module.weight.detach() * (module.weight[0].numel() / 2) ** 0.5
            tolerance = 5 / weight.numel() ** 0.5  # at least 5 standard errors of each of the two averages
            assert abs(float(weight.mean())) < tolerance
            assert abs(float(weight.square().mean()) - 1) < 2**0.5 * tolerance
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
    assert not model.linear.bias.any()


@pytest.mark.parametrize("channels", [1, 3])
def test_everything_between_stem_and_pooling_is_channels_last(channels: int) -> None:
    model = WideResNet(10, 2, channels=channels, ghost_batch_size=4)
    layouts = []
    for module in (model.stem, *model.blocks, model.norm):
        module.register_forward_hook(lambda _module, _input, output: layouts.append(output.stride(1)))
    copy.deepcopy(model)(digits_like(8, channels)).sum().backward()
    assert layouts == [1] * 5


def test_every_parameter_gets_a_gradient() -> None:
    model = WideResNet(10, 2, channels=1, ghost_batch_size=4)
    F.cross_entropy(model(digits_like(8)), torch.arange(8)).backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 15}, "depth: expected 6n \\+ 4"),
        ({"depth": 4}, "depth: expected an integer ≥ 10"),
        ({"width": 0}, "width"),
        ({"classes": 0}, "classes"),
        ({"channels": 0}, "channels"),
        ({"seed": -1}, "seed"),
        ({"ghost_batch_size": 0}, "ghost_batch_size"),
        ({"normalization": "skipinit"}, "normalization: expected one of 'ghost_batch', got 'skipinit'"),
    ],
)
def test_bad_arguments_are_explained(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WideResNet(**arguments)  # type: ignore[arg-type]
