"""Label PNGs: pixels counted by hand, and the values that a set codes its classes in."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vankit
from vankit.data.label_maps import Coding, count_labels
from vankit.inspection.report import ClassCount
from vankit.inspection.segment import propose


def scene(root: Path, split: str, name: str, values: dict[int, int], size: tuple[int, int] = (10, 10)) -> None:
    """An image and a label PNG of 100 pixels with so many of each value."""
    seed = list(f"{split}{name}".encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    labels = np.repeat(list(values), list(values.values())).astype(np.uint8).reshape(10, 10)
    for folder, content, suffix in (("images", pixels, "jpg"), ("annotations", labels, "png")):
        path = root / folder / split / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(path)


def names(root: Path, *classes: str) -> None:
    (root / "classes.txt").write_text("\n".join(classes))


def test_pixels_by_class(tmp_path: Path) -> None:
    scene(tmp_path, "train", "a", {0: 50, 1: 30, 255: 20})
    scene(tmp_path, "train", "b", {0: 90, 1: 10})
    scene(tmp_path, "val", "c", {0: 100})
    names(tmp_path, "road", "sky")
    result = vankit.inspect(tmp_path, workers=0)
    train, val = result.splits
    assert (result.task, train.images, val.images) == ("segment", 2, 1)
    assert train.classes == (ClassCount("road", 2, pixels=140 / 180), ClassCount("sky", 2, pixels=40 / 180))
    assert (train.unlabelled, val.unlabelled) == (0.1, 0.0)
    assert val.classes == (ClassCount("road", 1, pixels=1.0), ClassCount("sky", 0, pixels=0.0))
    assert not result.findings
    assert result.command.startswith(f"vankit train {tmp_path} --task segment --head semantic_fpn --recipe short ")


def test_what_would_be_left_out(tmp_path: Path) -> None:
    for name in "abcde":
        scene(tmp_path, "train", name, {0: 50, 1: 30, 2: 20})
    scene(tmp_path, "val", "v", {0: 60, 2: 40})
    names(tmp_path, "road", "sky", "tree", "car")
    train = tmp_path / "annotations" / "train"
    (train / "a.png").unlink()
    (train / "b.png").write_bytes(b"x")
    Image.new("L", (9, 10)).save(train / "c.png")
    (tmp_path / "images" / "train" / "d.jpg").write_bytes(b"x")
    (tmp_path / "images" / "train" / "notes.md").write_text("")
    result = vankit.inspect(tmp_path, workers=0)
    assert [(each.split, each.what, each.count, each.option) for each in result.of("stops")] == [
        ("train", "images without a label PNG", 1, "--skip-bad"),
        ("train", "label PNGs that cannot be read", 1, "--skip-bad"),
        ("train", "label PNGs of another size than their image", 1, "--skip-bad"),
        ("train", "images that cannot be read", 1, "--skip-bad"),
        ("train", "classes without a pixel", 1, "--skip-bad"),
    ]
    assert result.of("stops")[-1].example == "car"
    assert [each.what for each in result.of("passed over")] == [".md"]
    assert result.splits[0].images == 1 and result.options[-1][0] == "--skip-bad"


@pytest.mark.parametrize("classes", [("ground", "thing"), ()])
@pytest.mark.parametrize("value", [255, 128])
def test_masks_of_two_values_are_mapped(tmp_path: Path, classes: tuple[str, ...], value: int) -> None:
    for split in ("train", "val"):
        scene(tmp_path, split, "a", {0: 75, value: 25})
    if classes:
        names(tmp_path, *classes)
    result = vankit.inspect(tmp_path, workers=0)
    assert [each.pixels for each in result.splits[0].classes] == [0.75, 0.25]
    assert result.classes == list(classes or ("0", "1"))
    (stop,) = result.of("stops")
    assert stop.option == f"--map-labels {value}:1" and stop.option in result.command
    assert f"0 (75.0%), {value} (25.0%)" in stop.example


def test_a_value_of_no_class_is_unlabelled(tmp_path: Path) -> None:
    scene(tmp_path, "train", "a", {0: 40, 1: 40, 2: 20})
    scene(tmp_path, "train", "b", {0: 50, 1: 50})
    scene(tmp_path, "val", "c", {0: 50, 7: 50})  # of another value than in train
    names(tmp_path, "road", "sky")
    result = vankit.inspect(tmp_path, workers=0)
    assert result.splits[0].unlabelled == 0.1 and result.splits[1].images == 0
    assert [(each.split, each.count, each.option) for each in result.of("stops")] == [
        ("val", 1, "--skip-bad"),
        ("train", 1, "--ignore-label 2"),
    ]


@pytest.mark.parametrize(
    ("coding", "values", "wanted"),
    [
        (Coding(["a", "b", "c"]), {0, 100, 200}, {"map_labels": ("100:1", "200:2")}),
        (Coding(["a", "b", "c"]), {0, 1, 2, 255}, {}),
        (Coding(["a", "b", "c"]), {0, 1, 255}, {}),  # a class that may just be rare
        (Coding(["a", "b"], zero_is_unlabelled=True), {0, 1, 2}, {}),
        (Coding(["a", "b", "c"], zero_is_unlabelled=True), {0, 1, 9}, {"ignore_label": 9}),
        (Coding(["a", "b"]), {0, 1, 8, 9}, {"map_labels": ("8:255", "9:255")}),
        (Coding(["a", "b"]), {0, 1, 700}, {"map_labels": ("700:255",)}),
        (Coding(["a", "b"]), set(range(40)), {}),  # too many to be named one by one
        (Coding(list(map(str, range(201))), named=False), {0, 100, 200}, {"map_labels": ("100:1", "200:2")}),
        (Coding(list(map(str, range(5))), named=False), {0, 1, 3, 4}, {}),
    ],
)
def test_settings_that_read_other_values(coding: Coding, values: set[int], wanted: dict[str, object]) -> None:
    assert propose(coding, Counter(dict.fromkeys(values, 10))) == wanted


def test_values_are_counted_as_numpy_does() -> None:
    rng = np.random.default_rng(0)
    for low, high in ((0, 256), (0, 2**16), (0, 2**20)):
        labels = rng.integers(low, high, (40, 50))
        values, counts = np.unique(labels, return_counts=True)
        assert count_labels(labels) == dict(zip(values.tolist(), counts.tolist(), strict=True))
