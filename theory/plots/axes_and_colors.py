"""What the figures share: colours, axes, and the values that a logarithmic axis can show."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

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
"""Values above this, or below its inverse, are not drawn: Matplotlib would overflow on them."""


@contextmanager
def axes_or_new(ax: "Axes | None") -> "Iterator[Axes]":
    """`ax` as the caller made it, or the axes of a new pyplot figure.

    The new figure gets a legend in the end if more than one thing in it has a label, and is closed if drawing fails. A
    given `ax` gets no legend, since only its owner knows what else will be drawn on it.
    """
    if ax is not None:
        from matplotlib.axes import Axes

        checks.instance("ax", ax, Axes, remedy="Make some with plt.subplots(), or leave it out.")
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
    """Colours for `count` curves: those of :data:`COLORS` if they are enough, else shades from light to dark."""
    if count <= len(COLORS):
        return list(COLORS[:count])
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0.85, 0.1, count)))


def labels_for(labels: Sequence[str] | str | None, count: int) -> list[str | None]:
    """One label, or None, for each of `count` curves; checks that their number is right."""
    if labels is None:
        return [None] * count
    names = [labels] if isinstance(labels, str) else checks.several("labels", labels, str, remedy="Label all or none.")
    checks.require(len(names) == count, "labels", f"{count} labels, one for each curve", labels, "Label all or none.")
    return list(names)


def check_style(style: object) -> None:
    """Raise unless Matplotlib takes `style` as the format of a curve."""
    from matplotlib.figure import Figure

    remedy = 'Use a format of Matplotlib, such as "-" or "o--".'
    checks.instance("style", style, str, remedy=remedy)
    try:
        Figure().subplots().plot([], [], str(style))
    except ValueError as error:
        raise ValueError(f"style: expected the format of a curve, got {style!r} ({error}). {remedy}") from error


def once(ax: "Axes", label: str) -> str | None:
    """`label` if nothing on `ax` has it yet, else None: so lines of one meaning have one entry in the legend."""
    return None if label in ax.get_legend_handles_labels()[1] else label


def on_log_axis(values: ArrayLike) -> FloatArray:
    """`values`, with NaN for those that a logarithmic axis cannot show.

    >>> on_log_axis([1.0, 0.0, np.inf])
    array([ 1., nan, nan])
    """
    array = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.where((array > 1 / REACH) & (array < REACH), array, np.nan)


def log_scale(ax: "Axes", which: str, base: float = 10.0) -> None:
    """Make axis "x" or "y" logarithmic; it gets limits even if nothing drawn so far can be shown on it."""
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
    """Whether there are too few powers of `base` from `low` to `high` to read values from.

    Within two decades Matplotlib also labels the ticks between powers of ten, and 3 × 10¹, 4 × 10¹, … run into each
    other. With base 2, a single labelled power does not show the scale.
    """
    if base == 10.0:
        return high < 100.0 * low
    return bool(np.floor(np.log(high) / np.log(base)) <= np.ceil(np.log(low) / np.log(base)))


@cache
def _narrow_locator() -> "type[LogLocator]":
    """The class of a locator with ticks at 1, 2, 5, 10, …, or in equal steps if fewer than two of these are in view.

    It is made here, since its base class is imported only when something is drawn.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator

    class NarrowLocator(LogLocator):
        def __init__(self) -> None:
            super().__init__(subs=(1.0, 2.0, 5.0))

        def tick_values(self, vmin: float, vmax: float) -> Any:
            ticks = np.asarray(super().tick_values(vmin, vmax))
            within = (ticks > 1.001 * vmin) & (ticks < vmax / 1.001)
            return ticks if within.sum() >= 2 else MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(vmin, vmax)

    return NarrowLocator


def batch_size_axis(ax: "Axes", sizes: ArrayLike) -> None:
    """Make the x axis one of batch sizes.

    Every size gets a tick if there are at most eight, far enough apart, that span most of what is in view.
    """
    shown = np.unique(np.asarray(sizes, dtype=np.float64))
    shown = shown[np.isfinite(shown)]
    log_scale(ax, "x", base=2.0)
    octaves = np.log2(shown)
    view = float(np.ptp(np.log2(ax.get_xlim())))
    # By default the view exceeds the data by a twentieth on either side; around a single size it has some octaves.
    if 0 < shown.size <= 8 and view < 1.2 * np.ptp(octaves) + 2.5 and (np.diff(octaves) > view / 12).all():
        ax.set_xticks(shown, [f"{size:g}" for size in shown])
        ax.xaxis.minorticks_off()
    ax.set_xlabel("batch size  B")


def learning_rate_axis(ax: "Axes", name: str = "effective learning rate  ε/(1−m)") -> None:
    """Make the y axis one of learning rates, in powers of two."""
    log_scale(ax, "y", base=2.0)
    ax.set_ylabel(name)
