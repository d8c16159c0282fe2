"""The one way into a folder of data: which of its files are images, and what was passed over."""

import glob
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from vankit.data.tree import HIDDEN, PatternTree, WholeTree, is_junk
from vankit.errors import MissingFileError, ReadError, UserError
from vankit.schema import shown

logger = logging.getLogger(__name__)

T = TypeVar("T")

HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in "avif bmp gif j2k jfif jp2 jpeg jpg mpo pbm pfm pgm png pnm ppm tif tiff webp".split()  # noqa: SIM905
)
if find_spec("pillow_heif"):
    IMAGE_SUFFIXES |= HEIC_SUFFIXES

UNLISTED = "folders that cannot be listed"
_SHOWN = 8
_INPUTS = "a file, a folder or a pattern such as 'photos/*.jpg'"


class PassedOver:
    """What a walk did not yield, counted by kind.

    Attributes:
        counts: files, or folders as a whole, by kind: `HIDDEN`, `LOOP`, a suffix such as `.heic`, …
        examples: the first one of each kind.
        problems: folders that cannot be listed, with what the system says.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.problems: list[tuple[str, ReadError]] = []

    def add(self, kind: str, path: str) -> None:
        self.counts[kind] += 1
        self.examples.setdefault(kind, path)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        shown = self.counts.most_common(_SHOWN)
        kinds = [f"{kind} ({number:,}, such as {os.path.basename(self.examples[kind])})" for kind, number in shown]
        heic = 'pip install "vankit[heic]" to read HEIC' if HEIC_SUFFIXES & self.counts.keys() else ""
        return "; ".join(filter(None, (", ".join(kinds), heic)))

    def log(self, folder: str | os.PathLike[str]) -> None:
        """Say once what was passed over; it is a warning where that may be an image."""
        if self:
            level = logging.INFO if self.counts.keys() <= {HIDDEN} else logging.WARNING
            logger.log(level, "%s: passed over %s", folder, self)


def is_image(name: str) -> bool:
    """Whether a file of this name is an image, by its suffix."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def walk_images(
    folder: str | os.PathLike[str], passed_over: PassedOver | None = None, skip_bad: bool = False
) -> Iterator[str]:
    """The image files in a folder and its subfolders, see `walk_files`."""
    return walk_files(folder, IMAGE_SUFFIXES, passed_over, skip_bad)


def walk_files(
    folder: str | os.PathLike[str],
    suffixes: frozenset[str],
    passed_over: PassedOver | None = None,
    skip_bad: bool = False,
) -> Iterator[str]:
    """The files in a folder and its subfolders that have certain suffixes, lazily, in name order.

    Hidden and junk names are skipped. Symbolic links are followed, but no folder is walked twice: not by a link to
    another part of the same folder, nor by a second link to the same place.

    Args:
        folder: to walk.
        suffixes: in lower case.
        passed_over: takes what was not yielded.
        skip_bad: pass over folders that cannot be listed, instead of ending.

    Raises:
        ReadError: a folder cannot be listed.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    for path, problem in WholeTree(os.fspath(folder), suffixes, passed_over.add).walk():
        if problem is None:
            yield path
        elif skip_bad:
            passed_over.add(UNLISTED, path)
            passed_over.problems.append((path, problem))
        else:
            raise ReadError(f"{problem}; --skip-bad leaves such folders out")


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden and junk ones.

    Raises:
        ReadError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not is_junk(entry.name) and os.path.isdir(entry.path))
    except OSError as error:
        raise ReadError(f"cannot list {folder}: {error.strerror or error}") from None


def find_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """The image files that files, folders and glob patterns name, lazily, argument by argument.

    A file is yielded whatever its suffix, and also if it does not exist, so that whoever opens it reports it without
    losing the rest; and so is a folder that cannot be listed. A folder is walked as by `walk_images`, with a line on
    what it passed over; a pattern (`**` crosses folders) matches files in name order, not hidden ones, and walks no
    folder twice. Both keep `IMAGE_SUFFIXES` only.

    Args:
        paths: one path or pattern, or several.

    Raises:
        FileNotFoundError: a folder or pattern held no image, or a path is a URL; raised once, after all other images.
    """
    barren, urls = [], []
    for path in _one_by_one(paths):
        name = os.fspath(path)
        if os.path.isdir(name):
            found = _in_folder(name)
        elif not os.path.exists(name) and glob.has_magic(name):
            found = _matching(name)
        elif "://" in name and not os.path.exists(name):
            urls.append(name)
            continue
        else:
            yield Path(name)
            continue
        first = next(found, None)
        if first is None:
            barren.append(name)
            continue
        yield Path(first)
        yield from map(Path, found)
    if urls:
        raise MissingFileError(
            f"{urls[0]} is a URL, which is read only with workers on Ray (--workers ray): download it first"
        )
    if barren:
        raise MissingFileError(
            f"no images in {', '.join(barren)}: expected a folder or pattern (such as 'photos/**/*.jpg') that holds "
            f"files ending in {' '.join(sorted(IMAGE_SUFFIXES))}"
        )


def _one_by_one(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Iterator[str | os.PathLike[str]]:
    if isinstance(paths, bytes) or not isinstance(paths, str | os.PathLike | Iterable):
        raise UserError(f"inputs is {shown(paths)}: expected {_INPUTS}, several of them in a list")
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        if not isinstance(path, str | os.PathLike) or path == "":
            raise UserError(f"an input is {shown(path)}: expected {_INPUTS}")
        yield path


def begin(images: Iterator[T]) -> Iterator[T]:
    """The same images, the first of them found at once; and so is that there are none, where that raises an error."""
    first = list(itertools.islice(images, 1))
    return itertools.chain(first, images)


def find_inputs(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], output: str | os.PathLike[str] | None = None
) -> Iterator[Path]:
    """`find_images` for a run that writes into a folder: what the folder holds is not an input.

    Args:
        paths: see `find_images`.
        output: the folder; None for none.

    Raises:
        ValueError: one of the paths lies in the folder; raised at once, unlike the errors of `find_images`.
    """
    given = list(_one_by_one(paths))
    if output is None:
        return find_images(given)
    folder = Path(os.path.realpath(output))
    if inside := [path for path in given if _is_in(path, folder)]:
        raise UserError(
            f"{inside[0]} lies in the output folder {output}, where it could be overwritten: choose another"
        )
    return (path for path in find_images(given) if not _is_in(path, folder))


def _is_in(path: str | os.PathLike[str], folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(folder)


def _in_folder(folder: str) -> Iterator[str]:
    passed_over = PassedOver()
    for path, _ in WholeTree(folder, IMAGE_SUFFIXES, passed_over.add).walk():
        yield path
    passed_over.log(folder)


def _matching(pattern: str) -> Iterator[str]:
    tree = PatternTree(pattern, IMAGE_SUFFIXES)
    return (path for path, _ in tree.walk()) if os.path.isdir(tree.folder) else iter(())


# never the test images for validation, by which the best weights are chosen
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid")}
_SPLIT_NAMES = {"test", *SPLITS["train"], *SPLITS["val"]}


def split_folder(root: Path, split: str) -> Path | None:
    """The folder of a split in `root`, by any of its names.

    Names in capitals count only where they cannot be a class, such as `Train` beside `Bus`.

    Args:
        root: that holds it.
        split: train, val, or the name of another folder such as test.
    """
    if not root.is_dir():
        return None
    found = subfolders(root)
    split_names = [name for name in found if name.lower() in _SPLIT_NAMES]
    lower = {name.lower(): name for name in found} if len(split_names) > 1 or split_names == found else {}
    names = SPLITS.get(split, (split,))
    return next(
        (root / known[name] for known in ({n: n for n in found}, lower) for name in names if name in known), None
    )
