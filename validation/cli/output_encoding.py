"""Output that any terminal, pipe and file can take: what its encoding lacks is spelled in letters that it has."""

import codecs
import contextlib
import io
import sys
import unicodedata
from collections.abc import Iterator

SPELLED = {
    "≤": "<=",
    "≥": ">=",
    "≠": "!=",
    "≪": "<<",
    "±": "+/-",
    "∓": "-/+",
    "−": "-",
    "–": "-",
    "×": "x",
    "·": "*",
    "÷": "/",
    "√": "sqrt",
    "∝": "~",
    "∞": "inf",
    "‖": "||",
    "′": "'",
    "→": "->",
    "←": "<-",
    "ϵ": "epsilon",
    "λ": "lambda",
    "Λ": "Lambda",  # Unicode's own names have "lamda"
}
"""Spellings of signs in ASCII. Greek letters are spelled by their names, and letters lose their accents."""

MARKS = {"<super>": "^", "<sub>": "_"}
"""How raised and lowered characters begin, by Unicode's names for their decompositions."""

SPELLING = "noisysgd.spelling"
"""Name under which Python's codecs know :func:`spelling`."""


@contextlib.contextmanager
def output_in_any_encoding() -> Iterator[None]:
    """Within the block, standard output and standard error take every character, whatever their encoding.

    A terminal under Windows, ``LANG=C`` and ``PYTHONIOENCODING`` leave encodings such as cp1252 and ASCII, in which
    there is no λ: printing a result would end in an error after all the work was done.
    """
    codecs.register_error(SPELLING, spelling)
    # Others may have replaced the streams by objects of their own, which take text as it is, or have none at all.
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors=SPELLING)
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            if not stream.closed:
                stream.reconfigure(errors=errors)


def spelling(error: UnicodeError) -> tuple[str, int]:
    r"""Handle characters that an encoding lacks, as functions given to ``codecs.register_error`` do.

    >>> codecs.register_error(SPELLING, spelling)
    >>> "λ_max = 2⁻¹⁰ ± ½, ε ≥ 0, naïve: 雪".encode("ascii", SPELLING)
    b'lambda_max = 2^-10 +/- (1/2), epsilon >= 0, naive: \\u96ea'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text, before = "", ""
    for character in error.object[error.start : error.end]:
        kind = unicodedata.decomposition(character).partition(" ")[0]
        mark = MARKS.get(kind, "")
        # Only the first of several raised characters is marked: 10⁻³ is 10^-3.
        text += (mark if mark != before else "") + _spelled(character, fraction=kind == "<fraction>")
        before = mark
    return text, error.end


def _spelled(character: str, *, fraction: bool) -> str:
    """A character in ASCII; a `fraction` in brackets, for a digit may stand before it."""
    if character in SPELLED:
        return SPELLED[character]
    if fraction:
        return f"({unicodedata.normalize('NFKD', character).replace('⁄', '/')})"
    name = unicodedata.name(character, "")
    if name.startswith("GREEK ") and " LETTER " in name:
        letter = name.split(" LETTER ")[1].split()[0]
        return letter.title() if "CAPITAL" in name else letter.lower()
    parts = unicodedata.normalize("NFKD", character).replace("−", "-")
    # What is no accent of a letter may turn a sign into its opposite: the stroke of ∤, say.
    plain = "".join(part for part in parts if not (parts[0].isalpha() and unicodedata.combining(part)))
    # A surrogate stands for a byte of a file's name that is no text.
    return plain if plain.isascii() and plain else character.encode("ascii", "backslashreplace").decode("ascii")
