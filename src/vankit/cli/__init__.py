"""The `vankit` command: a thin layer over the Python API, one file a command."""

import io
import logging
import os
import sys
import traceback
from importlib import import_module

from cyclopts import App

from vankit.cli.help import PARAMETERS, reflow_commands
from vankit.errors import UserError

app = App(
    name="vankit",
    help="The Visual Attention Network: train it, measure it, use it.",
    help_format="plaintext",
    default_parameter=PARAMETERS,
)
for _name in ("bench", "convert", "demo", "explain", "export", "models", "predict", "study", "train", "validate"):
    app.command(import_module(f"vankit.cli.{_name}").command, name=_name)
reflow_commands(app)

_FORMER_NAMES = {"--out": "--output", "--picture": "--plot"}


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    A mistake of the user's ends in one line and status 1. Anything else is a bug of ours and shows its traceback;
    with VANKIT_DEBUG=1 both do.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may be no text
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        status = app(_with_present_names(sys.argv[1:] if argv is None else argv), result_action="return_value")
    except (UserError, OSError) as error:
        if os.environ.get("VANKIT_DEBUG") == "1":
            raise
        message = str(error)
        if message.startswith("Caught "):  # in a process that loads images, with its traceback
            message = message.strip().splitlines()[-1].partition(": ")[2]
        print(f"vankit: {message}", file=sys.stderr)
        raise SystemExit(1) from None
    except Exception:
        traceback.print_exc()
        print("vankit: this is a bug in vankit: please report it with the lines above", file=sys.stderr)
        raise SystemExit(1) from None
    raise SystemExit(status or 0)


def _with_present_names(words: list[str]) -> list[str]:
    """Options by their present names; those of version 0.1 go on working, without a place in the help."""
    end = words.index("--") if "--" in words else len(words)
    parts = (word.partition("=") for word in words[:end])
    return ["".join((_FORMER_NAMES.get(name, name), *value)) for name, *value in parts] + words[end:]
