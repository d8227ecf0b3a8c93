"""``noisysgd foreign``: read sweeps that others published, and write them as Sweeps of this package."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisysgd.validation.cli.options import (
    Commands,
    UsageError,
    add_command,
    add_verbs,
    check_output,
    integers,
    positive,
)

if TYPE_CHECKING:
    import xarray as xr

    from noisysgd.theory.schedules.budget import Budget

STATUS = "exit status: 0 done; 1 failed; 2 bad usage; 130 interrupted."
DESCRIPTION = f"""\
Read the tuning measurements that others published and write them as a Sweep, one netCDF file that theory.load_sweep and
theory.optimum take. The data themselves are not shipped.

examples:
  noisysgd foreign batch-science batch_science/mnist/simple_cnn/momentum mnist.nc
  noisysgd foreign pd1-tasks pd1_matched_phase1_results.jsonl.gz
  noisysgd foreign pd1 pd1_matched_phase1_results.jsonl.gz wrn.nc --task cifar10_wrn,cifar10,wide_resnet,wrn

{STATUS}
"""
BATCH_SCIENCE = f"""\
Read a workload of Shallue et al. 2019 (batch_science_data.tar.bz2, unpacked) and write it as a Sweep: a folder
dataset/model/optimizer with one study per batch size.

examples:
  noisysgd foreign batch-science batch_science/mnist/simple_cnn/momentum mnist.nc
  noisysgd foreign batch-science batch_science/mnist/simple_cnn/sgd mnist.nc --batch-sizes 64,256 --fraction 1
  noisysgd foreign batch-science batch_science/mnist/simple_cnn/sgd mnist.nc --epochs 5 --dataset-size 55000

{STATUS}
"""
PD1 = f"""\
Read a task of PD1 (Wang et al., HyperBO) from its files of JSON lines, zipped or not, and write it as a Sweep; several
files are read as one.

examples:
  noisysgd foreign pd1 pd1_matched_phase1_results.jsonl.gz wrn.nc --task cifar10_wrn,cifar10,wide_resnet,wrn
  noisysgd foreign pd1 phase0.jsonl phase1.jsonl wrn.nc --task cifar10_wrn,cifar10,wide_resnet,wrn --fraction 2
  noisysgd foreign pd1 phase1.jsonl wrn.nc --steps 10000

{STATUS}
"""
TASKS = f"""\
List the tasks in files of PD1, by the names that --task takes.

examples:
  noisysgd foreign pd1-tasks pd1_matched_phase0_results.jsonl.gz pd1_matched_phase1_results.jsonl.gz

{STATUS}
"""


def add_published_commands(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add ``foreign`` and its verbs to the command line."""
    verbs = add_verbs(commands, "foreign", help="read measurements that others published", description=DESCRIPTION)
    shallue, pd1, tasks = (
        add_command(verbs, name, common, run, help=help, description=text, interrupted="Nothing was written.")
        for name, run, help, text in (
            ("batch-science", _batch_science, "Shallue et al. 2019 as a Sweep", BATCH_SCIENCE),
            ("pd1", _pd1, "PD1 as a Sweep", PD1),
            ("pd1-tasks", _tasks, "the tasks in files of PD1", TASKS),
        )
    )
    shallue.add_argument("path", type=Path, help="a folder dataset/model/optimizer")
    pd1.add_argument("paths", type=Path, nargs="+", help="files of JSON lines, .jsonl or .jsonl.gz")
    for parser in (shallue, pd1):
        parser.add_argument("out", type=Path, help="the netCDF file")
        text = "batch sizes to read, as 64,256 (all)"
        sizes = integers(1, "distinct batch sizes such as 64,256")
        parser.add_argument("--batch-sizes", type=sizes, metavar="SIZES", help=text)
        text = "take what was measured last within so many steps, instead of at the end of each trial"
        parser.add_argument("--steps", type=positive, help=text)
        parser.add_argument("--epochs", type=float, help="the same in epochs, with --dataset-size")
        parser.add_argument("--dataset-size", type=positive, metavar="N", help="training examples in an epoch")
        text = "move trials to powers of 2^(1/FRACTION) in ε/(1−m) and 1/(1−m), where those that meet become seeds"
        parser.add_argument("--fraction", type=positive, help=text)
    pd1.add_argument("--task", help="the task to read, where there are several: see pd1-tasks")
    tasks.add_argument("paths", type=Path, nargs="+", help="files of JSON lines, .jsonl or .jsonl.gz")


def _batch_science(options: argparse.Namespace) -> int:
    from noisysgd.validation.published.batch_science import read_batch_science

    check_output("out", options.out)
    return _write(read_batch_science(options.path, **_selection(options)), options.out)


def _pd1(options: argparse.Namespace) -> int:
    from noisysgd.validation.published.pd1 import read_pd1

    check_output("out", options.out)
    return _write(read_pd1(options.paths, task=options.task, **_selection(options)), options.out)


def _tasks(options: argparse.Namespace) -> int:
    from noisysgd.validation.published.pd1 import pd1_tasks

    for task in pd1_tasks(options.paths):
        print(task)
    return 0


def _selection(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments that both readers share."""
    return {"batch_sizes": options.batch_sizes, "budget": _budget(options), "fraction": options.fraction}


def _budget(options: argparse.Namespace) -> "Budget | None":
    if (options.epochs is None) != (options.dataset_size is None):
        raise UsageError("--epochs, --dataset-size: expected both or neither, got one. Give both, or use --steps.")
    if options.epochs is not None and options.steps is not None:
        raise UsageError("--steps, --epochs: expected one budget, got two. Choose.")
    from noisysgd.theory.schedules.budget import EpochBudget, StepBudget

    if options.epochs is not None:
        return EpochBudget(options.epochs, options.dataset_size)
    return None if options.steps is None else StepBudget(options.steps)


def _write(sweep: "xr.Dataset", out: Path) -> int:
    """Write a Sweep and print how many trials it has, and what was left out; returns the exit status."""
    import json

    from noisysgd.theory.sweeps.dataset import DIVERGED, MISSING, save_sweep

    save_sweep(sweep, out)
    trials, diverged = (int(found.sum()) for found in (sweep.status != MISSING, sweep.status == DIVERGED))
    sizes = ", ".join(map(str, sweep.batch_size.values.tolist()))
    print(f"{out}: {trials} trials, {diverged} of them diverged, at batch sizes {sizes}")
    configuration = json.loads(sweep.attrs["configuration"])
    for reason, count in configuration["left_out"].items():
        print(f"{count} left out: {reason}")
    for metric, count in configuration["unmeasured"].items():
        print(f"{count} without {metric} at their last step")
    return 0
