"""Downloading a data set: to a temporary name, verified, then renamed, so that a file of a final name is genuine."""

import contextlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from noisysgd.theory.common import checks
from noisysgd.theory.common.files import clear_stale, make_folder, write_whole
from noisysgd.validation.data.catalogue import Source, SourceFile
from noisysgd.validation.data.checksums import AlteredFileError, read_checked
from noisysgd.validation.data.search_path import candidate_folders, data_folder, find_file

CHUNK = 2**20
TIMEOUT = 60.0
"""Seconds without a byte after which a download is given up."""
THROWN_AWAY = "It was deleted. Fetch it again, or from a mirror that holds the published file."
Progress = Callable[[str, int, int | None], None]
"""Called with (file name, bytes so far, bytes in all if the server said so)."""


def fetch(
    source: Source,
    folder: str | os.PathLike[str] | None = None,
    *,
    mirror: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Download the files of a data set that are not there yet, and verify all of them.

    Parameters
    ----------
    source : Source
        The data set, one of :data:`noisysgd.validation.data.catalogue.SOURCES`.
    folder : path, optional
        Folder with a subfolder for the files, of the data set's name, which is made if need be; by default
        :func:`noisysgd.validation.data.search_path.data_folder`.
    mirror : str, optional
        Address of a folder to download from instead of the published one; its files must have the same checksums.
    progress : callable, optional
        Called as ``progress(file name, bytes so far, bytes in all or None)``.

    Returns
    -------
    dict
        Where each file lies, by its published name. Nothing is unpacked: readers take the files as they are.

    Raises
    ------
    AlteredFileError
        If a file does not have the published checksum. If downloaded now it is deleted, and otherwise left alone.
    OSError
        If a download fails, which leaves nothing behind.
    """
    places = candidate_folders(source, folder)
    target = (data_folder() if folder is None else Path(folder)) / source.name
    found = {}
    for file in source.files:
        clear_stale(target / file.name)
        path = find_file(file, places)
        if path is None:
            path = _download(file, target, mirror, progress)
        else:
            read_checked(file, path)
        found[file.name] = path
    return found


def _download(file: SourceFile, target: Path, mirror: str | None, progress: Progress | None) -> Path:
    address = f"{mirror.rstrip('/')}/{file.name}" if mirror else file.url
    web = urllib.parse.urlsplit(address).scheme in ("http", "https")
    checks.require(web, "mirror", "an http or https address", address, "Copy local files to the folder instead.")

    def download(out: BinaryIO) -> None:
        _save(address, file, out, progress)
        out.flush()
        try:
            read_checked(file, Path(out.name), remedy=THROWN_AWAY)
        except AlteredFileError as error:
            raise AlteredFileError(f"{address}: downloaded and thrown away: {error}") from error

    make_folder(target)
    try:
        return write_whole(target / file.name, download)
    finally:
        with contextlib.suppress(OSError):
            target.rmdir()  # if it stayed empty


def _save(address: str, file: SourceFile, out: BinaryIO, progress: Progress | None) -> None:
    received = 0
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as response:
            total = _length(response)
            while chunk := response.read(CHUNK):
                received += len(chunk)
                if received > file.limit:
                    raise AlteredFileError(
                        f"{address}: expected at most {file.limit} bytes, got more. Check the address."
                    )
                out.write(chunk)
                if progress is not None:
                    progress(file.name, received, total)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        code = f"{error.code} " if isinstance(error, urllib.error.HTTPError) else ""
        message = f"{address}: the download failed ({code}{reason}). Try again, use a mirror, or copy {file.name} here."
        raise OSError(message) from error
    if total is not None and received != total:
        raise OSError(f"{address}: the download broke off after {received} of {total} bytes. Try again.")


def _length(response: Any) -> int | None:
    """Size in bytes that the server announces, if it does."""
    text = response.headers.get("Content-Length")
    return int(text) if text is not None and text.isdigit() else None
