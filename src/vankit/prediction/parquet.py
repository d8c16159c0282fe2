"""Prediction tables in Parquet."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from threading import Lock, Timer
from typing import Any

from vankit.errors import MissingPackageError, UserError, WriteError
from vankit.files import writing
from vankit.prediction.tables import Names, Row, Table

_ROWS_PER_GROUP = 1024
_SECONDS = 3.0  # after which a row is on disk


class ParquetTable(Table):
    """The columns of `vankit.prediction.tables.Row`; labels, indices and scores are lists.

    A Parquet file cannot be read before it is finished, so until `close` joins them the rows of every few seconds are
    files in the folder NAME.parquet.parts. There is no NAME.parquet meanwhile: where both exist, the parts are joined
    already.
    """

    def __init__(self, path: Path, top_k: int, resume: bool) -> None:
        super().__init__(path, top_k)
        self._schema = parquet_schema()
        self._folder = path.with_name(f"{path.name}.parts")
        with writing(path):
            if self._folder.exists() and (path.exists() or not resume):
                shutil.rmtree(self._folder)
            if not resume:
                path.unlink(missing_ok=True)
        self._rows: list[Row] = []
        self._lock = Lock()
        self._timer: Timer | None = None
        files = self._files()
        self._next = 0 if not files else 1 if files == [path] else int(files[-1].stem) + 1
        self.done = Names(chain.from_iterable(map(self._keep, files)))

    def _files(self) -> list[Path]:
        return [self.path] if self.path.exists() else sorted(self._folder.glob("[0-9]" * 8 + ".parquet"))

    def _keep(self, path: Path) -> Iterator[str]:
        """The images of the rows without an error; the file is left with these alone."""
        failed = False
        for group in self._groups([path], ["image", "error"]):
            with self._reading(path):  # which decodes the text
                rows = list(zip(group["image"].to_pylist(), group["error"].to_pylist(), strict=True))
            for image, error in rows:
                if error is None:
                    yield image
                else:
                    failed = True
        if failed:
            self._write(path, (group.filter(group["error"].is_null()) for group in self._groups([path])))

    @contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        from pyarrow import ArrowException

        try:
            yield
        except (ArrowException, OSError, UnicodeError) as error:
            raise UserError(
                f"cannot continue {self.path}: {path} is broken ({error}); remove it, or write another file"
            ) from None

    def _groups(self, paths: Iterable[Path], columns: list[str] | None = None) -> Iterator[Any]:
        from pyarrow.parquet import ParquetFile

        for path in paths:
            with self._reading(path), ParquetFile(path, page_checksum_verification=True) as file:
                if not file.schema_arrow.equals(self._schema):
                    raise UserError(
                        f"cannot continue {self.path}: {path} has the columns {file.schema_arrow.names}, and this run "
                        f"writes {self._schema.names}, each of its type; write another file"
                    )
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, columns)

    def write(self, row: Row) -> None:
        with self._lock:
            self._rows.append(row)
            if len(self._rows) >= _ROWS_PER_GROUP:
                self._flush()
            elif self._timer is None:
                self._timer = Timer(_SECONDS, self._flush_in_time)
                self._timer.daemon = True
                self._timer.start()

    def _flush_in_time(self) -> None:
        with self._lock, suppress(WriteError):  # the rows stay, and `close` or a full group meets it again
            self._timer = None
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._rows:
            return
        with writing(self.path):
            self._folder.mkdir(exist_ok=True)
            if self.path.exists():
                os.replace(self.path, self._folder / f"{0:08d}.parquet")
        table = pyarrow.Table.from_pylist(self._rows, schema=self._schema)
        self._write(self._folder / f"{self._next:08d}.parquet", [table])
        # Ctrl-C is heeded at calls, so never between these two
        self._next += 1
        self._rows = []

    def _write(self, path: Path, tables: Iterable[Any]) -> None:
        """Write a file of these rows, whole or not at all."""
        from pyarrow.parquet import ParquetWriter

        unfinished = self._folder / "unfinished"
        with writing(self.path):
            self._folder.mkdir(exist_ok=True)
            with ParquetWriter(unfinished, self._schema, write_page_checksum=True) as writer:
                for table in _grouped(tables):
                    writer.write_table(table, row_group_size=_ROWS_PER_GROUP)
            os.replace(unfinished, path)

    def close(self) -> None:
        with self._lock:
            self._flush()
            if not self.path.exists():
                self._write(self.path, self._groups(self._files()))
            shutil.rmtree(self._folder, ignore_errors=True)


def _grouped(tables: Iterable[Any]) -> Iterator[Any]:
    """The same rows in full groups, as few images may come in a few seconds."""
    from pyarrow import concat_tables

    waiting: list[Any] = []
    for table in tables:
        waiting.append(table)
        if (count := sum(map(len, waiting))) >= _ROWS_PER_GROUP:
            rows, whole = concat_tables(waiting), count // _ROWS_PER_GROUP * _ROWS_PER_GROUP
            yield rows.slice(0, whole)
            waiting = [rows.slice(whole)]
    if sum(map(len, waiting)):
        yield concat_tables(waiting)


def parquet_schema() -> Any:
    """The columns of `vankit.prediction.tables.Row` as a pyarrow.Schema.

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
