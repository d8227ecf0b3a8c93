"""Training: the paper's schedule, sampling and heavy ball, reproducibly."""

import itertools
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from noisysgd import theory
from noisysgd.validation import ImageDataset, TrainConfig, WideResNet, configuration, load_dataset, train
from noisysgd.validation.data.augmentation import random_choices
from noisysgd.validation.networks.dropout import SeededDropout
from noisysgd.validation.networks.ghost_batch_norm import GhostBatchNorm2d
from noisysgd.validation.training import loop as training_module
from noisysgd.validation.training.evaluation import evaluate
from noisysgd.validation.training.inputs import minibatch
from noisysgd.validation.training.loop import TrainingRun, diverged, loss_limit
from noisysgd.validation.training.optimizer import HeavyBall

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
    assert record["l2_term"] is None
    assert f"at step {record['steps']}, limit 11512.9" in record["divergence"]


def test_a_loss_that_is_not_a_number_is_divergence_and_a_large_one_is_not():
    limit = loss_limit(10)
    assert diverged(float("nan"), limit)
    assert diverged(float("inf"), limit)
    assert diverged(1.001 * limit, limit)
    assert not diverged(0.999 * limit, limit)


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
    groups = training_module.heavy_ball(model, CONFIG.with_(l2_exempt="normalization and biases")).param_groups
    assert [group["weight_decay"] for group in groups] == [CONFIG.l2, 0.0]
    assert {p.ndim for p in groups[1]["params"]} == {1}
    assert {p.ndim for p in groups[0]["params"]} == {2, 4}
    assert len(training_module.heavy_ball(model, CONFIG).param_groups) == 1


def test_skipinits_alpha_is_spared_with_the_biases():
    model = WideResNet(10, 1, channels=1, normalization="skipinit")
    groups = training_module.heavy_ball(model, CONFIG.with_(l2_exempt="normalization and biases")).param_groups
    assert {p.ndim for p in groups[1]["params"]} == {0, 1}


def test_the_full_convention_is_twice_the_half_one():
    full = train(CONFIG.with_(l2=0.01, l2_convention="full"))
    half = train(CONFIG.with_(l2=0.02))
    for name in (*training_module.METRICS, "l2_term"):
        assert full[name] == half[name], name
    assert full["train_loss"] != train(CONFIG.with_(l2=0.01))["train_loss"]


def test_cross_entropy_and_the_l2_term_are_reported_apart():
    kept = []
    record = train(CONFIG, observe=lambda step, model: kept.append(model), observe_at=(24,))
    (model,) = kept
    half_squares = 0.5 * sum(float(p.detach().double().square().sum()) for p in model.parameters())
    assert record["l2_term"] == pytest.approx(CONFIG.l2 * half_squares, rel=1e-6)
    assert record["train_loss"] == evaluate(model, load_dataset("digits"), CONFIG)["train_loss"]


def test_ghost_batches_decide_what_a_batch_may_be():
    with pytest.raises(ValueError, match="1280 examples"):
        train(CONFIG.with_(batch_size=1296))


def test_warm_up_rises_linearly_and_keeps_the_budget():
    config = CONFIG.with_(steps=200, warmup=0.1)
    schedule = config.schedule(1280)
    assert schedule.steps == 200
    np.testing.assert_allclose(schedule.at(np.arange(20)), np.arange(1, 21) / 21)
    np.testing.assert_array_equal(schedule.at(np.arange(20, 200)), theory.half_then_decay(180).at(np.arange(180)))
    assert CONFIG.with_(steps=1, warmup=0.9).schedule(1280).steps == 1


def test_the_optimizer_follows_the_schedule_and_keeps_its_momentum():
    run = TrainingRun(CONFIG.with_(warmup=0.25, steps=26), load_dataset("digits"))
    rates = []
    while not run.finished:
        run.advance()
        rates.append(run.optimizer.lr)
    np.testing.assert_array_equal(rates, CONFIG.learning_rate * run.schedule.at(np.arange(26)))
    assert len(set(rates)) == 6 + 1 + 10


def svag_by_hand(config):
    """SVAG written out: ω ← ω − (ε/l) ∇[c₁ L_B₁ + c₂ L_B₂ + ½λ‖ω‖²]."""
    data = load_dataset("digits")
    model = WideResNet(config.depth, config.width, channels=1, ghost_batch_size=config.ghost_batch_size, seed=3)
    root = (2 * config.svag - 1) ** 0.5
    for step in range(config.steps * config.svag):
        rate = config.learning_rate * float(theory.half_then_decay(config.steps).at(step // config.svag))
        loss = config.l2 / 2 * sum((p**2).sum() for p in model.parameters())
        for sign, draw in ((1, step), (-1, step + 2**40)):
            batch = torch.from_numpy(minibatch(config.seed, draw, config.batch_size, data.train_size))
            entropy = nn.functional.cross_entropy(model(data.train_images[batch]), data.train_labels[batch])
            loss = loss + (1 + sign * root) / 2 * entropy
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p.sub_(rate / config.svag * g)
    return evaluate(model, data, config)["train_loss"]


def test_svag_descends_along_two_weighted_batches():
    config = CONFIG.with_(momentum=0.0, dynamics="svag", svag=3, steps=4, learning_rate=0.05)
    record = train(config)
    assert record["steps"] == 12
    assert record["train_loss"] == pytest.approx(svag_by_hand(config), rel=1e-4)


def test_svag_with_l_of_one_is_sgd():
    sgd = CONFIG.with_(momentum=0.0, steps=6)
    assert train(sgd.with_(dynamics="svag"))["train_loss"] == train(sgd)["train_loss"]


def test_svags_noise_has_l_times_the_variance_and_the_same_mean():
    """At fixed parameters, over 400 updates: averages of a linear layer's gradient, against all batches' own."""
    config = TrainConfig(learning_rate=0.1, batch_size=8, steps=1, l2=0.0, model="linear", ghost_batch_size=1, seed=1)

    def gradients(dynamics, svag):
        run = TrainingRun(config.with_(dynamics=dynamics, svag=svag), load_dataset("digits"), linear)
        found = []
        for run.step in range(400):
            run.optimizer.zero_grad()
            run._differentiate(run.feed.at(run.step))
            found.append(run.model[1].weight.grad.flatten())
        return torch.stack(found).double()

    plain, amplified = gradients("sgd", 1), gradients("svag", 8)
    # The ratio of two variances of about 400 draws in dozens of directions: its standard error is below 10 %.
    assert float(amplified.var(0).sum() / plain.var(0).sum()) == pytest.approx(8, rel=0.4)
    offset = (amplified.mean(0) - plain.mean(0)).square().sum()
    assert float(offset) < 6 * float((amplified.var(0) + plain.var(0)).sum()) / 400


def linear(config, data):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, data.classes))


class Dropping(nn.Module):
    """A network with torch's own dropout."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))

    def forward(self, images):
        return self.layers(images)


def test_networks_of_ones_own_are_trained_reproducibly():
    config = CONFIG.with_(model="dropping")
    state = torch.random.get_rng_state()
    first = train(config, model=lambda config, data: Dropping())
    torch.rand(3)
    second = train(config, model=lambda config, data: Dropping())
    torch.random.set_rng_state(state)
    assert first["train_loss"] == second["train_loss"] < 2.0
    assert first["network"] == {"class": f"{__name__}.Dropping", "parameters": 64 * 32 + 32 + 32 * 10 + 10}
    assert first["config"]["model"] == "dropping"
    other = train(config.with_(seed=4), model=lambda config, data: Dropping())
    assert other["train_loss"] != first["train_loss"]


def test_a_module_is_trained_in_place():
    model = Dropping()
    before = model.layers[1].weight.detach().clone()
    train(CONFIG.with_(model="dropping"), model=model)
    assert not torch.equal(model.layers[1].weight, before)


def test_an_importable_factory_needs_only_its_name(monkeypatch):
    made = types.ModuleType("their_networks")
    made.linear = linear
    monkeypatch.setitem(sys.modules, "their_networks", made)
    record = train(CONFIG.with_(model="their_networks:linear"))
    assert record["train_loss"] == train(CONFIG.with_(model="other name"), model=linear)["train_loss"]


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("wide_resnet", linear, "config.model: expected a name of your own, got 'wide_resnet'"),
        ("mine", None, "config.model: expected 'module:factory', or a network passed along, got 'mine'"),
        ("no_such_module:linear", None, "importable 'module:factory', got 'no_such_module:linear'"),
        ("mine", 3, "model: expected a torch.nn.Module or a function that makes one, got 3"),
        ("mine", lambda config, data: 3, "expected a Module, got 3"),
    ],
)
def test_networks_and_names_go_together(name, model, message):
    with pytest.raises(ValueError, match=message):
        train(CONFIG.with_(model=name), model=model)


def test_each_network_has_a_key_of_its_own():
    keys = {CONFIG.key, CONFIG.with_(model="mine").key, CONFIG.with_(normalization="skipinit").key}
    assert len(keys) == 3


def test_keys_do_not_change_when_fields_are_added():
    """Pinned; fields at their default that the first version had not are no part of a name."""
    assert CONFIG.key == "c1669ffdb462ae30"
    assert set(CONFIG.as_dict()) == configuration.FIRST_FIELDS
    changed = CONFIG.with_(precision="bfloat16", micro_batch_size=16)
    assert set(changed.as_dict()) - configuration.FIRST_FIELDS == {"precision", "micro_batch_size"}
    assert TrainConfig.from_dict(changed.as_dict()) == changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dynamics": "svag", "svag": 2}, "momentum: expected 0 under SVAG, got 0.9"),
        ({"svag": 2}, "svag: expected 1 unless dynamics='svag'"),
        ({"warmup": 1.0}, "warmup: expected 0 ≤ value < 1, got 1.0"),
        ({"dropout": -0.1}, "dropout"),
        ({"micro_batch_size": 24}, "micro_batch_size: expected a multiple of the ghost batch size 16, got 24"),
        ({"precision": "float16"}, "precision: expected one of 'float32', 'tf32', 'bfloat16'"),
        ({"device": "gpu"}, "device: expected 'cpu', 'cuda'"),
        ({"compile": 1}, "compile: expected a bool"),
        ({"normalization": "none"}, "normalization"),
        ({"l2_convention": "double"}, "l2_convention"),
        ({"model": ""}, "model: expected a name"),
    ],
)
def test_bad_configurations_are_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        CONFIG.with_(**changes)


def test_without_batch_statistics_any_batch_will_do():
    config = CONFIG.with_(normalization="skipinit", batch_size=30, steps=3, dropout=0.5)
    assert train(config)["status"] == "complete"
    assert train(config.with_(batch_size=32))["train_loss"] != train(config)["train_loss"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_missing_device_is_said_at_once():
    with pytest.raises(ValueError, match="device: expected a device that PyTorch finds here, got 'cuda'"):
        train(CONFIG.with_(device="cuda"))


def test_layouts_agree_to_rounding():
    config = CONFIG.with_(steps=3)
    last, first = train(config), train(config.with_(channels_last=False))
    assert first["train_loss"] == pytest.approx(last["train_loss"], rel=1e-4)


def test_bfloat16_is_opt_in_close_and_leaves_parameters_alone():
    config = CONFIG.with_(steps=6)
    dtypes = []
    record = train(
        config.with_(precision="bfloat16"),
        observe=lambda step, model: dtypes.extend(p.dtype for p in (*model.parameters(), *model.buffers())),
        observe_at=(6,),
    )
    reference = train(config)
    assert set(dtypes) == {torch.float32}
    assert record["train_loss"] != reference["train_loss"]
    assert record["train_loss"] == pytest.approx(reference["train_loss"], rel=0.2)
    assert record["config"]["precision"] == "bfloat16"


@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True), ("bfloat16", False)])
def test_tensorfloat_is_on_only_where_it_was_asked_for(precision, allowed, monkeypatch):
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(10))

        def forward(self, images):
            seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
            return images.flatten(1)[:, :10] * self.weight

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's own default
    train(CONFIG.with_(model="spy", steps=2, precision=precision), model=lambda config, data: Spy())
    assert set(seen) == {(allowed, allowed)}
    assert torch.backends.cudnn.allow_tf32


def test_the_data_stay_on_the_device_in_the_networks_layout():
    run = TrainingRun(CONFIG.with_(model="c", ghost_batch_size=1), three_channels(), lambda config, data: Pooling())
    layouts = []
    run.model.register_forward_pre_hook(lambda _module, inputs: layouts.append(inputs[0].stride()))
    run.advance()
    assert layouts == [(3 * 36, 1, 18, 3)]
    batch = torch.tensor([5, 2])
    assert torch.equal(training_module.take(run.data.train_images, batch), three_channels().train_images[batch])


def three_channels():
    images = torch.arange(64 * 3 * 36.0).view(64, 3, 6, 6).sin()
    labels = torch.arange(64) % 10
    return ImageDataset("waves", images, labels, images, labels, classes=10, provenance="sines")


class Pooling(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 10)

    def forward(self, images):
        return self.linear(images.mean((2, 3)))


def test_a_run_augments_each_batch_by_its_indices_the_seed_and_the_step(monkeypatch):
    seen = []

    def crop_and_flip(images, choices):
        seen.append((images, choices.numpy().copy()))
        return images + 1e-3 * len(seen)

    monkeypatch.setattr(training_module, "crop_and_flip", crop_and_flip)
    config = CONFIG.with_(augment=True, steps=3)
    augmented = train(config)
    assert len(seen) == 3
    images = load_dataset("digits").train_images
    for step, (shown, choices) in enumerate(seen):
        batch = minibatch(3, step, 32, 1280)
        assert torch.equal(shown, images[batch])
        np.testing.assert_array_equal(choices, random_choices(batch, seed=3, step=step))
    assert augmented["train_loss"] != train(config.with_(augment=False))["train_loss"]


class Small(nn.Module):
    """One of each thing that keeps state, as small as can be."""

    def __init__(self):
        super().__init__()
        self.norm = GhostBatchNorm2d(1, 16)
        self.dropout = SeededDropout(64, 0.2)
        self.linear = nn.Linear(64, 10)

    def forward(self, images):
        return self.linear(self.dropout(self.norm(images).flatten(1)))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own parts
@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 16}], ids=["whole", "pieces"])
def test_compiled_training_agrees_and_hands_out_the_plain_network(changes):
    seen = []
    config = CONFIG.with_(steps=12, dropout=0.2, model="small", **changes)
    arguments = {"model": lambda config, data: Small(), "observe_at": (0,)}
    with torch._dynamo.config.patch(error_on_recompile=True):
        record = train(config.with_(compile=True), observe=lambda step, model: seen.append(type(model)), **arguments)
    torch._dynamo.reset()
    assert seen == [Small]
    assert record["train_loss"] == pytest.approx(train(config, **arguments)["train_loss"], rel=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_optimizer_is_torchs_own_to_rounding(momentum):
    """In several types and layouts, with a parameter that has no gradient now and then."""
    generator = torch.Generator().manual_seed(0)

    def draw(shape):
        return torch.randn(shape, generator=generator)

    start = [draw((5,)), draw((8, 3, 3, 3)).to(memory_format=torch.channels_last), draw((3, 4)).double(), draw(())]
    ours, theirs = ([p.clone().requires_grad_() for p in start] for _ in range(2))
    optimizer = HeavyBall([{"params": ours, "weight_decay": 0.01}], lr=0.0, momentum=momentum)
    reference = torch.optim.SGD(theirs, lr=0.1, momentum=momentum, weight_decay=0.01)
    for step in range(6):
        optimizer.lr = reference.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimizer.zero_grad()
        reference.zero_grad()
        for number, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            if (step + number) % 4:
                gradient = draw(p.shape).to(p.dtype)
                p.grad, q.grad = (torch.empty_like(t).copy_(gradient) for t in (p, q))
        optimizer.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


def test_updates_inside_of_the_callers_autocast_see_the_weights_as_they_are():
    """Autocast keeps converted weights until its outermost block ends: updates would go by those of the first."""
    config = CONFIG.with_(precision="bfloat16", steps=4)
    plain = train(config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = train(config)
    assert inside["train_loss"] == plain["train_loss"]
