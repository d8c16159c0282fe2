"""Object detection and instance segmentation: from a network's result to COCO's measures and to a drawable scene."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vankit.tasks.metrics import DetectionMeasure
from vankit.tasks.results import Arrays, Detections


class Detect:
    """COCO's average precision over the images added.

    Args:
        classes: names by label.
        things: accepted for the interface; all classes of a detector are countable.
        masks: measure the masks too.
    """

    def __init__(self, classes: Sequence[str], things: Sequence[bool], masks: bool) -> None:
        self.classes, self.masks = list(classes), masks
        self.reset()

    def reset(self) -> None:
        self.measure = DetectionMeasure(self.classes, self.masks)

    def add(self, target: Arrays, result: Arrays) -> DetectionMeasure:
        alone = DetectionMeasure(self.classes, self.masks)
        alone.add(target, result)
        self.measure.merge(alone.state())
        return alone

    @staticmethod
    def scene(source: str, classes: Sequence[str], things: Sequence[bool], result: Arrays) -> Detections:
        """What a detector found in one picture."""
        found = {name: result[name] for name in ("boxes", "labels", "scores")}
        return Detections(source=source, classes=list(classes), **found, masks=result.get("masks"))

    @staticmethod
    def truth(source: str, classes: Sequence[str], things: Sequence[bool], target: Arrays) -> Detections:
        """What is annotated in one picture, crowd regions too."""
        return Detect.scene(source, classes, things, {**target, "scores": np.ones(len(target["labels"]), np.float32)})


def match_objects(
    truth: Detections, crowd: NDArray[np.bool_], found: Detections, iou: float = 0.5
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which objects of a picture were missed, and which finds are false, as COCO matches boxes at one threshold.

    From the best find on, each takes the object of its class that it overlaps most, of those that none has taken. A
    crowd region is no object to find, and a find that lies in one by so much is not false.

    Args:
        truth: what is annotated.
        crowd: (N,) which of it are crowd regions.
        found: M finds.
        iou: overlap from which on a find is right.

    Returns:
        (N,) missed and (M,) false.

    Source: cocodataset.org, Detection Evaluation.
    """
    shared, union = overlaps(found.boxes, truth.boxes)
    union = np.where(crowd, box_areas(found.boxes)[:, None], union)  # of a crowd any part will do
    overlap = np.where(found.labels[:, None] == truth.labels, shared / np.maximum(union, 1e-9), 0)  # (M, N)
    missed, false = np.logical_not(crowd), np.asarray((overlap * crowd < iou).all(1))
    for i in np.argsort(-found.scores, kind="stable"):
        free = overlap[i] * missed
        if free.max(initial=0) >= iou:
            missed[free.argmax()] = False
            false[i] = False
    return missed, false


def overlaps(one: NDArray[Any], other: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Areas that boxes (M, 4) and (N, 4) share, and cover together, (M, N) each."""
    corners = np.maximum(one[:, None, :2], other[:, :2]), np.minimum(one[:, None, 2:], other[:, 2:])
    shared = np.clip(corners[1] - corners[0], 0, None).prod(2)
    return shared, box_areas(one)[:, None] + box_areas(other) - shared


def box_areas(boxes: NDArray[Any]) -> NDArray[Any]:
    """Of (N, 4) x1, y1, x2, y2."""
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(1))
