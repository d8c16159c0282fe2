"""Panoptic segments: what is in them by hand is what the inspection says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vankit
from vankit.inspection.report import ClassCount


def write(root: Path, split: str, scenes: list[tuple[list[int], list[dict[str, Any]]]]) -> None:
    """Pictures of ten columns; each scene is the segment id of every column, and its segments_info."""
    folder = root / "annotations" / f"panoptic_{split}"
    folder.mkdir(parents=True)
    (root / split).mkdir()
    images, annotations = [], []
    for i, (columns, infos) in enumerate(scenes):
        Image.effect_noise((10, 10), 50 + i).convert("RGB").save(root / split / f"{i}.png")
        ids = np.broadcast_to(np.array(columns, np.uint8), (10, 10))
        Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], -1)).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 10, "height": 10})
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": infos})
    things = (("cat", 1), ("sky", 0), ("owl", 1))
    categories = [{"id": i, "name": name, "isthing": thing} for i, (name, thing) in enumerate(things)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))


def info(number: int, category: int, crowd: int = 0) -> dict[str, Any]:
    return {"id": number, "category_id": category, "iscrowd": crowd}


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    two_cats = ([1, 1, 2, 2, 2, 3, 3, 3, 3, 0], [info(1, 0), info(2, 0), info(3, 1)])
    crowd = ([1] * 5 + [4] * 5, [info(1, 0, crowd=1), info(4, 1)])
    write(tmp_path, "train", [two_cats, crowd])
    write(tmp_path, "val", [([2] * 10, [info(2, 1)])])
    return tmp_path


def test_things_and_stuff(scenes: Path) -> None:
    result = vankit.inspect(scenes, workers=0)
    train, val = result.splits
    assert (result.task, result.tasks) == ("panoptic", ("panoptic",))
    assert (train.images, train.crowds, train.empty, train.unlabelled) == (2, 1, 0, 0.05)
    assert train.classes == (
        ClassCount("cat", 2, 2, pixels=100 / 190, thing=True),
        ClassCount("sky", 2, 2, pixels=90 / 190, thing=False),
        ClassCount("owl", 0, 0, pixels=0.0, thing=True),
    )
    assert val.classes[1] == ClassCount("sky", 1, 1, pixels=1.0, thing=False)
    assert [(each.what, each.example) for each in result.findings] == [("classes that never occur", "owl")]
    assert "--task panoptic --head mask2former" in result.command


def test_what_would_be_left_out(scenes: Path) -> None:
    path = scenes / "annotations" / "panoptic_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][0]["id"] = 9  # 1 is then in the PNG alone, 9 in the JSON
    path.write_text(json.dumps(content))
    Image.new("RGB", (5, 5)).save(scenes / "annotations" / "panoptic_train" / "1.png")
    result = vankit.inspect(scenes, workers=0)
    assert {(each.what, each.count, each.option) for each in result.of("stops")} == {
        ("segments without a pixel", 1, "--skip-bad"),
        ("segments that are in the PNG alone", 1, "--skip-bad"),
        ("segment PNGs that cannot be used", 1, "--skip-bad"),
    }
    assert result.splits[0].images == 1
    assert result.splits[0].classes[0] == ClassCount("cat", 1, 1, pixels=30 / 70, thing=True)


def test_detection_is_possible_too(scenes: Path) -> None:
    for split in ("train", "val"):
        box = {"id": 1, "image_id": 0, "category_id": 0, "bbox": [1, 1, 5, 5]}
        content = json.loads((scenes / "annotations" / f"panoptic_{split}.json").read_text()) | {"annotations": [box]}
        (scenes / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    assert vankit.inspect(scenes, workers=0).tasks == ("panoptic", "detect")
    assert vankit.inspect(scenes, "detect", workers=0).splits[0].classes[0] == ClassCount("cat", 1, 1, 0)
