"""Relatives of the paper's heavy ball in training: against torch, loops written out, and the exact theory."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from noisysgd import theory
from noisysgd.validation import TrainConfig, WideResNet, load_dataset, train
from noisysgd.validation.networks.ghost_batch_norm import GhostBatchNorm2d
from noisysgd.validation.runs.records import fault
from noisysgd.validation.runs.store import RunStore
from noisysgd.validation.training import checkpoint
from noisysgd.validation.training.evaluation import evaluate, renew_running_statistics
from noisysgd.validation.training.inputs import minibatch
from noisysgd.validation.training.loop import METRICS, TrainingRun
from noisysgd.validation.training.optimizer import HeavyBall, penalty
from noisysgd.validation.training.preconditioner import factors, hashed
from noisysgd.validation.training.tail_average import TailAverage

CONFIG = TrainConfig(learning_rate=0.3, batch_size=32, momentum=0.9, steps=12, seed=3)
LINEAR = CONFIG.with_(model="linear", ghost_batch_size=1)


def linear(config, data):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, data.classes))


def waves(model):
    """A preconditioner between 0.5 and 1.5 that differs from entry to entry."""
    return {name: 1 + 0.5 * torch.sin(torch.arange(p.numel()) + 1.0).view(p.shape) for name, p in trainable(model)}


def trainable(model):
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def written_out(config, preconditioner=None):
    """A run in plain words: parameters after every update. `preconditioner` is a function of the network."""
    data = load_dataset(config.dataset)
    model = TrainingRun(config, data, linear).model
    parameters = [p for _, p in trainable(model)]
    factor = [torch.ones_like(p) for p in parameters] if preconditioner is None else preconditioner(model).values()
    velocity = [torch.zeros_like(p) for p in parameters]
    multipliers = config.schedule(data.train_size).at(np.arange(config.steps))
    seen = []
    for step in range(config.steps):
        batch = torch.from_numpy(minibatch(config.seed, step, config.batch_size, data.train_size))
        loss = nn.functional.cross_entropy(model(data.train_images[batch]), data.train_labels[batch])
        loss = loss + config.l2 / 2 * sum((p**2).sum() for p in parameters)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, u, g, f in zip(parameters, velocity, gradients, factor, strict=True):
                u.mul_(config.momentum).add_((1 - config.dampening) * f * g)
                ahead = f * g + config.momentum * u if config.nesterov else u
                p.sub_(config.learning_rate * float(multipliers[step]) * ahead)
        seen.append([p.detach().clone() for p in parameters])
    return seen


def to_the_end(run):
    while not run.finished:
        run.advance()
    return run


RULES = {
    "nesterov": ({"nesterov": True}, None),
    "dampening": ({"dampening": 0.7}, None),
    "preconditioner": ({}, waves),
    "nesterov, preconditioned": ({"nesterov": True}, waves),
    "preconditioned, spared": ({"momentum": 0.0, "l2": 0.0}, waves),
    "tail": ({"tail": 0.4}, None),
}


@pytest.mark.parametrize("rule", RULES)
def test_training_follows_the_rule_written_out(rule):
    changes, preconditioner = RULES[rule]
    config = LINEAR.with_(**{"l2": 0.05, **changes})  # so strong that a penalty beside the preconditioner would show
    run = to_the_end(TrainingRun(config, load_dataset("digits"), linear, preconditioner=preconditioner))
    for mine, expected in zip(run.optimizer.parameters, written_out(config, preconditioner)[-1], strict=True):
        torch.testing.assert_close(mine.detach(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("late", [False, True])
def test_a_power_of_two_of_dampening_is_a_learning_rate_bit_for_bit(late):
    data = load_dataset("digits")
    dampened = CONFIG.with_(dampening=0.75, learning_rate=1.2)
    one, other = (to_the_end(TrainingRun(c, data, late=late)) for c in (dampened, CONFIG.with_(learning_rate=0.3)))
    for mine, theirs in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert dampened.effective_learning_rate == pytest.approx(CONFIG.effective_learning_rate)


@pytest.mark.parametrize("case", [{"nesterov": True}, {"dampening": 0.3}])
def test_steps_are_those_of_torch_once_velocities_agree(case):
    """With dampening torch's first velocity is the whole gradient: it is given ours, from which the rest follows."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in [(5,), (8, 3, 3, 3), ()]]
    ours, theirs = ([p.clone().requires_grad_() for p in start] for _ in range(2))
    optimizer = HeavyBall([{"params": ours, "weight_decay": 0.01}], lr=0.1, momentum=0.9, **case)
    reference = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.01, **case)
    for step in range(6):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        optimizer.step()
        reference.step()
        if step == 0 and "dampening" in case:
            for p, q in zip(ours, theirs, strict=True):
                assert not torch.allclose(p, q)
                torch.testing.assert_close(0.7 * reference.state[q]["momentum_buffer"], optimizer.buffers[p])
                reference.state[q]["momentum_buffer"] = optimizer.buffers[p].clone()
                q.data.copy_(p.data)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


class LeastSquares:
    """½ mean (x·ω − y)² on a full batch, in double precision; with the noiseless quadratic that it is.

    Inputs x have the covariance `curvature`, in the axes of the parameters or in rotated ones.
    """

    def __init__(self, curvature, *, rotated, seed=0):
        random = np.random.default_rng(seed)
        dims = len(curvature)
        self.axes = np.linalg.qr(random.normal(size=(dims, dims)))[0] if rotated else np.eye(dims)
        whitened = np.linalg.qr(random.normal(size=(3 * dims, dims)))[0] * np.sqrt(3 * dims)
        self.inputs = torch.from_numpy(whitened * np.sqrt(curvature) @ self.axes.T)
        self.minimum = random.normal(size=dims)
        self.targets = self.inputs @ torch.from_numpy(self.minimum)
        self.start = random.normal(size=dims)
        there = self.axes.T @ (self.start - self.minimum)
        self.problem = theory.NoisyQuadratic(curvature, noise=0.0, initial_mean=there, initial_variance=0.0)
        self.origin = -self.axes.T @ self.minimum

    def losses(self, steps, *, l2=0.0, tail=0.0, preconditioner=None, **rule):
        """The loss before every update and after the last one; or that of the average of the last parameters."""
        weight = torch.from_numpy(self.start.copy()).requires_grad_()
        diagonal = None if preconditioner is None else {weight: torch.as_tensor(preconditioner)}
        optimizer = HeavyBall([{"params": [weight], "weight_decay": l2}], preconditioner=diagonal, **rule)
        average = TailAverage([weight], steps, tail) if tail else None
        found = []
        for step in range(steps):
            optimizer.zero_grad()
            loss = self.loss(weight)
            loss.backward()
            found.append(float(loss.detach()))
            optimizer.step()
            if average is not None:
                average.add(step + 1, [weight])
        last = weight.detach() if average is None else average.means()[0]
        return np.array([*found, float(self.loss(last))])

    def loss(self, weight):
        return 0.5 * ((self.inputs @ weight - self.targets) ** 2).mean()


@settings(max_examples=10)
@given(
    seed=st.integers(0, 1000),
    nesterov=st.booleans(),
    momentum=st.floats(0.1, 0.95),
    l2=st.sampled_from([0.0, 0.2]),
    share=st.floats(0.05, 0.9),
)
def test_full_batch_least_squares_has_the_exact_curve(seed, nesterov, momentum, l2, share):
    model = LeastSquares(np.array([1.0, 0.3, 0.02]), rotated=True, seed=seed)
    rate = share * float(theory.critical_learning_rate(model.problem, momentum=momentum, nesterov=nesterov)) / (1 + l2)
    found = model.losses(40, l2=l2, lr=rate, momentum=momentum, nesterov=nesterov)
    expected = theory.loss_curve(
        model.problem,
        theory.constant(40),
        learning_rate=rate,
        batch_size=1,
        momentum=momentum,
        nesterov=nesterov,
        l2=theory.L2(l2, origin=model.origin),
        at=np.arange(41),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_dampened_least_squares_has_the_curve_of_a_smaller_rate():
    model = LeastSquares(np.array([1.0, 0.1]), rotated=True)
    shared = {"momentum": 0.8, "batch_size": 1, "at": np.arange(31)}
    expected = theory.loss_curve(model.problem, theory.constant(30), learning_rate=0.3 * 0.5, **shared)
    found = model.losses(30, lr=0.5, momentum=0.8, dampening=0.7)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("nesterov", [False, True])
def test_preconditioned_least_squares_is_another_problem_with_the_same_losses(nesterov):
    model, diagonal = LeastSquares(np.array([1.0, 0.1, 0.01]), rotated=False), np.array([0.5, 2.0, 20.0])
    found = model.losses(30, lr=0.5, momentum=0.8, nesterov=nesterov, preconditioner=diagonal)
    expected = theory.loss_curve(
        model.problem.precondition(diagonal=diagonal),
        theory.constant(30),
        learning_rate=0.5,
        batch_size=1,
        momentum=0.8,
        nesterov=nesterov,
        at=np.arange(31),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("tail", [0.01, 0.3, 1.0])
def test_averages_of_least_squares_are_the_exact_ones(tail):
    model = LeastSquares(np.array([1.0, 0.1]), rotated=True)
    found = model.losses(31, tail=tail, lr=1.2, momentum=0.6)[-1]
    shared = {"learning_rate": 1.2, "batch_size": 1, "momentum": 0.6, "tail": tail}
    assert found == pytest.approx(float(theory.expected_loss(model.problem, theory.constant(31), **shared)), rel=1e-10)


@pytest.mark.parametrize("tail", [0.05, 0.4, 1.0])
def test_a_record_has_the_metrics_of_the_average_beside_those_of_the_end(tail):
    config = LINEAR.with_(tail=tail)
    record, plain = train(config, model=linear), train(LINEAR, model=linear)
    assert [record[name] for name in METRICS] == [plain[name] for name in METRICS]
    assert not any(name.startswith("averaged") for name in plain)
    seen = written_out(config)
    count = math.ceil(tail * 12)
    assert record["averaged_updates"] == count
    data, model = load_dataset("digits"), linear(config, load_dataset("digits"))
    with torch.no_grad():
        for k, (_, parameter) in enumerate(trainable(model)):
            parameter.copy_(torch.stack([each[k].double() for each in seen[-count:]]).mean(0))
    for name, value in evaluate(model, data, config).items():
        assert record[f"averaged_{name}"] == pytest.approx(value, rel=1e-4), name


def normalised(config, data):
    """A network with torch's own batch norm."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, data.classes))


@pytest.mark.parametrize("kind", ["ghost", "torch"])
def test_running_statistics_are_made_anew_for_the_average_and_put_back(kind):
    """Made by hand here: the mean over groups, in the order of the evaluation, of each group's own statistics."""
    data = load_dataset("digits")
    factory = None if kind == "ghost" else normalised
    config = CONFIG.with_(tail=0.5) if kind == "ghost" else LINEAR.with_(model="normalised", tail=0.5)
    run = to_the_end(TrainingRun(config, data, factory))
    before = copy.deepcopy(run.model.state_dict())
    with run.average.in_place(run.model, run.optimizer.parameters):
        renew_running_statistics(run.model, data, config)
        layer = next(m for m in run.model.modules() if isinstance(m, GhostBatchNorm2d | nn.BatchNorm2d))
        inputs = []
        handle = layer.register_forward_hook(lambda layer, args, out: inputs.append(args[0].detach()))
        group = 16 if kind == "ghost" else 32
        order = torch.from_numpy(minibatch(0, 0, data.train_size, data.train_size))[: data.train_size // group * group]
        renewed = layer.running_mean.clone(), layer.running_var.clone()
        share = layer.momentum
        with torch.no_grad():
            run.model.eval()
            for chunk in order.split(group):
                run.model(data.train_images[chunk])
        handle.remove()
        run.model.train()
        means = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
        variances = torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)
        torch.testing.assert_close(renewed[0], means, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(renewed[1], variances, rtol=1e-4, atol=1e-5)
    assert share == 0.1
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    found = run.evaluate_average()
    assert run.model.training
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    # Without new statistics the test loss would be another one.
    with run.average.in_place(run.model, run.optimizer.parameters):
        assert evaluate(run.model, data, config)["test_loss"] != found["averaged_test_loss"]


@pytest.mark.parametrize(
    ("case", "late"), [({"nesterov": True, "tail": 0.5}, False), ({"dampening": 0.4, "tail": 1.0}, True)]
)
def test_a_stop_leaves_no_trace(case, late, tmp_path):
    config, data, path = CONFIG.with_(**case), load_dataset("digits"), tmp_path / "run.pt"
    straight = to_the_end(TrainingRun(config, data, late=late, preconditioner=waves))
    for stop in (5, 9):
        first = TrainingRun(config, data, late=late, preconditioner=waves)
        while first.step < stop:
            first.advance()
        checkpoint.write(path, first.state())
        second = TrainingRun(config, data, late=late, preconditioner=waves)
        second.restore(checkpoint.read(path))
        assert checkpoint.digest(to_the_end(second).state()) == checkpoint.digest(straight.state())
        assert second.evaluate_average() == straight.evaluate_average()


def test_a_state_goes_with_its_preconditioner_alone():
    data = load_dataset("digits")
    state = TrainingRun(LINEAR, data, linear, preconditioner=waves).state()
    others = (None, lambda model: {name: 2 * factor for name, factor in waves(model).items()})
    for other in others:
        run = TrainingRun(LINEAR, data, linear, preconditioner=other)
        with pytest.raises(
            ValueError, match="state: expected a checkpoint of this run, got 'one under another precond"
        ):
            run.restore(state)
    plain = TrainingRun(LINEAR, data, linear)
    older = plain.state()
    del older["preconditioner"], older["average"]  # as versions without them wrote it
    plain.restore(older)
    with pytest.raises(ValueError, match="another preconditioner"):
        TrainingRun(LINEAR, data, linear, preconditioner=waves).restore(older)


def test_a_diverged_run_has_no_average():
    record = train(LINEAR.with_(learning_rate=1e9, tail=1.0), model=linear)
    assert record["status"] == "diverged"
    averaged = {name: value for name, value in record.items() if name.startswith("averaged")}
    assert set(averaged) == {"averaged_updates", *(f"averaged_{name}" for name in METRICS)}
    assert set(averaged.values()) == {None}


def test_records_name_a_preconditioner_and_stores_do_not_take_them(tmp_path):
    record = train(LINEAR, model=linear, preconditioner=waves)
    model = linear(LINEAR, load_dataset("digits"))
    assert record["preconditioner"] == hashed(factors(model, waves(model)))
    assert train(LINEAR, model=linear)["preconditioner"] is None
    assert "preconditioner" in fault(record)
    with pytest.raises(ValueError, match="preconditioner"):
        RunStore(tmp_path).write(record)
    assert fault(train(LINEAR.with_(tail=0.5), model=linear)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("1.bias"), r"the 2 trainable parameters, got .none for \['1.bias'\]"),
        (lambda f: f.update(other=torch.ones(2)), r"others for \['other'\]"),
        (lambda f: f.update({"1.bias": torch.ones(1)}), r"\['1.bias'\]: expected a dense tensor of shape \(10,\)"),
        (lambda f: f["1.bias"].neg_(), r"finite factors > 0 in torch.float32, got \[-1.49"),
        (lambda f: f["1.bias"][3:].zero_(), "finite factors > 0"),
        (lambda f: f["1.bias"].fill_(math.nan), "finite factors > 0"),
        (lambda f: f["1.bias"].fill_(math.inf), "finite factors > 0"),
        (lambda f: f.update({"1.bias": torch.full((10,), 1e-60, dtype=torch.float64)}), "finite factors > 0"),
        (lambda f: f.update({"1.bias": torch.full((10,), 1e60, dtype=torch.float64)}), "finite factors > 0"),
        (lambda f: f.update({"1.bias": [1.0] * 10}), "a tensor of real numbers"),
        (lambda f: f.update({"1.bias": torch.ones(10, dtype=torch.complex64)}), "a tensor of real numbers"),
    ],
)
def test_a_preconditioner_is_checked(change, message):
    model = linear(LINEAR, load_dataset("digits"))
    given = waves(model)
    change(given)
    with pytest.raises(ValueError, match=message):
        train(LINEAR, model=model, preconditioner=given)


@pytest.mark.parametrize("given", [0.5, lambda model: 3, [torch.ones(2)]])
def test_what_is_no_preconditioner_is_named(given):
    with pytest.raises(TypeError, match="preconditioner: expected tensors by the names of parameters"):
        train(LINEAR, model=linear, preconditioner=given)


def test_factors_have_the_layout_of_their_parameters():
    """The fused update walks through memory in a line."""
    model = WideResNet(10, 1, classes=10, channels=1, ghost_batch_size=16, seed=0).to(memory_format=torch.channels_last)
    found = factors(model, waves(model))
    for name, parameter in trainable(model):
        assert found[name].stride() == parameter.stride()
        assert torch.equal(found[name], waves(model)[name])


def test_the_l2_term_is_that_of_the_last_parameters():
    run = to_the_end(TrainingRun(LINEAR.with_(tail=1.0, l2=0.05), load_dataset("digits"), linear))
    assert train(LINEAR.with_(tail=1.0, l2=0.05), model=linear)["l2_term"] == penalty(run.optimizer.param_groups)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nesterov": True, "momentum": 0.0}, "momentum: expected m > 0 with nesterov, got 0.0"),
        ({"dampening": 0.5, "momentum": 0.0}, "momentum: expected m > 0 with dampening, got 0.0"),
        ({"nesterov": True, "dampening": 0.5}, "dampening: expected 0 with nesterov, got 0.5"),
        ({"nesterov": 1}, "nesterov: expected a bool"),
        ({"dampening": 1.0}, "dampening: expected 0 ≤ value < 1, got 1.0"),
        ({"dampening": -0.1}, "dampening"),
        ({"tail": 1.1}, "tail: expected a share of the updates"),
        ({"tail": math.nan}, "tail"),
        ({"dynamics": "svag", "nesterov": True}, "momentum: expected 0 under SVAG"),
    ],
)
def test_rules_that_cannot_be_are_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        CONFIG.with_(**changes)


def test_effective_rates_count_dampening():
    assert CONFIG.with_(dampening=0.9).effective_learning_rate == pytest.approx(0.3)
    assert CONFIG.with_(nesterov=True).effective_learning_rate == pytest.approx(3.0)
    assert CONFIG.with_(dampening=0.0, tail=0.0, nesterov=False).key == CONFIG.key
    assert len({CONFIG.with_(**c).key for c in ({"dampening": 0.5}, {"nesterov": True}, {"tail": 0.5}, {})}) == 4
