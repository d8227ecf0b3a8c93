"""Data sets in files: IDX, the binary CIFAR archives, and what happens to files that are not the published ones."""

import gzip
import hashlib
import io
import struct
import tarfile
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisysgd.validation import load_dataset
from noisysgd.validation.data import raw_images
from noisysgd.validation.data.archives import SPARE, read_members
from noisysgd.validation.data.catalogue import CIFAR10, CIFAR100, FASHION_MNIST, SOURCES, source_named
from noisysgd.validation.data.checksums import AlteredFileError, unzipped
from noisysgd.validation.data.cifar import CIFAR10_LAYOUT, CIFAR100_LAYOUT, PIXELS, parse_records, read_cifar
from noisysgd.validation.data.idx import parse_idx
from noisysgd.validation.data.raw_images import read_raw
from noisysgd.validation.data.search_path import candidate_folders, data_folder, find_files

SMALL_10 = replace(CIFAR10_LAYOUT, records=6, test_records=4)
SMALL_100 = replace(CIFAR100_LAYOUT, records=120, test_records=7)


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_idx_gives_back_what_was_written(shape: list[int], random: object) -> None:
    array = np.frombuffer(random.randbytes(int(np.prod(shape))), np.uint8).reshape(shape)  # type: ignore[attr-defined]
    content = idx(array)
    np.testing.assert_array_equal(parse_idx(content, "x", tuple(shape)), array)
    np.testing.assert_array_equal(parse_idx(content, "x", (None,) * len(shape)), array)
    for wrong in (content[:-1], content + b"\0", content[:5], b"\1" + content[1:]):
        with pytest.raises(AlteredFileError):
            parse_idx(wrong, "x", tuple(shape))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x: expected an IDX file of 2-dimensional bytes .*, got "),
        (idx(np.zeros(4)), "expected an IDX file of 2-dimensional bytes"),
        (bytes([0, 0, 13, 2]) + bytes(8), "00000802"),  # floats
        (idx(np.zeros((2, 2)))[:10], "expected a header of 12 bytes, got 10"),
        (idx(np.zeros((3, 2))), r"expected dimensions \(2, any\), got \(3, 2\)"),
        (idx(np.zeros((2, 2)))[:-1], r"expected 16 bytes for dimensions \(2, 2\), got 15"),
        (idx(np.zeros((2, 2))) + b"1", "got 17"),
        (bytes([0, 0, 8, 2]) + struct.pack(">II", 2, 2**32 - 1), "expected 8589934602 bytes"),
    ],
)
def test_idx_files_that_are_not_right_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(AlteredFileError, match=message):
        parse_idx(content, "x", (2, None))


def test_zips_are_read_to_their_end() -> None:
    content = gzip.compress(b"pixels" * 100)
    assert unzipped(content, "x", 600) == b"pixels" * 100
    for wrong in (content[:-1], content[:-9], content[:-8] + b"\1" + content[-7:], content + b"tail"):
        with pytest.raises(AlteredFileError, match="x: expected a whole gzip file"):
            unzipped(wrong, "x", 600)
    with pytest.raises(AlteredFileError, match="x: expected at most 599 bytes"):
        unzipped(content, "x", 599)


def archive(members: Mapping[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return out.getvalue()


def long_name(size: int) -> bytes:
    """An archive that begins with the header of a name of `size` bytes, in GNU's way."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, size
    return gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(size), compresslevel=1)


def member(name: str, **changes: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in changes.items():
        setattr(info, key, value)
    return info


GOOD = {"folder/a.bin": b"abc", "folder/b.bin": bytes(1000)}
WANTED = {name: len(content) for name, content in GOOD.items()}


def test_archives_are_read_without_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    extra = (member("folder", type=tarfile.DIRTYPE), member("folder/readme.html", size=100))
    assert read_members(archive(GOOD, extra), "x", WANTED) == GOOD
    assert list(tmp_path.iterdir()) == []


def test_names_longer_than_the_archive_may_be_are_not_read_into_memory() -> None:
    content = long_name(50 * SPARE)
    tracemalloc.start()
    try:
        with pytest.raises(AlteredFileError, match=r"^x: expected headers of at most 1048576 bytes in all, got more"):
            read_members(content, "x", WANTED)
        assert tracemalloc.get_traced_memory()[1] < 5 * SPARE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(GOOD)[:-1], "expected a whole .tar.gz, got a damaged one"),
        (archive(GOOD)[:60], "expected a whole .tar.gz, got a damaged one"),
        (archive(GOOD)[:-6] + b"\7" + archive(GOOD)[-5:], "expected a whole .tar.gz, got a damaged one"),
        (b"not an archive", "expected a whole .tar.gz, got a damaged one"),
        (gzip.compress(b"no tar" * 1000), "expected a whole .tar.gz, got a damaged one"),
        (gzip.compress(gzip.decompress(archive(GOOD))[:1500]), "damaged|without folder/b.bin"),
        (archive({"folder/a.bin": b"abc"}), "got an archive without folder/b.bin"),
        (archive(GOOD | {"folder/a.bin": b"ab"}), "expected folder/a.bin of 3 bytes, got 2"),
        (archive(GOOD, (member("folder/a.bin", size=3),)), "expected folder/a.bin once"),
        (archive(GOOD, (member("folder/a.bin", type=tarfile.DIRTYPE),)), "expected folder/a.bin to be a file"),
        (archive(GOOD, (member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),)), "'link', a link or special"),
        (archive(GOOD, (member("link", type=tarfile.LNKTYPE, linkname="folder/a.bin"),)), "a link or special file"),
        (archive(GOOD, (member("pipe", type=tarfile.FIFOTYPE),)), "a link or special file"),
        (archive(GOOD, (member("/etc/passwd", size=1),)), "expected names inside the archive's folder"),
        (archive(GOOD, (member("folder/../../x", size=1),)), "expected names inside the archive's folder"),
        (archive(GOOD, (member("bomb", size=SPARE + 1),)), "bytes in all, got more"),
        (archive(GOOD, (member("folder/" + 2 * SPARE * "n"),)), "headers of at most 1048576 bytes in all, got more"),
        (archive(GOOD, (member("x", pax_headers={"comment": 2 * SPARE * "c"}),)), "headers of at most 1048576 bytes"),
        (gzip.compress(gzip.decompress(archive(GOOD)) + b"hidden"), "expected nothing after the end"),
        (gzip.compress(gzip.decompress(archive(GOOD)) + bytes(2 * SPARE)), "more than a megabyte of padding"),
    ],
)
def test_archives_that_are_not_right_are_refused(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AlteredFileError, match=f"^x: .*({message})"):
        read_members(content, "x", WANTED)
    assert list(tmp_path.iterdir()) == [], "something was unpacked"


def small_cifar(name: str, layout: object) -> tuple[bytes, dict[str, np.ndarray]]:
    """An archive of random records to a layout, and its tables (labels, then pixels)."""
    generator = np.random.default_rng(5)
    tables = {}
    for part in (*layout.train, *layout.test):  # type: ignore[attr-defined]
        count = layout.records if part in layout.train else layout.test_records  # type: ignore[attr-defined]
        labels = [generator.integers(0, bound, (count, 1)) for bound in layout.label_bounds]  # type: ignore[attr-defined]
        pixels = generator.integers(0, 256, (count, PIXELS))
        tables[part] = np.concatenate([*labels, pixels], axis=1).astype(np.uint8)
    return archive({part: table.tobytes() for part, table in tables.items()}), tables


@pytest.mark.parametrize(("name", "layout"), [("cifar10", SMALL_10), ("cifar100", SMALL_100)])
def test_cifar_records_are_labels_then_planes_of_colour(name: str, layout: object) -> None:
    content, tables = small_cifar(name, layout)
    train, labels, test, test_labels = read_cifar(content, "x", layout)  # type: ignore[arg-type]
    rows = np.concatenate([tables[part] for part in layout.train])  # type: ignore[attr-defined]
    width = len(layout.label_bounds)  # type: ignore[attr-defined]
    assert labels.tolist() == rows[:, width - 1].tolist(), "the fine label is the last one"
    assert test_labels.tolist() == tables[layout.test[0]][:, width - 1].tolist()  # type: ignore[attr-defined]
    n, c, y, x = 3, 2, 30, 5  # red, green, blue planes, each in rows
    assert train[n, c, y, x] == rows[n, width + 1024 * c + 32 * y + x]
    assert test.shape == (layout.test_records, 3, 32, 32)  # type: ignore[attr-defined]


def test_cifar_labels_out_of_range_and_cut_records_are_refused() -> None:
    record = bytes([9]) + bytes(PIXELS)
    assert parse_records(record, "x", (10,))[1].tolist() == [9]
    with pytest.raises(AlteredFileError, match="x: expected labels from 0 to 9, got 10 in record 1"):
        parse_records(record + bytes([10]) + bytes(PIXELS), "x", (10,))
    with pytest.raises(AlteredFileError, match="x: expected labels from 0 to 19, got 20 in record 0"):
        parse_records(bytes([20, 5]) + bytes(PIXELS), "x", (20, 100))
    with pytest.raises(AlteredFileError, match="x: expected records of 3073 bytes"):
        parse_records(record[:-1], "x", (10,))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small archives of CIFAR, whose checksums count as the published ones."""
    monkeypatch.setattr(raw_images, "CIFAR10_LAYOUT", SMALL_10)
    monkeypatch.setattr(raw_images, "CIFAR100_LAYOUT", SMALL_100)
    for source, layout in ((CIFAR10, SMALL_10), (CIFAR100, SMALL_100)):
        content, _ = small_cifar(source.name, layout)
        (tmp_path / source.files[0].name).write_bytes(content)
        digests = {name: hashlib.new(name, content).hexdigest() for name in ("md5", "sha256")}
        file = replace(source.files[0], digests=digests)
        monkeypatch.setitem(SOURCES, source.name, replace(source, files=(file,)))  # type: ignore[arg-type]
    return tmp_path


@pytest.mark.parametrize(("name", "classes", "size"), [("cifar10", 10, 30), ("cifar100", 100, 120)])
def test_cifar_loads_standardised_by_channel(small: Path, name: str, classes: int, size: int) -> None:
    data = load_dataset(name, folder=small)
    assert (data.name, data.classes, data.train_size) == (name, classes, size)
    assert data.train_images.shape[1:] == (3, 32, 32)
    channels = data.train_images.double()
    np.testing.assert_allclose(channels.mean((0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(channels.std((0, 2, 3), correction=0), 1, atol=1e-6)
    assert "checksums verified" in data.provenance
    raw = read_raw(name, small)
    assert data.standardisation is not None
    mean, deviation = (np.array(values)[:, None, None] for values in vars(data.standardisation).values())
    np.testing.assert_allclose(data.test_images.numpy() * deviation + mean, raw.test_images, atol=1e-4)


def test_other_archives_are_refused_unless_allowed(small: Path) -> None:
    path = small / "cifar-10-binary.tar.gz"
    content, _ = small_cifar("cifar10", SMALL_10)
    path.write_bytes(gzip.compress(gzip.decompress(content)))  # the same records, zipped anew
    with pytest.raises(
        ValueError, match=r"cifar-10-binary.tar.gz: expected the file to have md5 \w+, got \w+. Delete it"
    ):
        load_dataset("cifar10", folder=small)
    assert "checksums not verified" in load_dataset("cifar10", folder=small, allow_altered=True).provenance
    path.write_bytes(content[:-100])
    with pytest.raises(AlteredFileError, match="expected a whole"):
        load_dataset("cifar10", folder=small, allow_altered=True)


def test_every_checksum_has_to_match(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_named("cifar10")
    file = replace(source.files[0], digests=source.files[0].digests | {"sha256": "0" * 64})  # type: ignore[operator]
    with pytest.raises(AlteredFileError, match="to have sha256 000"):
        read_raw("cifar10", small, source=replace(source, files=(file,)))


def test_published_constants_are_checksums() -> None:
    for source in SOURCES.values():
        for file in source.files:
            for algorithm, digest in file.digests.items():
                assert len(digest) == 2 * hashlib.new(algorithm).digest_size
                assert int(digest, 16) >= 0
            assert file.url.endswith(file.name)
    assert CIFAR10.files[0].digests["md5"] == "c32a1d4ab5d03f1284b67883e8d87530"
    assert CIFAR100.files[0].digests["md5"] == "03b5dce01913d631647c71ecec9e9cb8"


def write_fashion(folder: Path) -> dict[str, np.ndarray]:
    """Files of the right shape with made-up content, the labels unzipped."""
    arrays = {}
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        pixels = np.arange(count, dtype=np.uint8)[:, None, None] + np.zeros((28, 28), np.uint8)
        arrays[f"{part}-images-idx3-ubyte.gz"] = pixels
        arrays[f"{part}-labels-idx1-ubyte"] = np.arange(count) % 10
    for name, array in arrays.items():
        content = idx(array)
        (folder / name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    return arrays


def test_fashion_mnist_from_a_folder_zipped_or_not(tmp_path: Path) -> None:
    arrays = write_fashion(tmp_path)
    with pytest.raises(AlteredFileError, match=r"images-idx3-ubyte.*: expected its unzipped content to have sha"):
        read_raw("fashion-mnist", tmp_path)
    raw = read_raw("fashion-mnist", tmp_path, allow_altered=True)
    np.testing.assert_array_equal(raw.train_images[:, 0], arrays["train-images-idx3-ubyte.gz"])
    np.testing.assert_array_equal(raw.test_labels, arrays["t10k-labels-idx1-ubyte"])
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(AlteredFileError, match="t10k-labels-idx1-ubyte: expected labels from 0 to 9, got 10"):
        read_raw("fashion-mnist", tmp_path, allow_altered=True)


DEBIAN = pytest.mark.skipif(
    not FASHION_MNIST.system_folders[0].is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"
)


@DEBIAN
def test_fashion_mnist_from_the_debian_package() -> None:
    raw = read_raw("fashion-mnist", FASHION_MNIST.system_folders[0])
    assert np.bincount(raw.train_labels).tolist() == [6000] * 10
    assert np.bincount(raw.test_labels).tolist() == [1000] * 10
    data = load_dataset("fashion-mnist", folder=FASHION_MNIST.system_folders[0], subset=640, downsample=2)
    assert data.train_images.shape == (640, 1, 14, 14)
    assert len(data.test_images) == 10_000


def test_places_are_asked_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOISYSGD_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert data_folder() == tmp_path / "share" / "noisysgd"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data_folder() == tmp_path / "home" / ".local" / "share" / "noisysgd"
    monkeypatch.setenv("NOISYSGD_DATA", str(tmp_path / "mine"))
    first, second = candidate_folders(FASHION_MNIST)
    assert first == tmp_path / "mine" / "fashion-mnist"
    assert second == Path("/usr/share/datasets/fashion-mnist")
    assert candidate_folders(FASHION_MNIST, tmp_path) == [tmp_path / "fashion-mnist", tmp_path]
    with pytest.raises(
        FileNotFoundError, match=r"cifar10: expected cifar-10-binary.tar.gz in one of .*mine.cifar10; not"
    ):
        find_files(CIFAR10)
    (tmp_path / "mine" / "cifar10").mkdir(parents=True)
    path = tmp_path / "mine" / "cifar10" / "cifar-10-binary.tar.gz"
    path.touch()
    assert find_files(CIFAR10) == {path.name: path}
