"""The terminal, as all commands use it."""

import sys

from rich.console import Console


def console() -> Console:
    """A console that is wide enough for whole rows where the output is not a terminal."""
    return Console() if sys.stdout.isatty() else Console(width=120)
