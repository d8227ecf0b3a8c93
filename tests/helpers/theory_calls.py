"""Every public function of ``theory`` that takes numbers, with arguments that work and the units of all of them.

One table serves several claims about all functions at once: units do not matter, a mask is never lost, NumPy's error
handling is nobody's business. `test_the_table_is_complete` in ``test_every_function.py`` keeps it whole.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from noisysgd import theory


class Units(NamedTuple):
    """How much larger all numbers are than in the units they were given in: by which a parameter, by which a loss."""

    theta: float = 1.0
    loss: float = 1.0

    @property
    def curvature(self) -> float:
        return self.loss / self.theta / self.theta

    @property
    def rate(self) -> float:
        return self.theta / self.loss * self.theta

    @property
    def variance(self) -> float:
        return self.theta**2

    @property
    def noise(self) -> float:
        gradient = self.loss / self.theta
        return gradient * gradient  # which does not raise where it overflows


class Call(NamedTuple):
    """Keyword arguments as a function of the units and of a problem, and the unit of each result by name."""

    arguments: Callable[[Units, Any], dict[str, Any]]
    results: Callable[[Units], dict[str, float]] = lambda u: {}
    function: Callable[..., Any] | None = None
    problem: bool = True
    rtol: float = 1e-9
    """How far rounding may move the results: far, for the places of minima that are flat, as searches find them."""


STEPS = theory.half_then_decay(60)
FULL = np.array([[1.0, 0.3, 0.0], [0.3, 0.5, -0.1], [0.0, -0.1, 0.2]])


def problems(u: Units) -> dict[str, theory.Quadratic]:
    """One problem of each kind, in these units."""
    eigenvalues = np.array([1.0, 0.5, 0.03]) * u.curvature
    start = {
        "initial_mean": np.array([0.5, -1.0, 0.7]) * u.theta,
        "initial_variance": np.array([1, 0.5, 2]) * u.variance,
    }
    return {
        "diagonal noise": theory.NoisyQuadratic(
            eigenvalues, np.array([1.0, 0.6, 0.1]) * u.noise, **start, weights=[1, 2, 5.5]
        ),
        "full noise": theory.NoisyQuadratic(eigenvalues, FULL * u.noise, **start, dataset_size=1000),
        "least squares": theory.LeastSquares(eigenvalues, 0.1 * u.loss, **start),
    }


def _run(u: Units, **more: Any) -> dict[str, Any]:
    return {"learning_rate": np.array([0.1, 0.7]) * u.rate, "batch_size": [8, 64]} | more


def _run_with_momentum(u: Units, **more: Any) -> dict[str, Any]:
    return _run(u, momentum=[0.0, 0.9]) | more


def _penalty(u: Units) -> theory.L2:
    return theory.L2(0.01 * u.curvature, np.array([1.0, -2.0, 0.5]) * u.theta)


def _fit(u: Units, **more: Any) -> dict[str, Any]:
    rates = np.array([0.1, 0.21, 0.39, 0.7, 0.81, 0.79]) * u.rate
    return {"batch_sizes": [1, 2, 4, 8, 16, 32], "learning_rates": rates, "log_errors": [0.1] * 6} | more


def _two_batches(u: Units) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "small_squared_norms": (2 + rng.random(20)) * u.noise,
        "big_squared_norms": (1 + 0.2 * rng.random(20)) * u.noise,
        "small_batch_size": 8,
        "big_batch_size": 64,
    }


BUDGET = theory.StepBudget(60)
_moments = lambda u: {"": u.variance}  # noqa: E731 - rows of the table below
_loss = lambda u: {"": u.loss}  # noqa: E731
_rate = lambda u: {"": u.rate}  # noqa: E731

CALLS: dict[str, Call] = {
    "critical_learning_rate": Call(lambda u, p: {"problem": p, "batch_size": [1, 64], "momentum": [0.0, 0.9]}, _rate),
    "critical_learning_rate with nesterov": Call(
        lambda u, p: {"problem": p, "batch_size": [1, 64], "momentum": [0.0, 0.9]},
        _rate,
        functools.partial(theory.critical_learning_rate, nesterov=True),
    ),
    "stationary_covariance with nesterov": Call(
        lambda u, p: {"problem": p} | _run_with_momentum(u),
        _moments,
        functools.partial(theory.stationary_covariance, nesterov=True),
    ),
    "stationary_loss with nesterov": Call(
        lambda u, p: {"problem": p} | _run_with_momentum(u),
        _loss,
        functools.partial(theory.stationary_loss, nesterov=True),
    ),
    "expected_loss with nesterov, penalty and tail": Call(
        lambda u, p: {"problem": p, "schedule": STEPS, "tail": 0.5, "l2": _penalty(u)} | _run_with_momentum(u),
        _loss,
        functools.partial(theory.expected_loss, nesterov=True, penalized=True),
    ),
    "expected_parameters with nesterov, penalty and tail": Call(
        lambda u, p: {
            "problem": p,
            "schedule": STEPS,
            "learning_rate": 0.1 * u.rate,
            "momentum": [0.0, 0.9],
            "tail": 0.5,
            "l2": _penalty(u),
        },
        lambda u: {"": u.theta},
        functools.partial(theory.expected_parameters, nesterov=True),
    ),
    "covariance with nesterov and tail": Call(
        lambda u, p: {"problem": p, "schedule": STEPS, "tail": 0.5} | _run_with_momentum(u),
        _moments,
        functools.partial(theory.covariance, nesterov=True),
    ),
    "spectral_radius with nesterov": Call(
        lambda u, p: {"problem": p} | _run_with_momentum(u),
        function=functools.partial(theory.spectral_radius, nesterov=True),
    ),
    "diffusion_curve": Call(
        lambda u, p: {"problem": p, "schedule": STEPS, "at": [0, 7, 60]} | _run_with_momentum(u), _loss
    ),
    "diffusion_loss": Call(lambda u, p: {"problem": p, "schedule": STEPS, "order": 2} | _run(u), _loss),
    "fluctuation_dissipation": Call(
        lambda u, p: {"problem": p, "covariance": np.eye(3) * u.variance} | _run(u),
        lambda u: {"left": u.loss, "right": u.loss},
    ),
    "sde_stationary_covariance": Call(
        lambda u, p: {"problem": p, "temperature": np.array([0.01, 0.1]) * u.rate}, _moments
    ),
    "stationary_covariance": Call(lambda u, p: {"problem": p} | _run_with_momentum(u), _moments),
    "stationary_loss": Call(lambda u, p: {"problem": p} | _run_with_momentum(u), _loss),
    "svag_coefficients": Call(lambda u, p: {"l": [1, 2.0, 8]}, problem=False),
    "svag_loss": Call(lambda u, p: {"problem": p, "schedule": STEPS, "l": 4} | _run(u), _loss),
    "weak_error": Call(
        lambda u, p: {"problem": p, "time": 1.0 * u.rate, "steps": [10, 20], "batch_size": 8, "momentum": 0.0}, _loss
    ),
    "covariance": Call(
        lambda u, p: {"problem": p, "schedule": STEPS, "averaging": [0.0, 0.5], "at": [3, 60]} | _run_with_momentum(u),
        _moments,
    ),
    "expected_loss": Call(
        lambda u, p: {"problem": p, "schedule": STEPS, "averaging": [[0.0], [0.9]]} | _run_with_momentum(u), _loss
    ),
    "expected_parameters": Call(
        lambda u, p: {
            "problem": p,
            "schedule": STEPS,
            "learning_rate": np.array([0.1, 0.7]) * u.rate,
            "momentum": [0.0, 0.9],
            "averaging": [[0.0], [0.5]],
            "at": [3, 60],
        },
        lambda u: {"": u.theta},
    ),
    "loss_curve": Call(
        lambda u, p: {"problem": p, "schedule": STEPS, "at": [0, 1, 30, 60], "averaging": [0.0, 0.5]} | _run(u), _loss
    ),
    "second_moment_map": Call(
        lambda u, p: {"problem": p, "learning_rate": 0.1 * u.rate, "batch_size": 8, "momentum": 0}
    ),
    "spectral_radius": Call(lambda u, p: {"problem": p} | _run_with_momentum(u)),
    "fastest_on_grid": Call(
        lambda u, p: {
            "problem": p,
            "target": 0.3 * u.loss,
            "learning_rates": np.array([0.03, 0.1, 0.3]) * u.rate,
            "batch_size": 64,
            "momenta": [0.0, 0.5],
        },
        lambda u: {"learning_rate": u.rate},
    ),
    "minimum_steps": Call(
        lambda u, p: {"problem": p, "target": 0.3 * u.loss, "batch_size": [64, 256], "momentum": [0.0, 0.5]},
        lambda u: {"learning_rate": u.rate},
    ),
    "optimal_initial_final": Call(
        lambda u, p: {"problem": p, "budget": BUDGET, "batch_size": 64, "momentum": 0.0},
        lambda u: {"initial": u.rate, "final": u.rate, "loss": u.loss},
        rtol=1e-5,  # the place of a flat minimum
    ),
    "optimal_learning_rate": Call(
        lambda u, p: {"problem": p, "budget": BUDGET, "batch_size": [8, 64], "momentum": [0.0, 0.9]}, _rate
    ),
    "optimal_schedule": Call(
        lambda u, p: {"problem": p, "budget": BUDGET, "batch_size": 64, "momentum": 0.0, "segments": 3},
        lambda u: {"multipliers": u.rate},
        rtol=1e-3,
    ),
    "steps_examples_tradeoff": Call(
        lambda u, p: {"problem": p, "target": 0.3 * u.loss, "batch_sizes": [8, 64], "momentum": [0.0, 0.5]},
        lambda u: {"learning_rate": u.rate},
    ),
    "steps_to_target": Call(
        lambda u, p: {"problem": p, "target": 0.3 * u.loss, "max_steps": 10**9} | _run_with_momentum(u)
    ),
    "regimes": Call(
        lambda u, p: {"problem": p, "budget": BUDGET, "batch_sizes": [1, 8, 64, 512], "momentum": [0.0, 0.5]},
        lambda u: {
            "learning_rate": u.rate,
            "effective_learning_rate": u.rate,
            "temperature": u.rate,
            "critical_learning_rate": u.rate,
            "stability_edge": u.rate,
            "loss": u.loss,
        },
        rtol=1e-4,
    ),
    "predict_sweep": Call(
        lambda u, p: {
            "problem": p,
            "budget": BUDGET,
            "batch_sizes": [8, 64],
            "effective_learning_rates": np.array([0.1, 0.5]) * u.rate,
            "momentum": [0.0, 0.5],
        },
        lambda u: {
            "expected_loss": u.loss,
            "learning_rate": u.rate,
            "effective_learning_rate": u.rate,
            "temperature": u.rate,
        },
    ),
    "noise_scales": Call(
        lambda u, p: {"problem": p, "second_moment": np.array([1.0, 2.0, 0.5]) * u.variance},
        lambda u: {
            "gradient_squared": u.noise,
            "gradient_curvature": u.noise * u.curvature,
            "noise_trace": u.noise,
            "noise_curvature": u.noise * u.curvature,
        },
    ),
    "NoiseScales": Call(
        lambda u, p: {
            "gradient_squared": 2.0 * u.noise,
            "gradient_curvature": 4.0 * u.noise * u.curvature,
            "noise_trace": 30.0 * u.noise,
            "noise_curvature": 40.0 * u.noise * u.curvature,
        },
        lambda u: {
            "optimal_learning_rate": u.rate,
            "largest_improvement": u.loss,
            "largest_learning_rate": u.rate,
            "gradient_curvature": u.noise * u.curvature,
        },
        lambda **given: _scales(theory.NoiseScales(**given)),
        problem=False,
    ),
    "two_batch_noise_scale": Call(
        lambda u, p: _two_batches(u),
        lambda u: {
            f"{name}{error}": u.noise for name in ("gradient_squared", "noise_trace") for error in ("", "_error")
        },
        problem=False,
    ),
    "interpolation_batch_size": Call(
        lambda u, p: {"largest_squared_norm": 8.0 * u.curvature, "largest_eigenvalue": 0.5 * u.curvature}, problem=False
    ),
    "steps_and_examples": Call(
        lambda u, p: {"batch_size": [8.0, 64], "minimum_steps": 10, "minimum_examples": 160},
        problem=False,
    ),
    "compare_rules": Call(lambda u, p: _fit(u), problem=False),
    "fit_corner": Call(
        lambda u, p: _fit(u, confidence=0.9),
        lambda u: {"maximum": u.rate},
        problem=False,
        rtol=1e-6,
    ),
    "linear_scaling_exponent": Call(lambda u, p: _fit(u, below=16), problem=False),
    "LinearWithCap": Call(
        lambda u, p: {"slope": 0.1 * u.rate, "cap": 0.8 * u.rate},
        _rate,
        lambda **given: _rates("LinearWithCap", given),
        False,
    ),
    "SquareRoot": Call(
        lambda u, p: {"coefficient": 0.1 * u.rate}, _rate, lambda **given: _rates("SquareRoot", given), False
    ),
    "McCandlish": Call(
        lambda u, p: {"maximum": 0.8 * u.rate, "noise_scale": 16.0},
        _rate,
        lambda **given: _rates("McCandlish", given),
        False,
    ),
    "MaBassilyBelkin": Call(
        lambda u, p: {"beta": 8.0 * u.curvature, "largest": 0.5 * u.curvature},
        _rate,
        lambda **given: _rates("MaBassilyBelkin", given),
        False,
    ),
    "SharpCorner": Call(
        lambda u, p: {"maximum": 0.8 * u.rate, "boundary_batch_size": 16.0, "sharpness": 2.0},
        _rate,
        lambda **given: _rates("SharpCorner", given),
        False,
    ),
    "temperature": Call(
        lambda u, p: {"learning_rate": np.array([0.1, 0.2]) * u.rate, "batch_size": [8, 16], "momentum": [0.0, 0.9]},
        _rate,
        problem=False,
    ),
    "effective_learning_rate": Call(
        lambda u, p: {"learning_rate": np.array([0.1, 0.2]) * u.rate, "momentum": [0.0, 0.9]}, _rate, problem=False
    ),
    "NoisyQuadratic": Call(
        lambda u, p: {
            "eigenvalues": np.array([1.0, 0.5]) * u.curvature,
            "noise": np.array([1.0, 0.5]) * u.noise,
            "initial_mean": np.array([1.0, 0.5]) * u.theta,
            "initial_variance": np.array([1.0, 0.5]) * u.variance,
            "dataset_size": 100,
            "weights": [1, 2],
        },
        _loss,
        lambda **given: theory.NoisyQuadratic(**given).initial_loss,
        problem=False,
    ),
    "LeastSquares": Call(
        lambda u, p: {
            "eigenvalues": np.array([1.0, 0.5]) * u.curvature,
            "label_noise": 0.1 * u.loss,
            "initial_mean": np.array([1.0, 0.5]) * u.theta,
            "initial_variance": np.array([1.0, 0.5]) * u.variance,
            "dataset_size": 100,
            "weights": [1, 2],
            "kurtosis": 3.0,
        },
        _loss,
        lambda **given: theory.LeastSquares(**given).initial_loss,
        problem=False,
    ),
    "L2": Call(
        lambda u, p: {"strength": 0.1 * u.curvature, "origin": np.array([1.0, 2.0]) * u.theta},
        lambda u: {"strength": u.curvature, "origin": u.theta},
        problem=False,
    ),
    "source_capacity": Call(
        lambda u, p: {"dim": 5, "capacity": 1.5, "source": 0.5, "label_noise": 0.1, "dataset_size": 100}, problem=False
    ),
    "power_law": Call(lambda u, p: {"dim": 5, "exponent": 1.5, "dataset_size": 100}, problem=False),
    "two_scale": Call(
        lambda u, p: {"dim": 6, "condition_number": 50.0, "steep": 0.3, "dataset_size": 100}, problem=False
    ),
    "marchenko_pastur": Call(lambda u, p: {"dim": 20, "ratio": 0.5, "dataset_size": 100}, problem=False),
    "measured_spectrum": Call(
        lambda u, p: {"eigenvalues": [1.0, 0.5], "weights": [3, 96], "dataset_size": 100}, problem=False
    ),
    "Schedule": Call(lambda u, p: {"lengths": [3, 4], "multipliers": [1.0, 0.5]}, problem=False),
    "piecewise": Call(lambda u, p: {"lengths": [3, 4], "multipliers": [1.0, 0.5]}, problem=False),
    "constant": Call(lambda u, p: {"steps": 5}, problem=False),
    "half_then_decay": Call(lambda u, p: {"steps": 100, "factor": 2.0, "drops": 5}, problem=False),
    "initial_to_final": Call(
        lambda u, p: {"steps": 100, "initial": 0.4 * u.rate, "final": 0.1 * u.rate},
        lambda u: {"multipliers": u.rate},
        problem=False,
    ),
    "warmup": Call(lambda u, p: {"schedule": STEPS, "steps": 10, "levels": 5}, problem=False),
    "cosine": Call(lambda u, p: {"steps": 100, "final": 0.1}, problem=False),
    "linear": Call(lambda u, p: {"steps": 100, "final": 0.1}, problem=False),
    "warmup_stable_decay": Call(
        lambda u, p: {"steps": 100, "warmup": 0.1, "decay": 0.3, "final": 0.1, "shape": "sqrt"}, problem=False
    ),
    "inverse_sqrt": Call(lambda u, p: {"steps": 100, "warmup": 0.1}, problem=False),
    "per_step": Call(lambda u, p: {"multipliers": [1.0, 0.5, 0.25], "steps": 3}, problem=False),
    "grow_batch": Call(
        lambda u, p: {"schedule": STEPS, "batch_size": 16, "largest": 64.0, "multiple_of": 8}, problem=False
    ),
    "EpochBudget": Call(
        lambda u, p: {"epochs": 2.0, "dataset_size": 100, "batch_size": [1, 8]},
        function=lambda batch_size, **given: theory.EpochBudget(**given).steps(batch_size),
        problem=False,
    ),
    "StepBudget": Call(
        lambda u, p: {"steps": 10, "batch_size": [1, 8]},
        function=lambda batch_size, **given: theory.StepBudget(**given).steps(batch_size),
        problem=False,
    ),
    "UnlimitedBudget": Call(lambda u, p: {"target": 0.1 * u.loss}, lambda u: {"target": u.loss}, problem=False),
    "powers_of_two": Call(lambda u, p: {"low": -3, "high": 2, "fraction": 2}, problem=False),
}

NO_NUMBERS = {
    *("LawEvidence", "QuadraticFit", "MeasuredCurve", "FittedParameter", "DivergedRun", "fit_quadratic"),
    "Compressed",
    *(
        "BatchGrowth",
        "Budget",
        "CornerFit",
        "FluctuationDissipation",
        "InitialFinal",
        "NoiseScaleEstimate",
        "Quadratic",
        "ScalingRule",
    ),
    *("NoisyQuadraticRule", "check_sweep", "join_sweeps", "load_sweep", "save_sweep", "optimum", "sweep_from_records"),
    *("optima_scaling", "sweep_from_table"),
}
"""Public names without numbers of their own: results, protocols and what works on datasets."""


def _scales(scales: theory.NoiseScales) -> dict[str, Any]:
    return {
        "simple": scales.simple,
        "curvature_weighted": scales.curvature_weighted,
        "largest_learning_rate": scales.largest_learning_rate,
        "optimal_learning_rate": scales.optimal_learning_rate([8, 64]),
        "largest_improvement": scales.largest_improvement([8, 64]),
    }


def _rates(rule: str, given: dict[str, Any]) -> Any:
    return getattr(theory, rule)(**given).learning_rate([1, 8, 64, 512])


def function_of(name: str) -> Callable[..., Any]:
    """What to call with the arguments of a row."""
    return CALLS[name].function or getattr(theory, name)


def numbers(result: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """All numbers in a result, by the name of the field that holds them; "" for a result without fields."""
    if isinstance(result, xr.Dataset):
        for key in (*result.coords, *result.data_vars):
            yield from numbers(result[key].values, str(key))
    elif isinstance(result, dict):
        for key, value in result.items():
            yield from numbers(value, key)
    elif hasattr(result, "_fields") or is_dataclass(result):
        names = getattr(result, "_fields", None) or [field.name for field in fields(result)]
        for key in names:
            yield from numbers(getattr(result, key), key)
    elif isinstance(result, tuple | list):
        for value in result:
            yield from numbers(value, name)
    elif result is not None:
        array = np.asarray(result)
        if array.dtype.kind in "iuf":
            yield name, array.astype(np.float64)
