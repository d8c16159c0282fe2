"""Pipes under the names of files of every kind, images that are too large, folders that cannot be listed: answers."""

import csv
import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image

import vankit
from vankit.data.folders import open_dataset
from vankit.data.reading import Reading
from vankit.data.scenes import open_scenes
from vankit.deploy.folder import read_exported
from vankit.engines.cache import cached
from vankit.errors import UserError
from vankit.models.weights import read_checkpoint
from vankit.prediction.labels import Predictor


def soon(work: Callable[[], object]) -> object:
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(work).result(30)
    except TooLate:
        os._exit(3)  # nothing else ends a thread that waits for a pipe
    finally:
        pool.shutdown(wait=False)


def refused(work: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        soon(work)


def picture(path: Path, side: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (200, 10, 10)).save(path)
    return path


def pipe(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


def test_among_images_it_is_a_row_with_an_error(tmp_path: Path) -> None:
    paths = [picture(tmp_path / "1.png"), pipe(tmp_path / "2.png"), picture(tmp_path / "3.png")]
    predictor = Predictor("van_b0.cifar10", engine="torch")
    first, failed, last = soon(lambda: predictor(paths))  # type: ignore[misc]
    assert first.labels and last.labels and failed.error == f"{paths[1]} is a pipe: expected a file"
    folder = soon(lambda: vankit.predict(tmp_path, "van_b0.cifar10", engine="torch"))
    assert [row.error for row in folder] == [None, None]  # type: ignore[attr-defined]


def test_weights_and_the_files_beside_them(tmp_path: Path) -> None:
    refused(lambda: read_checkpoint(pipe(tmp_path / "x.safetensors")), "x.safetensors is a pipe: expected a file")
    pipe(tmp_path / "model" / "config.json")
    vankit.save_checkpoint(timm.create_model("van_b0", num_classes=2), tmp_path / "model" / "model.safetensors")
    assert len(soon(lambda: read_checkpoint(tmp_path / "model")).state_dict)  # type: ignore[attr-defined]


def test_a_compiled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("VANKIT_CACHE", str(tmp_path))
    make = lambda: cached(b"key", (), bytes, lambda: (b"made", b"made"))  # noqa: E731
    assert make() == b"made"
    (kept,) = (tmp_path / "engines").iterdir()
    kept.unlink()
    pipe(kept)
    assert soon(make) == b"made"
    assert "it is not a regular file" in caplog.text


def test_an_exported_folder(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text("{}")
    (tmp_path / "labels.txt").write_text("a\n")
    pipe(tmp_path / "preprocessing.json")
    refused(lambda: read_exported(tmp_path), "preprocessing.json is a pipe: expected a file")


def test_annotations_and_lists(tmp_path: Path) -> None:
    coco, yolo, voc, labels = (tmp_path / name for name in ("coco", "yolo", "voc", "labels"))
    picture(coco / "train" / "1.png")
    pipe(coco / "annotations" / "instances_train.json")
    refused(lambda: open_scenes(coco, "detect", "train"), "instances_train.json is a pipe")
    for i in "12":
        picture(yolo / "images" / "train" / f"{i}.png")
    (yolo / "labels" / "train").mkdir(parents=True)
    (yolo / "labels" / "train" / "1.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (yolo / "data.yaml").write_text("names: [cat]")
    pipe(yolo / "labels" / "train" / "2.txt")
    refused(lambda: open_scenes(yolo, "detect", "train"), "2.txt is a pipe.*--skip-bad")
    picture(voc / "images" / "train" / "1.png")
    pipe(voc / "annotations" / "train" / "1.xml")
    refused(lambda: open_scenes(voc, "detect", "train"), "name no object|is a pipe")
    picture(labels / "images" / "train" / "1.png")
    Image.fromarray(np.eye(12, dtype=np.uint8)).save(picture(labels / "annotations" / "train" / "1.png"))
    pipe(labels / "classes.txt")
    os.replace(pipe(labels / "x"), labels / "annotations" / "train" / "1.png")
    refused(lambda: open_scenes(labels, "segment", "train"), r"no label PNG|no class indices")


def test_an_image_that_coco_names(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "1.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": 12, "height": 12} for i in (1, 2)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 5, 5]} for i in (1, 2)]
    (tmp_path / "annotations").mkdir()
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    pipe(tmp_path / "train" / "2.png")
    refused(lambda: open_scenes(tmp_path, "detect", "train", masks=False), "no such image file")
    assert soon(lambda: len(open_scenes(tmp_path, "detect", "train", masks=False, reading=Reading(skip_bad=True)))) == 1


def test_the_limit_of_pixels_is_that_of_the_reading(tmp_path: Path) -> None:
    """Of images, of label PNGs, and of what is inspected."""
    for split in ("train", "val"):
        for name in "ab":
            picture(tmp_path / "classes" / split / name / "1.png", 20)
    data = open_dataset(tmp_path / "classes", "train", lambda image: image.size, reading=Reading(max_pixels=399))
    with pytest.raises(UserError, match=r"400 pixels, more than the 399 .*--max-pixels 400.*--skip-bad"):
        data[0]
    found = vankit.inspect(tmp_path / "classes", workers=0, max_pixels=399)
    assert any("--max-pixels 400" in str(finding) for finding in found.findings)
    found = vankit.inspect(tmp_path / "classes", workers=0, max_pixels=400)
    assert not found.in_the_way and found.splits[0].images == 2
    picture(tmp_path / "labels" / "images" / "train" / "1.png", 20)
    (tmp_path / "labels" / "annotations" / "train").mkdir(parents=True)
    Image.fromarray(np.eye(20, dtype=np.uint8)).save(tmp_path / "labels" / "annotations" / "train" / "1.png")
    (tmp_path / "labels" / "classes.txt").write_text("a\nb\n")
    scenes = open_scenes(tmp_path / "labels", "segment", "train", reading=Reading(max_pixels=400))
    assert scenes[0][0].size == (20, 20)
    with pytest.raises(UserError, match="--max-pixels 400"):
        scenes.coding.read(scenes.files[0][1], 399)


def test_a_class_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: object) -> None:
    for name in "abc":
        picture(tmp_path / "train" / name / "1.png")
    scandir: Callable[..., object] = os.scandir

    def refuse(path: str = ".") -> object:
        if os.fspath(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="cannot list .*b: Permission denied; --skip-bad"):
        open_dataset(tmp_path, "train", lambda image: image)
    found = open_dataset(tmp_path, "train", lambda image: image, reading=Reading(skip_bad=True))
    assert found.classes == ["a", "c"]
    assert "folders that cannot be listed (1, such as b)" in caplog.text  # type: ignore[attr-defined]
    (finding,) = [each for each in vankit.inspect(tmp_path, "classify", workers=0).findings if "listed" in each.what]
    assert finding.effect == "stops" and finding.option == "--skip-bad"


@pytest.mark.slow
def test_a_folder_with_everything_in_it(tmp_path: Path) -> None:
    """A row per image, and an exit status that says that some failed."""
    photos = tmp_path / "photos"
    for name in ("a/1.png", "b/2.png", "c/3.png"):
        picture(photos / name)
    pipe(photos / "a/pipe.png")
    (photos / "a/up").symlink_to("..")
    (photos / "a/solid.webp").write_bytes(_solid_webp(16383))
    vanishing = photos / "gone.png"
    command = [sys.executable, "-m", "vankit", "predict", photos, vanishing, photos / "a/pipe.png",
               "--model", "van_b0.cifar10", "--engine", "torch", "--output", tmp_path / "rows.csv"]  # fmt: skip
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 1 and "Traceback" not in answer.stderr
    with (tmp_path / "rows.csv").open(newline="") as file:
        errors = {Path(row["image"]).name: row["error"] for row in csv.DictReader(file)}
    assert [name for name, error in errors.items() if not error] == ["1.png", "2.png", "3.png"]
    assert "268,402,689 pixels" in errors["solid.webp"] and "--max-pixels 268402689" in errors["solid.webp"]
    assert "no such image file" in errors["gone.png"] and "is a pipe" in errors["pipe.png"]
    assert "passed over" in answer.stderr


def _solid_webp(side: int) -> bytes:
    """A WebP without loss, which says its size in its first bytes."""
    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, "WEBP", lossless=True)
    content = bytearray(data.getvalue())
    content[21:25] = struct.pack("<I", side - 1 | side - 1 << 14)
    return bytes(content)
