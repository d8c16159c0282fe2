"""What a set of label PNGs holds."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vankit.data.held_out import HeldOut
from vankit.data.label_maps import IGNORE, Coding, count_labels, read_labels
from vankit.data.reading import Reading
from vankit.data.scenes import open_scenes
from vankit.data.semantic import SemanticFolder
from vankit.errors import UserError, few
from vankit.inspection.pictures import Look, look_at
from vankit.inspection.report import ClassCount, Finding, Split
from vankit.inspection.tallies import Study, Tally, passed_over
from vankit.training.recipes import Config

_NO_PNG = "images without a label PNG"
_UNREADABLE = "label PNGs that cannot be read"
_OTHER_SIZE = "label PNGs of another size than their image"
_NO_CLASS = "images with label values that are not of a class"

_FEW = 8  # values that may be mapped one by one


class LabelTally(Tally):
    """Pixels by the value that they have."""

    dataset: SemanticFolder

    def __init__(self, split: str, dataset: SemanticFolder) -> None:
        super().__init__(split, dataset)
        for name, reason in dataset.skipped:
            self.flaws.add(_NO_PNG, f"{name}: {reason}")
        self._values: dict[int, dict[int, int]] = {}  # pixels by value, by picture

    @cached_property
    def paths(self) -> Sequence[str]:
        return self.dataset.names

    def look(self, index: int) -> Look:
        image, png = self.dataset.files[index]
        reading = self.dataset.reading
        look = look_at(image, reading.max_pixels)
        if look.size is None:
            return look
        try:
            labels = read_labels(png, self.dataset.coding.palette, reading.max_pixels)
        except (UserError, OSError) as problem:
            return Look(None, flaw=(_UNREADABLE, str(problem)))
        if labels.shape != look.size[::-1]:
            sizes = f"{labels.shape[1]} x {labels.shape[0]} pixels, {image} {look.size[0]} x {look.size[1]}"
            return Look(None, flaw=(_OTHER_SIZE, f"{png} is {sizes}"))
        return look._replace(found=count_labels(labels))

    def count(self, index: int, found: dict[int, int]) -> None:
        self._values[index] = found

    def total(self) -> Counter[int]:
        """Pixels by value."""
        counts: Counter[int] = Counter()
        for found in self._values.values():
            counts.update(found)
        return counts

    def settle(self, coding: Coding) -> None:
        """Read the values as what they stand for, and leave out images where one stands for nothing."""
        self.dataset.coding, self.dataset.classes = coding, list(coding.classes)
        kept = []
        for index, size in zip(self.used, self.sizes, strict=True):
            unknown = [value for value, label in self._labels(self._values[index]).items() if label < 0]
            if unknown:
                png = self.dataset.files[index][1]
                self.flaws.add(_NO_CLASS, f"{png} has label {unknown[0]} and there are {len(coding.classes)} classes")
                del self._values[index]
            else:
                kept.append((index, size))
        self.used, self.sizes = [index for index, _ in kept], [size for _, size in kept]

    def _labels(self, values: Sequence[int] | dict[int, int]) -> dict[int, int]:
        known = np.array(list(values), np.int64)
        return dict(zip(known.tolist(), self.dataset.coding.indices(known).tolist(), strict=True))

    def members(self) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in self.dataset.classes]
        for index, values in self._values.items():
            for label in sorted(set(self._labels(values).values()) - {IGNORE}):
                found[label].append(index)
        return found

    def pixels(self) -> NDArray[np.int64]:
        """By label; the last one is those without a label."""
        total = self.total()
        counts = np.zeros(len(self.dataset.classes) + 1, np.int64)
        for value, label in self._labels(total).items():
            counts[-1 if label == IGNORE else label] += total[value]
        return counts

    def classes(self, config: Config) -> tuple[ClassCount, ...]:
        *labelled, _ = self.pixels().tolist()
        rows = zip(self.dataset.classes, self.members(), labelled, strict=True)
        return tuple(ClassCount(n, len(images), pixels=count / max(1, sum(labelled))) for n, images, count in rows)

    def report(self, config: Config, side: int) -> Split:
        pixels = self.pixels()
        split = super().report(config, side)
        return Split(
            split.name, split.images, split.sizes, split.classes, unlabelled=float(pixels[-1] / max(1, pixels.sum()))
        )

    def notes(self) -> list[Finding]:
        return passed_over(self.split, self.dataset.passed_over)


class LabelStudy(Study):
    """An image and a PNG of labels per scene."""

    task = "segment"
    tallies: list[LabelTally]

    def __init__(self, root: Path, reading: Reading) -> None:
        self.settings: dict[str, Any] = {}  # of the reader: ignore_label, map_labels
        self.reason = ""
        super().__init__(root, reading)

    def tally(self, split: str, dataset: Any) -> Tally:
        return LabelTally(split, dataset)

    def open(self, split: str, held_out: HeldOut | None) -> Any:
        return open_scenes(self.root, self.task, split, held_out=held_out, reading=self.reading, **self.settings)

    def settle(self) -> None:
        train = self.tallies[0]
        total = train.total()
        self.settings = propose(train.dataset.coding, total)
        if self.settings:
            self.reason = f"the label PNGs hold the values {_shares(total)}"
        coding = (self.open("train", None) if self.settings else train.dataset).coding
        for tally in self.tallies:
            tally.settle(coding)

    def across(self) -> list[Finding]:
        train = self.tallies[0]
        found = [
            Finding(
                "stops", "train", "label values that stand for no class", len(words), self.reason, _option(name, words)
            )
            for name, words in _as_words(self.settings).items()
        ]
        never = [name for name, count in zip(train.dataset.classes, train.pixels()[:-1], strict=True) if not count]
        if never:
            effect: Any = "stops" if train.dataset.coding.named else "note"
            option = "--skip-bad" if train.dataset.coding.named else ""
            found.append(Finding(effect, "train", "classes without a pixel", len(never), few(never), option))
        if not train.dataset.coding.named:
            what = f"the classes have numbers for names: name them in {self.root / 'classes.txt'}, one per line; for a"
            found.append(Finding("note", "", f"{what} number that means unlabelled pass --ignore-label"))
        return found


def _as_words(settings: dict[str, Any]) -> dict[str, list[str]]:
    return {
        name: list(map(str, value)) if isinstance(value, tuple) else [str(value)] for name, value in settings.items()
    }


def _option(name: str, words: Sequence[str]) -> str:
    return " ".join(["--" + name.replace("_", "-"), *words])


def propose(coding: Coding, counts: Counter[int]) -> dict[str, Any]:
    """Settings with which label values are read that stand for nothing without: `ignore_label` or `map_labels`.

    Masks of 0 and one other number are of two classes. Values of no class, as many as there are classes without a
    pixel, are those classes; else they are unlabelled. Numbers that nobody named close up where most of them never
    occur.

    Args:
        coding: how the set is read.
        counts: pixels by value.
    """
    values = np.array(sorted(counts), np.int64)
    labels = coding.indices(values)
    missing = sorted(set(range(len(coding.classes))) - set(labels.tolist()))
    unknown = values[labels < 0].tolist()
    if coding.palette is not None:
        return {}
    if len(values) == 2 and values[0] == 0 and values[1] > 1 and (len(coding.classes) == 2 or not coding.named):
        return {"map_labels": (f"{values[1]}:1",)}
    if not coding.named:
        gaps = [(old, new) for new, old in enumerate(values[labels != IGNORE].tolist()) if old != new]
        mostly_gaps = len(missing) > len(coding.classes) / 2 and len(gaps) <= _FEW
        return {"map_labels": tuple(f"{old}:{new}" for old, new in gaps)} if mostly_gaps else {}
    if not 0 < len(unknown) <= _FEW:
        return {}
    if len(unknown) == len(missing):
        first = int(coding.zero_is_unlabelled)
        pairs = zip(unknown, missing, strict=True)
        return {"map_labels": tuple(f"{old}:{new + first}" for old, new in pairs)}
    if len(unknown) == 1:
        return {"ignore_label": unknown[0]} if unknown[0] < IGNORE else {"map_labels": (f"{unknown[0]}:{IGNORE}",)}
    return {"map_labels": tuple(f"{value}:{IGNORE}" for value in unknown)}


def _shares(counts: Counter[int]) -> str:
    total = counts.total()
    return few([f"{value} ({pixels / total:.1%})" for value, pixels in sorted(counts.items())])
