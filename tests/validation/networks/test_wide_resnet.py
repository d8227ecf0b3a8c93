import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from noisysgd.validation.networks.dropout import SeededDropout, draw_masks, forget_masks, take_rows
from noisysgd.validation.networks.wide_resnet import WideResNet


def digits_like(batch: int, channels: int = 1, size: int = 8) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("depth", "width", "classes", "expected"),
    [(16, 4, 10, 2_748_890), (28, 10, 10, 36_479_194), (16, 4, 100, 2_772_020), (28, 10, 100, 36_536_884)],
)
def test_trainable_parameter_counts_are_the_published_ones(depth: int, width: int, classes: int, expected: int) -> None:
    model = WideResNet(depth, width, classes)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == expected


@pytest.mark.parametrize(
    ("depth", "width", "classes", "expected"),
    [(16, 4, 10, 2_747_536), (28, 10, 10, 36_471_350), (16, 4, 100, 2_770_666)],
)
def test_trainable_parameter_counts_under_skipinit(depth: int, width: int, classes: int, expected: int) -> None:
    """Two published ones; 90 classes more are 90 rows of 256 weights and a bias."""
    assert 2_770_666 == 2_747_536 + 90 * 257
    model = WideResNet(depth, width, classes, normalization="skipinit")
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == expected
    assert not list(model.buffers())


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


def read_skipinit(state: dict[str, torch.Tensor], x: torch.Tensor, blocks: int) -> torch.Tensor:
    """Regularized SkipInit without its dropout, written out a second time from the state dict alone."""

    def conv(x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        size = weight.shape[-1]
        patches = F.unfold(x, size, padding=size // 2, stride=stride)  # symmetric, whatever the stride
        y = weight.flatten(1) @ patches + state[f"{name}.bias"][:, None]
        return y.view(len(x), len(weight), *(-(-side // stride) for side in x.shape[2:]))

    x = conv(x, "stem")
    for number in range(3 * blocks):
        name = f"blocks.{number}"
        stride = 2 if number in (blocks, 2 * blocks) else 1
        y = conv(conv(x.clamp(min=0), f"{name}.conv1", stride).clamp(min=0), f"{name}.conv2")
        shortcut = conv(x.clamp(min=0), f"{name}.shortcut", stride) if f"{name}.shortcut.weight" in state else x
        x = shortcut + state[f"{name}.branch_scale"] * y
    return x.clamp(min=0).flatten(2).mean(2) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize(("depth", "width", "channels", "size"), [(10, 1, 1, 8), (16, 1, 1, 7), (16, 2, 3, 16)])
def test_the_forward_pass_is_skipinits(depth: int, width: int, channels: int, size: int) -> None:
    model = WideResNet(depth, width, 7, channels, normalization="skipinit", seed=3).double()
    x = digits_like(5, channels, size).double()
    blocks = (depth - 4) // 6
    torch.testing.assert_close(model(x), read_skipinit(dict(model.state_dict()), x, blocks))  # as initialised
    with torch.no_grad():  # biases and α away from zero, which hides mistakes
        for number, parameter in enumerate(model.parameters()):
            parameter += 0.1 * torch.cos(torch.arange(parameter.numel(), dtype=torch.float64) + number).view_as(
                parameter
            )
    torch.testing.assert_close(model(x), read_skipinit(dict(model.state_dict()), x, blocks))


def test_skipinit_begins_as_its_shortcuts_and_moves_alpha_first() -> None:
    model = WideResNet(10, 2, channels=1, normalization="skipinit")
    x = model.stem(digits_like(4))
    for block in model.blocks:
        assert torch.equal(block(x), x if block.shortcut is None else block.shortcut(F.relu(x)))
        x = block(x)
    F.cross_entropy(model(digits_like(4)), torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.any()) != (".conv" in name), name


def test_skipinit_examples_do_not_see_each_other() -> None:
    model, x = WideResNet(10, 1, channels=1, normalization="skipinit").double(), digits_like(5).double()
    torch.testing.assert_close(torch.cat([model(x[:2]), model(x[2:])]), model(x))


@pytest.mark.parametrize("normalization", ["ghost_batch", "skipinit"])
def test_dropout_acts_on_pooled_features_while_training_only(normalization: str) -> None:
    arguments = {"channels": 1, "normalization": normalization, "ghost_batch_size": 4}
    kept, dropping = WideResNet(10, 1, **arguments), WideResNet(10, 1, **arguments, dropout=0.5)
    x = digits_like(4)
    seen: list[torch.Tensor] = []
    dropping.linear.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    kept.linear.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    draw_masks(dropping, seed=0, step=0, batch_size=4)
    dropping(x), kept(x)
    zeroed = (seen[0] == 0) & (seen[1] != 0)
    assert 0.3 < float(zeroed.float().mean()) < 0.7
    torch.testing.assert_close(seen[0][~zeroed], 2 * seen[1][~zeroed])
    assert torch.equal(dropping.eval()(x), kept.eval()(x))


def test_masks_are_functions_of_seed_step_and_row() -> None:
    layer, ones = SeededDropout(500, 0.25), torch.ones(8, 500)

    def mask(seed: int, step: int, batch: int = 8) -> torch.Tensor:
        draw_masks(layer, seed=seed, step=step, batch_size=batch)
        result: torch.Tensor = layer(ones[:batch])
        return result

    first = mask(1, 5)
    state = torch.random.get_rng_state()
    assert torch.equal(mask(1, 5), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(mask(1, 6), first)
    assert not torch.equal(mask(2, 5), first)
    assert first.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert abs(float((first == 0).float().mean()) - 0.25) < 6 * (0.25 * 0.75 / 4000) ** 0.5
    mask(1, 5)
    take_rows(layer, slice(2, 5))
    assert torch.equal(layer(ones[:3]), first[2:5])
    forget_masks(layer)
    assert not torch.equal(layer(ones), layer(ones))  # torch's own again


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
        ({"normalization": "layer"}, "normalization: expected one of 'ghost_batch', 'skipinit', got 'layer'"),
        ({"dropout": 1.0}, "dropout: expected 0 ≤ probability < 1, got 1.0"),
    ],
)
def test_bad_arguments_are_explained(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WideResNet(**arguments)  # type: ignore[arg-type]
