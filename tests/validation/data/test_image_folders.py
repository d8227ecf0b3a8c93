"""Images of one's own: a folder, or a tar of it, is read whole and as it is, or refused with the file and a remedy."""

import io
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from noisysgd.validation import RunStore, TrainConfig, load_dataset, run_one, train
from noisysgd.validation.cli import main as cli
from noisysgd.validation.data import image_folders
from noisysgd.validation.data.image_folders import load_image_folder, parse_name
from noisysgd.validation.sweeps.cost import training_examples
from noisysgd.validation.sweeps.plan import EXAMPLE, Plan, parse_plan

COUNTS = {"train": 5, "test": 2}
CLASSES = ("cat", "dog", "emu")


def pixels(split: str, kind: str, number: int, channels: int = 3, size: tuple[int, int] = (4, 6)) -> np.ndarray:
    seed = [ord(letter) for letter in f"{split}{kind}{number}"]
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def everything(channels: int = 3) -> dict[str, bytes]:
    return {
        f"{split}/{kind}/{number:04d}.png": encoded(pixels(split, kind, number, channels))
        for split, count in COUNTS.items()
        for kind in CLASSES
        for number in range(count)
    }


def as_folder(root: Path, files: dict[str, bytes], name: str = "birds") -> Path:
    for path, content in files.items():
        (root / name / path).parent.mkdir(parents=True, exist_ok=True)
        (root / name / path).write_bytes(content)
    return root


def as_tar(root: Path, files: dict[str, bytes], ending: str = ".tar", prefix: str = "") -> Path:
    mode = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.xz": "w:xz"}[ending]
    with tarfile.open(root / f"birds{ending}", mode) as tar:
        for path, content in reversed(files.items()):  # the order in the archive says nothing
            member = tarfile.TarInfo(prefix + path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return root


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_and_label_is_there_in_order_of_class_and_name(tmp_path: Path, channels: int) -> None:
    found = load_image_folder("folder:birds", as_folder(tmp_path, everything(channels)))
    assert found.classes == CLASSES
    for split, count in COUNTS.items():
        images, labels = getattr(found.raw, f"{split}_images"), getattr(found.raw, f"{split}_labels")
        assert images.shape == (3 * count, channels, 4, 6)
        assert labels.tolist() == [k for k in range(3) for _ in range(count)]
        places = [(kind, number) for kind in CLASSES for number in range(count)]
        for image, (kind, number) in zip(images, places, strict=True):
            expected = pixels(split, kind, number, channels).reshape(4, 6, channels).transpose(2, 0, 1)
            np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("prefix", ["", "birds/", "./"])
@pytest.mark.parametrize("ending", image_folders.ENDINGS)
def test_a_tar_is_the_folder_that_it_packs(tmp_path: Path, ending: str, prefix: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    folder = load_image_folder("folder:birds", as_folder(tmp_path / "a", everything()))
    packed = load_image_folder("folder:birds", as_tar(tmp_path / "b", everything(), ending, prefix))
    assert folder.pinned == packed.pinned
    np.testing.assert_array_equal(folder.raw.train_images, packed.raw.train_images)
    np.testing.assert_array_equal(folder.raw.test_labels, packed.raw.test_labels)


def test_the_identity_is_that_of_names_and_contents(tmp_path: Path) -> None:
    files = everything()
    changed = files | {"train/cat/0000.png": files["train/cat/0001.png"]}
    renamed = {path.replace("emu", "fox"): content for path, content in files.items()}
    digests = set()
    for k, each in enumerate((files, changed, renamed)):
        (tmp_path / str(k)).mkdir()
        digests.add(load_image_folder("folder:birds", as_folder(tmp_path / str(k), each)).digest)
    assert len(digests) == 3
    pinned = load_image_folder("folder:birds", tmp_path / "0").pinned
    assert load_image_folder(pinned, tmp_path / "0").pinned == pinned
    with pytest.raises(ValueError, match=r"birds: expected contents with the hash .* got .* leave out @"):
        load_image_folder(pinned, tmp_path / "1")


def test_a_folder_in_which_a_file_was_replaced_is_read_anew(tmp_path: Path) -> None:
    first = load_image_folder("folder:birds", as_folder(tmp_path, everything())).digest
    as_folder(tmp_path, {"train/cat/0004.png": encoded(pixels("train", "cat", 99))})
    assert load_image_folder("folder:birds", tmp_path).digest != first


def test_an_archive_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    files = everything()
    first = load_image_folder("folder:birds", as_tar(tmp_path, files))
    files["train/cat/0004.png"] = encoded(pixels("train", "cat", 99))
    (tmp_path / "birds.tar").unlink()
    assert load_image_folder(
        "folder:birds", as_tar(tmp_path, files | {"train/cat/0005.png": files["train/cat/0000.png"]})
    )
    assert load_image_folder("folder:birds", tmp_path).digest != first.digest


def test_what_file_managers_leave_is_passed_over(tmp_path: Path) -> None:
    clean = load_image_folder("folder:birds", as_folder(tmp_path / "a", everything())).digest
    names = ("train/.DS_Store", "__MACOSX/train/cat/._0000.png", "train/cat/._0000.png", "test/cat/Thumbs.db")
    names += (".ipynb_checkpoints/x.png", "train/.ipynb_checkpoints/0.png", "train/@eaDir/0.png", "test/desktop.ini")
    litter = dict.fromkeys(names, b"x")
    folder = as_folder(tmp_path / "b", everything() | litter)
    (folder / "birds" / "train" / "cat" / ".#0000.png").symlink_to("editor@machine.1234")
    assert load_image_folder("folder:birds", folder).digest == clean
    as_tar(tmp_path, everything() | litter)
    assert load_image_folder("folder:birds", tmp_path).digest == clean


def jpeg(image: np.ndarray) -> bytes:
    return encoded(image, "JPEG")


REFUSED = {
    "a broken image": ({"train/cat/0000.png": b"no image"}, "train/cat/0000.png: expected a whole PNG or JPEG"),
    "a cut image": (
        {"train/cat/0000.png": encoded(pixels("train", "cat", 0, size=(40, 60)))[:-40]},
        "expected a whole PNG or JPEG, got a broken one",
    ),
    "another size": ({"test/cat/0000.png": encoded(pixels("test", "cat", 0, size=(5, 6)))}, "images of one size"),
    "grey among colours": ({"test/cat/0000.png": encoded(pixels("test", "cat", 0, 1))}, "images of one size"),
    "transparency": ({"test/cat/0000.png": encoded(pixels("test", "cat", 0, 4))}, "grey or RGB, got mode RGBA"),
    "a class without a test": ({"train/gnu/0000.png": encoded(pixels("train", "gnu", 0))}, r"the same classes .*gnu"),
    "a file in the wrong place": ({"train/0000.png": encoded(pixels("train", "cat", 0))}, "images as {train,test}"),
    "another kind of file": ({"train/cat/labels.csv": b"1,2"}, r"images as .* got train/cat/labels.csv"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_data_set_is_refused_by_name(tmp_path: Path, case: str, packed: bool) -> None:
    more, message = REFUSED[case]
    files = everything() | more
    root = as_tar(tmp_path, files) if packed else as_folder(tmp_path, files)
    with pytest.raises(ValueError, match=message) as caught:
        load_image_folder("folder:birds", root)
    assert str(caught.value).count("expected") == 1
    assert str(caught.value).endswith(".")


def test_splits_that_are_empty_or_of_one_class_are_refused(tmp_path: Path) -> None:
    train = {path: content for path, content in everything().items() if path.startswith("train")}
    with pytest.raises(ValueError, match="folders train and test with images, got none in test"):
        load_image_folder("folder:birds", as_folder(tmp_path / "a", train))
    cats = {path: content for path, content in everything().items() if "/cat/" in path}
    with pytest.raises(ValueError, match="at least two classes"):
        load_image_folder("folder:birds", as_folder(tmp_path / "b", cats))


def test_links_are_refused(tmp_path: Path) -> None:
    root = as_folder(tmp_path / "a", everything())
    (root / "birds" / "train" / "cat" / "9999.png").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match=r"got the link train/cat/9999.png"):
        load_image_folder("folder:birds", root)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        as_tar(tmp_path, everything())
        with tarfile.open(tmp_path / "birds.tar", "a") as tar:
            member = tarfile.TarInfo("train/cat/9999.png")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        with pytest.raises(ValueError, match="a link or special file"):
            load_image_folder("folder:birds", tmp_path)


def test_names_that_leave_the_archive_are_refused(tmp_path: Path) -> None:
    for path in ("../train/cat/0.png", "/train/cat/0.png"):
        as_tar(tmp_path, everything() | {path: encoded(pixels("train", "cat", 0))})
        with pytest.raises(ValueError, match="names inside the archive's folder"):
            load_image_folder("folder:birds", tmp_path)


def test_bombs_are_refused_before_they_go_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folders, "MOST_BYTES_OF_A_FILE", 100_000)
    as_tar(tmp_path, everything() | {"train/cat/0.png": bytes(200_000)}, ".tar.xz")
    with pytest.raises(ValueError, match="files of at most 100000 bytes"):
        load_image_folder("folder:birds", tmp_path)
    wide = encoded(np.zeros((400, 400, 3), np.uint8))  # 160 000 pixels in less than two kilobytes
    as_tar(tmp_path, everything() | {"train/cat/0.png": wide}, ".tar.xz")
    with pytest.raises(ValueError, match="at most 100000 pixels, got 400×400"):
        load_image_folder("folder:birds", tmp_path)
    monkeypatch.setattr(image_folders, "MOST_BYTES", 2_000)
    as_tar(tmp_path, everything(), ".tar.xz")
    with pytest.raises(ValueError, match="at most 2000 bytes in all"):
        load_image_folder("folder:birds", tmp_path)


@pytest.mark.parametrize("ending", image_folders.ENDINGS)
def test_damaged_archives_are_refused(tmp_path: Path, ending: str) -> None:
    as_tar(tmp_path, everything(), ending)
    path = tmp_path / f"birds{ending}"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"not an archive" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"birds\.t.*: expected"):
            load_image_folder("folder:birds", tmp_path)


def test_names_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("folder:", "folder:../x", "folder:a/b", "folder:.x", "folder:x@12", "birds"):
        with pytest.raises(ValueError, match="dataset: expected"):
            parse_name(wrong)
    monkeypatch.setenv("NOISYSGD_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"expected a folder birds or an archive birds\.tar.*NOISYSGD_DATA"):
        load_image_folder("folder:birds")
    as_folder(tmp_path, everything())
    assert load_image_folder("folder:birds").raw.train_images.shape == (15, 3, 4, 6)
    as_tar(tmp_path, everything())
    with pytest.raises(ValueError, match=r"one folder or archive in .*, got \['birds', 'birds.tar'\]"):
        load_image_folder("folder:birds")


def test_jpegs_are_read_as_pillow_decodes_them(tmp_path: Path) -> None:
    files = {path.replace(".png", ".JPG"): jpeg(pixels(*path[:-4].split("/"))) for path in everything()}
    found = load_image_folder("folder:birds", as_folder(tmp_path, files))
    with Image.open(tmp_path / "birds" / "train" / "cat" / "0000.JPG") as image:
        np.testing.assert_array_equal(found.raw.train_images[0], np.asarray(image).transpose(2, 0, 1))


def squares(root: Path, kinds: int = 3) -> Path:
    """Images of 8×8 grey pixels in as many classes, 40 for training and 8 for testing of each, one class lighter."""
    files = {}
    for split, count in (("train", 40), ("test", 8)):
        for kind in range(kinds):
            for number in range(count):
                image = pixels(split, str(kind), number, 1, (8, 8)) // 2 + 40 * kind
                files[f"{split}/{kind}/{number:03d}.png"] = encoded(image.astype(np.uint8))
    return as_folder(root, files, "squares")


def test_a_run_on_ones_own_images_is_filed_under_their_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOISYSGD_DATA", str(squares(tmp_path)))
    config = TrainConfig(learning_rate=0.1, batch_size=16, steps=3, dataset="folder:squares")
    pinned = config.pinned()
    assert pinned.dataset == load_image_folder("folder:squares").pinned
    assert pinned.pinned() is pinned
    assert TrainConfig.from_dict(pinned.as_dict()) == pinned
    store = RunStore(tmp_path / "runs")
    assert run_one(store, config)
    record = store.read(pinned)
    assert record is not None
    assert record["config"]["dataset"] == pinned.dataset
    assert record["status"] == "complete"
    assert record["train_loss"] == train(config)["train_loss"]
    data = load_dataset(pinned.dataset, subset=60, downsample=2)
    assert (data.classes, tuple(data.train_images.shape), len(data.test_images)) == (3, (60, 1, 4, 4), 24)
    (tmp_path / "squares" / "train" / "0" / "000.png").write_bytes(encoded(pixels("train", "x", 0, 1, (8, 8))))
    assert config.pinned().dataset != pinned.dataset
    with pytest.raises(ValueError, match="expected contents with the hash"):
        load_dataset(pinned.dataset)


def test_sweeps_plans_and_costs_take_ones_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOISYSGD_DATA", str(squares(tmp_path)))
    text = EXAMPLE.replace('"digits"', '"folder:squares"').replace("[16, 64]", "[16, 48]")
    plan = parse_plan(text)
    assert {config.dataset for config in plan.sweep.plan()} == {load_image_folder("folder:squares").pinned}
    assert training_examples(plan.sweep.base) == 120
    assert plan.text == text_of(plan)
    with pytest.raises(ValueError, match="at most the 120 training examples"):
        parse_plan(text.replace("[16, 48]", "[16, 256]"))
    with pytest.raises(ValueError, match="a divisor of the images' side, 8"):
        parse_plan(text.replace("ghost_batch_size = 16", "ghost_batch_size = 16\ndownsample = 3"))


def text_of(plan: Plan) -> str:
    return parse_plan(plan.text).text


def test_the_command_verifies_ones_own_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # handlers are for processes of their own
    monkeypatch.setenv("NOISYSGD_DATA", str(squares(tmp_path)))
    assert cli.main(["data", "verify", "folder:squares"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(load_image_folder("folder:squares").pinned)
    assert "120 + 24 images of 8×8×1 in 3 classes" in printed
    assert cli.main(["data", "verify", "folder:absent"]) == 1
    assert "not there" in capsys.readouterr().err
