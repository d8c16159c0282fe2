"""Prediction tables, written row by row: CSV, JSON lines or Parquet, by the file's suffix."""

import csv
import json
from abc import ABC, abstractmethod
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

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


class CsvTable(Table):
    """image, error, then label_1, index_1, score_1, label_2, …"""

    def __init__(self, path: Path, top_k: int) -> None:
        super().__init__(path, top_k)
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        columns = [f"{name}_{k}" for k in range(1, top_k + 1) for name in ("label", "index", "score")]
        self._writer.writerow(["image", "error", *columns])

    def write(self, row: Row) -> None:
        best = zip(row["labels"], row["indices"], row["scores"], strict=True)
        cells = [cell for label, index, score in best for cell in (label, index, f"{score:.6f}")]
        self._writer.writerow([row["image"], row["error"] or "", *cells, *[""] * (3 * self.top_k - len(cells))])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class JsonLinesTable(Table):
    """One object a line, with the keys of `Row`."""

    def __init__(self, path: Path, top_k: int) -> None:
        super().__init__(path, top_k)
        self._file = path.open("w", encoding="utf-8")

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class ParquetTable(Table):
    """The columns of `Row`; labels, indices and scores are lists."""

    def __init__(self, path: Path, top_k: int) -> None:
        super().__init__(path, top_k)
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise ImportError("writing .parquet needs pyarrow: pip install 'vankit[parquet]', or write .csv") from None
        text, number = pyarrow.string(), pyarrow.list_(pyarrow.int64())
        scores = pyarrow.list_(pyarrow.float32())
        self._schema = pyarrow.schema(
            {"image": text, "labels": pyarrow.list_(text), "indices": number, "scores": scores, "error": text}
        )
        self._table_of = pyarrow.Table.from_pylist
        self._file = pyarrow.parquet.ParquetWriter(path, self._schema)
        self._rows: list[Row] = []

    def write(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(self._table_of(self._rows, schema=self._schema))
            self._rows = []

    def close(self) -> None:
        self._flush()
        self._file.close()


_TABLES: dict[str, type[Table]] = {".csv": CsvTable, ".jsonl": JsonLinesTable, ".parquet": ParquetTable}


def open_table(path: str | PathLike[str], top_k: int) -> Table:
    """Open a table for writing, in the format of its suffix.

    Args:
        path: a .csv, .jsonl or .parquet file; an existing one is replaced.
        top_k: largest number of labels in a row.

    Raises:
        ValueError: another suffix.
        ImportError: .parquet without pyarrow.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _TABLES:
        raise ValueError(f"cannot write predictions to {path}: expected a name ending in {', '.join(_TABLES)}")
    return _TABLES[suffix](Path(path), top_k)
