"""`vankit explain` as a user types it."""

from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., int]


def test_explain(run: Run, checkpoint: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"hello")
    words = ("explain", tmp_path / "broken.jpg", photo, "--checkpoint", checkpoint, "--output", tmp_path / "out")
    assert run(*words, "--target", "dog", "--target", "0", "--img-size", "64", "--stage", "3") == 1
    out, err = capsys.readouterr()
    assert "broken.jpg is not an image" in err
    assert out.startswith(f"{photo}: van_b0 dog ") and "; van_b0 cat " in out
    assert out.strip().endswith(str(tmp_path / "out" / "photo.png"))
    assert run("explain", photo, *words[3:], "--method", "statistics") == 0
    assert "1,600 channels of 13 blocks" in capsys.readouterr().out
    assert (tmp_path / "out" / "statistics.csv").is_file()
