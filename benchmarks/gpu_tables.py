"""The tables of docs/gpu.md from the results of benchmarks/gpu.py, so that no figure there is typed.

    python benchmarks/gpu_tables.py DIR            # rewrites docs/gpu.md between <!-- table: NAME --> and <!-- end -->
    python benchmarks/gpu_tables.py DIR --print    # prints the tables

What was not measured is called so. Results at toy size, or of a CPU, can be printed, but are refused for the page.
"""

import argparse
import re
import sys
from pathlib import Path

from gpu import STAGES
from gpu_stages.results import Results
from gpu_stages.tables import TABLES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"
PART = re.compile(r"(<!-- table: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


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
    results = Results(given.folder, STAGES)
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
