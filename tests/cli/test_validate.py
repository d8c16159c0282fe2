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
