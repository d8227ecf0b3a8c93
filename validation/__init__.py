"""Training real networks under the paper's protocol, measuring them, and comparing with theory.

Names are loaded when they are first used, so that ``noisysgd --help`` and whoever only reads a store need no PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noisysgd.validation.configuration import TrainConfig
    from noisysgd.validation.data import ImageDataset, load_dataset
    from noisysgd.validation.executors import local_executor, run_one
    from noisysgd.validation.ghost_batch_norm import GhostBatchNorm2d
    from noisysgd.validation.lanczos import largest_eigenvalue
    from noisysgd.validation.measurement import Measurement, measure
    from noisysgd.validation.prediction import calibrated_quadratic, observed_boundary, predict_regimes
    from noisysgd.validation.store import RunStore
    from noisysgd.validation.sweep import Sweep
    from noisysgd.validation.training import train
    from noisysgd.validation.wide_resnet import WideResNet

__all__ = [
    "GhostBatchNorm2d",
    "ImageDataset",
    "Measurement",
    "RunStore",
    "Sweep",
    "TrainConfig",
    "WideResNet",
    "calibrated_quadratic",
    "largest_eigenvalue",
    "load_dataset",
    "local_executor",
    "measure",
    "observed_boundary",
    "predict_regimes",
    "run_one",
    "train",
]

_HOME = {
    "GhostBatchNorm2d": "ghost_batch_norm",
    "ImageDataset": "data",
    "Measurement": "measurement",
    "RunStore": "store",
    "Sweep": "sweep",
    "TrainConfig": "configuration",
    "WideResNet": "wide_resnet",
    "calibrated_quadratic": "prediction",
    "largest_eigenvalue": "lanczos",
    "load_dataset": "data",
    "local_executor": "executors",
    "measure": "measurement",
    "observed_boundary": "prediction",
    "predict_regimes": "prediction",
    "run_one": "executors",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "sklearn"):
            raise
        raise ModuleNotFoundError(
            f"noisysgd.validation.{name} needs {error.name}. Install it with: pip install 'noisysgd[validation]'",
            name=error.name,
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
