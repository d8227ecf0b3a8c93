"""What a program around the package has set in torch changes no result."""

import contextlib

import pytest
import torch
from torch import nn

from noisysgd.validation import TrainConfig, load_dataset, measure, train
from noisysgd.validation.measurement.curvature import loss_gradient, loss_hessian_vector_product

CONFIG = TrainConfig(learning_rate=0.1, batch_size=64, steps=3, model="perceptron")


def perceptron(config, data):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, data.classes))


@contextlib.contextmanager
def default_type(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SETTINGS = {
    "default type": lambda: default_type(torch.float64),
    "half by default": lambda: default_type(torch.bfloat16),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_training_is_the_same(setting):
    expected = train(CONFIG, model=perceptron)
    with SETTINGS[setting]():
        got = train(CONFIG, model=perceptron)
        kept = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_default_device()
    assert got["train_loss"] == expected["train_loss"]
    with SETTINGS[setting]():
        assert kept == (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_default_device())


@pytest.mark.parametrize("setting", SETTINGS)
def test_measurement_is_the_same(setting):
    data = load_dataset("digits")
    torch.manual_seed(0)
    model = perceptron(None, data)
    options = {"ghost_batch_size": 16, "units": 32, "products": 4, "curvature_examples": 64}
    expected = measure(model, data, **options)
    with SETTINGS[setting]():
        got = measure(model, data, **options)
    assert got.lambda_max == expected.lambda_max
    assert got.trace_noise == expected.trace_noise


@pytest.mark.parametrize("setting", SETTINGS)
def test_products_with_the_hessian_are_the_same_wherever_they_are_taken(setting):
    torch.manual_seed(0)
    model, images, labels = nn.Linear(3, 2), torch.randn(8, 3), torch.arange(8) % 2
    vector = torch.randn(8)
    product = loss_hessian_vector_product(model, images, labels, micro_batch=4)
    expected = product(vector), loss_gradient(model, images, labels)
    with SETTINGS[setting]():
        got = product(vector), loss_gradient(model, images, labels)
        made_inside = loss_hessian_vector_product(model, images, labels, micro_batch=4)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    assert torch.equal(made_inside(vector), expected[0])
