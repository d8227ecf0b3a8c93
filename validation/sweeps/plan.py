"""Sweeps as TOML files: the names that a file may have, the sweep that it describes, and errors where it is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from noisysgd.theory.common import checks
from noisysgd.theory.sweeps.grid import Grid
from noisysgd.validation.configuration import METRICS, WIDE_RESNET, TrainConfig
from noisysgd.validation.data.image_folders import described
from noisysgd.validation.runs.toml_files import from_toml, read_toml, to_toml
from noisysgd.validation.sweeps.cost import CostModel, steps_of
from noisysgd.validation.sweeps.paper import preset_runs
from noisysgd.validation.sweeps.protocol import FURTHEST, bracketed_metrics, extension, runs_kept
from noisysgd.validation.sweeps.trained import Sweep, Unlimited
from noisysgd.validation.sweeps.trained_pairs import PairSweep
from noisysgd.validation.training.time_limit import checked_limit

EXAMPLE = """\
# noisysgd sweep plan sweep.toml

[run]                       # what all runs share: the names of TrainConfig
dataset = "digits"
ghost_batch_size = 16

[budget]
kind = "epoch"              # "epoch", "step", or "unlimited": doubled for as long as that helps
epochs = 12                 # or steps; a list tries several

[grid]
batch_sizes = [16, 64]
momenta = [0.0, 0.9]
exponents = [-1, 2]         # effective learning rates 2^-1 ... 2^2 to begin with

[protocol]
runs = 3                    # per learning rate, of which the best `keep` count;
keep = 2                    # or preset = "paper" (15, 12), "paper-pairs" (7, 5)
metrics = ["train_loss", "test_accuracy"]  # each optimised by itself, until bracketed
extensions = 4              # learning rates that may be added at either end
"""

SECTIONS = {
    # Of a run's configuration everything but what the other sections vary.
    "run": tuple(
        field.name
        for field in fields(TrainConfig)
        if field.name not in ("learning_rate", "final_learning_rate", "batch_size", "momentum", "epochs", "steps")
    ),
    "budget": ("kind", "epochs", "steps", "metric", "target", "doublings"),
    "grid": ("batch_sizes", "momenta", "exponents", "initial", "final", "window"),
    "protocol": ("preset", "runs", "keep", "metrics", "extensions"),
    "limits": ("seconds_per_run",),
    "cost": ("seconds_per_run", "seconds_per_step", "seconds_per_example", "price_per_hour"),
}
"""Sections of a file, and the names that each may have."""


@dataclass(frozen=True)
class Plan:
    """What a TOML file describes.

    Parameters
    ----------
    sweep : Sweep or PairSweep
    text : str
        The file in canonical form: without comments, sections in a fixed order. It describes the same plan.
    cost : CostModel or None
        The section ``[cost]``, if there is one.
    time_limit : float or None
        Seconds that each start of a run may take: ``seconds_per_run`` of the section ``[limits]``.
    """

    sweep: Sweep | PairSweep
    text: str
    cost: CostModel | None
    time_limit: float | None = None

    def check_network(self) -> None:
        """Import the network that the file names, if it is one of the user's own.

        Reading a plan never does, for that would execute the user's code: a sweep can be looked at and exported where
        the module is not there, or is not to be trusted. Whoever is about to train calls this first, so that a network
        that cannot be imported is told of at once and not by the first worker.

        Raises
        ------
        ValueError
            If it cannot be imported, with the reason.
        """
        name = self.sweep.base.model
        if name != WIDE_RESNET:
            from noisysgd.validation.networks.factory import imported  # imports torch, which most plans do without

            imported(name)

    @property
    def price_per_hour(self) -> float | None:
        """Price of one hour of one device, if the file states it."""
        return self.cost.price_per_hour if self.cost is not None else None


def read_plan(path: str | Path) -> Plan:
    """The plan in a TOML file; see :func:`parse_plan`.

    Raises
    ------
    ValueError
        If the file is not TOML, has unknown names or impossible values, or describes runs that would fail at their
        start. The message begins with the path.
    OSError
        If the file is not there or cannot be read.
    """
    return read_toml(path, _plan_of)


def parse_plan(text: str) -> Plan:
    """The plan in TOML text, of which :data:`EXAMPLE` explains the names.

    No network of the user's own is imported: see :meth:`Plan.check_network`.

    With ``initial`` and ``final`` instead of ``exponents`` in the section ``[grid]``, pairs of initial and final
    learning rates are tuned (section 7.1).

    Examples
    --------
    >>> plan = parse_plan(EXAMPLE)
    >>> len(plan.sweep.plan()), plan.sweep.metrics
    (48, ('train_loss', 'test_accuracy'))
    >>> parse_plan(plan.text).text == plan.text
    True
    """
    return _plan_of(from_toml(text))


def _plan_of(given: dict[str, Any]) -> Plan:
    """The plan that the values of a file describe."""
    for section, table in given.items():
        checks.one_of("section", section, list(SECTIONS))
        checks.instance(section, table, dict, remedy=f"Write a table, [{section}].")
        unknown = sorted(set(table) - set(SECTIONS[section]))
        expected = f"names among {', '.join(SECTIONS[section])}"
        checks.require(not unknown, f"[{section}]", expected, unknown, "Check the spelling.")
    for section in ("budget", "grid"):
        checks.require(section in given, "file", f"a section [{section}]", list(given), "Add it.")
    grid, protocol = given["grid"], given.get("protocol", {})
    budgets, unlimited = _budget(given["budget"])
    # The kind of the sweep follows from the names in its grid; each kind has a preset of its own.
    pairs = "initial" in grid or "final" in grid
    shared = _shared(protocol, "paper-pairs" if pairs else "paper") | {"budgets": budgets if len(budgets) > 1 else None}
    unit = "steps" if "steps" in given["budget"] else "epochs"
    # The base needs some budget and some learning rate; the grid replaces them.
    run = given.get("run", {}) | {unit: budgets[0]}
    sweep: Sweep | PairSweep
    if pairs:
        checks.require(unlimited is None, "kind", "an epoch or step budget for pairs", "unlimited", "List budgets.")
        one_kind = "exponents" not in grid and "window" not in grid
        checks.require(one_kind, "[grid]", "exponents and windows, or initial and final", list(grid), "Choose.")
        size, momentum = (_one(name, grid) for name in ("batch_sizes", "momenta"))
        base = TrainConfig.from_dict(run | {"learning_rate": 1.0, "batch_size": size, "momentum": momentum})
        _check_possible(base, [size])
        axes: dict[str, Any] = {name: _range(name, grid[name]) for name in ("initial", "final") if name in grid}
        sweep = PairSweep(base=base, **axes, **shared)
    else:
        sizes, momenta = _list("batch_sizes", grid), _list("momenta", grid)
        # The base's momentum is replaced too, but Nesterov's step is possible with some momentum only.
        most = max(checks.scalar("momenta", checks.momentum(momentum, "momenta")) for momentum in momenta)
        base = TrainConfig.from_dict(run | {"learning_rate": 1.0, "batch_size": sizes[0], "momentum": most})
        _check_possible(base, sizes)
        exponents = _exponents(grid, momenta, sizes)
        sweep = Sweep(base=base, batch_sizes=sizes, momenta=momenta, exponents=exponents, unlimited=unlimited, **shared)
    # One run of each batch size and budget: computing its steps raises if the budget allows no schedule.
    for config in {(c.batch_size, c.epochs, c.steps): c for c in sweep.plan()}.values():
        steps_of(config)
    limit = checked_limit(given.get("limits", {}).get("seconds_per_run"))
    cost = CostModel(**given["cost"], source="stated in the file") if "cost" in given else None
    return Plan(sweep, to_toml({section: given[section] for section in SECTIONS if section in given}), cost, limit)


def _check_possible(base: TrainConfig, sizes: Sequence[Any]) -> None:
    """Raise if a run would be refused at its start, for a batch or images that the data do not allow."""
    there = described(base.dataset).training_examples
    enough = base.subset is None or base.subset <= there
    checks.require(enough, "subset", f"at most the {there} training examples", base.subset, "Leave it out for all.")
    examples = there if base.subset is None else base.subset
    for size in sizes:
        whole = checks.integer("batch_sizes", size, 1, remedy="A batch has at least one example.")
        remedy = "Batches are drawn without replacement: use smaller ones."
        checks.require(whole <= examples, "batch_sizes", f"at most the {examples} training examples", size, remedy)
    side = described(base.dataset).side
    divides = side % base.downsample == 0
    checks.require(divides, "downsample", f"a divisor of the images' side, {side}", base.downsample, "Choose one.")


def _budget(table: Mapping[str, Any]) -> tuple[list[float], Unlimited | None]:
    """The budgets in ``[budget]``, and the rule by which they are doubled if its kind is "unlimited"."""
    kind = checks.one_of("kind", table.get("kind", "epoch"), ("epoch", "step", "unlimited"))
    units = [name for name in ("epochs", "steps") if name in table]
    wanted = {"epoch": ["epochs"], "step": ["steps"]}.get(kind)
    right = len(units) == 1 and (wanted is None or units == wanted)
    expected = wanted[0] if wanted else "epochs or steps, to begin with"
    checks.require(right, f"[budget] of kind {kind!r}", expected, units or "neither", "Give one of them.")
    given = table[units[0]]
    budgets = list(given) if isinstance(given, list) else [given]
    numbers = bool(budgets) and all(type(each) in (int, float) for each in budgets)
    checks.require(numbers, units[0], "a number or several", given, "Give one.")
    checks.require(len(set(budgets)) == len(budgets), units[0], "distinct budgets", given, "Name each once.")
    rule = {name: table[name] for name in ("metric", "target", "doublings") if name in table}
    checks.require(kind == "unlimited" or not rule, "[budget]", "no stopping rule", list(rule), 'Use kind="unlimited".')
    return budgets, Unlimited(**rule) if kind == "unlimited" else None


def _shared(protocol: Mapping[str, Any], default: str) -> dict[str, Any]:
    """The arguments that both kinds of sweeps take from ``[protocol]``; `default` is the preset if it names none."""
    both = "preset" in protocol and ("runs" in protocol or "keep" in protocol)
    checks.require(not both, "[protocol]", "a preset, or runs and keep", list(protocol), "Choose.")
    some = "runs" in protocol or "keep" in protocol
    whole = not some or ("runs" in protocol and "keep" in protocol)
    checks.require(whole, "[protocol]", "runs and keep", list(protocol), "Give both, or a preset.")
    if some:
        runs, keep = runs_kept(protocol["runs"], protocol["keep"], names=("runs", "keep"))
    else:
        runs, keep = preset_runs(protocol.get("preset", default))
    metrics = protocol.get("metrics", ["train_loss", "test_accuracy"])
    checks.instance("metrics", metrics, list, remedy=f"List some of {METRICS}.")
    bracket, extensions = bracketed_metrics(metrics, "metrics"), extension(protocol.get("extensions", 4))
    return {"seeds": runs, "keep": keep, "bracket": bracket, "extensions": extensions}


def _exponents(
    grid: Mapping[str, Any], momenta: Sequence[float], sizes: Sequence[int]
) -> Grid | dict[tuple[float, int], Grid]:
    """The exponents of a grid: those for all points, or a mapping if ``[[grid.window]]`` gives points their own."""
    rows = grid.get("window", [])
    checks.instance("window", rows, list, remedy="Write [[grid.window]] for each.")
    windows: dict[tuple[float, int], Grid] = {}
    for row in rows:
        checks.instance("window", row, dict, remedy="Write [[grid.window]] for each.")
        names = {"momentum", "batch_size", "exponents"}
        checks.require(set(row) == names, "[[grid.window]]", f"{sorted(names)}", sorted(row), "Give all three.")
        point = (row["momentum"], row["batch_size"])
        inside = point[0] in momenta and point[1] in sizes
        checks.require(inside, "[[grid.window]]", "a point of the grid", point, "Add it to the grid or drop it.")
        checks.require(point not in windows, "[[grid.window]]", "one for each point", f"two for {point}", "Drop one.")
        windows[point] = _range("exponents", row["exponents"])
    if not windows:
        checks.require("exponents" in grid, "[grid]", "exponents, or initial and final", list(grid), "Give a range.")
        return _range("exponents", grid["exponents"])
    # Points without a window of their own have that of the grid.
    rest = [(m, b) for m in momenta for b in sizes if (m, b) not in windows]
    expected = f"exponents for {rest}"
    checks.require(not rest or "exponents" in grid, "[grid]", expected, "none", "Give a range for them.")
    return windows | {point: _range("exponents", grid["exponents"]) for point in rest}


def _range(name: str, value: Any) -> Grid:
    """The exponents from low to high that ``[low, high]`` stands for; ``[low, high, step]`` takes every step-th."""
    # type() and not isinstance(): TOML's booleans are integers to Python.
    whole = isinstance(value, list) and len(value) in (2, 3) and all(type(k) is int for k in value)
    remedy = "Give the exponents of two at the ends."
    checks.require(whole, name, "[low, high] or [low, high, step], integers", value, remedy)
    low, high, *step = value
    ordered = low <= high and (not step or step[0] > 0)
    checks.require(ordered, name, "low ≤ high, and a positive step", value, remedy)
    inside = low >= -FURTHEST and high <= FURTHEST
    checks.require(inside, name, f"exponents from -{FURTHEST} to {FURTHEST}", value, "Learning rates are 2^k.")
    return tuple(range(low, high + 1, *step))


def _list(name: str, grid: Mapping[str, Any]) -> list[Any]:
    """An entry of ``[grid]`` that must be a list, not empty."""
    value = grid.get(name)
    checks.require(isinstance(value, list) and bool(value), name, "a list, not empty", value, "Add it to [grid].")
    return list(value or [])


def _one(name: str, grid: Mapping[str, Any]) -> Any:
    """The only value in such a list."""
    values = _list(name, grid)
    checks.require(len(values) == 1, name, "one, where pairs of learning rates are tuned", values, "Choose one.")
    return values[0]
