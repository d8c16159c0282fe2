"""`vankit convert` as a user types it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import vankit

Run = Callable[..., int]


def test_convert(run: Run, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert", checkpoint, tmp_path / "w.pth", "--to", "mmpretrain") == 0
    assert "(vankit)" in capsys.readouterr().out
    assert vankit.read_checkpoint(tmp_path / "w.pth").format == "mmpretrain"


def test_numbers_that_are_not_finite_are_said(
    run: Run, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = vankit.read_checkpoint(checkpoint)
    found.state_dict["stage1.norm.weight"][0] = torch.nan
    save_file(found.state_dict, tmp_path / "nan.safetensors")
    assert run("convert", tmp_path / "nan.safetensors", tmp_path / "w.pth", "--to", "official") == 0
    assert "NaN or infinite numbers in 1 of its 402 tensors, such as stage1.norm.weight: converted, but" in caplog.text
    assert vankit.read_checkpoint(tmp_path / "w.pth").state_dict["stage1.norm.weight"][0].isnan()
