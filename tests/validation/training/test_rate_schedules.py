"""Schedules of a run by name, and batches that grow where the learning rate would decay."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from training_runs import linear, run_of, to_the_end

from noisysgd import theory
from noisysgd.validation import TrainConfig, train
from noisysgd.validation.runs.toml_files import from_toml, to_toml
from noisysgd.validation.sweeps.cost import CostModel, passes_and_examples
from noisysgd.validation.training.inputs import minibatch

CONFIG = TrainConfig(learning_rate=0.5, batch_size=32, steps=60, seed=3, model="linear", ghost_batch_size=1)
GROWING = CONFIG.with_(momentum=0.5, largest_batch_size=200, ghost_batch_size=8)


def same(one, other):
    states = [[*run.model.state_dict().values(), *run.optimizer.buffers.values()] for run in (one, other)]
    equal = all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    return equal and one.step == other.step and one.curve.state() == other.curve.state()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, theory.half_then_decay(60)),
        ({"rate_schedule": "constant"}, theory.constant(60)),
        ({"rate_schedule": "cosine"}, theory.cosine(60)),
        ({"rate_schedule": "cosine", "final_learning_rate": 0.05}, theory.cosine(60, final=0.1)),
        ({"rate_schedule": "linear", "warmup": 0.1}, theory.warmup(theory.linear(54), 6, levels=6)),
        ({"rate_schedule": "inverse_sqrt", "warmup": 0.1}, theory.inverse_sqrt(60, warmup=0.1)),
        (
            {"rate_schedule": "warmup_stable_decay", "warmup": 0.1, "decay": 0.5, "final_learning_rate": 0.25},
            theory.warmup_stable_decay(60, warmup=0.1, decay=0.5, final=0.5),
        ),
        (
            {"rate_schedule": "multipliers", "rate_multipliers": [1.0, 0.5, 2.0]},
            theory.piecewise([20, 20, 20], [1.0, 0.5, 2.0]),
        ),
        (
            {"rate_schedule": "multipliers", "rate_multipliers": list(theory.cosine(60).at(np.arange(60)))},
            theory.cosine(60),
        ),
    ],
)
def test_a_run_has_the_schedule_that_it_names(changes, expected):
    """In the configuration, in a TOML file of it, and in the learning rates of its updates."""
    config = CONFIG.with_(**changes)
    assert config.schedule(1280) == expected
    assert TrainConfig.from_dict(from_toml(to_toml(config.as_dict()))) == config
    run = run_of(config)
    rates = [float(run.feed.at(step).rate) for step in range(60)]
    np.testing.assert_array_equal(rates, 0.5 * expected.at(np.arange(60)))


@given(
    st.sampled_from(["half_then_decay", "cosine", "linear", "warmup_stable_decay", "inverse_sqrt"]),
    st.sampled_from([0.0, 0.1, 0.37]),
    st.integers(1, 500),
    st.sampled_from([32, 100, 500]),
)
def test_growing_batches_keep_the_temperature_and_the_examples(name, warmup, steps, largest):
    config = CONFIG.with_(rate_schedule=name, warmup=warmup, steps=steps, ghost_batch_size=8)
    before = config.schedule(1280)
    rates, sizes = config.with_(largest_batch_size=largest).schedules(1280)
    assert rates.steps == sizes.steps <= before.steps
    batches = sizes.at(np.arange(sizes.steps))
    assert (batches % 8 == 0).all()
    assert batches.max() <= largest
    assert (np.diff(batches) >= 0).all()
    temperature, old = rates.at(np.arange(rates.steps)) / batches, before.at(np.arange(steps)) / 32
    assert set(np.round(temperature, 12)) <= set(np.round(old, 12))
    assert batches.sum() == pytest.approx(32 * steps, abs=1.5 * largest)
    if largest == 32:
        assert rates == before


def test_runs_of_before_keep_their_keys_and_a_config_says_only_what_is_not_usual():
    assert set(CONFIG.as_dict()) == {*TrainConfig(learning_rate=1.0, batch_size=32, steps=1).as_dict(), "model"}


@pytest.mark.parametrize("late", [False, True])
def test_each_update_sees_the_batch_of_its_step(late):
    run = run_of(GROWING, late=late)
    rates, sizes = GROWING.schedules(1280)
    seen = []
    plain = run._differentiate

    def watched(portion):
        seen.append((portion.batches.clone(), float(portion.rate)))
        return plain(portion)

    run._differentiate = watched
    to_the_end(run)
    assert len(seen) == run.step == rates.steps < 60
    assert {int(size) for size in sizes.multipliers} == {32, 64, 200}
    for step, (batches, rate) in enumerate(seen):
        expected = minibatch(3, step, int(sizes.at(step)), len(run.data.train_labels))
        np.testing.assert_array_equal(batches[0], expected)
        assert rate == pytest.approx(0.5 * float(rates.at(step)), rel=1e-15)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augment": True, "micro_batch_size": 24},
        {"model": "wide_resnet", "ghost_batch_size": 16, "steps": 16, "largest_batch_size": 64},
        {"rate_schedule": "cosine", "warmup": 0.1},
    ],
)
def test_runs_with_growing_batches_are_one_run_late_and_resumed_too(changes):
    config = GROWING.with_(**changes)
    straight = to_the_end(run_of(config))
    assert same(straight, to_the_end(run_of(config, late=True)))
    for stop in range(0, straight.step, max(straight.step // 5, 1)):
        first, second = run_of(config, late=True), run_of(config)
        for _ in range(stop):
            first.advance()
        second.restore(copy.deepcopy(first.state()))
        assert same(straight, to_the_end(second))


def test_a_growing_run_is_one_by_hand():
    """Plain SGD, batch by batch, in torch alone."""
    config = GROWING.with_(momentum=0.0, l2=0.0)
    run = run_of(config)
    model = copy.deepcopy(run.model)
    rates, sizes = config.schedules(1280)
    for step in range(rates.steps):
        batch = torch.from_numpy(minibatch(3, step, int(sizes.at(step)), len(run.data.train_labels)))
        loss = nn.functional.cross_entropy(model(run.data.train_images[batch]), run.data.train_labels[batch])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.5 * float(rates.at(step)) * gradient
    to_the_end(run)
    for mine, theirs in zip(run.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate_schedule": "steep"}, "rate_schedule"),
        (
            {"rate_schedule": "constant", "final_learning_rate": 0.1},
            "final_learning_rate: expected none but with one of",
        ),
        ({"decay": 0.5}, "decay: expected 0.2, as no other schedule has one, got 0.5"),
        ({"rate_schedule": "warmup_stable_decay", "decay": 0.7, "warmup": 0.5}, "decay: expected a share beside"),
        ({"rate_schedule": "warmup_stable_decay", "decay": 0.0}, "decay: expected a share beside"),
        ({"rate_schedule": "multipliers"}, "rate_multipliers: expected what goes with"),
        ({"rate_multipliers": [1.0]}, "rate_multipliers: expected what goes with"),
        ({"rate_schedule": "multipliers", "rate_multipliers": [-1.0]}, "rate_multipliers"),
        ({"rate_schedule": "multipliers", "rate_multipliers": 1.0}, "rate_multipliers: expected a list"),
        ({"largest_batch_size": 16}, "largest_batch_size"),
        ({"largest_batch_size": 64, "dynamics": "svag", "svag": 2}, "largest_batch_size: expected none under SVAG"),
    ],
)
def test_schedules_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CONFIG.with_(**changes)


def test_batches_beyond_the_data_or_coupled_by_their_statistics_are_refused():
    with pytest.raises(ValueError, match="largest_batch_size"):
        train(CONFIG.with_(steps=2000, largest_batch_size=4000), model=linear)

    def normalized(config, data):
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, data.classes))

    with pytest.raises(ValueError, match="largest_batch_size: expected a network without torch's batch norms"):
        train(CONFIG.with_(largest_batch_size=64), model=normalized)


def test_costs_count_the_examples_and_passes_of_growing_batches():
    config = GROWING.with_(micro_batch_size=64)
    rates, sizes = config.schedules(1280)
    each = sizes.at(np.arange(sizes.steps))
    assert passes_and_examples(config, rates.steps) == (np.ceil(each / 64).sum(), each.sum())
    assert passes_and_examples(config, 40) == (np.ceil(each[:40] / 64).sum(), each[:40].sum())
    model = CostModel(seconds_per_run=1.0, seconds_per_step=0.1, seconds_per_example=0.01)
    assert model.of(config) == pytest.approx(1.0 + 0.1 * np.ceil(each / 64).sum() + 0.01 * each.sum())


@pytest.mark.gpu
def test_on_a_gpu_growing_batches_are_captured_anew():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    config = TrainConfig(learning_rate=0.2, batch_size=32, steps=80, device="cuda", largest_batch_size=128)
    captured, plain = (to_the_end(run_of(config.with_(cuda_graph=on))) for on in (True, False))
    assert same(captured, plain)
