"""`vankit study` as a user types it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., int]


def test_decomposition(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("study", "decomposition", "--plot", tmp_path / "plot.png") == 0
    page = capsys.readouterr().out
    for text in ("451,584", "15,136", "3,392", "115,605,504", "487,936", "300,032", "fewest at d=3"):
        assert text in page
    assert (tmp_path / "plot.png").is_file()
    assert run("study", "decomposition", "--kernel-size", 7, "--channels", 1, 2) == 0
    assert "K = 7, d = 2" in capsys.readouterr().out


def test_variants(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("study", "variants", "van_b0", "--size", 64) == 0
    page = capsys.readouterr().out
    for text in ("van_b0 at 64 px", "stage3", "dilated depth-wise", "MLP depth-wise", "head", "4,105,800"):
        assert text in page


def test_ablation_without_training(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("study", "ablation") == 0
    page = capsys.readouterr().out
    for text in ("without DW-D", "dense 21x21", "124.73", "124.7", "K 28, d 4", "4.14", "75.4"):
        assert text in page
    assert run("study", "ablation", "--epochs", 3) == 1
    assert "add --train DATA" in capsys.readouterr().err
    assert run("study", "ablation", "--train", "shapes", "--seed", 3) == 2  # what the rows and --seeds set
    assert "Unknown option: --seed" in capsys.readouterr().err


def test_ablation_trained(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in [f"{s}/{c}" for s in ("train", "val") for c in ("bright", "dark")]:
        (tmp_path / "data" / place).mkdir(parents=True)
        for i in range(4):
            level = (200 if place.endswith("bright") else 50) + i
            Image.fromarray(np.full((32, 32, 3), level, np.uint8)).save(tmp_path / "data" / place / f"{i}.png")
    settings = ["--epochs", 1, "--warmup-epochs", 0, "--batch-size", 4, "--img-size", 32, "--workers", 0]
    words = ["study", "ablation", "--train", tmp_path / "data", "--seeds", 1, "--output", tmp_path / "out"]
    assert run(*words, *settings, "--rows", "without DW", "full", "--plot", tmp_path / "plot.png") == 0
    page = capsys.readouterr().out
    assert "without DW, seed 0: top-1" in page
    assert (tmp_path / "plot.png").is_file()
    assert (tmp_path / "out" / "full-0" / "last.safetensors").is_file()


def test_compare(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["van_b0", "resnet18", "--seconds", 0, "--plot", tmp_path / "plot.png"]
    assert run("study", "compare", *words) == 0
    page = capsys.readouterr().out
    for text in ("van_b0", "4.1", "75.4", "resnet18", "11.7", "71.5"):
        assert text in page
    assert (tmp_path / "plot.png").is_file()
