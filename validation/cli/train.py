"""``noisysgd train``: one run, from a TOML file such as a run store keeps beside every record."""

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from noisysgd.validation.cli.options import Commands, UsageError, add_command, add_time_limit, positive

if TYPE_CHECKING:
    from noisysgd.validation.configuration import TrainConfig

PRINTED = Path("-")
"""Stands for ``--curve`` without a file."""

DESCRIPTION = """\
Train one network as a TOML file says, and print its record. The file holds the names of TrainConfig; the store of a
sweep has such a file beside every record (config.toml), with which that run can be repeated, bit for bit on one kind of
processor. Interrupted without --store, a run is lost; with it, the same command goes on from the last checkpoint.

examples:
  noisysgd train run.toml
  noisysgd train sweep-runs/119936ed973dbd08/config.toml
  noisysgd train run.toml --store runs         skipped if the store has it; goes on from its checkpoint
  noisysgd train run.toml --store runs --checkpoint-every 100
  noisysgd train run.toml --curve curve.png    also draws the learning curve; curve.csv writes a table
  noisysgd train run.toml --curve --evaluate-at 0,100,0.5    prints the table instead of the record, with metrics at
                                               steps 0 and 100 and after half of the run

exit status: 0 done, be the run complete or diverged; 1 failed; 2 bad usage; 130 interrupted.
"""


def add_train_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add ``train`` to the command line."""
    train = add_command(
        commands,
        "train",
        common,
        _train,
        help="train one network",
        description=DESCRIPTION,
        interrupted="Without --store nothing of the run is kept.",
    )
    train.add_argument("file", type=Path, help="the configuration, as a TOML file")
    train.add_argument("--store", type=Path, help="directory of runs: the record is taken from there, or kept there")
    text = "with --store: steps between checkpoints (by default one a minute)"
    train.add_argument("--checkpoint-every", type=positive, metavar="STEPS", help=text)
    text = "evaluate all metrics there too: steps, or shares of the run between 0 and 1; instead of the file's"
    train.add_argument("--evaluate-at", type=_places, metavar="STEP,...", help=text)
    text = "write the learning curve there, as .csv, .png, .svg or .pdf; without FILE, print it instead of the record"
    train.add_argument("--curve", type=Path, nargs="?", const=PRINTED, metavar="FILE", help=text)
    add_time_limit(train, "none")


def read_config(path: Path) -> "TrainConfig":
    """The configuration in a TOML file.

    Raises
    ------
    ValueError
        If the file holds no valid configuration; the message begins with its path.
    """
    from noisysgd.validation.configuration import TrainConfig
    from noisysgd.validation.runs.toml_files import read_toml

    return read_toml(path, TrainConfig.from_dict)


def _train(options: argparse.Namespace) -> int:
    if options.checkpoint_every is not None and options.store is None:
        raise UsageError("--checkpoint-every: expected --store, got none. Name a store for the checkpoints.")
    from noisysgd.validation.cli.curve_files import check_curve_file, curve_table, known_curve, write_curve

    to_file = options.curve if options.curve is not PRINTED else None
    check_curve_file("--curve", to_file)
    config = read_config(options.file).pinned()
    if options.evaluate_at is not None:
        config = config.with_(evaluate_at=options.evaluate_at)
    if options.store is None:
        from noisysgd.validation.training.loop import train

        record = train(config, time_limit=options.time_limit)
    else:
        from noisysgd.validation.runs.single_run import run_one
        from noisysgd.validation.runs.store import RunStore

        store = RunStore(options.store)
        if not run_one(store, config, checkpoint_every=options.checkpoint_every, time_limit=options.time_limit):
            raise RuntimeError(f"{store.path(config)}: another process has this run under way. Wait for it.")
        known = store.read(config)
        if known is None:
            raise RuntimeError(f"{store.path(config)}: the record that was written is not there. Look after the disk.")
        record = known
    if options.curve is PRINTED:
        print(curve_table(known_curve(record.get("curve"), "--curve")), end="")
        return 0
    if to_file is not None:
        write_curve(record.get("curve"), to_file)
    print(compact_lists(json.dumps(record, indent=1)))
    return 0


def compact_lists(text: str) -> str:
    """Indented JSON with every list of plain values on one line, such as those of a learning curve.

    >>> print(compact_lists(json.dumps({"steps": 2, "edges": [0, 2]}, indent=1)))
    {
     "steps": 2,
     "edges": [0, 2]
    }
    """
    # Line breaks within strings are escaped in JSON: those that are matched stand between values.
    lists = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s+\]")
    return lists.sub(lambda found: "[" + re.sub(r"\n\s+", " ", found[1]) + "]", text)


def _places(text: str) -> tuple[float, ...]:
    """Read steps and shares of a run, separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected steps or shares such as 0,100,0.5, got {text!r}") from error
