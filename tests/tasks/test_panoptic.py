"""From what a panoptic network found to the panoptic quality and to a scene."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from vankit.data.augment import as_tensors, collate
from vankit.data.scenes import ShapeScenes
from vankit.tasks.inference import arrays as as_arrays
from vankit.tasks.panoptic import Panoptic, segments_of
from vankit.tasks.results import PanopticMap

SCENES = ShapeScenes("panoptic", "val", 6, (40, 56), transform=as_tensors)


def targets() -> list[dict[str, Any]]:
    return [as_arrays(target) for target in collate(list(SCENES))[1]]


def found(target: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """The target as a result, its segments in another order."""
    masks, labels = target["masks"][::-1], target["labels"][::-1]
    segments = (masks * np.arange(1, len(masks) + 1)[:, None, None]).sum(0)
    return {"segments": segments, "labels": labels, "scores": np.full(len(labels), 0.75, np.float32)}


def evaluator() -> Panoptic:
    return Panoptic(SCENES.classes, SCENES.things, True)


def test_segments_by_hand() -> None:
    masks = np.array([[[1, 0, 0], [1, 0, 0]], [[0, 0, 1], [0, 0, 1]], [[0, 0, 0], [0, 1, 0]]], bool)
    segments = segments_of(masks)
    assert segments.tolist() == [[1, 0, 2], [1, 3, 2]] and segments.dtype == np.int64


def test_no_masks_are_an_empty_map() -> None:
    assert segments_of(np.zeros((0, 2, 3), bool)).tolist() == [[0, 0, 0], [0, 0, 0]]


@given(arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 5)))
def test_any_map_comes_back_from_its_masks(segments: NDArray[np.int64]) -> None:
    masks = segments == np.arange(1, 6)[:, None, None]
    assert np.array_equal(segments_of(masks), segments)


def test_perfect_segments_measure_1() -> None:
    panoptic = evaluator()
    for target in targets():
        panoptic.add(target, found(target))
    measures = panoptic.measure.compute()
    assert next(iter(measures)) == "PQ"
    assert measures == pytest.approx(
        {f"{name}{of}": 1 for of in ("", " things", " stuff") for name in ("PQ", "SQ", "RQ")}
    )


def test_things_and_stuff_are_told_apart() -> None:
    panoptic = evaluator()
    for target in targets():
        result = found(target)
        result["segments"][result["segments"] > 1] = 0  # the background alone is found
        panoptic.add(target, result)
    measures = panoptic.measure.compute()
    assert measures["PQ stuff"] == pytest.approx(1) and measures["PQ things"] == 0


def test_crowds_are_not_missed() -> None:
    panoptic = evaluator()
    target = targets()[0]
    target["iscrowd"][0] = True
    result = found(target)
    result["segments"][result["segments"] == len(target["labels"])] = 0
    panoptic.add(target, result)
    assert panoptic.measure.compute()["PQ"] == pytest.approx(1)


def test_reset_forgets() -> None:
    panoptic = evaluator()
    target = targets()[0]
    panoptic.add(target, {"segments": np.zeros((40, 56), np.int64), "labels": np.zeros(0, np.int64)})
    assert panoptic.measure.compute()["PQ"] == 0
    panoptic.reset()
    panoptic.add(target, found(target))
    assert panoptic.measure.compute()["PQ"] == pytest.approx(1)


def test_a_scene_has_the_segments() -> None:
    result = found(targets()[1])
    scene = Panoptic.scene("a.png", SCENES.classes, SCENES.things, result)
    assert isinstance(scene, PanopticMap) and scene.source == "a.png"
    assert scene.classes == SCENES.classes and scene.things == SCENES.things
    assert np.array_equal(scene.segments, result["segments"]) and scene.segments.dtype == np.int64
    assert scene.labels.tolist() == result["labels"].tolist() and scene.scores.tolist() == [0.75] * len(scene.labels)
    assert "background" in scene.summary()


def test_each_image_is_measured_by_itself_too() -> None:
    evaluator = Panoptic(["a", "b"], [True, False], True)
    masks = np.zeros((1, 4, 4), bool)
    masks[0, :2] = True
    target = {"masks": masks, "labels": np.array([0]), "iscrowd": np.zeros(1, bool)}
    right = {"segments": masks[0].astype(np.int64), "labels": np.array([0])}
    assert evaluator.add(target, right).compute()["PQ"] == 1
    assert evaluator.add(target, right | {"labels": np.array([1])}).compute()["PQ"] == 0
    # a: one of two is found; b: one that is not there
    assert evaluator.measure.compute()["PQ"] == pytest.approx((1 / 1.5 + 0) / 2)


def test_the_truth_as_a_map_at_another_size() -> None:
    masks = np.array([[[True, False], [False, False]], [[False, False], [True, True]]])
    truth = Panoptic.truth("a.png", ["a", "b"], [True, False], {"masks": masks, "labels": np.array([1, 0])})
    assert truth.segments.tolist() == [[1, 0], [2, 2]] and truth.labels.tolist() == [1, 0]
    assert truth.resized((4, 2)).segments.tolist() == [[1, 1, 0, 0], [2, 2, 2, 2]]
