"""From the small masks of Mask R-CNN to pixels, in NumPy."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_PADDING = 1  # pixels of a small mask, on each side


def paste_masks(
    probabilities: NDArray[np.float32], boxes: NDArray[np.float32], size: Sequence[int]
) -> NDArray[np.bool_]:
    """Masks in an image's pixels, as torchvision's `paste_masks_in_image` and a threshold of 0.5 give them.

    Each mask, with a border of zeros, is stretched bilinearly over its box, which grows with the border and is rounded
    to whole pixels.

    Args:
        probabilities: (N, M, M), of the object within its box, 0 to 1.
        boxes: (N, 4) x1, y1, x2, y2 in pixels.
        size: height and width of the image.

    Returns:
        (N, H, W).
    """
    height, width = size
    masks = np.zeros((len(boxes), height, width), bool)
    padded = np.pad(probabilities, ((0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING)))
    for mask, small, (x1, y1, x2, y2) in zip(masks, padded, _grown(boxes, probabilities.shape[-1]), strict=True):
        rows, columns = slice(max(y1, 0), min(y2, height)), slice(max(x1, 0), min(x2, width))
        down = _interpolation(small.shape[0], y1, y2, rows)
        across = _interpolation(small.shape[1], x1, x2, columns)
        mask[rows, columns] = down @ small @ across.T >= 0.5
    return masks


def _grown(boxes: NDArray[np.float32], side: int) -> list[list[int]]:
    """The pixels that the padded masks cover, ends excluded, at least one in each direction."""
    factor = np.float32((side + 2 * _PADDING) / side)
    centre = (boxes[:, :2] + boxes[:, 2:]) * np.float32(0.5)
    half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * factor
    start, end = (centre - half).astype(np.int64), (centre + half).astype(np.int64)  # towards zero
    return np.concatenate([start, np.maximum(end, start) + 1], 1).tolist()


def _interpolation(side: int, start: int, end: int, wanted: slice) -> NDArray[np.float32]:
    """(pixels, side): the weights by which `side` values, stretched from `start` to `end`, give the wanted pixels."""
    pixels = np.arange(wanted.start, max(wanted.stop, wanted.start)) - start
    position = np.maximum((pixels + np.float32(0.5)) * np.float32(side / (end - start)) - np.float32(0.5), 0)
    left = np.minimum(position.astype(np.int64), side - 1)
    share = (position - left).astype(np.float32)
    weights = np.zeros((len(pixels), side), np.float32)
    each = np.arange(len(pixels))
    weights[each, left] = 1 - share
    weights[each, np.minimum(left + 1, side - 1)] += share
    return weights
