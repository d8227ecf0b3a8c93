"""``noisysgd train``: one run, from a TOML file such as a run store keeps beside every record."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisysgd.validation.cli_options import COMMAND_STYLE, UsageError, positive

if TYPE_CHECKING:
    from noisysgd.validation.configuration import TrainConfig
    from noisysgd.validation.store import RunStore

DESCRIPTION = """\
Train one network as a TOML file says, and print its record. The file holds the names of TrainConfig; the store of a
sweep has such a file beside every record (config.toml), with which that run can be repeated, bit for bit on one kind of
processor. Interrupted without --store, a run is lost; with it, the same command goes on from the last checkpoint.

examples:
  noisysgd train run.toml
  noisysgd train sweep-runs/119936ed973dbd08/config.toml
  noisysgd train run.toml --store runs         skipped if the store has it; goes on from its checkpoint
  noisysgd train run.toml --store runs --checkpoint-every 100

exit status: 0 done, be the run complete or diverged; 1 failed; 2 bad usage; 130 interrupted.
"""


def add_train_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add ``train`` to the command line."""
    train = commands.add_parser(
        "train", parents=[common], help="train one network", description=DESCRIPTION, formatter_class=COMMAND_STYLE
    )
    train.add_argument("file", type=Path, help="the configuration, as a TOML file")
    train.add_argument("--store", type=Path, help="directory of runs to take the record from, or to keep it in")
    train.add_argument(
        "--checkpoint-every", type=positive, metavar="STEPS", help="with --store: steps between checkpoints (a minute)"
    )
    train.set_defaults(run=_train, interrupted="Without --store nothing of the run is kept.")


def read_config(path: Path) -> "TrainConfig":
    """The configuration in a TOML file; a ``ValueError`` that names the file if it holds none."""
    from noisysgd.validation.configuration import TrainConfig
    from noisysgd.validation.plan import read_toml

    return read_toml(path, TrainConfig.from_dict)


def _train(options: argparse.Namespace) -> int:
    if options.checkpoint_every is not None and options.store is None:
        raise UsageError("--checkpoint-every: expected --store, got none. Name a store for the checkpoints.")
    config = read_config(options.file)
    if options.store is None:
        from noisysgd.validation.executors import one_thread
        from noisysgd.validation.training import train

        with one_thread():  # as every stored run has it
            record = train(config)
    else:
        from noisysgd.validation.store import RunStore

        record = _stored(RunStore(options.store), config, options.checkpoint_every)
    print(json.dumps(record, indent=1))
    return 0


def _stored(store: "RunStore", config: "TrainConfig", checkpoint_every: int | None) -> dict[str, Any]:
    """The record of a run, as :func:`noisysgd.validation.run_one` makes it, with checkpoints as often as asked for."""
    if (known := store.read(config)) is not None:
        return known
    from noisysgd.theory.provenance import provenance
    from noisysgd.validation.executors import CHECKPOINT, _usable, one_thread
    from noisysgd.validation.training import train

    with store.claim(config) as working:
        if working is None:
            raise RuntimeError(f"{store.path(config)}: another process has this run under way. Wait for it.")
        if store.read(config) is None:  # another process may have finished it meanwhile
            checkpoint = _usable(working / CHECKPOINT)
            try:
                with one_thread():
                    record = train(config, checkpoint=checkpoint, checkpoint_every=checkpoint_every)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(_kept(checkpoint)) from None
            store.write(record | {"provenance": provenance()})
    record = store.read(config) or {}
    if not record:
        raise RuntimeError(f"{store.path(config)}: the record that was written is not there. Look after the disk.")
    return record


def _kept(checkpoint: Path) -> str:
    """What an interrupted run leaves, in words."""
    from noisysgd.validation import checkpoint as checkpoints

    try:
        step = checkpoints.read(checkpoint)["step"]
    except FileNotFoundError:
        return "There was no checkpoint yet: the same command starts the run over."
    return f"The checkpoint of step {step} is kept: the same command goes on from there."
