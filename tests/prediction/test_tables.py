"""Prediction tables read back by the libraries everyone reads them with."""

import csv
import json
import os
import tracemalloc
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vankit.errors import UserError, WriteError
from vankit.locks import held
from vankit.prediction.tables import Names, Row, open_table, reserved

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


def resume(path: Path, rows: list[Row], **options: Any) -> int:
    """Write what is missing of the rows; how many were done."""
    with open_table(path, 2, resume=True, **options) as table:
        done = len(table.done)
        for row in rows:
            if not table.done.take(row["image"]):
                table.write(row)
    return done


def read(path: Path) -> list[tuple[str, str]]:
    """Image and error of each row, by another library where there is one."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return [(row["image"], row["error"]) for row in csv.DictReader(file)]
    if path.suffix == ".jsonl":
        rows = map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    return [(row["image"], row["error"] or "") for row in rows]


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
    assert resume(path, rows) == sum(end <= cut for end in ends)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "cut"), [("rows.csv", b"b.jpg,,cat\r\n"), ("rows.csv", b"\xff\r\n"), ("rows.jsonl", b'{"image": "b\n')]
)
def test_a_damaged_row_is_named_and_nothing_is_lost(name: str, cut: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    write(path, [labelled("a")])
    whole = path.read_bytes()
    path.write_bytes(whole + cut + whole[whole.index(b"a") :])
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"cannot continue .*{name}: its row 2 is damaged; remove that row"):
        open_table(path, 2, resume=True)
    assert path.read_bytes() == before


SUFFIXES = pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])


@SUFFIXES
def test_done_are_the_images_that_have_a_row(tmp_path: Path, suffix: str) -> None:
    """Whatever their order, though images were deleted and added, and one is given twice."""
    pytest.importorskip("pyarrow")
    path = tmp_path / f"rows.{suffix}"
    write(path, [labelled(name) for name in ("c", "gone", "a", "twice")])
    again = [labelled(name) for name in ("0 new", "a", "b", "c", "twice", "twice")]
    assert resume(path, again) == 4
    assert [name for name, _ in read(path)] == ["c", "gone", "a", "twice", "0 new", "b", "twice"]
    assert resume(path, again) == 7 and len(read(path)) == 7


@SUFFIXES
def test_a_row_with_an_error_is_tried_again(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / f"rows.{suffix}"
    failed = {"labels": [], "indices": [], "scores": []}
    before = [{"image": "mended", **failed, "error": "x"}, labelled("a"), {"image": "bad\n", **failed, "error": "y"}]
    write(path, [*before, labelled("b")])
    again = [labelled("mended"), labelled("a"), {**before[2], "error": "z"}, labelled("b")]
    assert resume(path, again) == 2
    assert read(path) == [("a", ""), ("b", ""), ("mended", ""), ("bad\n", "z")]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_names_are_taken_as_often_as_they_were_given() -> None:
    names = Names(["a", "b", "a"])
    assert [names.take(name) for name in ("a", "c", "a", "a", "b", "b")] == [True, False, True, False, True, False]
    assert not Names().take("a")


@SUFFIXES
def test_a_finished_table_takes_further_rows(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pyarrow")
    path, whole = tmp_path / f"rows.{suffix}", tmp_path / f"whole.{suffix}"
    first, more = [ROWS[0], labelled("second")], [ROWS[0], labelled("second"), labelled("third")]
    write(path, first)
    status = path.stat()
    assert resume(path, first) == 2
    assert (path.stat().st_ino, path.stat().st_size) == (status.st_ino, status.st_size)
    assert resume(path, more) == 2
    write(whole, more)
    assert resume(path, more) == resume(whole, more) == 3
    if suffix != "parquet":
        assert path.read_bytes() == whole.read_bytes()


@SUFFIXES
def test_without_resume_nothing_stays(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / f"rows.{suffix}"
    write(path, [labelled(str(i)) for i in range(2000)])
    killed = open_table(path, 2)
    for i in range(1500):
        killed.write(labelled(f"killed {i}"))
    with open_table(path, 2) as table:
        assert len(table.done) == 0
        table.write(ROWS[0])
    assert resume(path, ROWS[:1]) == 1
    assert len(list(tmp_path.iterdir())) == 1


@SUFFIXES
def test_a_long_table_takes_a_few_bytes_per_row(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pyarrow.parquet")
    path = tmp_path / f"rows.{suffix}"
    write(path, [labelled(f"{'x' * 1000} {i}") for i in range(5000)])
    tracemalloc.start()
    try:
        with open_table(path, 2, resume=True) as table:
            assert len(table.done) == 5000
            assert tracemalloc.get_traced_memory()[0] < 200_000
        if suffix != "parquet":  # of which a group of 1024 names is in memory
            assert tracemalloc.get_traced_memory()[1] < 500_000  # the file has 10 MB
    finally:
        tracemalloc.stop()


TEXTS = ["=1+2", "+1", "-1", "@x", "\tx", "\rx", "'=1", "''-1", "\uff1d1", "'plain", "a=b", "1.jpg", ""]


@pytest.mark.parametrize("safe", [False, True])
def test_formulas_in_a_csv(tmp_path: Path, safe: bool) -> None:
    path = tmp_path / "rows.csv"
    texts = [text for text in TEXTS if safe or not text.startswith(("'=", "''"))]
    rows = [{**labelled(text), "error": text} if i % 2 else labelled(text) for i, text in enumerate(texts)]
    with open_table(path, 2, safe_csv=safe) as table:
        for row in rows:
            table.write(row)
    with path.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    for text, row, cells in zip(texts, rows, found, strict=True):
        acts = text[:1] in tuple("=+-@\t\r\uff1d")
        marked = f"'{text}" if acts or text.startswith(("'=", "''")) else text
        assert cells["image"] == cells["label_1"] == (marked if safe else text)
        assert cells["error"] == ((marked if safe else text) if row["error"] else "")
    assert resume(path, [labelled(text) for text in texts], safe_csv=safe) == sum(not row["error"] for row in rows)
    assert len(read(path)) == len(texts)
    with pytest.raises(UserError, match=r"begun with(out)? safe_csv \(--safe-csv\); (pass it|leave it out) again"):
        open_table(path, 2, resume=True, safe_csv=not safe)


def test_safe_csv_is_for_csv(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="safe_csv .* is for .csv"):
        open_table(tmp_path / "rows.jsonl", 2, safe_csv=True)


def test_a_full_disk_is_named_and_the_rows_before_stay(
    files_up_to: Callable[[int], AbstractContextManager[None]], tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    write(path, [labelled("a"), labelled("b")])
    size = path.stat().st_size

    def overflow() -> None:
        with open_table(path, 2, resume=True) as table:
            table.write(labelled("x" * 1000))

    with files_up_to(size + 100), pytest.raises(WriteError, match=f"cannot write {path}: File too large"):
        overflow()
    assert resume(path, [labelled(name) for name in "abc"]) == 2
    assert [name for name, _ in read(path)] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_what_cannot_be_a_table_is_refused_before_the_work(name: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")
    for path, says in ((tmp_path / name, "is a folder"), (tmp_path / "file" / name, "Not a directory")):
        with pytest.raises(UserError, match=says), reserved(path):
            pass
    with pytest.raises(UserError, match=r"file: expected a name ending in \.csv"), reserved(tmp_path / "file"):
        pass


def test_an_output_is_reserved_by_one(tmp_path: Path) -> None:
    for name in ("rows.csv", "new.jsonl"):
        with (
            reserved(tmp_path / name),
            pytest.raises(UserError, match=f"{name} is being written by process {os.getpid()}"),
            reserved(tmp_path / name),
        ):
            pass
    (tmp_path / "folder").mkdir()
    with held(tmp_path / "folder"), pytest.raises(UserError, match="being written"), reserved(tmp_path / "folder"):
        pass
    shards = tmp_path / "shards.parquet"
    for _ in range(2):
        with reserved(shards, folder=True):
            shards.mkdir(exist_ok=True)
            with held(shards):
                pass
    shards.rmdir()
    with reserved(tmp_path / "folder"), held(tmp_path / "folder"), reserved("memory://x"), reserved(None):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


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


def test_what_is_no_table_is_not_continued(tmp_path: Path) -> None:
    for name, advice in (("a.jsonl", "name the file that was begun"), ("a.csv", r"ask for as many labels \(top_k\)")):
        (tmp_path / name).write_text("garbage\n")
        with pytest.raises(UserError, match=rf"it starts with b'garbage\\n', .*; {advice}") as error:
            open_table(tmp_path / name, 2, resume=True)
        assert ("top_k" in str(error.value)) == (name == "a.csv")
        assert (tmp_path / name).read_text() == "garbage\n"
