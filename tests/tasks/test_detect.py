"""From what a detector found to COCO's measures and to a scene."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vankit.data.augment import as_tensors, collate
from vankit.data.scenes import ShapeScenes
from vankit.tasks.detect import Detect, match_objects
from vankit.tasks.inference import arrays
from vankit.tasks.results import Detections

SCENES = ShapeScenes("detect", "val", 6, (40, 56), transform=as_tensors)


def targets() -> list[dict[str, Any]]:
    return [arrays(target) for target in collate(list(SCENES))[1]]


def found(target: dict[str, Any], **changes: NDArray[Any]) -> dict[str, NDArray[Any]]:
    scores = np.linspace(1, 0.5, len(target["labels"]), dtype=np.float32)
    return {name: target[name].copy() for name in ("boxes", "labels", "masks")} | {"scores": scores} | changes


@pytest.mark.parametrize("masks", [True, False])
def test_perfect_detections_measure_1(masks: bool) -> None:
    evaluator = Detect(SCENES.classes, SCENES.things, masks)
    for target in targets():
        evaluator.add(target, found(target))
    measures = evaluator.measure.compute()
    assert next(iter(measures)) == "box AP" and measures["box AP"] == pytest.approx(1)
    assert measures.get("mask AP") == (pytest.approx(1) if masks else None)
    assert measures["box AP50"] == pytest.approx(1)


def test_boxes_alone_need_no_masks() -> None:
    evaluator = Detect(SCENES.classes, SCENES.things, False)
    for target in targets():
        result = found(target)
        del target["masks"], result["masks"]
        evaluator.add(target, result)
    assert evaluator.measure.compute()["box AP"] == pytest.approx(1)


def test_wrong_masks_in_right_boxes_fail_by_mask_alone() -> None:
    evaluator = Detect(SCENES.classes, SCENES.things, True)
    for target in targets():
        evaluator.add(target, found(target, masks=~target["masks"]))
    measures = evaluator.measure.compute()
    assert measures["box AP"] == pytest.approx(1) and measures["mask AP"] == 0


def test_crowds_are_no_objects_to_find() -> None:
    evaluator = Detect(SCENES.classes, SCENES.things, False)
    target = max(targets(), key=lambda t: len(t["labels"]))
    target["labels"] = np.arange(len(target["labels"]))
    target["iscrowd"][0] = True
    result = found(target)
    evaluator.add(target, {name: value[1:] for name, value in result.items()})
    assert evaluator.measure.compute()["box AP"] == pytest.approx(1)
    assert [row["objects"] for row in evaluator.measure.per_class()][:2] == [0, 1]


def test_nothing_found_is_0_and_reset_forgets_it() -> None:
    evaluator = Detect(SCENES.classes, SCENES.things, True)
    target = targets()[0]
    evaluator.add(target, {name: value[:0] for name, value in found(target).items()})
    assert evaluator.measure.compute()["box AP"] == 0
    evaluator.reset()
    evaluator.add(target, found(target))
    assert evaluator.measure.compute()["box AP"] == pytest.approx(1)


@pytest.mark.parametrize("masks", [True, False])
def test_a_scene_has_what_was_found(masks: bool) -> None:
    target = targets()[1]
    result = found(target)
    if not masks:
        del result["masks"]
    scene = Detect.scene("a.png", SCENES.classes, SCENES.things, result)
    assert isinstance(scene, Detections) and scene.source == "a.png" and scene.classes == SCENES.classes
    assert scene.labels.tolist() == target["labels"].tolist() and scene.boxes.tolist() == target["boxes"].tolist()
    assert (scene.masks is not None and np.array_equal(scene.masks, target["masks"])) if masks else scene.masks is None
    assert scene.summary() != "nothing found"


def scene(*boxes: tuple[float, ...], labels: list[int], scores: list[float] | None = None) -> Detections:
    shape = np.array(boxes, np.float32).reshape(-1, 4)
    given = np.ones(len(labels)) if scores is None else np.array(scores)
    return Detections("", ["a", "b"], shape, np.array(labels, np.int64), given.astype(np.float32))


@pytest.mark.parametrize(
    ("truth", "crowd", "found", "missed", "false"),
    [
        pytest.param(scene((0, 0, 10, 10), labels=[0]), [0], scene((0, 0, 10, 5), labels=[0]), [0], [0], id="half"),
        pytest.param(scene((0, 0, 10, 10), labels=[0]), [0], scene((0, 0, 10, 4.9), labels=[0]), [1], [1], id="less"),
        pytest.param(scene((0, 0, 10, 10), labels=[0]), [0], scene((0, 0, 10, 10), labels=[1]), [1], [1], id="class"),
        pytest.param(
            scene((0, 0, 10, 10), labels=[0]), [0],
            scene((0, 0, 10, 10), (0, 0, 10, 9), labels=[0, 0], scores=[0.4, 0.5]), [0], [1, 0], id="twice",
        ),
        pytest.param(  # the surer find takes what it overlaps most, and the other what is left
            scene((0, 0, 10, 10), (0, 2, 10, 12), labels=[0, 0]), [0, 0],
            scene((0, 0, 10, 10), (0, 1, 10, 11), labels=[0, 0], scores=[0.5, 0.9]), [0, 0], [0, 0], id="two",
        ),
        pytest.param(
            scene((0, 0, 100, 100), (0, 0, 9, 9), labels=[0, 1]), [1, 0],
            scene((5, 5, 9, 9), (95, 95, 104, 104), (95, 95, 106, 106), labels=[0, 0, 0]), [0, 1], [0, 1, 1],
            id="crowd",
        ),
        pytest.param(scene(labels=[]), [], scene((0, 0, 1, 1), labels=[0]), [], [1], id="no objects"),
        pytest.param(scene((0, 0, 1, 1), labels=[0]), [0], scene(labels=[]), [1], [], id="no finds"),
    ],
)  # fmt: skip
def test_missed_and_false(
    truth: Detections, crowd: list[int], found: Detections, missed: list[int], false: list[int]
) -> None:
    answer = match_objects(truth, np.array(crowd, bool), found)
    assert [each.astype(int).tolist() for each in answer] == [missed, false]


def xywh(box: list[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def test_as_many_are_matched_as_coco_matches() -> None:
    """At one threshold, of finds that all count: the right ones are the true positives of COCO."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        corners = rng.integers(0, 30, (8, 2))
        boxes = np.concatenate([corners, corners + rng.integers(8, 25, (8, 2))], 1).astype(float)
        labels, crowd = rng.integers(0, 2, 8), rng.random(8) < 0.2
        finds = (boxes + rng.integers(-4, 5, boxes.shape)).astype(float)
        truth, found = (scene(*map(tuple, each), labels=labels.tolist()) for each in (boxes, finds))
        found.scores[:] = rng.permutation(8) / 8
        missed, false = match_objects(truth, crowd, found)
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            columns = zip(boxes.tolist(), labels.tolist(), crowd.tolist(), strict=True)
            coco.dataset = {
                "images": [{"id": 1}],
                "categories": [{"id": 0}, {"id": 1}],
                "annotations": [
                    {"id": i, "image_id": 1, "category_id": k, "iscrowd": int(c), "area": 1.0,
                     "bbox": xywh(b)}
                    for i, (b, k, c) in enumerate(columns, 1)
                ],
            }  # fmt: skip
            coco.createIndex()
            evaluation = COCOeval(coco, coco.loadRes([
                {"image_id": 1, "category_id": int(k), "score": float(s), "bbox": xywh(b)}
                for b, k, s in zip(finds.tolist(), labels, found.scores, strict=True)
            ]), "bbox")  # fmt: skip
            evaluation.params.iouThrs = np.array([0.5])
            evaluation.evaluate()
        images = [each for each in evaluation.evalImgs if each is not None and each["aRng"][1] > 1e9]
        taken = [i for each in images for i in each["dtMatches"][0][~each["dtIgnore"][0].astype(bool)] if i > 0]
        wrong = sum(int(((each["dtMatches"][0] == 0) & (each["dtIgnore"][0] == 0)).sum()) for each in images)
        assert np.flatnonzero(~missed & ~crowd).tolist() == sorted(int(i) - 1 for i in taken)
        assert int(false.sum()) == wrong


def test_each_image_is_measured_by_itself_too() -> None:
    evaluator = Detect(SCENES.classes, SCENES.things, False)
    target = targets()[0]
    nothing = evaluator.add(target, {name: value[:0] for name, value in found(target).items()})
    all_of_it = evaluator.add(targets()[1], found(targets()[1]))
    assert (nothing.compute()["box AP"], all_of_it.compute()["box AP"]) == (0, pytest.approx(1))
    assert 0 < evaluator.measure.compute()["box AP"] < 1


def test_the_truth_as_a_scene() -> None:
    target = targets()[1]
    truth = Detect.truth("a.png", SCENES.classes, SCENES.things, target)
    assert truth.boxes.tolist() == target["boxes"].tolist() and truth.labels.tolist() == target["labels"].tolist()
    assert truth.masks is not None and np.array_equal(truth.masks, target["masks"])
