"""Whether a file is the published one: checksums, and unzipping with a bound on the size."""

import gzip
import hashlib
import io
import zlib
from pathlib import Path

from noisysgd.validation.data.catalogue import SourceFile

GZIP = b"\x1f\x8b"


class AlteredFileError(ValueError):
    """A file is not the published one, or not whole."""


def require_genuine(condition: bool, name: str, expected: str, got: str, remedy: str) -> None:
    """Raise the error for a file that is not the published one, unless `condition` holds.

    Raises
    ------
    AlteredFileError
    """
    if not condition:
        raise AlteredFileError(f"{name}: expected {expected}, got {got}. {remedy}")


def unzipped(content: bytes, name: str, limit: int, *, remedy: str | None = None) -> bytes:
    """The content of a gzip file, or the bytes themselves if they are not gzip.

    Parameters
    ----------
    content : bytes
    name : str
        What to call the file in an error.
    limit : int
        Most bytes that the content may have.
    remedy : str, optional
        What an error's message tells the user to do.

    Raises
    ------
    AlteredFileError
        If the file is cut short, damaged, followed by something else, or holds more than `limit` bytes.

    Examples
    --------
    >>> unzipped(gzip.compress(b"pixels"), "a.gz", limit=6), unzipped(b"pixels", "a", limit=6)
    (b'pixels', b'pixels')
    """
    remedy = REMEDY if remedy is None else remedy
    if not content.startswith(GZIP):
        return content
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            result = stream.read(limit + 1)  # reading to the end checks the length and the CRC
    except (EOFError, OSError, zlib.error) as error:
        raise AlteredFileError(f"{name}: expected a whole gzip file, got a damaged one ({error}). {remedy}") from error
    require_genuine(len(result) <= limit, name, f"at most {limit} bytes", "a gzip file that holds more", remedy)
    return result


def check_digests(content: bytes, file: SourceFile, path: Path, *, remedy: str | None = None) -> None:
    """Raise unless `content` has the published checksums of `file`.

    Raises
    ------
    AlteredFileError
        The message has the algorithm, both checksums, and what to do: `remedy`, if given.
    """
    remedy = REMEDY if remedy is None else remedy
    for algorithm, expected in file.digests.items():
        got = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
        what = "its unzipped content" if file.unpacked else "the file"
        require_genuine(got == expected, str(path), f"{what} to have {algorithm} {expected}", got, remedy)


def read_checked(file: SourceFile, path: Path, *, allow_altered: bool = False, remedy: str | None = None) -> bytes:
    """The bytes of a file, unzipped where its checksums are of the unzipped content.

    Parameters
    ----------
    file : SourceFile
    path : Path
        Where the file lies.
    allow_altered : bool
        Take a file with other checksums than the published ones.
    remedy : str, optional
        What to do about a file that is refused; by default, to delete it or to load it all the same.

    Raises
    ------
    AlteredFileError
        If the checksums differ, or the file cannot be unzipped.
    """
    content = path.read_bytes()
    if file.unpacked:
        content = unzipped(content, str(path), file.limit, remedy=remedy)
    if not allow_altered:
        check_digests(content, file, path, remedy=remedy)
    return content


REMEDY = "Delete it and fetch it again; for another version, there is load_dataset(..., allow_altered=True) in Python."
