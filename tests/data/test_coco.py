"""COCO folders, sound and broken: written by hand, by hypothesis, and real ones; masks against pycocotools."""

import json
import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from vankit.data.augment import as_tensors
from vankit.data.coco import CocoInstances
from vankit.data.coco_panoptic import CocoPanoptic
from vankit.data.layouts import find_coco
from vankit.data.reading import Reading
from vankit.data.scenes import open_scenes
from vankit.errors import MissingFileError, UserError

SKIP = Reading(skip_bad=True)
WIDTH, HEIGHT = 12, 8
SQUARE = [[2, 1, 6, 1, 6, 5, 2, 5]]
CATEGORIES = [{"id": 7, "name": "dog", "isthing": 1}, {"id": 3, "name": "cat", "isthing": 0}]

Content = dict[str, Any]


def annotation(number: int = 1, **changes: Any) -> Content:
    usual = {"image_id": 5, "category_id": 7, "bbox": [2, 1, 4, 4], "segmentation": SQUARE, "iscrowd": 0, "area": 16}
    return {"id": number, **usual, **changes}


def picture(number: int = 5, name: str = "a.png", **changes: Any) -> Content:
    return {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT, **changes}


def content(*annotations: Any, images: list[Any] | None = None, **changes: Any) -> Content:
    return {
        "images": [picture()] if images is None else images,
        "annotations": list(annotations),
        "categories": CATEGORIES,
        **changes,
    }


def write(root: Path, text: Content | str, names: tuple[str, ...] = ("a.png",)) -> tuple[Path, Path]:
    (root / "images").mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT), (10, 20, 30)).save(root / "images" / name)
    path = root / "instances.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return root / "images", path


def write_segments(root: Path, ids: NDArray[np.int64], infos: Any, **changes: Any) -> tuple[Path, Path, Path]:
    folder = root / "segments"
    folder.mkdir(exist_ok=True)
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    Image.fromarray(rgb).save(folder / "a.png")
    entry = {"image_id": 5, "file_name": "a.png", "segments_info": infos, **changes}
    return (*write(root, content(entry)), folder)


def segments() -> NDArray[np.int64]:
    ids = np.zeros((HEIGHT, WIDTH), np.int64)
    ids[:3] = 70_000
    ids[4:6, 2:5] = 300
    ids[7, 11] = 9
    return ids


def info(number: int, category: int = 7, **changes: Any) -> Content:
    return {"id": number, "category_id": category, "iscrowd": 0, **changes}


INFOS = [info(300), info(70_000, 3), info(9, iscrowd=1)]


def exception_of(error: Any) -> type[Exception]:
    return FileNotFoundError if "no such" in error else ValueError


# Items


def test_an_item_by_hand(tmp_path: Path) -> None:
    data = CocoInstances(*write(tmp_path, content(annotation(), annotation(2, category_id=3, iscrowd=1))))
    image, target = data[0]
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (WIDTH, HEIGHT), (10, 20, 30))
    boxes, masks = target["boxes"], target["masks"]
    assert boxes.tolist() == [[2, 1, 6, 5]] * 2 and boxes.dtype == np.float32
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[1:5, 2:6] = True
    assert masks.tolist() == [expected.tolist()] * 2 and masks.dtype == np.bool_
    assert target["labels"].tolist() == [1, 0] and target["labels"].dtype == np.int64
    assert target["iscrowd"].tolist() == [False, True] and target["iscrowd"].dtype == np.bool_
    assert target["area"].tolist() == [16, 16] and target["area"].dtype == np.float32
    assert target["image_id"] == 5
    assert (data.classes, data.category_ids) == (["cat", "dog"], [3, 7])
    assert (data.names, data.image_ids, data.skipped) == (["a.png"], [5], [])


def test_images_without_objects_are_kept(tmp_path: Path) -> None:
    images = [picture(), picture(6, "b.png")]
    data = CocoInstances(*write(tmp_path, content(annotation(), images=images), ("a.png", "b.png")))
    _, target = data[1]
    assert len(data) == 2 and target["image_id"] == 6
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, HEIGHT, WIDTH)
    assert [len(target[name]) for name in ("labels", "iscrowd", "area")] == [0, 0, 0]


def test_without_masks_the_segmentation_may_be_missing(tmp_path: Path) -> None:
    data = CocoInstances(*write(tmp_path, content(annotation(segmentation=None))), masks=False)
    assert "masks" not in data[0][1] and len(data[0][1]["boxes"]) == 1


def test_iscrowd_and_area_may_be_missing(tmp_path: Path) -> None:
    entry = annotation(bbox=[2, 1, 4, 3])
    del entry["iscrowd"], entry["area"]
    target = CocoInstances(*write(tmp_path, content(entry)))[0][1]
    assert target["iscrowd"].tolist() == [False] and target["area"].tolist() == [12]


def test_boxes_that_overhang_by_rounding_are_clipped(tmp_path: Path) -> None:
    data = CocoInstances(*write(tmp_path, content(annotation(bbox=[-2, -0.5, WIDTH + 4, HEIGHT + 2.5]))))
    assert data[0][1]["boxes"].tolist() == [[0, 0, WIDTH, HEIGHT]]


def test_transforms_move_image_boxes_and_masks_together(tmp_path: Path) -> None:
    flip = v2.Compose([as_tensors, v2.RandomHorizontalFlip(1), v2.Resize((2 * HEIGHT, 2 * WIDTH))])
    image, target = CocoInstances(*write(tmp_path, content(annotation())), flip)[0]
    assert image.shape == (3, 2 * HEIGHT, 2 * WIDTH)
    x1, y1, x2, y2 = map(int, target["boxes"][0])
    assert (x1, y1, x2, y2) == (12, 2, 20, 10)
    assert target["masks"].dtype == torch.bool
    assert target["masks"][0, y1:y2, x1:x2].all() and target["masks"].sum() == (x2 - x1) * (y2 - y1)


def test_transforms_take_images_without_objects(tmp_path: Path) -> None:
    crop = v2.Compose([as_tensors, v2.RandomIoUCrop(), v2.ScaleJitter((16, 16)), v2.SanitizeBoundingBoxes()])
    _, target = CocoInstances(*write(tmp_path, content()), crop)[0]
    assert target["boxes"].shape == (0, 4) and target["masks"].shape[0] == 0


def test_indices_count_from_the_end_and_stop(tmp_path: Path) -> None:
    images = [picture(), picture(6, "b.png")]
    for skip_bad in (False, True):
        data = CocoInstances(*write(tmp_path, content(images=images), ("a.png", "b.png")), reading=Reading(skip_bad))
        assert data[-1][1]["image_id"] == 6
        assert [target["image_id"] for _, target in data] == [5, 6]  # type: ignore[attr-defined]


def test_a_dataset_goes_to_worker_processes(tmp_path: Path) -> None:
    data = CocoInstances(*write(tmp_path, content(annotation())))
    assert np.array_equal(pickle.loads(pickle.dumps(data))[0][1]["masks"], data[0][1]["masks"])


# Masks against pycocotools

points = st.tuples(st.floats(0, WIDTH), st.floats(0, HEIGHT))
polygons = st.lists(points, min_size=3, max_size=6).map(
    lambda corners: [float(x) for corner in corners for x in corner]
)
corners = st.tuples(
    st.floats(0, WIDTH - 1), st.floats(0, HEIGHT - 1), st.floats(0.01, WIDTH), st.floats(0.01, HEIGHT)
).map(lambda box: [box[0], box[1], min(box[2], WIDTH - box[0]), min(box[3], HEIGHT - box[1])])
bitmaps = st.lists(st.booleans(), min_size=WIDTH * HEIGHT, max_size=WIDTH * HEIGHT)


def coco_mask(segmentation: Any) -> NDArray[np.uint8]:
    mask_api = pytest.importorskip("pycocotools.mask")
    rle = mask_api.frPyObjects(segmentation, HEIGHT, WIDTH) if "counts" not in segmentation else segmentation
    if isinstance(rle, list):
        rle = mask_api.merge(rle)
    elif isinstance(segmentation["counts"], list):
        rle = mask_api.frPyObjects(segmentation, HEIGHT, WIDTH)
    return mask_api.decode(rle)


def rle_of(bits: list[bool], compressed: bool) -> Content:
    """COCO counts columns first, background first."""
    if compressed:
        mask_api = pytest.importorskip("pycocotools.mask")
        rle = mask_api.encode(np.asfortranarray(np.array(bits, np.uint8).reshape(WIDTH, HEIGHT).T))
        return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
    counts, current = [0], False
    for bit in bits:
        if bit != current:
            counts.append(0)
            current = bit
        counts[-1] += 1
    return {"size": [HEIGHT, WIDTH], "counts": counts}


@settings(max_examples=60)
@given(st.lists(st.tuples(corners, st.lists(polygons, min_size=1, max_size=3), st.sampled_from([3, 7])), max_size=4))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, objects: list[tuple[list[float], list[list[float]], int]]
) -> None:
    objects = [o for o in objects if coco_mask(o[1]).any()]
    entries = [
        annotation(i, bbox=box, segmentation=shapes, category_id=category)
        for i, (box, shapes, category) in enumerate(objects)
    ]
    _, target = CocoInstances(*write(tmp_path_factory.mktemp("coco"), content(*entries)))[0]
    boxes = [[x, y, min(x + w, WIDTH), min(y + h, HEIGHT)] for (x, y, w, h), _, _ in objects]
    np.testing.assert_array_equal(target["boxes"], np.array(boxes, np.float32).reshape(-1, 4))
    assert target["labels"].tolist() == [category == 7 for _, _, category in objects]
    for mask, (_, shapes, _) in zip(target["masks"], objects, strict=True):
        np.testing.assert_array_equal(mask, coco_mask(shapes))


@settings(max_examples=60)
@given(bitmaps.filter(any), st.booleans())
def test_rle_is_decoded_column_by_column(
    tmp_path_factory: pytest.TempPathFactory, bits: list[bool], compressed: bool
) -> None:
    rle = rle_of(bits, compressed)
    entry = annotation(segmentation=rle, iscrowd=1)
    mask = CocoInstances(*write(tmp_path_factory.mktemp("coco"), content(entry)))[0][1]["masks"][0]
    np.testing.assert_array_equal(mask, np.array(bits).reshape(WIDTH, HEIGHT).T)
    np.testing.assert_array_equal(mask, coco_mask(rle))


# Mistakes in the JSON

BAD_ANNOTATIONS = {
    "no_category": (annotation(category_id=None), "annotation 1: has category_id None, expected a whole number"),
    "unknown_category": (annotation(category_id=8), "annotation 1: category_id 8 is unknown; the categories have 3, 7"),
    "unknown_image": (annotation(image_id=6), "annotation 1: image_id 6 is unknown"),
    "no_object": ("text", "annotation text: has image_id None"),
    "outside": (annotation(bbox=[WIDTH + 1, 1, 4, 4]), r"annotation 1: bbox .* is empty inside the picture of 12 x 8"),
    "empty_box": (annotation(bbox=[2, 1, 0, 4]), r"annotation 1: bbox \[2, 1, 0, 4\] is empty"),
    "negative_box": (annotation(bbox=[2, 1, 4, -1]), "is empty: width and height must be positive"),
    "beside": (annotation(bbox=[-2, 1, 1, 4]), "annotation 1: bbox .* is empty inside the picture"),
    "below_float32": (annotation(bbox=[2, 1, 1e-9, 4]), "is empty inside the picture"),
    "short_box": (annotation(bbox=[2, 1, 4]), "annotation 1: bbox is .* expected four numbers"),
    "nan_box": (annotation(bbox=[2, 1, float("nan"), 4]), "annotation 1: bbox is .* expected four numbers"),
    "text_box": (annotation(bbox=[2, 1, "4", 4]), "annotation 1: bbox is .* expected four numbers"),
    "far_box": (annotation(bbox=[2, 1e308, 4, 4]), "annotation 1: bbox .* is empty inside the picture"),
    "long_category": (annotation(category_id=2**63), "has category_id 9223372036854775808, expected a whole number of"),
    "huge_category": (annotation(category_id=1e308), r"has category_id 1e\+308, expected a whole number of 64 bits"),
    "huge_box": (annotation(bbox=[2, 1, 10**400, 4]), "annotation 1: bbox is .* expected four numbers"),
    "iscrowd": (annotation(iscrowd=2), "annotation 1: has iscrowd 2, expected 0 or 1"),
    "two_points": (annotation(segmentation=[[1, 1, 2, 2]]), "annotation 1: a polygon has 2 points"),
    "odd": (annotation(segmentation=[[1, 1, 2, 2, 3, 3, 4]]), "annotation 1: a polygon is not a list of numbers x, y"),
    "mixed": (
        annotation(segmentation=[*SQUARE, 3]),
        "annotation 1: a polygon is not a list .* must be a list of such lists",
    ),
    # the rasteriser never returns from these two
    "nan_polygon": (annotation(segmentation=[[float("nan"), 1, 2, 2, 3, 3]]), "a polygon is not a list of numbers"),
    "infinite": (annotation(segmentation=[[float("inf"), 1, 2, 2, 3, 3]]), "a polygon is not a list of numbers"),
    # which the rasteriser would take long for
    "far": (annotation(segmentation=[[1, 1, 1e12, 1, 1, 5]]), r"annotation 1: a polygon reaches 1e\+12 pixels past"),
    "rle_size": (
        annotation(segmentation={"size": [WIDTH, HEIGHT], "counts": [96]}),
        r"annotation 1: RLE size is \[12, 8\], the picture's is \[8, 12\]",
    ),
    "rle_counts": (annotation(segmentation={"size": [HEIGHT, WIDTH]}), "neither a list of polygons nor RLE"),
    "text": (annotation(segmentation="text"), "annotation 1: segmentation is neither"),
}
BAD_MASKS = {
    "empty_rle": ({"size": [HEIGHT, WIDTH], "counts": [96]}, "annotation 2: its mask is empty"),
    "empty_polygon": ([[3, 3, 3, 3, 3, 3]], "annotation 2: its mask is empty"),
    "too_long": ({"size": [HEIGHT, WIDTH], "counts": [0, 97]}, "annotation 2: segmentation cannot be decoded"),
    "too_short": ({"size": [HEIGHT, WIDTH], "counts": [0, 95]}, "annotation 2: segmentation cannot be decoded"),
    "below_zero": ({"size": [HEIGHT, WIDTH], "counts": [-1, 97]}, "annotation 2: segmentation cannot be decoded"),
    "garbage": ({"size": [HEIGHT, WIDTH], "counts": "no rle"}, "annotation 2: segmentation cannot be decoded"),
}
BAD_PICTURES = {
    "no_name": (picture(6, file_name=None), "has file_name None, expected a name"),
    "text_size": (picture(6, width="wide"), "a.png: has width 'wide', expected a whole number"),
    "huge_size": (picture(6, width=10**400), "has width 1000.*, expected a whole number of 64 bits"),
    "missing": (picture(6, "b.png"), "b.png: no such image file in .*images"),
    "no_object": (3, "3: has id None"),
}


@pytest.mark.parametrize(("entry", "reason"), BAD_ANNOTATIONS.values(), ids=BAD_ANNOTATIONS)
def test_bad_annotations_are_refused(tmp_path: Path, entry: Any, reason: str) -> None:
    paths = write(tmp_path, content(entry))
    with pytest.raises(UserError, match=reason) as refusal:
        CocoInstances(*paths)
    file = "a.png" if isinstance(entry, dict) and entry["image_id"] == 5 else "instances.json"
    assert str(refusal.value).startswith(f"{paths[1]}: {file}: annotation")


@pytest.mark.parametrize(("entry", "reason"), BAD_ANNOTATIONS.values(), ids=BAD_ANNOTATIONS)
def test_bad_annotations_are_left_out_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, entry: Any, reason: str
) -> None:
    data = CocoInstances(*write(tmp_path, content(annotation(2), entry, annotation(3))), reading=SKIP)
    assert len(data[0][1]["boxes"]) == len(data[0][1]["masks"]) == 2
    assert len(data.skipped) == len(caplog.records) == 1
    assert re.search(reason, ": ".join(data.skipped[0]))
    assert "left out 1 bad entries: " in caplog.text and data.left_out.total() == 1


@pytest.mark.parametrize("segmentation", [None, []])
def test_objects_without_a_segmentation(tmp_path: Path, segmentation: Any) -> None:
    """Some may be left out; where all lack it, that would leave nothing to train on."""
    paths = write(tmp_path, content(annotation(segmentation=segmentation), annotation(2)))
    with pytest.raises(UserError, match=r"annotation 1: no segmentation, but the head needs masks"):
        CocoInstances(*paths)
    assert len(CocoInstances(*paths, reading=SKIP)[0][1]["boxes"]) == 1
    data = CocoInstances(*write(tmp_path, content(annotation(segmentation=segmentation))), reading=SKIP)
    with pytest.raises(
        UserError, match=r"no annotation that can be used; such as a\.png: .* a head without, such as reti"
    ):
        data.check_labels()


def test_of_two_images_with_one_id_neither_is_used(tmp_path: Path) -> None:
    images = [picture(), picture(5, "b.png"), picture(6, "c.png")]
    entries = [annotation(), annotation(2), annotation(3, image_id=6)]
    paths = write(tmp_path, content(*entries, images=images), ("a.png", "b.png", "c.png"))
    with pytest.raises(UserError, match="image id 5 is given twice; ids must be unique"):
        CocoInstances(*paths)
    assert CocoInstances(*paths, reading=SKIP).names == ["c.png"]


def test_an_annotation_listed_twice_is_one(tmp_path: Path) -> None:
    data = CocoInstances(*write(tmp_path, content(annotation(), annotation())))
    assert len(data[0][1]["boxes"]) == 1 and data.repairs == {"annotations listed twice": 1}


def test_boxes_past_the_edge_of_a_turned_image_may_be_of_the_stored_one(tmp_path: Path) -> None:
    past = {"bbox": [1, 1, 11, 4]}, {"bbox": [2, 1, 4, 4], "segmentation": [[1, 1, 11, 1, 4, 4]]}
    for changes, masks in zip(past, (False, True), strict=True):
        images, path = write(tmp_path, content(annotation(**changes), images=[picture(width=None)]))
        rotate_file(images / "a.png")
        with pytest.raises(UserError, match=r"past the upright picture of 8 x 12, .*take its rotation away: exif"):
            CocoInstances(images, path, masks=masks)


def test_names_that_are_too_long_for_the_system(tmp_path: Path) -> None:
    images = [picture(), picture(6, "x" * 300)]
    assert CocoInstances(*write(tmp_path, content(annotation(), images=images)), reading=SKIP).names == ["a.png"]


def test_huge_areas(tmp_path: Path) -> None:
    assert CocoInstances(*write(tmp_path, content(annotation(area=10**400))))[0][1]["area"].tolist() == [16]


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty = [annotation(i, bbox=[2, 1, 0, 4]) for i in (2, 3)]
    data = CocoInstances(*write(tmp_path, content(annotation(), *empty, annotation(4, category_id=9))), reading=SKIP)
    assert data.left_out == {"empty boxes": 2, "unknown categories": 1}
    assert "left out 3 bad entries: empty boxes (2), unknown categories (1); such as a.png: annotation 2" in caplog.text


# What is repaired, with what it counts as

REPAIRS: dict[str, tuple[Content, str]] = {
    "no_id": ({"id": None}, "annotation ids missing or given twice"),
    "id_twice": ({"id": 2}, "annotation ids missing or given twice"),
    "float_ids": ({"image_id": 5.0}, "image_ids that were not whole numbers"),
    "text_ids": ({"category_id": "7"}, "category_ids that were not whole numbers"),
    "no_crowd": ({"iscrowd": None}, "iscrowd flags"),
    "text_crowd": ({"iscrowd": "0"}, "iscrowd flags"),
    "over_the_edge": ({"bbox": [-30, 1, 36, 4], "segmentation": SQUARE}, "boxes clipped to their image"),
    "text_area": ({"area": "big"}, "areas taken from the boxes"),
    "huge_area": ({"area": 1e300}, "areas taken from the boxes"),
    "nan_area": ({"area": float("nan")}, "areas taken from the boxes"),
    "no_box": ({"bbox": None}, "boxes taken from the polygons"),
    "flat": ({"segmentation": SQUARE[0]}, "segmentations that were one flat list"),
    "two_points": ({"segmentation": [*SQUARE, [1, 1, 2, 2]]}, "polygons of fewer than 3 points beside others"),
}
EXPECTED: dict[str, Any] = {"over_the_edge": [[0, 1, 6, 5]]}


@pytest.mark.parametrize(("changes", "kind"), REPAIRS.values(), ids=REPAIRS)
def test_repairs_that_lose_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest, changes: Content, kind: str
) -> None:
    entry = annotation(1, **{"area": None, **{k: v for k, v in changes.items() if k != "id"}})
    entry["id"] = changes.get("id", 1)
    data = CocoInstances(*write(tmp_path, content(annotation(2), entry)))
    assert data.repairs[kind] == data.repairs.total() == 1 and not data.skipped
    assert f"instances.json: repaired {kind} (1)" in caplog.text and len(caplog.records) == 1
    _, target = data[0]
    box = EXPECTED.get(request.node.callspec.id, [[2, 1, 6, 5]])
    assert target["boxes"][1:].tolist() == box and target["labels"].tolist() == [1, 1]
    assert not target["iscrowd"].any() and np.array_equal(target["masks"][1], target["masks"][0])
    ((x1, y1, x2, y2),) = box
    assert target["area"][1] == (x2 - x1) * (y2 - y1)


def test_a_box_beside_the_edge_by_rounding_is_no_repair(tmp_path: Path) -> None:
    data = CocoInstances(*write(tmp_path, content(annotation(bbox=[-1.5, 1, 4, 4]))))
    assert data[0][1]["boxes"].tolist() == [[0, 1, 2.5, 5]] and not +data.repairs


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(-8, 19), st.integers(-8, 15)), min_size=3, max_size=6))
def test_polygons_over_the_edge_give_what_a_larger_picture_would_show(
    tmp_path_factory: pytest.TempPathFactory, corners: list[tuple[int, int]]
) -> None:
    """pycocotools draws them whole on a picture that is larger by a margin on all sides, from which ours is cut; its
    rounding depends on where the origin is, so pixels on an edge may differ. On our picture it gives the same."""
    mask_api = pytest.importorskip("pycocotools.mask")
    margin, polygon = 16, [float(x) for corner in corners for x in corner]
    shifted = [x + margin for x in polygon]
    rle = mask_api.frPyObjects([shifted], HEIGHT + 2 * margin, WIDTH + 2 * margin)
    expected = mask_api.decode(mask_api.merge(rle))[margin : margin + HEIGHT, margin : margin + WIDTH]
    entry = annotation(segmentation=[polygon])
    data = CocoInstances(*write(tmp_path_factory.mktemp("coco"), content(entry)), reading=SKIP)
    found = data[0][1]["masks"].any(0)
    np.testing.assert_array_equal(found, coco_mask([polygon]))
    ys, xs = np.nonzero(found != expected)
    assert all(_distance_to_edges(x + 0.5, y + 0.5, corners) <= 1 for x, y in zip(xs, ys, strict=True))


def _distance_to_edges(x: float, y: float, corners: list[tuple[int, int]]) -> float:
    point, ends = np.array([x, y]), np.array(corners, float)
    along = np.roll(ends, -1, 0) - ends
    part = ((point - ends) * along).sum(1) / np.maximum((along**2).sum(1), 1e-9)
    return float(np.linalg.norm(ends + part.clip(0, 1)[:, None] * along - point, axis=1).min())


@pytest.mark.parametrize("changes", [{"width": None}, {"height": -1}, {"width": 0}, {"height": None}])
def test_sizes_that_are_missing_are_those_of_the_upright_files(tmp_path: Path, changes: Content) -> None:
    images, path = write(tmp_path, content(annotation(bbox=[1, 2, 3, 9]), images=[picture(**changes)]))
    rotate_file(images / "a.png")
    data = CocoInstances(images, path, masks=False)
    assert data.repairs == {"sizes read from the images": 1}
    assert data[0][0].size == (HEIGHT, WIDTH) and data[0][1]["boxes"].tolist() == [[1, 2, 4, 11]]


def test_sizes_that_are_missing_need_a_file_that_can_be_read(tmp_path: Path) -> None:
    images, path = write(tmp_path, content(annotation(), images=[picture(width=None)]))
    break_file(images / "a.png")
    (images / "a.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"instances\.json: a\.png: .*a\.png is not an image"):
        CocoInstances(images, path)


@pytest.mark.parametrize(
    "name", ["sub\\a.png", "images/sub/a.png", "images\\sub\\a.png", "../images/sub/a.png", "./sub/a.png"]
)
def test_paths_of_other_folders_and_systems(tmp_path: Path, name: str) -> None:
    images, path = write(tmp_path, content(annotation(), images=[picture(name=name)]), ())
    (images / "sub").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(images / "sub" / "a.png")
    (tmp_path / "annotations").mkdir()
    path = path.rename(tmp_path / "annotations" / path.name)
    data = CocoInstances(images, path)
    assert len(data[0][1]["boxes"]) == 1 and data.repairs.total() == (name[0] != ".")


def test_a_picture_outside_the_set_is_read_on_request_only(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "b.png")
    for name in ("../../b.png", str(tmp_path / "b.png"), "..\\..\\b.png"):
        paths = write(root, content(annotation(), images=[picture(name=name)]))
        with pytest.raises(UserError, match=r"leads out of .*set; expected a name inside it: --allow-outside"):
            CocoInstances(*paths)
        assert len(CocoInstances(*paths, reading=Reading(allow_outside=True))[0][1]["boxes"]) == 1


def test_a_picture_that_is_listed_twice_is_one(tmp_path: Path) -> None:
    data = CocoInstances(*write(tmp_path, content(annotation(), images=[picture(), picture()])))
    assert len(data) == 1 and data.repairs == {"images that were listed twice": 1}


def roboflow(*used: int) -> Content:
    categories = [{"id": 0, "name": "animals", "supercategory": "none"}]
    categories += [{"id": i, "name": name, "supercategory": "animals"} for i, name in ((1, "cat"), (2, "dog"))]
    return content(*(annotation(i, category_id=number) for i, number in enumerate(used, 1)), categories=categories)


def test_the_super_category_that_roboflow_lists_is_no_class(tmp_path: Path) -> None:
    data = CocoInstances(*write(tmp_path, roboflow(1, 2)))
    assert data.classes == ["cat", "dog"] and data.repairs == {"unused super-categories": 1}
    assert data[0][1]["labels"].tolist() == [0, 1]


def test_a_class_that_the_network_knows_stays(tmp_path: Path) -> None:
    paths = write(tmp_path, roboflow(1, 2))
    assert CocoInstances(*paths, known=["animals", "cat", "dog"]).classes == ["animals", "cat", "dog"]


@pytest.mark.parametrize("number", [0, 0.0, "0"])
def test_a_super_category_that_is_used_is_a_class(tmp_path: Path, number: Any) -> None:
    assert CocoInstances(*write(tmp_path, roboflow(number, 2))).classes == ["animals", "cat", "dog"]


@pytest.mark.parametrize(("segmentation", "reason"), BAD_MASKS.values(), ids=BAD_MASKS)
def test_masks_that_cannot_be_decoded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, segmentation: Any, reason: str
) -> None:
    entries = [annotation(1), annotation(2, segmentation=segmentation), annotation(3, bbox=[2, 1, 3, 3])]
    paths = write(tmp_path, content(*entries))
    with pytest.raises(UserError, match=rf"instances\.json: a\.png: {reason}"):
        CocoInstances(*paths)[0]
    data = CocoInstances(*paths, reading=SKIP)
    assert not caplog.records
    for _ in range(2):
        target = data[0][1]
        assert target["boxes"].tolist() == [[2, 1, 6, 5], [2, 1, 5, 4]] and len(target["masks"]) == 2
        assert len(target["area"]) == 2
    assert len(caplog.records) == 1  # not again for every epoch


@pytest.mark.parametrize(("entry", "reason"), BAD_PICTURES.values(), ids=BAD_PICTURES)
def test_bad_images_are_refused_or_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, entry: Any, reason: str
) -> None:
    lost = [annotation(2, image_id=6)] if isinstance(entry, dict) and entry["id"] == 6 else []
    paths = write(tmp_path, content(annotation(), *lost, images=[picture(), entry]))
    with pytest.raises(exception_of(reason), match=reason):
        CocoInstances(*paths)
    data = CocoInstances(*paths, reading=SKIP)
    assert data.names == ["a.png"] and len(data[0][1]["boxes"]) == 1
    assert len(data.skipped) == len(caplog.records) == 1  # the picture's annotations are not counted again


def test_a_set_of_bad_images_only_is_refused(tmp_path: Path) -> None:
    paths = write(tmp_path, content(images=[picture(name="b.png")]))
    with pytest.raises(UserError, match=r"names no picture that can be used: b\.png: no such image file"):
        CocoInstances(*paths, reading=SKIP)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", r"instances\.json is not JSON: Expecting"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is JSON, but not an object"),
        ({"images": [], "annotations": []}, "no categories"),
        ({"images": {}, "annotations": [], "categories": []}, "no images"),
        (content(categories=[]), "0 categories"),
        (content(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "2 categories with 1 ids"),
        (content(categories=[{"id": 1}]), "a category has name None"),
        (content(categories=["cat"]), "a category has id None"),
        (content(images=[]), "names no picture"),
    ],
)
def test_broken_json_is_refused_even_with_skip_bad(tmp_path: Path, text: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        CocoInstances(*write(tmp_path, text), reading=SKIP)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    images, path = write(tmp_path, content())
    with pytest.raises(MissingFileError, match=r"no annotation file .*other\.json"):
        CocoInstances(images, tmp_path / "other.json")
    with pytest.raises(MissingFileError, match="no image folder .*elsewhere"):
        CocoInstances(tmp_path / "elsewhere", path)
    with pytest.raises(MissingFileError, match=r"no folder .*instances, expected the PNGs of"):
        CocoPanoptic(images, path)


# Pictures that turn out bad when they are read


def two_pictures(root: Path) -> tuple[Path, Path]:
    entries = [annotation(), annotation(2, image_id=6)]
    return write(root, content(*entries, images=[picture(), picture(6, "b.png")]), ("a.png", "b.png"))


def break_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def rotate_file(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(path, exif=exif)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (break_file, r"b\.png: .*b\.png is broken or truncated"),
        (rotate_file, r"b\.png: .*b\.png is 8 x 12 pixels once its EXIF .* the JSON says 12 x 8; .* exiftool -Orien"),
        (Path.unlink, r"b\.png: no such image file: .*b\.png"),
    ],
)
def test_unreadable_pictures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], reason: str
) -> None:
    paths = two_pictures(tmp_path)
    plain, lenient = CocoInstances(*paths), CocoInstances(*paths, reading=SKIP)
    damage(tmp_path / "images" / "b.png")
    with pytest.raises(UserError, match=reason):
        plain[1]
    assert lenient[0][1]["image_id"] == 5 and lenient[1] is None and lenient[1] is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert lenient.skipped[0][0] == "b.png"


def test_errors_of_the_transform_are_not_swallowed(tmp_path: Path) -> None:
    def fail(image: Any, target: Any) -> Any:
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        CocoInstances(*write(tmp_path, content()), fail, reading=SKIP)[0]


# Panoptic


def test_a_panoptic_item_by_hand(tmp_path: Path) -> None:
    data = CocoPanoptic(*write_segments(tmp_path, segments(), INFOS))
    image, target = data[0]
    assert image.size == (WIDTH, HEIGHT)
    assert target["boxes"].tolist() == [[2, 4, 5, 6], [0, 0, 12, 3], [11, 7, 12, 8]]
    np.testing.assert_array_equal(target["masks"], [segments() == i for i in (300, 70_000, 9)])
    assert target["labels"].tolist() == [1, 0, 1] and target["iscrowd"].tolist() == [False, False, True]
    assert target["area"].tolist() == [6, 36, 1] and target["image_id"] == 5
    assert (data.classes, data.things) == (["cat", "dog"], [False, True])


def test_the_png_folder_is_named_like_the_json(tmp_path: Path) -> None:
    images, path, folder = write_segments(tmp_path, segments(), INFOS)
    folder.rename(path.with_suffix(""))
    assert len(CocoPanoptic(images, path)[0][1]["labels"]) == 3


def test_a_picture_that_is_all_void_has_no_segments(tmp_path: Path) -> None:
    _, target = CocoPanoptic(*write_segments(tmp_path, 0 * segments(), []))[0]
    assert target["masks"].shape == (0, HEIGHT, WIDTH) and target["boxes"].shape == (0, 4)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 2**24 - 1), unique=True, max_size=6), st.integers(0, 2**32 - 1))
def test_every_24_bit_segment_id_is_read(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], seed: int
) -> None:
    ids = np.random.default_rng(seed).choice([0, *numbers], (HEIGHT, WIDTH))
    used = [number for number in numbers if (ids == number).any()]
    _, target = CocoPanoptic(*write_segments(tmp_path_factory.mktemp("coco"), ids, [info(i) for i in used]))[0]
    for mask, box, number in zip(target["masks"], target["boxes"].tolist(), used, strict=True):
        ys, xs = np.nonzero(ids == number)
        np.testing.assert_array_equal(mask, ids == number)
        assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (info(300), r"^.*instances\.json: a\.png: segment 300: the id is given twice; [^:]*$"),
        (info(0), r"a\.png: segment 0: id 0 means void"),
        (info(10, 8), r"a\.png: segment 10: category_id 8 is unknown"),
        (info(10, iscrowd=2), r"a\.png: segment 10: has iscrowd 2"),
        ({}, r"a\.png: segment None: has id None"),
    ],
)
def test_bad_segments_are_refused_or_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: Any, reason: str
) -> None:
    paths = write_segments(tmp_path, segments(), [*INFOS, bad])
    with pytest.raises(UserError, match=reason):
        CocoPanoptic(*paths)
    data = CocoPanoptic(*paths, reading=SKIP)
    assert len(data.skipped) == len(caplog.records) == 1
    assert data[0][1]["labels"].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("infos", "reason", "labels"),
    [
        ([*INFOS, info(4)], r"a\.png: segments 4 have no pixel in .*a\.png", [1, 0, 1]),
        (INFOS[:2], r"a\.png: segments 9 are in the PNG, not in the JSON", [1, 0]),
    ],
)
def test_png_and_json_must_name_the_same_segments(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, infos: list[Any], reason: str, labels: list[int]
) -> None:
    paths = write_segments(tmp_path, segments(), infos)
    with pytest.raises(UserError, match=reason):
        CocoPanoptic(*paths)[0]
    data = CocoPanoptic(*paths, reading=SKIP)
    for _ in range(2):
        assert data[0][1]["labels"].tolist() == labels
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"file_name": "b.png"}, r"a\.png: no such segment PNG: .*b\.png"),
        ({"file_name": None}, r"a\.png: has file_name None"),
        ({"segments_info": None}, r"a\.png: segments_info is None, expected a list"),
        ({"image_id": 6}, r"instances\.json: image_id 6 is unknown"),
    ],
)
def test_bad_panoptic_annotations_are_refused(tmp_path: Path, changes: Content, reason: str) -> None:
    paths = write_segments(tmp_path, segments(), INFOS, **changes)
    with pytest.raises(exception_of(reason), match=reason):
        CocoPanoptic(*paths)
    with pytest.raises(UserError, match="names no picture that can be used"):
        CocoPanoptic(*paths, reading=SKIP)


def test_every_picture_needs_one_panoptic_annotation(tmp_path: Path) -> None:
    images, path, folder = write_segments(tmp_path, segments(), INFOS)
    sound = json.loads(path.read_text())
    path.write_text(json.dumps({**sound, "annotations": sound["annotations"] * 2}))
    with pytest.raises(UserError, match=r"a\.png: image 5 has two annotations"):
        CocoPanoptic(images, path, folder)
    assert len(CocoPanoptic(images, path, folder, reading=SKIP)[0][1]["labels"]) == 3
    path.write_text(json.dumps({**sound, "images": [picture(), picture(6)]}))
    with pytest.raises(UserError, match=r"a\.png: image 6 has no annotation"):
        CocoPanoptic(images, path, folder)
    assert CocoPanoptic(images, path, folder, reading=SKIP).image_ids == [5]


def test_an_instances_file_is_no_panoptic_file(tmp_path: Path) -> None:
    images, path, folder = write_segments(tmp_path, segments(), INFOS)
    path.write_text(json.dumps(content(categories=[{"id": 7, "name": "dog"}])))
    with pytest.raises(UserError, match="a category has isthing None, expected 0 or 1; is this a panoptic file"):
        CocoPanoptic(images, path, folder)


def test_the_png_must_have_the_size_of_the_picture(tmp_path: Path) -> None:
    paths = write_segments(tmp_path, segments()[:, :-1], INFOS[:2])
    with pytest.raises(UserError, match=r"a\.png: .*segments.a\.png is 11 x 8 pixels .* the JSON says 12 x 8"):
        CocoPanoptic(*paths)[0]


# Layouts


def lay_out(root: Path, *files: str) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("files", "split", "kind", "images", "annotations"),
    [
        ("annotations/instances_train2017.json train2017/a", "train", "instances", 1, 0),
        ("annotations/panoptic_val2017.json val2017/a images/a", "val", "panoptic", 1, 0),
        ("annotations/instances_train.json images/train/a", "train", "instances", 1, 0),
        ("annotations/instances_validation.json images/a", "val", "instances", 1, 0),
        ("train/_annotations.coco.json valid/_annotations.coco.json", "val", "instances", 1, 1),
        ("train/_annotations.coco.json", "train", "instances", 0, 0),
        ("Train/_annotations.coco.json Valid/_annotations.coco.json", "val", "instances", 1, 1),
        ("annotations/instances_Train.json images/a", "train", "instances", 1, 0),
        ("annotations/train.json images/train/a", "train", "instances", 1, 0),
        ("val.json images/a", "val", "instances", 1, 0),
        ("annotations/instances_train.json annotations/instances_trainval.json images/a", "train", "instances", 2, 0),
        ("annotations/instances_train2017.json images/train/a", "train", "instances", 1, 0),
    ],
)
def test_layouts(tmp_path: Path, files: str, split: Any, kind: Any, images: int, annotations: int) -> None:
    names = files.split()
    lay_out(tmp_path, *names)
    found = find_coco(tmp_path, split, kind)
    assert found is not None and not found.plain
    assert (found.images, found.annotations) == ((tmp_path / names[images]).parent, tmp_path / names[annotations])


@pytest.mark.parametrize("name", ["annotations/instances.json", "annotations/instances_default.json", "result.json"])
def test_a_set_without_splits_is_the_whole_of_each(tmp_path: Path, name: str) -> None:
    lay_out(tmp_path, name, "images/a")
    for split in ("train", "val"):
        found = find_coco(tmp_path, split, "instances")
        assert found is not None and found.plain and found.annotations == tmp_path / name
    assert find_coco(tmp_path, "train", "panoptic") is None


def test_a_whole_beside_its_training_split_is_no_validation_set(tmp_path: Path) -> None:
    lay_out(tmp_path, "annotations/instances.json", "annotations/instances_train.json", "images/a")
    assert find_coco(tmp_path, "val", "instances") is None


def test_what_is_not_found_is_listed(tmp_path: Path) -> None:
    looked = (
        r"looked for annotations/instances_val\*\.json, annotations/instances\.json, val or validation or valid/_anno"
    )
    with pytest.raises(MissingFileError, match=looked):
        open_scenes(tmp_path, "detect", "val")
    with pytest.raises(MissingFileError, match=r"no panoptic of split train in .*: looked for [^,]*, [^,]*$"):
        open_scenes(tmp_path, "panoptic", "train")
    lay_out(tmp_path, "annotations/instances_val.json")
    found = find_coco(tmp_path, "val", "instances")
    assert found is not None and found.images == tmp_path  # where the JSON may name them
    lay_out(tmp_path, "annotations/instances_val2017.json")
    with pytest.raises(UserError, match=r"several val sets, .*: instances_val\.json, instances_val2017\.json"):
        find_coco(tmp_path, "val", "instances")


# Real images


@pytest.mark.data
def test_polygons_and_crowds_of_real_images(shared_data: Callable[[str], Path]) -> None:
    coco_api = pytest.importorskip("pycocotools.coco")
    found = find_coco(shared_data("coco_instances_128"), "val", "instances")
    assert found is not None
    data, truth = CocoInstances(found.images, found.annotations), coco_api.COCO(str(found.annotations))
    assert (len(data), len(data.classes)) == (128, 80)
    count = crowds = 0
    for i in range(len(data)):
        _, target = data[i]
        entries = truth.loadAnns(truth.getAnnIds(target["image_id"]))
        count += len(target["labels"])
        crowds += int(target["iscrowd"].sum())
        np.testing.assert_array_equal(target["masks"], [truth.annToMask(entry) for entry in entries])
        assert [data.category_ids[label] for label in target["labels"]] == [entry["category_id"] for entry in entries]
        x1, y1, x2, y2 = target["boxes"].T
        written = [entry["bbox"] for entry in entries]
        np.testing.assert_allclose(np.stack([x1, y1, x2 - x1, y2 - y1], 1), written, atol=1e-3, rtol=0)
    assert (count, crowds, data.skipped) == (900, 13, [])


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(("split", "things"), [("val", 712), ("train", 746)])
def test_things_and_stuff_of_real_images(shared_data: Callable[[str], Path], split: str, things: int) -> None:
    root = shared_data("coco_panoptic_200")
    instances, data = open_scenes(root, "detect", split, masks=False), open_scenes(root, "panoptic", split)
    infos = {
        entry["image_id"]: entry["segments_info"] for entry in json.loads(data.annotations.read_text())["annotations"]
    }
    assert (len(data), len(data.classes), sum(data.things)) == (100, 133, 80)
    count = 0
    for i in range(len(data)):
        _, target = data[i]
        written = infos[target["image_id"]]
        assert target["area"].tolist() == [entry["area"] for entry in written]
        boxes = np.array([entry["bbox"] for entry in written])
        np.testing.assert_array_equal(target["boxes"], np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]))
        count += sum(data.things[label] for label in target["labels"])
    assert count == things == sum(len(target["labels"]) for _, target in instances)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.data
def test_sets_that_users_reported(tmp_path: Path, cases: Callable[[str, Path], None]) -> None:
    cases("coco", tmp_path)
    folders = sorted(tmp_path.iterdir())
    assert len(folders) == 16
    refused = {"outside_folder": "leads out of .*--allow-outside", "exif_raw": "once its EXIF rotation .* exiftool"}
    for folder in folders:
        for split in ("train", "val"):
            if folder.name in refused:
                with pytest.raises(UserError, match=refused[folder.name]):
                    list(open_scenes(folder, "detect", split))
                continue
            data = open_scenes(folder, "detect", split, masks=folder.name != "empty_segmentation")
            found = [(target["image_id"], len(target["labels"])) for _, target in data]
            assert found == [(3, 2), (5, 2), (8, 1), (13, 2)], folder
