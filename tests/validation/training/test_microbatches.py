"""Micro-batches change memory and rounding, nothing else."""

import pytest
import torch
from torch import nn

from noisysgd.validation import TrainConfig, load_dataset, train
from noisysgd.validation.training.loop import TrainingRun

CONFIG = TrainConfig(learning_rate=0.2, batch_size=80, momentum=0.9, steps=5, seed=2)
CASES = pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalization": "skipinit", "learning_rate": 0.02},
        {"dropout": 0.5},
        {"dynamics": "svag", "svag": 3, "momentum": 0.0},
    ],
    ids=["ghost batch norm", "skipinit", "dropout", "svag"],
)


def one_step(config: TrainConfig) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients and buffers after one update."""
    run = TrainingRun(config, load_dataset("digits"))
    run.advance()
    gradients = {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(run.model.parameters()))
    return gradients, dict(run.model.named_buffers())


@CASES
@pytest.mark.parametrize("size", [16, 32, 48])
def test_gradients_and_statistics_are_the_whole_batchs(changes: dict[str, object], size: int) -> None:
    config = CONFIG.with_(**changes)
    gradients, buffers = one_step(config)
    found_gradients, found_buffers = one_step(config.with_(micro_batch_size=size))
    for name, gradient in gradients.items():
        difference = (found_gradients[name] - gradient).norm()
        assert float(difference) <= 1e-5 * float(gradient.norm()), name  # float32 keeps 6e-8 of each of many terms
    for name, buffer in buffers.items():
        torch.testing.assert_close(found_buffers[name], buffer, rtol=1e-6, atol=1e-6)


def test_groups_that_are_cut_would_show() -> None:
    """Power: with half the ghost batch the same comparison fails by orders of magnitude."""
    gradients, _ = one_step(CONFIG)
    others, _ = one_step(CONFIG.with_(ghost_batch_size=8))
    differences = [(others[name] - gradient).norm() / gradient.norm() for name, gradient in gradients.items()]
    assert float(max(differences)) > 1e-2


def test_running_averages_are_updated_once_per_step() -> None:
    run = TrainingRun(CONFIG.with_(micro_batch_size=16), load_dataset("digits"))
    run.advance()
    first = run.model.get_submodule("blocks.0.norm1").running_var  # starts at one
    whole = TrainingRun(CONFIG, load_dataset("digits"))
    whole.advance()
    torch.testing.assert_close(first, whole.model.get_submodule("blocks.0.norm1").running_var)
    assert float(first.min()) > 0.85  # one update of weight 0.1; five would leave at most 0.59 of the initial one


def test_whole_runs_agree() -> None:
    whole, cut = train(CONFIG), train(CONFIG.with_(micro_batch_size=16))
    for name in ("train_loss", "test_loss"):
        assert cut[name] == pytest.approx(whole[name], rel=1e-3)


def test_a_batch_that_fits_is_taken_whole() -> None:
    whole, cut = train(CONFIG), train(CONFIG.with_(micro_batch_size=80))
    assert cut["train_loss"] == whole["train_loss"]


def test_torchs_batch_norm_cannot_be_cut() -> None:
    def network(config: TrainConfig, data: object) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))

    config = CONFIG.with_(model="batch norm", steps=1)
    train(config, model=network)
    with pytest.raises(ValueError, match=r"a network without torch's batch norms, got \['0'\]"):
        train(config.with_(micro_batch_size=16), model=network)


class Centred(nn.Module):
    """Subtracts the mean of `group` examples, or of all that come together; not one of torch's batch norms."""

    def __init__(self, group: int | None) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:  # as batch norms, it takes any number of examples then
            return x
        groups = x.view(-1, self.group or len(x), x.shape[1])
        return (groups - groups.mean(dim=1, keepdim=True)).flatten(0, 1)


def centred(group: int | None) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Centred(group), nn.Linear(16, 10))


def test_a_network_of_ones_own_that_would_notice_the_cut_is_refused() -> None:
    config = TrainConfig(
        learning_rate=0.1, batch_size=64, steps=2, model="own", ghost_batch_size=16, micro_batch_size=32
    )
    for fits in (centred(16), centred(8), nn.Sequential(centred(16), nn.Dropout()), centred(16).append(Functional())):
        assert train(config, model=fits)["status"] == "complete"
    with pytest.raises(ValueError, match="micro_batch_size: expected a network in which examples see none but those"):
        train(config, model=centred(None))
    assert train(config.with_(micro_batch_size=None), model=centred(None))["status"] == "complete"


class Functional(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5, training=True)
