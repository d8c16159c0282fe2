"""Labelled images for classification: a folder per class, timm's dataset readers, or the generated `shapes`."""

import logging
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vankit.data.held_out import Division, HeldOut, divide
from vankit.data.multilabel import is_multilabel, open_multilabel
from vankit.data.reading import STRICT, Reader, Reading
from vankit.data.shapes import Shapes
from vankit.data.walk import SPLITS, PassedOver, split_folder, subfolders, walk_images
from vankit.errors import MissingFileError, UserError, few
from vankit.files import check_named, read_text

logger = logging.getLogger(__name__)

Transform = Callable[[Image.Image], Any]

_READERS = ("hfds/", "wds/")
_NO_SPLIT = (ValueError, LookupError, AssertionError, RuntimeError)  # how timm and datasets refuse a split
_SHAPES_LENGTH = {"train": 12_000, "val": 1_000}


def open_dataset(
    data: str | PathLike[str],
    split: str,
    transform: Transform,
    size: int = 64,
    seed: int = 0,
    batch_size: int = 1,
    held_out: HeldOut | None = None,
    reading: Reading = STRICT,
) -> Any:
    """Open one split of a labelled image set.

    The split `test` is opened only when asked for by name.

    Args:
        data: an ImageFolder directory (`DATA/train/CLASS/*.jpg`, `DATA/val/CLASS/*.jpg`; or `DATA/CLASS/*.jpg`
            without any split), a CSV of images and their labels or a folder with it (see
            `vankit.data.multilabel.open_multilabel`), the word `shapes`, or a name for timm's create_dataset:
            `hfds/NAME` (Hugging Face), `wds/FOLDER` (WebDataset shards with integer `cls`, timm's `_info.json`, and the
            class names in `classes.txt`, one per line; one process only).
        split: 'train', 'val', or the name of a folder such as 'test'.
        transform: PIL RGB image → sample.
        size: side in pixels of generated `shapes`.
        seed: of generated `shapes`.
        batch_size: of the loader, which the length of a stream of shards depends on.
        held_out: how to divide a folder, or a set of Hugging Face, that has a split `train` and no `val`. Without it
            there is no val then. A folder without any split is divided where `held_out.plain`, else it is
            the whole of either split.
        reading: how forgiving to be with the files of a folder.

    Returns:
        A dataset of (sample, label), or `MultiLabelImages`, with the class names as `classes` (a list of str), and as
        `division` how it was divided, None or missing where it was not. Of a folder, an image that is left out is None.

    Raises:
        FileNotFoundError: there is no such directory or split.
        ValueError: the directory is not an ImageFolder.
    """
    check_named(data=data)
    name = str(data)
    if name == "shapes":
        return Shapes(split, _SHAPES_LENGTH.get(split, 1_000), size, seed, transform)
    if name.startswith(_READERS):
        return _reader_dataset(name, split, transform, batch_size, held_out)
    root = Path(data)
    if is_multilabel(root):
        return open_multilabel(root, split, transform, held_out, reading)
    if not root.is_dir():
        raise MissingFileError(
            f"no dataset at {data}: expected a directory with {split}/CLASS/*.jpg or {split}.csv, the word 'shapes', "
            f"or a name that starts with {', '.join(_READERS)}"
        )
    return _folder_dataset(root, split, transform, held_out, reading)


def has_splits(root: Path) -> bool:
    """Whether a folder of images has folders for its splits, rather than for its classes."""
    return any(split_folder(root, name) for name in (*SPLITS, "test"))


class ClassFolder(Reader):
    """A folder of images per class, perhaps divided into those to train on and those held out.

    Items are (sample, class index); with `reading.skip_bad` None for an image that cannot be read, with a warning.
    Folders without images are no classes; images beside the folders are passed over.

    Args:
        root: the folder.
        transform: PIL RGB image → sample.
        reading: how forgiving to be.

    Attributes:
        classes: names of the folders, sorted.
        samples: (path, class index), by item.
        targets: the class indices.
        passed_over: what else is in the folder.
        empty: names of the folders without images.
        division: how it was divided, or None.

    Raises:
        ValueError: there are no images in folders.
    """

    def __init__(self, root: Path, transform: Transform, reading: Reading) -> None:
        super().__init__(reading)
        self.root, self.transform = root, transform
        self.passed_over = PassedOver()
        self.division: Division | None = None
        by_class = _images_by_class(root, self.passed_over, reading.skip_bad)
        self.classes = [name for name, images in by_class.items() if images]
        self.empty = [name for name, images in by_class.items() if not images]
        self.samples = [(path, label) for label, name in enumerate(self.classes) for path in by_class[name]]
        if not self.samples:
            raise UserError(f"{root} is not an ImageFolder: expected {root}/CLASS/*.jpg, found {self._found()}")
        self.passed_over.log(root)
        if self.empty:
            logger.warning("%s: class folders without images (%d): %s", root, len(self.empty), few(self.empty))

    def _found(self) -> str:
        folders = f"{len(self.empty)} folders without images" if self.empty else ""
        return " and ".join(filter(None, (folders, str(self.passed_over)))) or "nothing: fill it, or take it away"

    @property
    def targets(self) -> list[int]:
        return [label for _, label in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        path, label = self.samples[index]
        try:
            image = self.load(path)
        except (UserError, OSError) as problem:
            self.leave_out(path, problem)
            return None
        return self.transform(image), label

    def relabel(self, classes: Sequence[str]) -> None:
        """Take the classes of the images that the network is trained on.

        Args:
            classes: among which this folder's are.

        Raises:
            ValueError: they are not.
        """
        if unknown := sorted(set(self.classes) - set(classes)):
            raise UserError(
                f"{self.root}: classes without images to train on ({len(unknown)}): {few(unknown)}; add some, or take "
                "the folders away"
            )
        if missing := sorted(set(classes) - set(self.classes)):
            logger.warning("%s: classes without images to validate (%d): %s", self.root, len(missing), few(missing))
        label_of = {name: label for label, name in enumerate(classes)}
        self.samples = [(path, label_of[self.classes[label]]) for path, label in self.samples]
        self.classes = list(classes)

    def divide(self, held_out: HeldOut, split: str, plain: bool) -> None:
        """Keep what is held out, for split val, or else the rest."""
        names = [Path(path).relative_to(self.root).as_posix() for path, _ in self.samples]
        chosen = held_out.choose(names, [self.classes[label] for _, label in self.samples])
        self.division = Division.of(held_out, chosen, plain)
        kept = [sample for sample, out in zip(self.samples, chosen, strict=True) if out == (split == "val")]
        self.samples = kept


def _images_by_class(root: Path, passed_over: PassedOver, skip_bad: bool) -> dict[str, list[str]]:
    """Paths by the name of the folder in `root` that they are in, sorted."""
    images: dict[str, list[str]] = {name: [] for name in subfolders(root)}
    start = len(os.path.join(root, ""))
    for path in walk_images(root, passed_over, skip_bad):
        name, inside, _ = path[start:].partition(os.sep)
        if inside:
            images.setdefault(name, []).append(path)  # a folder may be made meanwhile
        else:
            passed_over.add("images outside the class folders", path)
    return dict(sorted(images.items()))


def _folder_dataset(
    root: Path, split: str, transform: Transform, held_out: HeldOut | None, reading: Reading
) -> ClassFolder:
    plain = not has_splits(root)
    found = {kind: split_folder(root, kind) for kind in {split, *SPLITS}}
    folder = root if plain and split in SPLITS else found[split]
    divided = split in SPLITS and found["val"] is None and held_out is not None and (held_out.plain or not plain)
    if divided and folder is None:
        folder = found["train"]
    if folder is None or (plain and not subfolders(root)):
        names = SPLITS.get(split, (split,))
        raise MissingFileError(f"no {split} split in {root}: expected a folder {' or '.join(names)} in it")
    dataset = ClassFolder(folder, transform, reading)
    if held_out is not None and divided:
        divide(dataset, root, split, held_out, plain)
    return dataset


def _reader_dataset(name: str, split: str, transform: Transform, batch_size: int, held_out: HeldOut | None) -> Any:
    options = {"is_training": split == "train", "batch_size": batch_size, "transform": transform}
    if not name.startswith("hfds/") or split not in SPLITS or held_out is None:  # a stream cannot be divided by class
        return _read(name, split, options)
    try:
        val_set = _read(name, "val", options)
    except UserError:
        dataset = _read(name, "train", options)
        _divide_rows(dataset, held_out, split)
        return dataset
    return val_set if split == "val" else _read(name, split, options)


def _read(name: str, split: str, options: dict[str, Any]) -> Any:
    from timm.data import create_dataset

    reader, _, rest = name.partition("/")
    source = ("wds/shards", rest) if reader == "wds" else (name, None)
    failures = []
    for own_name in SPLITS.get(split, (split,)):
        try:
            dataset = create_dataset(*source, split=own_name, **options)
        except _NO_SPLIT as error:
            failures.append(f"{own_name}: {error}")
            continue
        dataset.classes = _shard_classes(Path(rest)) if reader == "wds" else _class_names(dataset)
        return dataset
    raise UserError(f"cannot read a {split} split of {name}; tried {'; '.join(failures)}")


def _divide_rows(dataset: Any, held_out: HeldOut, split: str) -> None:
    """Keep what is held out of a set of Hugging Face, for split val, or else the rest."""
    rows = dataset.reader.dataset
    chosen = held_out.choose(range(len(rows)), [dataset.classes[label] for label in rows["label"]])
    dataset.division = Division.of(held_out, chosen)
    dataset.reader.dataset = rows.select([i for i, out in enumerate(chosen) if out == (split == "val")])


def _shard_classes(folder: Path) -> list[str]:
    try:
        return read_text(folder / "classes.txt").splitlines()
    except MissingFileError:
        raise MissingFileError(
            f"no classes.txt in {folder}: expected the class names, one per line, in label order"
        ) from None


def _class_names(dataset: Any) -> list[str]:
    reader = dataset.reader
    if mapping := getattr(reader, "class_to_idx", None):
        return [name for name, _ in sorted(mapping.items(), key=lambda item: item[1])]
    feature = getattr(getattr(reader, "dataset", None), "features", {}).get("label")
    names = getattr(feature, "names", None)
    if names is None:
        raise UserError("the dataset names no classes: expected a ClassLabel column `label` or a class map")
    return list(names)


def class_index(names: list[str], known: list[str], named: bool = True) -> NDArray[np.int64]:
    """The network's index of each of the data's classes; by order for a network whose outputs have no names.

    Args:
        names: the data's classes.
        known: the network's; of ImageNet's thousand the WordNet ids are known too.
        named: whether the network's have names.

    Raises:
        ValueError: the network does not know a class.
    """
    if not named and len(names) == len(known):
        return np.arange(len(names))
    places = {name: i for i, name in enumerate(known)}
    if len(known) == 1000:
        places |= {name: i for i, name in enumerate(_wordnet_ids())}
    missing = [name for name in names if name not in places]
    if not missing:
        return np.array([places[name] for name in names])
    raise UserError(
        f"the network does not know {len(missing)} of the data's {len(names)} classes ({', '.join(missing[:5])}); it "
        f"knows {', '.join(known[:5])}{', …' if len(known) > 5 else ''}: pass a checkpoint trained on these classes"
    )


def _wordnet_ids() -> list[str]:
    """Of ImageNet's thousand classes in order, from timm's files; timm itself would load PyTorch."""
    spec = find_spec("timm")
    assert spec is not None and spec.origin is not None
    return read_text(Path(spec.origin).with_name("data") / "_info" / "imagenet_synsets.txt").split()
