"""Files that are whole or not there: written under a temporary name, flushed to disk, then renamed.

A file under its final name holds all of its contents, the ones before or the ones after, whenever the process is killed
or the power fails. Everything that this package writes, and somebody may want to read again, is written here.
"""

import contextlib
import errno
import glob
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from noisysgd.theory.common import checks

STALE_AFTER = 3600.0
"""Age in seconds from which a temporary file is taken to be left over from a process that was killed."""
FULL = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)
"""Error numbers of a full disk and of an exhausted quota."""
UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP)
"""Error numbers by which systems say that they do not flush folders."""
ATTEMPTS = 3
"""Times that a file is written whose folder another process removes in the meantime."""
KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class DiskFullError(OSError):
    """The disk is full, or a quota exhausted; the message names the path that was to be written."""


Contents = bytes | Callable[[BinaryIO], object]
"""What a file is to hold: bytes, or a function that writes them to a binary file."""


def write_whole(path: str | os.PathLike[str], contents: Contents, *, make_folders: bool = False) -> Path:
    """Write a file, in place of the one that is there, so that its name never stands for half of one.

    Temporary files of this name that killed processes have left are removed once they are an hour old.

    Parameters
    ----------
    path : path
        ``~`` stands for the home folder.
    contents : bytes or callable
        The bytes, or a function that writes them to a binary file. It is called again if the folder was removed before
        the file had its name.
    make_folders : bool
        Make the folder of the file if it is missing, also if another process has just removed it.

    Returns
    -------
    Path
        The path of the file.

    Raises
    ------
    ValueError
        If something else than a regular file has that name: a link, a device, a pipe, a folder.
    FileNotFoundError
        If the folder is missing, unless `make_folders`.
    DiskFullError
        An ``OSError``, if there is no room. After this and any other error, what was there before is still there.

    Examples
    --------
    >>> import tempfile
    >>> path = write_whole(Path(tempfile.mkdtemp()) / "a.txt", b"all")
    >>> path.read_text(), [each.name for each in path.parent.iterdir()]
    ('all', ['a.txt'])
    """
    path = require_regular_or_new("path", path)
    if not make_folders and not path.parent.is_dir():
        got = f"no such folder as {path.parent}"
        raise FileNotFoundError(f"{path}: expected a file in a folder that exists, got {got}. Make it first.")
    attempts = ATTEMPTS if make_folders else 1
    with room_for(path):
        for attempt in range(attempts):
            try:
                if make_folders:
                    make_folder(path.parent)
                _write(path, contents)
            except FileNotFoundError:
                if attempt + 1 == attempts:
                    raise
            else:
                break
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file in UTF-8, as :func:`write_whole` writes files; a missing folder is made."""
    return write_whole(path, text.encode(), make_folders=True)


def _write(path: Path, contents: Contents) -> None:
    clear_stale(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        # Contents reach the disk before the name does: a rename that survives a power cut must not point to less.
        write_flushed(partial, contents)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    flush_folder(path.parent)


def write_flushed(path: Path, contents: Contents) -> None:
    """Make a new file and write it to disk: for a folder that has a temporary name itself."""
    with path.open("xb") as file:
        if isinstance(contents, bytes):
            file.write(contents)
        else:
            contents(file)
        file.flush()
        os.fsync(file.fileno())


def expanded(name: str, path: str | os.PathLike[str]) -> Path:
    """`path` with ``~`` replaced by the home folder; `name` is for the error message if it is no path."""
    checks.instance(name, path, str | os.PathLike, remedy="Pass the name of a file.")
    return Path(path).expanduser()


def read_regular(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    """The contents of a regular file; parameters and errors are those of :func:`open_regular`."""
    with open_regular(path, most) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def open_regular(path: str | os.PathLike[str], most: int | None = None) -> BinaryIO:
    """Open a regular file, or the one that a link leads to, for reading.

    Parameters
    ----------
    path : path
        ``~`` stands for the home folder.
    most : int, optional
        Largest number of bytes that it may have.

    Raises
    ------
    ValueError
        For a device, a pipe or a folder, which may never come to an end, and for a file that is too large.
    OSError
        If it cannot be read.
    """
    path = expanded("path", path)
    # The type is asked before the file is opened, since that alone may change a device, and again of what was opened.
    # Opening a pipe without O_NONBLOCK waits for somebody to write to it.
    _require_regular(path, path.stat(), most)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _require_regular(path, os.fstat(file.fileno()), most)
    except BaseException:
        file.close()
        raise
    return file


def _require_regular(path: Path, status: os.stat_result, most: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        got = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise ValueError(f"{path}: expected a regular file, got {got}. Name another file.")
    if most is not None and status.st_size > most:
        raise ValueError(f"{path}: expected at most {most} bytes, got {status.st_size}. Name another file.")


def require_regular_or_new(name: str, path: str | os.PathLike[str]) -> Path:
    """`path`, with ``~`` replaced, if it is a regular file or nothing at all; `name` is for the error message.

    A file that is renamed to the name of a device or of a link would replace these, not write to them.

    Raises
    ------
    ValueError
    """
    path = expanded(name, path)
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return path
    if not stat.S_ISREG(mode):
        got = KINDS.get(stat.S_IFMT(mode), "something else")
        remedy = "Name a file in it." if stat.S_ISDIR(mode) else "Name another file."
        raise ValueError(f"{name} {path}: expected a regular file or a new one, got {got}. {remedy}")
    return path


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn the error of a full disk into a :class:`DiskFullError` that names `path` and a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.errno not in FULL or isinstance(error, DiskFullError):
            raise
        remedy = "Make room there; the same command goes on from what is finished."
        raise DiskFullError(error.errno, f"{path}: {os.strerror(error.errno)}. {remedy}") from error


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless they are there; their names survive a power cut."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        flush_folder(each.parent)


def flush_folder(folder: Path) -> None:
    """Write a folder to disk, so that a rename in it survives a power cut; where the system lets folders be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def clear_stale(path: Path) -> None:
    """Remove temporary files that killed writers of this file have left behind."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError):  # removed by another, or not ours to remove
            if time.time() - left.stat().st_mtime > STALE_AFTER:
                left.unlink()
