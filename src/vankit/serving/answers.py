"""What was found in a picture, as JSON and as a picture; COCO's forms for boxes and masks."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from vankit.tasks.results import Detections, PanopticMap, SemanticMap

_QUALITY = 90  # of JPEGs


def scene_rows(found: Detections | SemanticMap | PanopticMap, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Objects or segments as rows: `name`, `category_id`, `bbox`, `score`, `segmentation`, as far as there are any.

    Args:
        found: in a picture.
        category_ids: the training data's numbers of the classes, by label.
    """
    names = dict(zip(category_ids, found.classes, strict=True))
    if isinstance(found, PanopticMap):
        things = dict(zip(category_ids, found.things, strict=True))
        objects = found.objects()
        rows = _area_rows(objects.to_coco(0, category_ids), objects)
        return [_named(row, names) | {"isthing": int(things[row["category_id"]])} for row in rows]
    rows = found.to_coco(0, category_ids)
    if isinstance(found, SemanticMap):
        areas = np.bincount(found.labels.clip(0).ravel(), minlength=len(found.classes))
        numbers = {number: i for i, number in enumerate(category_ids)}
        rows = [{**row, "area": int(areas[numbers[row["category_id"]]])} for row in rows]
    return [_named(row, names) for row in rows]


def _area_rows(rows: list[dict[str, Any]], objects: Detections) -> list[dict[str, Any]]:
    assert objects.masks is not None
    return [{**row, "area": int(mask.sum())} for row, mask in zip(rows, objects.masks, strict=True)]


def _named(row: dict[str, Any], names: dict[int, str]) -> dict[str, Any]:
    """A row of COCO's results for a client, who has not numbered the pictures."""
    return {"name": names[row["category_id"]], **{key: row[key] for key in row if key != "image_id"}}


def jpeg(image: Image.Image) -> bytes:
    """An RGB picture as a JPEG."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=_QUALITY)
    return data.getvalue()
