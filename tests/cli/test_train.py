"""`vankit train` as a user types it, and `vankit validate` on what it leaves."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Run = Callable[..., int]


def test_train_and_validate(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        for name, level in (("a", 30), ("b", 220)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (32, 32), (level + i,) * 3).save(tmp_path / split / name / f"{i}.png")
    options = ("--recipe", "short", "--epochs", "1", "--warmup-epochs", "0", "--img-size", "32", "--batch-size", "2")
    assert run("train", tmp_path, *options, "--workers", "0", "--out", tmp_path / "run") == 0
    page = capsys.readouterr()
    assert "best top-1" in page.out
    assert "GPU available" not in page.out + page.err
    best = tmp_path / "run" / "best.safetensors"
    words = ("--checkpoint", best, "--output", tmp_path / "r.json", "--workers", "0", "--engine", "torch")
    assert run("validate", tmp_path, *words) == 0
    assert "top-1" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["images"] == 4


def test_a_setting_of_another_task_is_refused(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "shapes", "--task", "detect", "--mixup", "0.5", "--out", tmp_path / "run") == 1
    assert "--mixup is no setting of task detect" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
