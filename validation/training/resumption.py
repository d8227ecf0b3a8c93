"""Whether a run can go on from a checkpoint: found out before its first update, not when the first one is due."""

import io

import torch
from torch import nn

from noisysgd.theory.common import checks
from noisysgd.validation.training import checkpoint as checkpoints

STATE = "model.state_dict()"


def check_resumable(model: nn.Module) -> None:
    """Raise unless the network's state comes back as it was when it is written, read and loaded.

    The network is left with the state that it has. A network may keep more than tensors (``get_extra_state``), of types
    that a checkpoint does not hold, or may not take back what it gave (``set_extra_state``).

    Raises
    ------
    ValueError
        If its state cannot be written, cannot be loaded, or is another one afterwards.

    Examples
    --------
    >>> class Counting(nn.Linear):
    ...     def get_extra_state(self):
    ...         return {"seen": 3}
    >>> check_resumable(nn.Linear(2, 2))
    >>> check_resumable(Counting(2, 2))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: model: expected a network that takes back its own state_dict(), got ...
    """
    before = dict(model.state_dict())
    checkpoints.check(before, STATE)
    digest = checkpoints.digest(before)
    file = io.BytesIO()
    torch.save(before, file)
    file.seek(0)
    remedy = "Let set_extra_state, and hooks that change state_dict(), take back what get_extra_state gave."
    expected = "a network that takes back its own state_dict()"
    try:
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # set_extra_state is the user's own code, which may raise anything
        got = f"{type(error).__name__}: {error}"
        raise ValueError(f"model: expected {expected}, got {checks.shorten(got, 300)}. {remedy}") from error
    same = checkpoints.digest(dict(model.state_dict())) == digest
    checks.require(same, "model", expected, "one that has another state afterwards", remedy)


def check_still_resumable(model: nn.Module, names: set[str]) -> None:
    """Raise if a first update has given the network a state that cannot be written, or other `names` in it.

    Raises
    ------
    ValueError
    """
    state = dict(model.state_dict())
    changed = sorted(names ^ state.keys())
    remedy = "Make all parameters and buffers in __init__: a network that is made anew must have them."
    checks.require(not changed, STATE, "the same names after an update as before it", changed, remedy)
    checkpoints.check(state, STATE)
