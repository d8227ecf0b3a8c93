"""Networks of the user's own: trained as they are, or refused with a remedy; never trained as something else."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from noisysgd.validation import GhostBatchNorm2d, TrainConfig, load_dataset, train
from noisysgd.validation.networks.arithmetic_precision import fp32_precision
from noisysgd.validation.networks.dropout import SeededDropout
from noisysgd.validation.training.inputs import minibatch
from noisysgd.validation.training.loop import TrainingRun
from noisysgd.validation.training.optimizer import HeavyBall, is_non_overlapping_and_dense

CONFIG = TrainConfig(learning_rate=0.1, batch_size=32, momentum=0.9, steps=6, model="own", ghost_batch_size=1)


def seeded(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *layers)


class Recording(torch.autograd.Function):
    """The identity; notes torch's settings in both passes."""

    seen: list[tuple[str, bool, bool]] = []  # noqa: RUF012

    @staticmethod
    def forward(ctx, x):
        Recording.note("forward")
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        Recording.note("backward")
        return gradient

    @staticmethod
    def note(where):
        Recording.seen.append((where, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))


class Recorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, images):
        return Recording.apply(self.linear(images.flatten(1)))


@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True), ("bfloat16", False)])
def test_backward_passes_have_the_precision_of_forward_passes(precision, allowed, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's own default
    Recording.seen.clear()
    train(CONFIG.with_(precision=precision, steps=1), model=lambda config, data: Recorder())
    assert {"forward", "backward"} == {where for where, *_ in Recording.seen}
    assert {tuple(flags) for _, *flags in Recording.seen} == {(allowed, allowed)}
    assert torch.backends.cudnn.allow_tf32


def test_torchs_newer_names_for_precision_are_respected_too():
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    try:
        convolutions.fp32_precision = "ieee"  # from here on torch refuses to say what cudnn.allow_tf32 is
        with fp32_precision("tf32"):
            assert convolutions.fp32_precision == "tf32"
        assert convolutions.fp32_precision == "ieee"
        assert train(CONFIG, model=lambda config, data: seeded(nn.Linear(64, 10)))["status"] == "complete"
    finally:
        convolutions.fp32_precision = before


def test_slices_of_larger_tensors_are_trained_as_their_dense_copies_are_and_nothing_else_moves():
    whole = torch.randn(10, 96, generator=torch.Generator().manual_seed(0)) / 10
    untouched = whole.clone()
    results = []
    for make_dense in (False, True):
        layer = nn.Linear(64, 10)
        nn.init.zeros_(layer.bias)
        part = whole[:, :64].detach()
        layer.weight = nn.Parameter(part.clone() if make_dense else part)
        results.append(train(CONFIG, model=seeded(layer))["train_loss"])
    assert results[0] == results[1]
    assert torch.equal(whole, untouched)


def test_the_optimizer_itself_refuses_gaps():
    part = torch.ones(4, 6)[:, :3].requires_grad_()
    with pytest.raises(ValueError, match="parameters that fill their memory without gaps"):
        HeavyBall([{"params": [part], "weight_decay": 0.0}], lr=0.1, momentum=0.0)
    assert is_non_overlapping_and_dense(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last))


def test_torchs_batch_norm_is_evaluated_in_the_batches_it_was_trained_in():
    """Of 641 examples, 20 whole batches of 32; a last one of a single example would have no variance."""
    layers = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)
    model = seeded(*layers)
    record = train(CONFIG.with_(subset=641), model=model)
    data = load_dataset("digits", subset=641)
    order = minibatch(0, 0, 641, 641)
    reference = copy.deepcopy(model).train()
    losses = []
    for k in range(20):
        batch = torch.from_numpy(order[32 * k : 32 * (k + 1)])
        losses.append(F.cross_entropy(reference(data.train_images[batch]), data.train_labels[batch]).item())
    assert record["train_loss"] == pytest.approx(sum(losses) / 20, rel=1e-5)


def test_groups_are_whole_ghost_batches_of_the_network_or_it_is_refused_before_training():
    def normalised(config, data):
        return nn.Sequential(nn.Conv2d(1, 4, 3), GhostBatchNorm2d(4, 32), nn.Flatten(), nn.Linear(144, 10))

    with pytest.raises(
        ValueError, match=r"ghost_batch_size: expected a multiple of 32, got 1\. Set ghost_batch_size=32"
    ):
        TrainingRun(CONFIG, load_dataset("digits"), normalised)
    assert train(CONFIG.with_(ghost_batch_size=32), model=normalised)["status"] == "complete"


def test_seeded_dropout_in_ones_own_network_is_that_of_the_whole_batch_under_micro_batches():
    def dropping(config, data):
        return seeded(nn.Linear(64, 32), nn.ReLU(), SeededDropout(32, 0.5), nn.Linear(32, 10))

    whole = train(CONFIG, model=dropping)
    cut = train(CONFIG.with_(micro_batch_size=8), model=dropping)
    assert cut["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-5)


class Viewing(nn.Module):
    """Ends as many networks do, in a view that only contiguous images allow."""

    def __init__(self):
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(1, 4, 3), nn.Linear(144, 10)

    def forward(self, images):
        x = self.convolution(images)
        return self.linear(x.view(len(x), -1))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, images):
        return self.linear(images.flatten(1)), None


def frozen():
    model = seeded(nn.Linear(64, 10))
    return model.requires_grad_(requires_grad=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Viewing, r"channels_last float32 images \(32, 1, 8, 8\) to logits \(32, 10\).*channels_last=False"),
        (lambda: seeded(nn.Linear(64, 10)).double(), "parameters of type float32"),
        (Pair, "to logits .*, got 'tuple'. Return one logit for each class and image"),
        (lambda: seeded(nn.Linear(64, 9)), r"to logits \(32, 10\), got \(32, 9\)"),
        (frozen, "expected parameters to train, got 'none that require gradients'"),
    ],
)
def test_networks_that_cannot_be_trained_as_asked_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        train(CONFIG, model=make())


def test_views_work_without_channels_last():
    assert train(CONFIG.with_(channels_last=False), model=Viewing())["status"] == "complete"


def test_a_factory_is_called_with_the_configuration_and_the_data():
    with pytest.raises(ValueError, match=r"called as f\(config, data\), got .*Give it two parameters"):
        train(CONFIG, model=lambda: None)
    with pytest.raises(ValueError, match=r"called as f\(config, data\)"):
        train(CONFIG.with_(model="os:getcwd"))


def test_steps_to_observe_and_places_for_checkpoints_are_checked_at_the_start(tmp_path):
    with pytest.raises(ValueError, match=r"observe_at: expected an integer ≥ 0, got -1"):
        train(CONFIG, model=Pair(), observe=print, observe_at=(0, 7, -1))
    with pytest.raises(ValueError, match="checkpoint: expected a file"):
        train(CONFIG, model=Pair(), checkpoint=tmp_path)


@pytest.mark.parametrize(("share", "steps", "rise"), [(0.29, 100, 29), (0.07, 100, 7), (0.5, 5, 2), (0.999, 10, 9)])
def test_a_share_of_the_steps_is_not_cut_short_by_rounding(share, steps, rise):
    schedule = CONFIG.with_(warmup=share, steps=steps).schedule(1280)
    assert schedule.steps == steps
    rising = [schedule.at(step) for step in range(rise + 1)]
    assert rising == sorted(rising)
    assert schedule.at(rise - 1) < 1.0
