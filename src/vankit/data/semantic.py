"""Semantic segmentation from folders: an image and a PNG of labels per scene, such as ADE20K's or CamVid's."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors

from vankit.data.folders import SPLITS
from vankit.data.held_out import Division, HeldOut
from vankit.data.images import IMAGE_SUFFIXES, load_image
from vankit.errors import MissingFileError, UserError
from vankit.files import read_text

logger = logging.getLogger(__name__)

IGNORE = 255  # the label of pixels without one
_LABEL_FOLDERS = ("annotations", "labels", "masks")


class SemanticFolder(Dataset[Any]):
    """Images and label PNGs with the same names in two folders.

    Items are (`tv_tensors.Image` uint8 (3, H, W), {`semantic`: `tv_tensors.Mask` uint8 (H, W), 255 where unlabelled,
    `image_id`: int}), after `transform`.

    Args:
        images: folder of images.
        labels: folder of single-channel PNGs with a class index per pixel.
        classes: names by index.
        transform: (image, target) → (image, target).
        ignore_label: index that counts as unlabelled, in addition to 255.
        zero_is_unlabelled: indices start at 1, and 0 is unlabelled, as in ADE20K.
        skip_bad: leave out what cannot be used and list it in `skipped`, instead of raising.

    Attributes:
        classes: names by label.
        names: image files, by item.
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
        classes: Sequence[str],
        transform: Callable[..., Any] | None = None,
        ignore_label: int = IGNORE,
        zero_is_unlabelled: bool = False,
        skip_bad: bool = False,
    ) -> None:
        if len(classes) > IGNORE:
            raise UserError(f"{len(classes)} classes: expected at most {IGNORE}, because 255 means unlabelled")
        for folder in (images, labels):
            if not folder.is_dir():
                raise MissingFileError(f"no folder {folder}: expected images and label PNGs in two folders")
        self.classes = list(classes)
        self.transform = transform
        self.ignore_label = ignore_label
        self.zero_is_unlabelled = zero_is_unlabelled
        self.skip_bad = skip_bad
        self.skipped: list[tuple[str, str]] = []
        self.division: Division | None = None
        self._files: list[tuple[Path, Path]] = []
        for path in sorted(images.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                self._pair(path, labels / path.relative_to(images).with_suffix(".png"))
        if self.skipped:
            logger.warning("left out %d images without label PNGs, such as %s", len(self.skipped), self.skipped[0][0])
        if not self._files:
            raise MissingFileError(f"no images with label PNGs in {images} and {labels}")

    def _pair(self, image: Path, label: Path) -> None:
        if label.is_file():
            self._files.append((image, label))
        elif self.skip_bad:
            self.skipped.append((str(image), f"no {label}"))
        else:
            raise MissingFileError(f"{image} has no label PNG: expected {label}; --skip-bad leaves such images out")

    @property
    def names(self) -> list[str]:
        return [str(image) for image, _ in self._files]

    def divide(self, held_out: HeldOut, split: str, images: Path) -> None:
        """Keep what is held out, for split val, or else the rest.

        Args:
            images: the folder of the images, by whose paths in it they are chosen.
        """
        names = [image.relative_to(images).as_posix() for image, _ in self._files]
        chosen = held_out.choose(names, [""] * len(names))
        self.division = Division.of(held_out, chosen)
        self._files = [pair for pair, out in zip(self._files, chosen, strict=True) if out == (split == "val")]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Any:
        """One item; with `skip_bad` None for a scene that cannot be used, with a warning."""
        index = range(len(self))[index]
        try:
            image, semantic = self._load(index)
        except (ValueError, OSError) as error:
            if not self.skip_bad:
                raise
            self._skip(str(self._files[index][0]), str(error))
            return None
        target = {"semantic": tv_tensors.Mask(torch.from_numpy(semantic)), "image_id": index}
        sample = tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1)), target
        return sample if self.transform is None else self.transform(*sample)

    def _skip(self, name: str, reason: str) -> None:
        if (name, reason) not in self.skipped:
            self.skipped.append((name, reason))
            logger.warning("left out %s (%d so far): %s", name, len(self.skipped), reason)

    def _load(self, index: int) -> tuple[Image.Image, NDArray[np.uint8]]:
        path, label_path = self._files[index]
        image = load_image(path)
        labels = read_labels(label_path)
        if labels.shape != image.size[::-1]:
            raise UserError(
                f"{label_path} is {labels.shape[1]}x{labels.shape[0]} pixels and {path} {image.width}x{image.height}: "
                "expected the same size"
            )
        ignored = (labels == self.ignore_label) | (labels == IGNORE)
        if self.zero_is_unlabelled:
            ignored |= labels == 0
            labels = labels - 1
        if wrong := sorted(set(np.unique(labels[~ignored]).tolist()) - set(range(len(self.classes)))):
            raise UserError(
                f"{label_path} has label {wrong[0] + self.zero_is_unlabelled} and there are {len(self.classes)} "
                "classes: name it in classes.txt, or pass --ignore-label"
            )
        return image, np.where(ignored, IGNORE, labels).astype(np.uint8)


def read_labels(path: Path) -> NDArray[np.int64]:
    """The class indices (H, W) in a label PNG: grey levels or palette indices.

    Raises:
        ValueError: it has colours instead of indices, or cannot be read.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            mode, labels = image.mode, np.asarray(image)
    except Exception as error:  # a damaged file makes the decoder raise whatever it trips over
        raise UserError(f"{path} is not a readable PNG: {error}") from error
    if mode not in ("L", "P", "1", "I;16", "I"):
        raise UserError(f"{path} is in colour ({mode}): expected one class index per pixel")
    return labels.astype(np.int64)


def open_semantic(
    root: Path, split: str, transform: Any, ignore_label: int, skip_bad: bool, held_out: HeldOut | None = None
) -> SemanticFolder:
    """A split of `root`: `images/SPLIT` with `annotations/SPLIT` (also labels/ or masks/).

    Class names come from `objectInfo150.txt` (ADE20K, whose label 0 is unlabelled) or from `classes.txt`, one name per
    line in label order; without either they are the numbers found in the training labels.

    Args:
        split: train, val, or the name of a folder.
        transform, ignore_label, skip_bad: see `SemanticFolder`.
        held_out: how to divide a folder that has a split `train` and no `val`; without it there is no val then.

    Raises:
        FileNotFoundError: there is no such split.
        ValueError: see `SemanticFolder`.
    """
    divided = held_out is not None and split in SPLITS and _find_split(root, "val") is None
    found = _find_split(root, "train" if divided else split)
    if found is None:
        names = ", ".join(SPLITS.get(split, (split,)))
        raise MissingFileError(
            f"no {split} split in {root}: expected images/NAME and annotations/NAME, NAME one of {names}"
        )
    images, labels = found
    ade20k = (root / "objectInfo150.txt").is_file()
    classes = _class_names(root, labels.parent, ignore_label, skip_bad)
    dataset = SemanticFolder(images, labels, classes, transform, ignore_label, ade20k, skip_bad)
    if held_out is not None and divided:
        dataset.divide(held_out, split, images)
    return dataset


def _find_split(root: Path, split: str) -> tuple[Path, Path] | None:
    folders = [root / name for name in _LABEL_FOLDERS if (root / name).is_dir()]
    found = [(root / "images" / name, folder / name) for name in SPLITS.get(split, (split,)) for folder in folders]
    return next(((images, labels) for images, labels in found if images.is_dir() and labels.is_dir()), None)


def _class_names(root: Path, labels: Path, ignore_label: int, skip_bad: bool) -> list[str]:
    if (table := root / "objectInfo150.txt").is_file():  # tab-separated, the name last, synonyms after commas
        lines = read_text(table).splitlines()[1:]
        return [line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip()]
    if (table := root / "classes.txt").is_file():
        return read_text(table).rstrip().splitlines()
    folder = next((labels / name for name in SPLITS["train"] if (labels / name).is_dir()), labels)
    highest = -1
    for path in sorted(folder.rglob("*.png")):
        try:
            found = read_labels(path)
        except UserError:
            if not skip_bad:
                raise
            continue
        highest = max(highest, int(found.max(initial=-1, where=(found != ignore_label) & (found != IGNORE))))
    if not 0 <= highest < IGNORE:
        raise UserError(f"the label PNGs in {folder} have no class indices from 0 to 254: highest is {highest}")
    return [str(i) for i in range(highest + 1)]
