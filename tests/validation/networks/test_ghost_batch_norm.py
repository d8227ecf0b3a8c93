import pytest
import torch
from torch import nn

from noisysgd.validation.networks import ghost_batch_norm as module
from noisysgd.validation.networks.ghost_batch_norm import GhostBatchNorm2d, frozen_running_statistics, one_update


@pytest.fixture(params=["folded", "looped"], autouse=True)
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything holds for both ways of computing several groups."""
    monkeypatch.setattr(module, "LOOP_FROM", 1 if request.param == "looped" else 10**9)
    return str(request.param)


LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


def images(batch: int, channels: int = 3, size: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 + 3 * torch.randn(batch, channels, size, size, generator=generator, dtype=torch.float64)


def layer(ghost_batch_size: int = 4, features: int = 3) -> GhostBatchNorm2d:
    made = GhostBatchNorm2d(features, ghost_batch_size).double()
    with torch.no_grad():
        made.weight.copy_(torch.linspace(0.5, 2.0, features))
        made.bias.copy_(torch.linspace(-1.0, 1.0, features))
    return made


@LAYOUTS
@pytest.mark.parametrize("groups", [1, 3])
def test_each_group_is_normalised_by_its_own_mean_and_biased_variance(layout: torch.memory_format, groups: int) -> None:
    norm, x = layer(), images(4 * groups)
    expected = []
    for group in x.split(4):
        mean = group.mean(dim=(0, 2, 3), keepdim=True)
        variance = (group - mean).square().mean(dim=(0, 2, 3), keepdim=True)
        normalised = (group - mean) / (variance + norm.eps).sqrt()
        expected.append(normalised * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1))
    torch.testing.assert_close(norm(x.contiguous(memory_format=layout)), torch.cat(expected))


def test_one_group_is_torch_batch_norm_running_statistics_included() -> None:
    ours, theirs = GhostBatchNorm2d(3, 4), nn.BatchNorm2d(3)
    for step in range(3):
        x = images(4, seed=step).float()
        assert torch.equal(ours(x), theirs(x))
    for name in ("running_mean", "running_var"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_one_update_of_the_running_averages_per_pass_whatever_the_number_of_groups() -> None:
    norm, x = layer(), images(12)
    norm(x)
    groups = x.view(3, 4, 3, 25).transpose(1, 2).reshape(3, 3, 100)
    torch.testing.assert_close(norm.running_mean, 0.1 * groups.mean(dim=2).mean(dim=0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * groups.var(dim=2, correction=1).mean(dim=0))


def test_repeating_the_same_group_leaves_the_running_averages_as_one_group_does() -> None:
    once, many, x = layer(), layer(), images(4)
    once(x)
    many(x.repeat(8, 1, 1, 1))
    torch.testing.assert_close(many.running_mean, once.running_mean)
    torch.testing.assert_close(many.running_var, once.running_var)


def test_groups_do_not_see_each_other() -> None:
    norm, x = layer(), images(8)
    changed = torch.cat([x[:4], images(4, seed=9)])
    assert torch.equal(norm(x)[:4], norm(changed)[:4])


def test_evaluation_uses_running_averages_at_any_batch_size() -> None:
    norm = layer()
    norm(images(8))
    norm.eval()
    x = images(7, seed=1)
    shape = (1, -1, 1, 1)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    expected = (x - norm.running_mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(torch.cat([norm(x[:2]), norm(x[2:])]), norm(x))


@pytest.mark.parametrize("batch", [0, 3, 6])
def test_a_batch_of_broken_groups_is_an_error(batch: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of ghost_batch_size=4 examples, got {batch}. Choose"):
        layer()(images(batch))


@LAYOUTS
@pytest.mark.parametrize("groups", [1, 3])
def test_the_layout_is_kept_forward_and_backward(layout: torch.memory_format, groups: int) -> None:
    x = images(4 * groups).contiguous(memory_format=layout).requires_grad_()
    y = layer()(x)
    (slope,) = torch.autograd.grad(y.square().sum(), x)
    assert y.is_contiguous(memory_format=layout)
    assert layout is torch.contiguous_format or slope.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("groups", [1, 2])
def test_derivatives_of_first_and_second_order(groups: int) -> None:
    norm = layer(ghost_batch_size=2, features=2)

    def normalise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))
        return result

    x = images(2 * groups, channels=2, size=2).requires_grad_()
    arguments = (x, norm.weight, norm.bias)
    with frozen_running_statistics(norm):
        assert torch.autograd.gradcheck(normalise, arguments)
        assert torch.autograd.gradgradcheck(normalise, arguments)


@pytest.mark.parametrize("norm", [layer(), nn.BatchNorm2d(3).double()])
def test_frozen_running_statistics_freeze_and_thaw(norm: nn.Module) -> None:
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    with frozen_running_statistics(norm):
        frozen = norm(images(8))
    assert all(torch.equal(before[name], buffer) for name, buffer in norm.named_buffers())
    torch.testing.assert_close(norm(images(8)), frozen)
    assert not all(torch.equal(before[name], buffer) for name, buffer in norm.named_buffers())


def test_frozen_running_statistics_thaw_after_an_exception() -> None:
    norm = layer()
    with pytest.raises(ValueError, match="batch"), frozen_running_statistics(norm):
        norm(images(3))
    assert norm.track_running_stats


@pytest.mark.parametrize(
    "arguments",
    [{"features": 0}, {"ghost_batch_size": 0}, {"momentum": 0.0}, {"momentum": 1.5}, {"eps": 0.0}],
)
def test_bad_arguments_are_named(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        GhostBatchNorm2d(**{"features": 3, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("cuts", [(4, 8, 12, 16, 20), (4, 20), (12, 20), (20,)])
def test_pieces_of_whole_groups_update_the_running_averages_as_the_whole_batch_does(cuts: tuple[int, ...]) -> None:
    whole, pieces, x = layer(), layer(), images(20)
    expected = whole(x)
    with one_update(pieces):
        starts = (0, *cuts[:-1])
        found = torch.cat([pieces(x[start:stop]) for start, stop in zip(starts, cuts, strict=True)])
        assert not pieces.running_mean.any()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(pieces, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
    whole(x), pieces(x)  # and goes on as usual afterwards
    torch.testing.assert_close(pieces.running_var, whole.running_var, rtol=1e-12, atol=1e-12)


def test_substeps_forget_together_what_one_step_does() -> None:
    once, often, x = layer(), layer(), images(8)
    once(x)
    for _ in range(5):
        with one_update(often, substeps=5):
            often(x)
    torch.testing.assert_close(often.running_mean, once.running_mean)
    torch.testing.assert_close(often.running_var, once.running_var)


def test_a_failed_batch_updates_nothing() -> None:
    norm = layer()

    def fail() -> None:
        with one_update(norm):
            norm(images(8))
            norm(images(3))

    with pytest.raises(ValueError, match="batch"):
        fail()
    assert not norm.running_mean.any()
    norm(images(8))
    assert norm.running_mean.any()


def test_frozen_averages_stay_frozen_in_pieces_too() -> None:
    norm = layer()
    with frozen_running_statistics(norm), one_update(norm):
        norm(images(8))
    assert not norm.running_mean.any()


def test_statistics_are_float32_under_autocast() -> None:
    norm, x = layer().float(), images(12).float()
    expected = norm(x)
    again = layer().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = again(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert again.running_mean.dtype == torch.float32
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.05)
    torch.testing.assert_close(again.running_mean, norm.running_mean, rtol=0.01, atol=0.01)
