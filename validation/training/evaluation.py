"""The metrics of a record: cross-entropy and accuracy on the training and the test set."""

import torch
import torch.nn.functional as F  # noqa: N812 — the name the field uses
from torch import nn

from noisysgd.validation.configuration import METRICS, TrainConfig
from noisysgd.validation.data.datasets import ImageDataset
from noisysgd.validation.networks.arithmetic_precision import autocast_precision
from noisysgd.validation.networks.factory import batch_norms
from noisysgd.validation.networks.ghost_batch_norm import GhostBatchNorm2d, one_update, training_mode
from noisysgd.validation.training.inputs import minibatch, take

CHUNK = {"cpu": 256, "cuda": 4096}
"""Examples passed through the network at a time: what stays in a CPU's caches, and what fills a GPU."""


@torch.no_grad()
def evaluate(model: nn.Module, data: ImageDataset, config: TrainConfig) -> dict[str, float]:
    """The metrics of a record, of a model with its present parameters and on its present device.

    Parameters
    ----------
    model : torch.nn.Module
        Left in training mode.
    data : ImageDataset
    config : TrainConfig

    Returns
    -------
    dict
        ``train_loss`` and ``test_loss``, mean cross-entropies in nats, and ``train_accuracy`` and ``test_accuracy``.
        Training metrics are in training mode, under the statistics of ghost batches, and leave out the examples beyond
        the last whole ghost batch. With torch's own batch norms, whose loss depends on the batch, these groups are the
        batches of training. Test metrics are in evaluation mode.
    """
    order, size = _training_order(model, data, config)
    everything = torch.arange(len(data.test_images))
    with autocast_precision(config.precision, config.device):
        with training_mode(model):
            train = _scores(model, data.train_images, data.train_labels, order, size)
        model.eval()
        test = _scores(model, data.test_images, data.test_labels, everything, size)
        model.train()
    return dict(zip(METRICS, (*train, *test), strict=True))


@torch.no_grad()
def renew_running_statistics(model: nn.Module, data: ImageDataset, config: TrainConfig) -> None:
    """Set what normalisation layers use in evaluation mode to the statistics of the parameters as they are.

    Each gets the mean over the training set, in groups as :func:`evaluate` takes them, of what training would have
    averaged over its last updates; without dropout and augmentation. For parameters that no update has led to, such as
    averages, running statistics are those of other parameters. Layers of ghost batch norm, and torch's batch and
    instance norms, are known here; what other layers keep stays as it is.
    """
    kinds = GhostBatchNorm2d | nn.modules.batchnorm._NormBase
    layers = [layer for layer in model.modules() if isinstance(layer, kinds) and layer.track_running_stats]
    if not layers:
        return
    order, size = _training_order(model, data, config)
    shares = [layer.momentum for layer in layers]
    device, seen = next(model.parameters()).device, 0
    try:
        with autocast_precision(config.precision, config.device), training_mode(model), one_update(model):
            for layer in layers:
                layer.track_running_stats = True
            for chunk in torch.split(order.to(data.train_images.device), size):
                seen += len(chunk)
                for layer in layers:
                    # A running mean over chunks; ghost batch norm waits for all groups, and takes their mean.
                    layer.momentum = 1.0 if isinstance(layer, GhostBatchNorm2d) else len(chunk) / seen
                model(take(data.train_images, chunk).to(device))
    finally:
        for layer, share in zip(layers, shares, strict=True):
            layer.momentum = share


def _training_order(model: nn.Module, data: ImageDataset, config: TrainConfig) -> tuple[torch.Tensor, int]:
    """The training examples in an order to be passed through the network in training mode, and how many at a time."""
    # Each chunk is made of whole groups, as many as CHUNK has room for; of one group where torch's batch norms would
    # take the chunk for a batch.
    coupled = bool(batch_norms(model))
    group = config.batch_size if coupled else config.group_size
    size = group if coupled else group * max(1, CHUNK[torch.device(config.device).type] // group)
    whole = data.train_size - data.train_size % group
    # Shuffled in the same way for every run, so that ghost batches mix classes as they do in training.
    return torch.from_numpy(minibatch(0, 0, data.train_size, data.train_size)[:whole]), size


def _scores(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, order: torch.Tensor, size: int
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of the examples in `order`, in chunks of `size`."""
    device = next(model.parameters()).device
    order = order.to(images.device)
    logits = torch.cat([model(take(images, chunk).to(device)) for chunk in torch.split(order, size)])
    labels = labels[order].to(device)
    loss = F.cross_entropy(logits.double(), labels)
    return float(loss), float((logits.argmax(1) == labels).double().mean())
