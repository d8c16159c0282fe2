"""`vankit validate` as a user types it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from vankit.deploy.opening import open_network
from vankit.models.weights import write_tensors

Run = Callable[..., int]


def test_validate_segments(run: Run, segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("images", "annotations"):
        (tmp_path / folder / "test").mkdir(parents=True)
    Image.new("RGB", (40, 32)).save(tmp_path / "images" / "test" / "0.png")
    Image.new("L", (40, 32)).save(tmp_path / "annotations" / "test" / "0.png")
    (tmp_path / "classes.txt").write_text("grass\nsky\n")
    words = ("--checkpoint", segmenter, "--split", "test", "--workers", "0", "--engine", "torch")
    assert run("validate", tmp_path, *words, "--output", tmp_path / "report.json") == 0
    out = capsys.readouterr().out
    assert "grass" in out and "mIoU" in out
    assert json.loads((tmp_path / "report.json").read_text())["images"] == 1


def test_mapped_labels_are_the_networks(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Masks of 0 and 255: refused as they are; what train was told, validate knows from the checkpoint."""
    for split in ("train", "val"):
        for i in range(2):
            image, mask = Image.new("RGB", (32, 32), (20, 20, 20)), Image.new("L", (32, 32))
            for picture, value in ((image, (230, 60, 60)), (mask, 255)):
                picture.paste(value, (8 + i, 8, 28, 24))
            for folder, picture in (("images", image), ("annotations", mask)):
                path = tmp_path / "data" / folder / split / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
    (tmp_path / "data" / "classes.txt").write_text("background\nobject\n")
    words = ("train", tmp_path / "data", "--task", "segment", "--recipe", "short", "--epochs", "1", "--crop", "32")
    words = (*words, "--short-sides", "32", "--warmup-iterations", "0", "--workers", "0", "--batch-size", "2")
    assert run(*words, "--output", tmp_path / "refused") == 1
    assert "the labels hold the values 0 (69.5%), 255 (30.5%)" in capsys.readouterr().err
    assert run(*words, "--map-labels", "255:1", "--output", tmp_path / "run") == 0
    checkpoint = tmp_path / "run" / "best.safetensors"
    report = tmp_path / "report.json"
    words = ("--checkpoint", checkpoint, "--output", report, "--workers", "0", "--engine", "torch")
    assert run("validate", tmp_path / "data", *words) == 0
    assert [row["pixels"] for row in json.loads(report.read_text())["classes"]] == [2048 - 320 - 304, 320 + 304]


def test_validate_a_multi_label_network(
    run: Run, checkpoint: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = open_network(checkpoint=checkpoint)
    description = replace(network.description, thresholds=[0.0, 1.0])
    write_tensors(network.module.state_dict(), tmp_path / "x.safetensors", description.to_metadata())
    (tmp_path / "labels.csv").write_text(f"file,cat,dog\n{photo.name},1,1\n")
    words = ("--checkpoint", tmp_path / "x.safetensors", "--workers", "0", "--engine", "torch")
    assert run("validate", tmp_path / "labels.csv", *words) == 0
    out = capsys.readouterr().out
    assert "mAP 100.0%  precision 100.0%  recall 50.0%  F1 66.7%  images 1  left out 0" in out
    assert "threshold" in out
