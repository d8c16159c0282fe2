"""Semantic segmentation: from a network's result to its measures and to a drawable scene."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from vankit.tasks.metrics import SegmentationMeasure
from vankit.tasks.results import Arrays, SemanticMap

Test = Literal["single", "multiscale", "slide"]  # see `vankit.tasks.inference.segment_logits`


class Segment:
    """Mean intersection over union and accuracies over the images added.

    Args:
        classes: names by label.
        things, masks: accepted for the interface; a label map has neither.
    """

    def __init__(self, classes: Sequence[str], things: Sequence[bool], masks: bool) -> None:
        self.classes = list(classes)
        self.reset()

    def reset(self) -> None:
        self.measure = SegmentationMeasure(self.classes)

    def add(self, target: Arrays, result: Arrays) -> SegmentationMeasure:
        alone = SegmentationMeasure(self.classes)
        alone.add(target["semantic"], result["semantic"])
        self.measure.merge(alone.state())
        return alone

    @staticmethod
    def scene(source: str, classes: Sequence[str], things: Sequence[bool], result: Arrays) -> SemanticMap:
        """The class of every pixel of one picture; 255 is unlabelled."""
        return SemanticMap(source=source, classes=list(classes), labels=np.asarray(result["semantic"], np.int64))

    truth = scene
