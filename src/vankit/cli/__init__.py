"""The `vankit` command: a thin layer over the Python API, one file per command."""

import io
import logging
import os
import re
import sys
import traceback
from importlib import import_module

from cyclopts import App, CycloptsError

from vankit.cli.help import PARAMETERS, reflow_commands
from vankit.errors import UserError, out_of_memory

app = App(
    name="vankit",
    help="The Visual Attention Network: train it, measure it, use it.",
    help_format="plaintext",
    default_parameter=PARAMETERS,
)
for _name in (
    "bench", "convert", "demo", "explain", "export", "inspect", "models", "predict", "study", "train", "validate"
):  # fmt: skip
    app.command(import_module(f"vankit.cli.{_name}").command, name=_name)
reflow_commands(app)

_FORMER_NAMES = {"--out": "--output", "--picture": "--plot"}


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    A user's mistake, and an error of the system such as a full disk, ends in one line, with status 2 if the mistake is
    in the command itself, else 1; VANKIT_DEBUG=1 puts the traceback above it. Anything else is a bug of ours and shows
    its traceback. Ctrl-C ends quietly with status 130.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # some file names are not text
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    words = _with_present_names(sys.argv[1:] if argv is None else argv)
    try:
        status = app(words, result_action="return_value", exit_on_error=False, print_error=False)
    except Exception as error:
        line = _answer(error)
        if line is None:
            traceback.print_exc()
            print("vankit: this is a bug in vankit: please report it with the lines above", file=sys.stderr)
            raise SystemExit(1) from None
        if os.environ.get("VANKIT_DEBUG") == "1":
            traceback.print_exc()
        print(f"vankit: {line}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, CycloptsError) else 1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(status or 0)


def _with_present_names(words: list[str]) -> list[str]:
    """Options by their present names; those of version 0.1 go on working, without a place in the help."""
    end = words.index("--") if "--" in words else len(words)
    parts = (word.partition("=") for word in words[:end])
    return ["".join((_FORMER_NAMES.get(name, name), *value)) for name, *value in parts] + words[end:]


def _answer(error: Exception) -> str | None:
    """The line that an error ends in; None for a bug."""
    message = one_line(str(error))
    if isinstance(error, CycloptsError | UserError | OSError):
        return message
    if out_of_memory(error):
        return "out of memory: use a smaller --batch-size, smaller images or a smaller model"
    if re.match(r"DataLoader worker \(pid.*\) is killed by signal: Terminated", message):
        return "a process that loads images was ended by SIGTERM"
    if re.match(r"DataLoader worker \(pid.*\) (is killed|exited unexpectedly)", message):
        return "a process that loads images died, probably for lack of memory or shared memory: use fewer --workers"
    return None


def one_line(message: str) -> str:
    """An error's message in one line, without the traceback that a data-loading process puts before it.

    Args:
        message: such as "Caught UserError in DataLoader worker process 0." and a traceback.
    """
    _, from_worker, trace = message.strip().partition("\nOriginal Traceback (most recent call last):\n")
    if from_worker:
        # frames are indented; the error follows them as "vankit.errors.UserError: its message"
        message = re.split(r"^[\w.]+Error: ", trace, flags=re.M)[-1]
    return " ".join(filter(None, map(str.strip, message.splitlines())))
