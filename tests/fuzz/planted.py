"""Readers with a mistake put into them, by which the fuzzer is shown to find it."""

from pathlib import Path
from unittest.mock import patch

from vankit.data import label_maps

from . import watch
from .targets import TARGETS, Target


def _unknown_name(folder: Path) -> None:
    """The palette's reader as if it knew four names, and looked others up without asking."""
    known, read = ("void", "road", "sky", "sky, blue"), label_maps._palette_line

    def looked_up(line: str, where: str) -> tuple[str, int]:
        name, colour = read(line, where)
        return name, dict.fromkeys(known, colour)[name]

    with patch.object(label_maps, "_palette_line", looked_up):
        TARGETS["semantic"].steps[0](folder)


def _for_ever(folder: Path) -> None:
    """A reader that waits for the end of a file that has none."""
    while not (folder / "pairs.txt").read_text(errors="replace").endswith("\n"):
        pass


UNKNOWN_NAME = Target("semantic", TARGETS["semantic"].files, (_unknown_name,))
FOR_EVER = Target("map_labels", TARGETS["map_labels"].files, (_for_ever,))
watch.SECONDS = 2
