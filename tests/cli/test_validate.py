"""`vankit validate` as a user types it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

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
