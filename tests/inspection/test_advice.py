"""The command to start with: settings for large and small sets and pictures, and that it runs."""

import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vankit
from vankit.cli import main
from vankit.data.scenes import ShapeScenes
from vankit.data.shapes import Shapes
from vankit.inspection.advice import advise
from vankit.training import recipes


def study(task: str, images: int, size: tuple[int, int], masks: bool = True) -> Any:
    return SimpleNamespace(task=task, masks=masks, to_train_on=images, tallies=[SimpleNamespace(sizes=[size])])


@pytest.mark.parametrize(
    ("images", "side", "words"),
    [
        (5_000, 300, ""),
        (5_000, 200, ""),
        (5_000, 120, "--img-size 128"),
        (5_000, 64, "--recipe short"),
        (5_000, 28, "--recipe short --img-size 32"),
        (20, 300, "--batch-size 16"),
        (1, 300, "--batch-size 2"),
    ],
)
def test_classifiers(images: int, side: int, words: str) -> None:
    found = advise(study("classify", images, (side, 2 * side)), [])
    assert " ".join(option for option, _ in found.options) == words
    assert found.side == min(224, -(-side // 32) * 32)


@pytest.mark.parametrize(
    ("task", "images", "side", "words"),
    [
        ("detect", 5_000, 480, "--task detect --head mask_rcnn"),
        ("segment", 5_000, 480, "--task segment --head semantic_fpn"),
        ("panoptic", 5_000, 480, "--task panoptic --head mask2former"),
        ("detect", 5_000, 100, "--task detect --head mask_rcnn --recipe short --pretrained"),
        (
            "segment", 100, 480,
            "--task segment --head semantic_fpn --recipe short --pretrained --short-sides 480 --long-side 800"
            " --crop 480 --epochs 90",
        ),
        (
            "panoptic", 700, 2_000,
            "--task panoptic --head mask2former --recipe short --pretrained --short-sides 512 --long-side 854"
            " --epochs 20",
        ),
        (
            "detect", 5, 32,
            "--task detect --head mask_rcnn --recipe short --model van_b0.cifar10 --batch-size 4 --epochs 100",
        ),
    ],
)  # fmt: skip
def test_dense_tasks(task: str, images: int, side: int, words: str) -> None:
    found = advise(study(task, images, (2 * side, side)), [])
    assert " ".join(option for option, _ in found.options) == words
    assert isinstance(found.config, recipes.DenseConfig)
    assert str(found.side) in words or found.side in (128, 512, 800)


def write_flowers(root: Path) -> None:
    for split, count in (("train", 12), ("val", 2)):
        pictures = Shapes(split, count, 48)
        for i in range(count):
            path = root / split / ("rose", "tulip")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures[i][0].save(path)
    (root / "train" / "rose" / "bad.jpg").write_bytes(b"bad")


def write_masks(root: Path) -> None:
    """Masks of 0 and 255 without a val split."""
    pictures = ShapeScenes("segment", "train", 6, 96)
    for i in range(len(pictures)):
        image, target = pictures[i]
        for folder in ("images", "annotations"):
            (root / folder / "train").mkdir(parents=True, exist_ok=True)
        image.save(root / "images" / "train" / f"{i}.jpg")
        mask = np.where(target["semantic"] < 10, 255, 0).astype(np.uint8)
        Image.fromarray(mask).save(root / "annotations" / "train" / f"{i}.png")


def write_yolo(root: Path) -> None:
    pictures = ShapeScenes("detect", "train", 6, 64)
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for i in range(len(pictures)):
        image, target = pictures[i]
        image.save(root / "images" / f"{i}.jpg")
        rows = [
            f"{label} {(x1 + x2) / 128} {(y1 + y2) / 128} {(x2 - x1) / 64} {(y2 - y1) / 64}"
            for label, (x1, y1, x2, y2) in zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True)
        ]
        (root / "labels" / f"{i}.txt").write_text("\n".join([*rows, "99 0.5 0.5 0.1 0.1"]))
    (root / "classes.txt").write_text("\n".join(pictures.classes))


def write_panoptic(root: Path) -> None:
    from test_docs import write_coco

    write_coco(root)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "wanted"),
    [
        (write_flowers, ["--recipe short", "--skip-bad"]),
        (write_masks, ["--pretrained", "--map-labels 255:1"]),
        (write_yolo, ["--head retinanet", "--skip-bad"]),
        (write_panoptic, ["--head mask2former", "--model van_b0.cifar10"]),
    ],
)
def test_the_command_runs(
    write: Callable[[Path], None],
    wanted: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    public_hub: dict[str, Path],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "set")
    inspection = vankit.inspect("set")
    assert all(option in inspection.command for option in wanted)
    words = shlex.split(inspection.command)[1:]
    for option in ("--epochs", "--short-sides", "--long-side", "--crop"):  # less work
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    settings = ["--epochs", "1", "--workers", "0", "--output", "run"]
    settings += (
        ["--warmup-epochs", "0", "--img-size", "32"] if inspection.task == "classify" else ["--short-sides", "64"]
    )
    if inspection.task == "segment":
        settings += ["--crop", "64"]
    if "--img-size" in words:
        settings = [word for word in settings if word not in ("--img-size", "32")]
    with pytest.raises(SystemExit) as end:
        main(words + settings)
    assert not end.value.code
    assert (tmp_path / "run" / "best.safetensors").is_file()
