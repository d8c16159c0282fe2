"""What a folder of labelled images holds."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from vankit.data.folders import ClassFolder, open_dataset
from vankit.data.held_out import HeldOut
from vankit.errors import few
from vankit.inspection.report import ClassCount, Finding, Split
from vankit.inspection.tallies import Study, Tally, effect_in, passed_over
from vankit.training.recipes import Config

_MANY = 20  # times as many images in one class as in another


def _as_it_is(image: Image.Image) -> Image.Image:
    return image


class ClassTally(Tally):
    """Images by class.

    Args:
        split: see `Tally`.
        dataset: whose `samples` are (path, class index), or (path, class indices) where an image has any number.
        known: the classes that are trained on.
    """

    def __init__(self, split: str, dataset: Any, known: Sequence[str]) -> None:
        super().__init__(split, dataset)
        self.names = list(dict.fromkeys([*known, *dataset.classes]))
        self._paths = [path for path, _ in dataset.samples]
        self._members: list[list[int]] = [[] for _ in self.names]
        place = {name: i for i, name in enumerate(self.names)}
        self._places = [place[name] for name in dataset.classes]

    @property
    def paths(self) -> Sequence[str]:
        return self._paths

    def labels(self, index: int) -> tuple[int, ...]:
        """The classes of an image, as the split itself counts them."""
        label = self.dataset.samples[index][1]
        return label if isinstance(label, tuple) else (label,)

    def label(self, index: int) -> str:
        """The classes of an image, by name."""
        return " + ".join(sorted(self.dataset.classes[label] for label in self.labels(index)))

    def count(self, index: int, found: Any) -> None:
        for label in self.labels(index):
            self._members[self._places[label]].append(index)

    def members(self) -> list[list[int]]:
        return self._members

    def classes(self, config: Config) -> tuple[ClassCount, ...]:
        return tuple(ClassCount(name, len(images)) for name, images in zip(self.names, self._members, strict=True))

    def report(self, config: Config, side: int) -> Split:
        split = super().report(config, side)
        if isinstance(self.dataset, ClassFolder):
            return split
        return replace(split, empty=sum(not self.labels(index) for index in self.used))

    def notes(self) -> list[Finding]:
        if not isinstance(self.dataset, ClassFolder):
            return []
        found = passed_over(self.split, self.dataset.passed_over)
        if self.dataset.empty:
            empty = self.dataset.empty
            found.append(Finding("passed over", self.split, "class folders without images", len(empty), few(empty)))
        return found


class ClassStudy(Study):
    """A folder per class, or CSV files of images with any number of labels each."""

    task = "classify"

    def tally(self, split: str, dataset: Any) -> Tally:
        if split == "train":
            self.known: list[str] = dataset.classes
        return ClassTally(split, dataset, self.known)

    def open(self, split: str, held_out: HeldOut | None) -> Any:
        return open_dataset(self.root, split, _as_it_is, held_out=held_out, reading=self.reading)

    def across(self) -> list[Finding]:
        train, *others = self.tallies
        found = _unequal([len(images) for images in train.members()], train.dataset.classes)
        if isinstance(train.dataset, ClassFolder) and len(self.known) < 2:
            what = "there is one class, and training needs two at least"
            found.append(Finding("stops", "train", what, None, self.known[0]))
        for tally in others:
            unknown = sorted(set(tally.dataset.classes) - set(self.known))
            missing = sorted(set(self.known) - set(tally.dataset.classes))
            if unknown:
                what = "classes without images to train on, whose folders are to be filled or taken away"
                found.append(Finding(effect_in(tally.split), tally.split, what, len(unknown), few(unknown)))
            if missing:
                found.append(
                    Finding("note", tally.split, "classes of train without images", len(missing), few(missing))
                )
        return found


def _unequal(counts: Sequence[int], names: Sequence[str]) -> list[Finding]:
    rarest, commonest = (chosen(range(len(counts)), key=counts.__getitem__) for chosen in (min, max))
    if counts[commonest] < _MANY * max(1, counts[rarest]):
        return []
    pair = f"{names[commonest]} ({counts[commonest]:,}) beside {names[rarest]} ({counts[rarest]:,})"
    return [Finding("note", "train", "the classes are very unequal", None, pair)]
