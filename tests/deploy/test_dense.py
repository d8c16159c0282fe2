"""What an exported model gives, as results, against a hand computation."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vankit.deploy.dense import DenseFolder, results_of


def test_boxes_come_back_as_pixels() -> None:
    boxes = np.array([[[0.25, 0.1, 0.5, 1, 0.9], [0, 0, 1, 0.5, 0.4]]], np.float32)
    results = results_of("detect", [boxes, np.array([[3, 1]], np.int32)], (50, 200))
    np.testing.assert_allclose(results["boxes"], [[50, 5, 100, 50], [0, 0, 200, 25]])
    assert results["labels"].dtype == np.int64 and results["labels"].tolist() == [3, 1]
    np.testing.assert_array_equal(results["scores"], np.array([0.9, 0.4], np.float32))
    assert "masks" not in results


def test_masks_within_boxes_and_of_the_whole_picture() -> None:
    boxes, labels = np.array([[[0.25, 0, 0.5, 1, 0.9]]], np.float32), np.zeros((1, 1), np.int64)
    within = results_of("detect", [boxes, labels, np.ones((1, 1, 28, 28), np.float32)], (40, 80))["masks"]
    assert within.shape == (1, 40, 80) and within[0, 2:-2, 22:38].all() and not within[0, :, :18].any()
    whole = np.zeros((1, 1, 40, 80), np.uint8)
    whole[..., 5:7, 8] = 1
    np.testing.assert_array_equal(results_of("detect", [boxes, labels, whole], (40, 80))["masks"], whole[0] == 1)


def test_nothing_found() -> None:
    nothing = [np.zeros((1, 0, 5), np.float32), np.zeros((1, 0), np.int64), np.zeros((1, 0, 28, 28), np.float32)]
    results = results_of("detect", nothing, (40, 80))
    assert results["boxes"].shape == (0, 4) and results["masks"].shape == (0, 40, 80)


@pytest.mark.parametrize("taken", [False, True])
def test_the_best_class_of_each_pixel(taken: bool) -> None:
    logits = np.random.default_rng(0).standard_normal((1, 5, 6, 7), np.float32)
    given = logits.argmax(1, keepdims=True).astype(np.int32) if taken else logits
    semantic = results_of("segment", [given], (6, 7))["semantic"]
    assert semantic.dtype == np.int64
    np.testing.assert_array_equal(semantic, logits[0].argmax(0))


def test_segments() -> None:
    segments = np.array([[[0, 1], [2, 2]]], np.int32)
    results = results_of("panoptic", [segments, np.array([[4, 7]]), np.array([[0.5, 0.9]], np.float32)], (2, 2))
    assert results["segments"].tolist() == [[0, 1], [2, 2]] and results["labels"].tolist() == [4, 7]


def test_a_model_of_one_size_gets_pictures_of_it() -> None:
    """Columns of the picture become classes of the model's four columns, and these of all columns again."""

    class Columns:
        def outputs(self, x: Any) -> list[Any]:
            assert x.shape == (1, 2, 4, 3) and x.dtype == np.uint8
            return [x.transpose(0, 3, 1, 2).astype(np.float32)]

    stored: Any = SimpleNamespace(
        description=SimpleNamespace(task="segment"), outputs=("logits",), size=(2, 4), engine=lambda *_: Columns()
    )
    picture = np.zeros((6, 8, 3), np.uint8)
    for column, best in enumerate([0, 0, 2, 2, 1, 1, 0, 0]):
        picture[:, column, best] = 200
    semantic = DenseFolder(stored)(picture)["semantic"]
    assert semantic.dtype == np.int64
    np.testing.assert_array_equal(semantic, np.tile([0, 0, 2, 2, 1, 1, 0, 0], (6, 1)))
