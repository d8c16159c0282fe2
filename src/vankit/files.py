"""Files as text, JSON and checksums; and files that vankit writes: whole, or not at all, and by one at a time."""

import errno
import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import uuid4

from vankit.errors import MissingFileError, UserError, WriteError

logger = logging.getLogger(__name__)

_PARTIAL = ".partial"


def read_text(path: str | PathLike[str]) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its bytes are not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MissingFileError(f"no file {path}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 (byte {error.start}): save it in that encoding") from None


def read_json(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, or holds something else.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise MissingFileError(f"no file {path}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is JSON, but not an object: expected {{…}} at its top")
    return content


def sha256_of(path: str | PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """A name to write a file under, which takes the place of `path` when the block ends well.

    It is in the same folder, which is made if need be, and no other process or thread has it. If anything is raised it
    is removed, and `path` stays as it was. A device or a pipe, such as /dev/stdout, is written to directly.

    Raises:
        OSError: the folder cannot be made, or the file cannot take its place.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve()  # a link stays, and what it points to is replaced
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid4().hex}{_PARTIAL}")  # without the old name, which may be as long as names can be
    try:
        yield partial
        with writing(path):
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def clear_partials(folder: str | PathLike[str]) -> None:
    """Remove what `replacing` has left in a folder where its process was killed; no other may be writing there."""
    for path in Path(folder).glob(f".*{_PARTIAL}"):
        path.unlink(missing_ok=True)


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
    path = Path(path).resolve()
    if os.name == "nt" or (path.exists() and not (path.is_file() or path.is_dir())):
        yield
        return
    lock = path / ".lock" if path.is_dir() else path.with_name(f".{_short(path.name)}.lock")
    with writing(path):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(lock, path)
    _OPEN.add(descriptor)
    try:
        yield
    finally:
        _OPEN.discard(descriptor)
        lock.unlink(missing_ok=True)  # before others can have it
        os.close(descriptor)


def _short(name: str) -> str:
    """A name that leaves room for more, and is another one for another name."""
    return name if len(os.fsencode(name)) < 200 else hashlib.sha256(os.fsencode(name)).hexdigest()


def _lock(lock: Path, path: Path) -> int:
    """An open file that no one else has locked."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            _flock(descriptor, path)
            if _is_at(descriptor, lock):  # who held it before may have removed it
                since = datetime.now().astimezone().isoformat(" ", "seconds")
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {since}\n".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(descriptor: int, path: Path) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 1000).decode(errors="replace").strip() or "another process"
        raise UserError(
            f"{path} is being written by {holder}: wait until that has ended, or choose another output"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        logger.warning("%s is on a disk without locks: do not write it twice at the same time", path)


def _is_at(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


_OPEN: set[int] = set()


def _close_all() -> None:
    """A child, such as a process that loads images, would hold the locks beyond its parent's end."""
    while _OPEN:
        os.close(_OPEN.pop())


if hasattr(os, "register_at_fork"):  # where there is fork
    os.register_at_fork(after_in_child=_close_all)


def write_text(path: str | PathLike[str], text: str) -> None:
    """Write a whole text file in UTF-8, see `replacing`."""
    with replacing(path) as partial, writing(path):
        partial.write_text(text, encoding="utf-8")


@contextmanager
def writing(path: str | PathLike[str]) -> Iterator[None]:
    """Name the file in what the system says against writing it, which often names another or none.

    Raises:
        OSError: the block raised one.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from None


def append(path: str | PathLike[str], content: bytes) -> None:
    """Add to a file that exists: everything, or nothing.

    Raises:
        OSError: there is no such file, or it cannot be written to.
    """
    with writing(path), open(path, "r+b", buffering=0) as file:  # "a" would make a file
        end = file.seek(0, os.SEEK_END)
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(end)
            raise


def check_picture(path: str | PathLike[str] | None) -> None:
    """Refuse, before the work is done, a name that matplotlib could not write a picture to.

    Args:
        path: of the picture; None is none.

    Raises:
        ValueError: the suffix is not that of a picture.
    """
    if path is None:
        return
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.filetypes
    if _suffix(path) not in known:
        raise UserError(f"{path} is not the name of a picture: expected one that ends in .{', .'.join(sorted(known))}")


def save_figure(figure: Any, path: str | PathLike[str], **options: Any) -> None:
    """Write a matplotlib figure, see `replacing`; the suffix decides the format.

    Args:
        figure: of matplotlib.
        path: picture to write.
        options: of the figure's `savefig`.

    Raises:
        ValueError: see `check_picture`.
    """
    check_picture(path)
    with replacing(path) as partial:
        figure.savefig(partial, format=_suffix(path), **options)


def _suffix(path: str | PathLike[str]) -> str:
    return Path(path).suffix.lower().removeprefix(".")
