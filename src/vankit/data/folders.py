"""Labelled images for classification: a folder per class, timm's dataset readers, or the generated `shapes`."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data import ImageNetInfo, create_dataset
from torchvision.datasets import ImageFolder

from vankit.data.images import IMAGE_SUFFIXES, load_image
from vankit.data.shapes import Shapes
from vankit.errors import MissingFileError, UserError

Transform = Callable[[Image.Image], Any]

SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}
_READERS = ("hfds/", "wds/")
_NO_SPLIT = (ValueError, KeyError, AssertionError, RuntimeError)  # how timm and datasets refuse a split
_SHAPES_LENGTH = {"train": 12_000, "val": 1_000}


def open_dataset(
    data: str | PathLike[str],
    split: str,
    transform: Transform,
    size: int = 64,
    seed: int = 0,
    batch_size: int = 1,
) -> Any:
    """Open one split of a labelled image set.

    Args:
        data: an ImageFolder directory (`DATA/train/CLASS/*.jpg`, `DATA/val/CLASS/*.jpg`; for `val` also
            `DATA/CLASS/*.jpg`), the word `shapes`, or a name for timm's create_dataset: `hfds/NAME` (Hugging
            Face), `wds/FOLDER` (WebDataset shards with integer `cls`, timm's `_info.json`, and the class names in
            `classes.txt`, one per line; one process only).
        split: 'train', 'val', or the name of a folder such as 'test'.
        transform: PIL RGB image → sample.
        size: side in pixels of generated `shapes`.
        seed: of generated `shapes`.
        batch_size: of the loader, which the length of a stream of shards depends on.

    Returns:
        A dataset of (sample, label) with the class names as `classes` (a list of str).

    Raises:
        FileNotFoundError: there is no such directory or split.
        ValueError: the directory is not an ImageFolder.
    """
    name = str(data)
    if name == "shapes":
        return Shapes(split, _SHAPES_LENGTH.get(split, 1_000), size, seed, transform)
    if name.startswith(_READERS):
        return _reader_dataset(name, split, transform, batch_size)
    root = Path(data)
    if not root.is_dir():
        raise MissingFileError(
            f"no dataset at {data}: expected a directory with {split}/CLASS/*.jpg, the word 'shapes', "
            f"or a name that starts with {', '.join(_READERS)}"
        )
    return _folder_dataset(root, split, transform)


def _folder_dataset(root: Path, split: str, transform: Transform) -> ImageFolder:
    folder = next((root / name for name in SPLITS.get(split, (split,)) if (root / name).is_dir()), None)
    if folder is None and split == "val" and not any((root / name).is_dir() for name in SPLITS["train"]):
        folder = root
    if folder is None:
        raise MissingFileError(
            f"no {split} split in {root}: expected one of {', '.join(SPLITS.get(split, (split,)))} in it"
        )
    try:
        return ImageFolder(
            str(folder), transform, loader=load_image, is_valid_file=lambda p: Path(p).suffix.lower() in IMAGE_SUFFIXES
        )
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not an ImageFolder: expected {folder}/CLASS/*.jpg; {error}") from None


def _reader_dataset(name: str, split: str, transform: Transform, batch_size: int) -> Any:
    reader, _, rest = name.partition("/")
    options = {"is_training": split == "train", "batch_size": batch_size, "transform": transform}
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


def _shard_classes(folder: Path) -> list[str]:
    try:
        return (folder / "classes.txt").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
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
        places |= {name: i for i, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    missing = [name for name in names if name not in places]
    if not missing:
        return np.array([places[name] for name in names])
    raise UserError(
        f"the network does not know {len(missing)} of the data's {len(names)} classes ({', '.join(missing[:5])}); it "
        f"knows {', '.join(known[:5])}{', …' if len(known) > 5 else ''}: pass a checkpoint trained on these classes"
    )
