"""What all figures share: colours, axes, and the values that a logarithmic axis can show."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from noisysgd.theory import checks
from noisysgd.theory.checks import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    elif high < base**2 * low:
        # Within two powers of the base, powers are too few to read from, and 3 × 10¹, 4 × 10¹, … run into each other.
        # 1, 2, 5, … are easy to read on any base; where one of them or none is in view, this locator takes equal steps.
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def batch_size_axis(ax: "Axes", sizes: Any) -> None:
    """Batch sizes along the x axis, each with a tick if they are few."""
    sizes = np.unique(np.asarray(sizes, dtype=np.float64))
    sizes = sizes[np.isfinite(sizes)]
    log_scale(ax, "x", base=2.0)
    if 0 < sizes.size <= 8:
        ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
        ax.xaxis.minorticks_off()
    ax.set_xlabel("batch size  B")


def learning_rate_axis(ax: "Axes", name: str = "effective learning rate  ε/(1−m)") -> None:
    """Learning rates along the y axis, in powers of two."""
    log_scale(ax, "y", base=2.0)
    ax.set_ylabel(name)
