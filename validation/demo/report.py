"""The demonstration's report: one HTML file that contains its figures and can be read on its own."""

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from noisysgd import theory
from noisysgd.theory.common.files import write_text, write_whole
from noisysgd.validation.demo.claims import Claim, all_claims, power
from noisysgd.validation.demo.demonstration import DemoResults
from noisysgd.validation.demo.figures import log_mean, make_figures
from noisysgd.validation.prediction.quadratic import observed_boundary, predict_regimes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIMUM_CAPTION = (
    "Optimal effective learning rate by final training loss (error bar); loss ± standard deviation of the kept runs. A "
    "standard deviation of few runs is itself uncertain: trust an optimum to one step of the grid, a factor of 2."
)
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.25rem; margin: 2.2rem 0 .4rem }
img { max-width: 100%; display: block; margin: .8rem auto } .note { color: #555; font-size: .92rem }
table { border-collapse: collapse; margin: .8rem 0; font-size: .94rem } caption { text-align: left; color: #555 }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap } .scroll { overflow-x: auto }
.yes { color: #00674a; font-weight: 600 } .no { color: #a33b00; font-weight: 600 }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .82rem }
"""


def write_report(results: DemoResults, out: Path) -> Path:
    """Write ``report.html`` and ``figures/*.png`` below `out`; returns the report's path."""
    pictures = {name: _png(figure) for name, figure in make_figures(results).items()}
    for name, data in pictures.items():
        write_whole(out / "figures" / f"{name}.png", data, make_folders=True)
    return write_text(out / "report.html", render(results, pictures))


def demo_claims(results: DemoResults) -> list[Claim]:
    """The claims of the demonstration, judged by its results."""
    return all_claims(results.exact, results.simulated, results.trained, keep=results.plan.sweep.keep)


def render(results: DemoResults, pictures: Mapping[str, bytes]) -> str:
    """The report as one HTML page.

    Parameters
    ----------
    results : DemoResults
    pictures : mapping
        PNG data by the names of :func:`make_figures`.
    """
    plan = results.plan
    sweep = plan.sweep
    best = theory.optimum(results.trained, "train_loss", keep=sweep.keep)
    best_test = theory.optimum(results.trained, "test_accuracy", keep=sweep.keep)
    predicted = predict_regimes(results.reference["measurements"], momentum=best.momentum.values)
    runs = int((results.trained.status != 0).sum())
    reference = plan.reference
    sections = [
        "<h1>Two regimes of stochastic gradient descent</h1>",
        _p(
            "Predicted exactly for a noisy quadratic, simulated, trained on real images, measured, compared: after "
            "Smith, Elsen and De, On the Generalization Benefit of Noise in Stochastic Gradient Descent (2020)."
        ),
        _table(
            ["claim", "seen", "evidence"],
            [[html.escape(c.statement), _verdict(c.seen), html.escape(c.evidence)] for c in demo_claims(results)],
        ),
        "<h2>(a) Theory: the optimal learning rate has two regimes</h2>",
        _p(
            f"A quadratic with {plan.problem.dim} curvatures λᵢ = {float(plan.problem.largest_eigenvalue):g}/i and "
            f"gradient noise F = Λ, {plan.budget.epochs:g} epochs of {plan.budget.dataset_size} examples, the paper's "
            "schedule. While gradient noise limits it, the optimal effective learning rate ε/(1−m) is proportional "
            "to the batch "
            "size and the same with and without momentum; then curvature limits it, and momentum goes further. Under a "
            "decaying schedule the best learning rate may pass the critical one: what grows early on still dies out "
            "after the drops. Dashed: critical effective learning rates; tick: the batch size at which the optimum is "
            "half of it. The simulation tried powers of two only, so that its optimum may be half a step off the line."
        ),
        _picture(pictures["theory"], "optimal effective learning rate against batch size"),
        "<h2>(b) Simulation: the same losses from trajectories</h2>",
        _p(f"{plan.ensembles} ensembles of {plan.replicas} simulated runs at each point, with standard errors."),
        _picture(pictures["losses"], "exact and simulated loss against learning rate"),
        "<h2>(c) Training: a Wide-ResNet on handwritten digits</h2>",
        _p(
            f"{runs} runs of a WRN-{reference.depth}-{reference.width} with ghost batch norm (groups of "
            f"{reference.ghost_batch_size}) on scikit-learn's digits, {sweep.base.epochs:g} epochs each, the "
            f"paper's schedule and sampling; {sweep.seeds} seeds per point, the best {sweep.keep} kept, as the "
            "paper's rule has it (section 4). Points are means over the kept runs with standard errors; circles "
            "mark the optima."
        ),
        _picture(pictures["training"], "final training loss against effective learning rate"),
        _optimum_table(best, OPTIMUM_CAPTION),
        _optimum_table(
            best_test,
            "The same, chosen by test accuracy: at equal epochs large batches take fewer steps.",
            percent=True,
        ),
        "<h2>(d) Measurement: curvature and gradient noise of that network</h2>",
        _p(
            f"Along one reference run (SGD, B = {reference.batch_size}, ε = {reference.learning_rate:g}), in "
            "training mode: λ_max by Lanczos on the training set, the noise with the ghost batch as its unit; "
            "B_simple = tr F/|G|², B_noise = tr(HF)/GᵀHG. B_noise is not drawn where it is negative, as it can "
            "be where H is not positive."
        ),
        _picture(pictures["measurement"], "largest Hessian eigenvalue and noise scale along training"),
        _measurement_table(results.reference["measurements"]),
        "<h2>(e) Prediction beside measurement</h2>",
        _p(
            "Lines: exact optima, under the same budget and schedule, of the quadratic with the network's λ_max, |G|², "
            "tr F and loss before the first step, the spectrum λᵢ ∝ 1/i being assumed. Dashed: its critical effective "
            "learning rates 2(1+m)/((1−m)λ_max). Points: the sweep. Nothing is fitted to the sweep's optima."
        ),
        _picture(pictures["prediction"], "predicted and measured optimal learning rates"),
        _comparison_table(results.predicted, best),
        _critical_table(predicted, results.predicted, best),
        _p(
            "How to read it: a network is not a quadratic, and curvature and noise change as it learns; (d) "
            "shows by how much along one run. Training that survives beyond the initial critical learning rate "
            "probably lowers the curvature that it meets. The boundaries have three definitions, which need not "
            "agree: where noise and signal of a gradient are equal (B_simple), where the optimum of the "
            "calibrated quadratic is half the critical learning rate, and where linear scaling from the smallest "
            "batch meets the largest optimum. The last is a lower bound where the optimum is still rising at the "
            "largest batch. With λᵢ ∝ 1/i replaced by another spectrum the lines shift at small batches; the "
            "critical learning rates do not.",
            note=True,
        ),
        "<h2>Where these numbers come from</h2>",
        _p("Configuration shared by all training runs, and the machine and versions that made this report:", note=True),
        f"<pre>{html.escape(_provenance(results.trained))}</pre>",
    ]
    body = "\n".join(sections)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
    head += "<title>noisysgd demo</title>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _provenance(sweep: xr.Dataset) -> str:
    """Configuration, versions and machine of a sweep, from its attributes, as JSON that is easy to read."""
    shown = {k: v for k, v in sweep.attrs.items() if k not in ("schema", "schema_version", "source")}
    shown = {k: json.loads(v) if k in ("configuration", "versions") else v for k, v in shown.items()}
    return json.dumps(shown, indent=1, ensure_ascii=False)


def _optimum_table(best: xr.Dataset, caption: str, percent: bool = False) -> str:
    """For every batch size the optimal learning rate and the metric there, by optimizer; accuracies as a percentage."""
    names = [str(name) for name in best.optimizer.values]
    header = ["batch size"] + [f"{name}: ε/(1−m)" for name in names]
    header += [f"{name}: {'accuracy' if percent else 'loss'}" for name in names]
    rows = []
    for j, size in enumerate(best.batch_size.values):
        here = [best.isel(optimizer=k, batch_size=j) for k in range(len(names))]
        rates = [
            f"{power(float(b.effective_learning_rate))} ({power(float(b.effective_learning_rate_low))} to "
            f"{power(float(b.effective_learning_rate_high))})" + ("" if bool(b.bracketed) else ", not bracketed")
            for b in here
        ]
        scores = [
            f"{100 * float(b['mean']):.1f} ± {_two_digits(100 * float(b['std']))} %"
            if percent
            else f"{float(b['mean']):.4f} ± {_two_digits(float(b['std']))}"
            for b in here
        ]
        rows.append([f"{size:g}", *rates, *scores])
    return _table(header, rows, caption, numbers=True)


def _measurement_table(states: Sequence[Mapping[str, object]]) -> str:
    """Curvature, gradient and noise scales at each measured step, with their errors."""

    def cell(state: Mapping[str, object], name: str, error: str = "stderr") -> str:
        pair = state[name]
        assert isinstance(pair, Mapping)
        if pair["value"] is None:
            return "undefined"
        uncertainty = "" if pair[error] is None else f" ± {_two_digits(float(pair[error]))}"
        value = float(pair["value"])
        return f"{value:.4g}{uncertainty}" if abs(value) < 1e4 else f"{value:.0f}{uncertainty}"

    columns = [
        ("λ_max (± residual)", "lambda_max", "residual"),
        ("tr F", "trace_noise", "stderr"),
        ("|G|²", "gradient_norm_squared", "stderr"),
        ("B_simple", "B_simple", "stderr"),
        ("B_noise", "B_noise", "stderr"),
    ]
    rows = [[str(state["step"]), *(cell(state, name, error) for _, name, error in columns)] for state in states]
    caption = "Measured states; noise scales in examples, ± one standard error."
    return _table(["step", *(title for title, _, _ in columns)], rows, caption, numbers=True)


def _comparison_table(predicted: xr.Dataset, best: xr.Dataset) -> str:
    """Predicted and measured optimum at each batch size, and their ratio."""
    rows = []
    for j, size in enumerate(best.batch_size.values):
        row = [f"{size:g}"]
        for k, m in enumerate(best.momentum.values):
            expected = float(predicted.effective_learning_rate.sel(momentum=m, batch_size=size))
            seen = float(best.effective_learning_rate[k, j])
            ratio = seen / expected
            row += [f"{expected:.2g}", power(seen), f"{ratio:.1f}" if np.isfinite(ratio) else "none"]
        rows.append(row)
    header = ["batch size"]
    for name in best.optimizer.values:
        header += [f"{name}: predicted ε/(1−m)", "trained", "ratio"]
    return _table(
        header, rows, "Optimal effective learning rates: predicted, trained, trained/predicted.", numbers=True
    )


def _critical_table(states: xr.Dataset, calibrated: xr.Dataset, best: xr.Dataset) -> str:
    """Critical learning rates and boundaries: from the measured states, from the calibrated quadratic, and observed."""
    seen = observed_boundary(best)
    low, high = seen.boundary_batch_size_low, seen.boundary_batch_size_high
    rows = []
    for k, name in enumerate(best.optimizer.values):
        rates = best.effective_learning_rate[k].values
        # An optimum that is still rising at the largest batch is a lower bound of the plateau, and so is the boundary.
        at_least = "≥ " if rates[-1] > rates[-2] else ""
        boundary = float(calibrated.boundary_batch_size[k])
        rows.append(
            [
                html.escape(str(name)),
                _span(states.critical_effective_learning_rate[k]),
                f"{at_least}{power(float(seen.plateau[k]))}",
                _span(states.boundary_batch_size[k]),
                f"{boundary:.0f}" if np.isfinite(boundary) else "outside",
                f"{at_least}{float(seen.boundary_batch_size[k]):.0f}"
                + ("" if at_least else f" ({float(low[k]):.0f} to {float(high[k]):.0f})"),
            ]
        )
    header = [
        "optimizer",
        "critical ε/(1−m) from λ_max",
        "largest optimum measured",
        "boundary from B_simple",
        "boundary of the calibrated quadratic",
        "boundary measured",
    ]
    caption = "From λ_max and from B_simple: geometric means over the states of (d), with the smallest and the largest."
    return _table(header, rows, caption, numbers=True)


def _span(values: xr.DataArray) -> str:
    """Geometric mean of positive numbers, with the smallest and the largest of them."""
    if not np.isfinite(values).any():
        return "undefined"
    middle, low, high = (_three_digits(float(x)) for x in (log_mean(values), values.min(), values.max()))
    return f"{middle} ({low} to {high})"


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _two_digits(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def _verdict(seen: bool) -> str:
    return '<span class="yes">yes</span>' if seen else '<span class="no">not seen</span>'


def _p(text: str, note: bool = False) -> str:
    return f"<p{' class=note' if note else ''}>{html.escape(text, quote=False)}</p>"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]], caption: str = "", numbers: bool = False) -> str:
    kind = " class=number" if numbers else ""
    top = "".join(f"<th>{cell}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<div class=scroll><table>{title}<tr>{top}</tr>\n{body}</table></div>"


def _picture(data: bytes, alternative: str) -> str:
    return f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
