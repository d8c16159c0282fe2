"""A run's log, read back by the csv module and by TensorBoard."""

import csv
import io
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vankit.errors import UserError, WriteError
from vankit.locks import held
from vankit.training.logs import Log, LogEpochLoss


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events(out: Path) -> EventAccumulator:
    read = EventAccumulator(str(out / "tensorboard"))
    read.Reload()
    return read


def scalars(out: Path) -> dict[str, list[tuple[int, float]]]:
    read = events(out)
    return {name: [(e.step, e.value) for e in read.Scalars(name)] for name in read.Tags()["scalars"]}


def test_rows_and_events(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.log_metrics({"loss": 2.5, "epoch": 0}, step=0)
    log.log_metrics({"loss": 1.5, "epoch": 0}, step=19)
    log.log_metrics({"accuracy": 0.25, "epoch": 0}, step=19)
    log.log_metrics({"loss": 0.5, "epoch": 1}, step=39)
    assert rows(tmp_path) == [
        {"accuracy": "", "epoch": "0", "loss": "2.5", "step": "0"},
        {"accuracy": "", "epoch": "0", "loss": "1.5", "step": "19"},
        {"accuracy": "0.25", "epoch": "0", "loss": "", "step": "19"},
        {"accuracy": "", "epoch": "1", "loss": "0.5", "step": "39"},
    ]
    assert scalars(tmp_path) == {
        "loss": [(0, 2.5), (19, 1.5), (39, 0.5)],
        "accuracy": [(19, 0.25)],
        "epoch": [(0, 0), (19, 0), (19, 0), (39, 1)],
    }


def test_pictures(tmp_path: Path) -> None:
    log = Log(tmp_path)
    picture = Image.linear_gradient("L").convert("RGB").resize((40, 30))
    for step in (4, 9):
        log.log_picture("validation", picture, step)
    found = events(tmp_path).Images("validation")
    assert [(image.step, image.width, image.height) for image in found] == [(4, 40, 30), (9, 40, 30)]
    with Image.open(io.BytesIO(found[0].encoded_image_string)) as image:
        assert np.abs(np.asarray(image).astype(int) - np.asarray(picture)).mean() < 3


def test_a_second_log_of_a_run_follows_the_first(tmp_path: Path) -> None:
    Log(tmp_path).log_metrics({"loss": 2.0}, step=0)
    (tmp_path / "metrics.csv").rename(tmp_path / "metrics-1.csv")
    Log(tmp_path).log_metrics({"loss": 1.0}, step=1)
    assert scalars(tmp_path) == {"loss": [(0, 2.0), (1, 1.0)]}
    assert rows(tmp_path) == [{"loss": "1.0", "step": "1"}]


@pytest.mark.parametrize("kept", [0, 1, 2, 9])
def test_a_table_goes_on_after_the_rows_of_a_state(kept: int, tmp_path: Path) -> None:
    first = Log(tmp_path)
    for step in range(3):
        first.log_metrics({"epoch": 0, "loss": float(step), **({"lr": 0.5} if step == 2 else {})}, step=step)
    log = Log(tmp_path)
    log.go_on(kept)
    log.log_metrics({"lr": 0.25}, step=7)
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [*map(str, range(min(kept, 3))), "7"]
    assert log.rows == len(found) and found[-1]["lr"] == "0.25"


@pytest.mark.parametrize(
    "table",
    [
        "epoch,loss,step\n0,1,2,3\n",
        "epoch,loss,step\n0,1\n",
        "garbage,,,\n",
        "garbage,,,\n0,1,2,3\n",
        "epoch,epoch,step\n0,1,2\n",
        "",
    ],
)
def test_a_table_that_is_damaged_is_answered_and_left_as_it_is(table: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(table)
    with pytest.raises(UserError, match=r"metrics\.csv is damaged: move it away"):
        Log(tmp_path).go_on(1)
    assert (tmp_path / "metrics.csv").read_text() == table


@pytest.mark.parametrize("metrics", [{"loss": 1.0}, {"loss": 1.0, "further": 1.0}])
@pytest.mark.parametrize("table", [True, False])
def test_a_full_disk_leaves_the_log_as_it_was(
    metrics: dict[str, float],
    table: bool,
    files_up_to: Callable[[int], AbstractContextManager[None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log(tmp_path)
    log.log_metrics({"loss": 2.0}, step=0)
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    if table:
        monkeypatch.setattr(log, "_add_event", lambda *_: None)
    with files_up_to(len(before["metrics.csv"]) + 3), pytest.raises(WriteError, match="cannot write .*too large"):
        log.log_metrics(metrics, step=1)
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("begun", [True, False])
def test_a_folder_that_is_gone_stays_gone(begun: bool, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    log = Log(out)
    if begun:
        log.log_metrics({"loss": 2.0}, step=0)
    shutil.rmtree(out)
    calls: list[Callable[[], Any]] = [
        lambda: log.log_metrics({"loss": 1.0}, step=1),
        lambda: log.log_metrics({"further": 1.0}, step=1),
        lambda: log.log_picture("validation", Image.new("RGB", (4, 4)), 1),
    ]
    for call in calls:
        with pytest.raises(WriteError, match="cannot write .*No such file"):
            call()
    assert not out.exists()


def test_nothing_is_written_into_a_folder_that_has_taken_the_place_of_the_runs(tmp_path: Path) -> None:
    """A further column, the first event and the first picture make files."""
    out = tmp_path / "run"
    out.mkdir()
    with held(out):
        log = Log(out)
        shutil.rmtree(out)
        out.mkdir()
        for call in (lambda: log.log_metrics({"loss": 1.0}), lambda: log.log_picture("x", Image.new("RGB", (4, 4)), 1)):
            with pytest.raises(WriteError, match="cannot write .*No such file"):
                call()
        assert list(out.iterdir()) == []


def test_a_batch_whose_images_were_all_left_out_counts_nothing() -> None:
    loss = LogEpochLoss()
    trainer = SimpleNamespace(accumulate_grad_batches=2)
    batches = ((None, []), ({}, []), ({"loss": None}, []), ({"loss": torch.tensor(0.5)}, [1, 2, 3]))
    for outputs, images in batches:
        loss.on_train_batch_end(trainer, None, outputs, (images, []), 0)  # type: ignore[arg-type]
    assert (loss.sum, loss.images) == (3.0, 3)
