"""Panoptic segmentation: the panoptic quality, and a drawable scene."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vankit.tasks.metrics import PanopticMeasure
from vankit.tasks.results import PanopticMap


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

    def add(self, target: Mapping[str, Any], result: Mapping[str, Tensor]) -> PanopticMeasure:
        truth = {**_annotated(target), "iscrowd": np.asarray(target["iscrowd"])}
        found = {name: np.asarray(result[name]) for name in ("segments", "labels")}
        alone = PanopticMeasure(self.classes, self.things)
        alone.add(truth, found)
        self.measure.merge(alone.state())
        return alone

    @staticmethod
    def scene(source: str, classes: Sequence[str], things: Sequence[bool], result: Mapping[str, Tensor]) -> PanopticMap:
        """The segments of one picture."""
        arrays = {name: np.asarray(result[name]) for name in ("segments", "labels", "scores")}
        return PanopticMap(source=source, classes=list(classes), things=list(things), **arrays)

    @staticmethod
    def truth(source: str, classes: Sequence[str], things: Sequence[bool], target: Mapping[str, Any]) -> PanopticMap:
        """The annotated segments of one picture, crowd regions too."""
        scores = np.ones(len(target["labels"]), np.float32)
        return PanopticMap(source, list(classes), list(things), **_annotated(target), scores=scores)


def _annotated(target: Mapping[str, Any]) -> dict[str, Any]:
    masks, labels = (np.asarray(target[name]) for name in ("masks", "labels"))
    return {"segments": segments_of(masks), "labels": labels}


def segments_of(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Disjoint masks (S, H, W) as one map (H, W): 0 for none, i + 1 for mask i."""
    index = np.arange(1, len(masks) + 1)[:, None, None]
    return (masks * index).max(0, initial=0).astype(np.int64)
