"""Whether bytes are the published ones."""

import gzip
import hashlib
import io
import zlib
from pathlib import Path

from noisysgd.validation.data.catalogue import SourceFile

GZIP = b"\x1f\x8b"


class AlteredFileError(ValueError):
    """A file that is not the published one, or not whole."""


def unzipped(content: bytes, name: str, limit: int, *, remedy: str | None = None) -> bytes:
    """What a gzip file holds; the bytes themselves if they are not gzip. `remedy` ends an error's message.

    Raises
    ------
    AlteredFileError
        If it is cut short, damaged, followed by something else, or holds more than `limit` bytes.

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
    if len(result) > limit:
        raise AlteredFileError(f"{name}: expected at most {limit} bytes, got a gzip file that holds more. {remedy}")
    return result


def check_digests(content: bytes, file: SourceFile, path: Path, *, remedy: str | None = None) -> None:
    """Raise unless `content` has the published checksums of `file`.

    Raises
    ------
    AlteredFileError
        Naming the algorithm, the expected and the actual checksum, and what to do: `remedy`, if given.
    """
    remedy = REMEDY if remedy is None else remedy
    for algorithm, expected in file.digests.items():
        got = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
        if got != expected:
            what = "its unzipped content" if file.unpacked else "the file"
            raise AlteredFileError(f"{path}: expected {what} to have {algorithm} {expected}, got {got}. {remedy}")


def read_checked(file: SourceFile, path: Path, *, allow_altered: bool = False, remedy: str | None = None) -> bytes:
    """The bytes of a file, unzipped where its checksums are of the unzipped content.

    Parameters
    ----------
    file : SourceFile
    path : Path
        Where it lies.
    allow_altered : bool
        Take a file with other checksums than the published ones.
    remedy : str, optional
        What to do about a file that is refused; by default, to delete it or to load it all the same.

    Raises
    ------
    AlteredFileError
        For other checksums, or a file that cannot be unzipped.
    """
    content = path.read_bytes()
    if file.unpacked:
        content = unzipped(content, str(path), file.limit, remedy=remedy)
    if not allow_altered:
        check_digests(content, file, path, remedy=remedy)
    return content


REMEDY = "Delete it and fetch it again; for another version, there is load_dataset(..., allow_altered=True) in Python."
