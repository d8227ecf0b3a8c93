"""One measurement of what the theory needs from a network: curvature, gradient noise and noise scales."""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from noisysgd.theory import checks
from noisysgd.validation.curvature import loss_hessian_vector_product
from noisysgd.validation.data import ImageDataset
from noisysgd.validation.ghost_batch_norm import GhostBatchNorm2d
from noisysgd.validation.estimate import Estimate
from noisysgd.validation.gradient_noise import (
    GradientNoise,
    draw_ghost_batches,
    ghost_batch_gradients,
    gradient_noise,
)
from noisysgd.validation.lanczos import Eigenvalue, largest_eigenvalue


@dataclass(frozen=True)
class Measurement:
    """Curvature and gradient noise of a network at its present parameters.

    Parameters
    ----------
    lambda_max : Eigenvalue
        Largest Hessian eigenvalue of the training-mode loss.
    trace_noise, gradient_norm_squared, noise_curvature_trace, gradient_curvature : Estimate
        tr F, |G|², tr(HF), GᵀHG: see `GradientNoise`.
    B_simple, B_noise : Estimate
        Noise scales tr F/|G|² and tr(HF)/GᵀHG in examples; NaN where the estimated denominator is not positive.
    B_simple_defined, B_noise_defined : bool
        Whether it is positive.
    ghost_batch_size, units, curvature_examples, parameters : int
        Examples per unit, number of units, number of examples behind H, number of trainable parameters.
    hessian_products : int
        Hessian-vector products spent in all.
    seconds : float
        Wall-clock time.
    seed : int
        Seed of the grouping, the draw of the units and the Lanczos start.
    l2 : float
        Coefficient of the ½·l2·‖ω‖² included in the loss.
    """

    lambda_max: Eigenvalue
    trace_noise: Estimate
    gradient_norm_squared: Estimate
    noise_curvature_trace: Estimate
    gradient_curvature: Estimate
    B_simple: Estimate
    B_noise: Estimate
    B_simple_defined: bool
    B_noise_defined: bool
    ghost_batch_size: int
    units: int
    curvature_examples: int
    parameters: int
    hessian_products: int
    seconds: float
    seed: int
    l2: float

    def as_dict(self) -> dict[str, Any]:
        """Nested dictionary of plain Python values, valid JSON: NaN and infinity, which JSON lacks, become None."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def measure(
    model: nn.Module,
    data: ImageDataset,
    *,
    ghost_batch_size: int | None = None,
    units: int = 256,
    products: int = 8,
    curvature_examples: int | None = None,
    micro_batch: int | None = None,
    rtol: float = 1e-2,
    max_products: int = 40,
    l2: float = 0.0,
    seed: int = 0,
) -> Measurement:
    """Measure curvature and gradient noise of `model` on the training set of `data`.

    The Hessian H is that of the mean cross-entropy of the training set, cut into ghost batches after one seeded shuffle
    (data sets often come sorted); a last incomplete ghost batch is left out. H depends on that cut, the more so the
    nearer the network is to fitting its data: compare several seeds before leaning on λ_max there. The noise is that of
    ghost batches drawn at random from the whole training set. Everything is evaluated in training mode, with running
    averages frozen and dropout off. Any module that maps images to logits will do; without `GhostBatchNorm2d` the unit
    is simply `ghost_batch_size` independent examples. The model is left exactly as found, and global random generators
    are not moved.

    Parameters
    ----------
    model : torch.nn.Module
        The network, on any device; not compiled.
    data : ImageDataset
        Its training images and labels are used, moved to the model's device.
    ghost_batch_size : int, optional
        Examples per unit; by default that of the model's `GhostBatchNorm2d` layers. To be given for other models.
    units : int
        Ghost batches drawn for the noise; memory is units × parameters numbers.
    products : int
        How many of them meet the Hessian, 2 … units; they decide the error of tr(HF), at about four gradients of the
        whole training set each.
    curvature_examples : int, optional
        Examples behind H, after the shuffle; by default all. Rounded down to whole ghost batches.
    micro_batch : int, optional
        Examples differentiated at a time in Hessian products, a multiple of `ghost_batch_size`; by default all at once.
    rtol, max_products
        Tolerance and limit of the Lanczos iteration, see `largest_eigenvalue`.
    l2 : float
        Includes ½·l2·‖ω‖² in the loss.
    seed : int
        Everything random is a function of it.

    Returns
    -------
    Measurement

    Raises
    ------
    ValueError
        For sizes out of range, or a model without trainable parameters.

    Examples
    --------
    >>> from noisysgd.validation.data import load_dataset
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> _ = torch.nn.init.zeros_(model[1].weight)
    >>> found = measure(model, load_dataset("digits"), ghost_batch_size=16, units=64, products=4)
    >>> found.lambda_max.converged, found.trace_noise.value > 0
    (True, True)
    """
    given = _ghost_batch_size(model) if ghost_batch_size is None else ghost_batch_size
    size = checks.integer("ghost_batch_size", given, 1, remedy="Use the model's ghost batch size.")
    seed = checks.integer("seed", seed, 0, remedy="Pass a non-negative integer.")
    wanted = data.train_size if curvature_examples is None else curvature_examples
    remedy = "Use at least one ghost batch and at most the training set."
    wanted = checks.integer("curvature_examples", wanted, size, remedy=remedy)
    units = checks.integer("units", units, 3, remedy="The jackknife needs at least three ghost batches.")
    l2 = checks.scalar("l2", checks.at_least("l2", l2, 0.0, remedy="Use 0 for no penalty."))
    if micro_batch is not None:
        micro_batch = checks.integer("micro_batch", micro_batch, 1, remedy="Use a multiple of the ghost batch size.")
    expected = f"at most {data.train_size} examples"
    checks.require(wanted <= data.train_size, "curvature_examples", expected, wanted, remedy)
    whole = micro_batch is None or micro_batch % size == 0
    checks.require(whole, "micro_batch", f"a multiple of ghost_batch_size={size}", micro_batch, "Round it.")

    began = time.perf_counter()
    grouping_seed, units_seed = np.random.SeedSequence(seed).spawn(2)
    reference = next((p for p in model.parameters() if p.requires_grad), torch.empty(0))
    images, labels = data.train_images.to(reference.device), data.train_labels.to(reference.device)
    order = np.random.Generator(np.random.Philox(grouping_seed)).permutation(data.train_size)
    chosen = torch.from_numpy(order[: wanted // size * size]).to(reference.device)
    matvec = loss_hessian_vector_product(model, images[chosen], labels[chosen], l2=l2, micro_batch=micro_batch)
    batches = draw_ghost_batches(data.train_size, ghost_batch_size=size, units=units, seed=units_seed)
    gradients = ghost_batch_gradients(model, images, labels, batches, l2=l2)
    noise = gradient_noise(gradients, matvec, ghost_batch_size=size, dataset_size=data.train_size, products=products)
    dimension = gradients.shape[1]
    top = largest_eigenvalue(
        matvec,
        dimension,
        seed=seed,
        rtol=rtol,
        max_products=max_products,
        dtype=reference.dtype,
        device=reference.device,
    )
    return _assemble(top, noise, (size, len(chosen), dimension), time.perf_counter() - began, seed, l2)


def _ghost_batch_size(model: nn.Module) -> int:
    sizes = {layer.ghost_batch_size for layer in model.modules() if isinstance(layer, GhostBatchNorm2d)}
    expected = "GhostBatchNorm2d layers of one ghost batch size"
    remedy = "Pass ghost_batch_size, the number of examples per unit."
    checks.require(len(sizes) == 1, "model", expected, sorted(sizes) or "none", remedy)
    return sizes.pop()


def _assemble(
    top: Eigenvalue, noise: GradientNoise, sizes: tuple[int, int, int], seconds: float, seed: int, l2: float
) -> Measurement:
    ghost_batch_size, curvature_examples, parameters = sizes
    return Measurement(
        lambda_max=top,
        trace_noise=noise.trace_noise,
        gradient_norm_squared=noise.gradient_norm_squared,
        noise_curvature_trace=noise.noise_curvature_trace,
        gradient_curvature=noise.gradient_curvature,
        B_simple=noise.simple_noise_scale,
        B_noise=noise.noise_scale,
        B_simple_defined=noise.simple_noise_scale_defined,
        B_noise_defined=noise.noise_scale_defined,
        ghost_batch_size=ghost_batch_size,
        units=noise.units,
        curvature_examples=curvature_examples,
        parameters=parameters,
        hessian_products=top.products + noise.products,
        seconds=seconds,
        seed=seed,
        l2=l2,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
