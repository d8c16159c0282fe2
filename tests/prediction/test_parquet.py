"""Parquet tables: on disk in seconds, whatever ends the process."""

import contextlib
import functools
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vankit.errors import UserError, WriteError
from vankit.prediction import parquet as module
from vankit.prediction.tables import Row, open_table

parquet = pytest.importorskip("pyarrow.parquet")


def labelled(name: str, error: str | None = None) -> Row:
    return {"image": name, "labels": [name, "x"], "indices": [0, 1], "scores": [0.75, 0.25], "error": error}


def write(path: Path, rows: list[Row]) -> None:
    with open_table(path, 2) as table:
        for row in rows:
            table.write(row)


def resume(path: Path, rows: list[Row]) -> int:
    """Write what is missing of the rows; how many were done."""
    with open_table(path, 2, resume=True) as table:
        done = len(table.done)
        for row in rows:
            if not table.done.take(row["image"]):
                table.write(row)
    return done


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    many = [labelled("a"), {**labelled("b", "broken"), "labels": [], "indices": [], "scores": []}] * 800
    write(tmp_path / "rows.parquet", many)
    assert parquet.read_table(tmp_path / "rows.parquet").to_pylist() == many
    assert parquet.ParquetFile(tmp_path / "rows.parquet").num_row_groups == 2  # of 1024 rows


def test_a_row_is_on_disk_in_seconds_though_no_other_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module._SECONDS <= 5
    monkeypatch.setattr(module, "_SECONDS", 0.05)
    parts = tmp_path / "rows.parquet.parts"
    table = open_table(tmp_path / "rows.parquet", 2)
    for i in range(3):
        table.write(labelled(str(i)))
        wait_for((parts / f"{i:08}.parquet").exists)
    assert [parquet.read_table(file).to_pylist() for file in sorted(parts.iterdir())] == [
        [labelled(str(i))] for i in range(3)
    ]
    table.close()
    file = parquet.ParquetFile(tmp_path / "rows.parquet")
    assert (file.num_row_groups, file.metadata.num_rows) == (1, 3)


def test_a_disk_that_is_full_for_a_while_costs_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def full(*_: Any, **__: Any) -> None:
        tried.append(1)
        raise OSError(28, "No space left on device")

    table = open_table(tmp_path / "rows.parquet", 2)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_SECONDS", 0.02)
        patch.setattr("pyarrow.parquet.ParquetWriter", full)
        table.write(labelled("a"))
        wait_for(lambda: bool(tried))
        with pytest.raises(WriteError, match="cannot write .*rows.parquet: No space left on device"):
            table.close()
    table.write(labelled("b"))
    table.close()
    assert parquet.read_table(tmp_path / "rows.parquet").to_pylist() == [labelled("a"), labelled("b")]


def test_a_broken_part_may_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", 1e4)
    monkeypatch.setattr(module, "_ROWS_PER_GROUP", 2)
    path, rows = tmp_path / "rows.parquet", [labelled(str(i)) for i in range(6)]
    killed = open_table(path, 2)
    for row in rows:
        killed.write(row)
    part = tmp_path / "rows.parquet.parts" / "00000001.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"cannot continue {path}: {part} is broken .*; remove it, or write another"):
        open_table(path, 2, resume=True)
    part.unlink()
    assert resume(path, rows) == 4
    assert sorted(row["image"] for row in parquet.read_table(path).to_pylist()) == list("012345")


class Killed(BaseException):
    """The process ends here; nothing is closed."""


@settings(max_examples=40)
@given(size=st.integers(1, 3), count=st.integers(0, 7), kills=st.lists(st.integers(0, 12), max_size=3))
def test_a_table_killed_anywhere_is_continued(
    tmp_path_factory: pytest.TempPathFactory, size: int, count: int, kills: list[int]
) -> None:
    path = tmp_path_factory.mktemp("parts") / "rows.parquet"
    rows = [labelled(str(i)) for i in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ROWS_PER_GROUP", size)
        patch.setattr(module, "_SECONDS", 1e4)
        for steps in kills:
            left = steps

            def step(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return function(*args, **options)

            with patch.context() as kill, contextlib.suppress(Killed):
                for library, name in (("os", "replace"), ("shutil", "rmtree"), ("pyarrow.parquet", "ParquetWriter")):
                    function = getattr(importlib.import_module(library), name)
                    kill.setattr(f"{library}.{name}", functools.partial(step, function))
                table = open_table(path, 2, resume=True)
                for row in rows[len(table.done) :]:
                    table.write(row)
                table.close()
        resume(path, rows)
    assert parquet.read_table(path).to_pylist() == rows
    assert [file.name for file in path.parent.iterdir()] == ["rows.parquet"]


def test_a_killed_table_keeps_its_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", 1e4)
    path = tmp_path / "rows.parquet"
    rows = [labelled(str(i)) for i in range(2500)]
    table = open_table(path, 2)
    for row in rows:
        table.write(row)
    del table
    assert resume(path, rows) == 2048


def test_a_parquet_file_of_other_columns_is_not_continued(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"image": ["a.jpg"]}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="has the columns .*'image'.*write another file"):
        open_table(tmp_path / "rows.parquet", 2, resume=True)
