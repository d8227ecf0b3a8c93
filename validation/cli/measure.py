"""``noisysgd measure``: curvature and gradient noise of a network on its way, from the TOML file of its training."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisysgd.validation.cli.options import Commands, UsageError, add_command, check_output, integers
from noisysgd.validation.measurement.options import MeasurementOptions

if TYPE_CHECKING:
    from torch import nn

    from noisysgd.validation.configuration import TrainConfig

DESCRIPTION = """\
Train one network as a TOML file says and measure it on its way: largest Hessian eigenvalue, traces of the Hessian and
of the gradient noise, gradient, noise scales and batch sharpness, each with its error, and the critical learning rate
of the noisy quadratic that these make. Prints a table, and writes everything as JSON: each of its "states" is what
Calibration.from_measurement and predict_regimes take. The file is the one that `noisysgd train` reads.

examples:
  noisysgd measure run.toml                                 at the beginning and the end
  noisysgd measure run.toml --at 0,50,200 --out run.json
  noisysgd measure run.toml --at 0 --probes 0               λ_max and the noise alone, at much less cost
  noisysgd measure run.toml --steps 40 --units 1024         a finer spectrum, a surer noise
  noisysgd measure sweep-runs/119936ed973dbd08/config.toml

exit status: 0 done; 1 failed; 2 bad usage; 3 the run diverged before a step that was to be measured; 130 interrupted.
"""
DEFAULT_OUT = Path("measurements.json")
DIVERGED = 3


FROM_THE_RUN = {"ghost_batch_size": "the configuration's", "sharpness_batch_size": "that of training"}
"""Options whose defaults come from the run that is measured, where `measure` would go by the network alone."""


def add_measure_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add ``measure`` to the command line."""
    measure = add_command(
        commands,
        "measure",
        common,
        _measure,
        help="train one network and measure its curvature and gradient noise",
        description=DESCRIPTION,
        interrupted="Nothing was written: the same command starts over.",
    )
    measure.add_argument("file", type=Path, help="the configuration of the training, as a TOML file")
    steps = integers(0, "distinct steps such as 0,50,200")
    measure.add_argument("--at", type=steps, metavar="STEPS", help="updates before which to measure (first and last)")
    text = f"the JSON file ({DEFAULT_OUT}, which must not exist yet)"
    measure.add_argument("--out", type=Path, help=text)
    measure.add_argument("--flat", type=float, help="curvature, as a share of λ_max, to calibrate without (0.001)")
    group = measure.add_argument_group("options of the measurement, by the names of validation.measure")
    for option in fields(MeasurementOptions):
        _add_option(group, option)


def _add_option(group: "argparse._ArgumentGroup", option: "Field[Any]") -> None:
    flag, least = f"--{option.name.replace('_', '-')}", option.metadata["least"]
    default = option.metadata["otherwise"] if option.default is None else f"{option.default:g}"
    text = f"{option.metadata['help']} ({FROM_THE_RUN.get(option.name, default)})"
    if least is None:
        group.add_argument(flag, type=float, metavar="X", help=text)
    else:
        read = integers(least, f"an integer ≥ {least}", most=1)
        group.add_argument(flag, type=lambda word: read(word)[0], metavar="N", help=text)


def _measure(options: argparse.Namespace) -> int:
    import json

    from noisysgd.theory.common.files import write_text
    from noisysgd.theory.common.provenance import provenance
    from noisysgd.validation.cli.train import read_config
    from noisysgd.validation.data.datasets import load_dataset
    from noisysgd.validation.measurement.measurement import recorder
    from noisysgd.validation.training.loop import train

    out = DEFAULT_OUT if options.out is None else options.out
    check_output("--out", out)
    if options.out is None and out.exists():
        raise ValueError(f"{out}: expected no file of that name, got one. Name another with --out, or the same.")
    config = read_config(options.file)
    data = load_dataset(
        config.dataset, subset=config.subset, subset_seed=config.subset_seed, downsample=config.downsample
    )
    last = config.schedule(data.train_size).steps
    at = (0, last) if options.at is None else tuple(sorted(options.at))
    if at[-1] > last:
        raise UsageError(f"--at: expected steps from 0 to {last}, got {at[-1]}. The run has no others.")
    values = {option.name: getattr(options, option.name) for option in fields(MeasurementOptions)}
    given = {name: value for name, value in values.items() if value is not None}
    asked = {"ghost_batch_size": config.group_size, "sharpness_batch_size": config.batch_size} | given
    states: list[dict[str, Any]] = []
    record_state = recorder(data, states, **asked)

    def observe(step: int, model: "nn.Module") -> None:
        record_state(step, model)
        print(f"step {step} measured", file=sys.stderr, flush=True)

    record = train(config, observe=observe, observe_at=at)
    for state in states:
        state["critical_learning_rate"] = critical_learning_rate(state, config, options.flat)
    result = {"config": config.as_dict(), "measure": asked, "record": record, "states": states}
    write_text(out, json.dumps(result | {"provenance": provenance()}, indent=1, allow_nan=False) + "\n")
    print("\n".join(report(config, record, states)))
    print(f"{out} written")
    lacking = sorted(set(at) - {state["step"] for state in states})
    if lacking:
        print(f"not measured, for the run diverged: step {', '.join(map(str, lacking))}: {record['divergence']}")
    return DIVERGED if lacking else 0


def critical_learning_rate(
    state: Mapping[str, Any], config: "TrainConfig", flat: float | None = None
) -> dict[str, Any]:
    """The critical learning rate of the noisy quadratic that a measured state is calibrated to, as plain values.

    Parameters
    ----------
    state : mapping
        Fields of :class:`noisysgd.validation.Measurement` as plain values.
    config : TrainConfig
        The run, whose momentum, Nesterov's step and dampening decide how far it can go.
    flat : float, optional
        Curvature, as a share of λ_max, up to which directions are left out: see
        :meth:`noisysgd.validation.Calibration.from_measurement`.

    Returns
    -------
    dict
        ``value``, ``error`` (``None`` if it is not known), ``converged``, and the shares of the measurement that the
        noisy quadratic leaves out: ``dropped_modes``, ``dropped_gradient`` and ``dropped_noise``. Where there is no
        such quadratic, ``value`` is ``None`` and ``reason`` says why.
    """
    import math

    from noisysgd import theory
    from noisysgd.validation.prediction.calibration import Calibration

    if state["spectrum"] is None:
        return {"value": None, "reason": "no spectrum was measured (probes = 0)"}
    try:
        found = Calibration.from_measurement(state, **({} if flat is None else {"flat": flat}))
    except ValueError as error:
        return {"value": None, "reason": str(error)}
    # Dampening is a smaller learning rate: more of it is bearable.
    m, unit = config.momentum, 1.0 - config.dampening
    value, error_bar = found.predict(
        lambda problem: theory.critical_learning_rate(problem, momentum=m, nesterov=config.nesterov) / unit
    )
    return {
        "value": float(value),
        "error": float(error_bar) if math.isfinite(error_bar) else None,
        "converged": found.converged,
        "dropped_modes": found.dropped_modes,
        "dropped_gradient": found.dropped_gradient,
        "dropped_noise": found.dropped_noise,
    }


ROWS = {
    "λ_max": "lambda_max",
    "tr H": "trace_curvature",
    "tr F": "trace_noise",
    "|G|²": "gradient_norm_squared",
    "B_simple": "B_simple",
    "B_noise": "B_noise",
    "batch sharpness": "batch_sharpness",
    "critical ε": "critical_learning_rate",
}


def report(config: "TrainConfig", record: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines that the command prints: a table with a row for each number and a column for each state, and notes."""
    rate, size = f"learning rate {config.learning_rate:g}, momentum {config.momentum:g}", f"B = {config.batch_size}"
    loss = "" if record["train_loss"] is None else f", training loss {record['train_loss']:.4g}"
    table = [["step", *(str(state["step"]) for state in states)]]
    table += [[label, *(cell(state[field]) for state in states)] for label, field in ROWS.items()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table]
    reasons = {state["critical_learning_rate"].get("reason") for state in states} - {None}
    notes = [f"no critical learning rate: {reason}" for reason in sorted(reasons)]
    if any(text.endswith("*") for row in table for text in row):
        notes.append(
            "* not converged: λ_max wants more --max-products; tr H more --probes; critical ε more --steps; "
            "the others more --units, --products and --sharpness-batches"
        )
    status = f"{record['status']} after {record['steps']} steps{loss}"
    return [f"{rate}, {size}: {status}", "", *lines, "", *notes]


def cell(found: Mapping[str, Any] | None) -> str:
    """A measured number with its error, followed by * if it has not converged.

    >>> cell({"value": 12.3456, "stderr": 0.12, "converged": True})
    '12.35 ± 0.12'
    >>> cell({"value": 2.0, "residual": 0.5, "converged": False})
    '2 ± 0.5 *'
    >>> cell(None), cell({"value": None, "stderr": None, "converged": False})
    ('not measured', 'undefined')
    """
    if found is None:
        return "not measured"
    if found["value"] is None:
        return "undefined"
    error = next((found[name] for name in ("stderr", "residual", "error") if name in found), None)
    bar = "unknown" if error is None else f"{error:.2g}"
    return f"{found['value']:.4g} ± {bar}" + ("" if found["converged"] else " *")
