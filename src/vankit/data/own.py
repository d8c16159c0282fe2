"""The caller's own datasets: checked item by item, and given to a network as vankit's readers give theirs."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from torchvision import tv_tensors
from torchvision.ops import box_area, box_convert, masks_to_boxes
from torchvision.transforms.v2 import functional as transforms

from vankit.data.images import to_image
from vankit.data.label_maps import IGNORE
from vankit.errors import UserError

Pair = tuple[Dataset[Any], Dataset[Any]]
Data = str | PathLike[str] | Pair  # a name or a folder; or to train on and to validate with

_OVERHANG = 2  # pixels that a box may reach past its image by rounding
_KEYS = {"detect": ("boxes", "labels"), "segment": ("semantic",), "panoptic": ("labels",)}
_CONTENT = {
    "boxes": "x1, y1, x2, y2 in pixels",
    "labels": "classes from 0, none for the background",
    "masks": "bool, or 0 outside the object",
    "iscrowd": "bool, or 0 for a single object",
    "area": "square pixels",
    "semantic": "classes from 0, 255 where unlabelled",
}
_REAL = ("boxes", "area")  # the others are whole numbers


class ItemError(UserError):
    """An item of the caller's dataset cannot be used. The message names the set, the item and the key."""

    def __init__(self, message: str) -> None:
        # a process that loads images sends it at the end of a traceback, to be raised anew in the main one
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


def name_of(data: Data) -> str:
    """What messages and config.json call the data."""
    if isinstance(data, str | PathLike):
        return str(data)
    return f"({', '.join(type(dataset).__name__ for dataset in pair_of(data))})"


def pair_of(data: Any) -> tuple[Any, Any]:
    """The datasets to train on and to validate with.

    Raises:
        ValueError: the data is not a pair.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise UserError(
            f"the data is {_kind(data)}: expected a name, a folder, or two datasets of your own, (train_set, val_set)"
        )
    return data[0], data[1]


class _Own(Dataset[Any], ABC):
    """What the two kinds share: classes, and errors that name the item.

    Args:
        dataset: map-style, with `classes`.
        role: training or validation, for messages.
        transform: of the subclass.
    """

    def __init__(self, dataset: Any, role: str, transform: Callable[..., Any]) -> None:
        self.dataset, self.transform = dataset, transform
        self.name = f"the {role} set ({type(dataset).__name__})"
        lacking = [name for name in ("__len__", "__getitem__") if not hasattr(dataset, name)]
        if lacking or isinstance(dataset, IterableDataset):
            raise UserError(f"{self.name} is not map-style: expected a dataset with __len__ and __getitem__")
        if not len(dataset):
            raise UserError(f"{self.name} is empty: expected at least one item")
        self.classes = self._class_names()

    def _class_names(self) -> list[str]:
        classes = getattr(self.dataset, "classes", None)
        names = [] if isinstance(classes, str) or not isinstance(classes, Iterable) else list(classes)
        if not names or not all(isinstance(name, str) for name in names):
            given = "no classes" if classes is None else f"the classes {classes!r:.80}"
            raise UserError(f"{self.name} has {given}: set the names by label, dataset.classes = ['cat', 'dog']")
        return [str(name) for name in names]

    def __len__(self) -> int:
        return len(self.dataset)

    def _read(self, index: int) -> tuple[Any, Any]:
        """An item as vankit's readers give it, before the transform.

        Raises:
            ItemError: it cannot be used.
        """
        item = self.dataset[index]
        try:
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise UserError(f"it is {_kind(item)}: expected (image, label), or (image, target) for dense tasks")
            return self._check(item[0], item[1], index)
        except UserError as problem:
            raise ItemError(f"{self.name}, item {index}: {problem}") from None

    @abstractmethod
    def _check(self, image: Any, truth: Any, index: int) -> tuple[Any, Any]:
        """Both halves of an item, in one form."""


class OwnImages(_Own):
    """The caller's labelled images.

    Args:
        dataset: map-style; items (image, label), an image a PIL image or a uint8 tensor (3, H, W) in RGB order, or a
            float tensor (3, size, size), which is used as it is; a label an int from 0. Its `classes` are the names by
            label, its `targets`, if any, the labels of all items.
        role: training or validation, for messages.
        transform: PIL RGB image → float (3, size, size).
        size: side in pixels of the network's input.

    Raises:
        ValueError: the dataset is a stream, is empty, or has no classes.
    """

    def __init__(self, dataset: Any, role: str, transform: Callable[..., Any], size: int) -> None:
        super().__init__(dataset, role, transform)
        self.size = size
        self.targets = getattr(dataset, "targets", None)
        self._read(0)  # what is wrong with it is likely wrong with all, and said before a network is built

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self._read(index)
        return image if isinstance(image, Tensor) else self.transform(image), label

    def _check(self, image: Any, truth: Any, index: int) -> tuple[Any, Any]:
        label = self._label(truth)
        pixels = _decoded(image)
        if not isinstance(pixels, Tensor):
            return pixels, label
        if pixels.is_floating_point():
            return self._input(pixels), label
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()), label

    def _input(self, image: Tensor) -> Tensor:
        wanted = (3, self.size, self.size)
        if image.shape != wanted:
            raise UserError(
                f"the image is {_kind(image)}: expected {wanted}, because floats are used as they are; to have it "
                "resized pass a PIL image or a uint8 tensor, or set img_size to its side"
            )
        if not torch.isfinite(image).all():
            raise UserError("the image has NaN or infinite values: expected finite ones")
        return image.float()

    def _label(self, label: Any) -> int:
        try:
            number = operator.index(label)
        except TypeError:
            raise UserError(f"the label is {_kind(label)}: expected a whole number") from None
        if not 0 <= number < len(self.classes):
            raise UserError(f"the label is {number}: expected 0 to {len(self.classes) - 1}, for its classes")
        return number


class OwnScenes(_Own):
    """The caller's annotated scenes.

    Args:
        dataset: map-style; items (image, target), an image a PIL image, a uint8 tensor (3, H, W) in RGB order, or a
            float tensor (3, H, W) of 0 to 1, which is rounded to 8 bits. A target is a dict of tensors. For detect:
            `boxes` (N, 4) x1, y1, x2, y2 in pixels, `labels` (N,) integer from 0, `masks` (N, H, W) bool for heads that
            are trained on masks; and, where known, `iscrowd` (N,) bool and `area` (N,) in square pixels. For segment:
            `semantic` (H, W) integer, 255 where unlabelled. For panoptic: `labels` and `masks` of the segments, which
            do not overlap; and, where known, `iscrowd`. Other keys are passed over. Its `classes` are the names by
            label, `things` (for panoptic) whether each class is countable, `category_ids` their numbers, if any.
        role: training or validation, for messages.
        transform: (image, target) → (image, target), see `vankit.data.augment`.
        task: detect, segment or panoptic.
        masks: whether the head is trained on masks.
        ignore_label: value in `semantic` that counts as unlabelled, in addition to 255.

    Raises:
        ValueError: the dataset is a stream, is empty, or has no classes; or for panoptic no things.
    """

    def __init__(
        self, dataset: Any, role: str, transform: Callable[..., Any], task: str, masks: bool, ignore_label: int
    ) -> None:
        super().__init__(dataset, role, transform)
        self.task, self.ignore_label = task, ignore_label
        self.keys = (*_KEYS[task], *(("masks",) if masks and task != "segment" else ()))
        self.things = [bool(thing) for thing in getattr(dataset, "things", ())]
        self.category_ids = [int(number) for number in getattr(dataset, "category_ids", ())]
        if task == "panoptic" and not self.things:
            raise UserError(
                f"{self.name} has no things: set which classes are countable, dataset.things = [True, False]"
            )
        self._read(0)  # as of images

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        return self.transform(*self._read(index))

    def _check(self, image: Any, truth: Any, index: int) -> tuple[Any, Any]:
        pixels = _as_bytes(_decoded(image))
        if not isinstance(truth, Mapping):
            raise UserError(f"the target is {_kind(truth)}: expected a dict with {', '.join(self.keys)}")
        if missing := [key for key in self.keys if key not in truth]:
            given = ", ".join(map(str, truth)) or "nothing"
            raise UserError(
                f"the target has no {' and no '.join(missing)}: expected {', '.join(self.keys)}, it has {given}"
            )
        read = self._semantic if self.task == "segment" else self._objects
        return pixels, {**read(truth, *pixels.shape[1:]), "image_id": index}

    def _semantic(self, target: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
        labels = _tensor(target, "semantic", height, width).long()
        labels = labels.masked_fill(labels == self.ignore_label, IGNORE)
        self._check_labels("semantic", labels)
        return {"semantic": tv_tensors.Mask(labels.to(torch.uint8))}

    def _objects(self, target: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
        labels = _tensor(target, "labels", None).long()
        self._check_labels("labels", labels)
        count = len(labels)
        crowds = _tensor(target, "iscrowd", count) if "iscrowd" in target else torch.zeros(count)
        objects: dict[str, Any] = {"labels": labels, "iscrowd": crowds.bool()}
        if "masks" in self.keys:
            objects["masks"] = tv_tensors.Mask(_tensor(target, "masks", count, height, width).bool())
        if self.task == "panoptic":
            boxes = _boxes_of_segments(objects["masks"])
        else:
            boxes = _boxes(target, count, height, width)
        objects["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
        return {**objects, "area": self._area(target, objects)}

    def _area(self, target: Mapping[str, Any], objects: dict[str, Any]) -> Tensor:
        if "area" not in target:
            return objects["masks"].sum((1, 2)).float() if "masks" in objects else box_area(objects["boxes"])
        area = _tensor(target, "area", len(objects["labels"])).float()
        if not torch.isfinite(area).all():
            raise UserError("area is not finite everywhere: leave it out, or correct it")
        return area

    def _check_labels(self, key: str, labels: Tensor) -> None:
        wrong = (labels < 0) | (labels >= len(self.classes))
        if key == "semantic":
            wrong &= labels != IGNORE
        if wrong.any():
            found, last = int(labels[wrong][0]), len(self.classes) - 1
            raise UserError(f"{key} has the label {found}: expected 0 to {last}, {_CONTENT[key]}")


def _decoded(image: Any) -> Image.Image | Tensor:
    """An RGB picture, or the tensor (3, H, W) that was given."""
    if isinstance(image, Image.Image):
        return to_image(image)
    usable = isinstance(image, Tensor) and (image.dtype == torch.uint8 or image.is_floating_point())
    if not usable or image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise UserError(f"the image is {_kind(image)}: expected a PIL image, or a uint8 tensor (3, H, W)")
    return image.as_subclass(Tensor)


def _as_bytes(image: Image.Image | Tensor) -> tv_tensors.Image:
    """uint8 (3, H, W)."""
    if isinstance(image, Image.Image):
        return tv_tensors.Image(transforms.pil_to_tensor(image))
    if image.is_floating_point():
        low, high = image.aminmax()
        if not (low >= 0 and high <= 1):  # NaN too
            raise UserError(
                f"the image has values from {low:g} to {high:g}: expected 0 to 1 in a float tensor, or a uint8 tensor"
            )
        image = transforms.to_dtype(image, torch.uint8, scale=True)
    return tv_tensors.Image(image)


def _tensor(target: Mapping[str, Any], key: str, *shape: int | None) -> Tensor:
    """A value of a target, of this shape; None is any length, and what is empty has the shape of no objects."""
    value = target[key]
    if isinstance(value, Tensor) and not value.numel() and not shape[0]:
        return value.new_zeros([length or 0 for length in shape]).as_subclass(Tensor)
    if not _fits(value, shape) or (key not in _REAL and value.is_floating_point()):
        numbers = "a tensor" if key in _REAL else "a tensor of whole numbers"
        wanted = str(shape).replace("None", "N")
        raise UserError(f"{key} is {_kind(value)}: expected {numbers} {wanted}, {_CONTENT[key]}")
    return value.as_subclass(Tensor)


def _fits(value: Any, shape: Sequence[int | None]) -> bool:
    if not isinstance(value, Tensor) or value.ndim != len(shape):
        return False
    return all(wanted in (None, length) for wanted, length in zip(shape, value.shape, strict=True))


def _boxes(target: Mapping[str, Any], count: int, height: int, width: int) -> Tensor:
    """float32 (N, 4) x1, y1, x2, y2, inside the image."""
    boxes = _tensor(target, "boxes", count, 4).float()
    if isinstance(given := target["boxes"], tv_tensors.BoundingBoxes):  # which says what its numbers are
        boxes = box_convert(boxes, given.format.value.lower(), "xyxy")
    limits = torch.tensor([width, height, width, height])
    inside = boxes.clamp(torch.zeros(4), limits)
    near = ((boxes - inside).abs() <= _OVERHANG).all(1)  # NaN is not
    good = near & (inside[:, 2:] > inside[:, :2]).all(1)
    if not good.all():
        i = int(good.logical_not().nonzero()[0])
        numbers = ", ".join(f"{number:g}" for number in boxes[i].tolist())
        raise UserError(
            f"boxes[{i}] is {numbers}: expected {_CONTENT['boxes']}, x1 < x2 and y1 < y2, inside its image of "
            f"{width} x {height} pixels"
        )
    return inside


def _boxes_of_segments(masks: Tensor) -> Tensor:
    """float32 (N, 4) x1, y1, x2, y2 around masks (N, H, W) of which no two may have a pixel in common."""
    areas = masks.sum((1, 2))
    if not areas.all():
        raise UserError(f"masks[{int(areas.argmin())}] is empty: expected a pixel at least, leave the segment out")
    if (masks.sum(0, dtype=torch.int32) > 1).any():
        raise UserError("masks overlap: expected each pixel in one segment of a panoptic target at most")
    return masks_to_boxes(masks).float() + torch.tensor([0.0, 0.0, 1.0, 1.0])  # a box ends where its last pixel does


def _kind(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    length = f" of length {len(value)}" if isinstance(value, tuple | list) else ""
    return f"of type {type(value).__name__}{length}"
