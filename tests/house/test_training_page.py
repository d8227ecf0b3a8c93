"""The programs on the page about training run, and the runs they describe end well."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


@pytest.mark.checkout
def test_the_programs_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(programs) == 6
    for text in programs:
        names: dict[str, object] = {}
        exec(compile(text, str(PAGE), "exec"), names)
        assert names["record"]["status"] == "complete"  # type: ignore[index]
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
