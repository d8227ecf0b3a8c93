"""Reading files out of a .tar.gz without unpacking it: nothing from the archive is ever written to disk."""

import functools
import gzip
import io
import tarfile
import zlib
from collections.abc import Mapping
from typing import IO, cast

from noisysgd.validation.data.checksums import AlteredFileError, require_genuine

SPARE = 2**20
"""Bytes that members which are not wanted may hold in all, and as many again for headers and for padding."""

REMEDY = "The archive is truncated, altered or another one; fetch it again."

_expect = functools.partial(require_genuine, remedy=REMEDY)


def read_members(content: bytes, name: str, wanted: Mapping[str, int]) -> dict[str, bytes]:
    """The wanted files of a .tar.gz, each of exactly the wanted size.

    Members are read one after the other into memory. Their names only decide which to keep, and no file is ever opened
    under them. Links, devices and names outside of the archive's folder are refused all the same, since no genuine
    archive has them.

    Parameters
    ----------
    content : bytes
        The archive.
    name : str
        What to call it in an error.
    wanted : mapping
        Size in bytes of each wanted member, by name. Other plain files are skipped.

    Returns
    -------
    dict
        The content of each wanted member, by name.

    Raises
    ------
    AlteredFileError
        If the archive is cut short, damaged or no .tar.gz, holds anything but plain files and folders, holds far more
        than what is wanted, or lacks, repeats or resizes a wanted file.

    Examples
    --------
    >>> archive = io.BytesIO()
    >>> with tarfile.open(fileobj=archive, mode="w:gz") as tar:
    ...     member = tarfile.TarInfo("folder/data.bin")
    ...     member.size = 3
    ...     tar.addfile(member, io.BytesIO(b"abc"))
    >>> read_members(archive.getvalue(), "small.tar.gz", {"folder/data.bin": 3})
    {'folder/data.bin': b'abc'}
    """
    found: dict[str, bytes] = {}
    room = sum(wanted.values()) + SPARE
    try:
        # gzip, unlike tarfile's own decompression, checks the CRC at the end, which is why the rest is read as well.
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as unzipped:
            bounded = _Bounded(unzipped, name)
            with tarfile.open(fileobj=cast(IO[bytes], bounded), mode="r|") as tar:  # which calls nothing but read
                for member in tar:
                    room -= max(0, member.size)
                    _check_member(member, name, wanted, found, room)
                    bounded.allowed += max(0, member.size)
                    if member.name in wanted:
                        file = tar.extractfile(member)
                        found[member.name] = file.read() if file is not None else b""
            rest = unzipped.read(SPARE)
            _expect(not rest.strip(b"\0"), name, "nothing after the end of the archive", f"{len(rest)} bytes")
            _expect(not unzipped.read(1), name, "the end of the archive", "more than a megabyte of padding")
    except (EOFError, OSError, tarfile.TarError, zlib.error, ValueError) as error:
        if isinstance(error, AlteredFileError):
            raise
        raise AlteredFileError(f"{name}: expected a whole .tar.gz, got a damaged one ({error}). {REMEDY}") from error
    lacking = sorted(set(wanted) - set(found))
    _expect(not lacking, name, f"the members {', '.join(wanted)}", f"an archive without {', '.join(lacking)}")
    short = {member: len(found[member]) for member, size in wanted.items() if len(found[member]) != size}
    _expect(not short, name, "members of their full length", str(short))
    return found


class _Bounded:
    """A stream that is read no further than :data:`SPARE` bytes beyond the members seen so far.

    This bounds the memory that tarfile needs: a long name is a header of its own, which it reads whatever its size.
    """

    def __init__(self, stream: gzip.GzipFile, name: str) -> None:
        self._stream, self._name, self.allowed = stream, name, SPARE

    def read(self, size: int) -> bytes:
        chunk = self._stream.read(size)
        self.allowed -= len(chunk)
        _expect(self.allowed >= 0, self._name, f"headers of at most {SPARE} bytes in all", "more")
        return chunk


def _check_member(
    member: tarfile.TarInfo, name: str, wanted: Mapping[str, int], found: Mapping[str, bytes], room: int
) -> None:
    plain = member.isfile() or member.isdir()
    _expect(plain, name, "plain files and folders only", f"{member.name!r}, a link or special file")
    inside = not member.name.startswith("/") and ".." not in member.name.split("/")
    _expect(inside, name, "names inside the archive's folder", repr(member.name))
    _expect(room >= 0, name, f"at most {sum(wanted.values()) + SPARE} bytes in all", "more")
    if member.name in wanted:
        _expect(member.isfile(), name, f"{member.name} to be a file", "a folder")
        size = wanted[member.name]
        _expect(member.size == size, name, f"{member.name} of {size} bytes", f"{member.size}")
        _expect(member.name not in found, name, f"{member.name} once", "a second one")
