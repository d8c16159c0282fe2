"""Images with boxes, masks or label maps, for detection, semantic and panoptic segmentation."""

import operator
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vankit.data.coco import CocoInstances
from vankit.data.coco_panoptic import CocoPanoptic
from vankit.data.held_out import HeldOut, divide
from vankit.data.label_maps import IGNORE
from vankit.data.layouts import explain_missing, find_source
from vankit.data.reading import STRICT, Reading
from vankit.data.semantic import open_semantic
from vankit.data.shapes import CLASSES, render_scene
from vankit.data.walk import SPLITS
from vankit.errors import MissingFileError, UserError
from vankit.files import check_named

TASKS = ("detect", "segment", "panoptic")

_SHAPES_LENGTH = {"train": 4_000, "val": 200}
_OBJECTS = (1, 4)  # per generated scene


def open_scenes(
    data: str | PathLike[str],
    task: str,
    split: str,
    transform: Callable[..., Any] | None = None,
    *,
    masks: bool = True,
    size: int = 128,
    seed: int = 0,
    ignore_label: int = IGNORE,
    map_labels: Sequence[str] = (),
    reading: Reading = STRICT,
    held_out: HeldOut | None = None,
    known: Sequence[str] = (),
) -> Any:
    """Open one split of a set of annotated scenes.

    Args:
        data: the word `shapes`, or a folder. For detect, COCO's JSON (`vankit.data.layouts.find_coco`), YOLO's text
            files (`vankit.data.yolo`) or Pascal VOC's XML files (`vankit.data.voc`); for panoptic, COCO's
            `annotations/panoptic_SPLIT*.json` and its folder of PNGs; for segment, `images/SPLIT` and
            `annotations/SPLIT` with an image and a PNG of class indices per scene (ADE20K, CamVid), or without SPLIT.
        task: detect, segment or panoptic.
        split: train or val; for segment also the name of a folder, such as test.
        transform: (image, target) → sample, see `vankit.data.augment`.
        masks: read the masks of detect's objects.
        size: side in pixels of generated `shapes`.
        seed: of generated `shapes`.
        ignore_label: value in label PNGs that counts as unlabelled, in addition to 255.
        map_labels: values in label PNGs that are read as others, see `vankit.data.label_maps.parse_map`.
        reading: how forgiving to be.
        held_out: how to divide a folder that has a split `train` and no `val`. A set without any split is divided where
            `held_out.plain`, else it is the whole of either split.
        known: classes of a network, or of the training images: they are kept though no annotation has them.

    Returns:
        A dataset of (image, target): an RGB picture of PIL and a dict, with `image_id` and as arrays: for detect and
        panoptic `boxes` (N, 4) xyxy in pixels, `labels` (N,), `masks` (N, H, W), `iscrowd` (N,), `area` (N,); for
        segment `semantic` (H, W), 255 where unlabelled. Its `classes` are the names by label, `names` the image files,
        `category_ids` COCO's ids by label, `things` (panoptic) whether a class is countable, and `skipped` what was
        left out, as (file, reason).

    Raises:
        FileNotFoundError: the data or the split is missing.
        ValueError: the task is unknown, or an annotation cannot be used; the message names file and id.
    """
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}: expected one of {', '.join(TASKS)}")
    check_named(data=data)
    if str(data) == "shapes":
        return ShapeScenes(task, split, _SHAPES_LENGTH.get(split, 200), size, seed, transform)
    root = Path(data)
    if not root.is_dir():
        raise MissingFileError(f"no dataset at {data}: expected a folder, or the word 'shapes'")
    if task == "segment":
        return open_semantic(root, split, transform, ignore_label, reading, held_out, map_labels)
    return _open_coco(root, task, split, transform, masks, reading, held_out, known)


def _open_coco(
    root: Path,
    task: str,
    split: str,
    transform: Callable[..., Any] | None,
    masks: bool,
    reading: Reading,
    held_out: HeldOut | None,
    known: Sequence[str],
) -> CocoInstances | CocoPanoptic:
    kind: Literal["instances", "panoptic"] = "panoptic" if task == "panoptic" else "instances"
    source = find_source(root, split, kind)
    divided = held_out is not None and split in SPLITS and find_source(root, "val", kind) is None
    if divided and source is None:
        source = find_source(root, "train", kind)
    if source is None:
        raise explain_missing(root, split, kind)
    dataset: CocoInstances | CocoPanoptic
    if kind == "panoptic":
        dataset = CocoPanoptic(source.images, source.annotations, None, transform, reading, known, root)
    else:
        dataset = CocoInstances(source.images, source.annotations, transform, masks, reading, source.read, known, root)
    if held_out is not None and (divided or (source.plain and held_out.plain)):
        divide(dataset, root, split, held_out, source.plain)
    return dataset


class ShapeScenes:
    """Generated scenes of one to four textured shapes on a background, annotated for one task.

    Args:
        task: detect (ten classes), segment or panoptic (those and the background).
        split: "train", "val" or "test"; no two share a picture.
        length: number of items; item i is the same whatever the length.
        size: side or (height, width) in pixels, at least 16.
        seed: which dataset, 0 to 2**32 - 1.
        transform: (image, target) → sample.
    """

    def __init__(
        self,
        task: str,
        split: str = "train",
        length: int = 4_000,
        size: int | tuple[int, int] = 128,
        seed: int = 0,
        transform: Callable[..., Any] | None = None,
    ) -> None:
        if length < 1:
            raise UserError(f"length {length} is not a dataset: expected at least 1 image")
        render_scene(0, split, size, _OBJECTS, seed)
        self.task, self.split, self.length, self.size, self.seed = task, split, length, size, seed
        self.transform = transform
        self.classes = [*CLASSES] if task == "detect" else [*CLASSES, "background"]
        self.things = [name != "background" for name in self.classes]
        self.category_ids = list(range(1, len(self.classes) + 1))
        self.skipped: list[tuple[str, str]] = []

    @property
    def names(self) -> list[str]:
        return [f"shapes-{self.split}-{i}.png" for i in range(self.length)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        index = operator.index(index)
        if not 0 <= index < self.length:
            raise IndexError(f"image {index} of {self.length}: expected 0 to {self.length - 1}")
        scene = render_scene(index, self.split, self.size, _OBJECTS, self.seed)
        height, width = scene.image.shape[:2]
        boxes, masks, labels = scene.boxes, scene.masks, scene.labels
        background: NDArray[np.bool_] = np.logical_not(masks.any(0))
        target: dict[str, Any] = {"image_id": index}
        if self.task == "segment":
            semantic = np.where(background, len(CLASSES), np.tensordot(labels, masks, 1))
            target["semantic"] = semantic.astype(np.uint8)
        else:
            if self.task == "panoptic" and background.any():
                masks = np.concatenate([masks, background[None]])
                boxes = np.concatenate([boxes, np.array([[0, 0, width, height]], np.float32)])
                labels = np.append(labels, len(CLASSES))
            target |= {
                "boxes": boxes,
                "labels": labels,
                "masks": masks,
                "iscrowd": np.zeros(len(labels), np.bool_),
                "area": masks.sum((1, 2)).astype(np.float32),
            }
        sample = Image.fromarray(scene.image), target
        return sample if self.transform is None else self.transform(*sample)
