"""The files of all stages, as the tables of docs/gpu.md read them, and how their numbers are written there."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

NOT_MEASURED = "not measured"

Row = dict[str, Any]


class Results:
    """What the stages have written.

    Parameters
    ----------
    folder : Path
        The folder that ``benchmarks/gpu.py --out`` was given. Stages that did not run may be missing.
    stages : sequence of str
        The names of all stages.
    """

    def __init__(self, folder: Path, stages: Sequence[str]) -> None:
        self.stages, paths = stages, {stage: folder / f"{stage}.json" for stage in stages}
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
