"""What a reader may not do: raise anything but an answer, take long or much memory, leave its folder, run its text.

Python's own calls are watched by an audit hook; what a library opens from C or Rust is not seen.
"""

import faulthandler
import hashlib
import linecache
import logging
import os
import re
import resource
import shutil
import signal
import sys
import sysconfig
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import vankit
from vankit.errors import UserError

from . import code, corpus
from .targets import TARGETS, Target

SECONDS = 10  # of computing
_WAITING = 60  # seconds that may pass meanwhile: the machine may be busy, or a call may wait for ever
MEMORY = 512 * 2**20  # bytes more, at the peak, that one case may take
_ADDRESS_SPACE = 8 * 2**30  # bytes more than after the import
SMALLER = 60  # seconds in all to make a finding smaller
MARGIN = (
    300  # seconds more than it is given after which a process is ended from outside: to start, and for what it began
)

_SOURCE = Path(vankit.__file__).parent
_PROGRAMS = tuple(
    os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), _SOURCE.parent)
)
_FORBIDDEN = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile", "pty.", "urllib.",
    "pickle.find_class", "webbrowser.", "ftplib.", "http.", "smtplib.",
)  # fmt: skip
_ON_PATHS = {
    name: count
    for names, count in (
        ("open os.listdir os.scandir os.mkdir os.rmdir os.remove os.truncate os.chmod os.chown os.utime", 1),
        ("os.rename os.link os.symlink", 2),
    )
    for name in names.split()
}


class Escape(BaseException):
    """A call out of the folder; of no kind that a reader would take for a broken file."""


@dataclass(frozen=True)
class Finding:
    """What a reader did with a case.

    Attributes:
        target: the reader.
        key: kind of the mistake and where in vankit it was made, by which findings are told apart.
        report: a traceback.
        data: the case, see `Target.join`.
    """

    target: str
    key: str
    report: str
    data: bytes

    @property
    def name(self) -> str:
        return f"{self.target}-{hashlib.sha256(self.key.encode()).hexdigest()[:8]}"


class _Watch:
    """The folder that a reader must not leave, while one is at work."""

    folder: str | None = None


def audit(event: str, args: tuple[Any, ...]) -> None:
    """A hook that raises `Escape`; at other times it lets everything pass."""
    if _Watch.folder is None:
        return
    if event.startswith(_FORBIDDEN):
        _escape(f"{event}{args}"[:300])
    if event == "exec" and (what := code.escapes(args[0], sys._getframe(1).f_code.co_filename)):
        _escape(f"code from text: {what}"[:300])
    for path in args[: _ON_PATHS.get(event, 0)]:
        if isinstance(path, str | bytes) and not _allowed(event, os.fsdecode(path), args):
            _escape(f"{event} of {path!r}")


class _Imports:
    """Finds no module, but who asks for the one that cases name: of `importlib.import_module` no hook is told."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name.startswith(code.PLANTED) and _Watch.folder is not None:
            _escape(f"import of {name}")


def start() -> None:
    """Watch this process from now on, whenever a case is read."""
    sys.addaudithook(audit)
    sys.meta_path.insert(0, _Imports)


def _allowed(event: str, path: str, args: tuple[Any, ...]) -> bool:
    if not os.path.isabs(path) and sys._getframe(2).f_code.co_filename == shutil.__file__:
        return True  # rmtree has opened the folder that this is in
    path = os.path.abspath(path)
    if _inside(path, str(_Watch.folder)) or path in ("/dev/null", "/dev/urandom", "/sys/fs/cgroup/cpu.max"):
        return True
    writes = event not in ("open", "os.listdir", "os.scandir") or (
        event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    )
    # a library may import more of itself
    return not writes and any(_inside(os.path.realpath(path), program) for program in _PROGRAMS)


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)


def _escape(what: str) -> None:
    folder, _Watch.folder = _Watch.folder, None  # formatting may open files
    try:
        raise Escape(what.replace(str(folder), "FOLDER"))
    finally:
        _Watch.folder = folder


class _Formats(logging.Handler):
    """Makes the text of a message, which nobody reads, so that one that cannot be made is found, or a traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.exc_info and _Watch.folder is not None:
            _escape(f"a traceback is shown with {message[:100]!r}")


def lay_out(target: Target, folder: Path) -> None:
    """Put what does not vary into a target's folder."""
    for name, content in corpus.fixed(target.name).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def warm_up(target: Target, folder: Path) -> None:
    """Read the valid cases once, so that all is imported, and start to watch and to limit this process."""
    for case in corpus.cases(target.name):
        target.write(case, folder)
        for step in target.steps:
            try:
                step(folder)
            except UserError:
                continue
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _ADDRESS_SPACE, resource.RLIM_INFINITY))
    start()


@contextmanager
def quiet() -> Iterator[None]:
    """Messages are formatted and shown nowhere; a warning of vankit's own lines is an error, as in all tests."""
    loggers = [logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    handlers = {logger: logger.handlers for logger in loggers if logger.handlers or logger is logging.root}
    for logger in handlers:
        logger.handlers = [_Formats()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", module="vankit")
        try:
            yield
        finally:
            for logger, own in handlers.items():
                logger.handlers = own


def examine(target: Target, data: bytes, folder: Path) -> list[Finding]:
    """Read a case in every way that the target has.

    Args:
        target: the reader.
        data: see `Target.join`.
        folder: see `lay_out`.
    """
    case, findings = target.split(data), []
    for number, step in enumerate(target.steps):
        target.write(case, folder)
        before = _memory(reset=True)
        try:
            _Watch.folder = str(folder)
            step(folder)
        except UserError:
            pass
        except BaseException as error:
            _Watch.folder = None
            if isinstance(error, KeyboardInterrupt):
                raise
            report = "".join(traceback.format_exception(error)).replace(str(folder), "FOLDER")
            findings.append(Finding(target.name, _key(error), report, data))
        finally:
            _Watch.folder = None
        if (grown := _memory() - before) > MEMORY:
            what = f"{grown / 2**20:.0f} MB more at its peak\n"
            findings.append(Finding(target.name, f"memory in step {number}", what, data))
    return findings


def _memory(reset: bool = False) -> int:
    """Bytes of this process at its peak since that was reset."""
    if reset:
        with suppress(OSError):  # some containers refuse it
            Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _key(error: BaseException) -> str:
    frames = [
        f"{Path(frame.filename).relative_to(_SOURCE)}: {linecache.getline(frame.filename, frame.lineno or 0).strip()}"
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(_SOURCE)
    ]
    # a reader that answers wrongly has no frame of its own in it
    place = frames[-2:] or [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.line][-1:]
    kind = re.match(r"[\w. ]*", str(error)) if isinstance(error, Escape) else None
    return f"{type(error).__name__} in {' → '.join(map(str, place))}{f' ({kind[0].strip()})' if kind else ''}"


@contextmanager
def limited(trace: BinaryIO) -> Iterator[None]:
    """End this process, with a traceback in a file, if the block takes too long.

    Args:
        trace: an open file.
    """
    faulthandler.register(signal.SIGPROF, trace, chain=True)
    faulthandler.dump_traceback_later(_WAITING, exit=True, file=trace)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()


def smaller(finding: Finding, read: Callable[[bytes], list[Finding]]) -> Finding:
    """The same finding from less: parts of the case are left out as long as it is made, and there is time.

    Args:
        finding: to begin with.
        read: what is wrong with a case, see `examine`.
    """
    end, size = time.monotonic() + SMALLER, len(finding.data) // 2
    while size:
        at = 0
        while at < len(finding.data):
            if time.monotonic() > end:
                return finding
            less = finding.data[:at] + finding.data[at + size :]
            again = next((each for each in read(less) if each.key == finding.key), None)
            finding, at = (finding, at + size) if again is None else (again, at)
        size //= 2
    return finding


def store(finding: Finding, folder: Path) -> Path:
    """Write a finding down, unless the same one was found in a smaller case before."""
    path, raw = folder / f"{finding.name}.md", folder / f"{finding.name}.bin"
    if raw.exists() and raw.stat().st_size <= len(finding.data):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    raw.write_bytes(finding.data)
    shown = repr(finding.data) if len(finding.data) <= 2000 else f"{raw.name}, {len(finding.data)} bytes"
    files = {name: content for name, content in TARGETS[finding.target].split(finding.data).items() if content}
    path.write_text(
        f"# {finding.target}: {finding.key}\n\n"
        f"    python -m tests.fuzz {finding.target} --case {raw}\n\n"
        f"The case ({', '.join(files) or 'nothing'}):\n\n```\n{shown}\n```\n\n```\n{finding.report}```\n"
    )
    return path
