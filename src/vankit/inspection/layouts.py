"""Which tasks a folder looks made for."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from vankit.data.layouts import find_coco
from vankit.data.semantic import is_semantic
from vankit.data.voc import find_voc
from vankit.data.walk import SPLITS, subfolders, walk_images
from vankit.data.yolo import find_yolo, label_file, whole_yolo
from vankit.errors import MissingFileError, UserError

_SPLITS = (*SPLITS, "test")
_NO_CLASSES = frozenset({"images", "annotations", "labels", "masks"})


def likely_tasks(root: Path) -> tuple[str, ...]:
    """The tasks whose layout a folder has, the most telling first.

    Raises:
        FileNotFoundError: it has none.
    """
    if root.is_file():
        return ("classify",)  # a CSV of images and labels, or whoever opens it says so
    signs = {"panoptic": has_coco(root, "panoptic"), "detect": has_boxes(root), "segment": is_semantic(root)}
    if tasks := tuple(task for task, found in signs.items() if found):
        return tasks
    if set(subfolders(root)) - _NO_CLASSES or any(root.glob("*.csv")):
        return ("classify",)
    raise MissingFileError(
        f"nothing in {root} that could be trained on: expected a folder per class (train/CLASS/*.jpg), images with "
        "annotations in COCO's, YOLO's or Pascal VOC's layout, or images and annotations with a label PNG per image"
    )


def has_boxes(root: Path) -> bool:
    """Whether a folder has annotations of objects: COCO's, YOLO's or Pascal VOC's."""
    return has_coco(root, "instances") or _has_yolo(root) or any(find_voc(root, name) for name in ("", *_SPLITS))


def has_coco(root: Path, kind: Literal["instances", "panoptic"]) -> bool:
    """Whether a folder has a COCO JSON of a split or of the whole."""
    try:
        return any(find_coco(root, name, kind) for name in _SPLITS)
    except UserError:  # of several, or without pictures: whoever opens it says so
        return True


def _has_yolo(root: Path) -> bool:
    try:
        sources = [path for name in _SPLITS for path in find_yolo(root, name) or ()]
    except UserError:  # data.yaml names what is not there: whoever opens it says so
        return True
    sources += filter(None, [whole_yolo(root)])
    return any(not source.is_dir() or _has_labels(walk_images(source, skip_bad=True)) for source in sources)


def _has_labels(images: Iterable[str]) -> bool:
    return any(label_file(Path(path)).is_file() for path in images)
