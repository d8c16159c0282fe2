"""Scenes by task: what is said of a picture agrees with itself, and what is missing is named."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import masks_to_boxes

from vankit.data.augment import as_tensors
from vankit.data.coco import CocoInstances
from vankit.data.coco_panoptic import CocoPanoptic
from vankit.data.held_out import HeldOut
from vankit.data.reading import Reading
from vankit.data.scenes import ShapeScenes, open_scenes
from vankit.data.semantic import SemanticFolder
from vankit.data.shapes import CLASSES
from vankit.errors import MissingFileError, UserError
from vankit.training.recipes import short_dense
from vankit.training.run import train
from vankit.validation import validate

SIZE = (40, 56)


def shapes(task: str, **options: Any) -> ShapeScenes:
    return ShapeScenes(task, **{"split": "val", "length": 12, "size": SIZE, **options})


def tight(masks: np.ndarray) -> np.ndarray:
    return masks_to_boxes(torch.from_numpy(masks)).numpy() + np.array([0, 0, 1, 1])


def test_boxes_are_tight_around_the_masks_of_objects() -> None:
    dataset = shapes("detect")
    assert dataset.classes == list(CLASSES) and dataset.things == [True] * 10
    assert dataset.category_ids == list(range(1, 11))
    counts = set()
    for i, (image, target) in enumerate(dataset):
        assert (image.mode, image.size) == ("RGB", SIZE[::-1])
        count = len(target["labels"])
        assert target["masks"].shape == (count, *SIZE) and target["masks"].dtype == np.bool_
        assert target["boxes"].shape == (count, 4) and target["boxes"].dtype == np.float32
        assert np.array_equal(target["boxes"], tight(target["masks"]))
        assert target["masks"].sum(0).max() == 1  # visible parts
        assert np.array_equal(target["area"], target["masks"].sum((1, 2)))
        assert not target["iscrowd"].any() and target["image_id"] == i and "semantic" not in target
        assert set(target["labels"].tolist()) <= set(range(10)) and target["labels"].dtype == np.int64
        counts.add(count)
    assert len(counts) > 2 and max(counts) <= 4


def test_the_label_map_is_that_of_the_masks_on_background() -> None:
    dataset = shapes("segment")
    assert dataset.classes == [*CLASSES, "background"]
    for (image, target), (same, objects) in zip(dataset, shapes("detect"), strict=True):
        assert image.tobytes() == same.tobytes()
        expected = np.full(SIZE, 10)
        for label, mask in zip(objects["labels"], objects["masks"], strict=True):
            expected[mask] = label
        assert target["semantic"].dtype == np.uint8
        assert target["semantic"].tolist() == expected.tolist()
        assert target.keys() == {"semantic", "image_id"}


def test_panoptic_segments_cover_the_picture_once() -> None:
    dataset = shapes("panoptic")
    assert dataset.classes == [*CLASSES, "background"] and dataset.things == [True] * 10 + [False]
    for (_, target), (_, objects) in zip(dataset, shapes("detect"), strict=True):
        assert (target["masks"].sum(0) == 1).all()
        assert target["labels"].tolist() == [*objects["labels"].tolist(), 10]
        assert np.array_equal(target["masks"][:-1], objects["masks"])
        assert np.array_equal(target["boxes"], tight(target["masks"]))
        assert np.array_equal(target["area"], target["masks"].sum((1, 2)))
        assert target["iscrowd"].tolist() == [False] * len(target["labels"])


def test_shapes_are_the_same_again_and_others_by_seed_and_split() -> None:
    image, _ = shapes("detect")[3]
    assert shapes("detect", length=5)[3][0] == image
    assert shapes("detect", seed=1)[3][0] != image
    assert shapes("detect", split="train")[3][0] != image


def test_shapes_by_their_word() -> None:
    data = open_scenes("shapes", "segment", "val", lambda image, target: image.size, size=32, seed=4)
    assert (len(data), len(data.names), data.skipped) == (200, 200, [])
    assert data[7] == (32, 32)
    assert len(open_scenes("shapes", "detect", "train")) == 4000
    image, _ = open_scenes("shapes", "detect", "val", seed=4, size=32)[7]
    assert image == shapes("detect", seed=4, size=32)[7][0]
    for index in (-1, 200):
        with pytest.raises(IndexError, match=f"image {index} of 200: expected 0 to 199"):
            data[index]


def test_unusable_requests_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown task 'classify': expected one of detect, segment, panoptic"):
        open_scenes("shapes", "classify", "val")
    with pytest.raises(MissingFileError, match="no dataset at .*nowhere: expected a folder, or the word 'shapes'"):
        open_scenes(tmp_path / "nowhere", "detect", "val")
    for task, message in (("detect", "instances"), ("panoptic", "panoptic"), ("segment", "no val split")):
        with pytest.raises(MissingFileError, match=message):
            open_scenes(tmp_path, task, "val")
    with pytest.raises(UserError, match="split 'evening' is unknown: expected one of train, val, test"):
        open_scenes("shapes", "detect", "evening")
    with pytest.raises(UserError, match="length 0 is not a dataset"):
        ShapeScenes("detect", length=0)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A picture a split with one object, in train without segmentation; in val also with two segments."""
    (tmp_path / "annotations" / "panoptic_val").mkdir(parents=True)
    categories = [{"id": 3, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}]
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (8, 6)).save(tmp_path / split / "a.png")
        entry: dict[str, Any] = {
            "id": 1,
            "image_id": 1,
            "category_id": 9,
            "bbox": [1, 1, 3, 2],
            "area": 6,
            "iscrowd": 0,
        }
        if split == "val":
            entry["segmentation"] = [[1, 1, 4, 1, 4, 3, 1, 3]]
        images = [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}]
        content = {"images": images, "categories": categories, "annotations": [entry]}
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    ids = np.zeros((6, 8, 3), np.uint8)
    ids[:3, :, 0], ids[3:, :4, 0] = 5, 6
    Image.fromarray(ids).save(tmp_path / "annotations" / "panoptic_val" / "a.png")
    segments = [{"id": 5, "category_id": 9}, {"id": 6, "category_id": 3}]
    content["annotations"] = [{"image_id": 1, "file_name": "a.png", "segments_info": segments}]
    (tmp_path / "annotations" / "panoptic_val.json").write_text(json.dumps(content))
    return tmp_path


def test_coco_folders_by_task(coco: Path) -> None:
    objects = open_scenes(str(coco), "detect", "val")
    assert isinstance(objects, CocoInstances) and objects.classes == ["cat", "sky"]
    assert objects[0][1]["masks"].sum() == 6
    segments = open_scenes(coco, "panoptic", "val", lambda image, target: target["masks"].sum((1, 2)).tolist())
    assert isinstance(segments, CocoPanoptic) and segments.things == [True, False]
    assert segments[0] == [24, 12]


WITHOUT_TORCH = """
import pickle, sys
sys.modules.update(dict.fromkeys(("torch", "torchvision", "timm")))  # importing one is an error

import numpy as np
from vankit.data.scenes import open_scenes

answers = []
for data, task, masks in pickle.loads(bytes.fromhex(sys.argv[1])):
    scenes = open_scenes(data, task, "val", masks=masks, size=32)
    answers.append([(np.asarray(image), target) for image, target in map(scenes.__getitem__, range(2))])
sys.stdout.buffer.write(pickle.dumps(answers))
"""


@pytest.fixture
def layouts(tmp_path: Path) -> list[tuple[str, str, bool]]:
    """Two noisy pictures with annotations in every layout: folder, task, and whether masks are read."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    folders = "coco/val", "panoptic/val", "yolo/images/val", "voc/val", "semantic/images/val"
    for folder in map(tmp_path.__truediv__, folders):
        folder.mkdir(parents=True)
        for i, pixels in enumerate(noise):
            Image.fromarray(pixels).save(folder / f"{i}.jpg")
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 24, "height": 16} for i in range(2)]
    categories = [{"id": 3, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}]
    content: dict[str, Any] = {"images": images, "categories": categories}
    triangle = {"id": 1, "image_id": 0, "category_id": 9, "bbox": [2, 1, 9, 7], "segmentation": [[2, 1, 11, 1, 6, 8]]}
    (tmp_path / "coco" / "annotations").mkdir()
    instances = json.dumps({**content, "annotations": [triangle]})
    (tmp_path / "coco" / "annotations" / "instances_val.json").write_text(instances)
    (tmp_path / "panoptic" / "annotations" / "panoptic_val").mkdir(parents=True)
    segments = [{"id": 5, "category_id": 9}, {"id": 6, "category_id": 3}]
    maps = [{"image_id": i, "file_name": f"{i}.png", "segments_info": segments} for i in range(2)]
    (tmp_path / "panoptic" / "annotations" / "panoptic_val.json").write_text(
        json.dumps({**content, "annotations": maps})
    )
    for folder in ("yolo/labels/val", "semantic/annotations/val"):
        (tmp_path / folder).mkdir(parents=True)
    for i, pixels in enumerate(noise):
        ids = np.stack([5 + (pixels[..., 0] > 99), 0 * pixels[..., 0], 0 * pixels[..., 0]], -1).astype(np.uint8)
        Image.fromarray(ids).save(tmp_path / "panoptic" / "annotations" / "panoptic_val" / f"{i}.png")
        Image.fromarray(pixels[..., 0] % 2).save(tmp_path / "semantic" / "annotations" / "val" / f"{i}.png")
        (tmp_path / "yolo" / "labels" / "val" / f"{i}.txt").write_text(f"{i} 0.1 0.1 0.5 0.1 0.5 0.9\n")
        box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
        thing = f"<filename>{i}.jpg</filename><object><name>{'ab'[i]}</name>{box}</object>"
        (tmp_path / "voc" / "val" / f"{i}.xml").write_text(f"<annotation>{thing}</annotation>")
    (tmp_path / "yolo" / "classes.txt").write_text("cat\ndog\n")
    tasks = {"coco": "detect", "panoptic": "panoptic", "yolo": "detect", "voc": "detect", "semantic": "segment"}
    sets = [(str(tmp_path / name), task, name != "voc") for name, task in tasks.items()]
    return [*sets, *(("shapes", task, True) for task in ("detect", "segment", "panoptic"))]


def test_every_layout_is_read_without_torch_as_for_training(layouts: list[tuple[str, str, bool]]) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, pickle.dumps(layouts).hex()]
    answers = pickle.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    for (data, task, masks), found in zip(layouts, answers, strict=True):
        scenes = open_scenes(data, task, "val", as_tensors, masks=masks, size=32)
        for i, (pixels, target) in enumerate(found):
            image, expected = scenes[i]
            np.testing.assert_array_equal(pixels, image.permute(1, 2, 0))
            assert target.keys() == expected.keys() and target.pop("image_id") == expected["image_id"]
            for name, values in target.items():
                assert values.dtype == expected[name].numpy().dtype, (data, task, name)
                np.testing.assert_array_equal(values, expected[name])
        assert any(values.any() for _, target in found for name, values in target.items() if name != "iscrowd")


def test_masks_are_not_read_where_nobody_wants_them(coco: Path) -> None:
    with pytest.raises(UserError, match="no segmentation, but the head needs masks"):
        open_scenes(coco, "detect", "train")
    _, target = open_scenes(coco, "detect", "train", masks=False)[0]
    assert "masks" not in target and target["boxes"].tolist() == [[1, 1, 4, 3]] and target["labels"].tolist() == [1]
    (coco / "train" / "a.png").unlink()
    with pytest.raises(UserError, match=r"names no picture .*a\.png"):
        open_scenes(coco, "detect", "train", masks=False, reading=Reading(skip_bad=True))


def test_label_folders_take_ignore_label_and_skip_bad(tmp_path: Path) -> None:
    for name in ("images", "annotations"):
        (tmp_path / name / "train").mkdir(parents=True)
    for stem in "ab":
        Image.new("RGB", (3, 1)).save(tmp_path / "images" / "train" / f"{stem}.png")
    Image.fromarray(np.array([[0, 1, 9]], np.uint8)).save(tmp_path / "annotations" / "train" / "b.png")
    data = open_scenes(tmp_path, "segment", "train", ignore_label=9, reading=Reading(skip_bad=True))
    assert isinstance(data, SemanticFolder) and data.classes == ["0", "1"] and len(data.skipped) == 1
    assert data[0][1]["semantic"].tolist() == [[0, 1, 255]]


@pytest.mark.data
def test_real_photographs(shared_data: Callable[[str], Path]) -> None:
    root = shared_data("coco_panoptic_200")
    objects, segments = open_scenes(root, "detect", "val"), open_scenes(root, "panoptic", "val")
    for dataset in (objects, segments):
        image, target = dataset[0]
        assert target["masks"].shape[1:] == image.size[::-1]
        assert len(target["labels"]) == len(target["masks"]) == len(target["boxes"]) > 0
    assert len(segments.things) == len(segments.classes) == 133


def write_boxes(root: Path, name: str, count: int) -> None:
    """A COCO file of as many pictures, each with one box, in annotations/ and images/."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", (8, 6)).save(root / "images" / f"{i}.png")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 6} for i in range(count)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 3, 2]} for i in range(count)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "annotations" / name).write_text(json.dumps(content))


def parts(root: Path, held_out: HeldOut | None) -> list[set[str]]:
    return [set(open_scenes(root, "detect", s, masks=False, held_out=held_out).names) for s in ("train", "val")]


def test_a_coco_set_without_val_is_divided(tmp_path: Path) -> None:
    write_boxes(tmp_path, "instances_train.json", 10)
    train, val = parts(tmp_path, HeldOut(0.3))
    assert (len(train), len(val)) == (7, 3) and not train & val
    chosen = HeldOut(0.3).choose([f"{i}.png" for i in range(10)], [""] * 10)
    assert val == {f"{i}.png" for i in range(10) if chosen[i]}
    with pytest.raises(MissingFileError, match="no instances of split val"):
        open_scenes(tmp_path, "detect", "val", masks=False)
    with pytest.raises(MissingFileError, match="no instances of split test"):
        open_scenes(tmp_path, "detect", "test", masks=False, held_out=HeldOut())


def test_a_coco_set_without_splits_is_divided_where_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_boxes(tmp_path, "instances.json", 10)
    train, val = parts(tmp_path, HeldOut())
    assert train == val and len(val) == 10
    with pytest.raises(MissingFileError, match="no instances of split test"):
        open_scenes(tmp_path, "detect", "test", masks=False, held_out=HeldOut(plain=True))
    train, val = parts(tmp_path, HeldOut(0.2, plain=True, total=10))
    assert (len(train), len(val)) == (8, 2) and not train & val and not caplog.records
    train, val = parts(tmp_path, HeldOut(0.2, plain=True, total=11))
    assert len(val) == 10 and "taken for another one, all are used" in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("blank_run_reports")
@pytest.mark.parametrize("layout", ["coco", "yolo"])
def test_a_set_of_any_layout_is_trained_and_measured_on_what_was_held_out(tmp_path: Path, layout: str) -> None:
    if layout == "coco":
        write_boxes(tmp_path / "data", "instances.json", 10)
    else:
        (tmp_path / "data" / "labels").mkdir(parents=True)
        (tmp_path / "data" / "images").mkdir()
        (tmp_path / "data" / "data.yaml").write_text("names: [cat]")
        for i in range(10):
            Image.new("RGB", (8, 6)).save(tmp_path / "data" / "images" / f"{i}.png")
            (tmp_path / "data" / "labels" / f"{i}.txt").write_text("0 0.5 0.5 0.5 0.5")
    config = replace(
        short_dense("van_b0"), epochs=1, warmup_iterations=0, short_sides=(32,), long_side=64, batch_size=2, workers=0
    )
    result = train(tmp_path / "data", "van_b0", config, tmp_path / "run", task="detect", head="retinanet")
    report = validate(tmp_path / "data", checkpoint=result.best, workers=0, engine="torch")
    assert report.count == 1 and report.per_class[0]["objects"] == 1
