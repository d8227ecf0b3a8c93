"""The command ``noisysgd data``: which data sets there are, where their files lie, fetching and verifying them."""

import argparse
import sys
from pathlib import Path
from typing import Any

from noisysgd.validation.cli.options import Commands, add_command, add_verbs

OWN = "folder:"
"""What the names of the user's own data sets begin with."""
NAMES = ("digits", "fashion-mnist", "cifar10", "cifar100")
DESCRIPTION = """\
List, locate, download and verify image data sets. Nothing is ever unpacked on disk and no pickle is loaded.

examples:
  noisysgd data list
  noisysgd data where cifar10
  noisysgd data fetch cifar10 --folder /scratch/data
  noisysgd data verify fashion-mnist
"""
LIST = """\
List the data sets, and say of each whether its files are here.

examples:
  noisysgd data list
"""
WHERE = """\
Print the places in which the files of a data set are looked for, in order, and which of them hold what.

NOISYSGD_DATA=/scratch/data makes /scratch/data/NAME the first place, for every command and every run.

examples:
  noisysgd data where
  noisysgd data where fashion-mnist
  noisysgd data where cifar100 --folder /scratch/data
"""
FETCH = """\
Download the files of a data set that are not there yet: to a temporary name, checked against the published checksums,
then renamed. Files that are there are checked and left alone.

examples:
  noisysgd data fetch cifar10
  noisysgd data fetch fashion-mnist --folder /scratch/data
  noisysgd data fetch cifar100 --mirror https://mirror.example.org/cifar
"""
VERIFY = """\
Check the files of a data set against the published checksums and read every image and label once.

examples:
  noisysgd data verify fashion-mnist
  noisysgd data verify cifar10 --folder /scratch/data
  noisysgd data verify folder:birds            NOISYSGD_DATA/birds/{train,test}/CLASS/*.png, or a tar of birds
"""


def add_data_commands(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add ``data`` and its verbs to the command line."""
    help = "list, locate, download and verify data sets"
    verbs = add_verbs(commands, "data", help=help, description=DESCRIPTION)
    add_command(verbs, "list", common, _list, help="the data sets, and whether they are here", description=LIST)
    rest = "Files that are whole stay: the same command fetches the others."
    for verb, text, summary, run, interrupted in (
        ("where", WHERE, "where files are looked for", _where, None),
        ("fetch", FETCH, "download and verify", _fetch, rest),
        ("verify", VERIFY, "check files against their published checksums", _verify, None),
    ):
        parser = add_command(verbs, verb, common, run, help=summary, description=text, interrupted=interrupted)
        count = "?" if verb == "where" else None
        kind: dict[str, Any] = {"type": _verifiable} if verb == "verify" else {"choices": NAMES}
        known = ", ".join((*NAMES, f"{OWN}NAME") if verb == "verify" else NAMES)
        parser.add_argument("name", nargs=count, metavar="NAME", help=known, **kind)
        parser.add_argument("--folder", type=Path, help="look in this folder, and nowhere else")
        if verb == "fetch":
            parser.add_argument("--mirror", metavar="URL", help="address of a folder to download from instead")


def _verifiable(name: str) -> str:
    if name not in NAMES and not name.startswith(OWN):
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(NAMES)}, {OWN}NAME, got {name!r}")
    return name


def _list(_: argparse.Namespace) -> int:
    from noisysgd.validation.data.catalogue import DIGITS, SOURCES
    from noisysgd.validation.data.search_path import candidate_folders, find_file

    print(f"{'digits':14} {DIGITS.shape:34} here (scikit-learn)\n{'':14} handwritten digits, grey")
    for source in SOURCES.values():
        here = all(find_file(file, candidate_folders(source)) for file in source.files)
        state = "here (not verified)" if here else f"not here: noisysgd data fetch {source.name}"
        print(f"{source.name:14} {source.shape:34} {state}\n{'':14} {source.title}")
    return 0


def _where(options: argparse.Namespace) -> int:
    from noisysgd.validation.data.catalogue import SOURCES
    from noisysgd.validation.data.search_path import candidate_folders, check_folder, find_file

    check_folder(options.folder)
    for name in NAMES if options.name is None else (options.name,):
        if name == "digits":
            print("digits\n  come with scikit-learn")
            continue
        source = SOURCES[name]
        print(name)
        for folder in candidate_folders(source, options.folder):
            held = [path.name for file in source.files if (path := find_file(file, [folder])) is not None]
            print(f"  {folder}: {', '.join(held) or 'nothing'}")
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from noisysgd.validation.data.catalogue import SOURCES
    from noisysgd.validation.data.fetching import fetch

    if options.name == "digits":
        print("digits come with scikit-learn: nothing to fetch")
        return 0
    progress = _show if sys.stderr.isatty() else None
    found = fetch(SOURCES[options.name], options.folder, mirror=options.mirror, progress=progress)
    for path in found.values():
        print(f"verified  {path}")
    return 0


def _show(name: str, received: int, total: int | None) -> None:
    share = f" of {total / 2**20:.1f}" if total else ""
    end = "\n" if received == total else ""
    print(f"\r{name}: {received / 2**20:.1f}{share} MB", end=end, file=sys.stderr, flush=True)


def _verify(options: argparse.Namespace) -> int:
    from noisysgd.validation.data.search_path import check_folder

    check_folder(options.folder)
    if options.name == "digits":
        print("digits come with scikit-learn: nothing to verify")
        return 0
    if options.name.startswith(OWN):
        from noisysgd.validation.data.image_folders import described, load_image_folder

        found = load_image_folder(options.name, options.folder)
        print(
            f"{found.pinned}: {described(found.pinned).shape} in {len(found.classes)} classes from {found.raw.origin}"
        )
        return 0
    from noisysgd.validation.data.raw_images import read_raw

    raw = read_raw(options.name, options.folder)
    print(f"{options.name}: {len(raw.train_images)} training and {len(raw.test_images)} test images from {raw.origin}")
    return 0
