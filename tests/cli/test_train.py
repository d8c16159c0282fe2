"""`vankit train` as a user types it, and `vankit validate` on what it leaves."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from PIL import Image

from vankit.training.recipes import RECIPES

Run = Callable[..., int]


def test_train_and_validate(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        for name, level in (("a", 30), ("b", 220)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (32, 32), (level + i,) * 3).save(tmp_path / split / name / f"{i}.png")
    options = ("--recipe", "short", "--epochs", "1", "--warmup-epochs", "0", "--img-size", "32", "--batch-size", "2")
    assert run("train", tmp_path, *options, "--workers", "0", "--output", tmp_path / "run") == 0
    page = capsys.readouterr()
    assert "best top-1" in page.out
    assert f"curves and mistakes: {tmp_path / 'run' / 'report.html'}\n" in page.out
    assert (tmp_path / "run" / "report.html").is_file()
    assert "GPU available" not in page.out + page.err
    best = tmp_path / "run" / "best.safetensors"
    words = ("--checkpoint", best, "--output", tmp_path / "r.json", "--workers", "0", "--engine", "torch")
    assert run("validate", tmp_path, *words) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert "top-1" in line and "top-5" not in line + page.out  # of two classes
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["images"] == 4 and report["top5"] is None
    assert run("validate", tmp_path, *words, "--report", tmp_path / "r.html") == 0
    assert "<h2>Surest mistakes</h2>" in (tmp_path / "r.html").read_text()
    assert "top-1" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["images"] == 4


def test_a_run_that_diverges_ends_in_one_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, level in (("a", 30), ("b", 220)):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (32, 32), (level + i,) * 3).save(tmp_path / split / name / f"{i}.png")
    options = ("--recipe", "short", "--epochs", "1", "--warmup-epochs", "0", "--img-size", "32", "--batch-size", "2")
    words = ("train", tmp_path, *options, "--workers", "0", "--lr", "1e12", "--output", tmp_path / "run")
    assert run(*words, "--nan-tolerance", "1") == 1
    page = capsys.readouterr()
    assert "best" not in page.out
    assert [line for line in page.err.splitlines() if line.startswith("vankit: ")] == [
        "vankit: the loss is not finite in epoch 1, step 3 (steps left out before: 1): lower the learning rate (--lr), "
        "limit the gradients (--clip-grad), or use --precision 32-true, or allow more steps to be left out "
        "(--nan-tolerance); no weights have been written yet"
    ]
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert run("train", tmp_path, *options, "--lr", "inf", "--output", tmp_path / "run") == 1
    assert capsys.readouterr().err == "vankit: --lr is inf, expected a finite number\n"


def test_a_full_disk_ends_in_one_line(
    run: Run,
    files_up_to: Callable[[int], AbstractContextManager[None]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, level in (("a", 30), ("b", 220)):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), (level,) * 3).save(tmp_path / split / name / "0.png")
    options = ("--recipe", "short", "--epochs", "1", "--warmup-epochs", "0", "--img-size", "32", "--batch-size", "2")
    with files_up_to(1_000_000):
        assert run("train", tmp_path, *options, "--workers", "0", "--output", tmp_path / "run") == 1
    page, last = capsys.readouterr(), tmp_path / "run" / "last.safetensors"
    assert page.out == "" and page.err == (
        f"vankit: cannot write {last}: File too large; there is nothing to resume yet: make room, or choose another "
        "folder (--output)\n"
    )


def test_a_setting_of_another_task_is_refused(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "shapes", "--task", "detect", "--mixup", "0.5", "--output", tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert "--mixup" in error and "leave it out" in error
    assert not (tmp_path / "run").exists()


def test_help_reads_well(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "--help")
    page = capsys.readouterr().out
    headings = [
        "Arguments",
        "Parameters",
        "Settings for every task",
        "Settings to classify",
        "Settings to detect or segment",
    ]
    assert re.findall(r"╭─ (.+?) ─", page) == headings
    for clutter in ("--data", "--no-resume", "--no-compile", "--empty-", "default: False", "`"):
        assert clutter not in page
    assert "--pretrained --no-pretrained" in page and "--color --no-color" in page  # some recipe switches them on
    settings = page.partition("Settings for every task")[2]
    assert (
        settings.index("--epochs ") < settings.index("--lr ") < settings.index("--mixup ") < settings.index("--flip ")
    )
    # paragraphs fill the lines
    words = next(line for line in page.splitlines() if line.startswith("Writes best.safetensors"))
    assert len(words) > 70


def test_help_names_every_recipe(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "--help")
    page = capsys.readouterr().out
    for known in RECIPES.values():
        for recipe in known:
            assert re.search(rf"^    {recipe}  ", page, re.M), recipe
