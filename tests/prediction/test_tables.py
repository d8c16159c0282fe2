"""Prediction tables read back by the libraries everyone reads them with."""

import contextlib
import csv
import functools
import importlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vankit.errors import UserError
from vankit.prediction import tables
from vankit.prediction.tables import Row, open_table

ROWS: list[Row] = [
    {"image": 'a,b "c".jpg', "labels": ["cat", "dog"], "indices": [3, 5], "scores": [0.75, 0.25], "error": None},
    {"image": "é\n.jpg", "labels": [], "indices": [], "scores": [], "error": "broken, truly"},
]


def write(path: Path, rows: list[Row]) -> None:
    with open_table(path, 2) as table:
        for row in rows:
            table.write(row)


def labelled(name: str) -> Row:
    return {"image": name, "labels": [name, "x"], "indices": [0, 1], "scores": [0.75, 0.25], "error": None}


def resume(path: Path, rows: list[Row]) -> list[str]:
    """Write what is missing of the rows; the names that were there."""
    with open_table(path, 2, resume=True) as table:
        found = list(table.written())
        for row in rows[len(found) :]:
            table.write(row)
    return found


def test_csv(tmp_path: Path) -> None:
    write(tmp_path / "new" / "rows.csv", ROWS)
    with (tmp_path / "new" / "rows.csv").open(newline="", encoding="utf-8") as file:
        good, bad = csv.DictReader(file)
    assert good == {
        "image": ROWS[0]["image"], "error": "", "label_1": "cat", "index_1": "3", "score_1": "0.750000",
        "label_2": "dog", "index_2": "5", "score_2": "0.250000",
    }  # fmt: skip
    assert (bad["image"], bad["error"], bad["label_1"]) == ("é\n.jpg", "broken, truly", "")


def test_rows_are_on_disk_before_the_table_is_closed(tmp_path: Path) -> None:
    for name in ("rows.csv", "rows.jsonl"):
        with open_table(tmp_path / name, 2) as table:
            table.write(ROWS[0])
            assert "cat" in (tmp_path / name).read_text(encoding="utf-8")


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    many = ROWS * 800  # more than a row group
    write(tmp_path / "rows.parquet", many)
    assert parquet.read_table(tmp_path / "rows.parquet").to_pylist() == many
    assert parquet.ParquetFile(tmp_path / "rows.parquet").num_row_groups == 2


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=5))
def test_any_text_survives_jsonl(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"image": a, "labels": [b], "indices": [0], "scores": [1.0], "error": None} for a, b in pairs]
    write(path, rows)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] == rows


def test_json_lines_never_hold_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(tmp_path / "out.jsonl", [{**ROWS[0], "scores": [float("nan"), 0.5]}])


def test_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows\.xlsx: expected a name ending in \.csv, \.jsonl, \.parquet"):
        open_table(tmp_path / "rows.xlsx", 5)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@given(
    names=st.lists(st.text(st.sampled_from('a",\r\n\u2028\u20ac\0 '), max_size=6), max_size=4),
    where=st.floats(0, 1),
)
def test_a_file_cut_anywhere_is_continued(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, names: list[str], where: float
) -> None:
    path = tmp_path_factory.mktemp("cut") / f"rows.{suffix}"
    rows, ends = [labelled(name) for name in names], []
    with open_table(path, 2) as table:
        for row in rows:
            table.write(row)
            ends.append(path.stat().st_size)
    whole = path.read_bytes()
    cut = round(where * len(whole))
    path.write_bytes(whole[:cut])
    assert resume(path, rows) == [name for name, end in zip(names, ends, strict=True) if end <= cut]
    assert path.read_bytes() == whole


def test_half_a_line_that_ends_is_no_row(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", ROWS)
    whole = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(whole + whole[:20] + b"\n")
    assert resume(tmp_path / "rows.jsonl", ROWS) == [row["image"] for row in ROWS]
    assert (tmp_path / "rows.jsonl").read_bytes() == whole


class Killed(BaseException):
    """The process ends here; nothing is closed."""


@settings(max_examples=40)
@given(size=st.integers(1, 3), count=st.integers(0, 7), kills=st.lists(st.integers(0, 12), max_size=3))
def test_a_parquet_table_killed_anywhere_is_continued(
    tmp_path_factory: pytest.TempPathFactory, size: int, count: int, kills: list[int]
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path_factory.mktemp("parts") / "rows.parquet"
    rows = [labelled(str(i)) for i in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_ROWS_PER_GROUP", size)
        for steps in kills:
            left = steps

            def step(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return function(*args, **options)

            with patch.context() as kill, contextlib.suppress(Killed):
                for module, name in (("os", "replace"), ("shutil", "rmtree"), ("pyarrow.parquet", "write_table")):
                    function = getattr(importlib.import_module(module), name)
                    kill.setattr(f"{module}.{name}", functools.partial(step, function))
                table = open_table(path, 2, resume=True)
                for row in rows[len(list(table.written())) :]:
                    table.write(row)
                table.close()
        found = resume(path, rows)
    assert found == [row["image"] for row in rows[: len(found)]]
    assert parquet.read_table(path).to_pylist() == rows
    assert [file.name for file in path.parent.iterdir()] == ["rows.parquet"]


def test_a_killed_parquet_table_keeps_its_groups(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    rows = [labelled(str(i)) for i in range(2500)]
    table = open_table(path, 2)
    for row in rows:
        table.write(row)
    del table
    assert len(resume(path, rows)) == 2048


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_finished_table_takes_further_rows(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pyarrow")
    path, whole = tmp_path / f"rows.{suffix}", tmp_path / f"whole.{suffix}"
    more = [*ROWS, labelled("third")]
    write(path, ROWS)
    status = path.stat()
    assert resume(path, ROWS) == [row["image"] for row in ROWS]
    assert (path.stat().st_ino, path.stat().st_size) == (status.st_ino, status.st_size)
    assert resume(path, more) == [row["image"] for row in ROWS]
    write(whole, more)
    assert resume(path, more) == resume(whole, more) == [row["image"] for row in more]
    if suffix != "parquet":
        assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_without_resume_nothing_stays(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / f"rows.{suffix}"
    write(path, [labelled(str(i)) for i in range(2000)])
    killed = open_table(path, 2)
    for i in range(1500):
        killed.write(labelled(f"killed {i}"))
    with open_table(path, 2) as table:
        assert list(table.written()) == []
        table.write(ROWS[0])
    assert resume(path, ROWS[:1]) == [ROWS[0]["image"]]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_names_of_a_long_table_are_not_collected(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    write(path, [labelled("x" * 1000)] * 5000)
    tracemalloc.start()
    try:
        with open_table(path, 2, resume=True) as table:
            assert sum(1 for _ in table.written()) == 5000
        assert tracemalloc.get_traced_memory()[1] < 500_000  # the file has 10 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", b"image,error,label_1,index_1,score_1\r\n"),
        ("rows.csv", b"image,error,label_1,index_1,score_1,label_2,index_2,score_2,label_3\r\n"),
        ("rows.csv", b"my notes"),
        ("rows.jsonl", b'{"path": "a.jpg"}\n'),
        ("rows.jsonl", b"my notes"),
        ("rows.parquet", b"PAR1 of a killed writer"),
    ],
)
def test_another_file_is_not_continued(tmp_path: Path, name: str, content: bytes) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"cannot continue .*{name}.*write another file"):
        open_table(tmp_path / name, 2, resume=True)
    assert (tmp_path / name).read_bytes() == content


def test_a_parquet_file_of_other_columns_is_not_continued(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"image": ["a.jpg"]}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="has the columns .*'image'.*write another file"):
        open_table(tmp_path / "rows.parquet", 2, resume=True)
