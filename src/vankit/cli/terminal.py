"""What the commands share of the terminal."""

import logging
import sys

from rich.console import Console


def console() -> Console:
    """Wide enough for whole rows where the output is no terminal."""
    return Console() if sys.stdout.isatty() else Console(width=120)


def quieten_lightning() -> None:
    """It announces hardware and products at a level that its import sets."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
