"""Prediction tables, written row by row: CSV, JSON lines or Parquet, by the file's suffix."""

import csv
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np

from vankit.data.videos import is_video
from vankit.errors import UserError
from vankit.files import check_file, check_folder, replacing, writing
from vankit.locks import check_free, held

Row = dict[str, Any]  # image, labels, indices, scores (best first), error

SUFFIXES = (".csv", ".jsonl", ".parquet")
# https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class Names:
    """Names, each as often as it was given; 9 bytes each, for there may be millions.

    They are kept as Python's 64-bit hashes, which are keyed by process, so that nobody can make up names of one hash.
    That two of a million done and a million new images have one by chance is as likely as 1 in 18 million.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._hashes = np.fromiter(map(hash, names), np.int64)
        self._hashes.sort()
        self._left = np.ones(len(self._hashes), bool)

    def __len__(self) -> int:
        return len(self._hashes)

    def take(self, name: str) -> bool:
        """Whether the name was given more often than it was taken."""
        wanted = np.int64(hash(name))
        start, end = (int(np.searchsorted(self._hashes, wanted, side)) for side in ("left", "right"))
        left = self._left[start:end]
        if not left.any():
            return False
        left[left.argmax()] = False
        return True


class Table(ABC):
    """A table file under way, as a context manager; rows are on disk once they are written (Parquet: seconds later).

    Args:
        path: output file; its folder is made.
        top_k: labels per row, for the columns of a CSV.

    Attributes:
        done: images of the rows that a resumed table kept.
    """

    def __init__(self, path: Path, top_k: int) -> None:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.top_k = top_k
        self.done = Names()

    @abstractmethod
    def write(self, row: Row) -> None:
        """Add a row."""

    @abstractmethod
    def close(self) -> None:
        """Finish the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _TextTable(Table):
    def __init__(self, path: Path, top_k: int, resume: bool) -> None:
        super().__init__(path, top_k)
        if resume and path.is_file():
            self.done = self._continue()
        with writing(path):
            self._file = path.open("a" if resume else "w", newline="", encoding="utf-8")

    @abstractmethod
    def _rows(self, lines: Iterable[bytes]) -> Iterator[tuple[bytes, str | None, bool]]:
        """The complete rows as they stand in the file, each with its image (None: a header) and whether it failed."""

    def _continue(self) -> Names:
        """Keep the complete rows without an error, and nothing else."""
        sizes = [0, 0]  # of the rows that stay, and of those that failed

        def images() -> Iterator[str]:
            with self.path.open("rb") as file:
                for row, image, failed in self._rows(file):
                    sizes[failed] += len(row)
                    if image is not None and not failed:
                        yield image

        done = Names(images())
        if sizes[True]:
            self._drop_failed()
        else:
            with writing(self.path):
                os.truncate(self.path, sizes[False])
        return done

    def _drop_failed(self) -> None:
        with (
            replacing(self.path) as partial,
            writing(self.path),
            partial.open("wb") as target,
            self.path.open("rb") as file,
        ):
            target.writelines(row for row, _, failed in self._rows(file) if not failed)

    def _refuse(self, why: str) -> NoReturn:
        raise UserError(f"cannot continue {self.path}: {why}, or write another file")

    def _refuse_start(self, line: bytes, expected: str, advice: str) -> NoReturn:
        self._refuse(f"it starts with {line[:200]!r}, and this run writes {expected}; {advice}")

    def _refuse_row(self, number: int) -> NoReturn:
        self._refuse(f"its row {number} is damaged; remove that row")

    def close(self) -> None:
        with writing(self.path):
            self._file.close()


class CsvTable(_TextTable):
    """image, error, then label_1, index_1, score_1, label_2, …

    Args:
        safe: put ' before text that a spreadsheet would take for a formula.
    """

    def __init__(self, path: Path, top_k: int, resume: bool, safe: bool = False) -> None:
        columns = [f"{name}_{k}" for k in range(1, top_k + 1) for name in ("label", "index", "score")]
        self._header = ["image", "error", *columns]
        self._safe = safe
        super().__init__(path, top_k, resume)
        self._writer = csv.writer(self._file)
        if not path.stat().st_size:
            self._write(self._header)

    def _rows(self, lines: Iterable[bytes]) -> Iterator[tuple[bytes, str | None, bool]]:
        header = ",".join(self._header)
        for number, (row, complete) in enumerate(_csv_rows(lines)):
            if not number and not f"{header}\r\n".encode().startswith(row) and row.rstrip() != header.encode():
                self._refuse_start(row, header, "ask for as many labels (top_k) as before")
            if complete:
                yield (row, *self._parse(row, number)) if number else (row, None, False)

    def _parse(self, row: bytes, number: int) -> tuple[str, bool]:
        try:
            cells = next(csv.reader([row.decode()]))
        except (ValueError, csv.Error):
            self._refuse_row(number)
        if len(cells) != len(self._header):
            self._refuse_row(number)
        marked = cells[0].startswith("'") and _is_formula(cells[0])
        if marked != (self._safe and _is_formula(cells[0])):
            begun, now = ("with", "pass it") if marked else ("without", "leave it out")
            self._refuse(f"it was begun {begun} safe_csv (--safe-csv); {now} again")
        return cells[0][marked:], bool(cells[1])

    def write(self, row: Row) -> None:
        best = zip(row["labels"], row["indices"], row["scores"], strict=True)
        cells = [cell for label, index, score in best for cell in (self._text(label), index, f"{score:.6f}")]
        empty = [""] * (3 * self.top_k - len(cells))
        self._write([self._text(row["image"]), self._text(row["error"] or ""), *cells, *empty])

    def _text(self, text: str) -> str:
        return f"'{text}" if self._safe and _is_formula(text) else text

    def _write(self, cells: list[Any]) -> None:
        with writing(self.path):
            self._writer.writerow(cells)
            self._file.flush()


def _csv_rows(lines: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Rows, and whether they are complete: a line end between quotes belongs to a cell."""
    waiting, quotes = [], 0
    for line in lines:
        waiting.append(line)
        quotes += line.count(b'"')
        if quotes % 2 == 0 and line.endswith(b"\n"):
            yield b"".join(waiting), True
            waiting = []
    if waiting:
        yield b"".join(waiting), False


def _is_formula(text: str) -> bool:
    """Whether a spreadsheet would take it for one, or would but for the ' before it."""
    return text.lstrip("'").startswith(_FORMULA)


class JsonLinesTable(_TextTable):
    """One object per line, with the keys of `Row`."""

    def _rows(self, lines: Iterable[bytes]) -> Iterator[tuple[bytes, str | None, bool]]:
        start = b'{"image": "'
        for number, line in enumerate(lines, 1):
            if not line.startswith(start[: len(line)]):
                if number > 1:
                    self._refuse_row(number)
                self._refuse_start(line, start.decode(), "name the file that was begun")
            if line.endswith(b"\n"):
                yield (line, *self._parse(line, number))

    def _parse(self, line: bytes, number: int) -> tuple[str, bool]:
        try:
            row = json.loads(line)
            image, error = row["image"], row["error"]
        except (ValueError, RecursionError, KeyError):
            self._refuse_row(number)
        if not isinstance(image, str):
            self._refuse_row(number)
        return image, error is not None

    def write(self, row: Row) -> None:
        with writing(self.path):
            self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()


def is_table(path: str | PathLike[str]) -> bool:
    """Whether a file of this name is a table, by its suffix."""
    return Path(path).suffix.lower() in SUFFIXES


def check_table(path: str | PathLike[str], safe_csv: bool = False) -> None:
    """Refuse, before the work is done, what no table could be written to.

    Raises:
        ValueError: another suffix, or `safe_csv` for another than .csv, or see `vankit.files.check_file`.
        ImportError: .parquet without pyarrow.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        _refuse_name(path)
    if safe_csv and suffix != ".csv":
        raise UserError(f"safe_csv (--safe-csv) is for .csv, and the output is {path}: leave it out")
    if suffix == ".parquet":
        from vankit.prediction.parquet import parquet_schema

        parquet_schema()
    check_file(path)


def _refuse_name(path: str | PathLike[str]) -> NoReturn:
    raise UserError(
        f"cannot write predictions to {path}: expected a name ending in {', '.join(SUFFIXES)}, or for a detector or "
        "segmenter a folder, or of a video one such as found.mp4"
    )


@contextmanager
def reserved(output: str | PathLike[str] | None, folder: bool = False) -> Iterator[None]:
    """Refuse, before a network is loaded, an output that cannot be written, or which someone else is writing.

    A table is held for the block. A folder or a video is not: those who fill one hold it themselves, see
    `vankit.locks.held`.

    Args:
        output: a table, a folder or the URL of one, or a video; None for none.
        folder: that it is a folder, though its name ends as that of a file does.

    Raises:
        ValueError: it cannot be written, or someone else holds it; the message says who.
    """
    if output is None or "://" in os.fspath(output):
        yield
    elif is_table(output) and not folder:
        check_table(output)
        with held(output):
            yield
    elif is_video(output) and not folder:
        check_file(output)
        check_free(output)
        yield
    else:
        if not folder and Path(output).exists() and not Path(output).is_dir():
            _refuse_name(output)
        check_folder(output)
        check_free(output)
        yield


def open_table(path: str | PathLike[str], top_k: int, resume: bool = False, safe_csv: bool = False) -> Table:
    """Open a table for writing, in the format of its suffix.

    Args:
        path: a .csv, .jsonl or .parquet file.
        top_k: largest number of labels in a row.
        resume: continue an existing file: its complete rows stay, whichever their order, and `Table.done` are their
            images. Rows with an error are removed, as what caused it may have been mended, and so is a row that was cut
            off by a kill. Else a file is replaced.
        safe_csv: of a CSV, put ' before text that a spreadsheet would take for a formula.

    Raises:
        ValueError: see `check_table`; with `resume` also a file that is not such a table, or is damaged, or a CSV with
            other columns.
        ImportError: .parquet without pyarrow.
    """
    check_table(path, safe_csv)
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from vankit.prediction.parquet import ParquetTable

        return ParquetTable(path, top_k, resume)
    return CsvTable(path, top_k, resume, safe_csv) if suffix == ".csv" else JsonLinesTable(path, top_k, resume)
