"""An output has one writer at a time, who is named to the others."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vankit.errors import UserError, WriteError
from vankit.locks import check_free, held, in_place


def test_whether_an_output_is_free(tmp_path: Path) -> None:
    for name in ("rows.csv", "new/rows.csv"):
        check_free(tmp_path / name)
    with held(tmp_path / "rows.csv"), pytest.raises(UserError, match="being written by"):
        check_free(tmp_path / "rows.csv")
    with held(tmp_path), pytest.raises(UserError, match="being written by"):
        check_free(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_output_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with held(path):
        expected = rf"rows\.csv is being written by process {os.getpid()} on .+, since 20.+: wait"
        with pytest.raises(UserError, match=expected), held(path):
            pass
        with held(tmp_path / "others.csv"), held(tmp_path):
            pass
        (tmp_path / "link.csv").symlink_to(path)
        with pytest.raises(UserError, match="being written"), held(tmp_path / "link.csv"):
            pass
        (tmp_path / "link.csv").unlink()
    with held(path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left_behind", ["", "process 1 on some machine, since 2020\n"])
def test_a_writer_that_has_not_yet_said_its_name(
    left_behind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It locks the file, which may be that of a killed process, empties it and then writes."""
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / ".rows.csv.lock").open("w+") as file:
        file.write(left_behind)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        steps = iter(
            [lambda: file.truncate(0), lambda: 0, lambda: os.pwrite(file.fileno(), b"process 42 on here\n", 0)]
        )
        monkeypatch.setattr(time, "sleep", lambda _: next(steps)())
        with pytest.raises(UserError, match="being written by process 42 on here: wait"):
            check_free(tmp_path / "rows.csv")


def test_a_held_folder_is_known_from_another_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose number may be that of the first, once that is deleted and closed."""
    monkeypatch.chdir(tmp_path)
    out = Path("run")
    assert not in_place(out)
    for remove in (lambda: shutil.rmtree(out), lambda: out.rename("elsewhere")):
        out.mkdir()
        with held(out):
            assert in_place(out) and in_place(out.absolute())
            remove()
            assert not in_place(out)
            out.mkdir()
            assert not in_place(out)
            (out / ".lock").write_text("of another process")
        assert in_place(out)  # whoever asks, who does not hold it
        assert (out / ".lock").read_text() == "of another process"
        shutil.rmtree(out)


def test_a_held_folder_that_another_machine_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(first: os.stat_result, second: os.stat_result) -> bool:
        raise OSError(errno.ESTALE, "Stale file handle")

    with held(tmp_path), monkeypatch.context() as patch:
        patch.setattr(os.path, "samestat", stale)
        assert not in_place(tmp_path)


def test_folders_made_for_a_lock_are_taken_away_unless_something_was_written(tmp_path: Path) -> None:
    with held(tmp_path / "a" / "b" / "rows.csv"):
        pass
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path / "a" / "b" / "rows.csv"):
        (tmp_path / "a" / "x").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can be two users")
def test_a_lock_left_by_another_user_holds_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    (tmp_path / ".rows.csv.lock").write_text("process 1 on a machine\n")

    def other() -> int:
        os.setuid(65534)
        with held(tmp_path / "rows.csv"):
            return int((tmp_path / ".rows.csv.lock").stat().st_uid)

    child = os.fork()
    if not child:
        os._exit(0 if other() == 65534 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_lock_that_cannot_be_removed_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(WriteError, match="the disk is full"), held(tmp_path / "rows.csv"):
        raise WriteError("the disk is full")
    with held(tmp_path / "rows.csv"):
        pass


def test_the_longest_name_can_be_held(tmp_path: Path) -> None:
    with held(tmp_path / ("é" * 127)), held(tmp_path / ("é" * 126)):
        assert len(list(tmp_path.iterdir())) == 2


def test_a_device_is_not_held() -> None:
    with held("/dev/null"), held("/dev/null"):
        pass


def test_one_of_many_at_once_gets_it(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "rows.csv", [0], [0]

    def write(_: int) -> bool:
        try:
            with held(path):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert any(pool.map(write, range(2000)))
    assert most == [1]
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_holds_nothing_though_its_children_live(tmp_path: Path) -> None:
    program = "import os, sys, time; from vankit.locks import held\nwith held(sys.argv[1]):\n"
    program += "    os.write(1, b'%d\\n' % os.fork())\n    time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program, tmp_path / "x.csv"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = max(int(process.stdout.readline()), int(process.stdout.readline()))
        try:
            with pytest.raises(UserError, match=rf"by process {process.pid} on"), held(tmp_path / "x.csv"):
                pass
            process.kill()
            process.wait()
            with held(tmp_path / "x.csv"):
                assert Path(f"/proc/{child}").exists()
        finally:
            os.kill(child, signal.SIGKILL)
