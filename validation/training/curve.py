"""The learning curve of a run: minibatch losses in bins of steps, and metrics evaluated at chosen steps.

A minibatch loss is the cross-entropy on which an update is based, of the parameters before it. The bins are fixed
shares of the run, a hundredth of it each. The paper's schedule divides the learning rate at twentieths, so that no bin
mixes two learning rates, unless there is a warm-up. The first hundredth is halved again and again, since losses fall
fastest at the beginning.
"""

import bisect
import math
from collections.abc import Iterable, Mapping
from typing import Any

PARTS = 3200
"""Edges of bins are whole numbers of these parts of a run."""
EDGES = (0, 1, 2, 4, 8, 16, *range(32, PARTS + 1, 32))


class LearningCurve:
    """The curve of a run under way.

    Parameters
    ----------
    steps : int
        Updates of the whole run.

    Attributes
    ----------
    edges : list of int
        Bin k holds the updates edges[k], …, edges[k+1] − 1. In runs of fewer than 3200 steps some bins hold none.
    step : int
        Updates whose losses have been added.

    Examples
    --------
    >>> curve = LearningCurve(steps=200)
    >>> curve.add([2.0, 1.0, 0.5])
    >>> record = curve.record()
    >>> record["edges"][:9], record["loss"][:9]
    ([0, 0, 0, 0, 0, 1, 2, 4, 6], [None, None, None, None, 2.0, 1.0, 0.5, None, None])
    """

    def __init__(self, steps: int) -> None:
        self.edges = [steps * edge // PARTS for edge in EDGES]
        self.step = 0
        bins = len(self.edges) - 1
        self._count, self._mean, self._squares = [0] * bins, [0.0] * bins, [0.0] * bins
        self._evaluated: dict[int, dict[str, float | None]] = {}

    def add(self, losses: Iterable[float]) -> None:
        """Add the losses of the next updates, which must be finite."""
        bin_ = bisect.bisect_right(self.edges, self.step) - 1
        for loss in losses:
            while self.step >= self.edges[bin_ + 1]:
                bin_ += 1
            # Welford's recurrence: one pass, and no difference of large sums.
            self._count[bin_] += 1
            before = loss - self._mean[bin_]
            self._mean[bin_] += before / self._count[bin_]
            self._squares[bin_] += before * (loss - self._mean[bin_])
            self.step += 1

    def evaluated_at(self, step: int) -> bool:
        """Whether it has the metrics at a step."""
        return step in self._evaluated

    def add_evaluation(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Add the metrics of the network after `step` updates. Those that are not finite are kept as ``None``."""
        finite = {
            name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()
        }
        self._evaluated[step] = finite

    def record(self) -> dict[str, Any] | None:
        """The entry ``curve`` of the run's record; ``None`` if the run diverged before there was anything to record.

        Lists of ``edges``, of the mean ``loss`` and of its sample standard deviation ``std`` in every bin: ``None`` for
        bins without an update, and for the spread of a single one. With evaluations, ``evaluated`` has lists of their
        ``steps`` and of each metric.
        """
        if not self.step and not self._evaluated:
            return None
        spread = [
            math.sqrt(squares / (count - 1)) if count > 1 else None
            for count, squares in zip(self._count, self._squares, strict=True)
        ]
        losses = [mean if count else None for count, mean in zip(self._count, self._mean, strict=True)]
        curve: dict[str, Any] = {"edges": list(self.edges), "loss": losses, "std": spread}
        if self._evaluated:
            steps = sorted(self._evaluated)
            names = self._evaluated[steps[0]]
            metrics = {name: [self._evaluated[step][name] for step in steps] for name in names}
            curve["evaluated"] = {"steps": steps} | metrics
        return curve

    def state(self) -> dict[str, Any]:
        """All that has been added, for a checkpoint."""
        return {
            "step": self.step,
            "count": list(self._count),
            "mean": list(self._mean),
            "squares": list(self._squares),
            "evaluated": [{"step": step} | metrics for step, metrics in self._evaluated.items()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a curve of the same run."""
        self.step = state["step"]
        self._count, self._mean, self._squares = (list(state[name]) for name in ("count", "mean", "squares"))
        self._evaluated = {
            each["step"]: {name: value for name, value in each.items() if name != "step"} for each in state["evaluated"]
        }
