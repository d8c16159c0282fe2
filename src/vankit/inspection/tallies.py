"""A set under inspection: the tally of each split, and what is seen only across them."""

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from vankit.data.coco_entries import OUTSIDE
from vankit.data.held_out import Division, HeldOut
from vankit.data.reading import Reading
from vankit.data.walk import UNLISTED, PassedOver
from vankit.errors import MissingFileError, UserError
from vankit.inspection.pictures import BROKEN, CUT_OFF, Contents, Look, look_at
from vankit.inspection.report import ClassCount, Effect, Finding, Sizes, Split
from vankit.training.recipes import Config

_CHUNK = 64  # pictures that a process looks at before it reports
_FEW = 256  # for fewer no process is started


class Flaws:
    """What cannot be used, by kind: how many, and the first one in the reader's words."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, kind: str, example: str, count: int = 1) -> None:
        self.counts[kind] += count
        self.examples.setdefault(kind, example)


class Tally(ABC):
    """What the pictures of one split add up to.

    Args:
        split: its name.
        dataset: its pictures.

    Attributes:
        used: indices of the pictures that can be used.
        sizes: (width, height) of each of them.
        flaws: what cannot be used.
    """

    def __init__(self, split: str, dataset: Any) -> None:
        self.split, self.dataset = split, dataset
        self.used: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.flaws = Flaws()

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    @abstractmethod
    def paths(self) -> Sequence[str]:
        """The image files, by index."""

    def look(self, index: int) -> Look:
        """Open a picture, perhaps in another process."""
        return look_at(self.paths[index], self.dataset.reading.max_pixels)

    def add(self, index: int, look: Look) -> None:
        """Take what was found in a picture."""
        if look.flaw is not None:
            self.flaws.add(*look.flaw)
        if look.size is not None:
            self.used.append(index)
            self.sizes.append(look.size)
            self.count(index, look.found)

    @abstractmethod
    def count(self, index: int, found: Any) -> None:
        """Count what is in a picture that can be used."""

    @abstractmethod
    def members(self) -> list[list[int]]:
        """Indices of the pictures that show each class, by label."""

    @abstractmethod
    def classes(self, config: Config) -> tuple[ClassCount, ...]:
        """The classes, by label.

        Args:
            config: of the training to come.
        """

    def report(self, config: Config, side: int) -> Split:
        """
        Args:
            config: of the training to come.
            side: the shorter one of its pictures.
        """
        return Split(self.split, len(self.used), _sizes(self.sizes, side), self.classes(config))

    def notes(self) -> list[Finding]:
        """What was repaired, passed over, or is worth knowing."""
        return []


def _sizes(sizes: Sequence[tuple[int, int]], side: int) -> Sizes | None:
    if not sizes:
        return None
    array = np.array(sizes)  # (N, 2)
    by_area = np.argsort(array.prod(1), kind="stable")
    smallest, largest, middle = array[by_area[0]], array[by_area[-1]], np.median(array, axis=0).round()
    return Sizes(_pair(smallest), _pair(middle), _pair(largest), below=float((array.min(1) < side).mean()))


def _pair(size: NDArray[Any]) -> tuple[int, int]:
    return int(size[0]), int(size[1])


class Study(ABC):
    """A set under inspection.

    Args:
        root: its folder.
        reading: how its files are read.

    Attributes:
        task: that it is read for.
        tallies: of its splits, train first.
        division: how training would divide it, if it has no val split.
        masks: whether all its objects have one, so that a head with masks can be trained.

    Raises:
        FileNotFoundError, ValueError: there is nothing to train on.
    """

    task: str
    masks = False
    tallies: Sequence[Any]

    def __init__(self, root: Path, reading: Reading) -> None:
        self.root, self.reading = root, reading
        self.division: Division | None = None
        self.refused: dict[str, str] = {}
        self.tallies = [self.tally(split, dataset) for split, dataset in self.open_all()]

    @abstractmethod
    def tally(self, split: str, dataset: Any) -> Tally:
        """An empty tally of a split."""

    @abstractmethod
    def open(self, split: str, held_out: HeldOut | None) -> Any:
        """A split as training opens it."""

    def open_all(self) -> Iterator[tuple[str, Any]]:
        """The splits that there are, train first and whole."""
        yield "train", self.open("train", None)
        for split, held_out in (("val", HeldOut(plain=True)), ("test", None)):
            if self.division is not None and self.division.held_out.plain:  # the set has no splits
                return
            try:
                dataset = self.open(split, held_out)
            except UserError as problem:
                if split == "val" or not isinstance(problem, MissingFileError):
                    self.refused[split] = str(problem)
                continue
            if getattr(dataset, "division", None) is None:
                yield split, dataset
            else:
                self.division = dataset.division

    def settle(self) -> None:  # noqa: B027  most tasks have nothing to decide
        """Decide, once all pictures were looked at, what only the whole set tells."""

    @property
    def to_train_on(self) -> int:
        """Images that training would train on."""
        return len(self.tallies[0].used) - (self.division.count if self.division else 0)

    def findings(self) -> list[Finding]:
        """What would end a training, then the rest."""
        refused = [
            Finding(effect_in(split), split, "it cannot be opened", None, problem)
            for split, problem in self.refused.items()
        ]
        notes = [note for tally in self.tallies for note in tally.notes()]
        return [*refused, *self._too_little(), *self._flaws(), *self.across(), *notes]

    def _too_little(self) -> Iterator[Finding]:
        if not any(self.tallies[0].members()):
            yield Finding("stops", "train", "no picture that can be used shows any class")
        if self.division and not self.division.count:
            yield Finding("stops", "train", "there are too few images to hold any out: add images, or a val split")

    def _flaws(self) -> Iterator[Finding]:
        broken = any(BROKEN in tally.flaws.counts for tally in self.tallies)
        options = {CUT_OFF: "--skip-bad" if broken else "--tolerant", OUTSIDE: "--allow-outside"}
        for tally in self.tallies:
            effect = effect_in(tally.split)
            for kind, count in tally.flaws.counts.most_common():
                option = options.get(kind, "--skip-bad") if effect == "stops" else ""
                yield Finding(effect, tally.split, kind, count, tally.flaws.examples[kind], option)

    def across(self) -> list[Finding]:
        """What is seen only by comparing splits."""
        return []


def effect_in(split: str) -> Effect:
    """What a fault does to training, which never opens the split test."""
    return "note" if split == "test" else "stops"


def counted(
    effect: Effect, split: str, kinds: Mapping[str, int], examples: Mapping[str, str] | None = None
) -> list[Finding]:
    """A finding per kind, most frequent first."""
    return [
        Finding(effect, split, kind, count, (examples or {}).get(kind, ""))
        for kind, count in Counter(kinds).most_common()
        if count
    ]


def passed_over(split: str, passed: PassedOver) -> list[Finding]:
    """A finding per kind of what a walk did not yield; folders that cannot be listed end a training."""
    counts = dict(passed.counts)
    found = []
    if count := counts.pop(UNLISTED, 0):
        effect = effect_in(split)
        option = "--skip-bad" if effect == "stops" else ""
        found.append(Finding(effect, split, UNLISTED, count, str(passed.problems[0][1]), option))
    return [*found, *counted("passed over", split, counts, passed.examples)]


class _Looks(Dataset[Look]):
    def __init__(self, tally: Tally) -> None:
        self.tally = tally

    def __len__(self) -> int:
        return len(self.tally)

    def __getitem__(self, index: int) -> Look:
        return self.tally.look(index)


def look_through(tallies: Sequence[Tally], workers: int) -> Contents:
    """Look at every picture once, and find those of the same content.

    Args:
        tallies: which take what is found.
        workers: processes that look.
    """
    contents = Contents([tally.split for tally in tallies])
    console = Console(stderr=True)
    for number, tally in enumerate(tallies):
        processes = workers if len(tally) > _FEW else 0
        loader = DataLoader(_Looks(tally), _CHUNK, num_workers=processes, collate_fn=list)
        index = 0
        seen = track(loader, f"reading {tally.split}", console=console, transient=True, disable=not console.is_terminal)
        for looks in seen:
            for look in looks:
                tally.add(index, look)
                if look.size is not None:
                    contents.add(number, index, look.digest)
                index += 1
    return contents


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the readers from logging what the inspection reports."""
    logger = logging.getLogger("vankit.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
