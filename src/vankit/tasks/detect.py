"""Object detection and instance segmentation: from a network's result to COCO's measures and to a drawable scene."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vankit.tasks.metrics import DetectionMeasure
from vankit.tasks.results import Detections


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

    def add(self, target: Mapping[str, Any], result: Mapping[str, Tensor]) -> None:
        names = ("boxes", "labels", "iscrowd", "area", *(("masks",) if self.masks else ()))
        self.measure.add({name: _array(target[name]) for name in names}, detections(result, self.masks))

    @staticmethod
    def scene(source: str, classes: Sequence[str], things: Sequence[bool], result: Mapping[str, Tensor]) -> Detections:
        """What a detector found in one picture."""
        return Detections(source=source, classes=list(classes), **{"masks": None, **detections(result)})

    @staticmethod
    def truth(source: str, classes: Sequence[str], things: Sequence[bool], target: Mapping[str, Any]) -> Detections:
        """What is annotated in one picture, crowd regions too."""
        return Detect.scene(source, classes, things, {**target, "scores": torch.ones(len(target["labels"]))})


def detections(result: Mapping[str, Tensor], masks: bool = True) -> dict[str, Any]:
    """A detector's result as arrays: boxes (N, 4), labels, scores, and masks (N, H, W) where it has them."""
    names = ("boxes", "labels", "scores", *(("masks",) if masks and "masks" in result else ()))
    return {name: _array(result[name]) for name in names}


def _array(value: Tensor) -> Any:
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()  # numpy knows no bfloat16
