"""How the optimal learning rate depends on the batch size: regimes, scaling rules, their corner, noise scales."""

from noisysgd.theory.scaling.comparison import compare_rules, linear_scaling_exponent
from noisysgd.theory.scaling.corner import CornerFit, SharpCorner, fit_corner
from noisysgd.theory.scaling.measured import optima_scaling
from noisysgd.theory.scaling.noise_scale import (
    NoiseScaleEstimate,
    NoiseScales,
    interpolation_batch_size,
    noise_scales,
    steps_and_examples,
    two_batch_noise_scale,
)
from noisysgd.theory.scaling.regime_map import regimes
from noisysgd.theory.scaling.rules import (
    LinearWithCap,
    MaBassilyBelkin,
    McCandlish,
    NoisyQuadraticRule,
    ScalingRule,
    SquareRoot,
)

__all__ = [
    "CornerFit",
    "LinearWithCap",
    "MaBassilyBelkin",
    "McCandlish",
    "NoiseScaleEstimate",
    "NoiseScales",
    "NoisyQuadraticRule",
    "ScalingRule",
    "SharpCorner",
    "SquareRoot",
    "compare_rules",
    "fit_corner",
    "interpolation_batch_size",
    "linear_scaling_exponent",
    "noise_scales",
    "optima_scaling",
    "regimes",
    "steps_and_examples",
    "two_batch_noise_scale",
]
