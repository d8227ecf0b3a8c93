"""``noisysgd train``: one run, from a TOML file such as a run store keeps beside every record."""

import argparse
import json
from pathlib import Path
from typing import Any

DESCRIPTION = """\
Train one network as a TOML file says, and print its record. The file holds the names of TrainConfig; the store of a
sweep has such a file beside every record (config.toml), with which that run can be repeated.

examples:
  noisysgd train run.toml
  noisysgd train sweep-runs/119936ed973dbd08/config.toml
  noisysgd train run.toml --store runs         skipped if the store has it; goes on from its checkpoint
"""


def add_train_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add ``train`` to the command line."""
    train = commands.add_parser(
        "train",
        parents=[common],
        help="train one network",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("file", type=Path, help="the configuration, as a TOML file")
    train.add_argument("--store", type=Path, help="directory of runs to take the record from, or to keep it in")
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from noisysgd.validation.configuration import TrainConfig
    from noisysgd.validation.plan import read_toml

    config = read_toml(options.file, TrainConfig.from_dict)
    if options.store is None:
        from noisysgd.validation.training import train

        record: dict[str, Any] | None = train(config)
    else:
        from noisysgd.validation.executors import run_one
        from noisysgd.validation.store import RunStore

        store = RunStore(options.store)
        if not run_one(store, config):
            raise RuntimeError(f"{store.path(config)}: another process has this run under way. Wait for it.")
        record = store.read(config)
    print(json.dumps(record, indent=1))
    return 0
