"""Validation pictures: what a network under training makes of a few images, beside what is true."""

import operator
from collections.abc import Iterable
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from vankit.models.description import Description
from vankit.reports.worst import picture_of, scaled
from vankit.tasks.colours import Colour
from vankit.tasks.dense import EVALUATORS
from vankit.tasks.drawing import draw_sheet
from vankit.tasks.inference import arrays
from vankit.tasks.results import Arrays, Detections
from vankit.training.logs import Log

Cell = tuple[Image.Image, str, Colour]  # picture, caption and its colour

_BLACK, _GREEN, _RED = (0, 0, 0), (0, 120, 0), (200, 0, 0)
_SCORE = 0.3  # from which objects are drawn, as `vankit.DensePredictor` returns them


class Pictures(Callback):
    """Draws the same images in every validation, for TensorBoard.

    They are taken from the whole of the validation set, or of this process's share, at equal distances; the first ones
    if its length is unknown.

    Args:
        description: of the network.
    """

    def __init__(self, description: Description) -> None:
        self.description = description
        self.count, self.columns = (8, 4) if description.task == "classify" else (4, 2)
        self.cells: list[Cell] = []
        self.chosen: set[int] = set()
        self.seen = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = operator.length_hint(trainer.val_dataloaders.dataset, self.count)  # type: ignore[union-attr]
        self.chosen = {i * total // self.count for i in range(self.count)}
        self.cells, self.seen = [], 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for image, target, output in zip(*batch, outputs["answers"], strict=True) if batch else ():
            if self.seen in self.chosen:
                self.cells += self._draw(image.cpu(), target, output)
            self.seen += 1

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.cells and isinstance(trainer.logger, Log):
            # Lightning counts from 0
            trainer.logger.log_picture("validation", draw_sheet(self.cells, self.columns), trainer.global_step - 1)
        self.cells = []

    def _draw(self, image: Tensor, target: Any, output: Any) -> Iterable[Cell]:
        if self.description.multi_label:
            return [draw_labels(image, target, output, self.description)]
        if self.description.task == "classify":
            return [draw_class(image, int(target), output, self.description)]
        return draw_scenes(image, target, output, self.description)


def draw_class(image: Tensor, label: int, logits: Tensor, description: Description, side: int = 160) -> Cell:
    """A classifier's answer for one image: its best class, in green if it is right, over the true one.

    Args:
        image: (3, H, W), as the network sees it.
        label: the true class.
        logits: (classes,).
        description: of the network.
        side: of the picture in pixels.
    """
    best, score = int(logits.argmax()), float(logits.softmax(0).max())
    caption = f"{description.classes[best]} {score:.0%}\ntrue: {description.classes[label]}"
    return _seen(image, description, side), caption, _GREEN if best == label else _RED


def draw_labels(image: Tensor, labels: Tensor, logits: Tensor, description: Description, side: int = 160) -> Cell:
    """A multi-label network's answer for one image: its labels of 0.5 or more, in green if they are right.

    Args:
        image, logits, description, side: see `draw_class`.
        labels: (classes,), 1 for each true one.
    """
    found, true = logits.cpu() >= 0, labels.cpu() > 0
    names = ((name for name, on in zip(description.classes, chosen, strict=True) if on) for chosen in (found, true))
    caption = "\ntrue: ".join(", ".join(each) or "no label" for each in names)
    return _seen(image, description, side), caption, _GREEN if bool((found == true).all()) else _RED


def _seen(image: Tensor, description: Description, side: int) -> Image.Image:
    """A classifier's input as an RGB picture."""
    assert description.preprocessing is not None
    settings = description.preprocessing
    mean, std = (torch.tensor(values)[:, None, None] for values in (settings.mean, settings.std))
    return scaled(picture_of((image * std + mean).numpy()), side)


def draw_scenes(
    image: Tensor, target: dict[str, Any], result: Arrays, description: Description, side: int = 320
) -> list[Cell]:
    """A detector's or segmenter's answer for one image, and the truth.

    Args:
        image: (3, H, W), 0 to 1.
        target: see `vankit.heads`.
        result: see `vankit.tasks.dense`.
        description: of the network.
        side: of the pictures' longer side in pixels.
    """
    task, names = EVALUATORS[description.task], ("", description.classes, description.things)
    found, truth = task.scene(*names, result), task.truth(*names, arrays(target))
    picture = scaled(picture_of(image.numpy()), side)
    if isinstance(found, Detections):
        before = (image.shape[2], image.shape[1])
        found, truth = (each.resized(picture.size, before) for each in (found.above(_SCORE), truth))
    else:
        found, truth = (each.resized(picture.size) for each in (found, truth))
    return [(found.draw(picture), "prediction", _BLACK), (truth.draw(picture), "truth", _BLACK)]
