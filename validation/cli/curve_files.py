"""The files that a learning curve is written to: a table or a figure."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisysgd.theory.common import checks
from noisysgd.validation.cli.options import check_output

KINDS = (".csv", ".png", ".svg", ".pdf")


def check_curve_file(option: str, path: Path | None) -> None:
    """Raise, before any work is done, if no curve can be written at `path`; ``None`` means that none is wanted.

    Raises
    ------
    ValueError
        For another kind of file, or a folder that is not there.
    """
    if path is not None:
        expected = f"a name that ends in {', '.join(KINDS)}"
        checks.require(path.suffix in KINDS, f"{option} {path}", expected, path.suffix, "It says what to write.")
        check_output(option, path)


def write_curve(curve: Mapping[str, Any] | None, path: Path) -> None:
    """Write the entry ``curve`` of a record as a table or a figure, by the name of the file.

    Raises
    ------
    ValueError
        If the run has no curve.
    """
    curve = known_curve(curve, str(path))
    if path.suffix == ".csv":
        from noisysgd.theory.common.files import write_text

        write_text(path, curve_table(curve))
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from noisysgd.theory.plots.curves import plot_measured_curves

    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    plot_measured_curves(curve, figure.subplots())
    figure.savefig(path)


def known_curve(curve: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    """The curve itself; a ``ValueError`` that begins with `name` if a run has none."""
    remedy = "It diverged at once, or is of a version that recorded none: train it again, in another store."
    checks.require(curve is not None, name, "a run with a learning curve", "none", remedy)
    assert curve is not None
    return curve


def curve_table(curve: Mapping[str, Any]) -> str:
    """A curve as CSV: a row for every bin that holds losses, then one for every evaluation.

    A bin holds the updates step_start, …, step_stop − 1. An evaluation is of the parameters after step_start updates.

    >>> evaluated = {"steps": [2], "test_loss": [1.0]}
    >>> print(curve_table({"edges": [0, 2], "loss": [1.5], "std": [0.5], "evaluated": evaluated}))
    step_start,step_stop,minibatch_loss,minibatch_loss_std,test_loss
    0,2,1.5,0.5,
    2,2,,,1.0
    <BLANKLINE>
    """
    evaluated = dict(curve.get("evaluated", {}))
    steps = evaluated.pop("steps", [])
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["step_start", "step_stop", "minibatch_loss", "minibatch_loss_std", *evaluated])
    for first, last, loss, spread in zip(curve["edges"], curve["edges"][1:], curve["loss"], curve["std"], strict=False):
        if loss is not None:
            table.writerow([first, last, loss, spread, *(None for _ in evaluated)])
    for k, step in enumerate(steps):
        table.writerow([step, step, None, None, *(values[k] for values in evaluated.values())])
    return text.getvalue()
