"""Compiled models on disk, so that the next start need not compile."""

import hashlib
import logging
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from vankit.errors import ReadError
from vankit.files import open_file, replacing

T = TypeVar("T")

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where compiled models are kept: VANKIT_CACHE, or `vankit` in the user's cache folder. It may be deleted."""
    if named := os.environ.get("VANKIT_CACHE"):
        return Path(named)
    from platformdirs import user_cache_path

    return user_cache_path("vankit", appauthor=False)


def cached(key: bytes, parts: tuple[str, ...], load: Callable[[bytes], T], make: Callable[[], tuple[T, bytes]]) -> T:
    """What `load` makes of the cached bytes, or what `make` makes, whose bytes are cached.

    A file holds its sha256 and the bytes; one that does not match, or does not load, is made anew.
    """
    digest = hashlib.sha256(b"\0".join([key, *(part.encode() for part in parts)])).hexdigest()
    path = cache_folder() / "engines" / digest
    try:
        with open_file(path) as file:
            stored = memoryview(file.read())
        if hashlib.sha256(stored[32:]).digest() == stored[:32]:
            return load(bytes(stored[32:]))
        logger.warning("%s is damaged and will be rebuilt", path)
    except FileNotFoundError:
        pass
    except ReadError as error:  # nor can it be written there
        logger.warning("the compiled model cannot be kept for the next start: %s", error)
        return make()[0]
    except Exception as error:  # engines raise whatever they trip over
        logger.warning("%s cannot be used and will be rebuilt: %s", path, error)
    made, blob = make()
    try:
        with replacing(path) as partial:
            partial.write_bytes(hashlib.sha256(blob).digest() + blob)
    except OSError as error:
        logger.warning("cannot keep the compiled model for the next start: %s", error)
    return made


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
