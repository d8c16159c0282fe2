"""`vankit export` as a user types it."""

from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., int]


@pytest.mark.parametrize("kind", ["pt2", pytest.param("openvino", marks=pytest.mark.slow)])
def test_export_and_predict(
    run: Run, kind: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("predict", photo, "--model", "van_b0.cifar10", "--engine", "torch")
    expected = capsys.readouterr().out
    assert run("export", "van_b0.cifar10", "--format", kind, "--out", tmp_path / "exported") == 0
    assert "next: vankit predict photo.jpg --model " in capsys.readouterr().out
    assert run("predict", photo, "--model", tmp_path / "exported") == 0
    assert capsys.readouterr().out == expected
