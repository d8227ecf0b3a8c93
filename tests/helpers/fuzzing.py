"""Public functions called with arguments that are wrong in every way that is known.

``python fuzzing.py SEED FIRST LAST LOG`` makes the calls numbered FIRST to LAST − 1 and writes to LOG a line for each
that did what no call may; the test that starts it reads there too which call it was in when the process died or hung.
"""

import datetime
import decimal
import faulthandler
import fractions
import functools
import inspect
import os
import random
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from noisysgd import simulators, theory, validation
from noisysgd.theory import plots, testing

SECONDS = 1.0
"""Processor time that a call may take."""
HANGING = 120
"""Seconds after which a call is taken to hang, and the process ended."""
LONGEST = 2000
"""Characters that a message may have."""
MEMORY = 6 * 2**30
"""Bytes of address space beyond what the process has at its start: a call that wants more is refused them."""


class Odd:
    """An object that fails at whatever it is asked, even to describe itself."""

    def _fail(self, *_: object) -> Any:
        raise RuntimeError("odd")

    __repr__ = __len__ = __iter__ = __float__ = __int__ = __array__ = __eq__ = __bool__ = __call__ = _fail
    __hash__ = object.__hash__


def nested(depth: int) -> list[Any]:
    found: list[Any] = [1.0]
    for _ in range(depth):
        found = [found]
    return found


def circular() -> list[Any]:
    found: list[Any] = [1.0]
    found.append(found)
    return found


def big() -> int:
    return 10**5000


def a_problem() -> theory.NoisyQuadratic:
    return theory.power_law(3, dataset_size=100)


def least_squares() -> theory.LeastSquares:
    return theory.LeastSquares([1.0, 0.5], 0.1)


@functools.cache
def a_sweep() -> xr.Dataset:
    return theory.predict_sweep(
        a_problem(), theory.StepBudget(8), batch_sizes=[1, 4], effective_learning_rates=[0.25, 0.5, 1.0, 2.0]
    )


@functools.cache
def a_map() -> xr.Dataset:
    return theory.regimes(a_problem(), theory.StepBudget(16), batch_sizes=[1, 4, 16, 64], momentum=[0.0])


@functools.cache
def a_tradeoff() -> xr.Dataset:
    return theory.steps_examples_tradeoff(a_problem(), 0.5, batch_sizes=[1, 4])


@functools.cache
def pairs() -> xr.Dataset:
    return simulators.bracketed_pairs(finite(), theory.StepBudget(4), batch_size=2, runs=2, keep=1)


def finite() -> simulators.FiniteLeastSquares:
    generator = np.random.default_rng(0)
    return simulators.FiniteLeastSquares(generator.normal(size=(6, 2)), generator.normal(size=6))


def simulated(offset: int) -> xr.Dataset:
    settings: dict[str, Any] = {"learning_rate": 0.1, "batch_size": 4, "replicas": 32, "replica_offset": offset}
    return simulators.simulate(a_problem(), theory.constant(5), keep_tiles=True, threads=1, **settings)


def a_network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


@functools.cache
def data() -> validation.ImageDataset:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(24, 1, 4, 4, generator=generator), torch.arange(24) % 3
    return validation.ImageDataset("random", images, labels, images[:8], labels[:8], 3, "seeded normals")


QUICK = {"units": 4, "products": 2, "eigenvalues": 1, "probes": 2, "noise_draws": 2, "steps": 3, "sharpness_batches": 2}
QUICK |= {"ghost_batch_size": 1, "max_products": 6}


@functools.cache
def a_measurement() -> validation.Measurement:
    return validation.measure(a_network(), data(), **QUICK)


def config() -> validation.TrainConfig:
    return validation.TrainConfig(learning_rate=0.1, batch_size=16, steps=1, subset=32)


def twice(vector: torch.Tensor) -> torch.Tensor:
    return 2 * vector


GIVEN = {
    "sweep": lambda: validation.Sweep(base=config(), batch_sizes=[16], momenta=[0.0], exponents=[0, 1], seeds=1),
    "schedule": lambda: theory.constant(5),
    "budget": lambda: theory.StepBudget(8),
}

VALUES: dict[str, Callable[[], Any]] = {
    repr(value): functools.partial(lambda value: value, value)
    for value in (
        *(None, True, False, 0, -1, 1, 2, 3, 7, 17, 0.5, -0.5, 0.1, 1.5, 1e-300, 5e-324, -5e-324, 1e300, 1.7e308, 1e16),
        *(float("inf"), float("-inf"), float("nan"), 2**31, 2**53, 2**53 + 1, 2**63, 2**64, 10**9, 10**6, 10**19),
        *(10**400, -(10**400), 1e9, "", "x", "sgd", "0.1", "minimize", "float32", "loss", "\udcff", "nan", b"x", 1j),
        *((), (1,), (0.1, 0.2), (2, 1), range(3), range(10**12), ..., int, np.float64, frozenset({1})),
        *(fractions.Fraction(1, 3), decimal.Decimal("0.1"), Path("none"), datetime.date(2020, 2, 29)),
    )
}
VALUES |= {
    "10**5000": big,
    "[]": list,
    "[[]]": lambda: [[]],
    "[0.1]": lambda: [0.1],
    "[1, 4, 16]": lambda: [1, 4, 16],
    "[0.1, nan]": lambda: [0.1, float("nan")],
    "[[1, 2], [3]]": lambda: [[1, 2], [3]],
    "[[1, 2], [3, 4]]": lambda: [[1, 2], [3, 4]],
    "[None]": lambda: [None],
    "['a']": lambda: ["a"],
    "{}": dict,
    "{'a': 1}": lambda: {"a": 1},
    "{1: 2}": lambda: {1: 2},
    "set()": set,
    "object()": object,
    "Odd()": Odd,
    "Odd": lambda: Odd,
    "[Odd()]": lambda: [Odd()],
    "nested(3000)": lambda: nested(3000),
    "nested(100)": lambda: nested(100),
    "circular()": circular,
    "lambda: 1": lambda: lambda: 1,
    "lambda *_, **__: None": lambda: lambda *_, **__: None,
    "iter([1, 2])": lambda: iter([1, 2]),
    "generator": lambda: (x for x in (0.1, 0.2)),
    "np.array([])": lambda: np.array([]),
    "np.array(0.1)": lambda: np.array(0.1),
    "np.zeros((2, 0))": lambda: np.zeros((2, 0)),
    "np.ones((2, 2))": lambda: np.ones((2, 2)),
    "np.ones((2, 2, 2, 2))": lambda: np.ones((2, 2, 2, 2)),
    "np.arange(3)": lambda: np.arange(3),
    "np.array([1, 2], object)": lambda: np.array([1, None], object),
    "np.array([True])": lambda: np.array([True]),
    "np.array(['a'])": lambda: np.array(["a"]),
    "np.array([1j])": lambda: np.array([1j]),
    "datetime64": lambda: np.array(["2020-01-01"], "datetime64[D]"),
    "structured": lambda: np.zeros(2, [("a", float)]),
    "masked": lambda: np.ma.masked_array([0.1, 0.2], [True, False]),
    "np.asmatrix": lambda: np.asmatrix([[1.0, 2.0]]),
    "float32": lambda: np.float32(0.1),
    "int8": lambda: np.int8(-3),
    "longdouble": lambda: np.longdouble("1e4000"),
    "broadcast": lambda: np.broadcast_to(np.float64(0.1), 10**10),
    "zeros(20)": lambda: np.zeros(20),
    "ones(100)": lambda: np.ones(100),
    "np.random": lambda: np.random.default_rng(0),
    "DataArray": lambda: xr.DataArray([0.1, 0.2], dims="a"),
    "Dataset": xr.Dataset,
    "Series": lambda: a_sweep().to_dataframe().iloc[:, -1],
    "DataFrame": lambda: a_sweep().to_dataframe(),
    "tensor": lambda: torch.tensor([0.1, 0.2]),
    "tensor that requires gradients": lambda: torch.tensor([0.1, 0.2], requires_grad=True),
    "scalar tensor that requires gradients": lambda: torch.tensor(0.1, requires_grad=True),
    "integer tensor": lambda: torch.tensor([1, 2]),
    "empty tensor": lambda: torch.empty(0),
    "images": lambda: data().train_images,
    "bfloat16": lambda: torch.ones(2, dtype=torch.bfloat16),
    "sparse": lambda: torch.eye(2).to_sparse(),
    "meta": lambda: torch.empty(3, device="meta"),
    "torch.float32": lambda: torch.float32,
    "problem": a_problem,
    "least squares": least_squares,
    "schedule": lambda: theory.constant(5),
    "StepBudget": lambda: theory.StepBudget(8),
    "EpochBudget": lambda: theory.EpochBudget(2.0, 100),
    "UnlimitedBudget": lambda: theory.UnlimitedBudget(0.1),
    "huge StepBudget": lambda: theory.StepBudget(2**52),
    "L2": lambda: theory.L2(0.1, 0.0),
    "rule": lambda: theory.SquareRoot(0.1),
    "sweep": a_sweep,
    "map": a_map,
    "half a sweep": lambda: a_sweep().drop_vars("status"),
    "a sweep of one point": lambda: a_sweep().isel(batch_size=[0], learning_rate=[0]),
    "a sweep without dimensions": lambda: a_sweep().isel(batch_size=0),
    "finite": finite,
    "network": a_network,
    "frozen network": lambda: a_network().requires_grad_(False),
    "TrainConfig": config,
    "data": data,
    "measurement": a_measurement,
    "measurement as a dict": lambda: a_measurement().as_dict(),
    "training sweep": GIVEN["sweep"],
    "half_then_decay": lambda: theory.half_then_decay,
    "NoisyQuadratic": lambda: theory.NoisyQuadratic,
    "twice": lambda: twice,
}

CALLED = ("matvec", "criterion", "clock", "observe", "progress", "model", "schedule")
"""Arguments that are functions of the user's own, whose errors are not ours to put into words."""
CALLABLE = ("network", "frozen network", "NoisyQuadratic", "half_then_decay", "Odd", "Odd()", "<class 'int'>")

SETTING = {"learning_rate": 0.1, "batch_size": 4}
POINTS = {"batch_sizes": [1, 4, 16, 64], "learning_rates": [0.1, 0.2, 0.4, 0.5]}
PROBLEM: dict[str, Any] = {"problem": a_problem}
PLAIN = PROBLEM | {"schedule": lambda: theory.constant(5)} | SETTING


def lazily(**arguments: Any) -> dict[str, Any]:
    return arguments


GOOD: dict[str, dict[str, Any]] = {
    "theory.EpochBudget": {"epochs": 2, "dataset_size": 100},
    "theory.L2": {"strength": 0.1, "origin": 0.0},
    "theory.LeastSquares": {"eigenvalues": [1.0, 0.5]},
    "theory.LinearWithCap": {"slope": 0.1, "cap": 1.0},
    "theory.MaBassilyBelkin": {"beta": 1.0, "largest": 1.0},
    "theory.McCandlish": {"maximum": 1.0, "noise_scale": 10.0},
    "theory.NoiseScales": dict.fromkeys(
        ("gradient_squared", "gradient_curvature", "noise_trace", "noise_curvature"), 1.0
    ),
    "theory.NoisyQuadratic": {"eigenvalues": [1.0, 0.5], "noise": 1.0},
    "theory.NoisyQuadraticRule": PROBLEM | {"budget": GIVEN["budget"]},
    "theory.Schedule": {"lengths": [2, 3], "multipliers": [1.0, 0.5]},
    "theory.SharpCorner": {"maximum": 1.0, "boundary_batch_size": 10.0, "sharpness": 2.0},
    "theory.SquareRoot": {"coefficient": 0.1},
    "theory.StepBudget": {"steps": 8},
    "theory.UnlimitedBudget": {"target": 0.5},
    "theory.check_sweep": {"sweep": a_sweep},
    "theory.compare_rules": POINTS,
    "theory.constant": {"steps": 5},
    "theory.covariance": PLAIN,
    "theory.critical_learning_rate": PROBLEM,
    "theory.diffusion_curve": PLAIN | {"at": [1, 5]},
    "theory.diffusion_loss": PLAIN,
    "theory.effective_learning_rate": {"learning_rate": 0.1, "momentum": 0.5},
    "theory.expected_loss": PLAIN,
    "theory.expected_parameters": {name: value for name, value in PLAIN.items() if name != "batch_size"},
    "theory.fastest_on_grid": PROBLEM | {"target": 0.5, "learning_rates": [0.1, 0.5], "batch_size": 4},
    "theory.fit_corner": POINTS,
    "theory.fluctuation_dissipation": PROBLEM | SETTING,
    "theory.half_then_decay": {"steps": 20},
    "theory.initial_to_final": {"steps": 20, "initial": 1.0, "final": 0.1},
    "theory.interpolation_batch_size": {"largest_squared_norm": 3.0, "largest_eigenvalue": 1.0},
    "theory.linear_scaling_exponent": POINTS,
    "theory.load_sweep": {"path": "none.nc"},
    "theory.loss_curve": PLAIN | {"at": [1, 5]},
    "theory.marchenko_pastur": {"dim": 4, "ratio": 0.5},
    "theory.measured_spectrum": {"eigenvalues": [1.0, 0.5], "weights": [1.0, 3.0]},
    "theory.minimum_steps": PROBLEM | {"target": 0.5, "batch_size": 4},
    "theory.noise_scales": PROBLEM,
    "theory.optimal_initial_final": PROBLEM | {"budget": GIVEN["budget"], "batch_size": 4},
    "theory.optimal_learning_rate": PROBLEM | {"budget": GIVEN["budget"], "batch_size": 4},
    "theory.optimal_schedule": PROBLEM | {"budget": GIVEN["budget"], "batch_size": 4, "segments": 2},
    "theory.optimum": {"sweep": a_sweep, "metric": "expected_loss", "keep": 1},
    "theory.piecewise": {"lengths": [2, 3], "multipliers": [1.0, 0.5]},
    "theory.power_law": {"dim": 3},
    "theory.powers_of_two": {"low": -2, "high": 2},
    "theory.predict_sweep": PROBLEM
    | {"budget": GIVEN["budget"], "batch_sizes": [1, 4], "effective_learning_rates": [0.5, 1.0]},
    "theory.regimes": PROBLEM | {"budget": GIVEN["budget"], "batch_sizes": [1, 4]},
    "theory.save_sweep": {"sweep": a_sweep, "path": "saved.nc"},
    "theory.sde_stationary_covariance": PROBLEM | {"temperature": 0.1},
    "theory.second_moment_map": PROBLEM | SETTING,
    "theory.source_capacity": {"dim": 3, "capacity": 1.5, "source": 0.5},
    "theory.spectral_radius": PROBLEM | SETTING,
    "theory.stationary_covariance": PROBLEM | SETTING,
    "theory.stationary_loss": PROBLEM | SETTING,
    "theory.steps_and_examples": {"minimum_steps": 10.0, "minimum_examples": 100.0, "batch_size": 4},
    "theory.steps_examples_tradeoff": PROBLEM | {"target": 0.5, "batch_sizes": [1, 4]},
    "theory.steps_to_target": PROBLEM | {"target": 0.5} | SETTING,
    "theory.svag_coefficients": {"l": 2},
    "theory.svag_loss": PLAIN | {"l": 2},
    "theory.sweep_from_records": {
        "records": [
            {"learning_rate": 0.1, "batch_size": 1, "momentum": 0.0, "seed": 0, "status": "complete", "loss": 1.0}
        ],
        "source": "theory",
        "metrics": ["loss"],
    },
    "theory.temperature": SETTING,
    "theory.two_batch_noise_scale": {
        "small_squared_norms": [2.0, 3.0, 2.5],
        "big_squared_norms": [1.0, 1.2, 1.1],
        "small_batch_size": 1,
        "big_batch_size": 10,
    },
    "theory.two_scale": {"dim": 4, "condition_number": 10.0},
    "theory.warmup": {"schedule": GIVEN["schedule"], "steps": 2, "levels": 2},
    "theory.weak_error": PROBLEM | {"time": 1.0, "steps": [2, 4], "batch_size": 4},
    "plots.plot_covariance": {"covariance": [[1.0, 0.0], [0.0, 1.0]]},
    "plots.plot_critical_learning_rate": PROBLEM | {"batch_sizes": [1, 4]},
    "plots.plot_loss_curves": {"steps": [1, 2], "losses": [0.5, 0.25]},
    "plots.plot_losses": {"sweep": a_sweep, "metric": "expected_loss"},
    "plots.plot_noise_scale": {"scales": lambda: theory.noise_scales(a_problem()), "batch_sizes": [1, 4]},
    "plots.plot_optimum": {"best": lambda: theory.optimum(a_sweep(), "expected_loss", keep=1)},
    "plots.plot_regimes": {"regimes": a_map},
    "plots.plot_scaling_rules": POINTS | {"rules": lambda: [theory.SquareRoot(0.1)]},
    "plots.plot_schedule": {"schedules": GIVEN["schedule"]},
    "plots.plot_spectrum": PROBLEM,
    "plots.plot_steps_to_target": {"batch_sizes": [1, 4], "steps": [8, 3]},
    "plots.plot_tradeoff": {"dataset": a_tradeoff},
    "plots.plot_weak_error": PROBLEM | {"time": 1.0, "steps": [2, 4], "batch_size": 4},
    "testing.Setting": {"learning_rate": 0.1, "batch_size": 1.0, "momentum": 0.0},
    "testing.batch_sizes": {},
    "testing.budgets": {},
    "testing.learning_rates": PROBLEM,
    "testing.least_squares_problems": {},
    "testing.momenta": {},
    "testing.problems": {},
    "testing.schedules": {},
    "testing.settings_in": {"regime": "noise dominated"} | PROBLEM,
    "testing.spectra": {},
    "simulators.Configuration": {"learning_rate": 0.1, "momentum": 0.5},
    "simulators.DiagonalNetwork": {"inputs": [[1.0, 0.5], [0.2, 1.0]], "targets": [1.0, 2.0], "truth": [1.0, 0.0]},
    "simulators.FiniteLeastSquares": {"inputs": [[1.0, 0.5], [0.2, 1.0]], "targets": [1.0, 2.0]},
    "simulators.NoiseLaw": {},
    "simulators.TimeLeft": {},
    "simulators.best_pair": {"pairs": pairs, "metric": "loss", "keep": 1},
    "simulators.bracketed_pairs": {"model": finite, "budget": GIVEN["budget"], "batch_size": 2, "runs": 2, "keep": 1},
    "simulators.bracketed_sweep": {
        "model": finite,
        "budget": GIVEN["budget"],
        "batch_sizes": [2],
        "runs": 2,
        "keep": 1,
    },
    "simulators.final_losses": {
        "model": finite,
        "points": lambda: [(theory.constant(3), simulators.Configuration(0.1, 0.0, batch_size=2))],
        "runs": 2,
    },
    "simulators.join": {"datasets": lambda: [simulated(0), simulated(32)]},
    "simulators.noise": {"seed": 0, "law": simulators.NoiseLaw, "replicas": [0], "step": 0, "coordinates": [0, 1, 2]},
    "simulators.normals": {
        "seed": 0,
        "purpose": lambda: simulators.Purpose.JUMP,
        "replicas": [0],
        "step": 0,
        "coordinates": [0, 1, 2],
    },
    "simulators.random_bits": {
        "seed": 0,
        "purpose": lambda: simulators.Purpose.JUMP,
        "replica": 0,
        "step": 0,
        "block": 0,
    },
    "simulators.random_words": {
        "seed": 0,
        "purpose": lambda: simulators.Purpose.JUMP,
        "replica": 0,
        "step": 0,
        "count": 3,
    },
    "simulators.shares": {"replicas": 64, "parts": 2},
    "simulators.simulate": PLAIN | {"replicas": 4, "threads": 1},
    "simulators.simulate_sweep": PROBLEM
    | {"budget": GIVEN["budget"], "batch_sizes": [1], "effective_learning_rates": [0.5], "momentum": [0.0]}
    | {"seeds": 2, "replicas": 2, "threads": 1},
    "simulators.sparse_regression": {"dim": 5, "examples": 4, "nonzero": 2},
    "validation.GhostBatchNorm2d": {"features": 2},
    "validation.MeasurementOptions": {},
    "validation.PairSweep": {"base": config},
    "validation.RunStore": {"root": "runs"},
    "validation.Sweep": {"base": config, "batch_sizes": [16], "momenta": [0.0], "exponents": [0, 1], "seeds": 1},
    "validation.TrainConfig": {"learning_rate": 0.1, "batch_size": 16, "steps": 1},
    "validation.WideResNet": {"depth": 10, "width": 1},
    "validation.augment": {"images": lambda: data().train_images[:2], "indices": [0, 1], "seed": 0, "step": 0},
    "validation.batch_sharpness": {
        "model": a_network,
        "images": lambda: data().train_images,
        "labels": lambda: data().train_labels,
        "batches": lambda: np.arange(24).reshape(3, 8),
    },
    "validation.calibrate": {"measurement": a_measurement},
    "validation.calibrated_quadratic": {"measurement": lambda: a_measurement().as_dict(), "loss": 1.0},
    "validation.hutch_plus_plus_trace": {"matvec": lambda: twice, "dimension": 4, "products": 6, "seed": 0},
    "validation.hutchinson_trace": {"matvec": lambda: twice, "dimension": 4, "probes": 2, "seed": 0},
    "validation.largest_eigenvalue": {"matvec": lambda: twice, "dimension": 4, "seed": 0},
    "validation.leading_eigenpairs": {"matvec": lambda: twice, "dimension": 4, "count": 1, "seed": 0},
    "validation.load_dataset": {"name": "digits", "subset": 32},
    "validation.measure": {"model": a_network, "data": data} | QUICK,
    "validation.observed_boundary": {"best": lambda: theory.optimum(a_sweep(), "expected_loss", keep=1)},
    "validation.pd1_tasks": {"paths": "none"},
    "validation.predict_regimes": {
        "measurements": lambda: [{"step": 0} | a_measurement().as_dict()],
        "momentum": [0.0],
    },
    "validation.read_batch_science": {"workload": "none"},
    "validation.read_pd1": {"paths": "none"},
    "validation.recorder": {"data": data, "into": list},
    "validation.run_one": {"store": lambda: validation.RunStore("runs"), "config": config},
    "validation.spectral_density": {"matvec": lambda: twice, "dimension": 4, "probes": 2, "steps": 3, "seed": 0},
    "validation.stability": {"sharpness": lambda: a_measurement().lambda_max, "learning_rate": 0.1},
    "validation.train": {"config": config},
    "theory.DivergedRun": {"learning_rate": 4.0, "batch_size": 4},
    "theory.MeasuredCurve": {"steps": [0, 1, 2], "losses": [1.0, 0.5, 0.25], "schedule": GIVEN["schedule"]} | SETTING,
    "theory.cosine": {"steps": 10},
    "theory.fit_quadratic": {"curves": list},  # a fit takes seconds: what is wrong is refused before
    "theory.grow_batch": {"schedule": lambda: theory.half_then_decay(100), "batch_size": 16},
    "theory.inverse_sqrt": {"steps": 10},
    "theory.join_sweeps": {"sweeps": lambda: [a_sweep()]},
    "theory.linear": {"steps": 10},
    "theory.optima_scaling": {"best": lambda: theory.optimum(a_sweep(), "expected_loss", keep=1), "optimizer": "sgd"},
    "theory.per_step": {"multipliers": [1.0, 0.5]},
    "theory.sweep_from_table": {
        "table": {"learning_rate": [0.1], "batch_size": [1], "train_loss": [1.0]},
        "metrics": "train_loss",
    },
    "theory.warmup_stable_decay": {"steps": 10},
    "plots.plot_measured_curves": {"curves": list},
    # Methods, as functions of the object that has them.
    "theory.Schedule.at": {"self": GIVEN["schedule"], "step": 3},
    "theory.EpochBudget.steps": {"self": lambda: theory.EpochBudget(2, 100), "batch_size": 10},
    "theory.StepBudget.steps": {"self": GIVEN["budget"], "batch_size": 10},
    "theory.NoisyQuadratic.precondition": {"self": a_problem, "power": 0.5},
    "theory.NoisyQuadratic.with_dataset_size": {"self": a_problem, "dataset_size": 50},
    "theory.SquareRoot.learning_rate": {"self": lambda: theory.SquareRoot(0.1), "batch_size": 4},
    "theory.SharpCorner.learning_rate": {"self": lambda: theory.SharpCorner(1.0, 10.0, 2.0), "batch_size": 4},
    "theory.SharpCorner.fit": POINTS,
    "theory.McCandlish.fit": POINTS,
    "theory.LinearWithCap.fit": POINTS,
    "validation.TrainConfig.from_dict": {"values": {"learning_rate": 0.1, "batch_size": 16, "steps": 1}},
    "validation.RunStore.read": {"self": lambda: validation.RunStore("runs"), "config": config},
    "validation.RunStore.write": {
        "self": lambda: validation.RunStore("runs"),
        "record": lambda: {"config": config().as_dict(), "status": "complete", "steps": 1},
    },
}
"""For every public function arguments with which it is quick; what is callable makes a value anew for each call."""

EXEMPT = {
    "theory.Budget": "a protocol",
    "theory.ScalingRule": "a protocol",
    "theory.Quadratic": "the base of the problems",
    "theory.BatchGrowth": "a result",
    "theory.Compressed": "a result",
    "theory.CornerFit": "a result",
    "theory.FittedParameter": "a result",
    "theory.LawEvidence": "a result",
    "theory.QuadraticFit": "a result",
    "theory.FluctuationDissipation": "a result",
    "theory.InitialFinal": "a result",
    "theory.NoiseScaleEstimate": "a result",
    "testing.register": "takes nothing",
    "simulators.Purpose": "an enumeration",
    "validation.Calibration": "a result",
    "validation.ImageDataset": "a result",
    "validation.Measurement": "a result",
    "validation.SpectralDensity": "a result",
    "validation.SpectralMeasures": "a result",
    "validation.local_executor": "starts processes, and its arguments have tests of their own",
}
"""Public names that are not called here, and why."""

ROOTS = {"theory": theory, "plots": plots, "testing": testing, "simulators": simulators, "validation": validation}


def function(name: str) -> Callable[..., object]:
    """The function, class or method of that name in the tables above."""
    first, *rest = name.split(".")
    return functools.reduce(getattr, rest, ROOTS[first])  # type: ignore[arg-type, return-value]


def made(value: object) -> Any:
    return value() if callable(value) else value


def call_numbered(number: int, seed: int) -> tuple[str, dict[str, str]]:
    """The function of a call, and the names in VALUES of the arguments that replace good ones: a function of both."""
    chosen = random.Random(f"{seed}:{number}")
    name = chosen.choice(sorted(GOOD))
    parameters = inspect.signature(function(name)).parameters.values()
    known = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "self"]
    odd = chosen.sample(known, k=min(len(known), chosen.choice((1, 1, 1, 2, 2, 3))))
    own = [value for value in sorted(VALUES) if value not in CALLABLE]
    return name, {each: chosen.choice(own if each in CALLED else sorted(VALUES)) for each in odd}


def shown(name: str, odd: dict[str, str]) -> str:
    return f"{name}({', '.join(f'{parameter}={value}' for parameter, value in odd.items())})"


def fault(name: str, odd: dict[str, str]) -> str | None:
    """What a call did that no call may; ``None`` if it returned, or raised an error that says what to do, in time."""
    good = {parameter: made(value) for parameter, value in GOOD[name].items() if parameter not in odd}
    arguments = good | {parameter: VALUES[value]() for parameter, value in odd.items()}
    positional = [arguments.pop("self")] if "self" in arguments else []
    wrong = None
    started = time.process_time()
    try:
        function(name)(*positional, **arguments)
    except BaseException as error:
        text = str(error)
        words = re.search(r"\bexpected\b", text) is not None and len(text) < LONGEST
        told = isinstance(error, ValueError | TypeError) and words
        told |= isinstance(error, OSError) and error.filename is not None  # of the system, and documented
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/noisysgd/" in frame.filename]
        place = f"{ours[-1].filename.partition('/noisysgd/')[2]}:{ours[-1].lineno}" if ours else "nowhere"
        wrong = None if told else f"{type(error).__name__} at {place}: {text[:200]}"
    seconds = time.process_time() - started
    return wrong or (f"{seconds:.1f} s of processor time" if seconds > SECONDS else None)


def main(seed: int, first: int, last: int, log: Path) -> None:
    """Make the calls of these numbers, each announced in `log` before it is made."""
    warnings.simplefilter("ignore")
    os.chdir(tempfile.mkdtemp())
    import matplotlib

    matplotlib.use("agg")
    torch.set_num_threads(1)
    for name in GOOD:  # compiles, imports and reads what calls share, whose time is not that of a call
        fault(name, {})
    here = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + MEMORY, resource.RLIM_INFINITY))
    with log.open("a", encoding="utf-8") as lines:
        faulthandler.enable(lines)
        for number in range(first, last):
            name, odd = call_numbered(number, seed)
            lines.write(f"{number} {shown(name, odd)}\n")
            lines.flush()
            faulthandler.dump_traceback_later(HANGING, exit=True, file=lines)
            wrong = fault(name, odd)
            if wrong is not None and "processor time" in wrong:
                wrong = fault(name, odd)  # code for types that no call had before has been compiled by now
            faulthandler.cancel_dump_traceback_later()
            if wrong is not None:
                lines.write(f"FAULT {wrong!r}\n")
            matplotlib.pyplot.close("all")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), Path(sys.argv[4]))
