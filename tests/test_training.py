"""Training: the paper's schedule, sampling and heavy ball, reproducibly."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from noisysgd.validation import TrainConfig, WideResNet, load_dataset, train
from noisysgd.validation import training as training_module
from noisysgd.validation.training import evaluate, minibatch

CONFIG = TrainConfig(learning_rate=0.3, batch_size=32, momentum=0.9, steps=24, seed=3)


def plain_loop(config):
    """The same run written out: heavy ball u ← m u + g, ω ← ω − ε u, with ½λ‖ω‖² in the loss."""
    data = load_dataset(config.dataset)
    model = WideResNet(
        config.depth, config.width, classes=10, channels=1, ghost_batch_size=config.ghost_batch_size, seed=config.seed
    )
    parameters = list(model.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    drops = [(config.steps * (10 + k)) // 20 for k in range(10)]
    for step in range(config.steps):
        rate = config.learning_rate * 2.0 ** -sum(drop <= step for drop in drops)
        batch = torch.from_numpy(minibatch(config.seed, step, config.batch_size, data.train_size))
        loss = nn.functional.cross_entropy(model(data.train_images[batch]), data.train_labels[batch])
        loss = loss + config.l2 / 2 * sum((p**2).sum() for p in parameters)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, u, g in zip(parameters, velocity, gradients, strict=True):
                u.mul_(config.momentum).add_(g)
                p.sub_(rate * u)
    return evaluate(model, data, config)


def test_training_is_the_papers_heavy_ball():
    record = train(CONFIG)
    expected = plain_loop(CONFIG)
    assert record["status"] == "complete"
    assert record["steps"] == 24
    for name, value in expected.items():
        assert record[name] == pytest.approx(value, rel=1e-3), name


def test_a_run_has_one_result():
    state = torch.random.get_rng_state()
    first, second = train(CONFIG), train(CONFIG)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name in training_module.METRICS:
        assert first[name] == second[name]
    assert train(CONFIG.with_(seed=4))["train_loss"] != first["train_loss"]


def test_batches_are_drawn_without_replacement_and_afresh_at_every_step():
    batches = [minibatch(seed=1, step=step, batch_size=100, dataset_size=1280) for step in range(200)]
    assert all(len(set(batch.tolist())) == 100 for batch in batches)
    counts = np.bincount(np.concatenate(batches), minlength=1280)
    # Each example is Binomial(200, 100/1280); overlaps of neighbouring steps are hypergeometric with mean 100²/1280.
    assert stats_within(counts, 200 * 100 / 1280, np.sqrt(200 * (100 / 1280) * (1 - 100 / 1280)), sigmas=6)
    overlap = [len(set(a) & set(b)) for a, b in itertools.pairwise(batches)]
    spread = np.sqrt(100 * (100 / 1280) * (1 - 100 / 1280) * (1180 / 1279))
    assert abs(np.mean(overlap) - 100**2 / 1280) < 6 * spread / np.sqrt(len(overlap))


def stats_within(values, mean, deviation, sigmas):
    return bool(np.all(np.abs(values - mean) < sigmas * deviation))


def test_a_batch_does_not_depend_on_larger_ones_and_is_in_random_order():
    small = minibatch(seed=1, step=5, batch_size=16, dataset_size=1280)
    large = minibatch(seed=1, step=5, batch_size=1280, dataset_size=1280)
    np.testing.assert_array_equal(large[:16], small)
    assert sorted(large.tolist()) == list(range(1280))
    assert abs(np.corrcoef(large, np.arange(1280))[0, 1]) < 6 / np.sqrt(1280)


def test_divergence_is_recorded_early_and_silently():
    record = train(CONFIG.with_(learning_rate=1e9, momentum=0.0, steps=200))
    assert record["status"] == "diverged"
    assert record["steps"] < 200
    assert record["train_loss"] is None


def test_observers_see_the_asked_steps_and_change_nothing():
    seen = []

    def observe(step, model):
        seen.append((step, model.training, next(model.parameters()).sum().item()))

    record = train(CONFIG, observe=observe, observe_at=(0, 7, 24))
    assert [step for step, *_ in seen] == [0, 7, 24]
    assert len({value for *_, value in seen}) == 3
    assert record["train_loss"] == train(CONFIG)["train_loss"]


def test_l2_exemption_spares_vectors_only():
    model = WideResNet(10, 1, classes=10, channels=1, seed=0)
    groups = training_module._optimizer(model, CONFIG.with_(l2_exempt="normalization and biases")).param_groups
    assert [group["weight_decay"] for group in groups] == [CONFIG.l2, 0.0]
    assert {p.ndim for p in groups[1]["params"]} == {1}
    assert {p.ndim for p in groups[0]["params"]} == {2, 4}
    assert len(training_module._optimizer(model, CONFIG).param_groups) == 1


def test_ghost_batches_decide_what_a_batch_may_be():
    with pytest.raises(ValueError, match="1280 examples"):
        train(CONFIG.with_(batch_size=1296))
