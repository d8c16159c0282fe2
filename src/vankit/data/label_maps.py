"""What the values of a label PNG mean: class indices, other numbers, or colours."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vankit.data.images import MAX_PIXELS, load_png
from vankit.errors import UserError
from vankit.files import read_text

IGNORE = 255  # the label of pixels without one
PALETTES = ("palette.txt", "label_colors.txt", "labelmap.txt", "class_dict.csv")

_UNLABELLED = frozenset({"void", "ignore", "unlabelled", "unlabeled"})
# each takes time by the length of a line, whatever is in it
_COLOUR_FIRST = re.compile(r"(\d{1,9})[\s,]+(\d{1,9})[\s,]+(\d{1,9})[\s,]+(.+)")
_NAME_FIRST = re.compile(r"(.+?)[:,]\s*(\d{1,9})[\s,]+(\d{1,9})[\s,]+(\d{1,9})(?:[\s,:].*)?")


@dataclass(frozen=True)
class Palette:
    """Classes by their colours.

    Attributes:
        classes: names by index.
        labels: index by colour, R + 256 G + 65536 B; 255 where unlabelled.
        source: the file that says so.
    """

    classes: list[str]
    labels: dict[int, int]
    source: Path


def find_palette(root: Path) -> Palette | None:
    """The palette file of a folder, if there is one with colours.

    It has a line per class, in label order: `R G B name` (CamVid's label_colors.txt), `name,R,G,B` (class_dict.csv) or
    `name:R,G,B::` (CVAT's labelmap.txt). Lines that start with # and a heading are passed over. Pixels of the names
    void, ignore, unlabelled and unlabeled count as unlabelled.

    Raises:
        ValueError: a line cannot be read, or a colour is given twice.
    """
    path = next((root / name for name in PALETTES if (root / name).is_file()), None)
    if path is None:
        return None
    classes: list[str] = []
    labels: dict[int, int] = {}
    lines = [line.strip() for line in read_text(path).splitlines()]
    heading = [name.strip().lower() for name in lines[0].split(",")] if lines else []
    with_number = path.suffix == ".csv" and heading[:1] not in (["name"], ["r"])  # a column before the name
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#") or (number == 1 and not re.search(r"\d", line)):
            continue
        if path.name == "labelmap.txt" and not re.search(r"\d{1,9},\s*\d{1,9},\s*\d", line):
            return None  # of another tool, which lists names alone
        row = line.partition(",")[2] if with_number else line
        name, colour = _palette_line(row, f"{path}, line {number}")
        if colour in labels:
            raise UserError(
                f"{path}, line {number}: the colour of {name} is given twice, expected one class per colour"
            )
        if name.lower() in _UNLABELLED:
            labels[colour] = IGNORE
            continue
        if name not in classes:  # a class may have several colours
            classes.append(name)
        labels[colour] = classes.index(name)
    return Palette(classes, labels, path)


def _palette_line(line: str, where: str) -> tuple[str, int]:
    if match := _COLOUR_FIRST.fullmatch(line):
        *numbers, name = match.groups()
    elif match := _NAME_FIRST.fullmatch(line):
        name, *numbers = match.groups()
    else:
        raise UserError(f"{where} is {line!r}: expected R G B name, with a number from 0 to 255 for each colour")
    red, green, blue = map(int, numbers)
    if max(red, green, blue) > 255:
        raise UserError(f"{where} is {line!r}: expected numbers from 0 to 255")
    return name.strip(), red + 256 * green + 65536 * blue


def parse_map(pairs: Iterable[str]) -> dict[int, int]:
    """Values of label PNGs, and what they are read as.

    Args:
        pairs: such as 255:1, from 0 to 65535 and from 0 to 255.

    Raises:
        ValueError: one is not such a pair, or a value is mapped twice.
    """
    mapping: dict[int, int] = {}
    for pair in pairs:
        match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", pair)
        old, new = map(int, match.groups()) if match else (-1, -1)
        if not (0 <= old < 2**16 and 0 <= new <= IGNORE):
            raise UserError(f"map_labels has {pair!r}: expected OLD:NEW, such as 255:1, NEW from 0 to {IGNORE}")
        if old in mapping:
            raise UserError(f"map_labels maps {old} to {mapping[old]} and to {new}: expected one of them")
        mapping[old] = new
    return mapping


@dataclass(frozen=True)
class Coding:
    """How a set's label PNGs are read.

    Attributes:
        classes: names by index.
        ignore_label: value that counts as unlabelled, in addition to 255.
        zero_is_unlabelled: values start at 1, and 0 is unlabelled, as in ADE20K.
        mapping: values that are read as others, before all else.
        palette: of PNGs in colour.
        named: whether the classes have names, rather than being the values that were found.
    """

    classes: Sequence[str]
    ignore_label: int = IGNORE
    zero_is_unlabelled: bool = False
    mapping: Mapping[int, int] = field(default_factory=dict)
    palette: Palette | None = None
    named: bool = True

    def read(self, path: Path, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
        """The class indices (H, W) in a label PNG, 255 where unlabelled.

        Raises:
            ValueError: it cannot be read, or holds a value that is not of a class.
        """
        values = read_labels(path, self.palette, max_pixels)
        table = self.indices(np.arange(max(256, int(values.max(initial=0)) + 1)))  # takes a fifth of np.unique's time
        indices = table[values]
        if indices.min(initial=0) < 0:
            wrong = int(values[indices < 0].min())
            raise UserError(
                f"{path} has label {wrong} and there are {len(self.classes)} classes: name it in classes.txt, or pass "
                f"--ignore-label {wrong} or --map-labels {wrong}:CLASS"
            )
        return indices.astype(np.uint8)

    def indices(self, values: NDArray[Any]) -> NDArray[np.int16]:
        """The class index that each value stands for, 255 for unlabelled, -1 for none."""
        mapped = values.astype(np.int64)
        for old, new in self.mapping.items():
            mapped[values == old] = new
        unlabelled = (mapped == self.ignore_label) | (mapped == IGNORE)
        if self.zero_is_unlabelled:
            unlabelled |= mapped == 0
            mapped = mapped - 1
        known = (mapped >= 0) & (mapped < len(self.classes))
        return np.where(unlabelled, IGNORE, np.where(known, mapped, -1)).astype(np.int16)


def count_labels(values: NDArray[Any]) -> dict[int, int]:
    """Pixels by value."""
    counts = np.bincount(values.ravel())
    return {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}


def in_colour(path: Path, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether a label PNG has colours, or a palette of its own, rather than numbers alone.

    Raises:
        ValueError: it cannot be read.
    """
    return load_png(path, max_pixels).mode in ("RGB", "RGBA", "P", "PA", "LA")


def read_labels(path: Path, palette: Palette | None = None, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """The numbers (H, W) in a label PNG.

    They are grey levels or palette indices, or with a palette file what the colours stand for. Colours whose three
    channels agree everywhere are grey levels.

    Raises:
        ValueError: it has colours and there is no palette, or other colours, or it cannot be read.
    """
    image = load_png(path, max_pixels)
    if palette is not None:
        return _by_colour(np.asarray(image.convert("RGB"), np.int64), palette, path)
    if image.mode in ("L", "P", "1", "I;16", "I"):
        return np.asarray(image).astype(np.uint8) if image.mode == "1" else np.asarray(image)
    colours = np.asarray(image.convert("RGB"))
    if (colours == colours[..., :1]).all():
        return colours[..., 0]
    raise UserError(
        f"{path} is in colour ({image.mode}): expected one class index per pixel, or a file {PALETTES[0]} in the folder"
        " of the set with a line 'R G B name' per class"
    )


def _by_colour(colours: NDArray[np.int64], palette: Palette, path: Path) -> NDArray[np.uint8]:
    codes = colours @ np.array([1, 256, 65536])  # (H, W)
    present, place = np.unique(codes, return_inverse=True)
    if unknown := [code for code in present.tolist() if code not in palette.labels]:
        red, green, blue = unknown[0] % 256, unknown[0] // 256 % 256, unknown[0] // 65536
        raise UserError(
            f"{path} has {len(unknown)} colours that {palette.source} does not name, such as {red} {green} {blue}: add "
            "a line for each (of the name void for unlabelled pixels)"
        )
    return np.array([palette.labels[code] for code in present.tolist()], np.uint8)[place.reshape(codes.shape)]
