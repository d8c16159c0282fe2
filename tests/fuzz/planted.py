"""Readers with a mistake put into them, by which the fuzzer is shown to find it."""

import os
import signal
from pathlib import Path
from unittest.mock import patch

from vankit.data import label_maps

from . import corpus, watch
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


def _without_an_end(folder: Path) -> None:
    """A reader that nothing in its process can end."""
    if not _is_valid((folder / "pairs.txt").read_bytes()):
        os.kill(os.getpid(), signal.SIGSTOP)


_raised: list[bytes] = []


def _slow_if_short(folder: Path) -> None:
    """A reader whose mistake turns into another one as its case is made smaller."""
    data = (folder / "pairs.txt").read_bytes()
    if len(data) > 8 and not _is_valid(data):
        _raised.append(data)
        raise KeyError(data)
    while _raised and 0 < len(data) < 8:
        pass


def _is_valid(data: bytes) -> bool:
    return {"pairs.txt": data} in corpus.cases("map_labels")


UNKNOWN_NAME = Target("semantic", TARGETS["semantic"].files, (_unknown_name,))
FOR_EVER = Target("map_labels", TARGETS["map_labels"].files, (_for_ever,))
WITHOUT_AN_END = Target("map_labels", TARGETS["map_labels"].files, (_without_an_end,))
SLOW_IF_SHORT = Target("map_labels", TARGETS["map_labels"].files, (_slow_if_short,))
watch.SECONDS = 2
