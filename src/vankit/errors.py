"""Errors that are answers to the user: what was wrong, what was expected, what to do."""

import logging
import math
import re
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger(__name__)


class UserError(ValueError):
    """What was given cannot be used. The message is one line; the command line prints it without a traceback."""


class MissingFileError(UserError, FileNotFoundError):
    """A file, folder or data set is not there."""


class ReadError(UserError, OSError):
    """A file or a folder cannot be read: it is a pipe, a socket or a device, or who runs this may not read it."""


class WriteError(UserError, OSError):
    """A file or a folder cannot be written: the disk is full, it may only be read, or it is gone."""


class MissingPackageError(UserError, ImportError):
    """A library of an extra is not installed; the message names the extra."""


class NotFiniteError(UserError):
    """A network gave numbers that are NaN or infinite."""


def few(values: Sequence[object]) -> str:
    """The first of many, for a message of one line."""
    return ", ".join(map(str, values[:5])) + " …" * (len(values) > 5)


# what moves a terminal's cursor, ends a line or turns the direction of writing: C0, DEL and C1, Unicode's line ends and
# bidirectional controls (https://www.unicode.org/reports/tr36/#Bidirectional_Text_Spoofing)
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text for a terminal: names from files and checkpoints may hold control characters, which become escapes.

    Args:
        text: of one line; a line end is escaped too.
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def check_output(output: Any) -> None:
    """Refuse what a network or an engine gave if a number of it is not finite.

    Args:
        output: an array of NumPy or a tensor of PyTorch, of floats.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    if not (abs(output) < math.inf).all():
        raise NotFiniteError(
            "the network's output is NaN or infinite, where numbers are expected: use other weights, or compute in "
            "float32"
        )


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, the main one's or a GPU's."""
    # PyTorch, which need not be imported here, has a class for it on GPUs, and on CPUs none
    return type(error).__name__ in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in str(error)


def reason_of(error: Exception, source: str) -> str:
    """Why one picture of many failed. A bug is logged with its traceback, so that it is seen though the others go on.

    Args:
        error: that was raised.
        source: the picture's name.
    """
    if not isinstance(error, UserError | OSError) and not out_of_memory(error):
        logger.error("%s: this is a bug in vankit: please report it with these lines", source, exc_info=error)
    return str(error) or type(error).__name__
