"""Images with any number of labels each, as CSV files name them."""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vankit.data.held_out import Division, HeldOut, divide
from vankit.data.label_tables import LabelTable, read_labels
from vankit.data.reading import STRICT, Reader, Reading
from vankit.data.walk import walk_images
from vankit.errors import MissingFileError, UserError, few

logger = logging.getLogger(__name__)

TABLES = {"train": ("train.csv", "training.csv"), "val": ("val.csv", "validation.csv", "valid.csv")}
_WITHOUT_SPLITS = "labels.csv"


class MultiLabelImages(Reader):
    """Images that each have any number of the classes.

    Items are (sample, float32 (classes,) of 0 and 1); with `reading.skip_bad` None for an image that cannot be read.

    Args:
        samples: per image its path and the ascending indices of its classes.
        classes: names by index.
        transform: PIL RGB image → sample.
        source: where the labels are, for messages.
        names: of the images, by which those to hold out are chosen.
        reading: how forgiving to be.

    Attributes:
        division: how the set was divided, or None.
    """

    division: Division | None = None

    def __init__(
        self,
        samples: list[tuple[str, tuple[int, ...]]],
        classes: Sequence[str],
        transform: Callable[[Image.Image], Any],
        source: str,
        names: Sequence[str],
        reading: Reading = STRICT,
    ) -> None:
        super().__init__(reading)
        self._names = names
        self.samples, self.classes, self.transform, self.source = samples, list(classes), transform, source

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Any:
        path, labels = self.samples[i]
        try:
            image = self.load(path)
        except (UserError, OSError) as problem:
            self.leave_out(path, problem)
            return None
        target = np.zeros(len(self.classes), np.float32)
        target[list(labels)] = 1
        return self.transform(image), target

    def counts(self) -> NDArray[np.int64]:
        """(classes,) images that have each class."""
        labels = [label for _, labels in self.samples for label in labels]
        return np.bincount(np.array(labels, np.int64), minlength=len(self.classes))

    def divide(self, held_out: HeldOut, split: str, plain: bool) -> None:
        """Keep what is held out, for split val, or else the rest: a share of the images by their rarest class."""
        rank = np.argsort(np.argsort(self.counts(), kind="stable"))
        groups = [str(min(labels, key=lambda label: rank[label], default="")) for _, labels in self.samples]
        chosen = held_out.choose(self._names, groups)
        self.division = Division.of(held_out, chosen, plain)
        self.samples = [sample for sample, out in zip(self.samples, chosen, strict=True) if out == (split == "val")]


def is_multilabel(data: Path) -> bool:
    """Whether this is a CSV of images with labels, or a folder with one and without folders for classes."""
    return bool(_tables(data))


@cache
def _say_passed_over(folder: Path, table: Path) -> None:
    logger.warning("%s has folders for classes, so %s is not read: for multi-label pass the CSV", folder, table.name)


def open_multilabel(
    data: Path, split: str, transform: Callable[[Image.Image], Any], held_out: HeldOut | None, reading: Reading = STRICT
) -> MultiLabelImages:
    """Open one split of a multi-label set; see `vankit.data.folders.open_dataset`.

    The set is a folder with train.csv and val.csv, or labels.csv alone; or such a file itself. A CSV of another name
    is a set without splits. What is in them see `vankit.data.label_tables.read_labels`.

    Raises:
        FileNotFoundError: there is no such split, or an image is missing.
        ValueError: a CSV cannot be read as such, or a label of it is not among those of train.csv.
    """
    tables = _tables(data)
    plain = "" in tables
    divided = split in TABLES and "val" not in tables and held_out is not None and (held_out.plain or not plain)
    path = _table_of(split, tables, divided)
    if path is None or not path.is_file():
        raise MissingFileError(f"no {split} split in {data}: expected a file {split}.csv in its folder")
    train = read_labels(tables["train"]) if "train" in tables else None
    table = train if train is not None and path == train.path else read_labels(path, train)
    if split == "val" and train is not None and table is not train:
        _warn_of_common_files(train, table)
    dataset = _dataset(table, transform, reading)
    if held_out is not None and divided:
        divide(dataset, data, split, held_out, plain)
    return dataset


def _table_of(split: str, tables: dict[str, Path], divided: bool) -> Path | None:
    if "" in tables:
        return tables[""] if split in TABLES else None
    if split not in TABLES:
        return next(iter(tables.values())).with_name(f"{split}.csv")
    return tables.get("train" if divided else split)


def check_kind(dataset: Any, multi_label: bool, data: object) -> None:
    """Refuse images with any number of labels for a network that gives one class, and the other way round.

    Raises:
        ValueError: they do not go together.
    """
    kinds = ("one class per image", "any number of labels per image")
    found = isinstance(dataset, MultiLabelImages)
    if found != multi_label:
        raise UserError(
            f"{data} has {kinds[found]}, and the network gives {kinds[multi_label]}: pass a checkpoint that was "
            "trained on such data"
        )


def announce_labels(train: MultiLabelImages, val: MultiLabelImages, data: object, log: bool = True) -> None:
    """Log what the set was taken for, and what in it cannot be learnt or measured.

    Args:
        data: its name.
        log: whether this process is the one that logs.

    Raises:
        ValueError: no image of one of the two has a label.
    """
    counts = {"train on": train.counts(), "validate": val.counts()}
    for use, count in counts.items():
        if not count.any():
            raise UserError(f"{data}: no image to {use} has a label: expected some that have")
    if not log:
        return
    images, labels = len(train) + len(val), sum(count.sum() for count in counts.values())
    logger.warning(
        "%s: multi-label, %d classes, %s images, %.1f labels per image (%s)",
        *(data, len(train.classes), f"{images:,}", labels / images, train.source),
    )
    if all(len(held) == 1 for part in (train, val) for _, held in part.samples):
        logger.warning("every image has one label: if that is always so, put them into folders, train/CLASS/*.jpg")
    effects = "these will not be learnt", "these have no part in mAP, and 0.5 as their threshold"
    for (use, count), effect in zip(counts.items(), effects, strict=True):
        if missing := [train.classes[i] for i in np.flatnonzero(count == 0)]:
            logger.warning("no image to %s has the label %s: %s", use, few(missing), effect)


def _tables(data: Path) -> dict[str, Path]:
    """The set's CSV files by split, "" for one that is all of it; none where it is not a multi-label set."""
    a_file = data.suffix.lower() == ".csv" and data.is_file()
    if a_file and data.name not in TABLES["train"]:
        return {"": data}
    folder = data.parent if a_file else data
    splits = {split: [folder / name for name in names] for split, names in TABLES.items()}
    tables = {split: path for split, paths in splits.items() for path in paths[::-1] if path.is_file()}
    if not tables and (folder / _WITHOUT_SPLITS).is_file():
        tables = {"": folder / _WITHOUT_SPLITS}
    if tables and not a_file and _has_class_folders(folder):
        _say_passed_over(folder, next(iter(tables.values())))
        return {}
    return tables


def _has_class_folders(root: Path) -> bool:
    """Whether there are folders of images for classes; one alone, or images, may hold what a CSV names."""
    splits = [root / Path(name).stem for names in TABLES.values() for name in names]
    parents = [folder for folder in splits if folder.is_dir()] or [root]
    return any(sum(map(_is_class_folder, parent.iterdir())) > 1 for parent in parents)


def _is_class_folder(path: Path) -> bool:
    return path.name != "images" and path.is_dir() and any(walk_images(path, skip_bad=True))


def _dataset(table: LabelTable, transform: Callable[[Image.Image], Any], reading: Reading) -> MultiLabelImages:
    index = {name: i for i, name in enumerate(table.classes)}
    # few are different, and there may be millions of images
    indices = {labels: tuple(sorted(index[label] for label in labels)) for labels in set(table.files.values())}
    samples = [
        (path, indices[labels])
        for path, labels in zip(table.paths(reading.skip_bad), table.files.values(), strict=True)
    ]
    return MultiLabelImages(samples, table.classes, transform, table.source, list(table.files), reading)


def _warn_of_common_files(train: LabelTable, val: LabelTable) -> None:
    if common := train.files.keys() & val.files.keys():
        logger.warning(
            "%d files, such as %s, are in %s and in %s: they are validated with and trained on",
            *(len(common), min(common), val.path, train.path.name),
        )
