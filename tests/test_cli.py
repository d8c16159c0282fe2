"""The command line as a user types it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image

import vankit
from vankit.cli import main
from vankit.heads.build import build_network
from vankit.models.description import Description
from vankit.models.weights import write_tensors
from vankit.study.timing import Timing
from vankit.training.recipes import RECIPES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "two.safetensors"
    preprocessing = {
        "input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "interpolation": "bicubic"
    }  # fmt: skip
    metadata = {"model": "van_b0", "classes": ["cat", "dog"], "preprocessing": preprocessing}
    vankit.save_checkpoint(timm.create_model("van_b0", num_classes=2), path, metadata=metadata)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    "command", ["", "models", "train", "validate", "predict", "export", "bench", "convert", "explain", "demo"]
)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command.split(), "--help") == 0
    assert "Usage: vankit" in capsys.readouterr().out


def test_every_setting_is_an_option_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "--help")
    page = capsys.readouterr().out
    for option in (
        "--short-sides",
        "--queries",
        "--lr",
        "--weight-decay",
        "--ema-decay",
        "--grad-checkpointing",
        "--precision",
        "--accumulate",
    ):
        assert option in page
    assert "moving average" in page


def test_help_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == vankit.__version__


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    page = capsys.readouterr().out
    published = f"{vankit.complexity('van_b0').macs_all / 1e9:.3f}"
    for text in ("van_b0", "4,105,800", "0.864", published, "75.41", "93.02", "van_b6", "199,829,416", "38.710"):
        assert text in page


def test_predict_prints_labels(checkpoint: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", photo, "--checkpoint", checkpoint) == 0
    page = capsys.readouterr().out
    assert str(photo) in page
    assert "cat" in page
    assert "%" in page


def test_predict_reports_failures_and_goes_on(
    checkpoint: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"hello")
    assert (
        run("predict", tmp_path / "broken.jpg", photo, "--checkpoint", checkpoint, "--output", tmp_path / "o.jsonl")
        == 1
    )
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [bool(row["error"]) for row in rows] == [True, False]
    page = capsys.readouterr()
    assert "broken.jpg is not an image" in page.err
    assert "2 images, 1 failed" in page.out


def test_a_killed_run_is_resumed(checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    photos = [tmp_path / f"{i}.png" for i in range(4)]
    for path in photos:
        path.write_bytes(photo.read_bytes())
    whole, killed = tmp_path / "whole.csv", tmp_path / "killed.csv"
    assert run("predict", *photos, "--checkpoint", checkpoint, "--output", whole) == 0
    killed.write_bytes(whole.read_bytes()[:-40])  # in the midst of the last row
    before = killed.read_bytes().rpartition(b"\n")[0]
    assert run("predict", *photos, "--checkpoint", checkpoint, "--output", killed, "--resume") == 0
    assert killed.read_bytes() == whole.read_bytes()
    assert killed.read_bytes().startswith(before)


def test_other_images_are_not_resumed(
    checkpoint: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("predict", photo, "--checkpoint", checkpoint, "--output", tmp_path / "out.csv") == 0
    other = photo.rename(tmp_path / "other.png")
    assert run("predict", other, "--checkpoint", checkpoint, "--output", tmp_path / "out.csv", "--resume") == 1
    assert "its row 1 is of" in capsys.readouterr().err


def test_export_and_predict(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("predict", photo, "--model", "van_b0.cifar10")
    expected = capsys.readouterr().out
    assert run("export", "van_b0.cifar10", "--output", tmp_path / "exported") == 0
    assert "next: vankit predict photo.jpg --model " in capsys.readouterr().out
    assert run("predict", photo, "--model", tmp_path / "exported") == 0
    assert capsys.readouterr().out == expected


def test_bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        Timing("van_b0", "plain PyTorch", "", 0.0, 1.0, 30.0, 29.0, 31.0, 28.0, 1.0, 1.0, 1.0),
        Timing("van_b0", "openvino float32", "", 1e-5, 1.0, 5.0, 4.9, 5.1, 4.8, 6.0, 5.9, 6.1),
        Timing("van_b0", "onnxruntime float32", "not installed"),
    ]
    monkeypatch.setattr("vankit.study.timing.bench", lambda models, seconds: iter(rows))
    assert run("bench") == 0
    page = capsys.readouterr().out
    assert "5.00" in page and "6.0" in page and "not installed" in page


def test_explain(checkpoint: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_convert(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert", checkpoint, tmp_path / "w.pth", "--to", "mmpretrain") == 0
    assert "(vankit)" in capsys.readouterr().out
    assert vankit.read_checkpoint(tmp_path / "w.pth").format == "mmpretrain"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("predict", "x.jpg", "--checkpoint", "nowhere.pth"), "no checkpoint at nowhere.pth"),
        (("validate", "nowhere", "--model", "van_b0.cifar10"), "no dataset at nowhere"),
        (("train", "nowhere"), "no dataset at nowhere"),
        (("train", "shapes", "--recipe", "in21k"), "unknown recipe 'in21k'"),
        (("train", "shapes", "--epochs", "0"), "epochs is 0, expected 1 or more"),
        (("predict", "x.jpg", "--model", "van_b7"), "van_b7"),
        (("predict", "x.jpg", "--model", "./nowhere/"), "unknown model './nowhere/'"),
        (("predict", "x.jpg", "--model", "van_b0.cifar10", "--resume"), "resume continues an output"),
        (("predict", "x.jpg", "--address", "auto"), "add --workers ray"),
        (("predict", "x.jpg", "--workers", "ray"), "name a folder or URL with --output"),
        (("export", "van_b0.cifar10", "--int8"), "int8 and calibrate go together"),
        (("explain", "x.jpg", "--model", "van_b0.cifar10", "--target", "kat"), "such as cat"),
        (("explain", "--model", "van_b0.cifar10"), "grad-cam looks at images"),
        (("bench", "van_b7"), "unknown model 'van_b7'"),
        (("convert", "nowhere.pth", "x.pth"), "no checkpoint at nowhere.pth"),
    ],
)
def test_mistakes_end_in_one_line(words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("vankit: ")
    assert says in error
    assert "Traceback" not in error


def test_train_and_validate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        for name, level in (("a", 30), ("b", 220)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (32, 32), (level + i,) * 3).save(tmp_path / split / name / f"{i}.png")
    options = ("--recipe", "short", "--epochs", "1", "--warmup-epochs", "0", "--img-size", "32", "--batch-size", "2")
    assert run("train", tmp_path, *options, "--workers", "0", "--output", tmp_path / "run") == 0
    page = capsys.readouterr()
    assert "best top-1" in page.out
    assert "GPU available" not in page.out + page.err
    best = tmp_path / "run" / "best.safetensors"
    assert run("validate", tmp_path, "--checkpoint", best, "--output", tmp_path / "r.json", "--workers", "0") == 0
    assert "top-1" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["images"] == 4


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Semantic FPN of two classes."""
    path = tmp_path_factory.mktemp("dense") / "segmenter.safetensors"
    sizes = {"short_sides": (32,), "long_side": 64, "crop": 32}
    found = Description("segment", "semantic_fpn", "van_b0", ["grass", "sky"], category_ids=[1, 2], **sizes)
    write_tensors(build_network(found).state_dict(), path, found.to_metadata())
    return path


def test_predict_segments(segmenter: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing.png"
    assert run("predict", photo, missing, "--checkpoint", segmenter, "--output", tmp_path / "found") == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith(f"{photo}: ") and "%" in out
    assert str(missing) in err
    assert (tmp_path / "found" / "photo.png").is_file()
    assert json.loads((tmp_path / "found" / "predictions.json").read_text())


def test_validate_segments(segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("images", "annotations"):
        (tmp_path / folder / "test").mkdir(parents=True)
    Image.new("RGB", (40, 32)).save(tmp_path / "images" / "test" / "0.png")
    Image.new("L", (40, 32)).save(tmp_path / "annotations" / "test" / "0.png")
    (tmp_path / "classes.txt").write_text("grass\nsky\n")
    words = ("--checkpoint", segmenter, "--split", "test", "--workers", "0", "--output", tmp_path / "report.json")
    assert run("validate", tmp_path, *words) == 0
    out = capsys.readouterr().out
    assert "grass" in out and "mIoU" in out
    assert json.loads((tmp_path / "report.json").read_text())["images"] == 1


def test_a_setting_of_another_task_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "shapes", "--task", "detect", "--mixup", "0.5", "--output", tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert "--mixup" in error and "leave it out" in error
    assert not (tmp_path / "run").exists()


def test_help_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "--help")
    page = capsys.readouterr().out
    for known in RECIPES.values():
        for recipe in known:
            assert re.search(rf"^    {recipe}  ", page, re.M), recipe


def test_former_names_of_options_still_work(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data" / "cat").mkdir(parents=True)
    photo.rename(tmp_path / "data" / "cat" / "0.png")
    words = ("validate", tmp_path / "data", "--model", "van_b0.cifar10", "--workers", "0")
    assert run(*words, f"--picture={tmp_path / 'c.png'}") == 0
    assert (tmp_path / "c.png").is_file()
    (tmp_path / "full").write_text("a file")
    assert run("export", "van_b0.cifar10", "--out", tmp_path / "full") == 1
    assert f"{tmp_path / 'full'} is a file" in capsys.readouterr().err
    for command in ("train", "export", "demo", "validate"):
        run(command, "--help")
        page = capsys.readouterr().out
        assert "--out " not in page and "--picture" not in page
