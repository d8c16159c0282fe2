"""Masks of objects: decoded from COCO's polygons and run lengths, and the boxes around them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vankit.errors import MissingPackageError, UserError


def decode_mask(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """(H, W) of 0 and 1; several polygons are united."""
    try:
        from faster_coco_eval.core import mask
    except ImportError:
        raise MissingPackageError(
            "COCO masks need faster-coco-eval: pip install faster-coco-eval, or masks=False"
        ) from None
    shape = [polygon.tolist() for polygon in segmentation] if isinstance(segmentation, list) else segmentation
    try:
        decoded = mask.decode(mask.segmToRle(shape, width, height))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"segmentation cannot be decoded: {error}") from error
    if not decoded.any():
        raise UserError("its mask is empty: the segmentation covers no pixel")
    return np.asarray(decoded, np.uint8)


def boxes_around(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(N, 4) x1, y1, x2, y2 in pixels, x2 and y2 exclusive, tight around masks (N, H, W) that are not empty."""
    height, width = masks.shape[1:]
    columns: NDArray[np.bool_] = np.logical_or.reduce(masks, axis=1)
    rows: NDArray[np.bool_] = np.logical_or.reduce(masks, axis=2)
    return np.stack(
        [
            columns.argmax(axis=1),
            rows.argmax(axis=1),
            width - columns[:, ::-1].argmax(axis=1),
            height - rows[:, ::-1].argmax(axis=1),
        ],
        axis=1,
    ).astype(np.float32)
