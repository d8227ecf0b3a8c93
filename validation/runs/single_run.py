"""One run of a store: trained unless its record is there, from its checkpoint if it has one."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from noisysgd.theory.common.provenance import provenance
from noisysgd.validation.configuration import TrainConfig
from noisysgd.validation.runs.store import RunStore

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"


def run_one(store: RunStore, config: TrainConfig, *, checkpoint_every: int | None = None) -> bool:
    """Train one configuration and store its record, unless it is there already.

    A run that was killed goes on from its checkpoint, to the record it would have had; if the checkpoint is damaged, it
    starts over.

    Parameters
    ----------
    store : RunStore
    config : TrainConfig
    checkpoint_every : int, optional
        Steps between checkpoints; by default one is written whenever a minute has passed.

    Returns
    -------
    bool
        False if another process has the run under way; True if the store has its record now.

    Raises
    ------
    KeyboardInterrupt
        With a message that says which step the run would go on from.
    """
    if store.read(config) is not None:
        return True
    with store.claim(config) as working:
        if working is None:
            return False
        if store.read(config) is None:  # another process may have finished it meanwhile
            from noisysgd.validation.training.loop import train  # torch is imported where training happens

            checkpoint = _usable(working / CHECKPOINT)
            try:
                with one_thread():
                    record = train(config, checkpoint=checkpoint, checkpoint_every=checkpoint_every)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(_what_is_left(checkpoint)) from None
            store.write(record | {"provenance": provenance()})
    return True


def _usable(checkpoint: Path) -> Path:
    """The path, after a damaged checkpoint has been moved out of the way: its run then starts over."""
    from noisysgd.validation.training import checkpoint as checkpoints

    try:
        checkpoints.read(checkpoint)
    except FileNotFoundError:
        pass
    except ValueError as error:
        checkpoint.replace(checkpoint.with_suffix(".damaged"))
        logger.warning("%s; the run starts over", error)
    return checkpoint


def _what_is_left(checkpoint: Path) -> str:
    """What an interrupted run leaves, in words."""
    from noisysgd.validation.training import checkpoint as checkpoints

    try:
        step = checkpoints.read(checkpoint)["step"]
    except FileNotFoundError:
        return "There was no checkpoint yet: the same command starts the run over."
    return f"The checkpoint of step {step} is kept: the same command goes on from there."


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch with one thread, wherever a run finds itself: its last bits depend on the number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
