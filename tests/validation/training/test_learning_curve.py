"""The learning curve of a run: what a list of all its minibatch losses gives, whatever happens on the way."""

import copy
import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from training_runs import linear, run_of, to_the_end

from noisysgd.theory.sweeps.curves import curve_fault
from noisysgd.validation import TrainConfig, load_dataset, train
from noisysgd.validation.training import checkpoint
from noisysgd.validation.training.curve import EDGES, LearningCurve
from noisysgd.validation.training.evaluation import evaluate

CONFIG = TrainConfig(learning_rate=0.5, batch_size=32, momentum=0.9, steps=250, seed=3, model="linear").with_(
    ghost_batch_size=1
)
DIVERGING = CONFIG.with_(learning_rate=4.1, momentum=0.0, l2=0.5)  # the penalty makes parameters grow by 1.05 a step


def all_losses(config):
    """The minibatch loss of every update, seen by asking after each, and the one that showed divergence if one did."""
    run, losses = run_of(config), []
    plain = run._differentiate

    def watched(portion):
        losses.append(float(plain(portion)))
        return torch.tensor(losses[-1])

    run._differentiate = watched
    to_the_end(run)
    return losses, run.divergence is not None


def by_hand(losses, steps):
    """The bins of a curve, from the list of all losses."""
    edges = [math.floor(steps * edge / 3200) for edge in EDGES]
    parts = [losses[a:b] for a, b in itertools.pairwise(edges)]
    means = [float(np.mean(part)) if part else None for part in parts]
    spreads = [float(np.std(part, ddof=1)) if len(part) > 1 else None for part in parts]
    return {"edges": edges, "loss": means, "std": spreads}


def assert_close(curve, expected):
    assert curve["edges"] == expected["edges"]
    for name in ("loss", "std"):
        assert [value is None for value in curve[name]] == [value is None for value in expected[name]]
        np.testing.assert_allclose(
            np.array(curve[name], dtype=float), np.array(expected[name], dtype=float), rtol=1e-9, atol=1e-12
        )


@given(st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=700), st.integers(0, 500), st.data())
def test_bins_are_means_and_spreads_of_the_losses_in_them(losses, more, data):
    """However many are added at a time; of a run that ends early too."""
    curve, left = LearningCurve(len(losses) + more), list(losses)
    while left:
        count = data.draw(st.integers(1, len(left)))
        curve.add(left[:count])
        left = left[count:]
    record = curve.record()
    assert_close(record, by_hand(losses, len(losses) + more))
    assert curve_fault(json.loads(json.dumps(record))) is None


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "config",
    [CONFIG, CONFIG.with_(momentum=0.0, dynamics="svag", svag=3, steps=80), CONFIG.with_(steps=7), DIVERGING],
)
def test_a_run_records_the_losses_of_its_updates(config, late):
    losses, diverged = all_losses(config)
    run = to_the_end(run_of(config, late=late))
    assert run.curve.step == run.step == len(losses) - diverged
    assert_close(run.curve.record(), by_hand(losses[: run.step], run.schedule.steps))


@pytest.mark.parametrize("stop", [1, 17, 32, 100, 249])
@pytest.mark.parametrize("late", [(False, False), (True, True), (False, True), (True, False)])
def test_a_resumed_run_has_the_curve_of_the_straight_one_bit_for_bit(stop, late, tmp_path):
    straight = to_the_end(run_of(CONFIG)).curve.record()
    first, second = run_of(CONFIG, late=late[0]), run_of(CONFIG, late=late[1])
    for _ in range(stop):
        first.advance()
    checkpoint.write(tmp_path / "run.pt", first.state())
    second.advance()  # which the state undoes
    second.restore(checkpoint.read(tmp_path / "run.pt"))
    assert to_the_end(second).curve.record() == straight
    assert to_the_end(first).curve.record() == straight


def test_a_state_does_not_change_when_its_run_goes_on():
    run = run_of(CONFIG)
    run.advance()
    run.evaluate()
    state = run.state()
    before = copy.deepcopy(state["curve"])
    run.advance()
    run.evaluate()
    assert state["curve"] == before


def test_a_diverged_run_keeps_its_curve_up_to_there():
    record = train(DIVERGING.with_(evaluate_at=[0, 0.9]), model=linear)
    steps = record["steps"]
    assert record["status"] == "diverged"
    assert 32 < steps < 225
    curve = record["curve"]
    seen = [loss is not None for loss in curve["loss"]]
    assert seen == [a < b and a < steps for a, b in itertools.pairwise(curve["edges"])]
    assert curve["evaluated"]["steps"] == [0]
    nothing = train(CONFIG, model=lambda c, d: nn.Sequential(linear(c, d), _Infinite()))
    assert (nothing["status"], nothing["steps"], nothing["curve"]) == ("diverged", 0, None)


class _Infinite(nn.Module):
    def forward(self, x):
        return x * math.nan


def test_evaluations_are_those_of_the_network_then_and_change_nothing():
    config = TrainConfig(learning_rate=0.5, batch_size=64, steps=12, seed=1)
    places = {0: 0, 3: 0.25, 4: 1 / 3, 7: 7, 12: 12}
    data, seen = load_dataset("digits"), {}

    def observe(step, model):
        seen[step] = evaluate(model, data, config)

    plain = train(config, observe=observe, observe_at=tuple(places))
    record = train(config.with_(evaluate_at=list(places.values())))
    evaluated = record["curve"].pop("evaluated")
    assert evaluated.pop("steps") == list(places)
    assert [{name: values[k] for name, values in evaluated.items()} for k in range(5)] == list(seen.values())
    own = {"config", "seconds"}
    assert {n: v for n, v in record.items() if n not in own} == {n: v for n, v in plain.items() if n not in own}


@pytest.mark.parametrize("every", [1, 4])
def test_evaluations_before_an_interruption_are_kept(tmp_path, every):
    config = CONFIG.with_(steps=12, evaluate_at=[0, 3, 4, 0.75, 12])
    straight = train(config, model=linear)["curve"]

    class StopError(Exception):
        pass

    def stop(step, model):
        raise StopError

    path = tmp_path / "run.pt"
    with pytest.raises(StopError):
        train(config, model=linear, checkpoint=path, checkpoint_every=every, observe=stop, observe_at=(8,))
    assert checkpoint.read(path)["step"] == 8
    assert train(config, model=linear, checkpoint=path)["curve"] == straight


def test_a_checkpoint_of_a_version_without_curves_gives_a_run_without_one(tmp_path):
    config = CONFIG.with_(steps=12)
    run = run_of(config)
    for _ in range(5):
        run.advance()
    state = run.state()
    del state["curve"]
    checkpoint.write(tmp_path / "old.pt", state)
    record = train(config, model=linear, checkpoint=tmp_path / "old.pt")
    assert record["curve"] is None
    assert record["train_loss"] == train(config, model=linear)["train_loss"]


@given(st.integers(20, 10**6))
def test_no_bin_mixes_two_learning_rates_of_the_papers_schedule(steps):
    config = TrainConfig(learning_rate=1.0, batch_size=64, steps=steps)
    assert set(config.schedule(1280).boundaries.tolist()) <= set(LearningCurve(steps).edges)


def test_places_of_evaluations_are_steps_or_shares():
    config = TrainConfig(learning_rate=0.5, batch_size=64, epochs=20)
    assert config.with_(evaluate_at=[0.5, 100, 0, 0.29]).evaluation_steps(1280) == [0, 100, 116, 200]
    assert config.with_(evaluate_at=(100.0, 0.5)).as_dict()["evaluate_at"] == [0.5, 100]
    assert config.evaluation_steps(1280) == []
    assert config.with_(evaluate_at=[0, 7]).key == config.with_(evaluate_at=[7.0, 0.0]).key != config.key
    assert TrainConfig.from_dict(config.with_(evaluate_at=[0.1]).as_dict()) == config.with_(evaluate_at=[0.1])


def test_runs_that_are_not_evaluated_have_the_key_that_they_always_had():
    """Keys of version 0.1, whose stores are to stay readable."""
    config = TrainConfig(learning_rate=0.5, batch_size=64, epochs=20)
    assert "evaluate_at" not in config.as_dict()
    assert config.key == "c500a6d90625b5a1"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.5], r"evaluate_at: expected whole steps ≥ 0, or shares between 0 and 1, got \[1\.5\]"),
        ([-1], "whole steps"),
        ([math.inf], "whole steps"),
        ([math.nan], "without NaN"),
        ([3, 3.0], "distinct places"),
        (0.5, "a list of numbers, got 0.5. Give steps such as 100"),
        ("0.5", "a list of numbers"),
        ([True], "real numbers"),
        ([[1, 2]], "1-D"),
    ],
)
def test_impossible_places_of_evaluations(given, message):
    with pytest.raises(ValueError, match=message):
        CONFIG.with_(evaluate_at=given)


def test_a_step_beyond_the_end_is_refused_before_anything_is_trained():
    with pytest.raises(ValueError, match=r"evaluate_at: expected steps from 0 to 250, got \[251\]. Use shares"):
        train(CONFIG.with_(evaluate_at=[0, 251]), model=linear)


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("stop", [1, 300, 511])
def test_on_a_gpu_a_resumed_run_has_the_curve_of_the_straight_one(cuda_graph, stop):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    config = TrainConfig(learning_rate=0.25, batch_size=32, momentum=0.9, steps=600, device="cuda", seed=3)
    config = config.with_(cuda_graph=cuda_graph)
    straight, first, second = to_the_end(run_of(config)), run_of(config), run_of(config)
    assert straight.curve.step == 600
    assert to_the_end(run_of(config, late=False)).curve.record() == straight.curve.record()
    for _ in range(stop):
        first.advance()
    second.advance()
    second.restore(copy.deepcopy(first.state()))
    assert to_the_end(second).curve.record() == straight.curve.record()
