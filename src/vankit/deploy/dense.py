"""Detectors and segmenters as whole models, run without PyTorch: a picture in, what is in it out."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vankit.engines.base import Engine
from vankit.engines.processes import PerProcess
from vankit.errors import check_output
from vankit.models.description import Description
from vankit.tasks.masks import paste_masks
from vankit.tasks.results import Arrays


class Stored(Protocol):
    """A whole model on disk, see `vankit.deploy.folder.Exported` and `vankit.deploy.kept.Kept`."""

    @property
    def description(self) -> Description: ...
    @property
    def outputs(self) -> Sequence[str]: ...
    @property
    def size(self) -> Sequence[int]: ...
    def engine(self, engine: str, precision: str, device: str, cached: bool) -> Engine: ...


class DenseFolder:
    """uint8 (H, W, 3), RGB → what is in the picture, see `vankit.DensePredictor.results`.

    Args:
        exported: of a detector or segmenter; or one that is kept in the cache.
        engine, precision, device, cached: see `vankit.deploy.folder.Exported.engine`.

    Attributes:
        masks: whether it gives a mask per object.

    Raises:
        ValueError, ImportError: see `vankit.deploy.folder.Exported.engine`.
    """

    def __init__(
        self,
        exported: Stored,
        engine: str = "auto",
        precision: str = "auto",
        device: str = "auto",
        cached: bool = True,
    ) -> None:
        self._exported, self._options = exported, (engine, precision, device, cached)
        self._engine = PerProcess[Engine](self._open())
        self.masks = "masks" in exported.outputs

    def _open(self) -> Engine:
        return self._exported.engine(*self._options)

    def __call__(self, picture: NDArray[np.uint8], score: float = 0.0) -> Arrays:
        """
        Args:
            score: of a detector's objects, of which others are left out before their masks are made.
        """
        engine, task = self._engine.get(self._open), self._exported.description.task
        if not self._exported.size:
            return find(engine, task, picture, score)
        semantic = find(engine, task, resized(picture, self._exported.size))["semantic"].astype(np.int32)
        size = picture.shape[1], picture.shape[0]
        return {"semantic": np.array(Image.fromarray(semantic).resize(size, Image.Resampling.NEAREST), np.int64)}


def resized(picture: NDArray[np.uint8], size: Sequence[int]) -> NDArray[np.uint8]:
    """(H, W, 3) → (*size, 3), for a model that takes one size."""
    height, width = size
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))  # PyTorch may write


def find(engine: Engine, task: str, picture: NDArray[np.uint8], score: float = 0.0) -> Arrays:
    """What an engine with a whole network finds in a picture (H, W, 3), see `results_of`.

    Raises:
        ValueError: a number is not finite.
    """
    outputs = engine.outputs(picture[None])
    for values in outputs:
        if values.dtype.kind == "f":
            check_output(values)
    return results_of(task, outputs, picture.shape[:2], score)


def results_of(task: str, outputs: Sequence[NDArray[Any]], size: Sequence[int], score: float = 0.0) -> Arrays:
    """What an exported model gives, as the results of its task.

    Args:
        task: detect, segment or panoptic.
        outputs: of the model, see docs/export.md.
        size: height and width of the picture.
        score: lowest one of objects.
    """
    if task == "panoptic":
        segments, labels, scores = (output[0] for output in outputs)
        return {"segments": segments.astype(np.int64), "labels": labels.astype(np.int64), "scores": scores}
    if task == "segment":
        logits = outputs[0][0]  # (C, H, W), or (1, H, W) where the engine has taken the best class already
        semantic = logits[0] if logits.dtype.kind == "i" else logits.argmax(0)
        return {"semantic": semantic.astype(np.int64)}
    kept = outputs[0][0][:, 4] >= score
    objects, labels, *masks = (output[0][kept] for output in outputs)
    height, width = size
    boxes = objects[:, :4] * np.array([width, height, width, height], np.float32)
    results = {"boxes": boxes, "labels": labels.astype(np.int64), "scores": objects[:, 4].copy()}
    if masks:
        results["masks"] = _in_picture(masks[0], boxes, size)
    return results


def _in_picture(masks: NDArray[Any], boxes: NDArray[np.float32], size: Sequence[int]) -> NDArray[np.bool_]:
    """Masks (N, H, W): the R-CNN family's are (N, 28, 28) within the boxes, others are whole already."""
    if masks.dtype.kind == "f":
        return paste_masks(masks, boxes, size)
    return masks.astype(np.bool_)
