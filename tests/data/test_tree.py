"""Trees of all kinds, made at random or by hand: every image once, and always an end."""

import glob
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vankit.data.images import ImageError, load_image
from vankit.data.walk import UNLISTED, PassedOver, find_images, find_inputs, walk_images
from vankit.errors import MissingFileError, ReadError

FOLDERS = ("a", "b", "a b", ".h")
NAMES = ("1.jpg", "a.png", "x.txt", "noise", "b.JPG", ".y.png")


def touch(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@st.composite
def trees(draw: st.DrawFn) -> list[tuple[str, str, str]]:
    """(kind, path, target of a link) of entries, the folders first."""
    parts = st.lists(st.sampled_from(FOLDERS), max_size=3).map("/".join)
    entries = [("folder", path, "") for path in draw(st.lists(parts, max_size=6)) if path]
    for folder in draw(st.lists(parts, max_size=12)):
        kind = draw(st.sampled_from(["file", "file", "link", "fifo", "socket"]))
        name = draw(st.sampled_from([*NAMES, *FOLDERS]))
        entries.append((kind, os.path.join(folder, name), draw(parts)))
    return entries


def build(root: Path, entries: list[tuple[str, str, str]]) -> None:
    for kind, name, target in entries:
        path = root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "folder":
                path.mkdir(exist_ok=True)
            elif kind == "file":
                path.touch(exist_ok=False)
            elif kind == "fifo":
                os.mkfifo(path)
            elif kind == "socket":
                with socket.socket(socket.AF_UNIX) as server:
                    server.bind(str(path))
            else:
                path.symlink_to(root / target)
        except OSError:  # something has that name, or a file is in the way
            continue


def images_by_hand(root: Path) -> set[str]:
    """Places of the image files without a hidden part, by another walk that follows no link."""
    found = set()
    for folder, _, files in os.walk(root):
        for path in (Path(folder, name) for name in files):
            parts = path.relative_to(root).parts
            wanted = path.suffix.lower() in (".jpg", ".png") and not any(part.startswith(".") for part in parts)
            if wanted and path.is_file():
                found.add(os.path.join(os.path.realpath(folder), path.name))
    return found


def places(paths: Iterator[Path] | list[Path]) -> list[str]:
    """Where files are, links among the folders resolved."""
    return [os.path.join(os.path.realpath(path.parent), path.name) for path in paths]


@settings(max_examples=50, deadline=None)
@given(trees())
def test_a_folder_gives_every_image_once(entries: list[tuple[str, str, str]]) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "root"
        root.mkdir()
        build(root, entries)
        found = [Path(path) for path in walk_images(root)]
        assert len(places(found)) == len(set(places(found))) == len(found)
        assert all(path.is_file() for path in found)
        # a link to a hidden folder is under a name that is not hidden
        linked = {place for place in places(found) if "/." in place.removeprefix(str(root))}
        assert set(places(found)) - linked == images_by_hand(root)


@settings(max_examples=50, deadline=None)
@given(
    trees(), st.sampled_from(["*", "*/*", "**", "**/*.jpg", "a/**/*", "*/a/**", "[ab]*/?.jpg", "**/a/**/*.png", ".h/*"])
)
def test_a_pattern_means_what_it_means_to_glob(entries: list[tuple[str, str, str]], pattern: str) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        build(root, [entry for entry in entries if entry[0] != "link"])
        matches = sorted(set(glob.iglob(str(root / pattern), recursive=True)))
        expected = [Path(path) for path in matches if path.lower().endswith((".jpg", ".png")) and os.path.isfile(path)]
        try:
            assert list(find_images(root / pattern)) == expected
        except MissingFileError:
            assert not expected


@settings(max_examples=40, deadline=None)
@given(trees())
def test_a_pattern_through_links_finds_every_image_once(entries: list[tuple[str, str, str]]) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "root"
        root.mkdir()
        build(root, entries)
        found = [
            *find_images([touch(Path(folder), "z.jpg") / "z.jpg", *([root / "**"] if images_by_hand(root) else [])])
        ]
        assert len(places(found)) == len(set(places(found)))
        assert set(places(found)) >= images_by_hand(root)


def farm(root: Path, levels: int) -> Path:
    """Folders with two links to the next one each, and an image in the last: 2 ** levels names of one image."""
    for i in range(levels):
        (root / str(i)).mkdir()
        for name in "ab":
            (root / str(i) / name).symlink_to(Path("..", str(i + 1)), target_is_directory=True)
    return touch(root, f"{levels}/x.jpg")


@pytest.mark.parametrize("pattern", ["0", "", "0/**", "**/*.jpg"])
def test_a_farm_of_links_takes_no_time(pattern: str, tmp_path: Path) -> None:
    root = farm(tmp_path, 25)
    start = time.perf_counter()
    assert [path.name for path in find_images(root / pattern)] == ["x.jpg"]
    assert time.perf_counter() - start < 5


def test_more_links_than_the_system_follows_are_broken(tmp_path: Path) -> None:
    root = farm(tmp_path, 60)
    passed_over = PassedOver()
    assert list(walk_images(root / "0", passed_over)) == []
    assert passed_over.counts["broken links"]
    assert [path.name for path in find_images(root / "**")] == ["x.jpg"]


IN_DEPTH = """
import os, sys
from vankit.data.images import ImageError, load_image
from vankit.data.walk import find_images
root = sys.argv[1]
os.chdir(root)
open("a.jpg", "w").close()
for level in range(5000):
    os.mkdir("d")
    os.chdir("d")
open("deep.jpg", "w").close()
os.chdir(root)
open("z.jpg", "w").close()
for pattern in (root, root + "/**"):
    first, *others, last = find_images(pattern)
    assert sorted((str(first), str(last))) == [root + "/a.jpg", root + "/z.jpg"], (first, last)
    assert len(others) == 1, len(others)
    try:
        load_image(others[0])
    except ValueError as error:
        print(str(error)[-60:])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux's longest paths")
def test_five_thousand_levels_are_an_error_of_one_image(tmp_path: Path) -> None:
    try:
        answer = subprocess.run(
            [sys.executable, "-c", IN_DEPTH, str(tmp_path)], capture_output=True, text=True, timeout=120
        )
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # Python's own way is recursive
    assert answer.returncode == 0, answer.stderr
    assert [line.rpartition(":")[2] for line in answer.stdout.splitlines()] == [" File name too long"] * 2


@pytest.fixture
def forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three, of which one cannot be listed; root may list all, so the system's answer is made up."""
    root = touch(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    scandir: Callable[..., object] = os.scandir

    def refuse(path: str = ".") -> object:
        if os.fspath(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    return root


@pytest.mark.parametrize("pattern", ["", "*/*.jpg", "**"])
def test_a_folder_that_cannot_be_listed_is_one_error_among_images(pattern: str, forbidden: Path) -> None:
    first, folder, last = find_images(forbidden / pattern)
    assert [first, folder, last] == [forbidden / "a/1.jpg", forbidden / "b", forbidden / "c/3.jpg"]
    with pytest.raises(ImageError, match=r"b is a folder that cannot be listed: Permission denied$"):
        load_image(folder)


def test_readers_of_data_end_at_it_or_count_it(forbidden: Path) -> None:
    with pytest.raises(ReadError, match=r"cannot list .*b: Permission denied; --skip-bad leaves such folders out"):
        list(walk_images(forbidden))
    passed_over = PassedOver()
    assert len(list(walk_images(forbidden, passed_over, skip_bad=True))) == 2
    assert passed_over.counts == {UNLISTED: 1} and passed_over.problems[0][0] == str(forbidden / "b")


def test_a_folder_that_vanishes_is_one_error_among_images(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    found = find_images(root)
    assert next(found) == root / "a/1.jpg"
    (root / "b/2.jpg").unlink()
    (root / "b").rmdir()
    assert list(found) == [root / "b", root / "c/3.jpg"]
    with pytest.raises(MissingFileError, match="no such image file"):
        load_image(root / "b")


def test_links_that_lead_nowhere_or_to_themselves_are_counted(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/1.jpg")
    for name in ("self", "self.jpg"):
        (root / name).symlink_to(name)
    (root / "gone.jpg").symlink_to("nowhere")
    passed_over = PassedOver()
    assert list(walk_images(root, passed_over)) == [str(root / "a/1.jpg")]
    assert passed_over.counts == {"broken links": 3}
    assert list(find_inputs([root / "self.jpg"], root / "out")) == [root / "self.jpg"]
    with pytest.raises(ImageError, match="Too many levels of symbolic links"):
        load_image(root / "self.jpg")


def test_names_that_are_not_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    touch(tmp_path, name, "a.jpg")
    for pattern in ("", "*.jpg", "**"):
        assert list(find_images(tmp_path / pattern)) == [tmp_path / "a.jpg", tmp_path / name]


AS_NOBODY = """
import os, sys
from vankit.data.walk import find_images
from vankit.data.images import load_image
os.setgid(65534)
os.setuid(65534)
for path in find_images(sys.argv[1]):
    try:
        load_image(path)
    except ValueError as error:
        print(str(error).replace(sys.argv[1], "."))
"""


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become someone else")
def test_what_someone_else_may_not_read(tmp_path: Path) -> None:
    root = touch(tmp_path / "photos", "a/1.jpg", "b/2.jpg", "c/3.jpg")
    (root / "d").symlink_to(root / "b" / "inside")
    for path in (*tmp_path.parents[:-1], tmp_path, root, root / "a", root / "c"):
        path.chmod(path.stat().st_mode | 0o055)
    (root / "b").chmod(0o700)
    (root / "c/3.jpg").chmod(0o600)
    answer = subprocess.run([sys.executable, "-c", AS_NOBODY, str(root)], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert lines[0].startswith("./a/1.jpg is empty")
    assert lines[1:] == [
        "./b is a folder that cannot be listed: Permission denied",
        "cannot read ./c/3.jpg: Permission denied",
        "cannot read ./d: Permission denied",
    ]
