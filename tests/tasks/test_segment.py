"""Semantic maps: their measures, and scenes of results and of the truth."""

import numpy as np
import pytest
from numpy.typing import NDArray

from vankit.tasks.results import SemanticMap
from vankit.tasks.segment import Segment

CLASSES = ["red", "green", "blue", "grey"]


def labels(*rows: list[int]) -> dict[str, NDArray[np.int64]]:
    return {"semantic": np.array(rows, np.int64)}


def test_a_perfect_map_measures_1() -> None:
    evaluator = Segment(CLASSES, [True] * 4, False)
    maps = np.random.default_rng(1).integers(0, 4, (3, 7, 9))
    for found in maps:
        truth = found.copy()
        truth[0] = 255
        evaluator.add({"semantic": truth}, {"semantic": found})
    assert evaluator.measure.compute() == pytest.approx({"mIoU": 1, "aAcc": 1, "mAcc": 1})


def test_maps_are_measured_until_reset() -> None:
    evaluator = Segment(CLASSES, [True] * 4, False)
    truth = labels([0, 0, 1, 1])
    evaluator.add(truth, labels([0, 1, 1, 1]))
    assert evaluator.measure.compute()["mIoU"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    evaluator.reset()
    evaluator.add(truth, truth)
    assert evaluator.measure.compute()["mIoU"] == 1
    assert [row["class"] for row in evaluator.measure.per_class()] == CLASSES


def test_a_scene_has_the_class_of_each_pixel() -> None:
    scene = Segment.scene("a.png", CLASSES, [True] * 4, {"semantic": np.array([[0, 2]], np.uint8)})
    assert isinstance(scene, SemanticMap) and scene.source == "a.png" and scene.classes == CLASSES
    assert scene.labels.dtype == np.int64 and scene.labels.tolist() == [[0, 2]]


def test_each_image_is_measured_by_itself_too() -> None:
    evaluator = Segment(CLASSES, [], False)
    truth = labels(*[[0, 0, 0, 0]] * 4)
    half = evaluator.add(truth, labels(*[[0, 0, 1, 1]] * 4))
    whole = evaluator.add(truth, truth)
    assert (half.compute()["aAcc"], whole.compute()["aAcc"]) == (0.5, 1)
    assert evaluator.measure.compute()["aAcc"] == 0.75


def test_the_truth_as_a_map_at_another_size() -> None:
    truth = Segment.truth("a.png", CLASSES, [], labels([0, 1, 255], [2, 3, 0]))
    assert truth.labels.tolist() == [[0, 1, 255], [2, 3, 0]]
    assert truth.resized((6, 2)).labels.tolist() == [[0, 0, 1, 1, 255, 255], [2, 2, 3, 3, 0, 0]]
    assert truth.resized((1, 1)).labels.tolist() == [[0]]
