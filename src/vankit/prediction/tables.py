"""Prediction tables, written row by row: CSV, JSON lines or Parquet, by the file's suffix."""

import csv
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from vankit.errors import MissingPackageError, UserError

Row = dict[str, Any]  # image, labels, indices, scores (best first), error

_ROWS_PER_GROUP = 1024


class Table(ABC):
    """A table file under way, as a context manager; rows are on disk once they are written (Parquet: in groups).

    Args:
        path: output file; its folder is made.
        top_k: labels per row, for the columns of a CSV.
    """

    def __init__(self, path: Path, top_k: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.top_k = top_k

    @abstractmethod
    def written(self) -> Iterator[str]:
        """The images of the rows that a resumed table kept, in order, read as needed; before the first `write`."""

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
        self._kept = 0
        if resume and path.exists():
            with path.open("r+b") as file:
                self._kept, end = self._complete(file)
                file.truncate(end)
        self._file = path.open("a" if resume else "w", newline="", encoding="utf-8")

    @abstractmethod
    def _complete(self, lines: Iterable[bytes]) -> tuple[int, int]:
        """How many rows of the file are complete, and where the last of them ends."""

    def _refuse(self, line: bytes, expected: str) -> NoReturn:
        raise UserError(
            f"cannot continue {self.path}: it starts with {line[:200]!r}, and this run writes {expected}; ask for as "
            "many labels (top_k) as before, or write another file"
        )

    def close(self) -> None:
        self._file.close()


class CsvTable(_TextTable):
    """image, error, then label_1, index_1, score_1, label_2, …"""

    def __init__(self, path: Path, top_k: int, resume: bool) -> None:
        columns = [f"{name}_{k}" for k in range(1, top_k + 1) for name in ("label", "index", "score")]
        self._header = ["image", "error", *columns]
        super().__init__(path, top_k, resume)
        self._writer = csv.writer(self._file)
        if not path.stat().st_size:
            self._writer.writerow(self._header)

    def _complete(self, lines: Iterable[bytes]) -> tuple[int, int]:
        header = ",".join(self._header)
        records = at = end = quotes = 0
        for line in lines:
            if not at and not f"{header}\r\n".encode().startswith(line) and line.rstrip() != header.encode():
                self._refuse(line, header)
            at += len(line)
            quotes += line.count(b'"')
            if quotes % 2 == 0 and line.endswith(b"\n"):  # a line end between quotes belongs to a cell
                records, end = records + 1, at
        return max(records - 1, 0), end

    def written(self) -> Iterator[str]:
        with self.path.open(newline="", encoding="utf-8") as file:
            for cells in islice(csv.reader(file), 1, 1 + self._kept):
                yield cells[0]

    def write(self, row: Row) -> None:
        best = zip(row["labels"], row["indices"], row["scores"], strict=True)
        cells = [cell for label, index, score in best for cell in (label, index, f"{score:.6f}")]
        self._writer.writerow([row["image"], row["error"] or "", *cells, *[""] * (3 * self.top_k - len(cells))])
        self._file.flush()


class JsonLinesTable(_TextTable):
    """One object per line, with the keys of `Row`."""

    def _complete(self, lines: Iterable[bytes]) -> tuple[int, int]:
        start = b'{"image": "'
        rows = end = 0
        for line in lines:
            if not rows and not line.startswith(start[: len(line)]):
                self._refuse(line, start.decode())
            if not line.endswith(b"\n") or not _is_json(line):
                break
            rows, end = rows + 1, end + len(line)
        return rows, end

    def written(self) -> Iterator[str]:
        with self.path.open(encoding="utf-8") as file:
            for line in islice(file, self._kept):
                yield json.loads(line)["image"]

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()


class ParquetTable(Table):
    """The columns of `Row`; labels, indices and scores are lists.

    A Parquet file cannot be read before it is finished, so until `close` joins them the groups of rows are files in the
    folder NAME.parquet.parts. There is no NAME.parquet meanwhile: where both exist, the parts are joined already.
    """

    def __init__(self, path: Path, top_k: int, resume: bool) -> None:
        super().__init__(path, top_k)
        self._schema = parquet_schema()
        self._folder = path.with_name(f"{path.name}.parts")
        if self._folder.exists() and (path.exists() or not resume):
            shutil.rmtree(self._folder)
        if not resume:
            path.unlink(missing_ok=True)
        self._rows: list[Row] = []
        self._parts = 0
        for file in self._files():
            self._open(file).close()
            self._parts += 1

    def _files(self) -> list[Path]:
        return [self.path] if self.path.exists() else sorted(self._folder.glob("*.parquet"))

    def _open(self, path: Path) -> Any:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile

        try:
            file = ParquetFile(path)
        except ArrowInvalid as error:
            raise UserError(f"cannot continue {self.path}: {path} is broken ({error}); write another file") from None
        if not file.schema_arrow.equals(self._schema):
            raise UserError(
                f"cannot continue {self.path}: {path} has the columns {file.schema_arrow.names}, and this run writes "
                f"{self._schema.names}, each of its type; write another file"
            )
        return file

    def _groups(self, columns: list[str] | None = None) -> Iterator[Any]:
        for path in self._files():
            with self._open(path) as file:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, columns)

    def written(self) -> Iterator[str]:
        for group in self._groups(["image"]):
            yield from group["image"].to_pylist()

    def write(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow
        from pyarrow.parquet import write_table

        self._folder.mkdir(exist_ok=True)
        if self.path.exists():
            os.replace(self.path, self._folder / f"{0:08d}.parquet")
        unfinished = self._folder / "unfinished"
        write_table(pyarrow.Table.from_pylist(self._rows, schema=self._schema), unfinished)
        os.replace(unfinished, self._folder / f"{self._parts:08d}.parquet")
        self._parts += 1
        self._rows = []

    def close(self) -> None:
        from pyarrow.parquet import ParquetWriter

        if self._rows:
            self._flush()
        if not self.path.exists():
            self._folder.mkdir(exist_ok=True)
            unfinished = self._folder / "unfinished"
            with ParquetWriter(unfinished, self._schema) as writer:
                for group in self._groups():
                    writer.write_table(group)
            os.replace(unfinished, self.path)
            shutil.rmtree(self._folder)


def parquet_schema() -> Any:
    """The columns of `Row` as a pyarrow.Schema.

    Raises:
        ImportError: no pyarrow.
    """
    try:
        import pyarrow
    except ImportError:
        raise MissingPackageError(
            "writing .parquet needs pyarrow: pip install 'vankit[parquet]', or write .csv"
        ) from None
    text = pyarrow.string()
    return pyarrow.schema(
        {
            "image": text,
            "labels": pyarrow.list_(text),
            "indices": pyarrow.list_(pyarrow.int64()),
            "scores": pyarrow.list_(pyarrow.float32()),
            "error": text,
        }
    )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


_TABLES: dict[str, Callable[[Path, int, bool], Table]] = {
    ".csv": CsvTable,
    ".jsonl": JsonLinesTable,
    ".parquet": ParquetTable,
}


def open_table(path: str | PathLike[str], top_k: int, resume: bool = False) -> Table:
    """Open a table for writing, in the format of its suffix.

    Args:
        path: a .csv, .jsonl or .parquet file.
        top_k: largest number of labels in a row.
        resume: continue an existing file: its complete rows stay, and `Table.written` gives their images; a row cut off
            by a kill is removed (Parquet: the rows after the last full thousand or so). Else a file is replaced.

    Raises:
        ValueError: another suffix; with `resume` also a file that is not such a table, or a CSV with other columns.
        ImportError: .parquet without pyarrow.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _TABLES:
        raise UserError(f"cannot write predictions to {path}: expected a name ending in {', '.join(_TABLES)}")
    return _TABLES[suffix](Path(path), top_k, resume)
