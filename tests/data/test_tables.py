"""Prediction tables read back by the libraries everyone reads them with."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vankit.data.tables import Row, open_table

ROWS: list[Row] = [
    {"image": 'a,b "c".jpg', "labels": ["cat", "dog"], "indices": [3, 5], "scores": [0.75, 0.25], "error": None},
    {"image": "é\n.jpg", "labels": [], "indices": [], "scores": [], "error": "broken, truly"},
]


def write(path: Path, rows: list[Row]) -> None:
    with open_table(path, 2) as table:
        for row in rows:
            table.write(row)


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


def test_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows\.xlsx: expected a name ending in \.csv, \.jsonl, \.parquet"):
        open_table(tmp_path / "rows.xlsx", 5)
