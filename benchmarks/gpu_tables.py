"""The tables of docs/gpu.md from the results of benchmarks/gpu.py, so that no figure there is typed.

    python benchmarks/gpu_tables.py DIR            # rewrites docs/gpu.md between <!-- table: NAME --> and <!-- end -->
    python benchmarks/gpu_tables.py DIR --print    # prints the tables

What was not measured is called so. Results at toy size, or of a CPU, can be printed, but are refused for the page.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"
STAGES = ("environment", "tests", "simulators", "training", "curvature", "campaign")
NOT_MEASURED = "not measured"
PART = re.compile(r"(<!-- table: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Row = dict[str, Any]


class Results:
    """What the stages have written.

    Parameters
    ----------
    folder : Path
        The folder that ``benchmarks/gpu.py --out`` was given. Stages that did not run may be missing.
    """

    def __init__(self, folder: Path) -> None:
        paths = {stage: folder / f"{stage}.json" for stage in STAGES}
        self._files = {stage: json.loads(path.read_text("utf-8")) for stage, path in paths.items() if path.exists()}

    def about(self, stage: str) -> dict[str, Any] | None:
        """Device, size and time of a stage, or None if it did not run."""
        return self._files[stage]["about"] | {"ended": self._files[stage]["ended"]} if stage in self._files else None

    def unfit(self) -> list[str]:
        """Reasons why these are no results for the page; none if they are."""
        found = []
        for stage, file in self._files.items():
            found += [f"{stage}: toy sizes (--tiny)"] if file["about"]["tiny"] else []
            found += [f"{stage}: measured on a CPU"] if file["about"]["device"] == "cpu" else []
        return found

    def rows(self, stage: str, what: str, **settings: Any) -> list[Row]:
        """Rows of a stage, of one kind and with these settings."""
        wanted = {"what": what, **settings}
        rows = self._files.get(stage, {"rows": []})["rows"]
        return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]

    def row(self, stage: str, what: str, **settings: Any) -> Row:
        """The last of them that was measured; or else one that says why it was not, or an empty one."""
        rows = self.rows(stage, what, **settings)
        measured = [row for row in rows if not {"skipped", "error"} & row.keys()]
        return (measured or rows or [{}])[-1]

    def values(self, stage: str, what: str, name: str) -> list[Any]:
        """The values of a setting that occur, in ascending order."""
        return sorted({row[name] for row in self.rows(stage, what) if name in row})


def number(value: Any) -> str:
    """Three significant digits; thousands are set apart.

    >>> number(0.012345), number(31415.9), number(None)
    ('0.0123', '31 416', 'not measured')
    """
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if not isinstance(value, int | float):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"


def cell(row: Row, name: str, unit: float = 1.0) -> str:
    """An entry of a row in multiples of a unit; or why there is none."""
    if "error" in row:
        return "failed"
    if row.get(name) is None:
        return f"{NOT_MEASURED} ({row['skipped']})" if "skipped" in row else NOT_MEASURED
    value = row[name]
    return number(value if unit == 1.0 or isinstance(value, bool) else value / unit)


def table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A Markdown table, which says so if it has no lines."""
    names = list(header)
    body = [list(line) for line in lines] or [[NOT_MEASURED] + [""] * (len(names) - 1)]
    rule = ["---"] * len(names)
    return "\n".join(f"| {' | '.join(line)} |" for line in (names, rule, *body))


def status(results: Results) -> str:
    """Whether anything here has run on a GPU, and on which."""
    about = next(filter(None, map(results.about, STAGES)), None)
    if about is None:
        return "**Nothing here has run on a GPU yet**: no machine that built this version had one."
    name, driver = results.row("environment", "GPU"), results.row("environment", "nvidia-smi")
    where = f"{name.get('name', 'a GPU of unknown name')}, driver {driver.get('driver_version', 'unknown')}"
    where = "a CPU" if about["device"] == "cpu" else where
    stopped = [stage for stage in STAGES if (results.about(stage) or {"ended": "not run"})["ended"] != "complete"]
    rest = f" Not complete: {', '.join(stopped)}." if stopped else ""
    return f"Measured on {where}, {about['started'][:10]}, by `benchmarks/gpu.py` in {about['seconds']:.0f} s.{rest}"


def environment(results: Results) -> str:
    """What everything was measured with."""
    kinds = ("GPU", "nvidia-smi", "CPU", "kernels", "versions")
    rows = {kind: results.row("environment", kind) for kind in kinds}
    hidden = {"what", "skipped", "error", "trace"}
    lines = [
        (kind, ", ".join(f"{name} {entry(value)}" for name, value in row.items() if name not in hidden) or missing(row))
        for kind, row in rows.items()
    ]
    return table(("", "found"), lines)


def entry(value: Any) -> str:
    """A value among others in a cell."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def missing(row: Row) -> str:
    """Why a row has no results."""
    return cell({name: row[name] for name in ("skipped", "error") if name in row}, "")


def tests(results: Results) -> str:
    """How many tests passed."""
    row = results.row("tests", "pytest -m gpu")
    found = row.get("counts", {})
    kinds = ("passed", "failed", "error", "errors", "skipped")
    counted = ", ".join(f"{found[kind]} {kind}" for kind in kinds if kind in found)
    stopped = " (stopped at the deadline)" if row and row.get("exit", 0) is None else ""
    return table(
        ("`pytest -m gpu`", "seconds"), [((counted or missing(row)) + stopped, cell(row, "seconds"))] if row else []
    )


def bits(results: Results) -> str:
    """Whether CPU and GPU give the same bytes."""
    options = list(dict.fromkeys(row["options"] for row in results.rows("simulators", "bits")))
    lines = [
        (
            option,
            *(cell(results.row("simulators", "bits", problem=kind, options=option), "identical") for kind in KINDS),
        )
        for option in options
    ]
    compared = next((row["backends"] for row in results.rows("simulators", "bits")), ["cpu", "cuda"])
    return table((f"{' and '.join(compared)} identical", *(f"{kind} noise" for kind in KINDS)), lines)


KINDS = ("diagonal", "full")
PRECISIONS = ("float64", "float32", "mixed")


def updates(results: Results) -> str:
    """Updates per second of the simulators."""

    def line(label: str, what: str, **settings: Any) -> tuple[str, ...]:
        found = (results.row("simulators", what, dtype=dtype, **settings) for dtype in PRECISIONS)
        return label, *(cell(row, "updates_per_s", 1e9) for row in found)

    sizes = results.values("simulators", "updates", "replicas")
    lines = [line(f"{size} replicas", "updates", replicas=size) for size in sizes]
    cores = results.values("simulators", "updates on all cores", "replicas")
    lines += [line(f"{size} replicas, all cores of the CPU", "updates on all cores", replicas=size) for size in cores]
    return table(("10⁹ updates of one mode per second", *PRECISIONS), lines)


def normals(results: Results) -> str:
    """How fast libraries make normal numbers."""
    rows = results.rows("simulators", "normals")
    lines = [(f"{row['library']}, {row['dtype']}", cell(row, "numbers_per_s", 1e9)) for row in rows]
    return table(("normal numbers alone", "10⁹ per second"), lines)


def configurations(results: Results) -> str:
    """Several configurations at once, and what share of the time is the kernels'."""
    rows = results.rows("simulators", "configurations")
    lines = [(str(row["configurations"]), str(row["replicas"]), cell(row, "updates_per_s", 1e9)) for row in rows]
    kernels = results.row("simulators", "time in kernels")
    share = ("1: seconds of all kernels, in one second", cell(kernels, "replicas"), cell(kernels, "kernels_per_second"))
    lines += [share] if kernels else []
    return table(("configurations", "replicas of each", "10⁹ updates per second"), lines)


def training_table(results: Results, first: str, variants: dict[str, Row], name: str, unit: float = 1.0) -> str:
    """A table of one result of all batch sizes: a line for each variant of the update."""
    sizes = results.values("training", "updates", "batch_size")
    lines = [
        (label, *(cell(results.row("training", "updates", **settings, batch_size=size), name, unit) for size in sizes))
        for label, settings in variants.items()
    ]
    return table((first, *(f"B = {size}" for size in sizes)), lines if sizes else [])


def usual(results: Results) -> Row:
    """The update that others are compared with: on a CPU there is neither TensorFloat-32 nor a graph."""
    on_cpu = (results.about("training") or {"device": "cuda"})["device"] == "cpu"
    precision = "float32" if on_cpu else "tf32"
    return {"norm": "ghost", "captured": not on_cpu, "deterministic": True, "precision": precision}


def by_precision(results: Results) -> dict[str, Row]:
    """Updates of all precisions."""
    return {name: usual(results) | {"precision": name} for name in ("tf32", "bfloat16", "float32")}


def by_change(results: Results) -> dict[str, Row]:
    """Updates that differ in one thing."""
    base = usual(results)
    return {
        f"as it is, {base['precision']}": base,
        "`cuda_graph=False`": base | {"captured": False},
        "`deterministic=False`": base | {"deterministic": False},
        "torch's batch norm": base | {"norm": "torch"},
    }


def precision(results: Results) -> str:
    """Images per second by precision."""
    return training_table(results, "images per second", by_precision(results), "images_per_s")


def variants(results: Results) -> str:
    """Milliseconds of an update, one thing changed at a time."""
    return training_table(results, "ms per update", by_change(results), "ms_per_step")


def host(results: Results) -> str:
    """Milliseconds that the host takes to ask for an update."""
    return training_table(results, "ms of the host per update", by_change(results), "host_ms")


def memory(results: Results) -> str:
    """Peak memory by precision."""
    return training_table(results, "GB beside the data, at most", by_precision(results), "peak_bytes", 1e9)


def repeated(results: Results) -> str:
    """Whether runs repeat bit for bit."""
    lines = [
        (
            "one graph" if row["captured"] else "kernel by kernel",
            "yes" if row["deterministic"] else "no",
            cell(row, "same_twice"),
            cell(row, "same_as_usual"),
        )
        for row in results.rows("training", "repeated")
    ]
    return table(("updates", "deterministic", "same bits twice", "same bits as the first line"), lines)


def at_once(results: Results) -> str:
    """Small runs side by side."""
    rows = results.rows("training", "small runs")
    lines = [(str(row["processes"]), cell(row, "updates_per_s"), cell(row, "slowest")) for row in rows]
    return table(("processes", "updates per second, all together", "the slowest"), lines)


def agreement(results: Results) -> str:
    """Curvature of one network on CPU and GPU."""
    lines = [
        (f"{row['place'].upper()}, {row['dtype']}", *(digits(row, name) for name in ("lambda_max", "trace_noise")))
        for row in results.rows("curvature", "small network")
    ]
    return table(("small network", "λ_max", "tr F"), lines)


def digits(row: Row, name: str) -> str:
    """An entry with as many digits as single precision could have."""
    return f"{row[name]:.7g}" if name in row else cell(row, name)


def curvature(results: Results) -> str:
    """What curvature of the Wide-ResNet costs."""
    names = ("lambda_max", "converged", "products", "seconds")
    lines = [
        (f"{row['after']} updates, {row['examples']} images", *(cell(row, name) for name in names))
        for row in results.rows("curvature", "Wide-ResNet")
    ]
    return table(("after", "λ_max", "converged", "Hessian products", "seconds of `measure`"), lines)


def campaign_table(results: Results, metric: str) -> str:
    """A metric of the campaign: a line for each effective learning rate, a column for each curve."""
    runs = [row["config"] | {metric: row[metric]} for row in results.rows("campaign", "run") if "config" in row]
    found = {(effective(run), run["batch_size"], run["momentum"]): run[metric] for run in runs}
    curves = sorted({(size, momentum) for _, size, momentum in found})
    header = ("ε/(1−m)", *(f"B = {size}, m = {momentum:g}" for size, momentum in curves))
    lines = [
        (f"{rate:g}", *(outcome(found, (rate, *curve)) for curve in curves)) for rate in sorted({k[0] for k in found})
    ]
    return table(header, lines)


def effective(run: Row) -> float:
    """ε/(1−m), rounded: it is a power of two times a simple number."""
    return round(float(run["learning_rate"]) / (1 - float(run["momentum"])), 9)


def outcome(found: dict[Any, float | None], place: tuple[float, ...]) -> str:
    """A run's result; a diverged run has none."""
    if place not in found:
        return ""
    return "diverged" if found[place] is None else number(found[place])


def campaign(results: Results) -> str:
    """Final training losses of the campaign."""
    return f"Training loss. {protocol(results)}\n\n{campaign_table(results, 'train_loss')}"


def accuracy(results: Results) -> str:
    """Test accuracies of the campaign."""
    return f"Test accuracy.\n\n{campaign_table(results, 'test_accuracy')}"


def protocol(results: Results) -> str:
    """What the runs of the campaign have in common."""
    runs = [row["config"] for row in results.rows("campaign", "run") if "config" in row]
    if not runs:
        return f"Runs: {NOT_MEASURED}."
    names = ("dataset", "depth", "width", "ghost_batch_size", "epochs", "precision", "augment")
    common = ", ".join(f"{name} {runs[0][name]}" for name in names if name in runs[0])
    return f"{len(runs)} runs: {common}."


MAKERS: tuple[Callable[[Results], str], ...] = (
    *(status, environment, tests, bits, updates, normals, configurations, precision, variants, host, memory),
    *(repeated, at_once, agreement, curvature, campaign, accuracy),
)
TABLES = {maker.__name__: maker for maker in MAKERS}
"""Every part of the page that is made, by its name there."""


def rewritten(page: str, results: Results) -> str:
    """The page with all its tables made anew.

    Raises
    ------
    ValueError
        If the page has other parts than `TABLES`.
    """
    names = [found["name"] for found in PART.finditer(page)]
    if sorted(names) != sorted(TABLES):
        raise ValueError(f"page: expected the parts {sorted(TABLES)}, got {sorted(names)}. Put each in it once.")
    return PART.sub(lambda part: part[1] + TABLES[part["name"]](results) + "\n" + part[3], page)


def main() -> str | None:
    """Rewrite the page or print the tables, and return what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what benchmarks/gpu.py --out was given")
    parser.add_argument("--print", action="store_true", help="print the tables, whatever was measured")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to rewrite, docs/gpu.md by default")
    given = parser.parse_args()
    results = Results(given.folder)
    unfit = results.unfit()
    if given.print:
        print("\n".join(f"Not for the page: {reason}" for reason in unfit))
        print("\n\n".join(f"{name}\n\n{maker(results)}" for name, maker in TABLES.items()))
        return None
    if unfit:
        return f"{given.folder}: expected results of a GPU at full size, got {'; '.join(unfit)}. Try --print."
    given.page.write_text(rewritten(given.page.read_text(encoding="utf-8"), results), encoding="utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main())
