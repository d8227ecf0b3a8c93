"""Downloads, from a server on this machine: whole, verified and renamed, or nothing at all. And `noisysgd data`."""

import hashlib
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from noisysgd.theory.common import files
from noisysgd.validation.cli import main as cli
from noisysgd.validation.data import fetching
from noisysgd.validation.data.catalogue import FASHION_MNIST, SOURCES, Source, SourceFile
from noisysgd.validation.data.checksums import AlteredFileError
from noisysgd.validation.data.fetching import fetch
from noisysgd.validation.data.search_path import candidate_folders

CONTENT = os.urandom(2_500_000)
COMMAND = [sys.executable, "-m", "noisysgd.validation.cli"]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT in the way that the first folder of the path names."""

    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        kind = self.path.split("/")[1]
        if kind == "absent":
            self.send_error(404)
            return
        body = {"altered": CONTENT[:-1] + b"x", "long": CONTENT * 2}.get(kind, CONTENT)
        self.send_response(200)
        if kind != "unannounced":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = kind in ("short", "unannounced")
        self.wfile.write(body[: len(body) // 2] if half else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Handler.requests = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def a_source(address: str) -> Source:
    digests = {name: hashlib.new(name, CONTENT).hexdigest() for name in ("md5", "sha256")}
    names = ("one.tar.gz", "two.tar.gz")
    files = tuple(SourceFile(name, f"{address}/{name}", digests, limit=3_000_000) for name in names)
    return Source("small", "nothing", files, 2, training_examples=0, test_examples=0, side=1, channels=1)


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_files_come_whole_once(server: str, tmp_path: Path) -> None:
    shown: list[tuple[str, int, int | None]] = []
    found = fetch(a_source(f"{server}/good"), tmp_path, progress=lambda *now: shown.append(now))
    assert everything(tmp_path) == ["small", "small/one.tar.gz", "small/two.tar.gz"]
    assert all(path.read_bytes() == CONTENT for path in found.values())
    assert ("one.tar.gz", len(CONTENT), len(CONTENT)) in shown
    found["two.tar.gz"].unlink()
    assert fetch(a_source(f"{server}/good"), tmp_path) == found
    assert Handler.requests == ["/good/one.tar.gz", "/good/two.tar.gz", "/good/two.tar.gz"]


def test_a_mirror_stands_in_for_the_published_address(server: str, tmp_path: Path) -> None:
    fetch(a_source("http://127.0.0.1:1/nowhere"), tmp_path, mirror=f"{server}/good/")
    assert Handler.requests == ["/good/one.tar.gz", "/good/two.tar.gz"]
    with pytest.raises(AlteredFileError, match="thrown away"):
        fetch(a_source("http://127.0.0.1:1/nowhere"), tmp_path / "other", mirror=f"{server}/altered")


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("absent", OSError, "absent/one.tar.gz: the download failed .404 Not Found"),
        ("short", OSError, "broke off after 1250000 of 2500000 bytes"),
        ("unannounced", AlteredFileError, r"downloaded and thrown away: .*to have md5 \w+, got"),
        ("altered", AlteredFileError, r"downloaded and thrown away: .*to have md5 \w+, got"),
        ("long", AlteredFileError, "expected at most 3000000 bytes, got more"),
    ],
)
def test_nothing_is_left_of_a_bad_download(
    server: str, tmp_path: Path, kind: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fetch(a_source(f"{server}/{kind}"), tmp_path)
    assert everything(tmp_path) == []


def test_servers_that_are_gone_or_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetching, "TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        source = a_source(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(OSError, match=r"the download failed \(timed out"):
            fetch(source, tmp_path)
    with pytest.raises(OSError, match=r"the download failed \(.*refused"):
        fetch(source, tmp_path)
    assert everything(tmp_path) == []


def test_an_interruption_leaves_nothing(server: str, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        assert any(name.endswith(".partial") for name in everything(tmp_path))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(a_source(f"{server}/good"), tmp_path, progress=interrupt)
    assert everything(tmp_path) == []


def test_kill_9_leaves_no_file_under_its_name(server: str, tmp_path: Path) -> None:
    program = (
        "import os, sys, signal, test_data_fetch as t\n"
        "t.fetch(t.a_source(sys.argv[1]), sys.argv[2], progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}
    result = subprocess.run(
        [sys.executable, "-c", program, f"{server}/good", str(tmp_path)], env=environment, timeout=60
    )
    assert result.returncode == -signal.SIGKILL
    left = everything(tmp_path)
    assert len(left) == 2
    assert left[1].endswith(".partial")
    found = fetch(a_source(f"{server}/good"), tmp_path)
    assert all(path.read_bytes() == CONTENT for path in found.values())
    assert left[1] in everything(tmp_path), "another download of now may be writing it"
    long_ago = time.time() - files.STALE_AFTER - 1
    os.utime(tmp_path / left[1], (long_ago, long_ago))
    fetch(a_source(f"{server}/good"), tmp_path)
    assert everything(tmp_path) == ["small", "small/one.tar.gz", "small/two.tar.gz"]


def test_what_to_do_about_a_bad_download_is_true(server: str, tmp_path: Path) -> None:
    with pytest.raises(AlteredFileError) as caught:
        fetch(a_source(f"{server}/altered"), tmp_path)
    assert str(caught.value).endswith("It was deleted. Fetch it again, or from a mirror that holds the published file.")
    assert "allow_altered" not in str(caught.value)
    (tmp_path / "one.tar.gz").write_bytes(b"mine")
    with pytest.raises(
        AlteredFileError, match=r"Delete it and fetch it again; .* load_dataset\(.*allow_altered=True\)"
    ):
        fetch(a_source(f"{server}/good"), tmp_path)


def test_a_file_that_was_there_and_is_another_one_stays(server: str, tmp_path: Path) -> None:
    (tmp_path / "one.tar.gz").write_bytes(b"mine")
    with pytest.raises(AlteredFileError, match=r"one\.tar\.gz: expected the file to have md5"):
        fetch(a_source(f"{server}/good"), tmp_path)
    assert (tmp_path / "one.tar.gz").read_bytes() == b"mine"
    assert Handler.requests == []


def test_only_the_web_is_fetched_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mirror: expected an http or https address, got 'file:///etc/one\.tar\.gz'"):
        fetch(a_source("http://127.0.0.1:1"), tmp_path, mirror="file:///etc")


Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """The command line in this process, with data folders of its own."""
    monkeypatch.setenv("NOISYSGD_DATA", str(tmp_path / "data"))
    handler = signal.getsignal(signal.SIGINT)
    yield lambda *arguments: cli.main(["data", *map(str, arguments)])
    signal.signal(signal.SIGINT, handler)


def test_list_and_where_say_what_is_where(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    listing = capsys.readouterr().out
    assert "not here: noisysgd data fetch cifar10\n" in listing
    assert listing.count("\n") == 8
    assert run("where") == 0
    assert f"cifar100\n  {tmp_path / 'data' / 'cifar100'}: nothing\n" in capsys.readouterr().out
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    (tmp_path / "data" / "cifar10" / "cifar-10-binary.tar.gz").touch()
    assert run("where", "cifar10") == 0
    assert capsys.readouterr().out == f"cifar10\n  {tmp_path / 'data' / 'cifar10'}: cifar-10-binary.tar.gz\n"
    assert run("list") == 0
    assert "cifar10        50000 + 10000 images of 32×32×3    here (not verified)" in capsys.readouterr().out


def test_failures_are_one_line_and_status_1(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"something else")
    assert run("verify", "cifar10", "--folder", tmp_path) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"noisysgd: {tmp_path / 'cifar-10-binary.tar.gz'}: expected the file to have md5 c32a1d4ab")
    assert error.count("\n") == 1
    assert run("verify", "cifar100") == 1
    assert "Run `noisysgd data fetch cifar100`" in capsys.readouterr().err
    assert run("where", "cifar10", "--folder", tmp_path / "none") == 1
    assert "folder: expected a folder that exists" in capsys.readouterr().err
    with pytest.raises(AlteredFileError):
        run("verify", "cifar10", "--folder", tmp_path, "--debug")


def test_fetch_and_verify(
    run: Run, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SOURCES, "cifar10", a_source(f"{server}/good"))  # type: ignore[arg-type]
    assert run("fetch", "cifar10") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"verified  {tmp_path}/data/small/{name}" for name in ("one.tar.gz", "two.tar.gz")]
    assert run("fetch", "cifar10", "--folder", tmp_path / "new", "--mirror", f"{server}/altered") == 1
    assert "thrown away" in capsys.readouterr().err
    assert everything(tmp_path / "new") == []
    assert run("fetch", "digits") == run("verify", "digits") == 0


@pytest.mark.skipif(not FASHION_MNIST.system_folders[0].is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_from_a_server(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real files, which count as the published ones although Debian zipped them anew."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(candidate_folders(FASHION_MNIST)[-1]))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,)).start()
        mirror = f"http://127.0.0.1:{running.server_address[1]}"
        assert run("fetch", "fashion-mnist", "--folder", tmp_path, "--mirror", mirror) == 0
        running.shutdown()
    assert len(everything(tmp_path / "fashion-mnist")) == 4
    assert run("verify", "fashion-mnist", "--folder", tmp_path) == 0
    assert "60000 training and 10000 test images" in capsys.readouterr().out


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["data"], ["data", "fetch"], ["data", "fetch", "mnist"], ["data", "sing"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 2
        assert "Traceback" not in capsys.readouterr().err
    for verb in ([], ["where"], ["fetch"], ["verify"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["data", *verb, "--help"])
        assert caught.value.code == 0
        assert "examples:\n  noisysgd data" in capsys.readouterr().out


def test_fetching_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from noisysgd.validation.cli.main import main\n"
        "for verb in (['list'], ['where'], ['verify', 'cifar10', '--folder', sys.argv[1]]): main(['data', *verb])\n"
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, timeout=60)
