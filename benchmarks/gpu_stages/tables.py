"""The parts of docs/gpu.md that are made, each by a function of its name."""

from collections.abc import Callable
from typing import Any

from gpu_stages.results import NOT_MEASURED, Results, Row, cell, number, table
from gpu_stages.sizes import KINDS, PRECISIONS


def status(results: Results) -> str:
    """Whether anything here has run on a GPU, and on which."""
    about = next(filter(None, map(results.about, results.stages)), None)
    if about is None:
        return "**Nothing here has run on a GPU yet**: no machine that built this version had one."
    name, driver = results.row("environment", "GPU"), results.row("environment", "nvidia-smi")
    where = f"{name.get('name', 'a GPU of unknown name')}, driver {driver.get('driver_version', 'unknown')}"
    where = "a CPU" if about["device"] == "cpu" else where
    stopped = [
        stage for stage in results.stages if (results.about(stage) or {"ended": "not run"})["ended"] != "complete"
    ]
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
    unread = results.row("tests", "collection").get("unread")
    rest = f"; files that could not be read: {entry(unread)}" if unread else ""
    lines = [((counted or missing(row)) + stopped + rest, cell(row, "seconds"))] if row else []
    return table(("`pytest -m gpu`", "seconds"), lines)


def bits(results: Results) -> str:
    """Whether CPU and GPU give the same bytes."""
    options = list(dict.fromkeys(row["options"] for row in results.rows("simulators", "bits")))
    found = {(o, kind): results.row("simulators", "bits", problem=kind, options=o) for o in options for kind in KINDS}
    lines = [(option, *(cell(found[option, kind], "identical") for kind in KINDS)) for option in options]
    compared = next((row["backends"] for row in results.rows("simulators", "bits")), ["cpu", "cuda"])
    return table((f"{' and '.join(compared)} identical", *(f"{kind} noise" for kind in KINDS)), lines)


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
