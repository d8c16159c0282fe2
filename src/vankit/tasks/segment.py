"""Semantic segmentation: whole, multi-scale or sliding-window logits, the measures, and a drawable scene."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vankit.tasks.metrics import SegmentationMeasure
from vankit.tasks.results import SemanticMap

Test = Literal["single", "multiscale", "slide"]

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
_OVERLAP = 1 / 3

Network = Callable[[list[Tensor]], list[dict[str, Tensor]]]


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

    def add(self, target: Mapping[str, Any], result: Mapping[str, Tensor]) -> SegmentationMeasure:
        alone = SegmentationMeasure(self.classes)
        alone.add(np.asarray(target["semantic"]), _labels(result))
        self.measure.merge(alone.state())
        return alone

    @staticmethod
    def scene(source: str, classes: Sequence[str], things: Sequence[bool], result: Mapping[str, Tensor]) -> SemanticMap:
        """The class of every pixel of one picture."""
        return SemanticMap(source=source, classes=list(classes), labels=_labels(result))

    @staticmethod
    def truth(source: str, classes: Sequence[str], things: Sequence[bool], target: Mapping[str, Any]) -> SemanticMap:
        """The annotated class of every pixel of one picture; 255 is unlabelled."""
        return SemanticMap(source=source, classes=list(classes), labels=np.asarray(target["semantic"]))


def _labels(result: Mapping[str, Any]) -> Any:
    if "semantic" in result:
        return result["semantic"]
    return result["logits"].argmax(0).cpu().numpy().astype(np.int64)


def segment_logits(
    network: Network, image: Tensor, test: Test = "single", short_side: int = 0, long_side: int = 0, crop: int = 512
) -> Tensor:
    """A semantic network's logits for one image, at the image's size.

    Args:
        network: a semantic network of `vankit.heads` in eval mode.
        image: (3, H, W), RGB, 0 to 1.
        test: single: the image once; multiscale: at 0.5 to 1.75 times the size and mirrored, softmax averaged; slide:
            in overlapping windows.
        short_side, long_side: size in pixels that the image is brought to first, as in training; 0 leaves it.
        crop: side of the windows in pixels.

    Returns:
        (classes, H, W) logits, or log probabilities for multiscale.
    """
    size = image.shape[-2:]
    if short_side:
        image = _resize(image, _scale(size, short_side, long_side))
    if test == "slide":
        logits = _slide(network, image, crop)
    elif test == "multiscale":
        logits = _multiscale(network, image)
    else:
        logits = _logits(network, image)
    return _resize(logits, size)


def _logits(network: Network, image: Tensor) -> Tensor:
    return network([image])[0]["logits"].float()  # resizing knows no bfloat16 on every device


def _scale(size: Sequence[int], short_side: int, long_side: int) -> tuple[int, int]:
    factor = short_side / min(size)
    if long_side:
        factor = min(factor, long_side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(C, H, W) → (C, *size)."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[None], tuple(size), mode="bilinear", antialias=maps.shape[-1] > size[-1])[0]


def _multiscale(network: Network, image: Tensor) -> Tensor:
    size = image.shape[-2:]
    total: Tensor | float = 0.0
    for scale in SCALES:
        scaled = _resize(image, [max(32, round(side * scale)) for side in size])
        for flipped in (False, True):
            logits = _logits(network, scaled.flip(-1) if flipped else scaled)
            total = total + _resize(logits.flip(-1) if flipped else logits, size).softmax(0)
    assert isinstance(total, Tensor)
    mean = total / (2 * len(SCALES))
    return mean.clamp(min=torch.finfo(mean.dtype).tiny).log()  # resizing would make NaN of -inf


def _slide(network: Network, image: Tensor, crop: int) -> Tensor:
    height, width = image.shape[-2:]
    total: Tensor | None = None
    count = image.new_zeros(height, width)
    for top in _starts(height, crop):
        for left in _starts(width, crop):
            window = (..., slice(top, top + crop), slice(left, left + crop))
            logits = _logits(network, image[window])
            if total is None:
                total = logits.new_zeros(len(logits), height, width)
            total[window] += logits
            count[window] += 1
    assert total is not None
    return total / count


def _starts(length: int, crop: int) -> list[int]:
    """Where windows begin that cover a side, the last one flush with its end."""
    stride = max(1, round(crop * (1 - _OVERLAP)))
    last = max(0, length - crop)
    return sorted({*range(0, last, stride), last})
