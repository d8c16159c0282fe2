"""Folders made by hand: which files are images, and what is passed over."""

import logging
import os
from pathlib import Path

import pytest

from vankit.data.tree import HIDDEN, LOOP
from vankit.data.walk import IMAGE_SUFFIXES as SUFFIXES
from vankit.data.walk import SPLITS, PassedOver, begin, find_images, find_inputs, split_folder, walk_images
from vankit.errors import MissingFileError, UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b/2.JPG", "b/1.png", "a.webp", "c.txt", ".hidden/x.png", "b/.y.png", "empty/readme.md", "odd.dat"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def names(found: object, root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in found]


def test_find_images_in_a_folder(photos: Path) -> None:
    assert names(find_images([photos]), photos) == ["a.webp", "b/1.png", "b/2.JPG"]
    assert names(find_images(str(photos)), photos) == ["a.webp", "b/1.png", "b/2.JPG"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("*", ["a.webp"]), ("b/*.png", ["b/1.png"]), ("**/*", ["a.webp", "b/1.png", "b/2.JPG"]), ("?.webp", ["a.webp"])],
)
def test_find_images_by_pattern(pattern: str, expected: list[str], photos: Path) -> None:
    assert names(find_images([photos / pattern]), photos) == expected


def test_a_named_file_is_yielded_whatever_its_suffix_even_if_missing(photos: Path) -> None:
    (photos / "x[1].png").touch()
    asked = [photos / "odd.dat", photos / "missing.png", photos / "x[1].png"]
    assert list(find_images(asked)) == asked


def test_barren_arguments_raise_after_everything_else(photos: Path) -> None:
    found = find_images([photos / "empty", photos / "*.gif", photos / "a.webp"])
    assert next(found) == photos / "a.webp"
    with pytest.raises(MissingFileError, match=r"no images in .*empty, .*\*\.gif: expected"):
        next(found)


def test_that_there_are_no_images_is_known_at_once(photos: Path) -> None:
    assert names(begin(find_images([photos / "b"])), photos) == ["b/1.png", "b/2.JPG"]
    assert next(begin(find_images([photos / "*.gif", photos / "b"]))) == photos / "b" / "1.png"
    with pytest.raises(MissingFileError, match="no images in"):
        begin(find_images([photos / "empty", photos / "*.gif"]))
    assert list(begin(iter(()))) == []


def test_a_folder_that_contains_itself_ends(photos: Path) -> None:
    (photos / "b" / "loop").symlink_to(photos)
    assert names(find_images([photos]), photos) == ["a.webp", "b/1.png", "b/2.JPG"]


def test_what_the_output_holds_is_no_input(photos: Path) -> None:
    assert names(find_inputs([photos], photos / "b"), photos) == ["a.webp"]
    assert names(find_inputs([photos]), photos) == ["a.webp", "b/1.png", "b/2.JPG"]
    for inside in (photos / "b", photos / "b" / "1.png"):
        with pytest.raises(UserError, match="lies in the output folder"):
            find_inputs([photos / "a.webp", inside], photos / "b")


def test_folders_are_walked_lazily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "x.png").touch()
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    next(find_images([tmp_path]))
    assert listed == [str(tmp_path), str(tmp_path / "0")]


def test_every_suffix_is_lower_case_with_its_dot() -> None:
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in SUFFIXES)
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".mpo"} <= SUFFIXES


def touch(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def walked(root: Path) -> tuple[list[str], dict[str, int]]:
    passed_over = PassedOver()
    found = [Path(path).relative_to(root).as_posix() for path in walk_images(root, passed_over)]
    return found, dict(passed_over.counts)


def test_what_is_no_image_is_counted_by_kind(tmp_path: Path) -> None:
    touch(
        tmp_path, "a/1.jpg", "a/.ipynb_checkpoints/1.jpg", "__MACOSX/._1.jpg", "a/._1.jpg", "a/Thumbs.db", ".DS_Store"
    )
    touch(tmp_path, "a/x.cr2", "b/y.CR2", "a/IMG_1", "notes.txt")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert walked(tmp_path) == (
        ["a/1.jpg"],
        {HIDDEN: 5, ".cr2": 2, "files without a suffix": 1, ".txt": 1, "broken links": 1, "not regular files": 1},
    )


def test_a_folder_is_walked_once(tmp_path: Path) -> None:
    """Its own name counts where a link leads into the same folder; of two links to elsewhere the first does."""
    root, elsewhere = touch(tmp_path / "root", "z/1.jpg", "z/deep/2.jpg"), touch(tmp_path / "elsewhere", "3.jpg")
    for link, target in (("a", "z"), ("z/up", "."), ("z/deep/self", "z/deep")):
        (root / link).symlink_to(root / target, target_is_directory=True)
    for link in ("m", "n"):
        (root / link).symlink_to(elsewhere, target_is_directory=True)
    assert walked(root) == (["m/3.jpg", "z/1.jpg", "z/deep/2.jpg"], {LOOP: 4})


def test_a_link_to_what_holds_the_folder_is_cut(tmp_path: Path) -> None:
    """Else the images of val would be those of a class of train."""
    root = touch(tmp_path / "train", "cat/1.jpg")
    touch(tmp_path, "val/cat/2.jpg")
    (root / "cat" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert walked(root) == (["cat/1.jpg"], {LOOP: 1})


def test_a_farm_of_links_takes_no_time(tmp_path: Path) -> None:
    for i in range(25):
        (tmp_path / str(i)).mkdir()
        for name in "ab":
            (tmp_path / str(i) / name).symlink_to(tmp_path / str(i + 1), target_is_directory=True)
    touch(tmp_path, "25/x.jpg")
    assert walked(tmp_path / "0")[0] == ["a/" * 25 + "x.jpg"]


def test_what_was_passed_over_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "1.jpg", "a.cr2", "b.cr2", ".DS_Store")
    with caplog.at_level(logging.INFO):
        list(find_images(tmp_path))
    assert caplog.messages == [
        f"{tmp_path}: passed over .cr2 (2, such as a.cr2), hidden and system files (1, such as .DS_Store)"
    ]
    assert caplog.records[0].levelno == logging.WARNING


def test_hidden_files_alone_are_no_reason_to_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    list(find_images(touch(tmp_path, "1.jpg", ".DS_Store")))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_heic_is_an_image_where_its_library_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "1.jpg", "2.HEIC")
    monkeypatch.setattr("vankit.data.walk.IMAGE_SUFFIXES", frozenset({".jpg"}))
    passed_over = PassedOver()
    assert len(list(walk_images(tmp_path, passed_over))) == 1
    assert str(passed_over) == '.heic (1, such as 2.HEIC); pip install "vankit[heic]" to read HEIC'


@pytest.mark.parametrize("names", [("Train", "Val"), ("TRAINING", "Validation"), ("train", "Val"), ("train", "valid")])
def test_splits_in_capitals(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    assert [split_folder(tmp_path, split) for split in SPLITS] == [tmp_path / name for name in names]
    assert split_folder(tmp_path, "test") is None and split_folder(tmp_path / "nowhere", "train") is None


def test_a_split_alone_may_be_in_capitals_and_a_class_is_no_split(tmp_path: Path) -> None:
    (tmp_path / "Train").mkdir()
    assert split_folder(tmp_path, "train") == tmp_path / "Train"
    (tmp_path / "Bus").mkdir()
    assert split_folder(tmp_path, "train") is None
    (tmp_path / "train").mkdir()
    assert split_folder(tmp_path, "train") == tmp_path / "train"


def test_a_url_is_said_to_be_one_after_the_files(tmp_path: Path) -> None:
    found = find_images([tmp_path / "a.png", "s3://bucket/x", tmp_path / "b.png"])
    assert [next(found).name for _ in range(2)] == ["a.png", "b.png"]
    with pytest.raises(MissingFileError, match="^s3://bucket/x is a URL, which is read only with workers on Ray"):
        next(found)
