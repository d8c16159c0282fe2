"""From a detector's tensors to COCO's measures and to a scene."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vankit.data.augment import collate
from vankit.data.scenes import ShapeScenes
from vankit.tasks.detect import Detect, detections
from vankit.tasks.results import Detections

SCENES = ShapeScenes("detect", "val", 6, (40, 56))


def targets() -> list[dict[str, Any]]:
    return collate(list(SCENES))[1]


def found(target: dict[str, Any], **changes: Tensor) -> dict[str, Tensor]:
    scores = torch.linspace(1, 0.5, len(target["labels"]))
    return {name: target[name].clone() for name in ("boxes", "labels", "masks")} | {"scores": scores} | changes


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
    target["labels"] = torch.arange(len(target["labels"]))
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


def test_half_precision_and_gradients_are_taken() -> None:
    evaluator = Detect(SCENES.classes, SCENES.things, True)
    for target in targets():
        result = found(target)
        evaluator.add(
            target, result | {"scores": result["scores"].bfloat16(), "boxes": result["boxes"].half().requires_grad_()}
        )
    assert evaluator.measure.compute()["box AP"] == pytest.approx(1)


def test_arrays_of_a_result() -> None:
    result = found(targets()[0]) | {"scores": torch.tensor([0.5], dtype=torch.float64)}
    arrays = detections(result)
    assert list(arrays) == ["boxes", "labels", "scores", "masks"]
    assert [arrays[name].dtype for name in arrays] == [np.float32, np.int64, np.float32, np.bool_]
    assert all(arrays[name].tolist() == result[name].tolist() for name in arrays)
    assert list(detections(result, masks=False)) == ["boxes", "labels", "scores"]
    del result["masks"]
    assert list(detections(result)) == ["boxes", "labels", "scores"]


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
