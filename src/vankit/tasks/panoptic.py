"""Panoptic segmentation: the panoptic quality, and a drawable scene."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vankit.tasks.metrics import PanopticMeasure
from vankit.tasks.results import Arrays, PanopticMap


class Panoptic:
    """Panoptic quality over the images added.

    Args:
        classes: names by label.
        things: whether each class is countable.
        masks: accepted for the interface.
    """

    def __init__(self, classes: Sequence[str], things: Sequence[bool], masks: bool) -> None:
        self.classes, self.things = list(classes), list(things)
        self.reset()

    def reset(self) -> None:
        self.measure = PanopticMeasure(self.classes, self.things)

    def add(self, target: Arrays, result: Arrays) -> PanopticMeasure:
        alone = PanopticMeasure(self.classes, self.things)
        alone.add({**target, "segments": segments_of(target["masks"])}, result)
        self.measure.merge(alone.state())
        return alone

    @staticmethod
    def scene(source: str, classes: Sequence[str], things: Sequence[bool], result: Arrays) -> PanopticMap:
        """The segments of one picture."""
        found = {name: result[name] for name in ("segments", "labels", "scores")}
        return PanopticMap(source=source, classes=list(classes), things=list(things), **found)

    @staticmethod
    def truth(source: str, classes: Sequence[str], things: Sequence[bool], target: Arrays) -> PanopticMap:
        """The annotated segments of one picture, crowd regions too."""
        segments, scores = segments_of(target["masks"]), np.ones(len(target["labels"]), np.float32)
        return Panoptic.scene(source, classes, things, {**target, "segments": segments, "scores": scores})


def segments_of(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Disjoint masks (S, H, W) as one map (H, W): 0 for none, i + 1 for mask i."""
    segments = np.zeros(masks.shape[1:], np.int64)
    for i, mask in enumerate(masks, 1):
        segments[mask] = i
    return segments
