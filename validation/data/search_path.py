"""Where the files of a data set are looked for, in order."""

import os
from pathlib import Path

from noisysgd.theory.common import checks
from noisysgd.validation.data.catalogue import Source, SourceFile

VARIABLE = "NOISYSGD_DATA"
"""Environment variable that names the folder to use instead of the user's own; it has one folder per data set."""


def data_folder() -> Path:
    """The folder that downloads go to: ``$NOISYSGD_DATA``, or else the user's own.

    Returns
    -------
    pathlib.Path
        The value of the variable if it is set, and ``$XDG_DATA_HOME/noisysgd`` otherwise, where ``$XDG_DATA_HOME`` is
        ``~/.local/share`` unless it is set.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    shared = os.environ.get("XDG_DATA_HOME")
    return (Path(shared) if shared else Path.home() / ".local" / "share") / "noisysgd"


def candidate_folders(source: Source, folder: str | os.PathLike[str] | None = None) -> list[Path]:
    """Folders in which the files of a data set are looked for; a file is taken from the first one that has it.

    Parameters
    ----------
    source : Source
        The data set.
    folder : path, optional
        The only place to look in: the subfolder of the data set's name, and then the folder itself.

    Returns
    -------
    list of pathlib.Path

    Examples
    --------
    >>> from noisysgd.validation.data.catalogue import CIFAR10
    >>> [path.as_posix() for path in candidate_folders(CIFAR10, "/data")]
    ['/data/cifar10', '/data']
    """
    if folder is not None:
        return [Path(folder) / source.name, Path(folder)]
    return [data_folder() / source.name, *source.system_folders]


def find_file(file: SourceFile, folders: list[Path]) -> Path | None:
    """The path of a file in the first folder that has it, or None."""
    paths = (folder / name for folder in folders for name in file.names)
    return next((path for path in paths if path.is_file()), None)


def find_files(source: Source, folder: str | os.PathLike[str] | None = None) -> dict[str, Path]:
    """The path of each file of a data set, by its published name.

    Raises
    ------
    FileNotFoundError
        If a file is in none of the folders; the message lists them, and what to do.
    """
    folders = candidate_folders(source, folder)
    found = {file.name: find_file(file, folders) for file in source.files}
    lacking = [name for name, path in found.items() if path is None]
    if lacking:
        debian = " or install the Debian package dataset-fashion-mnist" if source.system_folders else ""
        places = ", ".join(map(str, folders))
        message = (
            f"{source.name}: expected {', '.join(lacking)} in one of {places}; not there. Run `noisysgd data fetch "
            f"{source.name}`{debian}, or set {VARIABLE} to a folder that holds {source.name}/."
        )
        raise FileNotFoundError(message)
    return {name: path for name, path in found.items() if path is not None}


def check_folder(folder: str | os.PathLike[str] | None) -> None:
    """Raise unless `folder` is None or a folder that exists."""
    exists = folder is None or Path(folder).is_dir()
    checks.require(exists, "folder", "a folder that exists", str(folder), "Correct the path, or leave it out.")
