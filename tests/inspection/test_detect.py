"""Annotated objects: what is in them by hand is what the inspection says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vankit
from vankit.inspection.report import ClassCount, Inspection

SIZE = (100, 50)


def photos(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        seed = list(f"{folder.name}/{name}".encode())
        values = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / name)


def annotation(number: int, image: int, category: int, box: list[int], **more: Any) -> dict[str, Any]:
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {
        "id": number, "image_id": image, "category_id": category, "bbox": box, "area": w * h, "iscrowd": 0,
        "segmentation": [polygon], **more,
    }  # fmt: skip


def write(root: Path, split: str, names: list[str], annotations: list[dict[str, Any]], **sizes: int) -> None:
    photos(root / split, *names)
    (root / "annotations").mkdir(exist_ok=True)
    images = [{"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1]} | sizes for i, name in enumerate(names)]
    categories = [{"id": i, "name": name} for i, name in enumerate(("cat", "dog", "owl"))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    crowd = annotation(3, 0, 1, [0, 0, 100, 50], iscrowd=1)
    train = [annotation(1, 0, 0, [10, 10, 40, 20]), annotation(2, 0, 0, [60, 10, 1, 30]), crowd]
    train += [annotation(4, 1, 1, [5, 5, 20, 20]), annotation(5, 1, 0, [-10, 0, 40, 10])]
    write(tmp_path, "train", ["a.jpg", "b.jpg", "c.jpg"], train)
    write(tmp_path, "val", ["d.jpg"], [annotation(1, 0, 1, [5, 5, 30, 30])])
    return tmp_path


def findings(inspection: Inspection, effect: str) -> list[tuple[str, str, int | None, str]]:
    return [(each.split, each.what, each.count, each.option) for each in inspection.of(effect)]  # type: ignore[arg-type]


def test_objects_by_class(zoo: Path) -> None:
    result = vankit.inspect(zoo, workers=0)
    train, val = result.splits
    assert (result.task, train.images, train.empty, train.crowds, val.images, val.empty) == ("detect", 3, 1, 1, 1, 0)
    # brought from a shorter side of 50 to 128, a box of 1 x 30 is 2.56 pixels wide: less than a cell of 4
    assert train.classes == (ClassCount("cat", 2, 3, 1), ClassCount("dog", 1, 1, 0), ClassCount("owl", 0, 0, 0))
    assert val.classes == (ClassCount("cat", 0, 0, 0), ClassCount("dog", 1, 1, 0), ClassCount("owl", 0, 0, 0))
    # the polygon reaches as far as the box
    repaired = [("train", "boxes clipped to their image", 1, ""), ("train", "polygons clipped to their image", 1, "")]
    assert sorted(findings(result, "repaired")) == repaired
    assert not result.of("stops")
    never, small = result.of("note")
    assert (never.what, never.count, never.example) == ("classes that never occur", 1, "owl")
    assert (small.split, small.count, small.example) == ("train", 1, "25.0% of 4")
    assert result.command == (
        f"vankit train {zoo} --task detect --head mask_rcnn --recipe short --model van_b0.cifar10 --batch-size 2 "
        "--epochs 100"
    )


def test_what_would_be_left_out(zoo: Path) -> None:
    train = [
        annotation(1, 0, 0, [10, 10, 40, 20]),
        annotation(2, 0, 9, [10, 10, 40, 20]),  # of no category
        annotation(3, 1, 0, [10, 10, 0, 20]),  # empty
        annotation(4, 1, 0, [10, 10, 40, 20], segmentation={"size": [50, 100], "counts": [5000]}),  # no pixel
    ]
    write(zoo, "train", ["a.jpg", "b.jpg", "cut.jpg", "other.jpg", "gone.jpg"], train)
    (zoo / "train" / "gone.jpg").unlink()
    cut = zoo / "train" / "cut.jpg"
    cut.write_bytes(cut.read_bytes()[:-9])
    Image.new("RGB", (50, 100)).save(zoo / "train" / "other.jpg")
    result = vankit.inspect(zoo, workers=0)
    assert set(findings(result, "stops")) == {
        ("train", "unknown categories", 1, "--skip-bad"),
        ("train", "empty boxes", 1, "--skip-bad"),
        ("train", "segmentations that cannot be decoded", 1, "--skip-bad"),
        ("train", "JPEGs without their end", 1, "--tolerant"),
        ("train", "images of another size than their annotations say", 1, "--skip-bad"),
        ("train", "images without a file", 1, "--skip-bad"),
    }
    assert (result.splits[0].images, result.splits[0].classes[0]) == (2, ClassCount("cat", 1, 1, 0))
    assert findings(result, "passed over") == [("train", "images that no annotation names", 1, "")]  # c.jpg
    dataset = vankit.data.scenes.open_scenes(zoo, "detect", "train", reading=vankit.data.reading.Reading(True))
    items = [dataset[i] for i in range(len(dataset))]
    assert sum(item is not None for item in items) == 2  # as training reads it
    assert sum(len(item[1]["labels"]) for item in items if item is not None) == 1


def test_boxes_without_masks_ask_for_another_head(zoo: Path) -> None:
    train = [annotation(1, 0, 0, [10, 10, 40, 20]), annotation(2, 0, 1, [10, 10, 3, 20], segmentation=[])]
    write(zoo, "train", ["a.jpg", "b.jpg"], train)
    result = vankit.inspect(zoo, workers=0)
    assert "--head retinanet" in result.command and not result.of("stops")
    assert [each.small for each in result.splits[0].classes] == [0, 1, 0]  # 3 x 2.56 is less than a cell of 8
    assert any("without a segmentation" in each.what and each.count == 1 for each in result.of("note"))


def test_no_object_at_all(zoo: Path) -> None:
    write(zoo, "train", ["a.jpg", "b.jpg"], [])
    result = vankit.inspect(zoo, output=zoo / "report.html", workers=0)
    assert [each.what for each in result.in_the_way] == ["no picture that can be used shows any class"]
    assert result.splits[0].empty == 2 and (zoo / "report.html").is_file()


def test_classes_that_differ_are_in_the_way(zoo: Path) -> None:
    path = zoo / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["categories"][2]["name"] = "elk"
    path.write_text(json.dumps(content))
    (problem,) = vankit.inspect(zoo, workers=0).in_the_way
    assert (problem.split, problem.example) == ("val", "elk, owl")
    path.write_text("not JSON")
    (problem,) = vankit.inspect(zoo, workers=0).in_the_way
    assert problem.what == "it cannot be opened" and "is not JSON" in problem.example


def test_a_set_without_splits_has_no_test_split(zoo: Path) -> None:
    (zoo / "annotations" / "instances_train.json").rename(zoo / "annotations" / "instances.json")
    (zoo / "annotations" / "instances_val.json").unlink()
    (zoo / "train").rename(zoo / "images")
    result = vankit.inspect(zoo, workers=0)
    assert [split.name for split in result.splits] == ["train"] and result.held_out == (1, 3)
    assert not result.copies


def test_yolo_and_voc(tmp_path: Path) -> None:
    yolo = tmp_path / "yolo"
    photos(yolo / "images" / "train", "a.jpg", "b.jpg")
    photos(yolo / "images" / "val", "c.jpg")
    (yolo / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    for split, name, text in (
        ("train", "a", "0 0.5 0.5 0.2 0.4\n1 0.5 0.5 0.2 0.4\n"),
        ("val", "c", "1 .5 .5 .2 .4\n"),
    ):
        (yolo / "labels" / split).mkdir(parents=True)
        (yolo / "labels" / split / f"{name}.txt").write_text(text)
    result = vankit.inspect(yolo, workers=0)
    assert (result.tasks, result.splits[0].empty) == (("detect",), 1)
    assert result.splits[0].classes == (ClassCount("cat", 1, 1, 0), ClassCount("dog", 1, 1, 0))
    voc = tmp_path / "voc"
    photos(voc / "JPEGImages", "a.jpg", "b.jpg")
    (voc / "Annotations").mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>20</ymax></bndbox>"
    for name, kinds in (("a", ("cat", "dog", "dog")), ("b", ("dog",))):
        objects = "".join(f"<object><name>{kind}</name>{box}</object>" for kind in kinds)
        (voc / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    result = vankit.inspect(voc, workers=0)
    assert (result.tasks, result.held_out) == (("detect",), (1, 2))
    assert result.splits[0].classes == (ClassCount("cat", 1, 1, 0), ClassCount("dog", 2, 3, 0))
    assert findings(result, "repaired") == [("train", "sizes read from the images", 2, "")]
