"""What a set of panoptic segments holds."""

from pathlib import Path
from typing import Any

import numpy as np

from vankit.data.coco_entries import Picture
from vankit.data.coco_panoptic import CocoPanoptic
from vankit.data.held_out import HeldOut
from vankit.data.scenes import open_scenes
from vankit.errors import UserError, few
from vankit.inspection.detect import PictureTally, across_annotations
from vankit.inspection.pictures import Look
from vankit.inspection.report import ClassCount, Finding, Split
from vankit.inspection.tallies import Study, Tally
from vankit.training.recipes import Config

_LOST = "segments without a pixel"
_STRAY = "segments that are in the PNG alone"


class SegmentTally(PictureTally):
    """Things and stuff by class."""

    dataset: CocoPanoptic

    def __init__(self, split: str, dataset: CocoPanoptic) -> None:
        super().__init__(split, dataset)
        number = len(dataset.classes)
        self._members: list[list[int]] = [[] for _ in range(number)]
        self._segments, self._pixels = np.zeros(number, int), np.zeros(number, int)
        self._crowds = self._empty = 0
        self._all_pixels = 0

    def look_into(self, picture: Picture, look: Look) -> Look:
        try:
            ids, pixels = np.unique(self.dataset.segment_ids(picture), return_counts=True)
        except UserError as problem:
            return Look(None, flaw=("segment PNGs that cannot be used", str(problem)))
        return look._replace(found=dict(zip(ids.tolist(), pixels.tolist(), strict=True)))

    def count(self, index: int, found: dict[int, int]) -> None:
        picture = self.pictures[index]
        self._all_pixels += sum(found.values())
        found.pop(0, None)
        segments = [each for each in picture.objects if each.id in found]
        self._note_disagreement(picture, found)
        self._crowds += sum(each.iscrowd for each in segments)
        self._empty += not segments
        for each in segments:
            self._pixels[each.label] += found[each.id]
            self._segments[each.label] += not each.iscrowd
        for label in sorted({each.label for each in segments}):
            self._members[label].append(index)

    def _note_disagreement(self, picture: Picture, found: dict[int, int]) -> None:
        declared = {each.id for each in picture.objects}
        for kind, ids in ((_LOST, declared - found.keys()), (_STRAY, found.keys() - declared)):
            if ids:
                self.flaws.add(kind, f"{picture.name}: {few(sorted(ids))}", len(ids))

    def members(self) -> list[list[int]]:
        return self._members

    def classes(self, config: Config) -> tuple[ClassCount, ...]:
        labelled = max(1, int(self._pixels.sum()))
        shares = (self._pixels / labelled).tolist()
        rows = zip(
            self.dataset.classes, self._members, self._segments.tolist(), shares, self.dataset.things, strict=True
        )
        return tuple(
            ClassCount(name, len(images), segments, None, share, thing) for name, images, segments, share, thing in rows
        )

    def report(self, config: Config, side: int) -> Split:
        unlabelled = (self._all_pixels - int(self._pixels.sum())) / max(1, self._all_pixels)
        split = super().report(config, side)
        return Split(split.name, split.images, split.sizes, split.classes, self._empty, self._crowds, unlabelled)


class PanopticStudy(Study):
    """COCO's panoptic annotations."""

    task = "panoptic"
    masks = True

    def tally(self, split: str, dataset: Any) -> Tally:
        return SegmentTally(split, dataset)

    def open(self, split: str, held_out: HeldOut | None) -> Any:
        return open_scenes(Path(self.root), self.task, split, held_out=held_out, reading=self.reading)

    def across(self) -> list[Finding]:
        return across_annotations(self)
