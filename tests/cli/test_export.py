"""`vankit export` as a user types it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vankit.data.preprocessing import Preprocessing
from vankit.deploy.folder import Exported
from vankit.models.description import Description

Run = Callable[..., int]

INT8 = {"measure": "top-1", "float32": 0.9, "score": 0.891, "left_out": ["depth-wise convolutions", "stage 1"]}


def test_options_arrive_and_the_outcome_is_told(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def export(model: str, checkpoint: Path | None, out: Path, **options: Any) -> Exported:
        asked.update(options, model=model, checkpoint=checkpoint)
        description = Description(classes=["a"], preprocessing=Preprocessing((3, 8, 8), (0,) * 3, (1,) * 3, 1, "box"))
        return Exported(out, "onnx", "int8", True, description, {"largest_difference": 3.4e-05, "int8": INT8})

    monkeypatch.setattr("vankit.deploy.export.export", export)
    monkeypatch.chdir(tmp_path)
    words = (
        "--format",
        "onnx",
        "--int8",
        "--calibrate",
        "flowers",
        "--max-drop",
        "0.02",
        "--dynamic",
        "--half",
        "--opset",
        "19",
        "--max-pixels",
        "9",
    )
    assert run("export", "van_b1", "--output", tmp_path / "exported", *words) == 0
    assert asked == {
        "model": "van_b1", "checkpoint": None, "format": "onnx", "int8": True, "calibrate": "flowers",
        "check": None, "max_drop": 0.02, "dynamic": True, "half": True, "opset": 19, "size": None, "runtime": None,
        "weights": None, "max_pixels": 9,
    }  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        "int8 onnx, in float32 logits within 3e-05 of PyTorch's",
        "int8 top-1 89.10%, float32 top-1 90.00%; not quantised: depth-wise convolutions, stage 1",
        "next: vankit predict photo.jpg --model exported",
    ]


@pytest.mark.slow
def test_export_and_predict(run: Run, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("predict", photo, "--model", "van_b0.cifar10", "--engine", "torch")
    expected = capsys.readouterr().out
    assert run("export", "van_b0.cifar10", "--output", tmp_path / "exported") == 0
    assert "next: vankit predict photo.jpg --model " in capsys.readouterr().out
    assert run("predict", photo, "--model", tmp_path / "exported") == 0
    assert capsys.readouterr().out == expected
