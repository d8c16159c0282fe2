"""What a start has found out about a network, kept so that the next one knows it without PyTorch.

An entry holds what a network is, what was said of it as it was opened, and the key of what was compiled of it. It is
found by what was asked for, vankit's code and the versions of the libraries, and counts only while every file that the
network came from is still the same: the checkpoint and the JSON files beside it, or what a model's name leads to.

A file is the same if its bytes are, by their SHA-256. They need not be read again while device, inode, size, time of
modification and time of change are what they were. No program can set the last one, so other bytes of the same size and
time of modification are seen too, unless they were written through a memory map that was open already. This is relied
on where it is certain: on Linux, on file systems that are known to keep the time of each change, and if both times are
two seconds old by then, since a clock has ticks. Elsewhere every start reads the files.
"""

import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vankit.engines.cache import keep, recall, source_code, versions
from vankit.errors import MissingFileError, ReadError, UserError
from vankit.files import sha256_of, to_json
from vankit.models.description import Description
from vankit.models.locate import BESIDE, file_in

if TYPE_CHECKING:
    from torch import nn

_SETTLED = 2 * 10**9  # nanoseconds
_KEEP_TIMES = ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs")
# what a network depends on besides: how it computes, and where the files are that a name leads to
_ENVIRONMENT = ("VANKIT_BACKEND", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "TORCH_HOME")
_LIBRARIES = (
    "vankit", "torch", "timm", "torchvision", "transformers", "safetensors", "openvino", "onnx", "onnxscript"
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A file that a network comes from.

    Attributes:
        path: absolute.
        sha256: of its content; or a word for why that cannot be read.
        stamp: what was as telling as the content; None if nothing was.
    """

    path: str
    sha256: str
    stamp: Sequence[int] | None = None

    @classmethod
    def at(cls, path: Path) -> "Source":
        """As it is now."""
        stamp = _stamp(path)
        return cls(str(path), _sha256(path), stamp)

    def checked(self) -> "Source | None":
        """The same with the stamp that it has now; None if the file is another one."""
        stamp = _stamp(Path(self.path))
        if stamp is not None and stamp == self.stamp:
            return self
        return replace(self, stamp=stamp) if _sha256(Path(self.path)) == self.sha256 else None


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except MissingFileError:
        return "missing"
    except ReadError:  # what is beside a checkpoint is then passed over
        return "unreadable"


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    times = [status.st_mtime_ns, status.st_ctime_ns]
    if time.time_ns() - max(times) < _SETTLED or _file_system(path) not in _KEEP_TIMES:
        return None
    return [status.st_dev, status.st_ino, status.st_size, *times]


def _file_system(path: Path) -> str:
    """Its type, as Linux calls it; empty if unknown."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    types = {}
    for line in mounts:
        place, _, rest = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), place.split(" ")[4])  # as of a space
        types[Path(point)] = rest.partition(" ")[0]  # of two at one place the later one is seen
    real = Path(os.path.realpath(path))
    return next((types[each] for each in (real, *real.parents) if each in types), "")


class Remembered:
    """A network of which an entry says what there is to know.

    Attributes:
        description: of the network.
        key: of what was compiled of it, see `vankit.deploy.opening.Network.key`.
        class_maps: see `vankit.models.class_maps.has_class_maps`.
    """

    def __init__(
        self,
        description: Description,
        key: bytes,
        class_maps: bool,
        sources: Sequence[Source],
        open: "Callable[[], nn.Module]",
    ) -> None:
        self.description, self.key, self.class_maps = description, key, class_maps
        self._sources, self._open = sources, open

    @cached_property
    def module(self) -> "nn.Module":
        """The network itself, in eval mode, opened when it is first asked for.

        Raises:
            ValueError: its file is another one by now.
        """
        for source in self._sources:
            if source.checked() is None:
                raise UserError(f"{source.path} was changed after the network was opened: open it again")
        return self._open()

    @property
    def is_open(self) -> bool:
        """Whether the network has been asked for, and so may have been changed."""
        return "module" in vars(self)


class Entry:
    """The place of what is remembered of a network.

    Args:
        model, checkpoint, classes, weights: see `vankit.deploy.opening.open_network`.

    Raises:
        FileNotFoundError, ValueError: there is no such checkpoint.
    """

    def __init__(
        self,
        model: str | None,
        checkpoint: str | PathLike[str] | None,
        classes: Sequence[str] | None,
        weights: str | None,
    ) -> None:
        self._files: list[Path] = []
        if checkpoint is not None:
            file = Path(os.path.abspath(file_in(Path(checkpoint))))
            self._files = [file, *(file.with_name(name) for name in BESIDE)]
        asked = [
            model,
            checkpoint and os.fspath(checkpoint),
            list(map(str, self._files)),
            classes and list(classes),
            weights,
        ]
        about = asked, [os.environ.get(name) for name in _ENVIRONMENT], versions(*_LIBRARIES), source_code("**/*.py")
        self._names = b"network", hashlib.sha256(repr(about).encode("utf-8", "surrogateescape")).digest()
        self._before: list[Source] = []
        self._said: list[tuple[str, int, str]] = []

    @property
    def of_file(self) -> bool:
        """Whether it is of a checkpoint, rather than of a model's name."""
        return bool(self._files)

    def read(self, open: "Callable[[], nn.Module]") -> Remembered | None:
        """What is remembered, if it still holds; what was said then is said again.

        Args:
            open: opens the network.
        """
        if (content := recall(*self._names)) is None:
            return None
        found = json.loads(content)
        stored = [Source(**each) for each in found["sources"]]
        sources = [now for each in stored if (now := each.checked())]
        if len(sources) < len(stored):
            return None
        if sources != stored:
            self._keep({**found, "sources": list(map(asdict, sources))})
        for name, level, message in found["said"]:
            logging.getLogger(name).log(level, "%s", message)
        description = Description.from_metadata(found["description"], Description())
        return Remembered(description, bytes.fromhex(found["key"]), found["class_maps"], sources, open)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """To be entered to open the network: notes what is said, and what its files were before."""
        self._before = [Source.at(path) for path in self._files]
        listener, root = _Listener(self._said), logging.getLogger("vankit")
        root.addHandler(listener)
        try:
            yield
        finally:
            root.removeHandler(listener)

    def write(self, description: Description, key: bytes, class_maps: bool, files: Sequence[Path] = ()) -> None:
        """Remember a network that was opened, unless its checkpoint has changed meanwhile.

        Args:
            description, key, class_maps: see `Remembered`.
            files: those that a model's name has led to, which are known only now: they are taken as they are.
        """
        sources = [now for each in self._before if (now := each.checked())] + [Source.at(path) for path in files]
        unsaid = not logging.getLogger("vankit").isEnabledFor(logging.WARNING)  # perhaps only now
        if unsaid or not sources or len(sources) < len(self._before) + len(files):
            return
        said = {"named": description.named, "classes": list(description.classes)}
        self._keep(
            {
                "sources": list(map(asdict, sources)),
                "said": self._said,
                "description": {**description.to_metadata(), **said},
                "key": key.hex(),
                "class_maps": class_maps,
            }
        )

    def _keep(self, found: dict[str, Any]) -> None:
        keep(to_json(found, indent=None).encode(), *self._names)


_EVENTS = ("vankit.models.hub", "vankit.models.transfer")  # what happened once, and says nothing of the network


class _Listener(logging.Handler):
    """Collects the warnings of the thread that made it, except those of downloads."""

    def __init__(self, said: list[tuple[str, int, str]]) -> None:
        super().__init__(logging.WARNING)
        self.said, self._thread = said, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread and record.name not in _EVENTS:
            self.said.append((record.name, record.levelno, record.getMessage()))
