"""Readers with a mistake put into them, by which the fuzzer is shown to find it."""

from pathlib import Path
from unittest.mock import patch

from . import watch
from .targets import TARGETS, Target


def _unknown_name(folder: Path) -> None:
    """The palette's reader as if it knew two names, and looked others up without asking."""
    known = {"void": 0, "road": 128, "sky": 32768}
    with patch("vankit.data.label_maps._palette_line", lambda line, where: ((n := line.split()[-1]), known[n])):
        TARGETS["semantic"].steps[0](folder)


def _for_ever(folder: Path) -> None:
    """A reader that waits for the end of a file that has none."""
    while not (folder / "pairs.txt").read_text(errors="replace").endswith("\n"):
        pass


UNKNOWN_NAME = Target("semantic", TARGETS["semantic"].files, (_unknown_name,))
FOR_EVER = Target("map_labels", TARGETS["map_labels"].files, (_for_ever,))
watch.SECONDS = 2
