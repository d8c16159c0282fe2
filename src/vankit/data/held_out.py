"""A part of the training images that serves as the val split of a set that has none."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from msgspec import Meta

from vankit.schema import Count, check_fields

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

    share: Annotated[float, Meta(gt=0, lt=1, title="val_share", description="more than 0 and less than 1")] = 0.1
    seed: Annotated[int, Meta(ge=0, lt=2**32, description=f"a whole number from 0 to {2**32 - 1}")] = 0
    plain: bool = False
    total: Count = 0

    def __post_init__(self) -> None:
        check_fields(self)

    def choose(self, names: Sequence[Any], groups: Sequence[str]) -> list[bool]:
        """Whether each image is held out: within each group a seeded share, at least one, and never all.

        Images that are added or removed later hardly change what is chosen of the others.

        Args:
            names: of the images; the choice does not depend on the order they come in.
            groups: of the images, such as their classes.
        """
        members = defaultdict(list)
        for i, (name, group) in enumerate(zip(names, groups, strict=True)):
            key = f"{self.seed} {name}".encode("utf-8", "surrogateescape")
            members[group].append((hashlib.sha256(key).digest(), i))
        chosen = [False] * len(names)
        for images in members.values():
            count = min(max(1, round(self.share * len(images))), len(images) - 1)
            for _, i in sorted(images)[:count]:
                chosen[i] = True
        return chosen


@dataclass(frozen=True)
class Division:
    """How a set without a val split was divided.

    Attributes:
        held_out: which images serve as val, with the number of all as `total`.
        count: how many they are.
        before: how many all were when the network was trained; 0 if it is not yet.
    """

    held_out: HeldOut
    count: int
    before: int

    @classmethod
    def of(cls, held_out: HeldOut, chosen: Sequence[bool], plain: bool = False) -> "Division":
        """
        Args:
            held_out: how to choose.
            chosen: see `HeldOut.choose`.
            plain: the folder has no splits.
        """
        return cls(replace(held_out, plain=plain, total=len(chosen)), sum(chosen), held_out.total)


def divide(dataset: Any, data: object, split: str, held_out: HeldOut, plain: bool) -> None:
    """Keep of a set what is held out, for split val, or else the rest; all of another set than the one trained on.

    Args:
        dataset: whose `divide(held_out, split, plain)` does it.
        data: its name.
        plain: it has no splits.
    """
    if plain and held_out.total not in (0, len(dataset)):
        logger.warning(
            "%s has %d images, the set that the network was trained on had %d: taken for another one, all are used",
            *(data, len(dataset), held_out.total),
        )
        return
    dataset.divide(held_out, split, plain)


def announce(dataset: Any, data: object, training: bool = False, log: bool = True) -> HeldOut | None:
    """Which images of `data` are held out, if any are; this is logged.

    Args:
        dataset: a split of it, which says so as `division`.
        data: its name.
        training: add by which options that can be changed.
        log: whether this process is the one that logs.
    """
    division: Division | None = getattr(dataset, "division", None)
    if division is None:
        return None
    if not log:
        return division.held_out
    held_out, total = division.held_out, division.held_out.total
    logger.warning(
        "%s has no val split: %d of its %d training images are held out to validate%s",
        *(data, division.count, total),
        f" (--val-share {held_out.share:g}, --seed {held_out.seed}); a val split would be used instead" * training,
    )
    if division.before not in (0, total):
        logger.warning(
            "%s had %d images when the network was trained, and has %d: some that are held out now may have been "
            "trained on",
            *(data, division.before, total),
        )
    return held_out
