"""The public names and their signatures, written down: a change shows in review, and happens on purpose.

``make api`` writes ``public_api.txt`` anew.
"""

import inspect
import re
from pathlib import Path

from noisysgd import simulators, theory, validation
from noisysgd.theory import plots, testing

SNAPSHOT = Path(__file__).with_name("public_api.txt")


def parameters(thing: object) -> str:
    """Parameters with their defaults; annotations say the same more precisely, where they stand."""
    try:
        signature = inspect.signature(thing)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    text = str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))
    return re.sub(r"<(?:built-in )?(?:function|class) '?(?:\w+\.)*(\w+)[^>]*>", r"\1", text)  # names without addresses


def members(kind: type) -> list[str]:
    """Public attributes and methods that a class of this package defines, its own and inherited ones."""
    names = {name for base in kind.__mro__ if base.__module__.startswith("noisysgd") for name in vars(base)}
    names |= {name for base in kind.__mro__ for name in getattr(base, "__annotations__", {})}
    return sorted(name for name in names if not name.startswith("_"))


def rendered() -> str:
    lines = []
    for package in (theory, plots, testing, simulators, validation):
        lines.append(f"{package.__name__}")
        for name in sorted(package.__all__):
            thing = getattr(package, name)
            lines.append(f"  {name}{parameters(thing) if callable(thing) else ''}")
            if inspect.isclass(thing):
                lines += [f"    .{member}" for member in members(thing)]
    return "\n".join(lines) + "\n"


def test_the_public_names_are_those_written_down() -> None:
    assert rendered() == SNAPSHOT.read_text(encoding="utf-8"), "after an intended change: make api"


if __name__ == "__main__":
    SNAPSHOT.write_text(rendered(), encoding="utf-8")
