"""YOLO's folders: read as supervision reads them, in the layouts that tools write, and what is wrong with a line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vankit.data.held_out import HeldOut
from vankit.data.reading import Reading
from vankit.data.scenes import open_scenes
from vankit.data.yolo import label_file
from vankit.errors import MissingFileError, UserError

WIDTH, HEIGHT = 40, 20
CAT = "0 0.5 0.5 0.5 0.5"  # x 10 to 30, y 5 to 15
TRIANGLE = "1 0.25 0.25 0.75 0.25 0.5 0.75"


def add(root: Path, image: str, *lines: str) -> Path:
    path = root / image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    labels = label_file(path)
    labels.parent.mkdir(parents=True, exist_ok=True)
    labels.write_text("\n".join(lines))
    return labels


def yaml(root: Path, text: str = "names: [cat, dog]", name: str = "data.yaml") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")
    return root


def opened(root: Path, split: str = "train", masks: bool = False, **options: Any) -> Any:
    return open_scenes(root, "detect", split, masks=masks, **options)


def found(root: Path, split: str = "train") -> list[tuple[list[float], int]]:
    data = opened(root, split)
    return [(box, label) for _, t in data for box, label in zip(t["boxes"].tolist(), t["labels"].tolist(), strict=True)]


def test_boxes_and_polygons_by_hand(tmp_path: Path) -> None:
    add(yaml(tmp_path), "images/train/a.png", CAT, "", TRIANGLE)
    data = opened(tmp_path)
    _, target = data[0]
    assert data.classes == ["cat", "dog"] and data.category_ids == [0, 1] and data.names == ["a.png"]
    assert target["boxes"].tolist() == [[10, 5, 30, 15], [10, 5, 30, 15]] and target["labels"].tolist() == [0, 1]
    assert target["area"].tolist() == [200, 200] and not target["iscrowd"].any() and not data.skipped
    add(tmp_path, "images/train/a.png", TRIANGLE)
    mask = opened(tmp_path, masks=True)[0][1]["masks"][0]
    expected = pytest.importorskip("pycocotools.mask")
    rle = expected.frPyObjects([[10.0, 5.0, 30.0, 5.0, 20.0, 15.0]], HEIGHT, WIDTH)
    np.testing.assert_array_equal(mask, expected.decode(expected.merge(rle)))


LAYOUTS = {
    "ultralytics": (
        "path: ../datasets/pets\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog",
        "images/{}",
    ),
    "roboflow": ("train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']", "{}/images"),
    "plain": ("names: [cat, dog]", "images/{}"),
    "by split": ("names: [cat, dog]", "{}/images"),
    "own names": ("train: images/a\nval: images/b\nnames: [cat, dog]", None),
    "of another machine": (
        "train: /home/me/pets/images/train\nval: /home/me/pets/images/val\nnames: [cat, dog]",
        "images/{}",
    ),
}


@pytest.mark.parametrize(("text", "folder"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(tmp_path: Path, text: str, folder: str | None) -> None:
    names = [folder.format(split) for split in ("train", "valid" if "valid" in text else "val")] if folder else None
    train, val = names or ["images/a", "images/b"]
    add(yaml(tmp_path, text), f"{train}/a.png", CAT)
    add(tmp_path, f"{val}/deep/b.png", TRIANGLE)
    assert found(tmp_path) == [([10, 5, 30, 15], 0)] and found(tmp_path, "val") == [([10, 5, 30, 15], 1)]


def test_a_poses_keypoints_follow_its_box(tmp_path: Path) -> None:
    points = " 0.1 0.9 2" * 4
    add(yaml(tmp_path, "kpt_shape: [4, 3]\nnames: [cat, dog]"), "images/train/a.png", CAT + points, TRIANGLE)
    with pytest.raises(UserError, match="7 numbers: expected class x y width height"):
        opened(tmp_path)
    assert opened(tmp_path, reading=Reading(skip_bad=True))[0][1]["boxes"].tolist() == [[10, 5, 30, 15]]


def test_several_folders_and_classes_called_no(tmp_path: Path) -> None:
    add(
        yaml(tmp_path, "train: [images/a, images/b]\nval: images/b\nnames: [yes, no]", "pets.yaml"),
        "images/a/1.png",
        CAT,
    )
    add(tmp_path, "images/b/2.png", TRIANGLE)
    assert (
        opened(tmp_path).classes == ["yes", "no"] and len(opened(tmp_path)) == 2 and len(opened(tmp_path, "val")) == 1
    )


def test_train_and_val_of_the_same_images_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(yaml(tmp_path, "train: images/a\nval: images/a\nnames: [cat, dog]"), "images/a/1.png", CAT)
    opened(tmp_path, "val")
    assert "train and val are the same images" in caplog.text


def test_a_path_to_another_split_is_no_way_to_this_one(tmp_path: Path) -> None:
    """A Roboflow export of which only the images of train were kept."""
    add(yaml(tmp_path, "train: ../train/images\nval: ../valid/images\nnames: [cat, dog]"), "train/images/a.png", CAT)
    add(tmp_path, "images/b.png", CAT)
    assert opened(tmp_path).names == ["a.png"]
    with pytest.raises(UserError, match="says that val is ../valid/images, which is not in"):
        opened(tmp_path, "val")


def test_text_files_beside_the_images(tmp_path: Path) -> None:
    """As LabelImg and CVAT's YOLO 1.1 leave them."""
    for root, folder in ((tmp_path / "a", "."), (tmp_path / "b", "train"), (tmp_path / "c", "obj_train_data")):
        add(yaml(root, "cat\ndog\n", "obj.names" if folder[0] == "o" else "classes.txt"), f"{folder}/1.png", CAT)
    (tmp_path / "c" / "train.txt").write_text("data/obj_train_data/1.png\n")
    for name in "abc":
        assert found(tmp_path / name) == [([10, 5, 30, 15], 0)]


def test_images_without_a_label_file_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(yaml(tmp_path), "images/train/a.png", CAT)
    add(tmp_path, "images/train/b.png").unlink()
    (tmp_path / "images" / "train" / "c.mp4").touch()
    opened(tmp_path)
    assert "images without a label file, taken as empty (1)" in caplog.text
    assert "passed over .mp4 (1, such as c.mp4)" in caplog.text


def test_lists_of_images(tmp_path: Path) -> None:
    add(yaml(tmp_path, "train: train.txt\nval: val.txt\nnames: [cat, dog]"), "images/a.png", CAT)
    add(tmp_path, "images/b.png", TRIANGLE)
    (tmp_path / "train.txt").write_text("./images/a.png\n")
    (tmp_path / "val.txt").write_text("/elsewhere/pets/images/b.png\n")
    assert found(tmp_path) == [([10, 5, 30, 15], 0)] and found(tmp_path, "val") == [([10, 5, 30, 15], 1)]


@pytest.mark.parametrize("name", ["classes.txt", "labels/classes.txt", "obj.names"])
def test_a_set_without_splits_and_with_a_list_of_classes(tmp_path: Path, name: str) -> None:
    for i in range(10):
        add(tmp_path, f"images/{i}.png", CAT)
    (tmp_path / name).write_text("cat\r\ndog\r\n", encoding="utf-8-sig")
    assert opened(tmp_path).classes == ["cat", "dog"] and len(opened(tmp_path)) == len(opened(tmp_path, "val")) == 10
    parts = [set(opened(tmp_path, split, held_out=HeldOut(0.2, plain=True)).names) for split in ("train", "val")]
    assert [len(part) for part in parts] == [8, 2] and not parts[0] & parts[1]


def test_without_val_some_are_held_out(tmp_path: Path) -> None:
    for i in range(10):
        add(yaml(tmp_path), f"images/train/{i}.png", CAT)
    assert [len(opened(tmp_path, split, held_out=HeldOut(0.3))) for split in ("train", "val")] == [7, 3]
    with pytest.raises(MissingFileError, match=r"no instances of split val in .*YOLO's data\.yaml"):
        opened(tmp_path, "val")


def test_an_image_without_labels_has_no_objects(tmp_path: Path) -> None:
    add(yaml(tmp_path), "images/train/a.png", CAT)
    add(tmp_path, "images/train/b.png")
    add(tmp_path, "images/train/c.png").unlink()
    assert [len(target["labels"]) for _, target in opened(tmp_path)] == [1, 0, 0]


def test_no_labels_at_all_are_a_mistake(tmp_path: Path) -> None:
    add(yaml(tmp_path), "images/train/a.png").unlink()
    with pytest.raises(
        UserError, match=r"no image in .*train has labels: expected text files such as .*labels/train/a\.txt"
    ):
        opened(tmp_path)


BAD_LINES = {
    "words": ("cat 0.5 0.5 0.5 0.5", r"a\.txt: line 2: 'cat 0.5 0.5 0.5 0.5' is not a list of numbers"),
    "class": ("0.5 0.5 0.5 0.5 0.5", "has no whole number first"),
    "nan": ("0 nan 0.5 0.5 0.5", "or one that is not finite"),
    "pixels": ("0 20 10 20 10", "has values beyond the image: expected parts of its sides, from 0 to 1"),
    "short": ("0 0.5 0.5", "3 numbers: expected class x y width height, or class and at least 3 points"),
    "odd": ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "8 numbers: expected class x y width height"),
    "unknown": ("2 0.5 0.5 0.5 0.5", "category_id 2 is unknown; the categories have 0, 1"),
    "empty": ("0 0.5 0.5 0 0.5", "is empty: width and height must be positive"),
    "outside": ("0 1.9 0.5 0.1 0.1", "is empty inside the picture"),
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.values(), ids=BAD_LINES)
def test_bad_lines_are_refused_or_left_out(tmp_path: Path, line: str, reason: str) -> None:
    add(yaml(tmp_path), "images/train/a.png", CAT, line, CAT)
    with pytest.raises(UserError, match=reason):
        opened(tmp_path)
    data = opened(tmp_path, reading=Reading(skip_bad=True))
    assert len(data[0][1]["labels"]) == 2 and data.left_out.total() == 1


def test_boxes_over_the_edge_are_clipped(tmp_path: Path) -> None:
    add(yaml(tmp_path), "images/train/a.png", "0 0 0.5 0.5 0.5")
    data = opened(tmp_path)
    assert data[0][1]["boxes"].tolist() == [[0, 5, 10, 15]] and data.repairs == {"boxes clipped to their image": 1}


def test_broken_images_and_label_files(tmp_path: Path) -> None:
    add(yaml(tmp_path), "images/train/a.png", CAT)
    add(tmp_path, "images/train/b.png", CAT).write_bytes(b"\xff\xfe0")
    add(tmp_path, "images/train/c.png", CAT)
    (tmp_path / "images/train/c.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"b\.txt: .*b\.txt is not text in UTF-8|c\.png: .*c\.png is not an image"):
        opened(tmp_path)
    data = opened(tmp_path, reading=Reading(skip_bad=True))
    assert data.names == ["a.png", "b.png"]
    assert data.left_out == {"label files that cannot be read": 1, "images that cannot be read": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("names: [", r"data\.yaml is not YAML"),
        ("- cat", r"data\.yaml is not a YOLO configuration"),
        ("nc: 2", "no class names in .*: expected names in data.yaml, or classes.txt"),
        ("names: {1: cat, 2: dog}", "has names 1, 2: expected one for each number from 0"),
        ("names: {0: cat, '1': dog, x: y}", "has names 0, 1, x: expected one for each number from 0"),
        ("nc: 3\nnames: [cat, dog]", "has nc 3 and 2 names: expected as many"),
    ],
)
def test_configurations_that_cannot_be_read(tmp_path: Path, text: str, reason: str) -> None:
    add(yaml(tmp_path, text), "images/train/a.png", CAT)
    with pytest.raises(UserError, match=reason):
        opened(tmp_path)


def test_data_yaml_leads_nowhere_outside(tmp_path: Path) -> None:
    add(tmp_path, "elsewhere/images/a.png", CAT)
    yaml(tmp_path / "set", f"train: {tmp_path}/elsewhere/images\nval: ../elsewhere/images\nnames: [cat, dog]")
    with pytest.raises(
        UserError, match="says that train is .*elsewhere/images, which is not in .*set: expected a fold"
    ):
        opened(tmp_path / "set")


def test_a_listed_image_outside_is_opened_on_request_only(tmp_path: Path, opened_files: list[str]) -> None:
    add(tmp_path, "elsewhere/images/b.png", CAT)
    root = yaml(tmp_path / "set", "train: train.txt\nnames: [cat, dog]")
    add(root, "images/a.png", CAT)
    for line in ("../elsewhere/images/b.png", str(tmp_path / "elsewhere" / "images" / "b.png")):
        (root / "train.txt").write_text(f"images/a.png\n{line}\n")
        opened_files.clear()
        with pytest.raises(UserError, match=r"b\.png' leads out of .*set; expected a name inside it: --allow-outside"):
            opened(root)
        data = opened(root, reading=Reading(skip_bad=True))
        assert data.names == ["images/a.png"] and data.left_out == {"images outside the folder": 1}
        assert not any("elsewhere" in name for name in opened_files)
        assert [len(t["boxes"]) for _, t in opened(root, reading=Reading(allow_outside=True))] == [1, 1]


def test_a_name_that_is_too_long_is_not_there(tmp_path: Path) -> None:
    add(yaml(tmp_path, f"train: {'a' * 5000}\nnames: [cat, dog]"), "images/a.png", CAT)
    with pytest.raises(UserError, match="says that train is a*, which is not in "):
        opened(tmp_path)


@pytest.mark.parametrize("train", ["[[images]]", "{images: train}"])
def test_a_split_that_is_no_name(tmp_path: Path, train: str) -> None:
    add(yaml(tmp_path, f"train: {train}\nnames: [cat, dog]"), "images/train/a.png", CAT)
    with pytest.raises(UserError, match=r"data\.yaml has .*images.* for a split: expected a folder, a text file or"):
        opened(tmp_path)


@pytest.mark.parametrize("shape", ["[²,3]", f"[{'1' * 5000},3]", "[17]", "17", "[-1, 3]"])
def test_numbers_of_keypoints_that_are_none(tmp_path: Path, shape: str) -> None:
    add(yaml(tmp_path, f"names: [cat, dog]\nkpt_shape: {shape}"), "images/train/a.png", CAT)
    with pytest.raises(UserError, match="has kpt_shape .*: expected two whole numbers, such as"):
        opened(tmp_path)


numbers = st.floats(0.05, 0.95)
boxes = st.tuples(st.integers(0, 1), numbers, numbers, st.floats(0.01, 0.1), st.floats(0.01, 0.1))
polygons = st.tuples(st.integers(0, 1), *[numbers] * 6).filter(lambda p: min(np.ptp(p[1::2]), np.ptp(p[2::2])) > 0.01)


@given(st.lists(boxes | polygons, max_size=5))
def test_lines_are_read_as_supervision_reads_them(
    tmp_path_factory: pytest.TempPathFactory, objects: list[tuple[float, ...]]
) -> None:
    supervision = pytest.importorskip("supervision")
    root = yaml(tmp_path_factory.mktemp("yolo"))
    labels = add(root, "images/train/a.png", *(" ".join(map(str, each)) for each in objects))
    truth = supervision.DetectionDataset.from_yolo(
        str(root / "images/train"), str(labels.parent), str(root / "data.yaml")
    )
    _, _, expected = truth[0]
    _, target = opened(root)[0]
    np.testing.assert_allclose(target["boxes"].reshape(-1, 4), expected.xyxy.clip(0, [WIDTH, HEIGHT] * 2), atol=1e-4)
    assert target["labels"].tolist() == ([] if expected.class_id is None else expected.class_id.tolist())


@pytest.mark.slow
@pytest.mark.data
def test_real_photographs_in_yolo_and_voc_layouts_equal_coco(
    shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    """supervision writes COCO's photographs in both layouts; what is read from them is what the JSON says."""
    supervision = pytest.importorskip("supervision")
    root = shared_data("coco_instances_128")
    coco = opened(root, "val")
    truth = supervision.DetectionDataset.from_coco(str(root / "images"), str(root / "annotations" / "instances.json"))
    yolo, voc = tmp_path / "yolo", tmp_path / "voc"
    truth.as_yolo(str(yolo / "images"), str(yolo / "labels"), str(yolo / "data.yaml"))
    truth.as_pascal_voc(str(voc / "images"), str(voc / "annotations"))
    expected = {Path(name).stem: target for name, (_, target) in zip(coco.names, coco, strict=True)}
    for folder in (yolo, voc):
        data = opened(folder, "val", reading=Reading(skip_bad=True))
        total = 0
        for name, (_, target) in zip(data.names, data, strict=True):
            want = expected[Path(name).stem]
            names = sorted(data.classes[label] for label in target["labels"])
            total += len(names)
            if len(names) == len(want["labels"]):
                assert names == sorted(coco.classes[label] for label in want["labels"])
                boxes = [np.sort(each["boxes"], 0) for each in (target, want)]
                np.testing.assert_allclose(*boxes, atol=1.5)  # whole pixels, of VOC counted from 1
        assert total >= 880 and len(data) == 128


def test_a_few_lines_do_not_stand_for_gigabytes(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    (tmp_path / "data.yaml").write_text("\n".join([*levels, "train: *a9", "names: [a]", "kpt_shape: *a9"]))
    with pytest.raises(UserError, match=r"data\.yaml .*it has aliases"):
        open_scenes(tmp_path, "detect", "train")
