"""The task that a folder looks made for."""

from pathlib import Path

import pytest
from PIL import Image

from vankit.errors import MissingFileError
from vankit.inspection.layouts import likely_tasks


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".jpg", ".png"):
            Image.new("L", (4, 4)).save(path)
        else:
            path.write_text("")
    return root


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("classify", ("train/cat/a.jpg", "val/cat/b.jpg")),
        ("classify", ("cat/a.jpg", "dog/b.jpg")),
        ("classify", ("images/cat/a.jpg", "cat/a.jpg", "classes.txt")),
        ("segment", ("images/train/a.jpg", "annotations/train/a.png", "classes.txt")),
        ("segment", ("images/train/a.jpg", "labels/train/a.png", "classes.txt")),  # which is where YOLO's labels are
        ("segment", ("images/a.jpg", "masks/a.png")),
        ("detect", ("images/train/a.jpg", "labels/train/a.txt", "classes.txt")),
        ("detect", ("images/a.jpg", "labels/a.txt", "classes.txt")),
        ("detect", ("train/images/a.jpg", "train/labels/a.txt", "data.yaml.txt", "classes.txt")),
        ("detect", ("images/train/a.jpg", "annotations/train/a.xml")),
        ("detect", ("JPEGImages/a.jpg", "Annotations/a.xml")),
        ("detect", ("train2017/a.jpg", "annotations/instances_train2017.json")),
        ("detect", ("train/a.jpg", "train/_annotations.coco.json")),
        ("detect", ("annotations/instances_train_1.json", "annotations/instances_train_2.json")),  # said on opening
        ("panoptic", ("train2017/a.jpg", "annotations/panoptic_train2017.json")),
    ],
)
def test_one_task(tmp_path: Path, task: str, names: tuple[str, ...]) -> None:
    assert likely_tasks(make(tmp_path, *names)) == (task,)


@pytest.mark.parametrize("names", [(), ("a.jpg", "b.jpg"), ("images/a.jpg", "annotations/mine.json")])
def test_none(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(MissingFileError, match="nothing in .* that could be trained on: expected a folder per class"):
        likely_tasks(make(tmp_path, *names))
