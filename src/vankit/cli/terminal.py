"""The terminal, as all commands use it: what is written there cannot steer it, and may be cut short by `head`."""

import logging
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from vankit.errors import WriteError, printable


@contextmanager
def printing() -> Iterator[None]:
    """Name the standard output in what the system says against writing to it, but for a pipe that nobody reads.

    Raises:
        OSError: the block raised one.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise WriteError(f"cannot write to the standard output: {error.strerror or error}") from None


def say(line: str = "", file: TextIO | None = None) -> None:
    """Print a line, to the standard output unless another file is given; control characters are escaped."""
    with printing() if file is None else nullcontext():
        print(printable(line), file=file)


def say_failure(source: str, error: str | None) -> None:
    """Print why an image failed, to the error stream, with its name once: most reasons begin with it."""
    error = error or ""
    named = error.startswith(source) or f": {source} (" in error
    say(error if named else f"{source}: {error}", file=sys.stderr)


def show_traceback() -> None:
    """Print that of the exception that is being handled, to the error stream."""
    print(_lines(traceback.format_exc()), end="", file=sys.stderr)


class _Console(Console):
    """Text is shown as it is: neither control characters nor what looks like rich's markup act."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(_lines(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        with printing():
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        raise  # the error that rich is handling as it calls this; it would end with status 1


def console() -> Console:
    """A console that is wide enough for whole rows where the output is not a terminal."""
    return _Console(width=None if sys.stdout and sys.stdout.isatty() else 120, markup=False, emoji=False)


class LogFormatter(logging.Formatter):
    """Level and message on one line; control characters are escaped, also in tracebacks."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return _lines(super().formatException(ei))


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def is_unread(error: BaseException) -> bool:
    """Whether an error says that nobody reads the standard output any more, as after `vankit … | head`."""
    if not any(isinstance(each, BrokenPipeError) for each in (error, error.__context__)):
        return False
    if not hasattr(select, "poll"):  # Windows
        return True
    pipe = select.poll()
    pipe.register(sys.stdout, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in pipe.poll(0))


def drop_unwritten() -> None:
    """Print what is waiting to be; where it cannot be, drop it, or Python would complain as it ends."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that what it was writing is finished; the exit status is 143."""

    def stop(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.getsignal(signal.SIGTERM)
    # one that is ignored stays so, and None is a handler that Python cannot put back
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
