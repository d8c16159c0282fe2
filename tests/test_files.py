"""Files are written whole or not at all, and read as what they should be."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Barrier, Thread

import pytest
from matplotlib.figure import Figure
from PIL import Image

from vankit.errors import MissingFileError, ReadError, UserError, WriteError
from vankit.files import (
    append,
    check_file,
    check_folder,
    check_picture,
    is_stream,
    open_file,
    read_json,
    read_text,
    reading,
    replacing,
    save_figure,
    sha256_of,
    to_json,
    write_text,
)


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.txt"
    with replacing(path) as partial:
        partial.write_text("new")
        assert partial.parent == path.parent and not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_the_old_file_and_nothing_else(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_threads_do_not_share_a_partial_file(tmp_path: Path) -> None:
    path, meet = tmp_path / "x.txt", Barrier(2, timeout=20)

    def write(text: str) -> None:
        with replacing(path) as partial:
            meet.wait()
            partial.write_text(text)
            meet.wait()
            assert partial.read_text() == text

    texts = ["a" * 10_000, "b" * 10_000]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, texts))
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_links_stay(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "x.txt")
    (tmp_path / "x.txt").write_text("old")
    write_text(tmp_path / "link", "new \N{SNOWMAN}")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "x.txt").read_text(encoding="utf-8") == "new \N{SNOWMAN}"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_pipes_are_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        write_text(tmp_path / "pipe", "through")
        assert read.result(20) == "through"
    assert (tmp_path / "pipe").is_fifo()


def test_names_as_long_as_they_can_be(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250 + ".txt")
    write_text(path, "")
    assert path.is_file()


def test_what_is_added_is_added_whole_or_not_at_all(
    files_up_to: Callable[[int], AbstractContextManager[None]], tmp_path: Path
) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    append(path, b"new\n")
    with files_up_to(10), pytest.raises(WriteError, match=f"cannot write {path}: File too large"):
        append(path, b"too long\n")
    assert path.read_text() == "old\nnew\n"
    with pytest.raises(WriteError, match="cannot write .*missing: No such file"):
        append(tmp_path / "missing", b"x")
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_named(
    files_up_to: Callable[[int], AbstractContextManager[None]], tmp_path: Path
) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with files_up_to(10), pytest.raises(WriteError, match=f"cannot write {path}: File too large") as caught:
        write_text(path, "too long a text")
    assert isinstance(caught.value, OSError) and path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    for under in (path / "y", path / "y" / "z"):
        with pytest.raises(WriteError, match=f"cannot write {under}: Not a directory|File exists"):
            write_text(under, "")


def test_the_suffix_decides_a_figures_format(tmp_path: Path) -> None:
    save_figure(Figure(), tmp_path / "new" / "x.PNG", dpi=20)
    with Image.open(tmp_path / "new" / "x.PNG") as image:
        assert image.format == "PNG"
    save_figure(Figure(), tmp_path / "x.svg")
    assert "<svg" in (tmp_path / "x.svg").read_text()
    check_picture(None)
    for name in ("x", "x.doc", "png"):
        with pytest.raises(UserError, match=f"{name} is not the name of a picture: expected .*[.]jpg, .*[.]svg"):
            save_figure(Figure(), tmp_path / name)


def test_text_is_utf8(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    for codec in ("utf-8", "utf-8-sig"):
        path.write_text("caf\u00e9\nbar\n", encoding=codec)
        assert read_text(path) == "caf\u00e9\nbar\n"
    path.write_bytes("caf\u00e9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"classes[.]txt is not text in UTF-8 \(byte 3\): save it in that encoding"):
        read_text(path)
    with pytest.raises(MissingFileError, match="no file .*missing"):
        read_text(tmp_path / "missing")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_json_is_json(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, null]}')
    assert read_json(path) == {"a": [1, None]}
    path.write_text(text)
    with pytest.raises(UserError, match=r"config[.]json is not JSON: "):
        read_json(path)


def test_json_of_any_size_and_pipes_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(
        UserError, match=r"config[.]json has 1,099,511,627,776 bytes: expected JSON of at most 67,108,864"
    ):
        read_json(path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ReadError, match="pipe is a pipe: expected a file"):
            read_json(tmp_path / "pipe")


def said(error: Exception, *damage: type[Exception]) -> Exception:
    """What `reading` makes of an error."""
    with pytest.raises(type(error) if not damage else Exception) as caught, reading("x/a.bin", *damage):
        raise error
    return caught.value


def test_reading_names_the_file_in_what_is_said_of_it() -> None:
    assert str(said(UserError("mean is 5"))) == "x/a.bin: mean is 5"
    assert str(said(UserError("x/a.bin: mean is 5"))) == "x/a.bin: mean is 5"
    found = said(RuntimeError("bad magic\nand a trace"), RuntimeError)
    assert isinstance(found, UserError)
    assert str(found) == "x/a.bin is damaged, or not what its name says: bad magic"
    assert "KeyError" in str(said(KeyError(), Exception))


@pytest.mark.parametrize(
    "error", [KeyError("ours"), RuntimeError("ours"), MissingFileError("no file b"), WriteError("b")]
)
def test_bugs_and_other_answers_stay_as_they_are(error: Exception) -> None:
    assert said(error) is error


def test_out_of_memory_is_no_damage() -> None:
    error = MemoryError()
    assert said(error, Exception) is error


def test_json_has_no_nan() -> None:
    def fail(name: str) -> None:
        raise AssertionError(name)

    content = {"a": [1.5, float("nan"), (float("inf"), -float("inf"))], "b": {"c": float("nan"), "d": True}, "e": "NaN"}
    found = json.loads(to_json(content), parse_constant=fail)
    assert found == {"a": [1.5, None, [None, None]], "b": {"c": None, "d": True}, "e": "NaN"}
    assert to_json([1, "\u00e9"], indent=None) == '[1, "\\u00e9"]'


def test_what_cannot_be_written_to_is_refused_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.png").write_text("")
    (tmp_path / "folder.png").mkdir()
    for path in (None, tmp_path / "file.png", tmp_path / "new" / "new" / "x.png", "/dev/null"):
        check_file(path)
    for path in (None, tmp_path / "folder.png", tmp_path / "new" / "folder"):
        check_folder(path)
    for check, path, says in (
        (check_file, "folder.png", "folder.png is a folder: pass the name of a file"),
        (check_picture, "folder.png", "folder.png is a folder: pass the name of a file"),
        (check_file, "file.png/x", "cannot write .*file.png/x: Not a directory"),
        (check_file, "x" * 300, "File name too long"),
        (check_folder, "file.png", "file.png is a file: pass a folder"),
        (check_folder, "file.png/x", "cannot write .*file.png/x: Not a directory"),
    ):
        with pytest.raises(UserError, match=says):
            check(tmp_path / path)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path.resolve())  # root may write everywhere
    for check, path in ((check_file, "x"), (check_file, "file.png"), (check_folder, "new/x"), (check_picture, "x.png")):
        with pytest.raises(WriteError, match=f"cannot write into {tmp_path.resolve()}, which this user may not"):
            check(tmp_path / path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.png", "folder.png"]


def soon(work: Callable[[], object]) -> object:
    """What is raised; a pipe that is opened waits for its other end."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it waits"
    return raised[0]


@pytest.mark.parametrize("read", [open_file, read_text, read_json, sha256_of])
def test_only_files_are_read(read: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to("pipe")
    for path, kind in (
        (tmp_path / "pipe", "a pipe"), (tmp_path / "link", "a pipe"), (tmp_path / "socket", "a socket"),
        (Path("/dev/zero"), "a device"), (tmp_path, "a folder"),
    ):  # fmt: skip
        error = soon(lambda path=path: read(path))
        assert isinstance(error, ReadError) and str(error) == f"{path} is {kind}: expected a file"
    (tmp_path / "file").touch()
    for path in (tmp_path / "nothing", tmp_path / "file" / "inside", Path("a\0b")):
        assert isinstance(soon(lambda path=path: read(path)), MissingFileError)


def test_a_file_of_standard_input_is_read_and_a_pipe_is_not(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("content")
    command = [sys.executable, "-c", "from vankit.files import read_text; print(read_text('/dev/stdin'))"]
    with (tmp_path / "x.txt").open() as file:
        assert subprocess.run(command, stdin=file, capture_output=True, text=True, timeout=60).stdout == "content\n"
    answer = subprocess.run(command, input="content", capture_output=True, text=True, timeout=60)
    assert "ReadError: /dev/stdin is a pipe: expected a file" in answer.stderr


def test_a_pipe_that_takes_the_files_place_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.touch()
    known = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr("vankit.files.os.stat", lambda _: known)
    assert str(soon(lambda: open_file(path))).endswith("x is a pipe: expected a file")


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="no /dev")
def test_the_standard_output_is_a_stream_though_it_is_led_into_a_file(tmp_path: Path) -> None:
    ask = "from vankit.files import is_stream; import sys; sys.exit(not is_stream('/dev/stdout'))"
    with (tmp_path / "x").open("wb") as file:
        subprocess.run([sys.executable, "-c", ask], stdout=file, check=True)
    assert not is_stream(tmp_path / "x")
