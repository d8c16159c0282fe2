"""Jobs that are killed, stopped, begun twice, and continued on other images than before: no row lost, none doubled."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# The command line with a network that answers at once, so that a kill hits the reading and writing of rows
PROGRAM = """
import os, signal, sys, time
from types import SimpleNamespace

signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs in the background may not have

import vankit.cli.predict as command
from vankit.cli import main
from vankit.prediction import jobs
from vankit.prediction.labels import Label, Prediction


class Quick:
    top_k, engine = 1, None

    def __init__(self, *_, **__):
        pass

    def stream(self, images):
        for image in images:
            time.sleep(0.002)
            name = str(image)
            failed = name.endswith("7.png") and "MENDED" not in os.environ
            yield Prediction(name, error="broken") if failed else Prediction(name, (Label(name[::-1], 0, 0.5),))


command.open_network = lambda *_, **__: SimpleNamespace(dense=False)
jobs.Predictor = Quick
main(sys.argv[1:])
"""


@contextmanager
def started(folder: Path, output: Path, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """`vankit predict FOLDER --output OUTPUT --resume` as a process of its own."""
    words = ["predict", str(folder), "--output", str(output), "--resume"]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return [{**row, "labels": [row["label_1"]] * bool(row["label_1"])} for row in csv.DictReader(file)]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()


def on_disk(output: Path) -> int:
    """Bytes of a table under way."""
    paths = [output, *output.parent.glob(f"{output.name}.parts/*.parquet")]
    return sum(path.stat().st_size for path in paths if path.is_file())


def wait_until_it_writes(process: "subprocess.Popen[str]", output: Path) -> None:
    before, end = on_disk(output), time.monotonic() + 60
    while on_disk(output) <= before + 200 and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.005)


def expect(output: Path, folder: Path, gone: set[str]) -> None:
    """Every image has one row and its own label, and nothing else has one but images that are gone."""
    rows = rows_of(output)
    names = [row["image"] for row in rows]
    present = {str(path) for path in folder.iterdir()}
    assert len(names) == len(set(names)) and present <= set(names) <= present | gone
    assert all(row["labels"] == [row["image"][::-1]] and not row["error"] for row in rows)
    assert [path.name for path in output.parent.glob(f"*{output.name}*")] == [output.name]


def touch_all(folder: Path, count: int) -> None:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:04}.png").touch()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_kills_and_other_images_lose_and_double_no_row(suffix: str, tmp_path: Path) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    rng, folder, output = random.Random(suffix), tmp_path / "photos", tmp_path / f"rows.{suffix}"
    touch_all(folder, 2500)
    gone = set()
    for attempt in range(3):
        with started(folder, output) as process:
            wait_until_it_writes(process, output)
            time.sleep(rng.uniform(0, 0.3))
            assert process.poll() is None, process.communicate()
            process.kill()
        for path in rng.sample(sorted(folder.iterdir()), 5):
            path.unlink()
            gone.add(str(path))
        (folder / f"{rng.randrange(2500):04}-{attempt}.png").touch()
    with started(folder, output, MENDED="") as first, started(folder, output, MENDED="") as second:
        ends = [process.communicate(timeout=120) for process in (first, second)]
    statuses = [first.returncode, second.returncode]
    assert sorted(statuses) == [0, 1], ends
    loser = statuses.index(1)
    writer = (first, second)[1 - loser]
    said = ends[loser][1]
    assert said.startswith(f"vankit: {output} is being written by process {writer.pid} on ") and said.count("\n") == 1
    expect(output, folder, gone)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_job_keeps_every_row(number: signal.Signals, status: int, tmp_path: Path) -> None:
    """Of Parquet, which has no row on disk in the first seconds."""
    pytest.importorskip("pyarrow")
    folder, output = tmp_path / "photos", tmp_path / "rows.parquet"
    touch_all(folder, 2500)
    with started(folder, output) as process:
        assert process.stderr is not None
        assert "0007.png: broken" in process.stderr.readline()  # eight rows and more are written
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
    assert process.returncode == status
    assert not out and [line for line in error.splitlines() if not line.endswith("7.png: broken")] == []
    assert 8 <= len(rows_of(output)) < 2500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "rows.parquet"]
    with started(folder, output, MENDED="") as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    expect(output, folder, set())
