"""Gradient noise and its scales, measured with the ghost batch as the unit.

Examples that share a ghost batch also share normalisation statistics: their gradients are neither independent nor
even defined one by one. Gradients of whole ghost batches are. The definitions are those of McCandlish et al. (2018),
arXiv 1812.06162, with the estimators rewritten for units of g examples.

The target is the training set of N examples itself. Units are drawn independently of each other, each without
replacement inside, so the U-statistics below are unbiased for the mean unit gradient G over that set, and nothing has
to be taken off |G|² for finite N (that bias, −tr F/N, is of units which may not overlap, such as the pieces of one
shuffled epoch). The finite set does enter F, the covariance of one example's gradient: a mean over g distinct examples
has covariance F/g · (N − g)/(N − 1), which the estimate inverts.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 — the name the field uses
from torch import nn

from noisysgd.theory.common import checks
from noisysgd.validation.measurement.curvature import LossFunction, flatten, loss_function
from noisysgd.validation.measurement.lanczos import MatrixVectorProduct
from noisysgd.validation.measurement.uncertainty import Estimate, estimate

Vector = npt.NDArray[np.float64]

DEFINED_FROM = 2.0
"""A ratio is reported if its denominator is positive by more than so many of its standard errors."""


@dataclass(frozen=True)
class GradientNoise:
    """Gradient noise of the training set at one point of parameter space, with jackknife standard errors.

    Parameters
    ----------
    trace_noise : Estimate
        tr F, F the gradient noise covariance of one example: a batch of B has covariance F/B · (N−B)/(N−1).
    gradient_norm_squared : Estimate
        |G|², corrected for its noise; an estimate at or below zero is reported as it came out.
    noise_curvature_trace : Estimate
        tr(HF).
    gradient_curvature : Estimate
        GᵀHG, corrected for its noise; may have either sign.
    simple_noise_scale : Estimate
        B_simple = tr F / |G|², in examples; NaN unless |G|² exceeds two of its standard errors.
    noise_scale : Estimate
        B_noise = tr(HF) / GᵀHG, in examples; NaN unless GᵀHG exceeds two of its standard errors.
    units : int
        Ghost batches used, K.
    products : int
        Hessian products used, P + 1 with P ≤ K.
    """

    trace_noise: Estimate
    gradient_norm_squared: Estimate
    noise_curvature_trace: Estimate
    gradient_curvature: Estimate
    simple_noise_scale: Estimate
    noise_scale: Estimate
    units: int
    products: int

    @property
    def simple_noise_scale_defined(self) -> bool:
        """Whether |G|² exceeds two of its standard errors."""
        return _above_noise(self.gradient_norm_squared)

    @property
    def noise_scale_defined(self) -> bool:
        """Whether GᵀHG exceeds two of its standard errors."""
        return _above_noise(self.gradient_curvature)


def draw_ghost_batches(
    dataset_size: int, *, ghost_batch_size: int, units: int, seed: int | np.random.SeedSequence
) -> npt.NDArray[np.int64]:
    """Draw `units` independent ghost batches, each without replacement, as a (units, ghost_batch_size) index array.

    The draw is NumPy's ``Generator(Philox(seed)).choice``, unit by unit, so that asking for more units appends to
    those already drawn.

    Examples
    --------
    >>> draw_ghost_batches(100, ghost_batch_size=4, units=3, seed=0).shape
    (3, 4)
    """
    generator = np.random.Generator(np.random.Philox(seed))
    batches = [generator.choice(dataset_size, ghost_batch_size, replace=False) for _ in range(units)]
    return np.asarray(batches, dtype=np.int64)


def ghost_batch_gradients(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    batches: npt.NDArray[np.int64],
    *,
    l2: float = 0.0,
    criterion: LossFunction = F.cross_entropy,
) -> torch.Tensor:
    """Training-mode loss gradients of each ghost batch, shape (units, trainable parameters).

    Leaves the model as it was. The gradient of ½·l2·‖ω‖² is included; it moves G and not F.
    """
    loss, parameters = loss_function(model, l2=l2, criterion=criterion)
    dimension = sum(parameter.numel() for parameter in parameters)
    gradients = parameters[0].new_empty(len(batches), dimension, requires_grad=False)
    for row, batch in zip(gradients, batches, strict=True):
        chosen = torch.from_numpy(batch).to(images.device)
        row.copy_(
            flatten(torch.autograd.grad(loss(images[chosen], labels[chosen]), parameters, materialize_grads=True))
        )
    return gradients


def gradient_noise(
    gradients: torch.Tensor,
    matvec: MatrixVectorProduct,
    *,
    ghost_batch_size: int,
    dataset_size: int,
    products: int | None = None,
    rtol: float = 0.1,
) -> GradientNoise:
    """Noise covariance traces and noise scales from the gradients of independent ghost batches.

    With unit gradients G₁ … G_K, averages over pairs i ≠ j give what the noise cannot bias, |G|² = ⟨GᵢᵀGⱼ⟩ and
    GᵀHG = ⟨GᵢᵀHGⱼ⟩, and tr F = g·c·(⟨|Gᵢ|²⟩ − ⟨GᵢᵀGⱼ⟩), tr(HF) = g·c·(⟨GᵢᵀHGᵢ⟩ − ⟨GᵢᵀHGⱼ⟩) with
    c = (N − 1)/(N − g). These equal the sample covariance about the mean and the bias-corrected square of the mean.
    H meets the first P units and the sum of all K: the average over pairs is (SᵀHS − K⟨GᵢᵀHGᵢ⟩)/(K(K − 1)) with S
    the sum, which stays unbiased for P < K.

    Standard errors are delete-one jackknife over units (Efron & Stein 1981). Where P < K, in two strata, and the GᵢᵀHGᵢ
    of a unit that did not meet H is taken to be the mean, which errs on the large side for GᵀHG. The error of tr(HF)
    has P − 1 degrees of freedom, and is too small for heavy-tailed units: ``benchmarks/bench_measurement.py`` finds 59,
    65 and 69 % of the values within one standard error, 88, 88 and 93 % within two, with P = 8, 16 and 32.

    Parameters
    ----------
    gradients : torch.Tensor
        Shape (K, D), K ≥ 3.
    matvec : callable
        v ↦ Hv on vectors of shape (D,); must not depend on the draw of the units.
    ghost_batch_size, dataset_size : int
        g and N, g < N.
    products : int, optional
        P, from 2 to K; by default K. One more product is spent on the sum.
    rtol : float
        Standard error, as a share of the value, at which an estimate counts as converged.

    Returns
    -------
    GradientNoise

    Raises
    ------
    ValueError
        For too few units, products outside 2 … K, or g ≥ N.

    Examples
    --------
    >>> import torch
    >>> gradients = torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 1.0], [2.0, -1.0]])
    >>> found = gradient_noise(gradients, lambda v: 2 * v, ghost_batch_size=1, dataset_size=100)
    >>> round(found.trace_noise.value, 6), round(found.gradient_norm_squared.value, 6)
    (1.333333, 3.666667)
    >>> round(found.noise_scale.value, 6)
    0.363636
    """
    units = checks.integer("units", len(gradients), 3, remedy="The jackknife needs at least three ghost batches.")
    products = units if products is None else checks.integer("products", products, 2, remedy="Use at least two.")
    checks.require(products <= units, "products", f"at most the {units} units", products, "Draw more units.")
    remedy = "The noise of the full batch is zero; use smaller ghost batches."
    checks.require(ghost_batch_size < dataset_size, "ghost_batch_size", f"< {dataset_size}", ghost_batch_size, remedy)
    scale = example_scale(ghost_batch_size, dataset_size)
    total = gradients.sum(dim=0)
    curved = torch.stack([unit @ matvec(unit) for unit in gradients[:products]])
    own, other = _pair_averages(_to_numpy(gradients.square().sum(dim=1)), _to_numpy(gradients @ total))
    curved_own, curved_other = _pair_averages(_to_numpy(curved), _to_numpy(gradients @ matvec(total)))
    trace, curved_trace = scale * (own - other), scale * (curved_own - curved_other)
    return GradientNoise(
        trace_noise=_estimate(trace, units, rtol),
        gradient_norm_squared=_estimate(other, units, rtol),
        noise_curvature_trace=_estimate(curved_trace, products, rtol),
        gradient_curvature=_estimate(curved_other, products, rtol),
        simple_noise_scale=_ratio(trace, other, units, rtol),
        noise_scale=_ratio(curved_trace, curved_other, products, rtol),
        units=units,
        products=products + 1,
    )


def example_scale(ghost_batch_size: int, dataset_size: int) -> float:
    """F over the covariance of one unit's gradient: g·(N − 1)/(N − g).

    >>> example_scale(1, 100), round(example_scale(50, 100), 6)
    (1.0, 99.0)
    """
    return ghost_batch_size * (dataset_size - 1) / (dataset_size - ghost_batch_size)


def _pair_averages(own: Vector, rows: Vector) -> tuple[Vector, Vector]:
    """Average xᵢᵀHxᵢ and xᵢᵀHxⱼ (i ≠ j): entry 0 with all units, entry 1 + k without unit k.

    Takes own (P,), the xᵢᵀHxᵢ of the first P units, and rows (K,), all xᵢᵀHS with S the sum of the units.
    """
    met, units = len(own), len(rows)
    mean = np.full(units + 1, own.mean())
    mean[1 : met + 1] += (own.mean() - own) / (met - 1)
    left_out = np.full(units, own.mean())
    left_out[:met] = own
    squares = np.concatenate([[rows.sum()], rows.sum() - 2 * rows + left_out])
    count = np.full(units + 1, units - 1.0)
    count[0] = units
    return mean, (squares - count * mean) / (count * (count - 1))


def _estimate(values: Vector, met: int, rtol: float) -> Estimate:
    strata = [stratum for stratum in (values[1 : met + 1], values[met + 1 :]) if len(stratum)]
    variance = sum((len(s) - 1) / len(s) * float(np.square(s - s.mean()).sum()) for s in strata)
    return estimate(float(values[0]), math.sqrt(variance), rtol)


def _above_noise(denominator: Estimate) -> bool:
    """Whether dividing by it makes sense: a ratio's standard error means nothing where its denominator may be zero."""
    return denominator.value > DEFINED_FROM * denominator.stderr


def _ratio(numerator: Vector, denominator: Vector, met: int, rtol: float) -> Estimate:
    if not _above_noise(_estimate(denominator, met, rtol)):
        return estimate(math.nan, math.nan, rtol)
    return _estimate(numerator / denominator, met, rtol)


def _to_numpy(vector: torch.Tensor) -> Vector:
    return vector.double().cpu().numpy()
