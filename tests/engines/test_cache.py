"""A cache that is loaded from only where the user alone has written."""

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vankit.engines.cache import cached, user_secret

pytestmark = pytest.mark.skipif(os.name == "nt", reason="folders have other permissions there")
asroot = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, not made yet; the user's own data are beside it."""
    monkeypatch.setenv("VANKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "own"))
    return tmp_path / "cache"


def get(made: str = "made", key: bytes = b"key") -> str:
    """What is cached under a key, or `made`."""
    return cached(key, ("part",), bytes.decode, lambda: (made, made.encode()))


def kept(folder: Path) -> Path:
    [path] = (folder / "engines").iterdir()
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_made_is_the_users_alone(folder: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert get("made") == "made" and get("other") == "made"
    finally:
        os.umask(before)
    assert [mode(path) for path in (folder, folder / "engines", tmp_path / "own" / "vankit")] == [0o700] * 3
    assert [mode(path) for path in (kept(folder), tmp_path / "own" / "vankit" / "cache.key")] == [0o600] * 2


def test_what_another_signed_is_made_anew(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    get()
    kept(folder).write_bytes(hashlib.sha256(b"evil").digest() + b"evil")  # as version 0.1 told damage
    assert get("again") == "again" and "is damaged and will be rebuilt" in caplog.text
    first = kept(folder)
    get("another model", b"another key")
    [other] = {*first.parent.iterdir()} - {first}
    other.write_bytes(first.read_bytes())  # signed, but under another name
    assert get("anew", b"another key") == "anew"


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("permissions", [0o777, 0o775, 0o757])
def test_a_folder_that_others_may_write(
    inner: bool, permissions: int, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    get("old")
    open_to_all = folder / "engines" if inner else folder
    open_to_all.chmod(permissions)
    assert [get("new"), get("newer")] == ["new", "newer"]
    [record] = caplog.records
    assert record.message == (
        f"cannot keep the compiled model for the next start: others may write to {open_to_all}: "
        f"chmod go-w {open_to_all}, or let VANKIT_CACHE name a folder of your own"
    )
    open_to_all.chmod(0o755)
    assert get("newest") == "old"


def test_a_folder_where_nobody_removes_what_is_anothers(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o1777)  # as /tmp
    assert get("made") == "made" and get("other") == "made"


def test_vankits_own_folder_is_closed_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("VANKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own = tmp_path / "vankit"
    own.mkdir()
    own.chmod(0o775)  # as version 0.1 made it under a umask of 002
    assert get("made") == "made" and get("other") == "made"
    assert mode(own) == 0o755 and not caplog.records


@asroot
@pytest.mark.parametrize("inner", [False, True])
def test_a_folder_of_another_user(inner: bool, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    get("old")
    theirs = folder / "engines" if inner else folder
    os.chown(theirs, 12345, 12345)
    assert get("new") == "new"
    assert f"{theirs} belongs to another user: let VANKIT_CACHE name a folder of your own" in caplog.text


@pytest.mark.parametrize("change", ["lost", "others may read it", "cut", "a link", "a pipe"])
def test_without_a_sound_secret_the_cache_is_made_anew(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    get("old")
    path = tmp_path / "own" / "vankit" / "cache.key"
    before = path.read_bytes()
    if change == "others may read it":
        path.chmod(0o644)
    elif change == "cut":
        path.write_bytes(before[:31])
    else:
        path.rename(tmp_path / "moved")
        if change == "a link":
            path.symlink_to(tmp_path / "moved")
        elif change == "a pipe":
            os.mkfifo(path)
    assert get("new") == "new" and get("newer") == "new"
    assert len(path.read_bytes()) == 32 and path.read_bytes() != before and mode(path) == 0o600
    assert not path.is_symlink() and not caplog.records
    assert {each.name for each in path.parent.iterdir()} == {"cache.key"}


@asroot
def test_a_secret_of_another_user(tmp_path: Path) -> None:
    path = tmp_path / "own" / "vankit" / "cache.key"
    planted = user_secret()
    os.chown(path, 12345, 12345)
    assert user_secret() != planted and path.stat().st_uid == 0


def test_a_secret_that_cannot_be_kept(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "own").write_text("in the way")
    assert [get("made"), get("other")] == ["made", "other"]
    assert len(caplog.records) == 1 and "cannot keep the compiled model" in caplog.text
    assert list((folder / "engines").iterdir()) == []


def test_processes_at_once_have_one_secret(tmp_path: Path) -> None:
    code = "import sys; from vankit.engines.cache import user_secret; sys.stdin.readline(); print(user_secret().hex())"
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    secrets = {run.communicate(timeout=60)[0].strip() for run in runs}
    assert secrets == {(tmp_path / "own" / "vankit" / "cache.key").read_bytes().hex()}


@pytest.mark.parametrize("links", [True, False])
def test_the_first_of_two_secrets_stays(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other is made while this one is, which a test of whole processes seldom meets."""
    path = tmp_path / "own" / "vankit" / "cache.key"
    others: list[bytes] = []

    def late(partial: object, name: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", link)
            others.append(user_secret())
        if not links:
            raise PermissionError("no hard links on this disk")
        link(partial, name)

    link = os.link
    monkeypatch.setattr(os, "link", late)
    assert [user_secret()] == others == [path.read_bytes()]


def pipe(path: Path, _elsewhere: Path) -> None:
    os.mkfifo(path)


def link(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere)


def link_to_nothing(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere.with_name("nothing"))


@pytest.mark.parametrize("place", [pipe, link, link_to_nothing])
def test_a_pipe_or_a_link_in_the_place_of_a_file(
    place: Callable[[Path, Path], None], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    get("old")
    path = kept(folder)
    elsewhere = path.rename(tmp_path / "elsewhere")
    before = elsewhere.read_bytes()
    place(path, elsewhere)
    assert get("new") == "new" and f"{path} cannot be used and will be rebuilt: it is not a regular file" in caplog.text
    assert elsewhere.read_bytes() == before and not (tmp_path / "nothing").exists()
    assert not path.is_symlink() and get("newer") == "new"


def test_what_was_not_used_for_longest_makes_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vankit.engines.cache._LARGEST", 3 * (32 + 10))
    for day, key in enumerate((b"a", b"b", b"c")):
        get(f"made by {key.decode()}.", key)
        newest = max((folder / "engines").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (86400 * day, 86400 * day))
    assert get("used again", b"a") == "made by a."
    get("made by d.", b"d")
    assert len(list((folder / "engines").iterdir())) == 3
    assert [get("made anew.", key) for key in (b"a", b"c", b"d")] == ["made by a.", "made by c.", "made by d."]
    assert get("made anew.", b"b") == "made anew."
