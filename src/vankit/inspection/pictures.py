"""Every picture opened once: whether it can be decoded, its size, and whether another has the same content."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from os import PathLike
from typing import Any, NamedTuple

from vankit.data.images import MAX_PIXELS, load_image, read_size
from vankit.errors import UserError
from vankit.files import open_file
from vankit.inspection.report import Copies

BROKEN = "images that cannot be read"
CUT_OFF = "JPEGs without their end"

_EXAMPLES = 12


class Look(NamedTuple):
    """What a look at one picture finds.

    Attributes:
        size: (width, height) in pixels, upright; None if the picture cannot be used.
        digest: of the file's content.
        flaw: what is wrong with the picture: the kind, in the plural, and the reader's words.
        found: what its task adds.
    """

    size: tuple[int, int] | None
    digest: bytes = b""
    flaw: tuple[str, str] | None = None
    found: Any = None


def look_at(path: str | PathLike[str], max_pixels: int = MAX_PIXELS) -> Look:
    """Open a picture as training would, but decode a JPEG at an eighth of its size.

    For that its whole content is read too, so that one without its end is found.
    """
    try:
        with open_file(path) as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            load_image(file, max_pixels, min_side=1)
        return Look(read_size(path), digest)
    except (UserError, OSError) as problem:
        return Look(None, flaw=(CUT_OFF if _is_cut_off(path, max_pixels) else BROKEN, str(problem)))


def _is_cut_off(path: str | PathLike[str], max_pixels: int) -> bool:
    try:
        load_image(path, max_pixels, min_side=1, tolerant=True)
    except (UserError, OSError):
        return False
    return True


class Contents:
    """Finds files of the same content among those added.

    Args:
        splits: names, in order.
    """

    def __init__(self, splits: Sequence[str]) -> None:
        self.splits = splits
        self._first: dict[bytes, tuple[int, int]] = {}  # (split, index) by digest
        self._groups: dict[bytes, list[tuple[int, int]]] = {}  # where there are several

    def add(self, split: int, index: int, digest: bytes) -> None:
        place = (split, index)
        if (first := self._first.setdefault(digest, place)) is not place:
            self._groups.setdefault(digest, [first]).append(place)

    @property
    def groups(self) -> list[list[tuple[int, int]]]:
        """(split, index) of the files of each content that several have."""
        return list(self._groups.values())

    def copies(self, paths: Sequence[Sequence[str]]) -> list[Copies]:
        """The copies between splits, then those within each.

        Args:
            paths: of the files, by split and index.
        """
        pairs: dict[tuple[int, ...], list[tuple[str, str]]] = defaultdict(list)
        for group in self.groups:
            members: dict[int, list[str]] = defaultdict(list)
            for split, index in group:
                members[split].append(paths[split][index])
            for split, (first, *others) in members.items():
                pairs[(split,)] += [(first, other) for other in others]
            for one, two in combinations(sorted(members), 2):
                pairs[one, two] += [(members[one][0], other) for other in members[two]]
        order = sorted((key for key, found in pairs.items() if found), key=lambda key: (-len(key), key))
        return [
            Copies(tuple(self.splits[i] for i in key), len(pairs[key]), tuple(pairs[key][:_EXAMPLES])) for key in order
        ]
