"""Compiled models, and what is known of networks, on disk, so that the next start need not find it out again."""

import hashlib
import hmac
import logging
import os
import platform
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from vankit.errors import UserError

T = TypeVar("T")

logger = logging.getLogger(__name__)

_LARGEST = 8 * 2**30  # bytes of all files: several of the largest networks


def cache_folder() -> Path:
    """Where they are kept: VANKIT_CACHE, or `vankit` in the user's cache folder. It may be deleted."""
    if named := os.environ.get("VANKIT_CACHE"):
        return Path(named)
    from platformdirs import user_cache_path

    return user_cache_path("vankit", appauthor=False)


def cached(key: bytes, parts: tuple[str, ...], load: Callable[[bytes], T], make: Callable[[], tuple[T, bytes]]) -> T:
    """What `load` makes of the cached bytes, or what `make` makes, whose bytes are cached; see `keep`.

    Bytes that do not load are made anew.
    """
    names = (key, *(part.encode() for part in parts))
    if (content := recall(*names)) is not None:
        try:
            return load(content)
        except Exception as error:  # engines raise whatever they trip over
            logger.warning("%s cannot be used and will be rebuilt: %s", _place(names)[0], error)
    made, content = make()
    keep(content, *names)
    return made


def recall(*names: bytes) -> bytes | None:
    """What `keep` has put under these names; None if there is nothing, or it is damaged."""
    try:
        path, secret = _place(names)
    except (UserError, OSError) as error:
        _say_not_kept(error)
        return None
    try:
        stored = memoryview(_read(path))
        if hmac.compare_digest(_sign(secret, path.name.encode(), stored[32:]), stored[:32]):
            with suppress(OSError):
                os.utime(path)  # those not used for longest go first
            return bytes(stored[32:])
        logger.warning("%s is damaged and will be rebuilt", path)
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("%s cannot be used and will be rebuilt: %s", path, error)
    return None


def is_kept(*names: bytes) -> bool:
    """Whether something is under these names, which then counts as used now."""
    try:
        path, _ = _place(names)
    except (UserError, OSError):
        return False
    with suppress(OSError):
        os.utime(path)
    return path.is_file()


def keep(content: bytes, *names: bytes) -> None:
    """Put bytes on disk under names, whole or not at all, in place of what was there; where that fails it is said.

    A file is named and signed with the user's secret, so that nothing is recalled that somebody else put there. Nothing
    is kept where others may write. If all would be more than 8 GiB, what was not used for longest is removed.
    """
    try:
        path, secret = _place(names)
        _make_room(path.parent, len(content))
        _write(path, _sign(secret, path.name.encode(), content) + content)
    except (UserError, OSError) as error:
        _say_not_kept(error)


def _place(names: tuple[bytes, ...]) -> tuple[Path, bytes]:
    """The file of these names, and the secret that signs it."""
    folder, secret = _own_folder(), user_secret()
    return folder / _sign(secret, *names).hex(), secret


def _make_room(folder: Path, size: int) -> None:
    """Remove the files that, from the last used one on, go beyond the limit together with so many bytes."""
    found = []
    for entry in os.scandir(folder):
        with suppress(OSError):  # another process was first
            found.append((entry.stat(follow_symlinks=False), entry.path))
    for status, path in sorted(found, key=lambda each: -each[0].st_mtime_ns):
        size += status.st_size
        if size > _LARGEST:
            with suppress(OSError):  # another process was first, or it is a folder
                os.unlink(path)


def _sign(secret: bytes, *parts: bytes | memoryview) -> bytes:
    signature = hmac.new(secret, digestmod="sha256")
    for part in parts:
        signature.update(len(part).to_bytes(8, "big"))
        signature.update(part)
    return signature.digest()


def _say_not_kept(error: Exception) -> None:
    _say(f"cannot keep the compiled model for the next start: {error}")


@cache
def _say(message: str) -> None:
    """Once, for a predictor may compile twice."""
    logger.warning("%s", message)


def _own_folder() -> Path:
    """The folder of compiled models, in which nobody but the user and root can write.

    Raises:
        ValueError: others can.
        OSError: it cannot be made.
    """
    folder = cache_folder()
    for path in (folder, folder / "engines"):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.name == "nt":
            continue
        found = path.stat()
        if found.st_uid not in (os.geteuid(), 0):
            raise UserError(f"{path} belongs to another user: let VANKIT_CACHE name a folder of your own")
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            _keep_others_out(path, found.st_mode)
    return folder / "engines"


def _keep_others_out(path: Path, mode: int) -> None:
    if os.environ.get("VANKIT_CACHE"):  # others may have been given it
        raise UserError(f"others may write to {path}: chmod go-w {path}, or let VANKIT_CACHE name a folder of your own")
    path.chmod(stat.S_IMODE(mode) & ~0o022)  # vankit's own, which version 0.1 left to the umask


def user_secret() -> bytes:
    """32 bytes that only this user can read, made now if there are none that are sound.

    Raises:
        OSError: they cannot be kept.
    """
    from platformdirs import user_data_path

    path = user_data_path("vankit", appauthor=False) / "cache.key"
    return _read_secret(path) or _make_secret(path)


def _read_secret(path: Path) -> bytes | None:
    try:
        found, content = path.lstat(), _read(path)
    except OSError:
        return None
    private = os.name == "nt" or (found.st_uid == os.geteuid() and not found.st_mode & 0o077)
    return content if private and len(content) == 32 else None


def _make_secret(path: Path) -> bytes:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret = os.urandom(32)
    partial = _partial(path, secret)
    try:
        os.link(partial, path)  # of processes that do this at once, the first wins
    except OSError:  # there is one, or the disk has no hard links
        if found := _read_secret(path):
            return found
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return secret


def _read(path: Path) -> bytes:
    """The content of a regular file; a pipe would be waited for, and a link may lead anywhere."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise OSError("it is not a regular file")
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # it may be replaced meanwhile
    with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags)) as file:
        return file.read()


def _write(path: Path, content: bytes) -> None:
    """Put a whole file in place of whatever is there, a link or a pipe too."""
    partial = _partial(path, content)
    try:
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path, content: bytes) -> Path:
    """A file beside another that only the user can read."""
    partial = path.with_name(f".{uuid4().hex}.partial")
    try:
        with open(partial, "xb", opener=lambda name, mode: os.open(name, mode, 0o600)) as file:
            file.write(content)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return partial


@cache
def cpu() -> tuple[str, ...]:
    """What tells this CPU from others as far as compiled code goes."""
    flags = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        flags += next((line for line in lines if line.startswith("model name")), "")
    return platform.machine(), platform.processor(), platform.system(), flags


def versions(*packages: str) -> dict[str, str]:
    """Versions by package, of those that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def source_code(*patterns: str) -> bytes:
    """SHA-256 of those of vankit's own modules that match the patterns, for what they have computed."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in package.glob(pattern)}):
        digest.update(path.read_bytes())
    return digest.digest()
