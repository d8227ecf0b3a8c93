"""How curved each batch's loss is along its own gradient: what decides whether SGD is stable.

Full-batch gradient descent hovers where λ_max reaches 2/ε. For SGD the quantity that does so is the batch sharpness
(Andreyev & Beneventano 2024, arXiv 2412.20553): λ_max itself stays below 2/ε, the more so the smaller the batch.
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 — the name the field uses
from torch import nn

from noisysgd.theory.common import checks
from noisysgd.validation.measurement.criteria import LossFunction
from noisysgd.validation.measurement.curvature import loss_function
from noisysgd.validation.measurement.uncertainty import Estimate, mean_estimate
from noisysgd.validation.networks.arithmetic_precision import autocast_precision
from noisysgd.validation.networks.torch_globals import usual_torch

BATCHES = "Pass an (n, B) array of indices of examples."


@usual_torch()
def batch_sharpness(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    batches: npt.NDArray[np.int64],
    *,
    l2: float = 0.0,
    rtol: float = 0.1,
    criterion: LossFunction = F.cross_entropy,
) -> Estimate:
    """E over batches of g_BᵀH_B g_B/|g_B|², with g_B and H_B gradient and Hessian of the loss of batch B alone.

    The loss is that of training mode, with running averages frozen and dropout off; the model is left as it was. Every
    batch costs one gradient and one Hessian product. :func:`stability` compares the result with 2/ε.

    Parameters
    ----------
    model : torch.nn.Module
    images, labels : torch.Tensor
        Shapes (N, …) and (N,).
    batches : (n, B) array
        Indices of independently drawn batches, n ≥ 2; with ghost batch norm B is a multiple of the ghost batch size.
    l2 : float
        Coefficient of the penalty ½·l2·‖ω‖² that the loss includes.
    rtol : float
        Standard error, as a share of the value, at which the estimate counts as converged.
    criterion : callable
        See :func:`~noisysgd.validation.measurement.curvature.loss_hessian_vector_product`.

    Returns
    -------
    Estimate
        With the standard error from the spread between batches; NaN if a batch has a gradient of exactly zero.

    Raises
    ------
    ValueError
        For fewer than two batches.

    Examples
    --------
    Logits (w, 0) at w = 0, inputs 2 and 4: the curvature of every batch is x²/4.

    >>> class Slope(nn.Linear):
    ...     def forward(self, x):
    ...         return torch.cat([super().forward(x), torch.zeros_like(x)], dim=1)
    >>> model = Slope(1, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> found = batch_sharpness(model, torch.tensor([[2.0], [4.0]]), torch.tensor([0, 0]), np.array([[0], [1]]))
    >>> found.value  # (1 + 4)/2
    2.5
    """
    for name, tensor in (("images", images), ("labels", labels)):
        checks.instance(name, tensor, torch.Tensor, remedy="Pass tensors of the training set.")
    one_each = images.ndim > 0 and images.shape[:1] == labels.shape[:1]
    checks.require(
        one_each, "labels", f"one for each of the images, {tuple(images.shape)}", tuple(labels.shape), "Pair."
    )
    rows = [checks.indices("batches", batch) for batch in checks.several("batches", batches, object, remedy=BATCHES)]
    checks.require(len(rows) > 1, "batches", "at least two", len(rows), "The spread between them is the error.")
    fit = all(row.ndim == 1 and row.size and row.max() < len(images) for row in rows)
    checks.require(fit, "batches", f"indices of the {len(images)} images", batches, BATCHES)
    rtol = checks.interval("rtol", rtol, 0.0, float("inf"), remedy="1e-2 is enough for most purposes.")
    loss, parameters = loss_function(model, l2=l2, criterion=criterion)
    values = []
    with autocast_precision("float32", str(parameters[0].device)):
        for batch in rows:
            chosen = torch.from_numpy(batch).to(images.device)
            value = loss(images[chosen], labels[chosen])
            slopes = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
            # The gradient is differentiated along a copy of itself that is held fixed, which gives H_B g_B.
            fixed = [slope.detach() for slope in slopes]
            along = torch.stack([(slope * f).sum() for slope, f in zip(slopes, fixed, strict=True)]).sum()
            columns = torch.autograd.grad(along, parameters, materialize_grads=True)
            length = sum(float(f.square().sum()) for f in fixed)
            bent = sum(float((column * f).sum()) for column, f in zip(columns, fixed, strict=True))
            values.append(bent / length if length else np.nan)
    return mean_estimate(values, rtol)


def stability(sharpness: Estimate, *, learning_rate: float) -> Estimate:
    """Batch sharpness in units of 2/ε: 1 where SGD without momentum hovers at the edge of stability, less below.

    The standard error is scaled likewise, and the flag `converged` stays as it is.

    Examples
    --------
    >>> stability(Estimate(value=4.0, stderr=0.2, converged=True), learning_rate=0.25)
    Estimate(value=0.5, stderr=0.025, converged=True)
    """
    remedy = "Pass what batch_sharpness or measure returned."
    checks.instance("sharpness", sharpness, Estimate, remedy=remedy)
    rate = checks.scalar("learning_rate", checks.learning_rate(learning_rate))
    return Estimate(rate / 2 * sharpness.value, rate / 2 * sharpness.stderr, sharpness.converged)
