"""Files and folders that no data set has by itself: what file managers, editors and packers leave in every folder."""

from pathlib import PurePath

LITTER = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini", "lost+found")
"""Names that macOS, Synology's disks, Windows and file systems give; what else is meant to be hidden has a dot."""


def is_litter(where: PurePath) -> bool:
    """Whether a file, by its path inside a data set, is to be passed over.

    >>> [is_litter(PurePath(name)) for name in ("train/cat/._1.png", "__MACOSX/train/1.png", "train/cat/1.png")]
    [True, True, False]
    """
    return any(part.startswith(".") or part in LITTER for part in where.parts)
