"""A part of the training images that serves as the val split of a set that has none."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from vankit.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """Which images are held out.

    Attributes:
        share: part of the images, between 0 and 1.
        seed: of the choice, 0 to 2**32 - 1.
        plain: hold images out of a folder without any split too.
        total: images of the set that was divided, by which it is known again; 0 if none was yet.

    Raises:
        ValueError: a value is out of range.
    """

    share: float = 0.1
    seed: int = 0
    plain: bool = False
    total: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"val_share is {self.share}, expected more than 0 and less than 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}, expected 0 to {2**32 - 1}")

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "HeldOut":
        """What a checkpoint says of its training run.

        Raises:
            ValueError: a value is out of range.
        """
        return cls(**{f.name: metadata[f.name] for f in fields(cls) if f.name in metadata})

    def choose(self, names: Sequence[Any], groups: Sequence[str]) -> list[bool]:
        """Whether each image is held out: within each group a seeded share, at least one, and never all.

        Args:
            names: of the images, which can be sorted; the choice does not depend on the order they come in.
            groups: of the images, such as their classes.
        """
        members = defaultdict(list)
        for i in sorted(range(len(names)), key=names.__getitem__):
            members[groups[i]].append(i)
        chosen = [False] * len(names)
        for group, images in members.items():
            count = min(max(1, round(self.share * len(images))), len(images) - 1)
            # NumPy keeps RandomState's numbers the same in all its versions
            order = np.random.RandomState([self.seed, *group.encode("utf-8", "surrogateescape")])
            for place in order.permutation(len(images))[:count]:
                chosen[images[place]] = True
        return chosen


@dataclass(frozen=True)
class Division:
    """How a set without a val split was divided.

    Attributes:
        held_out: which images serve as val.
        count: their number.
        total: number of images, those to train on included.
    """

    held_out: HeldOut
    count: int
    total: int

    @classmethod
    def of(cls, held_out: HeldOut, chosen: Sequence[bool], plain: bool = False) -> "Division":
        """
        Args:
            chosen: see `HeldOut.choose`.
            plain: the folder has no splits.
        """
        return cls(replace(held_out, plain=plain, total=len(chosen)), sum(chosen), len(chosen))


def announce(dataset: Any, data: object, log: bool = True) -> HeldOut | None:
    """Which images of `data` are held out, if any are; this is logged.

    Args:
        dataset: a split of it, which says so as `division`.
        data: its name.
        log: whether this process is the one that logs.
    """
    division: Division | None = getattr(dataset, "division", None)
    if division is None:
        return None
    if log:
        logger.warning(
            "%s has no folder val: %d of its %d training images are held out to validate (--val-share %g, seed %d); "
            "a folder val would be used instead",
            *(data, division.count, division.total, division.held_out.share, division.held_out.seed),
        )
    return division.held_out
