"""CSV files that name images and their labels."""

import csv
import io
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

from vankit.data.walk import IMAGE_SUFFIXES
from vankit.errors import MissingFileError, UserError, few
from vankit.files import read_text

logger = logging.getLogger(__name__)

# columns by their names in lower case with _ between words, the surest first
_FILES = (
    "file", "filename", "file_name", "fname", "filepath", "file_path", "path", "image_path", "image_name", "imagename",
    "image_index", "image_id", "image", "img", "id",
)  # fmt: skip
_LABELS = ("labels", "label", "tags", "tag", "classes", "class", "categories", "category", "finding_labels")
_PRESENT = {"0": False, "0.0": False, "false": False, "-1": False, "1": True, "1.0": True, "true": True}
_SUFFIXES = (".jpg", ".png", *sorted(IMAGE_SUFFIXES))


@dataclass(frozen=True)
class LabelTable:
    """What a CSV says of images.

    Attributes:
        path: of the CSV.
        files: the labels of each file, which is named relative to the CSV's folder.
        classes: in their order.
        separator: of labels in a cell; empty where each class has a column.
        source: which columns were read.
    """

    path: Path
    files: dict[str, tuple[str, ...]]
    classes: Sequence[str]
    separator: str
    source: str

    def paths(self, skip_bad: bool = False) -> list[str]:
        """The images' files, all of them found in the same place.

        Args:
            skip_bad: some may be missing.

        Raises:
            FileNotFoundError: one is missing.
        """
        folder = self.path.parent
        places = [str(folder / name) for name in ("", "images", self.path.stem)]
        where = ((place, suffix) for name in self.files for place in places for suffix in _suffixes(name)
                 if os.path.isfile(os.path.join(place, name + suffix)))  # fmt: skip
        place, suffix = next(where, (places[0], ""))
        paths = [os.path.join(place, name + suffix) for name in self.files]
        missing = [] if skip_bad else [path for path in paths if not os.path.isfile(path)]
        if missing:
            raise MissingFileError(
                f"{self.path} names {len(missing)} files of {len(paths)} that are not there, such as {missing[0]}: "
                f"expected them in {folder}, or in its folder images or {self.path.stem}"
            )
        return paths


def _suffixes(name: str) -> Sequence[str]:
    """What may have to be added to a file's name."""
    return ("",) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES else _SUFFIXES


def read_labels(path: Path, train: LabelTable | None = None) -> LabelTable:
    """Read a CSV of images and their labels.

    A header names the columns: one has the images' files, and either one has all labels of an image (separated by ; or
    | or commas or spaces: the first of these that the file has), or each class has its own, of 0 and 1 (or of -1 and
    1). Files are named relative to the CSV's folder, or to a folder beside it that is called images or like the CSV;
    the suffix may be left out.

    Args:
        path: the CSV.
        train: the table to train on, whose classes and separator hold for all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a CSV, or has a label that is not in `train`.
    """
    rows = _rows(path)
    _, header = next(rows, (0, []))
    words = [re.sub(r"[\s-]+", "_", name.strip().lower()) for name in header]
    file, labels = (next((words.index(name) for name in names if name in words), None) for names in (_FILES, _LABELS))
    others = {i: header[i].strip() for i, word in enumerate(words) if word and i not in (file, labels)}
    if file is None or (labels is None and not others):
        raise UserError(
            f"{path} has the columns {', '.join(header) or '(none)'}: expected one for the images' files, such as file "
            "or image, and one for their labels, such as labels or tags, or one of 0 and 1 for each class"
        )
    if labels is None:
        table = _by_columns(path, rows, file, others)
    else:
        cells = [(line, row[file], row[labels]) for line, row in rows]
        # of train's, but for a space, which only says that it has no other sign
        separator = train.separator.strip() if train else ""
        table = _by_cells(path, cells, separator or _separator(path, cells))
        table = replace(table, source=f"{header[labels].strip()}, {table.source}")
        if others:
            table = replace(table, source=f"{table.source}; not used: {', '.join(others.values())}")
    if not table.files:
        raise UserError(f"{path} has no row: expected one per image")
    source = f"files in column {header[file].strip()}, labels in {table.source}"
    return replace(table, source=source, classes=table.classes if train is None else _known(table, train))


def _known(table: LabelTable, train: LabelTable) -> Sequence[str]:
    """The classes to train on, which have to be all that the table has."""
    if unknown := sorted(set(table.classes) - set(train.classes)):
        raise UserError(
            f"{table.path} has {len(unknown)} labels that {train.path.name} lacks: {few(unknown)}; add images with "
            "them to train on, or leave them out"
        )
    return train.classes


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of each row, the header first, empty lines left out."""
    text = read_text(path)
    first = text.partition("\n")[0]
    delimiter = next((each for each in ",;\t" if each in first), ",")
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    columns = 0
    try:
        for row in reader:
            if not any(map(str.strip, row)):
                continue
            columns = columns or len(row)
            if len(row) != columns:
                raise UserError(
                    f"{path}, line {reader.line_num}, has {len(row)} cells and the header {columns}: expected as many; "
                    "put cells that contain commas between quotes"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}, is not CSV: {error}") from None


def _separator(path: Path, cells: Iterable[tuple[int, str, str]]) -> str:
    """What separates labels in a cell: names may contain what comes after it in this order."""
    found = {sign for _, _, cell in cells for sign in ";|," if sign in cell}
    if {";", "|"} <= found:
        raise UserError(f"{path} has labels with ; and labels with | between them: expected one of the two throughout")
    return next((sign for sign in ";|," if sign in found), " ")


Labelled = Iterator[tuple[int, str, tuple[str, ...]]]  # line, file, labels


def _by_cells(path: Path, cells: Iterable[tuple[int, str, str]], separator: str) -> LabelTable:
    files = _merged(path, _of_cells(path, cells, separator))
    classes = sorted({label for labels in files.values() for label in labels})
    by = {" ": "spaces", ",": "commas"}.get(separator, separator)
    return LabelTable(path, files, classes, separator, f"separated by {by}")


def _of_cells(path: Path, cells: Iterable[tuple[int, str, str]], separator: str) -> Labelled:
    for line, file, cell in cells:
        if cell.lstrip().startswith(("[", "{", "(")):
            raise UserError(
                f"{path}, line {line}: the labels are {cell[:60]}: expected their names alone, with ; between them"
            )
        yield line, file, tuple(dict.fromkeys(filter(None, map(str.strip, cell.split(separator)))))


def _by_columns(path: Path, rows: Iterable[tuple[int, list[str]]], file: int, classes: dict[int, str]) -> LabelTable:
    names = list(classes.values())
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path} has several columns {repeated[0]}: expected one per class")
    files = _merged(path, _of_columns(path, rows, file, classes), conflicts=True)
    return LabelTable(path, files, names, "", f"a column per class, {names[0]} to {names[-1]}")


def _of_columns(path: Path, rows: Iterable[tuple[int, list[str]]], file: int, classes: dict[int, str]) -> Labelled:
    seen: set[str] = set()
    for line, row in rows:
        cells = {name: row[i].strip().lower() for i, name in classes.items()}
        if wrong := [name for name, cell in cells.items() if cell not in _PRESENT]:
            raise UserError(
                f"{path}, line {line}: {wrong[0]} is {cells[wrong[0]]!r}: expected 0 or 1 in the column of each class; "
                "remove columns that are none, or give all labels of an image in one column labels"
            )
        seen.update(cells.values())
        yield line, row[file], tuple(name for name, cell in cells.items() if _PRESENT[cell])
    if "-1" in seen and seen & {"0", "0.0", "false"}:
        raise UserError(
            f"{path} has -1 beside 0 and 1, which may mean unknown: expected 0 or 1 in the column of each class"
        )


def _merged(path: Path, rows: Labelled, conflicts: bool = False) -> dict[str, tuple[str, ...]]:
    """The labels of each file; those of rows that name the same one are put together.

    Args:
        conflicts: such rows have to agree.
    """
    found: dict[str, tuple[str, ...]] = {}
    repeated = 0
    for line, name, labels in rows:
        file = _inside(path, line, name.strip())
        before = found.get(file)
        if before is not None and conflicts and before != labels:
            raise UserError(
                f"{path}, line {line}: {name} has other labels than in an earlier line: keep one of the two"
            )
        repeated += before is not None
        found[file] = tuple(dict.fromkeys((before or ()) + labels))
    if repeated:
        logger.warning("%s: %d rows name a file again: the labels of a file's rows are put together", path, repeated)
    return found


def _inside(table: Path, line: int, name: str) -> str:
    """A file's name with / between folders.

    Raises:
        ValueError: there is none, or it leads out of the table's folder.
    """
    path = PureWindowsPath(name)  # which takes both / and \\ for separators
    if not path.name or path.anchor or ".." in path.parts:
        raise UserError(
            f"{table}, line {line}: {name!r} is not the name of a file in {table.parent}: expected one relative to "
            "that folder, without .."
        )
    return path.as_posix()
