"""Curvature: whether CPU and GPU agree on λ_max, and what it costs for the Wide-ResNet."""

import copy
import functools
from typing import Any

import torch
from torch import nn

from gpu_stages.rows import Order, Rows, wait
from gpu_stages.wide_resnet import peak, prepare, reset_peak, wide_resnet
from noisysgd.validation import ImageDataset, Measurement, TrainConfig, load_dataset, measure
from noisysgd.validation.training.loop import TrainingRun

QUICK: dict[str, Any] = {"units": 32, "products": 4, "eigenvalues": 1, "probes": 0, "sharpness_batches": 4}
"""Options of measurements that are after λ_max."""


def measure_all(order: Order, rows: Rows) -> None:
    """Measure curvature: of a small network on both sides, and of the Wide-ResNet before and during training."""
    small, wide = functools.partial(small_curvature, order), functools.partial(wide_curvature, order)
    for place, dtype in (("cpu", "float64"), ("cpu", "float32"), ("gpu", "float32")):
        rows.attempt("small network", small, place=place, dtype=dtype, gpu_only=place == "gpu")
    for steps in (0, order.sizes.curvature_steps):
        rows.attempt("Wide-ResNet", wide, after=steps, examples=order.sizes.curvature_examples, seconds=6.0)


@functools.cache
def small_network() -> nn.Module:
    """Return a network with 78 000 parameters, trained on the digits for 20 updates on the CPU."""
    run = TrainingRun(TrainConfig(learning_rate=0.2, batch_size=64, steps=20), load_dataset("digits"))
    while not run.finished:
        run.advance()
    return run.model


def small_curvature(order: Order, place: str, dtype: str) -> dict[str, Any]:
    """Return what is measured of the small network."""
    model = copy.deepcopy(small_network()).to(order.device if place == "gpu" else "cpu", getattr(torch, dtype))
    exact: dict[str, Any] = {"curvature_examples": order.sizes.small_examples, "rtol": 1e-3, "max_products": 60}
    return summary(measure(model, load_dataset("digits"), **QUICK, **exact))


@functools.cache
def wide_run(order: Order) -> tuple[str, ImageDataset, TrainingRun]:
    """Return the run of the Wide-ResNet, of which each measurement takes a later state, and its data set."""
    name, _ = prepare()
    data = load_dataset(name)
    config = wide_resnet(order, order.sizes.batches[0], learning_rate=0.05, augment=False, dataset=name)
    return name, data, TrainingRun(config, data)


def wide_curvature(order: Order, after: int, examples: int) -> dict[str, Any]:
    """Train until so many updates and return what is measured there."""
    name, data, run = wide_run(order)
    while run.step < after and not run.finished:
        run.advance()
    run.settle()
    wait(order.device)
    before = reset_peak(order.device)
    found = measure(run.model, data, **QUICK, curvature_examples=examples)
    row = {"dataset": name, "network": f"WRN-{order.sizes.depth}-{order.sizes.width}"}
    return row | summary(found) | peak(order.device, before) | {"divergence": run.divergence}


def summary(found: Measurement) -> dict[str, Any]:
    """Return the numbers of a measurement that are of interest here."""
    return {
        "lambda_max": found.lambda_max.value,
        "residual": found.lambda_max.residual,
        "converged": found.lambda_max.converged,
        "trace_noise": found.trace_noise.value,
        "trace_noise_stderr": found.trace_noise.stderr,
        "products": found.hessian_products,
        "parameters": found.parameters,
        "seconds": found.seconds,
    }
