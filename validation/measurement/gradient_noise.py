"""Gradient noise and its scales, measured with the ghost batch as the unit.

Examples that share a ghost batch also share normalisation statistics: their gradients are not independent, and not
even defined one by one. The gradients of whole ghost batches are both. The definitions are those of McCandlish et al.
(2018), arXiv 1812.06162, with the estimators rewritten for units of g examples.

What is estimated are properties of the training set of N examples itself. Units are drawn independently of each other,
and each of them without replacement, so the U-statistics below are unbiased for the mean unit gradient G over that set.
|G|² needs no correction for finite N: a bias of −tr F/N would arise only for units that cannot overlap, such as the
pieces of one shuffled epoch. The finite set does enter F, the covariance of one example's gradient: a mean over g
distinct examples has covariance F/g · (N − g)/(N − 1), which the estimate inverts.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 — the name the field uses
from torch import nn

from noisysgd.theory.common import checks
from noisysgd.validation.measurement.criteria import LossFunction
from noisysgd.validation.measurement.curvature import flatten, loss_function
from noisysgd.validation.measurement.matrix_arguments import MatrixVectorProduct
from noisysgd.validation.measurement.uncertainty import Estimate
from noisysgd.validation.networks.torch_globals import usual_torch

Vector = npt.NDArray[np.float64]

DEFINED_FROM = 2.0
"""A ratio is reported if its denominator exceeds zero by more than this many of its standard errors."""


@dataclass(frozen=True)
class GradientNoise:
    """Gradient noise of the training set at one point of parameter space, with jackknife standard errors.

    Parameters
    ----------
    trace_noise : Estimate
        tr F, with F the covariance of one example's gradient. A batch of B has covariance F/B · (N−B)/(N−1).
    gradient_norm_squared : Estimate
        |G|², corrected for its noise. The correction can leave an estimate at or below zero, which is reported as such.
    noise_curvature_trace : Estimate
        tr(HF).
    gradient_curvature : Estimate
        GᵀHG, corrected for its noise, of either sign.
    simple_noise_scale : Estimate
        B_simple = tr F / |G|², in examples; NaN unless |G|² exceeds two of its standard errors.
    noise_scale : Estimate
        B_noise = tr(HF) / GᵀHG, in examples; NaN unless GᵀHG exceeds two of its standard errors.
    units : int
        K, the number of ghost batches used.
    products : int
        Hessian products used: P + 1, with P ≤ K the units that were multiplied by H.
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


@usual_torch()
def ghost_batch_gradients(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    batches: npt.NDArray[np.int64],
    *,
    l2: float = 0.0,
    criterion: LossFunction = F.cross_entropy,
) -> torch.Tensor:
    """Gradients of the training-mode loss of each ghost batch, shape (units, trainable parameters).

    The model is left as it was. The gradient of ½·l2·‖ω‖² is included; being the same for all units, it changes G but
    not F.
    """
    loss, parameters = loss_function(model, l2=l2, criterion=criterion)
    dimension = sum(parameter.numel() for parameter in parameters)
    gradients = parameters[0].new_empty(len(batches), dimension, requires_grad=False)
    # One pass per unit, since statistics are shared inside a unit only; filling rows in place avoids a second copy.
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

    With unit gradients G₁ … G_K, averages over pairs i ≠ j are free of bias from the noise: |G|² = ⟨GᵢᵀGⱼ⟩ and
    GᵀHG = ⟨GᵢᵀHGⱼ⟩. What the noise adds on the diagonal gives tr F = g·c·(⟨|Gᵢ|²⟩ − ⟨GᵢᵀGⱼ⟩) and
    tr(HF) = g·c·(⟨GᵢᵀHGᵢ⟩ − ⟨GᵢᵀHGⱼ⟩), with c = (N − 1)/(N − g). These equal the sample covariance about the mean and
    the bias-corrected square of the mean. Only the first P units and the sum S of all K are multiplied by H: the
    average over pairs is (SᵀHS − K⟨GᵢᵀHGᵢ⟩)/(K(K − 1)), which stays unbiased for P < K.

    Standard errors are those of the delete-one jackknife over units (Efron & Stein 1981). Where P < K, the units that
    were multiplied by H and those that were not are two strata, and the unknown GᵢᵀHGᵢ of the latter are taken to be
    the mean, which makes the error of GᵀHG too large rather than too small. The error of tr(HF) has P − 1 degrees of
    freedom, and is too small for heavy-tailed units: ``benchmarks/bench_measurement.py`` finds 59, 65 and 69 % of the
    values within one standard error, and 88, 88 and 93 % within two, with P = 8, 16 and 32.

    Parameters
    ----------
    gradients : torch.Tensor
        Shape (K, D), K ≥ 3.
    matvec : callable
        v ↦ Hv on vectors of shape (D,); must not depend on the draw of the units.
    ghost_batch_size, dataset_size : int
        g and N, g < N.
    products : int, optional
        P, from 2 to K; by default K. One more product is spent on the sum of all units.
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
    # Sums over pairs follow from products with the sum of all units: K inner products instead of K².
    total = gradients.sum(dim=0)
    curved = torch.stack([unit @ matvec(unit) for unit in gradients[:products]])
    own, other = _pair_averages(_to_numpy(gradients.square().sum(dim=1)), _to_numpy(gradients @ total))
    curved_own, curved_other = _pair_averages(_to_numpy(curved), _to_numpy(gradients @ matvec(total)))
    trace, curved_trace = scale * (own - other), scale * (curved_own - curved_other)
    return GradientNoise(
        trace_noise=_jackknife(trace, units, rtol),
        gradient_norm_squared=_jackknife(other, units, rtol),
        noise_curvature_trace=_jackknife(curved_trace, products, rtol),
        gradient_curvature=_jackknife(curved_other, products, rtol),
        simple_noise_scale=_ratio(trace, other, units, rtol),
        noise_scale=_ratio(curved_trace, curved_other, products, rtol),
        units=units,
        products=products + 1,
    )


def example_scale(ghost_batch_size: int, dataset_size: int) -> float:
    """Factor from the covariance of one unit's gradient to F, that of one example's: g·(N − 1)/(N − g).

    >>> example_scale(1, 100), round(example_scale(50, 100), 6)
    (1.0, 99.0)
    """
    return ghost_batch_size * (dataset_size - 1) / (dataset_size - ghost_batch_size)


def _pair_averages(own: Vector, rows: Vector) -> tuple[Vector, Vector]:
    """Averages of xᵢᵀHxᵢ and of xᵢᵀHxⱼ over i ≠ j: entry 0 from all units, entry 1 + k without unit k.

    Parameters
    ----------
    own : (P,) array
        xᵢᵀHxᵢ of the first P units.
    rows : (K,) array
        xᵢᵀHS of all K units, with S their sum.
    """
    met, units = len(own), len(rows)
    # Leaving out the unit of value x changes a mean m of P values by (m − x)/(P − 1).
    mean = np.full(units + 1, own.mean())
    mean[1 : met + 1] += (own.mean() - own) / (met - 1)
    # (S − x)ᵀH(S − x) = SᵀHS − 2 xᵀHS + xᵀHx, where the mean stands in for an xᵀHx that was not computed.
    left_out = np.full(units, own.mean())
    left_out[:met] = own
    squares = np.concatenate([[rows.sum()], rows.sum() - 2 * rows + left_out])
    count = np.full(units + 1, units - 1.0)
    count[0] = units
    # SᵀHS is the sum over all pairs; without the diagonal, n times the mean, it is that over the n(n − 1) with i ≠ j.
    return mean, (squares - count * mean) / (count * (count - 1))


def _jackknife(values: Vector, met: int, rtol: float) -> Estimate:
    """The estimate values[0], with its standard error from values[1 + k], the estimates without unit k."""
    # Leaving out a unit that was multiplied by H changes more than leaving out another: each kind has its own mean.
    strata = [stratum for stratum in (values[1 : met + 1], values[met + 1 :]) if len(stratum)]
    variance = sum((len(s) - 1) / len(s) * float(np.square(s - s.mean()).sum()) for s in strata)
    return Estimate.with_tolerance(float(values[0]), math.sqrt(variance), rtol)


def _above_noise(denominator: Estimate) -> bool:
    """Whether a ratio with this denominator has a meaningful error: none has where the denominator may be zero."""
    return denominator.value > DEFINED_FROM * denominator.stderr


def _ratio(numerator: Vector, denominator: Vector, met: int, rtol: float) -> Estimate:
    # The jackknife of the ratio itself, in which errors that numerator and denominator share cancel.
    if not _above_noise(_jackknife(denominator, met, rtol)):
        return Estimate.with_tolerance(math.nan, math.nan, rtol)
    return _jackknife(numerator / denominator, met, rtol)


def _to_numpy(vector: torch.Tensor) -> Vector:
    return vector.double().cpu().numpy()
