"""`vankit convert` as a user types it."""

from collections.abc import Callable
from pathlib import Path

import pytest

import vankit

Run = Callable[..., int]


def test_convert(run: Run, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert", checkpoint, tmp_path / "w.pth", "--to", "mmpretrain") == 0
    assert "(vankit)" in capsys.readouterr().out
    assert vankit.read_checkpoint(tmp_path / "w.pth").format == "mmpretrain"
