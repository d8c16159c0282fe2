"""Masks in pixels, against torchvision's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.roi_heads import paste_masks_in_image

from vankit.tasks.masks import paste_masks


def random_boxes(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Also thin ones, ones at the edges, the whole picture, whole pixels, and nothing."""
    ends = np.sort(rng.uniform(0, 1, (count, 2, 2)), 1) * [width, height]
    boxes = ends.reshape(-1, 4).astype(np.float32)
    kinds = np.arange(count) % 7
    boxes[kinds == 1, 2] = boxes[kinds == 1, 0] + 0.3
    boxes[kinds == 2, 3] = boxes[kinds == 2, 1] + 1
    boxes[kinds == 3, :2] = 0
    boxes[kinds == 4, 2:] = width, height
    boxes[kinds == 5] = np.round(boxes[kinds == 5])
    boxes[kinds == 6, 2:] = boxes[kinds == 6, :2]
    return np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)


@given(st.integers(0, 10_000), st.integers(1, 150), st.integers(1, 150))
def test_pixels_are_those_of_torchvision(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, 14, height, width)
    probabilities = rng.uniform(0, 1, (14, 28, 28)).astype(np.float32)
    wanted = paste_masks_in_image(torch.from_numpy(probabilities)[:, None], torch.from_numpy(boxes), (height, width))
    found = paste_masks(probabilities, boxes, (height, width))
    assert found.dtype == np.bool_ and found.shape == (14, height, width)
    assert (found != (wanted[:, 0] >= 0.5).numpy()).mean() <= 1e-4  # a value may be a rounding off 0.5


def test_a_mask_by_hand() -> None:
    # with its border 2x2 is 4x4, over pixels 2 to 10: at 4 and 8 a row is worth 0.61, a corner 0.61²
    found = paste_masks(np.ones((1, 2, 2), np.float32), np.array([[4, 4, 8, 8]], np.float32), (12, 12))
    inside = np.zeros((12, 12), bool)
    inside[4:9, 4:9] = True
    inside[4:9:4, 4:9:4] = False
    np.testing.assert_array_equal(found, inside[None])


@pytest.mark.parametrize("count", [0, 1])
def test_no_object_no_mask(count: int) -> None:
    found = paste_masks(np.zeros((count, 28, 28), np.float32), np.ones((count, 4), np.float32), (5, 7))
    assert found.shape == (count, 5, 7) and not found.any()
