"""One measurement of what the theory needs from a network: curvature, gradient noise and noise scales."""

import dataclasses
import inspect
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 — the name the field uses
from torch import nn

from noisysgd.theory.common import checks
from noisysgd.validation.data.datasets import ImageDataset
from noisysgd.validation.measurement.criteria import LossFunction
from noisysgd.validation.measurement.curvature import (
    affordable_micro_batch,
    loss_gradient,
    loss_hessian_vector_product,
    trainable_parameters,
)
from noisysgd.validation.measurement.gradient_noise import draw_ghost_batches, ghost_batch_gradients, gradient_noise
from noisysgd.validation.measurement.lanczos import Eigenvalue, leading_eigenpairs
from noisysgd.validation.measurement.option_checks import CheckedOptions, checked_options
from noisysgd.validation.measurement.options import MeasurementOptions
from noisysgd.validation.measurement.repeatability import check_loss
from noisysgd.validation.measurement.sharpness import batch_sharpness
from noisysgd.validation.measurement.spectrum import SpectralMeasures, spectral_measures
from noisysgd.validation.measurement.uncertainty import Estimate
from noisysgd.validation.networks.arithmetic_precision import autocast_precision
from noisysgd.validation.networks.factory import batch_norms, check_initialised
from noisysgd.validation.networks.ghost_batch_norm import GhostBatchNorm2d
from noisysgd.validation.networks.torch_globals import usual_torch

Function = TypeVar("Function", bound=Callable[..., object])

TRIAL_EXAMPLES = 32
"""Number of examples, rounded down to whole units but at least two, that a network is tried on before the work."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Measurement:
    """Curvature and gradient noise of a network at its present parameters.

    Every number comes with its uncertainty and a flag ``converged``: an `Eigenvalue` has a residual, an `Estimate` a
    standard error, a `SpectralDensity` a spread between probes and a truncation error.

    Parameters
    ----------
    lambda_max : Eigenvalue
        Largest eigenvalue of the Hessian H of the training-mode loss.
    eigenvalues : tuple of Eigenvalue
        The largest ones, in order; the first is `lambda_max`. A multiple eigenvalue is listed once.
    trace_noise, gradient_norm_squared, noise_curvature_trace, gradient_curvature : Estimate
        tr F, |G|², tr(HF) and GᵀHG, with G the mean gradient and F the noise covariance of one example: see
        `GradientNoise`.
    B_simple, B_noise : Estimate
        Noise scales tr F/|G|² and tr(HF)/GᵀHG, in examples; NaN where the denominator is not known to be positive.
    B_simple_defined, B_noise_defined : bool
        Whether that denominator exceeds two of its standard errors, so that the noise scale is given.
    trace_curvature : Estimate or None
        tr H, from the random probes that `spectrum` is measured with; None without a spectrum.
    batch_sharpness : Estimate or None
        Curvature of each batch's loss along that batch's gradient; see :func:`~noisysgd.validation.batch_sharpness`.
    spectrum : SpectralMeasures or None
        Density of states, gradient and noise over the spectrum of H.
    eigenvectors : torch.Tensor or None
        Shape (len(eigenvalues), parameters), if asked for. They are not part of a record.
    ghost_batch_size, units : int
        Examples per unit, and units drawn for the noise.
    curvature_examples, dataset_size : int
        Examples behind H, and in the training set.
    parameters : int
        Trainable parameters.
    sharpness_batch_size, sharpness_batches : int
        Size and number of the batches behind `batch_sharpness`.
    hessian_products : int
        Hessian-vector products spent in all, each over all examples behind H.
    seconds : float
        Wall-clock time.
    seed : int
        Seed of the grouping of examples into units, of the units drawn and of all start vectors.
    l2 : float
        Coefficient of the ½·l2·‖ω‖² included in the loss.
    """

    lambda_max: Eigenvalue
    eigenvalues: tuple[Eigenvalue, ...]
    trace_noise: Estimate
    gradient_norm_squared: Estimate
    noise_curvature_trace: Estimate
    gradient_curvature: Estimate
    B_simple: Estimate
    B_noise: Estimate
    B_simple_defined: bool
    B_noise_defined: bool
    trace_curvature: Estimate | None
    batch_sharpness: Estimate | None
    spectrum: SpectralMeasures | None
    eigenvectors: torch.Tensor | None
    ghost_batch_size: int
    units: int
    curvature_examples: int
    dataset_size: int
    parameters: int
    sharpness_batch_size: int
    sharpness_batches: int
    hessian_products: int
    seconds: float
    seed: int
    l2: float

    def __repr__(self) -> str:
        traces = {"λ_max": self.lambda_max, "tr H": self.trace_curvature, "tr F": self.trace_noise}
        traces |= {"tr(HF)": self.noise_curvature_trace, "|G|²": self.gradient_norm_squared}
        found = [f"{name} = {_short(value)}" for name, value in traces.items() if value is not None]
        return f"<Measurement of {self.parameters} parameters: {', '.join(found)}>"

    def as_dict(self) -> dict[str, Any]:
        """Nested dictionary of plain Python values, valid JSON: NaN and infinity, which JSON lacks, become None."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: _plain(value) for name, value in named.items() if name != "eigenvectors"}


def _listing_options(function: Function) -> Function:
    """Put the options one by one into the signature of `function`, where help() and editors look for them."""
    shown = inspect.signature(function)
    named = [parameter for parameter in shown.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    options = inspect.signature(MeasurementOptions).parameters.values()
    vars(function)["__signature__"] = shown.replace(parameters=[*named, *options])
    return function


@_listing_options
@usual_torch()
def measure(
    model: nn.Module,
    data: ImageDataset,
    *,
    criterion: LossFunction = F.cross_entropy,
    eigenvectors: bool = False,
    **options: float | None,
) -> Measurement:
    """Measure curvature and gradient noise of `model` on the training set of `data`.

    The Hessian H is that of the mean loss over the training set, cut into ghost batches after one seeded shuffle (data
    sets often come sorted); a last incomplete ghost batch is left out. H depends on that cut, and the more so the
    nearer the network is to fitting its data: compare several seeds there before relying on λ_max. The noise is that of
    ghost batches drawn at random from the whole training set. Everything is evaluated in training mode, with running
    averages frozen and dropout off, in the precision of the model's parameters (float32 without TensorFloat-32). The
    model is left exactly as found, and global random generators are not moved.

    Any module that maps images to logits can be measured. Without batch norm layers a unit is `ghost_batch_size`
    independent examples, one by default. With torch's own batch norms it is the batch that shares statistics: H is then
    the mean of the units' Hessians, differentiated unit by unit. Layers of your own that let the examples of a batch
    depend on each other are refused until you give both `ghost_batch_size` and an equal `micro_batch`.

    Products with H are nearly all of the cost; each costs as much as two to four gradients of the training set. Up to
    `max_products` are spent on the eigenvalues, (1 + probes + noise_draws)·steps on the spectrum and products + 1 on
    the noise.

    Parameters
    ----------
    model : torch.nn.Module
        The network, on any device; not compiled. Nothing in it may be random except dropout modules, which are switched
        off.
    data : ImageDataset
        Its training images and labels are used, moved to the model's device.
    criterion : callable
        ``criterion(logits, labels)``, by default the cross-entropy. It has to be a mean over examples, which is
        checked: of sums and of torch's mean with class weights or ``ignore_index`` a batch's value is not the weighted
        mean of its halves'.
    eigenvectors : bool
        Whether to keep the eigenvectors of the eigenvalues that are listed.
    **options : int, float or None
        By the names that :class:`~noisysgd.validation.MeasurementOptions` lists and explains, such as ``units=64``.

    Returns
    -------
    Measurement

    Raises
    ------
    ValueError
        For sizes out of range; for a model without trainable parameters, or one whose logits differ from pass to pass,
        or depend on examples outside of the unit; for a criterion that is not one number, the mean over the examples.
    TypeError
        For an unknown option.

    Examples
    --------
    >>> from noisysgd.validation.data.datasets import load_dataset
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> _ = torch.nn.init.zeros_(model[1].weight)
    >>> found = measure(model, load_dataset("digits"), ghost_batch_size=16, units=64, products=4)
    >>> found.lambda_max.converged, found.trace_noise.value > 0, found.spectrum.density.nodes.size
    (True, True, 90)
    """
    eigenvectors = checks.boolean("eigenvectors", eigenvectors)
    chosen = MeasurementOptions.from_keywords(options)
    checks.instance("model", model, nn.Module, remedy="Pass a torch.nn.Module that maps images to logits.")
    check_initialised(model)
    checks.instance("data", data, ImageDataset, remedy="Use load_dataset, or make an ImageDataset of your tensors.")
    if chosen.ghost_batch_size is None:
        chosen = dataclasses.replace(chosen, ghost_batch_size=_ghost_batch_size(model))
    parameters = trainable_parameters(model).values()
    checked = checked_options(
        chosen, train_size=data.train_size, parameters=sum(parameter.numel() for parameter in parameters)
    )
    # TensorFloat-32 rounds the factors of every product to three digits: residuals would measure that rounding.
    with autocast_precision("float32", str(next(iter(parameters)).device)):
        return _measured(model, data, checked, criterion=criterion, eigenvectors=eigenvectors)


def recorder(data: ImageDataset, into: list[dict[str, Any]], **options: Any) -> Callable[[int, nn.Module], None]:
    """An observer for :func:`noisysgd.validation.train` that appends a measurement of every state it is shown.

    Parameters
    ----------
    data : ImageDataset
    into : list
        Receives ``{"step": step, …}`` with the fields of :class:`Measurement` as plain values.
    **options
        Keywords of :func:`measure`. All steps are measured with the same seed, so that the differences between steps
        are not those between one grouping of the examples and another.

    Examples
    --------
    >>> from noisysgd.validation import TrainConfig, load_dataset, train
    >>> states = []
    >>> quick = {"units": 8, "products": 2, "eigenvalues": 1, "curvature_examples": 64, "probes": 0}
    >>> observe = recorder(load_dataset("digits"), states, **quick)
    >>> record = train(TrainConfig(learning_rate=0.1, batch_size=64, steps=2), observe=observe, observe_at=(0, 2))
    >>> [state["step"] for state in states], states[0]["lambda_max"]["value"] > 0
    ([0, 2], True)
    """

    def observe(step: int, model: nn.Module) -> None:
        into.append({"step": step} | measure(model, data, **options).as_dict())

    return observe


def _measured(
    model: nn.Module, data: ImageDataset, options: CheckedOptions, *, criterion: LossFunction, eigenvectors: bool
) -> Measurement:
    began = time.perf_counter()
    size, tolerance = options.ghost_batch_size, options.estimate_rtol
    # Separate streams, so that asking for more of one thing changes nothing about the others.
    grouping_seed, units_seed, batches_seed = np.random.SeedSequence(options.seed).spawn(3)
    reference = next(iter(trainable_parameters(model).values()))
    images, labels = data.train_images.to(reference.device), data.train_labels.to(reference.device)
    of_loss: dict[str, Any] = {"l2": options.l2, "criterion": criterion}
    drawn = draw_ghost_batches(data.train_size, ghost_batch_size=size, units=options.units, seed=units_seed)
    # A network whose loss is random or not one number has no Hessian: a few passes show it before the long work.
    few = torch.from_numpy(drawn[: max(2, TRIAL_EXAMPLES // size)].ravel()).to(reference.device)
    # Units that are differentiated one by one may be batches whose examples see each other.
    unit = None if batch_norms(model) or options.micro_batch == size else size
    check_loss(model, images[few], labels[few], criterion, of_data=labels, unit=unit)
    # One shuffle fixes which examples share a ghost batch, and with it the function that H is the Hessian of.
    order = np.random.Generator(np.random.Philox(grouping_seed)).permutation(data.train_size)
    chosen = torch.from_numpy(order[: options.curvature_examples // size * size]).to(reference.device)
    # Torch's own batch norms take the statistics of all examples that pass together, which must be one unit then.
    micro_batch = size if batch_norms(model) else options.micro_batch
    if micro_batch is None:
        micro_batch = affordable_micro_batch(model, images[chosen], labels[chosen], group=size, **of_loss)
    behind = of_loss | {"micro_batch": micro_batch}
    matvec = loss_hessian_vector_product(model, images[chosen], labels[chosen], **behind)
    # The same unit gradients serve the noise traces here and the noise over the spectrum below.
    gradients = ghost_batch_gradients(model, images, labels, drawn, **of_loss)
    sizes = {"ghost_batch_size": size, "dataset_size": data.train_size}
    noise = gradient_noise(gradients, matvec, **sizes, products=options.products, rtol=tolerance)
    top = leading_eigenpairs(
        matvec,
        gradients.shape[1],
        options.eigenvalues,
        seed=options.seed,
        rtol=options.rtol,
        max_products=options.max_products,
        dtype=reference.dtype,
        device=reference.device,
    )
    spectrum = None
    if options.probes:
        # The gradient over the spectrum has to belong to the loss behind H, so the units' mean would not do.
        slope = loss_gradient(model, images[chosen], labels[chosen], **behind)
        starts = {"probes": options.probes, "noise_draws": options.noise_draws, "steps": options.steps}
        spectrum = spectral_measures(matvec, slope, gradients, **sizes, **starts, seed=options.seed, rtol=tolerance)
    sharpness = None
    batch, batches = options.sharpness_batch_size, options.sharpness_batches
    # These batches may be larger than units, so they are drawn apart from them.
    if batches:
        many = draw_ghost_batches(data.train_size, ghost_batch_size=batch, units=batches, seed=batches_seed)
        sharpness = batch_sharpness(model, images, labels, many, **of_loss, rtol=tolerance)
    return Measurement(
        lambda_max=top.values[0],
        eigenvalues=top.values,
        trace_noise=noise.trace_noise,
        gradient_norm_squared=noise.gradient_norm_squared,
        noise_curvature_trace=noise.noise_curvature_trace,
        gradient_curvature=noise.gradient_curvature,
        B_simple=noise.simple_noise_scale,
        B_noise=noise.noise_scale,
        B_simple_defined=noise.simple_noise_scale_defined,
        B_noise_defined=noise.noise_scale_defined,
        trace_curvature=spectrum.density.moment(1) if spectrum else None,
        batch_sharpness=sharpness,
        spectrum=spectrum,
        eigenvectors=top.vectors if eigenvectors else None,
        ghost_batch_size=size,
        units=options.units,
        curvature_examples=len(chosen),
        dataset_size=data.train_size,
        parameters=gradients.shape[1],
        sharpness_batch_size=batch,
        sharpness_batches=batches,
        hessian_products=top.products + noise.products + (spectrum.density.products if spectrum else 0),
        seconds=time.perf_counter() - began,
        seed=options.seed,
        l2=options.l2,
    )


def _ghost_batch_size(model: nn.Module) -> int:
    """Examples per unit where the user gives none: 1 for networks without batch norm layers."""
    sizes = {layer.ghost_batch_size for layer in model.modules() if isinstance(layer, GhostBatchNorm2d)}
    others = batch_norms(model)
    # Without batch norm every example has a gradient of its own, and can be a unit.
    if not sizes and not others:
        return 1
    expected = "GhostBatchNorm2d layers of one ghost batch size"
    remedy = (
        "Pass ghost_batch_size, the number of examples per unit: with torch's batch norms, those of a training batch."
    )
    checks.require(len(sizes) == 1 and not others, "model", expected, others or sorted(sizes), remedy)
    return sizes.pop()


def _short(value: Eigenvalue | Estimate) -> str:
    """A number with its uncertainty, and a remark if it has not converged."""
    error = value.residual if isinstance(value, Eigenvalue) else value.stderr
    return f"{value.value:.4g} ± {error:.1g}" + ("" if value.converged else " (not converged)")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray | tuple | list):
        return [_plain(entry) for entry in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
