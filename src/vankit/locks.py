"""One writer at a time for an output: the second is told who the first one is."""

import errno
import hashlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from os import PathLike
from pathlib import Path

from vankit.errors import UserError
from vankit.files import writing

logger = logging.getLogger(__name__)


@contextmanager
def held(path: str | PathLike[str]) -> Iterator[None]:
    """Keep others from writing the same output: processes, on this machine or on a shared disk, and threads.

    A hidden file, beside an output file or in an output folder, is locked meanwhile and says by whom. The system frees
    it with the process, also after kill -9. A device or a pipe, such as /dev/stdout, is not locked; nothing is on
    Windows.

    Args:
        path: output file, which need not exist, or folder, which must.

    Raises:
        ValueError: someone else holds it; the message says who.
        OSError: the lock cannot be written.
    """
    path = Path(path)
    if os.name == "nt" or (path.exists() and not (path.is_file() or path.is_dir())):
        yield
        return
    given, path = path.absolute(), path.resolve()
    lock = path / ".lock" if path.is_dir() else path.with_name(f".{_short(path.name)}.lock")
    with making(lock.parent):
        with writing(path):
            descriptor = _lock(lock, path)
        _OPEN.add(descriptor)
        owner = os.getpid()
        try:
            with _watched(given) if path.is_dir() else nullcontext():
                yield
        finally:
            if os.getpid() == owner:  # a child that leaves the block has nothing to give back
                _OPEN.discard(descriptor)
                with suppress(OSError):  # the folder may only be read by now
                    if _is_at(descriptor, lock):  # else it is of who holds what took the place of the folder
                        lock.unlink()  # before others can have it
                os.close(descriptor)


@contextmanager
def making(folder: str | PathLike[str]) -> Iterator[None]:
    """Make a folder, and take it away again, with the parents that were made for it, if nothing was written to it.

    Raises:
        OSError: it cannot be made.
    """
    folder = Path(folder)
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # it is not empty
            for each in missing:
                each.rmdir()


@contextmanager
def _watched(folder: Path) -> Iterator[None]:
    """Keep a folder open, so that none that takes its place gets its number, by which `in_place` knows it."""
    with writing(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    _OPEN.add(descriptor)
    _FOLDERS[folder] = descriptor
    owner = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == owner:
            _FOLDERS.pop(folder, None)
            _OPEN.discard(descriptor)
            os.close(descriptor)


def in_place(folder: str | PathLike[str]) -> bool:
    """Whether a folder is there and, if this process holds it, is still the same one."""
    folder = Path(folder).absolute()
    descriptor = _FOLDERS.get(folder)
    return folder.is_dir() if descriptor is None else _is_at(descriptor, folder)


def _short(name: str) -> str:
    """A name that leaves room for more, and is another one for another name."""
    return name if len(os.fsencode(name)) < 200 else hashlib.sha256(os.fsencode(name)).hexdigest()


def _lock(lock: Path, path: Path) -> int:
    """An open file that no one else has locked."""
    while True:
        descriptor, ours = _open_lock(lock)
        try:
            _flock(descriptor, path)
            if not ours:  # left behind by another user's process
                lock.unlink(missing_ok=True)
            elif _is_at(descriptor, lock):  # who held it before may have removed it
                since = datetime.now().astimezone().isoformat(" ", "seconds")
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {since}\n".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open_lock(lock: Path) -> tuple[int, bool]:
    """A lock file, and whether this user may write to it."""
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), True
    except PermissionError:
        return os.open(lock, os.O_RDONLY | os.O_NOFOLLOW), False


def _flock(descriptor: int, path: Path) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{path} is being written by {_holder(descriptor)}: wait until that has ended, or choose another output"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        logger.warning("%s is on a disk without locks: do not write it twice at the same time", path)


def _holder(descriptor: int) -> str:
    """Who has locked a file: most likely, for it writes its name only then, perhaps over that of a killed process."""
    for _ in range(20):
        time.sleep(0.05)
        if name := os.pread(descriptor, 1000, 0).decode(errors="replace").strip():
            return name
    return "another process"


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError as error:
        if error.errno not in _GONE:
            raise
    return False


_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_OPEN: set[int] = set()
_FOLDERS: dict[Path, int] = {}


def _close_all() -> None:
    """A child, such as a process that loads images, would hold the locks beyond its parent's end."""
    _FOLDERS.clear()
    while _OPEN:
        os.close(_OPEN.pop())


if hasattr(os, "register_at_fork"):  # where there is fork
    os.register_at_fork(after_in_child=_close_all)


def check_free(path: str | PathLike[str]) -> None:
    """Refuse, before the work is done, an output that someone else is writing, see `held`.

    Raises:
        ValueError: someone else holds it.
    """
    if Path(path).parent.is_dir():
        with held(path):
            pass
