"""Files are whole or not there, and what is no file is neither replaced nor waited for."""

import errno
import os
import shutil
import socket
import stat
import time
from pathlib import Path

import pytest

from noisysgd.theory.common import files
from noisysgd.theory.common.files import DiskFullError, read_regular, write_text, write_whole


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = write_whole(tmp_path / "a", b"one")
    assert write_whole(str(path), lambda file: file.write(b"two")) == path
    assert path.read_bytes() == b"two"
    assert write_text(tmp_path / "new" / "folders" / "λ", "λ\n").read_text(encoding="utf-8") == "λ\n"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "new"]


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_whole("~/a", b"one")
    assert read_regular("~/a") == (tmp_path / "a").read_bytes() == b"one"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), ValueError("no"), KeyboardInterrupt()])
def test_what_was_there_outlives_a_failure(tmp_path: Path, error: BaseException) -> None:
    path = write_whole(tmp_path / "a", b"one")

    def fail(file: object) -> None:
        raise error

    with pytest.raises(type(error)):
        write_whole(path, fail)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("a", b"one")]


def test_contents_reach_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order in which a power cut would find them: file, rename, folder."""
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append(f"folder of {sorted(os.listdir(descriptor))}" if folder else "file")
        fsync(descriptor)

    def note_replace(path: Path, target: Path) -> Path:
        events.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_whole(tmp_path / "new" / "a", b"one", make_folders=True)
    assert events == ["folder of ['new']", "file", "rename", "folder of ['a']"]


def test_a_folder_that_cannot_be_flushed_is_no_fault_but_a_broken_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refuse_folders(number: int) -> None:
        def flush(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", flush)

    refuse_folders(errno.EINVAL)
    write_whole(tmp_path / "a", b"one")
    refuse_folders(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        write_whole(tmp_path / "b", b"one")


def test_a_full_disk_is_named_once(tmp_path: Path) -> None:
    def fail(file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFullError, match=r"a: No space left on device\. Make room there") as caught:
        write_whole(tmp_path / "a", fail)
    assert str(caught.value).count("Make room") == 1


def make_special(path: Path, kind: str) -> None:
    """Something at `path` that is no regular file."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "link to a file":
        (path.parent / "target").write_bytes(b"of the link")
        path.symlink_to(path.parent / "target")
    elif kind == "link to nothing":
        path.symlink_to(path.parent / "nothing")
    else:
        path.symlink_to(kind)


SPECIAL = {
    "folder": "a folder",
    "pipe": "a named pipe",
    "socket": "a socket",
    "link to a file": "a symbolic link",
    "link to nothing": "a symbolic link",
    "/dev/null": "a symbolic link",
}
needs_posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes, sockets and links in folders")


@needs_posix
@pytest.mark.parametrize("kind", SPECIAL)
def test_only_regular_files_are_replaced(tmp_path: Path, kind: str) -> None:
    """A rename to the name of a device would replace the device."""
    path = tmp_path / "out"
    make_special(path, kind)
    before = path.lstat()
    message = f"out: expected a regular file or a new one, got {SPECIAL[kind]}. Name"
    with pytest.raises(ValueError, match=message):
        write_whole(path, b"new")
    assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert not list(tmp_path.glob("*.partial"))
    if kind == "link to a file":
        assert path.read_bytes() == b"of the link"


@needs_posix
def test_a_device_is_not_replaced() -> None:
    """Only looked at: whoever runs this as root still has a /dev/null."""
    with pytest.raises(ValueError, match="/dev/null: expected a regular file or a new one, got a device"):
        files.require_regular_or_new("out", os.devnull)


@needs_posix
@pytest.mark.parametrize("kind", ["folder", "pipe", "/dev/zero", "/dev/null"])
def test_nothing_is_read_that_may_never_end(tmp_path: Path, kind: str) -> None:
    make_special(tmp_path / "in", kind)
    with pytest.raises(ValueError, match="in: expected a regular file, got a"):
        read_regular(tmp_path / "in")


def test_a_file_larger_than_allowed_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "in").open("wb") as file:
        file.truncate(2**31)  # which takes no room on the disk
    with pytest.raises(ValueError, match="expected at most 1000 bytes, got 2147483648"):
        read_regular(tmp_path / "in", most=1000)


def test_a_missing_folder_is_named_unless_it_is_to_be_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a file in a folder that exists, got .*\. Make it"):
        write_whole(tmp_path / "none" / "a", b"one")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_removes_in_the_meantime_is_made_again(tmp_path: Path) -> None:
    """As where there are no locks, and two processes train one run: the first to end removes the folder."""
    calls: list[int] = []

    def remove_folder(times: int) -> None:
        calls.clear()

        def fill(file: object) -> None:
            calls.append(1)
            if len(calls) <= times:
                shutil.rmtree(tmp_path / "run")

        write_whole(tmp_path / "run" / "a", fill, make_folders=True)

    remove_folder(times=2)
    assert len(calls) == 3
    assert (tmp_path / "run" / "a").exists()
    with pytest.raises(FileNotFoundError):
        remove_folder(times=100)


def test_leavings_of_killed_writers_go_after_an_hour(tmp_path: Path) -> None:
    names = (".a[1].1.partial", ".a[1].2.partial", ".a1.1.partial")
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    for name in (names[0], names[2]):
        os.utime(tmp_path / name, (time.time() - files.STALE_AFTER - 1,) * 2)
    write_whole(tmp_path / "a[1]", b"one")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a[1]", *names[1:]])
