"""What a quantised detector's or segmenter's results are worth: AP, mIoU or PQ on annotated scenes."""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from vankit.data.held_out import HeldOut, announce
from vankit.data.images import MAX_PIXELS
from vankit.data.reading import STRICT, Reading, read_ahead
from vankit.data.scenes import open_scenes
from vankit.deploy.dense import find
from vankit.deploy.quantize import spread, unreadable
from vankit.engines.base import Engine
from vankit.errors import MissingFileError, UserError
from vankit.models.description import Description
from vankit.tasks.dense import EVALUATORS

CALIBRATION_IMAGES = 100  # at most, evenly drawn: each shows a network more than a classifier's
_THREADS = 2  # that read


def open_split(
    data: str | PathLike[str],
    description: Description,
    split: str,
    masks: bool,
    reading: Reading = STRICT,
    seed: int = 0,
) -> Any:
    """A split of annotated scenes, see `vankit.data.scenes.open_scenes`, with the classes of a network.

    Raises:
        FileNotFoundError, ValueError: there is none, or its classes are others.
    """
    dataset = open_scenes(
        data,
        description.task,
        split,
        masks=masks,
        size=description.short_sides[-1],
        seed=seed,
        ignore_label=description.ignore_label,
        map_labels=description.map_labels,
        reading=reading,
        known=description.classes,
        held_out=description.held_out or HeldOut(),
    )
    classes, known = list(dataset.classes), list(description.classes)
    if classes != known:
        only = sorted(set(classes) ^ set(known)) or ["the same in another order"]
        raise UserError(f"data and network have different classes: {', '.join(only[:10])}")
    return dataset


@dataclass
class Scenes:
    """The `vankit.deploy.quantize.Trial` of a detector or segmenter.

    Attributes:
        description: of the network.
        masks: whether it gives a mask per object.
        calibration, measured: datasets as of `open_split`.
        images: that were measured.
    """

    description: Description
    masks: bool
    calibration: Any
    measured: Any
    images: int = field(default=0, init=False)
    labelled: bool = field(default=True, init=False)

    @cached_property
    def inputs(self) -> Sequence[NDArray[np.uint8]]:
        """Pictures (1, H, W, 3), RGB, evenly drawn, decoded as they are asked for."""
        found = _Pictures(self.calibration)
        if not found:
            raise unreadable(self.calibration)
        return found

    @property
    def measure(self) -> str:
        """mask AP, box AP, mIoU or PQ."""
        if self.description.task == "detect":
            return "mask AP" if self.masks else "box AP"
        return {"segment": "mIoU", "panoptic": "PQ"}[self.description.task]

    def score(self, engine: Engine, title: str) -> float:
        description, count = self.description, len(self.measured)
        evaluator = EVALUATORS[description.task](list(description.classes), list(description.things), self.masks)
        self.images = 0
        with closing(read_ahead(self.measured, _THREADS, ahead=_THREADS)) as scenes:
            for scene in track(scenes, title, count, console=Console(stderr=True), transient=True):
                if scene is not None:
                    picture, target = scene
                    evaluator.add(target, find(engine, description.task, np.asarray(picture)))
                    self.images += 1
        if not self.images:
            raise unreadable(self.measured)
        score = evaluator.measure.compute()[self.measure]
        if math.isnan(score):
            raise UserError(f"the images to measure int8 on have no {self.measure}: pass others (--calibrate)")
        return float(score)


class _Pictures(Sequence[NDArray[np.uint8]]):
    """Of a dataset, at most `CALIBRATION_IMAGES` that can be read."""

    def __init__(self, dataset: Any) -> None:
        drawn = spread(len(dataset), CALIBRATION_IMAGES)
        self.dataset, self.indices = dataset, [i for i in drawn if dataset[i] is not None]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: Any) -> Any:
        picture, _ = self.dataset[self.indices[i]]
        return np.asarray(picture)[None]


def open_labelled(
    data: str | PathLike[str], description: Description, masks: bool, max_pixels: int = MAX_PIXELS
) -> Scenes:
    """Annotated scenes, as `vankit.validate` takes them: split train, or else val, calibrates, and val is measured.

    Args:
        data: see `vankit.data.scenes.open_scenes`.
        description: of the network.
        masks: whether it gives a mask per object.
        max_pixels: of the largest image that is decoded; what cannot be read is left out.

    Raises:
        FileNotFoundError, ValueError: there are none, or their classes are not the network's.
    """
    reading = Reading(skip_bad=True, max_pixels=max_pixels)
    measured = open_split(data, description, "val", masks, reading)
    announce(measured, data)
    try:
        calibration = open_split(data, description, "train", False, reading)
    except MissingFileError:
        calibration = measured
    return Scenes(description, masks, calibration, measured)
