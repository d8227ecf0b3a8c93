"""``noisysgd sweep``: plan, run, inspect, export and import sweeps of training runs."""

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from noisysgd.validation.cli.options import (
    Commands,
    UsageError,
    add_command,
    add_time_limit,
    add_verbs,
    check_output,
    integers,
    positive,
)

if TYPE_CHECKING:
    from noisysgd.validation.runs.store import RunStore
    from noisysgd.validation.sweeps.cost import CostModel
    from noisysgd.validation.sweeps.growing_sweep import ExecutorFactory, SweepState
    from noisysgd.validation.sweeps.plan import Plan

DESCRIPTION = """\
Train networks over optimizers, batch sizes, budgets and learning rates, as a TOML file says, until every optimum lies
inside its grid. The store keeps every finished run: interrupt a sweep whenever you like, the same command goes on.

examples:
  noisysgd sweep example > sweep.toml          a file to begin with
  noisysgd sweep example table-1               the same for the paper's table 1
  noisysgd sweep plan sweep.toml               how many runs, how long, at what cost
  noisysgd sweep run sweep.toml --workers 2    on two processes; results in sweep-runs/
  noisysgd sweep status sweep.toml             what is done, what is not, what is not bracketed
  noisysgd sweep export sweep.toml sweep.nc    one netCDF file
  noisysgd sweep import sweep.nc elsewhere     into another store, where the sweep can go on

exit status: 0 done; 1 failed; 2 bad usage; 3 an optimum is not bracketed, or (status --check) runs are missing;
130 interrupted.
"""
UNFINISHED = 3
"""Exit status: done, but an optimum is not bracketed, or runs are missing."""
GOES_ON = "Nothing finished is lost: the same command goes on from there."


def add_sweep_commands(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add ``sweep`` and its verbs to the command line."""
    help = "plan, run, export and import sweeps of training runs"
    verbs = add_verbs(commands, "sweep", help=help, description=DESCRIPTION)

    def verb(
        name: str,
        run: Callable[[argparse.Namespace], int],
        help: str,
        examples: str,
        *,
        file: bool = True,
        interrupted: str | None = None,
    ) -> argparse.ArgumentParser:
        text = f"{help[0].upper()}{help[1:]}.\n\nexamples:\n{examples}"
        parser = add_command(verbs, name, common, run, help=help, description=text, interrupted=interrupted)
        if file:
            parser.add_argument("file", type=Path, help="the sweep, as a TOML file")
        return parser

    def add_store(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--store", type=Path, help="directory of the runs (NAME-runs, beside the file NAME.toml)")

    text = "  noisysgd sweep example > sweep.toml\n  noisysgd sweep example table-1 > table-1.toml"
    help = "print the file of a small sweep to begin with, or of an experiment of the paper"
    example = verb("example", _example, help, text, file=False)
    text = "table-1, figure-1, figure-2, figure-2-skipinit or figure-3 of the paper: CIFAR-10, and GPUs"
    example.add_argument("name", nargs="?", help=text)

    text = "  noisysgd sweep plan sweep.toml\n  noisysgd sweep plan sweep.toml --workers 8"
    help = "count the runs and estimate time and cost; this trains nothing, or only short runs to time them"
    plan = verb("plan", _plan, help, text)
    add_store(plan)
    plan.add_argument("--workers", type=positive, help="processes or GPUs that would share the runs (one per core)")

    text = (
        "  noisysgd sweep run sweep.toml\n"
        "  noisysgd sweep run sweep.toml --devices 0,1,2,3 --out sweep.nc\n"
        "  noisysgd sweep run sweep.toml --dask tcp://10.0.0.1:8786"
    )
    run = verb("run", _run, "run what the store lacks, until every optimum is bracketed", text, interrupted=GOES_ON)
    add_store(run)
    run.add_argument("--workers", type=positive, help="processes on this machine (one per core)")
    numbers = integers(0, "distinct numbers of GPUs such as 0,1,2")
    run.add_argument("--devices", type=numbers, default=(), help="GPUs, as 0,1,2: one run at a time on each")
    run.add_argument("--runs-per-device", type=positive, default=1, metavar="N", help="runs that share a GPU (1)")
    run.add_argument("--dask", metavar="SCHEDULER", help="address or file of a Dask scheduler, or 'local'")
    add_time_limit(run, "[limits] of the file, or none")
    run.add_argument("--out", type=Path, help="write the dataset there when done")

    text = "  noisysgd sweep status sweep.toml\n  noisysgd sweep status sweep.toml --check && echo done"
    status = verb("status", _status, "say what is done, and what is not", text)
    add_store(status)
    status.add_argument("--check", action="store_true", help="exit with 3 unless the sweep is finished and bracketed")

    text = "  noisysgd sweep export sweep.toml sweep.nc"
    help = "write what the store has of a sweep as one netCDF file"
    export = verb("export", _export, help, text, interrupted="Nothing was written.")
    export.add_argument("out", type=Path, help="the netCDF file")
    add_store(export)

    text = "  noisysgd sweep import sweep.nc my-runs --plan sweep.toml"
    help = "add the runs of an exported file to a store"
    left = "Runs that were added stay: the same command goes on from there."
    back = verb("import", _import, help, text, file=False, interrupted=left)
    back.add_argument("dataset", type=Path, help="the netCDF file")
    back.add_argument("store", type=Path, help="directory of the runs")
    back.add_argument("--plan", type=Path, help="also write the sweep's TOML file, with which it can go on")


def _example(options: argparse.Namespace) -> int:
    from noisysgd.validation.sweeps.paper import experiment_file
    from noisysgd.validation.sweeps.plan import EXAMPLE

    print(experiment_file(options.name) if options.name else EXAMPLE, end="")
    return 0


def _plan(options: argparse.Namespace) -> int:
    plan, store = _open(options)
    state = plan.sweep.state(store)
    if state.missing:
        plan.check_network()
    model = _model(plan, state)
    _show_plan(plan, state, model, _workers(options.workers))
    return 0


def _run(options: argparse.Namespace) -> int:
    from noisysgd.theory.common.files import write_text
    from noisysgd.validation.runs.single_run import run_one
    from noisysgd.validation.sweeps.export import export, save

    _check_resources(options)
    check_output("--out", options.out)
    plan, store = _open(options)
    state = plan.sweep.state(store)
    if state.missing:
        plan.check_network()
        _show_plan(
            plan,
            state,
            _model(plan, state),
            _workers(options.workers or len(options.devices) * options.runs_per_device or None),
        )
    # A copy of the plan beside the runs says what they were for.
    try:
        write_text(store.root / f"plan-{_digest(plan.text)}.toml", plan.text)
    except OSError:
        # A finished sweep only has to be read: a store that cannot be written to will do.
        if not state.finished:
            raise
    started = time.perf_counter()
    work = functools.partial(run_one, time_limit=options.time_limit or plan.time_limit)
    dataset = plan.sweep.run(store, _executor(options), work=work, progress=_Line())
    state = plan.sweep.state(store)
    print(f"{len(state.configs)} runs in {store.root}; {time.perf_counter() - started:.0f} s")
    if options.out is not None:
        print(f"{save(export(plan, store), options.out)} written")
    return _verdict(plan, plan.sweep.unbracketed(state.windows, dataset))


def _status(options: argparse.Namespace) -> int:
    plan, store = _open(options)
    state = plan.sweep.state(store)
    diverged = sum(record["status"] == "diverged" for record in state.found)
    print(f"{len(state.found)} of {len(state.configs)} runs done, {diverged} of them diverged")
    kinds = {".running-": "under way or interrupted", ".partial-": "half-written", ".damaged-": "damaged, moved aside"}
    left = [path.name for path in store.leftovers()]
    for prefix, words in kinds.items():
        if count := sum(name.startswith(prefix) for name in left):
            print(f"{count} {words}")
    if state.dataset is None:
        return UNFINISHED if options.check else 0
    verdict = _verdict(plan, plan.sweep.unbracketed(state.windows, state.dataset))
    return verdict if options.check else 0


def _export(options: argparse.Namespace) -> int:
    from noisysgd.theory.sweeps.dataset import COMPLETE, DIVERGED
    from noisysgd.validation.sweeps.export import export, save

    check_output("out", options.out)
    plan, store = _open(options)
    dataset = export(plan, store)
    path = save(dataset, options.out)
    print(f"{path}: {int(dataset.status.isin((COMPLETE, DIVERGED)).sum())} runs")
    return 0


def _import(options: argparse.Namespace) -> int:
    from noisysgd.theory.common.files import write_text
    from noisysgd.validation.runs.store import RunStore
    from noisysgd.validation.sweeps.export import import_runs, load, plan_of

    check_output("--plan", options.plan)
    dataset = load(options.dataset)
    try:
        plan = None if options.plan is None else plan_of(dataset)
        if plan is not None:
            _check_plan(options.plan, plan.text)
        done = import_runs(dataset, RunStore(options.store))
    except ValueError as error:
        raise ValueError(f"{options.dataset}: {error}") from error
    print(f"{done.added} runs added to {options.store}, {done.known} were there already")
    if plan is not None:
        write_text(options.plan, plan.text)
        print(f"{options.plan} written")
    if done.different:
        print(
            f"{len(done.different)} differ from the store's, which stay: {', '.join(done.different)}", file=sys.stderr
        )
        return 1
    return 0


def _check_plan(path: Path, text: str) -> None:
    """Raise if writing the plan would replace another one."""
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ValueError(f"--plan {path}: expected no file, or one with the same plan, got another. Name another file.")


def _check_resources(options: argparse.Namespace) -> None:
    """Raise if --workers, --devices and --dask do not go together, even if there is nothing to run."""
    workers, devices = options.workers, len(options.devices)
    if options.dask not in (None, "local") and (workers or devices):
        raise UsageError("--dask: expected no --workers or --devices, got some. A running cluster has its own.")
    shared = options.runs_per_device
    if shared > 1 and (options.dask or not devices):
        raise UsageError(
            "--runs-per-device: expected --devices, and no --dask. Start more workers of a cluster yourself."
        )
    if devices and workers and (workers > devices * shared or (options.dask and workers != devices)):
        most = "one worker" if shared == 1 else f"{shared} workers"
        words = most if options.dask else f"at most {most}"
        raise UsageError(f"--workers: expected {words} for each of {devices} devices, got {workers}. Leave it out.")


def _open(options: argparse.Namespace) -> "tuple[Plan, RunStore]":
    """The plan in the file, and its store: by default the folder NAME-runs beside NAME.toml."""
    from noisysgd.validation.runs.store import RunStore
    from noisysgd.validation.sweeps.plan import read_plan

    default = options.file.with_name(f"{options.file.stem}-runs")
    return read_plan(options.file), RunStore(options.store or default)


def _model(plan: "Plan", state: "SweepState") -> "CostModel":
    """A model of costs: the one stated in the file, else one fitted to the finished runs, else to short runs here."""
    from noisysgd.validation.sweeps.cost import CostModel

    if plan.cost is not None and plan.cost.stated:
        return plan.cost
    fitted = CostModel.from_records(state.found, price_per_hour=plan.price_per_hour)
    return fitted or CostModel.from_timed_runs(state.configs, price_per_hour=plan.price_per_hour)


def _show_plan(plan: "Plan", state: "SweepState", model: "CostModel", workers: int) -> None:
    """Print how many runs there are, and what those that are left, and those that growth may add, will cost."""
    from noisysgd.theory.common.duration import duration
    from noisysgd.validation.sweeps.cost import CostEstimate

    print(f"{len(state.configs)} runs, {len(state.found)} of them done")
    names = ("to do now", "more at most, if every grid grows to its limits")
    for name, configs in zip(names, (state.missing, plan.sweep.extra(state.windows)), strict=True):
        if not configs:
            continue
        cost = CostEstimate.of(configs, model, workers)
        price = "" if cost.price is None else f", price {cost.price:.2f}"
        print(
            f"{cost.runs} runs {name}: {cost.steps} steps, about {duration(cost.device_seconds, rough=True)} of device "
            f"time, {duration(cost.wall_seconds, rough=True)} on {workers} worker{'s' if workers > 1 else ''}{price}"
        )
    print(f"one run takes {model.in_words()}: {model.source}")


def _executor(options: argparse.Namespace) -> "ExecutorFactory":
    """What makes the executor: if one breaks, the sweep makes another."""
    if options.dask is not None:
        if not options.debug:
            _silence_distributed()
        from noisysgd.validation.runs.dask_executor import dask_executor

        return functools.partial(dask_executor, options.dask, workers=options.workers, devices=options.devices)
    from noisysgd.validation.runs.executors import local_executor

    given = {"devices": options.devices, "runs_per_device": options.runs_per_device}
    return functools.partial(local_executor, options.workers, **given)


def _silence_distributed() -> None:
    """Keep Dask from showing a traceback for every lost connection, of which the command itself tells in one line."""
    import logging

    import distributed

    own = (f"{distributed.__name__}.", "tornado.")  # Dask sets levels for these loggers one by one
    names = [name for name in logging.root.manager.loggerDict if name.startswith(own)]
    for name in ("distributed", "tornado", "asyncio", *names):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _verdict(plan: "Plan", unbracketed: list[str]) -> int:
    """Print whether all optima are bracketed; returns the exit status."""
    if not plan.sweep.metrics:
        print("no optimum was judged: the plan names no metrics")
        return 0
    if not unbracketed:
        print("every optimum and its error bar lie inside the grid")
        return 0
    print(f"not bracketed: {'; '.join(unbracketed)}", file=sys.stderr)
    return UNFINISHED


def _workers(given: int | None) -> int:
    from noisysgd.theory.common.parallel import usable_cores

    return usable_cores() if given is None else given


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:8]


class _Line:
    """Progress with the time left: on a terminal one line that is rewritten, elsewhere a new line twice a minute."""

    EVERY = 30.0
    """Seconds between two lines where there is no terminal."""

    def __init__(self) -> None:
        self._start, self._first, self._last = time.monotonic(), -1.0, -1e9

    def __call__(self, done: int, planned: int, share: float) -> None:
        from noisysgd.theory.common.duration import duration

        now = time.monotonic()
        # The time left is judged by what this start of the sweep has done, not by runs that were there before.
        if self._first < 0:
            self._first = share
        terminal, end = sys.stderr.isatty(), done == planned
        if not (terminal or end or now - self._last > self.EVERY):
            return
        self._last = now
        gained = share - self._first
        left = ""
        if gained > 0 and not end:
            left = f", {duration((now - self._start) * (1 - share) / gained, rough=True)} left"
        start, stop = ("\r", "\n" if end else "") if terminal else ("", "\n")
        print(f"{start}{share:4.0%}: {done} of {planned} runs{left:<20}", end=stop, file=sys.stderr, flush=True)
