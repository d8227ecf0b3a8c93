"""Whether a criterion is a mean over the examples, as everything that is measured takes for granted.

Losses are computed batch by batch, and the noise unit by unit; each part counts by its share of the examples. That is
the loss of the whole if the criterion is a mean over examples. A sum is not; nor is torch's mean under class weights or
``ignore_index``, which divides by the weights in the batch, so that every result would depend on how examples are cut.
"""

from collections.abc import Callable

import torch

from noisysgd.theory.common import checks
from noisysgd.validation.networks.coupling import near

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
MOST_LABELS = 1000
"""Distinct labels that a criterion is tried on."""
REMEDY = (
    "Average what each example has by itself: F.cross_entropy(logits, labels, reduction='none', ...).mean(). Sums, "
    "roots of means, and torch's mean with class weights or ignore_index are none."
)


def check_mean(criterion: LossFunction, logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Raise unless the value of these examples, and its gradient, is the weighted mean of those of their parts.

    Parts are the first half and the first third against the rest, in the given order and in that of the labels.

    Parameters
    ----------
    criterion : callable
    logits, labels : torch.Tensor
        Shapes (n, …); nothing is checked for n < 2.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> from torch.nn.functional import cross_entropy
    >>> logits, labels = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 1, 1])
    >>> check_mean(cross_entropy, logits, labels)
    >>> weight = torch.tensor([1.0, 3.0])
    >>> check_mean(lambda z, y: cross_entropy(z, y, weight, reduction="none").mean(), logits, labels)
    >>> check_mean(lambda z, y: cross_entropy(z, y, weight), logits, labels)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: criterion: expected the mean over the examples, got 1.39... for 3 of them and ...
    """
    count = len(labels)
    if count < 2:
        return
    with torch.enable_grad():
        whole, slope = _value_and_gradient(criterion, logits, labels)
        for order in _orders(labels):
            for cut in sorted({max(count // 3, 1), count // 2}):
                parts = order[:cut], order[cut:]
                found = [_value_and_gradient(criterion, logits[part], labels[part]) for part in parts]
                shares = [len(part) / count for part in parts]
                mean = sum(share * value for share, (value, _) in zip(shares, found, strict=True))
                slopes = torch.cat([share * each for share, (_, each) in zip(shares, found, strict=True)])
                same = near(torch.as_tensor(mean), whole) and near(slopes, slope[order])
                got = f"{float(whole):g} for {count} of them and {float(mean):g} for the weighted mean of two parts"
                if not same:
                    raise ValueError(f"criterion: expected the mean over the examples, got {got}. {REMEDY}")


def check_mean_elsewhere(criterion: LossFunction, logits: torch.Tensor, labels: torch.Tensor) -> None:
    """:func:`check_mean`, for these logits and for others near them where the criterion is defined.

    A network may begin with the same logits for all examples, where even the median loss looks like a mean.
    """
    check_mean(criterion, logits, labels)
    if logits.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        others = logits + torch.randn(logits.shape, generator=generator).to(logits)
        try:
            criterion(others, labels)
        except Exception:  # of probabilities, say, which these are not; what it raises is the user's
            return
        check_mean(criterion, others, labels)


def with_all_labels(
    logits: torch.Tensor, labels: torch.Tensor, of_data: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The examples, and further ones that have every label of the data set and the logits of the examples again.

    Few examples may lack just those classes that a criterion weights or ignores.
    """
    if of_data.ndim != 1:  # targets of several numbers: examples from all over the data set
        others = of_data[:: max(len(of_data) // MOST_LABELS, 1)][:MOST_LABELS]
    else:
        distinct = torch.unique(of_data)
        others = distinct[:: -(-len(distinct) // MOST_LABELS)]
    rows = torch.arange(len(others), device=logits.device) % len(logits)
    return torch.cat([logits, logits[rows]]), torch.cat([labels, others.to(labels)])


def _orders(labels: torch.Tensor) -> list[torch.Tensor]:
    given = torch.arange(len(labels), device=labels.device)
    # Sorted, the parts have other classes, and so other weights.
    return [given] if labels.ndim != 1 else [given, torch.argsort(labels, stable=True)]


def _value_and_gradient(
    criterion: LossFunction, logits: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A criterion's value and its gradient by the logits, both without a graph."""
    place = logits.detach().clone().requires_grad_()
    value = criterion(place, labels)
    got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value)
    remedy = "Average over the examples: reduction='mean' in torch's losses."
    checks.require(got == (), "criterion(logits, labels)", "a tensor of shape ()", got, remedy)
    remedy = "Compute it from the logits by operations of torch."
    checks.require(value.requires_grad, "criterion(logits, labels)", "a function with a gradient", "none", remedy)
    (slope,) = torch.autograd.grad(value, place, materialize_grads=True)
    return value.detach(), slope
