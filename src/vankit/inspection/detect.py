"""What a set of annotated objects holds."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vankit.data.coco import CocoInstances, check_size
from vankit.data.coco_entries import Instance, Picture
from vankit.data.held_out import HeldOut
from vankit.data.masks import decode_mask
from vankit.data.reading import Reading
from vankit.data.scenes import open_scenes
from vankit.data.walk import walk_images
from vankit.errors import UserError, few
from vankit.inspection.pictures import Look, look_at
from vankit.inspection.report import ClassCount, Finding, Split
from vankit.inspection.tallies import Study, Tally, counted, effect_in
from vankit.training.recipes import Config, DenseConfig

NO_MASK = "objects without a segmentation"

_OTHER_SIZE = "images of another size than their annotations say"
_BAD_MASK = "segmentations that cannot be decoded"


class PictureTally(Tally):
    """What COCO's two kinds of annotation share."""

    def __init__(self, split: str, dataset: Any) -> None:
        super().__init__(split, dataset)
        for kind, count in dataset.left_out.items():
            self.flaws.add(kind, dataset.examples[kind], count)

    @property
    def pictures(self) -> Sequence[Picture]:
        return self.dataset.pictures

    @cached_property
    def paths(self) -> Sequence[str]:
        return [str(picture.path) for picture in self.pictures]

    def look(self, index: int) -> Look:
        picture = self.pictures[index]
        look = look_at(picture.path, self.dataset.reading.max_pixels)
        if look.size is None:
            return look
        try:
            check_size(picture.path, look.size, picture)
        except UserError as problem:
            return Look(None, flaw=(_OTHER_SIZE, str(problem)))
        return self.look_into(picture, look)

    def look_into(self, picture: Picture, look: Look) -> Look:
        """Add what the annotations of a sound picture show."""
        return look

    def notes(self) -> list[Finding]:
        return counted("repaired", self.split, self.dataset.repairs)


class ObjectTally(PictureTally):
    """Boxes and masks by class."""

    dataset: CocoInstances

    def __init__(self, split: str, dataset: CocoInstances) -> None:
        super().__init__(split, dataset)
        self._undecodable: dict[int, set[int]] = {}  # places of objects, by picture

    def look_into(self, picture: Picture, look: Look) -> Look:
        return look._replace(found=_bad_masks(picture)) if self.dataset.masks else look

    def count(self, index: int, found: dict[int, str] | None) -> None:
        for problem in (found or {}).values():
            self.flaws.add(_BAD_MASK, f"{self.pictures[index].name}: {problem}")
        if found:
            self._undecodable[index] = set(found)

    def objects(self, index: int) -> list[Instance]:
        """What can be used of a picture's objects."""
        lost = self._undecodable.get(index, ())
        return [instance for place, instance in enumerate(self.pictures[index].objects) if place not in lost]

    def single(self) -> Iterator[tuple[int, Instance]]:
        """(index of the picture, object), crowds left out."""
        return ((index, each) for index in self.used for each in self.objects(index) if not each.iscrowd)

    def members(self) -> list[list[int]]:
        found: list[dict[int, None]] = [{} for _ in self.dataset.classes]
        for index, instance in self.single():
            found[instance.label][index] = None
        return list(map(list, found))

    def sides(self, config: DenseConfig) -> NDArray[np.float64]:
        """Widths and heights (N, 2) of the boxes in pixels, as `single` gives them, once the pictures are resized."""
        scale = {index: _scale(size, config) for index, size in zip(self.used, self.sizes, strict=True)}
        boxes = [(*instance.box, scale[index]) for index, instance in self.single()]
        x1, y1, x2, y2, factor = np.array(boxes, float).reshape(-1, 5).T
        return np.stack([(x2 - x1) * factor, (y2 - y1) * factor], 1)

    def classes(self, config: Config) -> tuple[ClassCount, ...]:
        assert isinstance(config, DenseConfig)
        number = len(self.dataset.classes)
        labels = np.array([instance.label for _, instance in self.single()], int)
        small = self.sides(config).min(1) < stride_of(self.dataset.masks)
        objects, tiny = np.bincount(labels, minlength=number), np.bincount(labels[small], minlength=number)
        rows = zip(self.dataset.classes, map(len, self.members()), objects.tolist(), tiny.tolist(), strict=True)
        return tuple(ClassCount(*row) for row in rows)

    def report(self, config: Config, side: int) -> Split:
        everything = [self.objects(index) for index in self.used]
        crowds = sum(instance.iscrowd for objects in everything for instance in objects)
        return replace(super().report(config, side), empty=sum(not each for each in everything), crowds=crowds)


def _bad_masks(picture: Picture) -> dict[int, str]:
    """Objects whose mask cannot be decoded, by place: what is wrong."""
    problems = {}
    for place, instance in enumerate(picture.objects):
        try:
            decode_mask(instance.segmentation, picture.height, picture.width)
        except UserError as problem:
            problems[place] = f"annotation {instance.id}: {problem}"
    return problems


def _scale(size: tuple[int, int], config: DenseConfig) -> float:
    """By how much torchvision's detectors resize a picture."""
    return min(config.short_sides[-1] / min(size), config.long_side / max(size))


def stride_of(masks: bool) -> int:
    """Pixels per cell of the finest map: of Mask R-CNN's pyramid level 2, or of RetinaNet's level 3."""
    return 4 if masks else 8


class ObjectStudy(Study):
    """Objects in COCO's, YOLO's or Pascal VOC's layout; with masks only if all objects have one."""

    task = "detect"
    tallies: list[ObjectTally]

    def __init__(self, root: Path, reading: Reading) -> None:
        self.masks = True
        super().__init__(root, reading)
        self.without_mask = {tally.split: tally.flaws.counts[NO_MASK] for tally in self.tallies}
        if any(self.without_mask.values()):
            self.masks = False
            super().__init__(root, reading)

    def tally(self, split: str, dataset: Any) -> Tally:
        return ObjectTally(split, dataset)

    def open(self, split: str, held_out: HeldOut | None) -> Any:
        return open_scenes(self.root, self.task, split, masks=self.masks, held_out=held_out, reading=self.reading)

    def across(self) -> list[Finding]:
        return [*across_annotations(self), *self._without_mask()]

    def _without_mask(self) -> list[Finding]:
        objects = sum(1 for tally in self.tallies for _ in tally.single())
        if not 0 < sum(self.without_mask.values()) < objects:  # all have one, or none has
            return []
        what = "objects without a segmentation, so that a head without masks is proposed"
        return [Finding("note", split, what, count) for split, count in self.without_mask.items() if count]


def across_annotations(study: Study) -> list[Finding]:
    """What COCO's annotations of several splits show: other classes, classes that never occur, unlisted pictures."""
    train, *others = study.tallies
    found = []
    for tally in others:
        if tally.dataset.classes != train.dataset.classes:
            only = sorted(set(tally.dataset.classes) ^ set(train.dataset.classes)) or ["the same in another order"]
            what = "classes that are not in both this split and train"
            found.append(Finding(effect_in(tally.split), tally.split, what, len(only), few(only)))
    never = [name for name, images in zip(train.dataset.classes, train.members(), strict=True) if not images]
    if never:
        found.append(Finding("note", "train", "classes that never occur", len(never), few(never)))
    return [*found, *_unlisted(study.tallies)]


def _unlisted(tallies: Sequence[Any]) -> list[Finding]:
    """Pictures beside those that the annotations name."""
    named: set[str] = set()
    folders = defaultdict(list)
    for tally in tallies:
        folder = os.path.abspath(tally.dataset.images)
        named.update(tally.paths, (os.path.join(folder, name) for name, _ in tally.dataset.skipped))
        folders[folder].append(tally.split)
    found = []
    for folder, splits in folders.items():
        beside = [path for path in walk_images(folder, skip_bad=True) if path not in named]
        if beside:
            what = "images that no annotation names"
            found.append(Finding("passed over", " and ".join(splits), what, len(beside), beside[0]))
    return found
