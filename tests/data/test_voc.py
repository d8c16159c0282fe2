"""Pascal VOC's folders: read as supervision reads them, in the layouts that tools write, and what is wrong."""

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
from vankit.errors import UserError

WIDTH, HEIGHT = 40, 20


def thing(name: str = "cat", box: tuple[float, ...] = (11, 6, 30, 15), extra: str = "") -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def add(root: Path, image: str, xml: str, *objects: str, size: str | None = None) -> Path:
    path = root / image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>" if size is None else size
    (root / xml).parent.mkdir(parents=True, exist_ok=True)
    (root / xml).write_text(f"<annotation><filename>{path.name}</filename>{size}{''.join(objects)}</annotation>")
    return root / xml


def opened(root: Path, split: str = "train", **options: Any) -> Any:
    return open_scenes(root, "detect", split, masks=False, **options)


def beside(root: Path, *objects: str, name: str = "a", size: str | None = None) -> Path:
    return add(root, f"train/{name}.png", f"train/{name}.xml", *objects, size=size)


def test_corners_count_from_1_and_are_inside(tmp_path: Path) -> None:
    beside(tmp_path, thing(), thing("dog", (1, 1, WIDTH, HEIGHT), "<difficult>1</difficult>"))
    data = opened(tmp_path)
    _, target = data[0]
    assert data.classes == ["cat", "dog"] and data.names == ["a.png"]
    assert target["boxes"].tolist() == [[10, 5, 30, 15], [0, 0, WIDTH, HEIGHT]]
    assert target["labels"].tolist() == [0, 1] and target["iscrowd"].tolist() == [False, True]
    assert not +data.repairs and not data.skipped


def test_the_layout_of_the_development_kit(tmp_path: Path) -> None:
    for root in (tmp_path / "VOC2012", tmp_path / "VOCdevkit" / "VOC2007"):
        lists = root / "ImageSets" / "Main"
        lists.mkdir(parents=True)
        for name, split, label in (("a", "train", "cat"), ("b", "val", "dog"), ("c", "train", "dog")):
            add(root, f"JPEGImages/{name}.jpg", f"Annotations/{name}.xml", thing(label))
            with (lists / f"{split}.txt").open("a") as file:
                file.write(f"{name}\n")
        for data in (root, root.parent if root.parent.name == "VOCdevkit" else root):
            assert opened(data).names == ["a.jpg", "c.jpg"] and opened(data, "val").names == ["b.jpg"]
            assert opened(data, "val").classes == ["cat", "dog"]  # those of the training images


@pytest.mark.parametrize(
    "folders",
    [
        ("images/{}", "annotations/{}"),
        ("{}", "{}"),
        ("JPEGImages/{}", "Annotations/{}"),
        ("{}/images", "{}/annotations"),
    ],
)
@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_layouts_of_other_tools(tmp_path: Path, folders: tuple[str, str], val: str) -> None:
    for split in ("train" if val.islower() else "Train", val):
        images, annotations = (folder.format(split) for folder in folders)
        add(tmp_path, f"{images}/{split}.png", f"{annotations}/{split}.xml", thing())
    assert len(opened(tmp_path)) == 1 and opened(tmp_path, "val").names == [f"{val}.png"]


def test_names_in_lists(tmp_path: Path) -> None:
    for name in ("my photo 1", "my photo 2", "my", "a/0", "b/0"):
        add(tmp_path, f"JPEGImages/{name}.jpg", f"Annotations/{name}.xml", thing())
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("my photo 1\nmy photo 2.jpg\nmy  -1\na/0\nJPEGImages/b/0.jpg\n\n")
    with pytest.raises(UserError, match=r"b/0\.jpg: no annotation"):  # of two of that name nobody knows which
        opened(tmp_path)
    data = opened(tmp_path, reading=Reading(skip_bad=True))
    assert data.names == ["my photo 1.jpg", "my photo 2.jpg", "my.jpg", "a/0.jpg"]


def test_a_network_knows_the_classes_of_a_validation_set_alone(tmp_path: Path) -> None:
    add(tmp_path, "val/a.jpg", "val/a.xml", thing("dog"))
    assert opened(tmp_path, "val").classes == ["dog"]
    data = opened(tmp_path, "val", known=["cat", "dog"])
    assert data.classes == ["cat", "dog"] and data[0][1]["labels"].tolist() == [1]


def test_an_encoding_that_nobody_knows(tmp_path: Path) -> None:
    beside(tmp_path, thing())
    beside(tmp_path, thing(), name="b").write_text('<?xml version="1.0" encoding="windows-ansi"?><annotation/>')
    assert opened(tmp_path, reading=Reading(skip_bad=True)).names == ["a.png"]


def test_a_set_without_splits_is_divided_where_asked(tmp_path: Path) -> None:
    for i in range(10):
        add(tmp_path, f"images/{i}.png", f"annotations/{i}.xml", thing())
    assert len(opened(tmp_path)) == len(opened(tmp_path, "val")) == 10
    parts = [set(opened(tmp_path, split, held_out=HeldOut(0.2, plain=True)).names) for split in ("train", "val")]
    assert [len(part) for part in parts] == [8, 2] and not parts[0] & parts[1]


def test_classes_txt_gives_the_order(tmp_path: Path) -> None:
    beside(tmp_path, thing("dog"))
    (tmp_path / "classes.txt").write_text("dog\ncat\n", encoding="utf-8-sig")
    assert opened(tmp_path).classes == ["dog", "cat"]


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_sizes_that_are_missing_are_read_from_the_images(tmp_path: Path, size: str) -> None:
    beside(tmp_path, thing(), size=size)
    data = opened(tmp_path)
    assert data.repairs == {"sizes read from the images": 1} and len(data[0][1]["labels"]) == 1


BAD = {
    "no box": ("<object><name>cat</name></object>", r"a\.xml: object 2: no bndbox with the numbers xmin, ymin"),
    "text": (thing(box=("left", 1, 2, 3)), "no bndbox with the numbers"),  # type: ignore[arg-type]
    "no name": (thing(name=""), "class '' is unknown; there are cat"),
    "outside": (thing(box=(50, 1, 60, 5)), "is empty inside the picture"),
}


@pytest.mark.parametrize(("entry", "reason"), BAD.values(), ids=BAD)
def test_bad_objects_are_refused_or_left_out(tmp_path: Path, entry: str, reason: str) -> None:
    beside(tmp_path, thing(), entry, thing())
    with pytest.raises(UserError, match=reason):
        opened(tmp_path)
    data = opened(tmp_path, reading=Reading(skip_bad=True))
    assert len(data[0][1]["labels"]) == 2 and data.left_out.total() == 1


def test_images_without_xml_and_xml_that_is_broken(tmp_path: Path) -> None:
    beside(tmp_path, thing())
    beside(tmp_path, thing(), name="b").write_text("<annotation><object>")
    beside(tmp_path, thing(), name="c").unlink()
    with pytest.raises(UserError, match=r"b\.png: .*b\.xml is not XML"):
        opened(tmp_path)
    data = opened(tmp_path, reading=Reading(skip_bad=True))
    assert data.names == ["a.png"]
    assert data.left_out == {"XML files that cannot be read": 1, "images without an XML file": 1}


def test_no_object_at_all_is_a_mistake(tmp_path: Path) -> None:
    beside(tmp_path)
    with pytest.raises(UserError, match="the XML files in .*train name no object"):
        opened(tmp_path)


def test_entities_do_not_expand_without_end(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f'<!DOCTYPE x [<!ENTITY e0 "boom">{entities}]><annotation><object><name>&e11;</name></object></annotation>'
    beside(tmp_path, thing())
    beside(tmp_path, thing(), name="b").write_text(bomb)
    assert opened(tmp_path, reading=Reading(skip_bad=True)).names == ["a.png"]


def test_xml_that_a_list_names_outside_is_opened_on_request_only(tmp_path: Path, opened_files: list[str]) -> None:
    root, lists = tmp_path / "set", tmp_path / "set" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    add(root, "JPEGImages/a.jpg", "Annotations/a.xml", thing())
    add(tmp_path, "b.jpg", "b.xml", thing())
    (lists / "train.txt").write_text("a\n../../b\n")
    (root / "classes.txt").write_text("cat\n")
    opened_files.clear()
    with pytest.raises(UserError, match=r"b\.jpg' leads out of .*set; expected a name inside it: --allow-outside"):
        opened(root)
    data = opened(root, reading=Reading(skip_bad=True))
    assert data.names == ["a.jpg"] and data.left_out == {"images outside the folder": 1}
    assert not any(name.endswith("b.xml") for name in opened_files)
    assert len(opened(root, reading=Reading(allow_outside=True))) == 2


corners = st.tuples(st.integers(1, 20), st.integers(1, 10), st.integers(21, WIDTH), st.integers(11, HEIGHT))


@given(st.lists(st.tuples(st.sampled_from(["cat", "dog"]), corners), min_size=1, max_size=4))
def test_objects_are_read_as_supervision_reads_them(
    tmp_path_factory: pytest.TempPathFactory, objects: list[tuple[str, tuple[int, ...]]]
) -> None:
    supervision = pytest.importorskip("supervision")
    root = tmp_path_factory.mktemp("voc")
    beside(root, *(thing(name, box) for name, box in objects))
    truth = supervision.DetectionDataset.from_pascal_voc(str(root / "train"), str(root / "train"))
    _, _, expected = truth[0]
    data = opened(root)
    np.testing.assert_array_equal(data[0][1]["boxes"], expected.xyxy)
    assert [data.classes[label] for label in data[0][1]["labels"]] == [truth.classes[i] for i in expected.class_id]
