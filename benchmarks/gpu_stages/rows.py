"""What a stage is asked to do, and the file into which its rows go as soon as they are there."""

import gc
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_stages.sizes import FULL, TINY, Sizes
from noisysgd.theory.common.files import write_text

NO_GPU, NO_TIME, NO_MEMORY = "no GPU", "no time", "out of memory"


@dataclass(frozen=True)
class Order:
    """What a stage is asked to do: where to write, on which device, at which size, until which time of the clock."""

    out: Path
    device: str
    tiny: bool
    deadline: float

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU to measure."""
        return self.device != "cpu"

    @property
    def sizes(self) -> Sizes:
        """How much to measure."""
        return TINY if self.tiny else FULL

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()


def write_json(path: Path, content: object) -> None:
    """Write a file that is whole at any moment: under another name, which is changed at the end."""
    write_text(path, json.dumps(content, indent=1, default=str, ensure_ascii=False))


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


class Rows:
    """The rows of a stage, in its file as soon as they are there.

    Parameters
    ----------
    order : Order
    stage : str
        The driver has begun the file of this stage; rows are added to it.
    """

    def __init__(self, order: Order, stage: str) -> None:
        self._order, self._path = order, order.out / f"{stage}.json"
        self._content = read_json(self._path)

    def add(self, what: str, **values: Any) -> None:
        """Add one row: what was measured, its settings and its results."""
        row = {"what": what, **values}
        self._content["rows"].append(row)
        write_json(self._path, self._content)
        print(json.dumps(row, default=str, ensure_ascii=False), flush=True)

    def attempt(
        self,
        what: str,
        measure: Callable[..., dict[str, Any]],
        *,
        gpu_only: bool = False,
        seconds: float = 2.0,
        **settings: Any,
    ) -> None:
        """Add the row that `measure` finds; or say why there is none, and go on.

        Parameters
        ----------
        what : str
        measure : callable
            Called with the settings, it returns the results.
        gpu_only : bool
            Whether it needs a GPU.
        seconds : float
            The time that it has to have.
        **settings
            What is measured, which the row says too.
        """
        if gpu_only and not self._order.on_gpu:
            return self.add(what, **settings, skipped=NO_GPU)
        if self._order.left < seconds:
            return self.add(what, **settings, skipped=NO_TIME)
        try:
            found = measure(**settings)
        except Exception as error:
            if type(error).__name__ == "OutOfMemoryError":
                return self.add(what, **settings, skipped=NO_MEMORY)
            trace = traceback.format_exc()
            print(trace, flush=True)
            return self.add(what, **settings, error=f"{type(error).__name__}: {error}"[:600], trace=trace[-1500:])
        finally:
            release(self._order.device)
        return self.add(what, **settings, **found)


def release(device: str) -> None:
    """Give back the GPU memory of what has been measured."""
    gc.collect()
    if device != "cpu" and "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


def wait(device: str) -> None:
    """Wait until the GPU has done all that it was asked for."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)


def elapsed(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
