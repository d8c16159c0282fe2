"""Folders made by hand: which files are images, and what is passed over."""

import os
from pathlib import Path

import pytest

from vankit.data.walk import IMAGE_SUFFIXES, find_images, find_inputs
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
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif"} <= IMAGE_SUFFIXES
