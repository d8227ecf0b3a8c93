"""Train one configuration into a run store: skipped if its record is there, resumed from a checkpoint if it has one."""

import contextlib
import functools
import logging
from pathlib import Path

from noisysgd.theory.common import checks
from noisysgd.theory.common.provenance import provenance
from noisysgd.validation.configuration import TrainConfig
from noisysgd.validation.runs.store import CHECKPOINT, OVERDUE, RunStore
from noisysgd.validation.training.time_limit import checked_limit, ended_when_overdue

logger = logging.getLogger(__name__)


def run_one(
    store: RunStore, config: TrainConfig, *, checkpoint_every: int | None = None, time_limit: float | None = None
) -> bool:
    """Train one configuration and store its record, unless it is there already.

    A run that was killed goes on from its checkpoint and ends with the record that it would have had without the
    interruption. If the checkpoint is damaged, the run starts over.

    Parameters
    ----------
    store : RunStore
    config : TrainConfig
    checkpoint_every : int, optional
        Steps between checkpoints; by default one is written whenever a minute has passed.
    time_limit : float, optional
        Seconds that the run may take from here. Between two updates it then ends, with a checkpoint. Where an update
        does not return, the process is ended a minute later, if it is one of an executor's.

    Returns
    -------
    bool
        True if the store now has the run's record; False if another process is training it.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C, with a message that says from which step the run would go on.
    OverdueError
        A ``RuntimeError``, if the run takes longer than `time_limit`.
    """
    checks.instance("store", store, RunStore, remedy="Make one with validation.RunStore.")
    checks.instance("config", config, TrainConfig, remedy="Make one with validation.TrainConfig.")
    config, time_limit = config.pinned(), checked_limit(time_limit)
    if store.read(config) is not None:
        return True
    with store.claim(config) as working:
        if working is None:
            return False
        # Look again: another process may have finished the run between the first look and the claim.
        if store.read(config) is None:
            # These import torch, which the driver does without.
            from noisysgd.validation.networks.torch_globals import torch_to_itself
            from noisysgd.validation.training.checkpoint import UnusableError
            from noisysgd.validation.training.loop import train

            checkpoint = working / CHECKPOINT
            go = functools.partial(
                train, config, checkpoint=checkpoint, checkpoint_every=checkpoint_every, time_limit=time_limit
            )
            try:
                # Waiting for other threads' runs does not count.
                with torch_to_itself(), ended_when_overdue(time_limit, config.key, working / OVERDUE):
                    try:
                        record = go()
                    except UnusableError as error:
                        logger.warning("%s; the run starts over", error)
                        # Where there are no locks, another process may have moved it already.
                        with contextlib.suppress(FileNotFoundError):
                            checkpoint.replace(checkpoint.with_suffix(".damaged"))
                        record = go()
            except KeyboardInterrupt:
                raise KeyboardInterrupt(_what_is_left(checkpoint)) from None
            store.write(record | {"provenance": provenance()})
    return True


def _what_is_left(checkpoint: Path) -> str:
    """A sentence on the checkpoint that an interrupted run leaves, or does not, for whoever interrupted it."""
    from noisysgd.validation.training import checkpoint as checkpoints

    try:
        step = checkpoints.read(checkpoint)["step"]
    except (OSError, ValueError, KeyError):
        return "There was no checkpoint yet: the same command starts the run over."
    return f"The checkpoint of step {step} is kept: the same command goes on from there."
