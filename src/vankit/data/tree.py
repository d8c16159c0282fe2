"""Folders, entry by entry: each once whatever links there are, and as an error what cannot be looked into."""

import errno
import fnmatch
import glob
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

from vankit.errors import ReadError

Entry = os.DirEntry[str]
Found = tuple[str, ReadError | None]

HIDDEN = "hidden and system files"
LOOP = "links into the same folder"
BROKEN = "broken links"
NO_FILES = "not regular files"

_JUNK = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"})


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one that systems and tools leave behind."""
    return name.startswith(".") or name.lower() in _JUNK


class Tree(ABC):
    """What is in a folder and its subfolders.

    Args:
        folder: that is walked.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @abstractmethod
    def considers(self, entry: Entry) -> bool:
        """Whether an entry may be of interest, by its name and place."""

    @abstractmethod
    def enters(self, entry: Entry) -> bool:
        """Whether a folder is walked; it is asked once for each."""

    @abstractmethod
    def takes(self, entry: Entry) -> bool:
        """Whether to yield what is no folder."""

    def pass_over(self, kind: str, path: str) -> None:  # noqa: B027  a pattern says what is wanted
        """Take note of what is not yielded."""

    def order(self, entry: Entry) -> str:
        """By which the entries of a folder are sorted."""
        return entry.name

    def walk(self) -> Iterator[Found]:
        """Paths, lazily; with an error those of folders that cannot be listed and links that cannot be followed."""
        waiting = [self._entries(self.folder)]  # rather than recursion, for folders may be nested deeply
        while waiting:
            entry = next(waiting[-1], None)
            if entry is None:
                waiting.pop()
            elif isinstance(entry, tuple):
                yield entry
            elif self.considers(entry):
                try:
                    if not entry.is_dir():
                        if self.takes(entry):
                            yield entry.path, None
                    elif self.enters(entry):
                        waiting.append(self._entries(entry.path))
                except OSError as error:
                    if error.errno == errno.ELOOP:
                        self.pass_over(BROKEN, entry.path)
                    else:
                        yield entry.path, _unread("read", entry.path, error)

    def _entries(self, folder: str) -> Iterator[Entry | Found]:
        found: list[Entry] = []
        try:
            with os.scandir(folder) as entries:
                found.extend(entries)
        except OSError as error:
            yield folder, _unread("list", folder, error)
        yield from sorted(found, key=self.order)


def _unread(how: str, path: str, error: OSError) -> ReadError:
    return ReadError(f"cannot {how} {path}: {error.strerror or error}")


def identity(path: str) -> tuple[int, int]:
    """What is the same for all names of a file or folder."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


class WholeTree(Tree):
    """All files with certain suffixes, without hidden and junk names.

    Symbolic links are followed, but no folder is walked twice: not by a link to another part of the same folder, nor by
    a second link to the same place.

    Args:
        folder: that is walked.
        suffixes: of the files, in lower case.
        note: takes the kind and the path of what is passed over.
    """

    def __init__(self, folder: str, suffixes: frozenset[str], note: Callable[[str, str], None]) -> None:
        super().__init__(folder)
        self.suffixes, self.note = suffixes, note
        self.root = os.path.realpath(folder)
        self.seen = {identity(self.root)} if os.path.exists(self.root) else set()  # it may vanish at any time

    def pass_over(self, kind: str, path: str) -> None:
        self.note(kind, path)

    def considers(self, entry: Entry) -> bool:
        if junk := is_junk(entry.name):
            self.pass_over(HIDDEN, entry.path)
        return not junk

    def enters(self, entry: Entry) -> bool:
        if known := self._leads_inside(entry) or (own := identity(entry.path)) in self.seen:
            self.pass_over(LOOP, entry.path)
        else:
            self.seen.add(own)
        return not known

    def _leads_inside(self, entry: Entry) -> bool:
        """Whether a link leads to what is walked under its own name, or to what holds the folder."""
        if not entry.is_symlink():
            return False
        target = os.path.realpath(entry.path)
        return os.path.commonpath((target, self.root)) in (self.root, target)

    def takes(self, entry: Entry) -> bool:
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.is_file():
            if suffix in self.suffixes:
                return True
            self.pass_over(suffix or "files without a suffix", entry.path)
        else:
            broken = entry.is_symlink() and not os.path.exists(entry.path)
            self.pass_over(BROKEN if broken else NO_FILES, entry.path)
        return False


class PatternTree(Tree):
    """All files that match a pattern as of `glob`, `**` crossing folders, and have certain suffixes.

    Hidden and junk names match only where the pattern starts as they do. Links are followed, but no folder is walked
    twice with the same rest of the pattern.

    Args:
        pattern: with `*`, `?` or `[…]` in it.
        suffixes: of the files, in lower case.
    """

    def __init__(self, pattern: str, suffixes: frozenset[str]) -> None:
        parts = Path(pattern).parts
        first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        super().__init__(str(Path(*parts[:first])))
        self.parts, self.suffixes = parts[first:], suffixes
        self.places = {self.folder: self._with_skipped({0})}  # in the pattern, by folder
        self.seen: set[tuple[tuple[int, int], frozenset[int]]] = set()

    def _with_skipped(self, places: set[int]) -> frozenset[int]:
        """`**` also stands for no folder."""
        for place, part in enumerate(self.parts):
            if place in places and part == "**":
                places.add(place + 1)
        return frozenset(places)

    def _places_of(self, entry: Entry) -> frozenset[int]:
        """Where in the pattern one is after an entry; at its end if the entry matches."""
        return self._with_skipped(
            {
                place + (self.parts[place] != "**")
                for place in self.places[os.path.dirname(entry.path)]
                if place < len(self.parts) and _matches(entry.name, self.parts[place])
            }
        )

    def considers(self, entry: Entry) -> bool:
        return bool(self._places_of(entry))

    def enters(self, entry: Entry) -> bool:
        places = self._places_of(entry)
        if places == {len(self.parts)} or (key := (identity(entry.path), places)) in self.seen:
            return False
        self.seen.add(key)
        self.places[entry.path] = places
        return True

    def takes(self, entry: Entry) -> bool:
        suffix = os.path.splitext(entry.name)[1].lower()
        return len(self.parts) in self._places_of(entry) and suffix in self.suffixes and entry.is_file()

    def order(self, entry: Entry) -> str:
        """So that paths come sorted as text."""
        try:
            return entry.name + os.sep * entry.is_dir()
        except OSError:
            return entry.name


def _matches(name: str, part: str) -> bool:
    if is_junk(name) and not part.startswith(name[0]):
        return False
    return part == "**" or fnmatch.fnmatch(name, part)
