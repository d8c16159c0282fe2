"""Results of dense prediction; COCO's own tools and supervision are the truth."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

from vankit.errors import UserError
from vankit.tasks.colours import PALETTE, object_colours
from vankit.tasks.results import Detections, PanopticMap, SemanticMap

CLASSES = ["circle", "star", "sky"]
CATEGORY_IDS = [7, 3, 90]


def picture() -> Image.Image:
    return Image.new("RGB", (160, 120), (100, 100, 100))


def detections(**changes: Any) -> Detections:
    """A star, a circle and another star in 160 x 120 pixels; the masks of the first two overlap."""
    masks = np.zeros((3, 120, 160), bool)
    masks[0, 60:110, 10:50] = masks[1, 50:100, 30:90] = masks[2, 72:110, 112:150] = True
    found = {
        "boxes": np.float32([[10, 60, 50, 110], [30, 50, 90, 100], [110.5, 70.25, 150, 110]]),
        "labels": np.array([1, 0, 1]),
        "scores": np.float32([0.9, 0.625, 0.25]),
        "masks": masks,
    }
    return Detections("a.jpg", CLASSES, **(found | changes))


def nothing(masks: bool) -> Detections:
    return (detections() if masks else detections(masks=None)).above(1.0)


def semantic() -> SemanticMap:
    labels = np.full((120, 160), 2)
    labels[60:] = 0
    labels[-12:], labels[-12:, 80:] = 255, -100
    return SemanticMap("a.jpg", CLASSES, labels)


def panoptic() -> PanopticMap:
    """Circles left and right of each other, sky around, and a star that later segments covered."""
    segments = np.full((120, 160), 1)
    segments[40:80, 40:80], segments[40:80, 80:120], segments[:6] = 3, 4, 0
    scores = np.float32([0.9, 0.8, 0.75, 0.5])
    return PanopticMap("a.jpg", CLASSES, [True, True, False], segments, np.array([2, 1, 0, 0]), scores)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def colour(label: int) -> tuple[int, int, int]:
    """Of a class; the sky has its own."""
    return [*PALETTE.values()][label] if CLASSES[label] != "sky" else PALETTE["sky"]


def half(label: int) -> np.ndarray:
    return (np.array(colour(label)) + 100) / 2


def legend_of(drawn: np.ndarray) -> set[int]:
    return {label for label in range(3) if (drawn[120:] == colour(label)).all(-1).sum() > 30}


def masks_of(rows: list[dict[str, Any]]) -> np.ndarray:
    """What pycocotools reads from the rows after a trip through JSON, (N, H, W)."""
    rles = [row["segmentation"] for row in json.loads(json.dumps(rows))]
    return np.moveaxis(pytest.importorskip("pycocotools.mask").decode(rles), -1, 0)


def test_detections_above_a_score() -> None:
    some = detections().above(0.625)
    assert some.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(some.scores, np.float32([0.9, 0.625]))
    assert some.boxes.shape == (2, 4)
    assert some.masks is not None and some.masks.shape == (2, 120, 160)
    assert detections(masks=None).above(0.9).labels.tolist() == [1]  # 0.9 of float32 counts as 0.9


def test_summaries() -> None:
    assert detections().summary() == "2 star, 1 circle"
    assert nothing(masks=True).summary() == "nothing found"
    assert semantic().summary() == "sky 50 %, circle 40 %"
    assert SemanticMap("", CLASSES, np.array([[0] * 999 + [1]])).summary() == "circle 100 %, star <1 %"
    assert SemanticMap("", CLASSES, np.full((4, 4), 255)).summary() == "nothing found"
    assert panoptic().summary() == "2 circle, sky 78 %"


def test_detections_are_drawn_with_small_masks_over_large_ones() -> None:
    drawn = pixels(detections().draw(picture()))
    for (x, y), label in {(20, 105): 1, (70, 80): 0, (40, 80): 1}.items():  # the last of both masks
        assert np.abs(drawn[y, x] - half(label)).max() < 1
    second = object_colours(CLASSES, [1, 1], [0, 1])[1]
    assert (drawn[110, 110:150] == second).all() and second != colour(1)  # a box, and its mask is tinted alike
    assert np.abs(drawn[100, 130] - (np.array(second) + 100) / 2).max() < 1
    assert (drawn[60, 11:50] == colour(1)).all() and (drawn[99, 51:89] == colour(0)).all()  # outlines
    assert (drawn[117:] == 100).all()


def test_a_semantic_map_is_drawn_over_a_legend_of_the_classes_present() -> None:
    drawn = pixels(semantic().draw(picture()))
    for rows, label in ((slice(0, 60), 2), (slice(60, 108), 0)):
        assert np.abs(drawn[rows, :160] - half(label)).max() < 1
    assert (drawn[108:120, :160] == 100).all()
    assert legend_of(drawn) == {0, 2}


def test_things_differ_in_shade_and_have_an_outline() -> None:
    drawn = pixels(panoptic().draw(picture()))
    assert np.abs(drawn[60, 60] - half(0)).max() < 1
    assert np.abs(drawn[60, 100] - drawn[60, 60]).max() > 20
    one, other = object_colours(CLASSES, [0, 0], [0, 1])
    assert (drawn[60, [40, 79]] == one).all() and (drawn[60, [80, 119]] == other).all()
    assert np.abs(drawn[60, [39, 120]] - half(2)).max() < 1
    assert (drawn[:6, :160] == 100).all()
    assert legend_of(drawn) == {0, 2}


@pytest.mark.parametrize("scene", [detections(), nothing(True), semantic(), panoptic()])
def test_the_given_picture_stays_as_it_is_and_must_have_the_size_of_the_masks(scene: Any) -> None:
    image = picture()
    assert scene.draw(image) is not image
    assert ImageChops.difference(picture(), image).getbbox() is None
    with pytest.raises(UserError, match=r"picture is 120 x 160 pixels, expected 160 x 120"):
        scene.draw(image.rotate(90, expand=True))


def test_detections_in_coco_format() -> None:
    found = detections()
    rows = found.to_coco(5, CATEGORY_IDS)
    assert [row["category_id"] for row in rows] == [3, 7, 3]
    assert rows[2]["bbox"] == [110.5, 70.25, 39.5, 39.75]
    assert [row["score"] for row in rows] == [float(np.float32(0.9)), 0.625, 0.25]
    np.testing.assert_array_equal(masks_of(rows), found.masks)
    alone = detections(masks=None).to_coco(5, CATEGORY_IDS)[1]
    assert json.loads(json.dumps(alone)) == {"image_id": 5, "category_id": 7, "bbox": [30, 50, 60, 50], "score": 0.625}
    assert nothing(True).to_coco(5, CATEGORY_IDS) == nothing(False).to_coco(5, CATEGORY_IDS) == []


def test_a_semantic_map_in_coco_format() -> None:
    scene = semantic()
    rows = scene.to_coco(5, CATEGORY_IDS)
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(5, 7), (5, 90)]
    np.testing.assert_array_equal(masks_of(rows), [scene.labels == 0, scene.labels == 2])


def test_a_panoptic_map_in_coco_format() -> None:
    entry = json.loads(json.dumps(panoptic().to_coco(5, CATEGORY_IDS, "a.png")))
    sky = {"id": 1, "category_id": 90, "isthing": 0, "score": float(np.float32(0.9))}
    circles = [{"id": i, "category_id": 7, "isthing": 1, "score": score} for i, score in ((3, 0.75), (4, 0.5))]
    assert entry == {"image_id": 5, "file_name": "a.png", "segments_info": [sky, *circles]}


def test_a_panoptic_png_comes_back(tmp_path: Path) -> None:
    scene = panoptic()
    ids = scene.segments.copy()
    ids[0, :5] = [0, 255, 256, 65_535, 65_536 * 3 + 256 * 2 + 1]
    PanopticMap("", CLASSES, scene.things, ids, scene.labels, scene.scores).to_png().save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "RGB"
        red, green, blue = np.moveaxis(pixels(image), -1, 0)
    np.testing.assert_array_equal(red + 256 * green + 65_536 * blue, ids)


def test_every_class_needs_a_category() -> None:
    for scene, more in ((detections(), ()), (semantic(), ()), (panoptic(), ("a.png",))):
        with pytest.raises(UserError, match="2 category_ids for 3 classes: expected one for each"):
            scene.to_coco(5, [1, 2], *more)


@pytest.mark.parametrize("found", [detections(), detections(masks=None), nothing(True), nothing(False)])
def test_detections_as_supervision(found: Detections) -> None:
    sv = pytest.importorskip("supervision")
    assert found.to_supervision() == sv.Detections(
        xyxy=found.boxes,
        class_id=found.labels,
        confidence=found.scores,
        mask=found.masks,
        data={"class_name": np.array([CLASSES[label] for label in found.labels], str)},
    )


def test_maps_as_supervision() -> None:
    pytest.importorskip("supervision")
    scene, found = semantic(), semantic().to_supervision()
    assert found.class_id.tolist() == [0, 2] and found.confidence is None
    assert found.data["class_name"].tolist() == ["circle", "sky"]
    assert found.xyxy.tolist() == [[0, 60, 160, 108], [0, 0, 160, 60]]
    np.testing.assert_array_equal(found.mask, [scene.labels == 0, scene.labels == 2])
    found = panoptic().to_supervision()
    assert found.class_id.tolist() == [2, 0, 0]
    assert found.confidence.tolist() == [np.float32(0.9), 0.75, 0.5]
    assert found.xyxy.tolist() == [[0, 6, 160, 120], [40, 40, 80, 80], [80, 40, 120, 80]]
    np.testing.assert_array_equal(found.mask, [panoptic().segments == i for i in (1, 3, 4)])


def test_a_panoptic_map_may_be_empty() -> None:
    none = np.zeros(0, np.int64)
    empty = PanopticMap("", CLASSES, [True] * 3, np.zeros((120, 160), np.int64), none, np.float32(none))
    assert empty.summary() == "nothing found"
    assert empty.to_coco(5, CATEGORY_IDS, "a.png")["segments_info"] == []
    assert empty.to_png().getbbox() is None
    assert (pixels(empty.draw(picture()))[:120, :160] == 100).all()
    pytest.importorskip("supervision")
    assert len(empty.to_supervision()) == 0


def test_without_supervision_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    for scene in (detections(), semantic(), panoptic()):
        with pytest.raises(ImportError, match=re.escape("pip install supervision")):
            scene.to_supervision()
