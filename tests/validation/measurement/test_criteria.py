"""A criterion that is not the mean over the examples has no Hessian that does not depend on how examples are cut."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import GHOST, dataset, examples, small_network
from torch import nn

from noisysgd.validation import batch_sharpness, measure
from noisysgd.validation.measurement.criteria import check_mean, with_all_labels
from noisysgd.validation.measurement.curvature import loss_gradient, loss_hessian_vector_product

QUICK = {"units": 8, "products": 2, "probes": 0, "sharpness_batches": 0, "max_products": 4, "eigenvalues": 1}
WEIGHT = torch.tensor([1.0, 3.0, 0.5])


def one_hot(labels):
    return F.one_hot(labels, 3).float()


MEANS = {
    "cross-entropy": F.cross_entropy,
    "label smoothing": nn.CrossEntropyLoss(label_smoothing=0.1),
    "weights that are averaged over examples": lambda z, y: F.cross_entropy(z, y, WEIGHT, reduction="none").mean(),
    "ignored examples that count": lambda z, y: F.cross_entropy(z, y, ignore_index=1, reduction="none").mean(),
    "a class to ignore that does not occur": nn.CrossEntropyLoss(ignore_index=-1),
    "equal weights": nn.CrossEntropyLoss(torch.full((3,), 2.0)),
    "squared error": lambda z, y: F.mse_loss(z, one_hot(y)),
    "absolute error": lambda z, y: F.l1_loss(z, one_hot(y)),
    "binary cross-entropy": lambda z, y: F.binary_cross_entropy_with_logits(z, one_hot(y)),
    "log-probabilities": lambda z, y: F.nll_loss(z.log_softmax(1), y),
    "divergence by batch": lambda z, y: F.kl_div(z.log_softmax(1), one_hot(y), reduction="batchmean"),
    "focal": lambda z, y: ((1 - torch.exp(-F.cross_entropy(z, y, reduction="none"))) ** 2).mean(),
    "scaled": lambda z, y: 7.0 * F.cross_entropy(z, y) + 1.0,
}
OTHERS = {
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "class weights": nn.CrossEntropyLoss(WEIGHT),
    "ignored class": nn.CrossEntropyLoss(ignore_index=1),
    "weights and smoothing": nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1),
    "root of a mean": lambda z, y: F.mse_loss(z, one_hot(y)).sqrt(),
    "square of a mean": lambda z, y: F.cross_entropy(z, y).square(),
    "median": lambda z, y: F.cross_entropy(z, y, reduction="none").median(),
    "largest": lambda z, y: F.cross_entropy(z, y, reduction="none").max(),
    "the first example": lambda z, y: F.cross_entropy(z[:1], y[:1]),
    "centred logits": lambda z, y: F.cross_entropy(z - z.mean(dim=0), y),
    "sum over a fixed number": lambda z, y: F.cross_entropy(z, y, reduction="sum") / 48,
}


def network(zero=False):
    layer = nn.Linear(16, 3)
    if zero:
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), layer)


@pytest.mark.parametrize("kind", MEANS)
@pytest.mark.parametrize("zero", [False, True])
def test_means_over_examples_are_measured_whatever_the_cut(kind, zero):
    model, data = network(zero), dataset()
    found = [
        measure(model, data, criterion=MEANS[kind], micro_batch=size, **QUICK).lambda_max.value for size in (None, 5)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("ghost_batch_size", [1, 8])
def test_what_is_no_mean_is_refused_with_the_remedy(kind, zero, ghost_batch_size):
    """Also where all logits are zero, so that all examples have one loss, under any weights."""
    with pytest.raises(ValueError, match=r"criterion: expected the mean over the examples, got .*reduction='none'"):
        measure(network(zero), dataset(), criterion=OTHERS[kind], ghost_batch_size=ghost_batch_size, **QUICK)


@pytest.mark.parametrize("kind", OTHERS)
def test_the_functions_behind_a_measurement_refuse_it_too(kind):
    model, (images, labels) = small_network(), examples(48)
    named = {"criterion": OTHERS[kind]}
    for work in (
        lambda: loss_gradient(model, images, labels, **named),
        lambda: loss_hessian_vector_product(model, images, labels, **named)(torch.zeros(1)),
        lambda: batch_sharpness(model, images, labels, np.arange(48).reshape(2, 24), **named),
    ):
        with pytest.raises(ValueError, match="criterion: expected the mean over the examples"):
            work()


def test_a_class_that_few_examples_lack_is_tried_as_well():
    weight = torch.ones(500)
    weight[499] = 5.0
    logits = torch.randn(8, 500, generator=torch.Generator().manual_seed(0))
    labels, of_data = torch.arange(8), torch.arange(500).repeat(3)
    criterion = nn.CrossEntropyLoss(weight)
    check_mean(criterion, logits, labels)
    with pytest.raises(ValueError, match="for 508 of them"):
        check_mean(criterion, *with_all_labels(logits, labels, of_data))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=20), st.integers(0, 2**32 - 1))
def test_the_check_is_exact_for_any_examples(chosen, seed):
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(len(chosen), 3, generator=generator), torch.tensor(chosen)
    for criterion in MEANS.values():
        check_mean(criterion, logits, labels)
    with pytest.raises(ValueError, match="criterion"):
        check_mean(OTHERS["sum"], logits, labels)
    # Weights that differ within the batch make the gradients of parts and whole differ.
    if len({WEIGHT[k].item() for k in chosen}) > 1:
        with pytest.raises(ValueError, match="criterion"):
            check_mean(OTHERS["class weights"], logits, labels)


def test_a_criterion_without_a_gradient_is_refused():
    with pytest.raises(ValueError, match="a function with a gradient"):
        measure(network(), dataset(), criterion=lambda z, y: (z.argmax(1) == y).float().mean(), **QUICK)


def test_a_criterion_of_probabilities_is_not_tried_outside_of_them():
    def criterion(probabilities, labels):
        return F.binary_cross_entropy(probabilities, one_hot(labels))

    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Sigmoid())
    assert measure(model, dataset(), criterion=criterion, **QUICK).trace_noise.value > 0
    with pytest.raises(ValueError, match="criterion: expected the mean"):
        measure(model, dataset(), criterion=lambda p, y: criterion(p, y).sqrt(), **QUICK)


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(dim=0)


def test_layers_that_couple_examples_are_refused_until_the_unit_is_given():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), Centred(), nn.Tanh(), nn.Linear(8, 3))
    for options in ({}, {"ghost_batch_size": GHOST}, {"ghost_batch_size": GHOST, "micro_batch": 2 * GHOST}):
        with pytest.raises(ValueError, match=r"model: expected logits that depend on no other examples .* micro_batch"):
            measure(model, dataset(), **QUICK, **options)
    assert measure(model, dataset(), **QUICK, ghost_batch_size=GHOST, micro_batch=GHOST).trace_noise.value > 0
