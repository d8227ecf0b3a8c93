"""Training real networks under the paper's protocol, measuring them, and comparing with theory.

Names are loaded when they are first used, so that ``noisysgd --help`` and whoever only reads a store need no PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noisysgd.validation.augmentation import augment
    from noisysgd.validation.calibration import Calibration, calibrate
    from noisysgd.validation.configuration import TrainConfig
    from noisysgd.validation.data import ImageDataset, load_dataset
    from noisysgd.validation.executors import local_executor, run_one
    from noisysgd.validation.foreign_batch_science import read_batch_science
    from noisysgd.validation.foreign_pd1 import pd1_tasks, read_pd1
    from noisysgd.validation.ghost_batch_norm import GhostBatchNorm2d
    from noisysgd.validation.lanczos import largest_eigenvalue, leading_eigenpairs
    from noisysgd.validation.measurement import Measurement, measure, recorder
    from noisysgd.validation.pairs import PairSweep
    from noisysgd.validation.prediction import calibrated_quadratic, observed_boundary, predict_regimes
    from noisysgd.validation.sharpness import batch_sharpness, stability
    from noisysgd.validation.spectrum import SpectralDensity, SpectralMeasures, spectral_density
    from noisysgd.validation.store import RunStore
    from noisysgd.validation.sweep import Sweep
    from noisysgd.validation.traces import hutch_plus_plus_trace, hutchinson_trace
    from noisysgd.validation.training import train
    from noisysgd.validation.wide_resnet import WideResNet

__all__ = [
    "Calibration",
    "GhostBatchNorm2d",
    "ImageDataset",
    "Measurement",
    "PairSweep",
    "RunStore",
    "SpectralDensity",
    "SpectralMeasures",
    "Sweep",
    "TrainConfig",
    "WideResNet",
    "augment",
    "batch_sharpness",
    "calibrate",
    "calibrated_quadratic",
    "hutch_plus_plus_trace",
    "hutchinson_trace",
    "largest_eigenvalue",
    "leading_eigenpairs",
    "load_dataset",
    "local_executor",
    "measure",
    "observed_boundary",
    "pd1_tasks",
    "predict_regimes",
    "read_batch_science",
    "read_pd1",
    "recorder",
    "run_one",
    "spectral_density",
    "stability",
    "train",
]

_HOME = {
    "Calibration": "calibration",
    "GhostBatchNorm2d": "ghost_batch_norm",
    "ImageDataset": "data",
    "Measurement": "measurement",
    "PairSweep": "pairs",
    "RunStore": "store",
    "SpectralDensity": "spectrum",
    "SpectralMeasures": "spectrum",
    "Sweep": "sweep",
    "TrainConfig": "configuration",
    "WideResNet": "wide_resnet",
    "augment": "augmentation",
    "batch_sharpness": "sharpness",
    "calibrate": "calibration",
    "calibrated_quadratic": "prediction",
    "hutch_plus_plus_trace": "traces",
    "hutchinson_trace": "traces",
    "largest_eigenvalue": "lanczos",
    "leading_eigenpairs": "lanczos",
    "load_dataset": "data",
    "local_executor": "executors",
    "measure": "measurement",
    "observed_boundary": "prediction",
    "pd1_tasks": "foreign_pd1",
    "predict_regimes": "prediction",
    "read_batch_science": "foreign_batch_science",
    "read_pd1": "foreign_pd1",
    "recorder": "measurement",
    "run_one": "executors",
    "spectral_density": "spectrum",
    "stability": "sharpness",
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
