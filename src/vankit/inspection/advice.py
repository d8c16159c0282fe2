"""The command to start with: a head, a recipe, and what of it the pictures change."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vankit.inspection.report import Finding
from vankit.inspection.tallies import Study
from vankit.training import recipes
from vankit.training.recipes import Config, DenseConfig, TrainConfig

_PUBLISHED_SIDE = 224  # of the public weights' pictures
_SMALL_SIDE = 64  # pictures up to which training starts from scratch
_STRIDE = 32  # of the network: what sides are rounded to
_SMALL_SET = 1000  # images from which the papers' recipes for dense tasks are of use
_LARGEST_SIDE = 512  # that a small set is trained at
_LONG = 5 / 3  # the longer side's limit over the shorter side, as in COCO's 1333 over 800
_UPDATES = 1000  # that a small set needs at least
_MOST_EPOCHS = 100


@dataclass(frozen=True)
class Advice:
    """Settings to start with.

    Attributes:
        options: of `vankit train`, each with its reason, which may be empty.
        config: the settings that they make.
    """

    options: tuple[tuple[str, str], ...]
    config: Config

    @property
    def side(self) -> int:
        """The shorter side of a picture in training, in pixels."""
        if isinstance(self.config, TrainConfig):
            return self.config.img_size
        assert isinstance(self.config, DenseConfig)
        return self.config.short_sides[-1]


def advise(study: Study, findings: Sequence[Finding]) -> Advice:
    """What to start with.

    Args:
        study: the set.
        findings: of it, whose options are taken.
    """
    sides = np.array(study.tallies[0].sizes or [(_PUBLISHED_SIDE, _PUBLISHED_SIDE)]).min(1)
    side = round(float(np.median(sides)))
    options, config = _to_classify(study.to_train_on, side) if study.task == "classify" else _dense(study, side)
    return Advice((*options, *_needed(findings)), config)


def _to_classify(images: int, side: int) -> tuple[list[tuple[str, str]], TrainConfig]:
    size = min(_PUBLISHED_SIDE, _multiple(math.ceil(side / _STRIDE)))
    small = size <= _SMALL_SIDE
    options = [("--recipe short", f"from scratch: the pictures are small (median short side {side} px)")] * small
    config = recipes.recipe("short" if small else "finetune", "van_b0")
    if size != config.img_size:
        options.append((f"--img-size {size}", f"the pictures' median short side is {side} px"))
    config = recipes.override(config, img_size=size)
    options += _batch(images, config.batch_size)
    return options, config


def _dense(study: Study, side: int) -> tuple[list[tuple[str, str]], DenseConfig]:
    head = {"detect": "mask_rcnn" if study.masks else "retinanet", "segment": "semantic_fpn", "panoptic": "mask2former"}
    options = [(f"--task {study.task}", ""), (f"--head {head[study.task]}", _why(study))]
    images = study.to_train_on
    if images >= _SMALL_SET and side > _LARGEST_SIDE // 2:
        config: DenseConfig = recipes.recipe(None, "van_b0", study.task, head[study.task])
        return options, config
    tiny = side <= _SMALL_SIDE
    model = "van_b0.cifar10" if tiny else "van_b0"
    config = recipes.recipe("short", model, study.task)
    settings: dict[str, Any] = {}
    few = f"{images:,} images to train on are few for the papers' recipes" if images < _SMALL_SET else ""
    options.append(("--recipe short", few or f"the pictures are small (median short side {side} px)"))
    options.append((f"--model {model}", "weights of small pictures") if tiny else ("--pretrained", "public weights"))
    if (size := min(_LARGEST_SIDE, _multiple(round(side / _STRIDE)))) > config.short_sides[-1]:
        settings |= {"short_sides": (size,), "long_side": math.ceil(size * _LONG)}
        words = f"--short-sides {size} --long-side {settings['long_side']}"
        if config.crop:
            settings["crop"] = size
            words += f" --crop {size}"
        options.append((words, f"the pictures' median short side is {side} px"))
    batch = _batch(images, config.batch_size)
    options += [*batch, *_epochs(images, config)]
    return options, recipes.override(config, **settings)


def _why(study: Study) -> str:
    if study.task != "detect":
        return ""
    return "all objects have a mask" if study.masks else "not all objects have a mask"


def _multiple(times: int) -> int:
    return _STRIDE * max(1, times)


def _batch(images: int, size: int) -> list[tuple[str, str]]:
    """A smaller batch, where there would not be a whole one."""
    if images >= size:
        return []
    smaller = 2 ** int(math.log2(max(2, images)))
    return [(f"--batch-size {smaller}", f"{images} images to train on are not a batch of {size}")]


def _epochs(images: int, config: DenseConfig) -> list[tuple[str, str]]:
    updates = max(1, images // config.batch_size)
    epochs = min(_MOST_EPOCHS, math.ceil(_UPDATES / updates / 10) * 10)
    if epochs <= config.epochs:
        return []
    return [(f"--epochs {epochs}", f"{config.epochs} epochs would be {config.epochs * updates} updates")]


def _needed(findings: Sequence[Finding]) -> Iterator[tuple[str, str]]:
    reasons: dict[str, list[str]] = {}
    for finding in findings:
        if finding.effect == "stops" and finding.option:
            number = "" if finding.count is None else f" ({finding.count:,})"
            reasons.setdefault(finding.option, []).append(f"{finding.split}: {finding.what}{number}")
    return ((option, ", ".join(why)) for option, why in reasons.items())
