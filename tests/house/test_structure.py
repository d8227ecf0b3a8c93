"""The structure of the package: who may import whom, and that names lead where a reader expects."""

import ast
import importlib
import importlib.util
import pkgutil
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from noisysgd import simulators, theory, validation

ROOT = Path(__file__).resolve().parents[2]

ORDER = """
theory: common schedules problems moments limits passage optima sweeps scaling fits plots testing
simulators: randomness ensembles models cuda output_axes engine progress sweeps
validation: data schedules configuration networks training measurement runs sweeps prediction published demo cli
"""
"""Rooms from the ground up: each may import what stands before it, and nothing behind it."""
ROOMS = [f"{line.partition(':')[0]}.{room}" for line in ORDER.split("\n") for room in line.partition(":")[2].split()]
MOST_MODULES = 15


def sources() -> dict[str, Path]:
    """Every module that is not a package's ``__init__``, by its name without ``noisysgd``."""
    folders = (ROOT / folder for folder in ("theory", "simulators", "validation"))
    paths = [path for folder in folders for path in folder.rglob("*.py") if path.name != "__init__.py"]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


def imports(path: Path) -> set[str]:
    """What a module imports from this package, anywhere in it, for type checkers too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("noisysgd.") for name in found if name.startswith("noisysgd.")}


def graph() -> dict[str, set[str]]:
    """An arrow from every module to each module that it imports."""
    modules = sources()
    return {name: imports(path) & modules.keys() - {name} for name, path in modules.items()}


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def circle(arrows: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def against_the_order(arrows: dict[str, set[str]]) -> list[tuple[str, str]]:
    rank = {name: place for place, name in enumerate(ROOMS)}
    return [(a, b) for a, to in sorted(arrows.items()) for b in sorted(to) if rank[room(a)] < rank[room(b)]]


@pytest.mark.checkout
def test_every_room_has_its_place() -> None:
    assert {room(module) for module in sources()} == set(ROOMS)


@pytest.mark.checkout
def test_no_modules_import_each_other_in_a_circle() -> None:
    arrows = graph()
    assert circle(arrows) == []
    assert circle(arrows | {"theory.common.checks": {"theory.problems.quadratic"}})  # the test can fail


@pytest.mark.checkout
def test_every_import_points_down() -> None:
    arrows = graph()
    assert against_the_order(arrows) == []
    assert against_the_order(arrows | {"theory.common.checks": {"theory.plots.sweeps"}})  # the test can fail


@pytest.mark.checkout
def test_no_shelf_holds_more_than_a_reader_takes_in() -> None:
    folders = [path.parent for path in sources().values()]
    crowded = {str(folder.relative_to(ROOT)) for folder in folders if folders.count(folder) > MOST_MODULES}
    assert not crowded


PACKAGES = [
    importlib.import_module(name)
    for package in (theory, simulators, validation)
    for name in [
        package.__name__,
        *(info.name for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.") if info.ispkg),
    ]
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_no_public_name_hides_a_module(package: object) -> None:
    """``import noisysgd.theory.optimum as o`` must give a module or an error, not the function of that name."""
    for name in getattr(package, "__all__", ()):
        assert importlib.util.find_spec(f"{package.__name__}.{name}") is None, f"{package.__name__}.{name} is both"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_what_a_package_lists_is_there(package: object) -> None:
    listed = getattr(package, "__all__", [])
    assert sorted(listed) == sorted(set(listed))
    assert all(getattr(package, name) is not None for name in listed)


def test_what_a_folder_offers_lies_in_one_of_its_rooms() -> None:
    for folder in (theory, simulators, validation):
        rooms = [package for package in PACKAGES if package.__name__.startswith(f"{folder.__name__}.")]
        flat = {"simulate", "TimeLeft", "TrainConfig"}  # from modules that stand beside the rooms
        offered = {name for package in rooms for name in getattr(package, "__all__", ())}
        assert set(folder.__all__) - flat <= offered


OPENING_BYTES = ("os", "tarfile", "gzip", "Image")
"""Modules whose ``open`` knows of no text, or of none that is opened here."""


def unstated(call: ast.Call) -> bool:
    """Whether a call opens a file, or runs a command, as text and leaves the encoding to the machine's settings."""
    function, names = call.func, {keyword.arg: keyword.value for keyword in call.keywords}
    method = isinstance(function, ast.Attribute)
    name = function.attr if method else getattr(function, "id", "")
    if "encoding" in names:
        return False
    if name in ("read_text", "write_text"):
        return method and len(call.args) < (1 if name == "read_text" else 2)
    if name == "open" and not (method and getattr(function.value, "id", "") in OPENING_BYTES):
        place = 0 if method else 1
        mode = names.get("mode", call.args[place] if len(call.args) > place else None)
        return not (isinstance(mode, ast.Constant) and "b" in str(mode.value))
    return "text" in names or "universal_newlines" in names


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("path.read_text()", True),
        ("path.read_text('utf-8')", False),
        ("path.write_text(x)", True),
        ("path.write_text(x, encoding='utf-8')", False),
        ("write_text(path, x)", False),
        ("path.open('w')", True),
        ("open(path)", True),
        ("open(path, 'rb')", False),
        ("path.open(mode='xb')", False),
        ("os.open(path, flags)", False),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command, encoding='utf-8')", False),
    ],
)
def test_an_encoding_that_is_not_stated_is_seen(text, wrong):
    assert unstated(ast.parse(text).body[0].value) is wrong


@pytest.mark.checkout
def test_no_file_is_read_or_written_in_whatever_encoding_the_machine_is_set_to():
    folders = (ROOT / name for name in ("theory", "simulators", "validation", "benchmarks", "docs"))
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        found = [f"{path.relative_to(ROOT)}:{call.lineno}" for call in calls if unstated(call)]
        assert not found, "state encoding='utf-8'"
