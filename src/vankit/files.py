"""Files as text, JSON and checksums; and files that vankit writes: whole, or not at all."""

import hashlib
import io
import json
import logging
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import uuid4

from vankit.errors import MissingFileError, ReadError, UserError, WriteError, out_of_memory

logger = logging.getLogger(__name__)

_PARTIAL = ".partial"


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_AT_ONCE = getattr(os, "O_NONBLOCK", 0)  # else opening a pipe waits for one who writes into it


def open_file(path: str | PathLike[str]) -> io.BufferedReader:
    """Open a file to read its bytes. Only a file: a pipe may be waited for without end, and a device may have no end.

    Raises:
        FileNotFoundError: there is none.
        ReadError: it is a folder, a pipe, a socket or a device, or cannot be read.
    """
    try:
        _check_file(path, os.stat(path))  # some devices take it for a command when they are opened
        file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115  the caller closes it
    except ReadError:
        raise
    except (FileNotFoundError, NotADirectoryError, ValueError):  # of a name that no file can have
        raise MissingFileError(f"no file {path}") from None
    except OSError as error:
        raise ReadError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        _check_file(path, os.fstat(file.fileno()))
    except ReadError:
        file.close()
        raise
    return file


def _open_at_once(name: str, flags: int) -> int:
    return os.open(name, flags | _AT_ONCE)


def _check_file(path: str | PathLike[str], status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise ReadError(f"{path} is {kind}: expected a file")


_LARGEST_JSON = 2**26  # bytes; in memory they are some twenty times as many


@contextmanager
def reading(path: str | PathLike[str], *damage: type[Exception]) -> Iterator[None]:
    """Name a file that was given from outside in what is said against it.

    Args:
        path: the file or folder.
        damage: what a library raises that is called with nothing but the file, and so means that the file is damaged;
            of other code it would hide bugs.

    Raises:
        ValueError: the block raised one for the user, or one of `damage`.
    """
    try:
        yield
    except UserError as error:
        if type(error) is not UserError or str(error).startswith(str(path)):
            raise
        raise UserError(f"{path}: {error}") from None
    except damage as error:
        if out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} is damaged, or not what its name says: {reason[:300]}") from error


def read_text(path: str | PathLike[str]) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a file, see `open_file`, or its bytes are not UTF-8.
    """
    try:
        with open_file(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig") as text:
            return text.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 (byte {error.start}): save it in that encoding") from None


def read_json(path: str | PathLike[str], largest: float = _LARGEST_JSON) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: of the file.
        largest: bytes that it may have; annotations may have any number, what describes a network needs few.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a file, see `open_file`, or not JSON, or holds something else, or is larger.
    """
    with open_file(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > largest:
            raise UserError(f"{path} has {size:,} bytes: expected JSON of at most {largest:,}")
        data = file.read()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is JSON, but not an object: expected {{…}} at its top")
    return content


def sha256_of(path: str | PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hexadecimal; errors see `open_file`."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: str | PathLike[str], make_folder: bool = True) -> Iterator[Path]:
    """A name to write a file under, which takes the place of `path` when the block ends well.

    It is in the same folder, and no other process or thread has it. If anything is raised it is removed, and `path`
    stays as it was. A device or a pipe, such as /dev/stdout, is written to directly.

    Args:
        path: of the file.
        make_folder: make its folder if need be; else that has to be there.

    Raises:
        OSError: the folder cannot be made, or the file cannot take its place.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve()  # a link stays, and what it points to is replaced
    if make_folder:
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
    for path in Path(folder).glob(f".{'[0-9a-f]' * 32}{_PARTIAL}"):
        path.unlink(missing_ok=True)


def write_text(path: str | PathLike[str], text: str) -> None:
    """Write a whole text file in UTF-8, see `replacing`."""
    with replacing(path) as partial, writing(path):
        partial.write_text(text, encoding="utf-8", newline="\n")


def to_json(content: Any, indent: int | None = 2) -> str:
    """JSON that every reader takes: numbers that are NaN or infinite, for which it has no words, become null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def writing(path: str | PathLike[str]) -> Iterator[None]:
    """Name the file in what the system says against writing it, which often names another or none.

    Raises:
        OSError: the block raised one.
    """
    try:
        yield
    except OSError as error:
        refused = WriteError(f"cannot write {path}: {error.strerror or error}")
        refused.errno = error.errno
        raise refused from None


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


def check_named(**paths: object) -> None:
    """Refuse an empty name, as of an unset variable; pathlib would take it for the current folder.

    Args:
        paths: by the names of the caller's parameters; what is not text passes.

    Raises:
        ValueError: one is empty.
    """
    for name, path in paths.items():
        if isinstance(path, str) and not path:
            raise UserError(f"{name} is empty: expected a name")


def check_file(path: str | PathLike[str] | None) -> None:
    """Refuse, before the work is done, what no file could be written to.

    Args:
        path: of the file, which need not exist; None is none.

    Raises:
        ValueError: it is a folder, or (an OSError too) in one that cannot be written to.
    """
    if path is None:
        return
    check_named(output=path)
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        raise UserError(f"{path} is a folder: pass the name of a file to write")
    if not mode or stat.S_ISREG(mode):  # else a device or a pipe
        _check_writable(Path(path).resolve().parent)


def is_stream(path: str | PathLike[str]) -> bool:
    """Whether it is a device or a pipe, such as /dev/stdout, of which the name says nothing."""
    if os.path.abspath(path).startswith(("/dev/", "/proc/")):  # which a shell may lead into a file
        return True
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def check_folder(path: str | PathLike[str] | None) -> None:
    """Refuse, before the work is done, what could not be a folder to write into.

    Args:
        path: of the folder, which need not exist; None is none.

    Raises:
        ValueError: it is a file, or (an OSError too) it cannot be made or written to.
    """
    if path is None:
        return
    check_named(output=path)
    mode = _mode(path)
    if mode and not stat.S_ISDIR(mode):
        raise UserError(f"{path} is a file: pass a folder to write into")
    _check_writable(Path(path).resolve())


def _mode(path: str | PathLike[str]) -> int:
    """What is there, 0 if nothing."""
    with writing(path), suppress(FileNotFoundError):
        return os.stat(path).st_mode
    return 0


def _check_writable(folder: Path) -> None:
    present = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(present, os.W_OK | os.X_OK):
        raise WriteError(f"cannot write into {present}, which this user may not: choose another output")


def check_picture(path: str | PathLike[str] | None) -> None:
    """Refuse, before the work is done, a name that matplotlib could not write a picture to.

    Args:
        path: of the picture; None is none.

    Raises:
        ValueError: the suffix is not that of a picture, or see `check_file`.
    """
    if path is None:
        return
    check_named(picture=path)
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.filetypes
    if _suffix(path) not in known:
        raise UserError(f"{path} is not the name of a picture: expected one that ends in .{', .'.join(sorted(known))}")
    check_file(path)


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
