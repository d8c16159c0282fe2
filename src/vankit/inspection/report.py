"""What an inspection says of a set."""

import dataclasses
import shlex
from dataclasses import dataclass
from typing import Any, Literal

Effect = Literal["stops", "repaired", "passed over", "note"]


@dataclass(frozen=True)
class Sizes:
    """Sizes of pictures, as (width, height) in pixels.

    Attributes:
        smallest, largest: by area.
        median: of the widths and of the heights.
        below: share of the pictures whose shorter side is smaller than in training, so that they are enlarged, 0 to 1.
    """

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    below: float


@dataclass(frozen=True)
class ClassCount:
    """A class in one split.

    Attributes:
        name: of the class.
        images: that show it.
        objects: boxes, or segments, without crowds; None where images and pixels are all that is counted.
        small: objects with a side shorter than a cell of the head's finest map, in training.
        pixels: share of the labelled pixels, 0 to 1.
        thing: whether it is countable, of a panoptic set.
    """

    name: str
    images: int
    objects: int | None = None
    small: int | None = None
    pixels: float | None = None
    thing: bool | None = None


@dataclass(frozen=True)
class Split:
    """A part of the set, without what cannot be used.

    Attributes:
        name: train, val or test.
        images: that can be used.
        sizes: of them; None if there are none.
        classes: by label.
        empty: images without objects, or without labels where they may have any number.
        crowds: regions of many objects, which no head is trained on.
        unlabelled: share of the pixels without a label, 0 to 1.
    """

    name: str
    images: int
    sizes: Sizes | None
    classes: tuple[ClassCount, ...]
    empty: int | None = None
    crowds: int | None = None
    unlabelled: float | None = None


@dataclass(frozen=True)
class Finding:
    """Something that was met while reading.

    Attributes:
        effect: stops: training would end there; repaired: read all the same; passed over: not read; note: worth
            knowing.
        split: where; empty for the set as a whole.
        what: in the plural, if it is counted.
        count: how many, or None.
        example: the first one, in the reader's words; or which.
        option: of `vankit train`, with which it does not end there; empty if there is none.
    """

    effect: Effect
    split: str
    what: str
    count: int | None = None
    example: str = ""
    option: str = ""

    def __str__(self) -> str:
        number = "" if self.count is None else f" ({self.count:,})"
        return f"{self.what}{number}" + f": {self.example}" * bool(self.example)


@dataclass(frozen=True)
class Copies:
    """Files of the same content, byte by byte, within a split or between two.

    Attributes:
        splits: one or two.
        count: files that repeat another of the split; of two splits, files of the second that the first has too.
        examples: some pairs of such files.
    """

    splits: tuple[str, ...]
    count: int
    examples: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        if len(self.splits) == 1:
            return f"files of {self.splits[0]} that repeat another ({self.count:,})"
        return f"files of {self.splits[1]} that {self.splits[0]} has too ({self.count:,})"


@dataclass(frozen=True)
class Inspection:
    """What a folder of data holds, as `vankit train` would read it.

    Attributes:
        data: the folder.
        task: classify, detect, segment or panoptic.
        tasks: all tasks that it looks made for.
        splits: train, then val and test where they are.
        held_out: (images, of how many) that training would hold out of `train` for want of a val split, or None.
        findings: what was passed over, repaired, cannot be used, or is worth knowing.
        copies: files of the same content.
        side: the shorter side in pixels of a picture in training, with the command to start with.
        options: of that command, each with its reason, which may be empty.
    """

    data: str
    task: str
    tasks: tuple[str, ...]
    splits: tuple[Split, ...]
    held_out: tuple[int, int] | None
    findings: tuple[Finding, ...]
    copies: tuple[Copies, ...]
    side: int
    options: tuple[tuple[str, str], ...]

    @property
    def classes(self) -> list[str]:
        """Names by label."""
        return [each.name for each in self.splits[0].classes]

    @property
    def command(self) -> str:
        """The command to start with."""
        words = [word for option, _ in self.options for word in option.split()]
        return shlex.join(["vankit", "train", self.data, *words])

    @property
    def in_the_way(self) -> list[Finding]:
        """What no option of the command leaves out: training ends there until it is mended."""
        return self.of("stops", with_option=False)

    def of(self, effect: Effect, with_option: bool | None = None) -> list[Finding]:
        """Findings of one effect, perhaps only those with, or without, an option."""
        found = [each for each in self.findings if each.effect == effect]
        return [each for each in found if with_option is None or bool(each.option) == with_option]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        return {**dataclasses.asdict(self), "command": self.command}
