"""Semantic segmentation from folders: an image and a PNG of labels per scene, such as ADE20K's or CamVid's."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vankit.data.held_out import Division, HeldOut, divide
from vankit.data.images import load_png
from vankit.data.label_maps import IGNORE, Coding, count_labels, find_palette, in_colour, parse_map, read_labels
from vankit.data.reading import STRICT, Reader, Reading
from vankit.data.walk import SPLITS, PassedOver, split_folder, walk_files, walk_images
from vankit.errors import MissingFileError, UserError
from vankit.files import read_text

logger = logging.getLogger(__name__)

_PNG = frozenset({".png"})
_LABEL_FOLDERS = ("annotations", "labels", "masks")


class SemanticFolder(Reader):
    """Images and label PNGs with the same names in two folders.

    Items are (RGB picture of PIL, {`semantic`: uint8 (H, W), 255 where unlabelled, `image_id`: int}), after
    `transform`; with `reading.skip_bad` None for a scene that cannot be used, with a warning.

    Args:
        images: folder of images.
        labels: folder of label PNGs.
        coding: what their values mean.
        transform: (image, target) → sample, see `vankit.data.augment`.
        reading: how forgiving to be.

    Attributes:
        classes: names by label.
        names: image files, by item.
        passed_over: what else is in the folder of images.
        skipped: (file, reason) of what was left out.
        division: how the images were divided, or None.

    Raises:
        FileNotFoundError: a folder is missing or has no images, or an image has no label PNG.
        ValueError: there are more than 255 classes; on access, a label PNG cannot be used.
    """

    def __init__(
        self,
        images: Path,
        labels: Path,
        coding: Coding,
        transform: Callable[..., Any] | None = None,
        reading: Reading = STRICT,
    ) -> None:
        super().__init__(reading)
        if len(coding.classes) > IGNORE:
            raise UserError(f"{len(coding.classes)} classes: expected at most {IGNORE}, because 255 means unlabelled")
        for folder in (images, labels):
            if not folder.is_dir():
                raise MissingFileError(f"no folder {folder}: expected images and label PNGs in two folders")
        self.coding = coding
        self.classes = list(coding.classes)
        self.transform = transform
        self.passed_over = PassedOver()
        self.division: Division | None = None
        self._images, self._labels = images, labels
        self._files: list[tuple[Path, Path]] = []
        for path in map(Path, walk_images(images, self.passed_over, reading.skip_bad)):
            self._pair(path, labels / path.relative_to(images).with_suffix(".png"))
        self._label_files = [label for _, label in self._files]  # also those that are held out
        self.passed_over.log(images)
        if self.skipped:
            logger.warning("left out %d images without label PNGs, such as %s", len(self.skipped), self.skipped[0][0])
        if not self._files:
            raise MissingFileError(f"no images with label PNGs in {images} and {labels}")

    def _pair(self, image: Path, label: Path) -> None:
        names = (label.name, f"{label.stem}.PNG", f"{label.stem}_mask.png")
        if found := next((path for name in names if (path := label.with_name(name)).is_file()), None):
            self._files.append((image, found))
        elif self.reading.skip_bad:
            self.skipped.append((str(image), f"no {label}"))
        else:
            raise MissingFileError(f"{image} has no label PNG: expected {label}; --skip-bad leaves such images out")

    @property
    def names(self) -> list[str]:
        return [str(image) for image, _ in self._files]

    @property
    def files(self) -> Sequence[tuple[Path, Path]]:
        """The image and the label PNG of each item."""
        return self._files

    def divide(self, held_out: HeldOut, split: str, plain: bool) -> None:
        """Keep what is held out, for split val, or else the rest."""
        names = [image.relative_to(self._images).as_posix() for image, _ in self._files]
        chosen = held_out.choose(names, [""] * len(names))
        self.division = Division.of(held_out, chosen, plain)
        self._files = [pair for pair, out in zip(self._files, chosen, strict=True) if out == (split == "val")]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Any:
        index = range(len(self))[index]
        (path, label_path), reading = self._files[index], self.reading
        try:
            image, labels = self.load(path), self.coding.read(label_path, reading.max_pixels)
            if labels.shape != image.size[::-1]:
                raise UserError(
                    f"{label_path} is {labels.shape[1]}x{labels.shape[0]} pixels and {path} {image.width}x"
                    f"{image.height}: expected the same size"
                )
        except (ValueError, OSError) as problem:
            self.leave_out(str(path), problem)
            return None
        sample = image, {"semantic": labels, "image_id": index}
        return sample if self.transform is None else self.transform(*sample)

    def count_values(self, enough: Callable[[Counter[int]], bool] = lambda counts: False) -> Counter[int]:
        """Pixels by the value that they have in the label PNGs, also in those that are held out.

        Args:
            enough: whether the counts so far will do.

        Raises:
            ValueError: none of them can be read.
        """
        counts: Counter[int] = Counter()
        problem: Exception | None = None
        for path in self._label_files:
            try:
                counts.update(count_labels(read_labels(path, self.coding.palette, self.reading.max_pixels)))
            except (ValueError, OSError) as error:  # which the run meets again, and answers for
                problem = problem or error
                continue
            if enough(counts):
                break
        if problem is not None and not counts:
            raise problem
        return counts

    def check_labels(self) -> None:
        """Refuse labels that would train on nothing: a class that none of them names, or 255 where it is an object.

        It reads labels until enough classes were met; with `reading.skip_bad` a class without pixels is a warning.

        Raises:
            ValueError: a class with a name has no pixel, or 255 alone stands beside 0, or of classes without names most
                have no pixel.
        """
        if not self.coding.named:
            self._check_numbers()
            return
        counts = self.count_values(lambda counts: not self._missing(counts))
        if not (missing := self._missing(counts)):
            return
        names = ", ".join(self.classes[i] for i in missing[:5])
        message = f"{self._labels}: no pixel is of class {names}; the labels hold the values {_shares(counts)}"
        if not self.reading.skip_bad:
            raise UserError(f"{message}: {self._advice(counts, missing)}")
        logger.warning("%s", message)

    def _check_numbers(self) -> None:
        number = len(self.classes)
        counts = self.count_values(lambda counts: number > 1 and 2 * len(self._missing(counts)) <= number)
        if number == 1 and IGNORE in counts and not self.coding.mapping:
            what, advice = (
                "255 means unlabelled, and nothing else stands beside 0",
                "read 255 as a class (--map-labels 255:1)",
            )
        elif 2 * len(self._missing(counts)) > number:
            what = f"without classes.txt the classes are the numbers 0 to {number - 1}, and most never occur"
            advice = f"name the classes in classes.txt, or read a value as another (--map-labels {number - 1}:1)"
        else:
            return
        raise UserError(f"{self._labels}: {what}; the labels hold the values {_shares(counts)}: {advice}")

    def _missing(self, counts: Counter[int]) -> list[int]:
        values = np.array(sorted(counts), np.int64)
        return sorted(set(range(len(self.classes))) - set(self.coding.indices(values).tolist()))

    def _advice(self, counts: Counter[int], missing: Sequence[int]) -> str:
        values = np.array(sorted(counts), np.int64)
        indices = self.coding.indices(values)
        unused = values[(indices < 0) | (values == IGNORE)].tolist()
        wanted = missing[0] + self.coding.zero_is_unlabelled
        pair = f"{unused[0]}:{wanted}" if len(unused) == len(missing) == 1 else "OLD:NEW"
        return (
            f"read a value as another with --map-labels {pair}, or correct the class names; --skip-bad goes on without "
            "the class"
        )


def _shares(counts: Counter[int]) -> str:
    total = counts.total()
    shown = [f"{value} ({pixels / total:.1%})" for value, pixels in sorted(counts.items())[:12]]
    return ", ".join(shown) + " …" * (len(counts) > 12)


def open_semantic(
    root: Path,
    split: str,
    transform: Any,
    ignore_label: int,
    reading: Reading,
    held_out: HeldOut | None = None,
    map_labels: Sequence[str] = (),
) -> SemanticFolder:
    """A split of `root`: `images/SPLIT` with `annotations/SPLIT` (also labels/ or masks/), or both without splits.

    Class names come from a palette file (see `find_palette`), from `objectInfo150.txt` (ADE20K, whose label 0 is
    unlabelled) or from `classes.txt`, one name per line in label order; without any they are the numbers found in the
    training labels.

    Args:
        split: train, val, or the name of a folder.
        transform, reading: see `SemanticFolder`.
        ignore_label: value in label PNGs that counts as unlabelled, in addition to 255.
        held_out: how to divide a folder that has a split `train` and no `val`, or if `held_out.plain` no splits.
        map_labels: values that are read as others, see `parse_map`.

    Raises:
        FileNotFoundError: there is no such split.
        ValueError: see `SemanticFolder`.
    """
    found = {name: _find_split(root, name) for name in {split, *SPLITS}}
    plain = not any(_find_split(root, name) for name in (*SPLITS, "test")) and split in SPLITS
    divided = held_out is not None and split in SPLITS and found["val"] is None and (held_out.plain or not plain)
    folders = _whole(root) if plain else found["train" if divided else split]
    if folders is None:
        names = ", ".join(SPLITS.get(split, (split,)))
        raise MissingFileError(
            f"no {split} split in {root}: expected images/NAME and annotations/NAME, NAME one of {names}"
        )
    images, labels = folders
    training = labels if plain else (_find_split(root, "train") or folders)[1]
    coding = _coding(root, training, ignore_label, parse_map(map_labels), reading)
    if not coding.named and split == "train":
        logger.warning("%s names no classes: they are the numbers 0 to %d", root, len(coding.classes) - 1)
    dataset = SemanticFolder(images, labels, coding, transform, reading)
    if held_out is not None and divided:
        divide(dataset, root, split, held_out, plain)
    return dataset


def is_semantic(root: Path) -> bool:
    """Whether a folder has images and label PNGs in two folders, with or without splits."""
    pairs = [pair for name in (*SPLITS, "test") if (pair := _find_split(root, name))]
    return _whole(root) is not None or any(_has_png(labels) for _, labels in pairs)


def _find_split(root: Path, split: str) -> tuple[Path, Path] | None:
    """`images/SPLIT` and its labels, or `SPLIT/images` and its labels."""
    if (images := split_folder(root / "images", split)) is not None:
        labels = [folder for name in _LABEL_FOLDERS if (folder := split_folder(root / name, split)) is not None]
    elif (inner := split_folder(root, split)) is not None and (inner / "images").is_dir():
        images, labels = inner / "images", [inner / name for name in _LABEL_FOLDERS if (inner / name).is_dir()]
    else:
        return None
    folder = next(filter(_has_png, labels), next(iter(labels), None))
    return None if folder is None else (images, folder)


def _has_png(folder: Path) -> bool:
    return any(walk_files(folder, _PNG, skip_bad=True))


def _whole(root: Path) -> tuple[Path, Path] | None:
    """The folders of a set without splits: label PNGs are directly in one."""
    images = root / "images"
    folder = next((root / name for name in _LABEL_FOLDERS if any((root / name).glob("*.png"))), None)
    return (images, folder) if images.is_dir() and folder is not None else None


def _coding(root: Path, training: Path, ignore_label: int, mapping: dict[int, int], reading: Reading) -> Coding:
    listed = (root / "objectInfo150.txt").is_file() or (root / "classes.txt").is_file()
    if (palette := find_palette(root)) and _colours(training, listed, reading.max_pixels):
        return Coding(palette.classes, ignore_label, mapping=mapping, palette=palette)
    if (table := root / "objectInfo150.txt").is_file():  # tab-separated, the name last, synonyms after commas
        lines = read_text(table).splitlines()[1:]
        names = [line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip()]
        return Coding(names, ignore_label, True, mapping)
    if (table := root / "classes.txt").is_file():
        return Coding(_listed(table), ignore_label, mapping=mapping)
    return _numbered(training, ignore_label, mapping, reading)


def _colours(folder: Path, listed: bool, max_pixels: int) -> bool:
    """Whether a palette file says what the label PNGs mean, rather than being beside ones of numbers."""
    first = next(map(Path, walk_files(folder, _PNG, skip_bad=True)), None)
    try:
        return (
            first is not None
            and in_colour(first, max_pixels)
            and not (listed and load_png(first, max_pixels).mode == "P")
        )
    except UserError:
        return not listed


def _listed(table: Path) -> list[str]:
    names = [line.strip() for line in read_text(table).rstrip().splitlines()]
    if "" in names:
        raise UserError(f"{table}: line {names.index('') + 1} is empty, expected the name of class {names.index('')}")
    return names


def _numbered(folder: Path, ignore_label: int, mapping: dict[int, int], reading: Reading) -> Coding:
    """Classes without names: all numbers up to the highest in the training labels."""
    counts: Counter[int] = Counter()
    for path in map(Path, walk_files(folder, _PNG, skip_bad=reading.skip_bad)):
        try:
            counts.update(count_labels(read_labels(path, None, reading.max_pixels)))
        except UserError:
            if not reading.skip_bad:
                raise
    mapped = {mapping.get(value, value) for value in counts} - {ignore_label, IGNORE}
    highest = max(mapped, default=-1)
    if not 0 <= highest < IGNORE:
        raise UserError(f"the label PNGs in {folder} have no class indices from 0 to 254: highest is {highest}")
    return Coding([str(i) for i in range(highest + 1)], ignore_label, mapping=mapping, named=False)
