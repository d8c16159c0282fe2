"""`vankit predict` as a user types it."""

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vankit.deploy.opening import open_network
from vankit.locks import held
from vankit.models.weights import read_metadata, write_tensors

Run = Callable[..., int]
TORCH = ("--engine", "torch")  # quick to start


def test_predict_prints_labels(run: Run, checkpoint: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", photo, "--checkpoint", checkpoint, *TORCH) == 0
    page = capsys.readouterr().out
    assert str(photo) in page
    assert "cat" in page
    assert "%" in page


def test_predict_reports_failures_and_goes_on(
    run: Run, checkpoint: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"hello")
    words = ("predict", tmp_path / "broken.jpg", photo, "--checkpoint", checkpoint, *TORCH)
    assert run(*words, "--output", tmp_path / "o.jsonl") == 1
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [bool(row["error"]) for row in rows] == [True, False]
    page = capsys.readouterr()
    assert "broken.jpg is not an image" in page.err
    assert "2 images, 1 failed" in page.out


def test_a_killed_run_is_resumed(run: Run, checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    photos = [tmp_path / f"{i}.png" for i in range(4)]
    for path in photos:
        path.write_bytes(photo.read_bytes())
    words = ("--checkpoint", checkpoint, *TORCH, "--batch-size", "1")  # a batch's size is seen in the last digits
    whole, killed = tmp_path / "whole.csv", tmp_path / "killed.csv"
    assert run("predict", *photos, *words, "--output", whole) == 0
    killed.write_bytes(whole.read_bytes()[:-40])  # in the midst of the last row
    before = killed.read_bytes().rpartition(b"\n")[0]
    assert run("predict", *photos, *words, "--output", killed, "--resume") == 0
    assert killed.read_bytes() == whole.read_bytes()
    assert killed.read_bytes().startswith(before)


def test_images_by_other_names_are_read_again_with_a_warning(
    run: Run, checkpoint: Path, photo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("--checkpoint", checkpoint, *TORCH, "--output", tmp_path / "out.csv")
    assert run("predict", photo, *words) == 0
    other = photo.rename(tmp_path / "other.png")
    assert run("predict", other, *words, "--resume") == 0
    assert "none of its 1 images is among those given now" in caplog.text
    rows = (tmp_path / "out.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [str(photo), str(other)]


def test_safe_csv_is_for_a_csv_file(run: Run, checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    words = ("predict", photo, "--checkpoint", checkpoint, *TORCH, "--safe-csv")
    assert run(*words) == run(*words, "--output", tmp_path / "o.jsonl") == 1
    for name in ("=1.png", "-2.png"):
        photo.with_name(name).write_bytes(photo.read_bytes())
    with contextlib.chdir(tmp_path):
        output = ("--output", "o.csv", "--checkpoint", checkpoint, *TORCH, "--safe-csv")
        assert run("predict", "=1.png", *output) == 0
        assert run("predict", "=1.png", "photo.png", *output, "--resume") == 0
    rows = (tmp_path / "o.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["'=1.png", "photo.png"]


def test_an_output_that_cannot_be_is_refused_before_a_network_is_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vankit.cli.predict.open_network", None)
    (tmp_path / "file").write_text("")
    (tmp_path / "rows.csv").mkdir()
    for output, says in (
        ("rows.csv", "is a folder"),
        ("file", "file: expected a name ending in .csv"),
        ("file/rows.csv", "Not a directory"),
    ):
        assert run("predict", "x.png", "--output", tmp_path / output) == 1
        assert says in capsys.readouterr().err
    with held(tmp_path / "free.csv"):
        assert run("predict", "x.png", "--output", tmp_path / "free.csv") == 1
    assert f"being written by process {os.getpid()} on" in capsys.readouterr().err


def test_names_cannot_steer_the_terminal(
    run: Run, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = open_network("van_b0.cifar10")
    names = [f"{i}\x1b[31m\r\u202e[/]" for i in range(10)]
    description = replace(network.description, classes=names)
    write_tensors(network.module.state_dict(), tmp_path / "x.safetensors", description.to_metadata())
    evil = photo.rename(tmp_path / "a\x1b[2J\n.png")
    assert run("predict", evil, tmp_path / "b\x9b.png", "--checkpoint", tmp_path / "x.safetensors", *TORCH) == 1
    out, err = capsys.readouterr()
    assert not set("\x1b\r\x9b\u202e") & set(out + err)
    assert out.splitlines()[0] == f"{tmp_path}/a\\x1b[2J\\n.png" and len(out.splitlines()) == 6
    assert "\\x1b[31m\\r\\u202e[/]" in out and "b\\x9b.png" in err


def test_predict_segments(
    run: Run, segmenter: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing.png"
    words = ("predict", photo, missing, "--checkpoint", segmenter, *TORCH)
    assert run(*words, "--output", tmp_path / "found") == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith(f"{photo}: ") and "%" in out
    assert str(missing) in err
    assert (tmp_path / "found" / "photo.png").is_file()
    assert json.loads((tmp_path / "found" / "predictions.json").read_text())


def test_predict_draws_on_a_video(
    run: Run, segmenter: Path, write_clip: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", range(0, 1000, 100), options={"movflags": "faststart"})
    words = ("predict", clip, "--checkpoint", segmenter, *TORCH)
    assert run(*words, "--output", tmp_path / "found.mp4") == 0
    assert capsys.readouterr().out == f"10 frames: {tmp_path}/found.mp4, and what is in each: {tmp_path}/found.jsonl\n"
    assert len((tmp_path / "found.jsonl").read_text().splitlines()) == 10
    clip.write_bytes(clip.read_bytes()[:-200])
    assert run(*words, "--output", tmp_path / "found.mkv") == 1
    out, err = capsys.readouterr()
    assert not out and f"{tmp_path}/found.mkv has the " in err and "frames before" in err and err.count("\n") == 1
    assert 0 < len((tmp_path / "found.jsonl").read_text().splitlines()) < 10
    assert run(*words, "--output", tmp_path / "folder") == 1
    assert (
        "clip.mp4 is a video: name the video to write as output (--output), such as found.mp4"
        in capsys.readouterr().err
    )


def test_a_multi_label_network_may_find_nothing(
    run: Run, checkpoint: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = open_network(checkpoint=checkpoint)
    for thresholds, shown in (([1.0, 1.0], ["  no label"]), ([0.0, 1.0], ["cat"]), ([0.0, 0.0], ["cat", "dog"])):
        description = replace(network.description, thresholds=thresholds)
        write_tensors(network.module.state_dict(), tmp_path / "x.safetensors", description.to_metadata())
        assert run("predict", photo, "--checkpoint", tmp_path / "x.safetensors", *TORCH) == 0
        first, *lines = capsys.readouterr().out.splitlines()
        assert first == str(photo) and sorted(line.split("%  ")[-1] for line in lines) == shown


def test_the_folder_of_scenes_is_refused_before_a_network_is_loaded(
    run: Run, checkpoint: Path, segmenter: Path, photo: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(photo.parent)
    broken = photo.parent / "broken.safetensors"
    write_tensors({"stage1.patch_embed.proj.weight": torch.ones(1)}, broken, read_metadata(segmenter))
    words = "predict", photo, "--checkpoint"
    assert run(*words, broken) == 1
    assert f"vankit: {broken}" in capsys.readouterr().err
    Path("predictions").mkdir()
    with held("predictions"):
        assert run(*words, broken) == run("predict", photo, "--model", broken) == 1
        says = f"vankit: {Path('predictions').resolve()} is being written by process {os.getpid()} on"
        assert [line.startswith(says) for line in capsys.readouterr().err.splitlines()] == [True, True]
        assert run(*words, broken, "--output", photo.parent / "free") == 1
        assert f"vankit: {broken}" in capsys.readouterr().err
        assert run(*words, checkpoint, *TORCH) == 0  # labels are printed
    Path("predictions").rmdir()
    Path("predictions").write_text("")
    assert run(*words, broken) == 1
    assert "predictions is a file: pass a folder" in capsys.readouterr().err
