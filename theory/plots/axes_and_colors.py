"""What all figures share: colours, axes, and the values that a logarithmic axis can show."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from noisysgd.theory.common import checks
from noisysgd.theory.common.arrays import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import LogLocator

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours in order; distinguishable without colour vision (Okabe & Ito 2008)."""

MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":")
GUIDE = "#777777"
"""Colour of what is not data: asymptotes, guides, bounds."""

REACH = 1e100
"""Values beyond the reach of any axis would only overflow on the way to it."""


@contextmanager
def axes_or_new(ax: "Axes | None") -> "Iterator[Axes]":
    """`ax` as the caller made it, or that of a new figure of pyplot.

    The new figure gets a legend in the end if more than one thing in it has a label, and is closed again if drawing
    fails. To a given `ax` no legend is added: what else goes there, only its owner knows.
    """
    if ax is not None:
        yield ax
        return
    import matplotlib.pyplot as plt

    figure, own = plt.subplots(layout="constrained")
    try:
        yield own
    except BaseException:
        plt.close(figure)
        raise
    if len(own.get_legend_handles_labels()[1]) > 1:
        own.legend(fontsize="small")


def colors_for(count: int) -> list[Any]:
    """Colours of `count` curves: distinct ones while they last, else shades from light to dark."""
    if count <= len(COLORS):
        return list(COLORS[:count])
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0.85, 0.1, count)))


def labels_for(labels: Sequence[str] | str | None, count: int) -> list[str | None]:
    """One label for each of `count` curves."""
    if labels is None:
        return [None] * count
    names = [labels] if isinstance(labels, str) else list(labels)
    checks.require(len(names) == count, "labels", f"{count} labels, one for each curve", labels, "Label all or none.")
    return list(names)


def once(ax: "Axes", label: str) -> str | None:
    """`label` for the first that asks: what has one meaning on `ax` has one line in its legend."""
    return None if label in ax.get_legend_handles_labels()[1] else label


def on_log_axis(values: Any) -> FloatArray:
    """`values`, with NaN where a logarithmic axis has no place for them.

    >>> on_log_axis([1.0, 0.0, np.inf])
    array([ 1., nan, nan])
    """
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.where((values > 1 / REACH) & (values < REACH), values, np.nan)


def log_scale(ax: "Axes", which: str, base: float = 10.0) -> None:
    """A logarithmic scale for axis "x" or "y", with limits even where nothing is drawn that has a place on it."""
    axis = {"x": ax.xaxis, "y": ax.yaxis}[which]
    getattr(ax, f"set_{which}scale")("log", base=base)
    low, high = sorted(axis.get_view_interval())
    if not 0.0 < low < high < np.inf:
        getattr(ax, f"set_{which}lim")(1.0, base, auto=None)
    elif _few_powers(low, high, base):
        from matplotlib.ticker import FuncFormatter, NullFormatter

        axis.set_major_locator(_narrow_locator()())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
        axis.set_minor_formatter(NullFormatter())


def _few_powers(low: float, high: float, base: float) -> bool:
    """Whether the powers of `base` from `low` to `high` are too few to read values from.

    Within two decades the ticks between powers of ten would be named as well, and 3 × 10¹, 4 × 10¹, … run into each
    other. One power of two tells no distances.
    """
    if base == 10.0:
        return high < 100.0 * low
    return bool(np.floor(np.log(high) / np.log(base)) <= np.ceil(np.log(low) / np.log(base)))


@cache
def _narrow_locator() -> "type[LogLocator]":
    """Ticks at 1, 2, 5, 10, …, or in equal steps where fewer than two of these are in view."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    class NarrowLocator(LogLocator):
        def __init__(self) -> None:
            super().__init__(subs=(1.0, 2.0, 5.0))

        def tick_values(self, vmin: float, vmax: float) -> Any:
            ticks = np.asarray(super().tick_values(vmin, vmax))
            within = (ticks > 1.001 * vmin) & (ticks < vmax / 1.001)
            return ticks if within.sum() >= 2 else MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(vmin, vmax)

    return NarrowLocator


def batch_size_axis(ax: "Axes", sizes: Any) -> None:
    """Batch sizes along the x axis, each with a tick if they are few, far enough apart, and span what is in view."""
    sizes = np.unique(np.asarray(sizes, dtype=np.float64))
    sizes = sizes[np.isfinite(sizes)]
    log_scale(ax, "x", base=2.0)
    octaves = np.log2(sizes)
    view = float(np.ptp(np.log2(ax.get_xlim())))
    # Margins are a twentieth on either side; a single size has an octave on either side as well.
    if 0 < sizes.size <= 8 and view < 1.2 * np.ptp(octaves) + 2.5 and (np.diff(octaves) > view / 12).all():
        ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
        ax.xaxis.minorticks_off()
    ax.set_xlabel("batch size  B")


def learning_rate_axis(ax: "Axes", name: str = "effective learning rate  ε/(1−m)") -> None:
    """Learning rates along the y axis, in powers of two."""
    log_scale(ax, "y", base=2.0)
    ax.set_ylabel(name)
