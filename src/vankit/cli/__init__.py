"""The `vankit` command: a thin layer over the Python API, one file per command."""

import io
import logging
import os
import re
import sys
from importlib import import_module

from cyclopts import App, CycloptsError

from vankit.cli.help import PARAMETERS, reflow_commands
from vankit.cli.keeping import prepare_next_start
from vankit.cli.messages import mistake, with_options
from vankit.cli.terminal import LogFormatter, drop_unwritten, is_unread, printing, say, show_traceback
from vankit.deploy.kept import collecting
from vankit.errors import UserError, out_of_memory

app = App(
    name="vankit",
    help="The Visual Attention Network: train it, measure it, use it.",
    help_format="plaintext",
    default_parameter=PARAMETERS,
)
for _name in (
    "bench", "convert", "demo", "explain", "export", "inspect", "models", "predict", "serve", "study", "train",
    "validate",
):  # fmt: skip
    app.command(import_module(f"vankit.cli.{_name}").command, name=_name)
reflow_commands(app)

_INTERRUPTED, _UNREAD = 130, 141  # as shells say of programs that SIGINT and SIGPIPE end
_FORMER_NAMES = {"--out": "--output", "--picture": "--plot"}


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    A user's mistake, and an error of the system such as a full disk, ends in one line; VANKIT_DEBUG=1 puts the
    traceback above it. Its status is 2 where the command cannot be read (an unknown command or option, a missing or
    surplus word, a value that is no number or none of the choices), and 1 where it can be read and not be done.
    Anything else is a bug of ours and shows its traceback. Ctrl-C ends quietly with status 130, and the end of a pipe,
    as of `| head`, with 141.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # some file names are not text
    log = logging.StreamHandler()
    log.setFormatter(LogFormatter())
    logging.basicConfig(handlers=[log], level=logging.WARNING)
    words = _with_present_names(sys.argv[1:] if argv is None else argv)
    try:
        with collecting() as networks:
            status = app(words, result_action="return_value", exit_on_error=False, print_error=False)
        if sys.stdout is not None:
            with printing():
                sys.stdout.flush()
        if not status:
            prepare_next_start(networks)
    except Exception as error:
        status = _UNREAD if is_unread(error) else _tell(error, words)
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except SystemExit as end:
        status = end.code
        if isinstance(end.__context__, BrokenPipeError):  # which rich turns into it
            status = _UNREAD
    drop_unwritten()
    raise SystemExit(status or 0)


def _tell(error: Exception, words: list[str]) -> int:
    """Print an error; the exit status."""
    line = _answer(error, words)
    if line is None or os.environ.get("VANKIT_DEBUG") == "1":
        show_traceback()
    said = "this is a bug in vankit: please report it with the lines above" if line is None else line
    say(f"vankit: {said}", file=sys.stderr)
    return 2 if isinstance(error, CycloptsError) else 1


def _with_present_names(words: list[str]) -> list[str]:
    """Options by their present names; those of version 0.1 go on working, without a place in the help."""
    end = words.index("--") if "--" in words else len(words)
    parts = (word.partition("=") for word in words[:end])
    return ["".join((_FORMER_NAMES.get(name, name), *value)) for name, *value in parts] + words[end:]


def _answer(error: Exception, words: list[str]) -> str | None:
    """The line that an error ends in; None for a bug."""
    if isinstance(error, CycloptsError):
        return one_line(mistake(error))
    message = one_line(str(error))
    if isinstance(error, UserError | OSError):
        return with_options(message, app, words)
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
