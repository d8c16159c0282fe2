"""`vankit inspect` as a user types it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., int]


def folder(root: Path, classes: int, images: int = 2) -> Path:
    for label in range(classes):
        for i in range(images):
            path = root / "train" / f"class{label:02}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng([label, i]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    return root


def test_one_screen(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "set[1]", 30)
    for i in range(5):
        (root / "train" / "class03" / f"more{i}.png").write_bytes((root / "train/class03/1.png").read_bytes())
    (root / "train" / "class04" / "0.png").write_bytes(b"x" * 10)
    monkeypatch.chdir(tmp_path)
    assert run("inspect", "set[1]") == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "set[1]: classify, 30 classes"
    assert "train       64        8x8      8x8       8x8   100.0%" in [line.strip() for line in lines]
    assert "no val split: training holds 30 of the 65 training images out (--val-share)" in lines
    assert any(line.split() == ["class03", "7"] for line in lines)
    assert any(line.split() == ["…", "18", "more"] for line in lines)
    wanted = "--skip-bad: train: images that cannot be read (1): set[1]/train/class04/0.png is not an image"
    assert wanted in " ".join(out.split())
    assert "  files of train that repeat another (5): train/class03/1.png = train/class03/more0.png" in lines
    assert "  vankit train 'set[1]' --recipe short --img-size 32 --batch-size 32 --skip-bad" in lines
    assert len(lines) <= 40


def test_a_page(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", folder(tmp_path / "set", 2), "--output", tmp_path / "report.html", "--workers", "0") == 0
    assert capsys.readouterr().out.endswith(f"report: {tmp_path / 'report.html'}\n")
    assert "<title>" in (tmp_path / "report.html").read_text()


def test_another_task_is_named(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from test_docs import write_coco

    write_coco(tmp_path / "coco")
    assert run("inspect", tmp_path / "coco") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'coco'}: panoptic, 11 classes (also: --task detect)\n")
    assert run("inspect", tmp_path / "coco", "--task", "detect") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'coco'}: detect, 10 classes\n")


def test_a_mistake_is_one_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", tmp_path) == 1
    assert capsys.readouterr().err.startswith(f"vankit: nothing in {tmp_path} that could be trained on: ")
    assert run("inspect", "shapes") == 1
    assert capsys.readouterr().err.count("\n") == 1
