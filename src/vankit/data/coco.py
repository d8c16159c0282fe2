"""COCO annotations: boxes and masks of instances (one JSON), panoptic segments (a JSON and a folder of PNGs)."""

import json
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2.functional import to_image

from vankit.data.images import load_image
from vankit.errors import MissingFileError, MissingPackageError, UserError

Target = dict[str, Any]
Transform = Callable[[tv_tensors.Image, Target], tuple[Any, Any]]

logger = logging.getLogger(__name__)

_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation")}
_ROBOFLOW = "_annotations.coco.json"
_OVERHANG = 2  # pixels; COCO's own boxes and polygons reach past the edge by rounding
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class _Segment:
    id: int
    label: int
    iscrowd: bool


@dataclass(frozen=True, slots=True)
class _Instance(_Segment):
    box: tuple[float, float, float, float]  # x1, y1, x2, y2
    area: float
    segmentation: list[NDArray[np.float64]] | dict[str, Any] | None  # polygons of x, y, x, y…; or RLE


@dataclass(slots=True)
class _Picture:
    id: int
    name: str
    width: int
    height: int
    objects: list[Any] = field(default_factory=list)
    png: Path | None = None


class _Coco(Dataset[tuple[Any, Any]], ABC):
    """What the two kinds of annotation share: categories, pictures, and what happens to a bad one."""

    def __init__(self, images: Path, annotations: Path, transform: Transform | None, skip_bad: bool) -> None:
        self.images, self.annotations = Path(images), Path(annotations)
        self.transform = transform
        self.skip_bad = skip_bad
        self.skipped: list[tuple[str, str]] = []
        content = _read_json(self.annotations)
        if not self.images.is_dir():
            raise MissingFileError(f"no image folder {self.images}, expected the pictures of {self.annotations} there")
        categories = content["categories"] = _sorted_categories(content["categories"], self.annotations)
        self.category_ids: list[int] = [category["id"] for category in categories]
        self.classes: list[str] = [category["name"] for category in categories]
        self._labels = {number: label for label, number in enumerate(self.category_ids)}
        by_id = self._read_pictures(content["images"])
        self._read_annotations(content, by_id)
        self._pictures = [picture for picture in by_id.values() if picture is not None]
        self.names: list[str] = [picture.name for picture in self._pictures]
        self.image_ids: list[int] = [picture.id for picture in self._pictures]
        self._report()

    @abstractmethod
    def _read_annotations(self, content: dict[str, list[Any]], pictures: dict[int, _Picture | None]) -> None:
        """Add every annotation to its picture; a picture is None if it is left out."""

    @abstractmethod
    def _target(self, picture: _Picture) -> Target:
        """The decoded annotations of a picture."""

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Any:
        """One item; with `skip_bad` None for a picture that cannot be read, with a warning.

        Raises:
            ValueError: without `skip_bad`: the picture (or panoptic PNG) cannot be read or has another size than the
                JSON says, or an annotation cannot be decoded.
        """
        picture = self._pictures[range(len(self))[index]]
        try:
            image, target = self._read(picture)
        except _Unreadable as problem:
            if not self.skip_bad:
                raise UserError(f"{self.annotations}: {picture.name}: {problem}") from problem
            self._reject_late(picture.name, problem)
            return None
        return self._transformed(image, target)

    def _transformed(self, image: tv_tensors.Image, target: Target) -> tuple[Any, Any]:
        return (image, target) if self.transform is None else self.transform(image, target)

    def _read(self, picture: _Picture) -> tuple[tv_tensors.Image, Target]:
        pixels = self._load_sized(self.images / picture.name, picture)
        return to_image(pixels), self._target(picture)

    def _load_sized(self, path: Path, picture: _Picture) -> Any:
        try:
            pixels = load_image(path)
        except (ValueError, OSError) as error:
            raise _Unreadable(str(error)) from error
        if pixels.size != (picture.width, picture.height):
            raise _Unreadable(
                f"{path} is {pixels.width} x {pixels.height} pixels once its EXIF rotation is applied, the JSON says "
                f"{picture.width} x {picture.height}; annotate the upright picture"
            )
        return pixels

    def _read_pictures(self, entries: list[Any]) -> dict[int, _Picture | None]:
        """By image id; None for those left out, whose annotations are then no mistakes of their own."""
        pictures: dict[int, _Picture | None] = {}
        for entry in entries:
            name = str(entry.get("file_name") or self.annotations.name) if isinstance(entry, dict) else str(entry)
            try:
                number = _whole(entry, "id")
                if number in pictures:
                    raise UserError(f"image id {number} is given twice; ids must be unique")
                pictures[number] = None
                picture = _Picture(number, _text(entry, "file_name"), _whole(entry, "width"), _whole(entry, "height"))
                if min(picture.width, picture.height) < 1:
                    raise UserError(f"image {number} is {picture.width} x {picture.height} pixels, expected more")
                _check_name(picture.name)
                if not os.path.isfile(self.images / picture.name):
                    raise MissingFileError(f"no such image file in {self.images}")
                pictures[number] = picture
            except (ValueError, FileNotFoundError) as problem:
                self._reject(name, problem)
        return pictures

    def _label(self, entry: Any) -> int:
        category = _whole(entry, "category_id")
        if category not in self._labels:
            raise UserError(f"category_id {category} is unknown; the categories have {_some(self.category_ids)}")
        return self._labels[category]

    def _reject(self, name: str, problem: Exception) -> None:
        if not self.skip_bad:
            advice = "correct it, or leave out what is bad with --skip-bad (skip_bad=True)"
            raise type(problem)(f"{self.annotations}: {name}: {problem}; {advice}") from None
        self.skipped.append((name, str(problem)))

    def _reject_late(self, name: str, problem: Exception) -> None:
        """`_reject` once the dataset is open, with a warning for each problem; workers warn one by one."""
        if (name, str(problem)) not in self.skipped:
            self._reject(name, problem)
            logger.warning("left out %s: %s", name, problem)

    def _report(self) -> None:
        shown = "; ".join(f"{name}: {reason}" for name, reason in self.skipped[:_SHOWN])
        if not self._pictures:
            raise UserError(f"{self.annotations} names no picture that can be used{': ' * bool(shown)}{shown}")
        if self.skipped:
            logger.warning("%s: left out %d bad entries: %s", self.annotations, len(self.skipped), shown)


class CocoInstances(_Coco):
    """Boxes and masks of a COCO instances file (format: cocodataset.org/#format-data, object detection).

    Items are (image, target): image a `tv_tensors.Image`, uint8 (3, H, W) RGB; target a dict of `boxes`
    (`tv_tensors.BoundingBoxes`, float32 (N, 4), x1, y1, x2, y2 in pixels), `labels` (N,) int64 from 0 in order of
    category id, `masks` (`tv_tensors.Mask`, bool (N, H, W)), `iscrowd` (N,) bool, `area` (N,) float32 in square
    pixels (the box's where the file has none), `image_id` int. Crowds are included; pictures without objects are kept.

    All but the pixels is checked on opening. Boxes that reach past the picture by at most 2 pixels are clipped to it.

    Args:
        images: folder that the file names in the JSON are relative to.
        annotations: the JSON.
        transform: (image, target) → sample, such as one of torchvision.transforms.v2.
        masks: read and decode the segmentation; without, it may be missing.
        skip_bad: leave out bad annotations and pictures, list them as (file, reason) in `skipped`, and warn.

    Attributes: `classes` (names), `category_ids`, `names` (files), `image_ids`, `skipped`.

    Raises:
        FileNotFoundError: no such JSON, folder or image file.
        ValueError: the JSON is broken or contradicts itself; names the file and the annotation.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        transform: Transform | None = None,
        masks: bool = True,
        skip_bad: bool = False,
    ) -> None:
        self.masks = masks
        super().__init__(images, annotations, transform, skip_bad)

    def _read_annotations(self, content: dict[str, list[Any]], pictures: dict[int, _Picture | None]) -> None:
        seen: set[int] = set()
        for entry in content["annotations"]:
            name = self.annotations.name
            try:
                number = _whole(entry, "id")
                if number in seen:
                    raise UserError("the id is given twice; ids must be unique")
                seen.add(number)
                picture = _picture_of(entry, pictures)
                if picture is not None:
                    name = picture.name
                    picture.objects.append(self._instance(number, entry, picture))
            except ValueError as problem:
                self._reject(name, UserError(f"annotation {_id_of(entry)}: {problem}"))

    def _instance(self, number: int, entry: dict[str, Any], picture: _Picture) -> _Instance:
        box = _box(entry.get("bbox"), picture)
        area = entry.get("area")
        if area is None:
            area = (box[2] - box[0]) * (box[3] - box[1])
        if not isinstance(area, int | float) or not 0 <= area < math.inf:
            raise UserError(f"area is {area!r}, expected a number of square pixels")
        segmentation = _segmentation(entry.get("segmentation"), picture) if self.masks else None
        return _Instance(number, self._label(entry), _flag(entry, "iscrowd", 0), box, area, segmentation)

    def _target(self, picture: _Picture) -> Target:
        objects, masks = self._decoded(picture) if self.masks else (picture.objects, None)
        boxes = torch.tensor([instance.box for instance in objects], dtype=torch.float32).reshape(-1, 4)
        area = torch.tensor([instance.area for instance in objects], dtype=torch.float32)
        return _as_target(picture, objects, boxes, area, masks)

    def _decoded(self, picture: _Picture) -> tuple[list[_Instance], Tensor]:
        """The instances whose masks can be decoded, and those masks."""
        objects: list[_Instance] = []
        masks = np.zeros((len(picture.objects), picture.height, picture.width), np.bool_)  # (N, H, W)
        for instance in picture.objects:
            try:
                masks[len(objects)] = _decode_mask(instance.segmentation, picture.height, picture.width)
                objects.append(instance)
            except ValueError as problem:
                self._reject_late(picture.name, UserError(f"annotation {instance.id}: {problem}"))
        return objects, torch.from_numpy(masks[: len(objects)])


class CocoPanoptic(_Coco):
    """Things and stuff of a COCO panoptic file and its PNGs (format: cocodataset.org/#format-data, panoptic).

    Items are (image, target) as of `CocoInstances`, with one entry per segment: `labels` (S,), `masks` (S, H, W),
    `iscrowd` (S,), `boxes` (S, 4) and `area` (S,), both measured on the masks, `image_id`. Other pixels are void.

    Args:
        images: folder that the image names in the JSON are relative to.
        annotations: the JSON.
        segments: folder of the PNGs; by default the path of the JSON without its suffix.
        transform: (image, target) → sample, such as one of torchvision.transforms.v2.
        skip_bad: leave out bad segments and pictures, list them as (file, reason) in `skipped`, and warn.

    Attributes: `classes` (names), `things` (a bool per class), `category_ids`, `names` (files), `image_ids`, `skipped`.

    Raises:
        FileNotFoundError: no such JSON, folder, image file or PNG.
        ValueError: the JSON is broken or contradicts itself; names the file and the segment.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        segments: Path | None = None,
        transform: Transform | None = None,
        skip_bad: bool = False,
    ) -> None:
        self.segments = Path(annotations).with_suffix("") if segments is None else Path(segments)
        super().__init__(images, annotations, transform, skip_bad)

    def _read_annotations(self, content: dict[str, list[Any]], pictures: dict[int, _Picture | None]) -> None:
        if not self.segments.is_dir():
            raise MissingFileError(f"no folder {self.segments}, expected the PNGs of {self.annotations} there")
        try:
            self.things: list[bool] = [_flag(category, "isthing") for category in content["categories"]]
        except ValueError as problem:
            raise UserError(f"{self.annotations}: a category {problem}; is this a panoptic file?") from None
        seen: set[int] = set()
        for entry in content["annotations"]:
            name = self.annotations.name
            try:
                if (picture := _picture_of(entry, pictures)) is None:
                    continue
                name = picture.name
                if picture.id in seen:
                    raise UserError(f"image {picture.id} has two annotations, expected one")
                seen.add(picture.id)
                pictures[picture.id] = None
                picture.png, infos = self._png_and_infos(entry)
            except (ValueError, FileNotFoundError) as problem:
                self._reject(name, problem)
                continue
            self._add_segments(infos, picture)
            pictures[picture.id] = picture
        for number, picture in pictures.items():
            if picture is not None and number not in seen:
                pictures[number] = None
                self._reject(picture.name, UserError(f"image {number} has no annotation"))

    def _png_and_infos(self, entry: dict[str, Any]) -> tuple[Path, list[Any]]:
        png, infos = self.segments / _check_name(_text(entry, "file_name")), entry.get("segments_info")
        if not png.is_file():
            raise MissingFileError(f"no such segment PNG: {png}")
        if not isinstance(infos, list):
            raise UserError(f"segments_info is {infos!r}, expected a list")
        return png, infos

    def _add_segments(self, infos: list[Any], picture: _Picture) -> None:
        seen = {0}
        for info in infos:
            try:
                number = _whole(info, "id")
                if number in seen:
                    raise UserError("the id is given twice" if number else "id 0 means void; segments count from 1")
                seen.add(number)
                picture.objects.append(_Segment(number, self._label(info), _flag(info, "iscrowd", 0)))
            except ValueError as problem:
                self._reject(picture.name, UserError(f"segment {_id_of(info)}: {problem}"))

    def _target(self, picture: _Picture) -> Target:
        assert picture.png is not None
        red, green, blue = np.asarray(self._load_sized(picture.png, picture), np.int32).transpose(2, 0, 1)
        ids = red + 256 * green + 65536 * blue  # (H, W)
        present = set(np.unique(ids).tolist()) - {0}
        declared: list[_Segment] = picture.objects
        objects = [segment for segment in declared if segment.id in present]
        lost = {segment.id for segment in declared} - present
        stray = present - {segment.id for segment in declared}
        for numbers, reason in ((lost, f"have no pixel in {picture.png}"), (stray, "are in the PNG, not in the JSON")):
            if numbers:
                self._reject_late(picture.name, UserError(f"segments {_some(sorted(numbers))} {reason}"))
        order = np.array([segment.id for segment in objects], np.int32)
        masks = torch.from_numpy(ids == order[:, None, None])  # (S, H, W)
        # masks_to_boxes gives the last pixel inside, a box ends where that pixel does.
        boxes = masks_to_boxes(masks).float() + torch.tensor([0.0, 0.0, 1.0, 1.0])
        return _as_target(picture, objects, boxes, masks.sum((1, 2)).float(), masks)


def _check_name(name: str) -> str:
    """The name, unless it leads out of the folder that it is looked for in."""
    if os.path.isabs(name) or ".." in Path(name).parts:
        raise UserError(f"file_name {name!r} leads out of the set's folder; expected a name inside it")
    return name


def find_coco(root: Path, split: str, kind: Literal["instances", "panoptic"]) -> tuple[Path, Path]:
    """Find one split of a COCO folder.

    Known layouts: `annotations/KIND_train2017.json` with the pictures in `train2017`, `images/train2017` or `images`;
    `annotations/KIND.json` with `images`, as validation set only; Roboflow's `train/_annotations.coco.json` with the
    pictures beside it, instances only. A validation set may be called val, valid or validation.

    Args:
        root: the folder.
        split: 'train' or 'val'.
        kind: 'instances' or 'panoptic'.

    Returns:
        The folder of the pictures and the JSON.

    Raises:
        FileNotFoundError: none of the layouts is there; says what was looked for.
        ValueError: the folder has one set without splits and `split` is 'train', or several that fit.
    """
    root = Path(root)
    folder = root / "annotations"
    found = sorted(folder.glob(f"{kind}_{split}*.json"))
    if len(found) > 1:
        raise UserError(f"{root} has several {split} sets, expected one: {', '.join(path.name for path in found)}")
    if found:
        rest = found[0].stem.removeprefix(f"{kind}_")
        return _image_folder(found[0], [root / rest, root / "images" / rest, root / "images"]), found[0]
    single = folder / f"{kind}.json"
    if single.is_file() and not any(folder.glob(f"{kind}_*.json")):
        if split == "train":
            raise UserError(
                f"{root} has no splits, only {single.name}: divide it into {kind}_train.json and {kind}_val.json in "
                f"{folder} (both may use {root / 'images'}) to train on it"
            )
        return _image_folder(single, [root / "images"]), single
    looked = [f"{folder / kind}_{split}*.json"] + [str(single)] * (split == "val" and not single.is_file())
    if kind == "instances":
        for path in [root / name / _ROBOFLOW for name in _SPLITS.get(split, (split,))]:
            if path.is_file():
                return path.parent, path
            looked.append(str(path))
    raise MissingFileError(
        f"no COCO {kind} of split {split} in {root}: looked for {', '.join(looked)}; divide the pictures into train "
        "and val with one JSON for each"
    )


def _image_folder(annotations: Path, candidates: list[Path]) -> Path:
    folder = next((folder for folder in candidates if folder.is_dir()), None)
    if folder is None:
        looked = ", ".join(map(str, candidates))
        raise MissingFileError(f"no pictures for {annotations}: looked for the folders {looked}")
    return folder


class _Unreadable(UserError):
    """A picture, or the PNG of its segments, is no use, whatever its annotations are."""


def _read_json(path: Path) -> dict[str, list[Any]]:
    if not path.is_file():
        raise MissingFileError(f"no annotation file {path}, expected a COCO JSON")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(
                f"{path} is not a COCO JSON: expected lists images, annotations and categories, found no {key}"
            )
    return dict(content)


def _sorted_categories(entries: list[Any], path: Path) -> list[dict[str, Any]]:
    try:
        names = {_whole(entry, "id"): _text(entry, "name") for entry in entries}
    except ValueError as problem:
        raise UserError(f"{path}: a category {problem}") from None
    if not 0 < len(names) == len(entries):
        raise UserError(
            f"{path}: {len(entries)} categories with {len(names)} ids, expected one id for each, and at least 1"
        )
    return sorted(entries, key=lambda entry: entry["id"])


def _picture_of(entry: Any, pictures: dict[int, _Picture | None]) -> _Picture | None:
    number = _whole(entry, "image_id")
    if number not in pictures:
        raise UserError(f"image_id {number} is unknown; it must be the id of an entry of images")
    return pictures[number]


def _box(value: Any, picture: _Picture) -> tuple[float, float, float, float]:
    """COCO's x, y, width, height → x1, y1, x2, y2 inside the picture."""
    if not isinstance(value, list) or len(value) != 4 or not _finite(value):
        raise UserError(f"bbox is {value!r}, expected four numbers x, y, width, height")
    x, y, width, height = map(float, value)
    if width <= 0 or height <= 0:
        raise UserError(f"bbox {value} is empty: width and height must be positive")
    _check_inside(f"bbox {value}", (x, x + width), (y, y + height), picture)
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + width, picture.width), min(y + height, picture.height)
    if np.float32(x1) >= np.float32(x2) or np.float32(y1) >= np.float32(y2):
        raise UserError(f"bbox {value} is empty inside the picture of {picture.width} x {picture.height} pixels")
    return x1, y1, x2, y2


def _check_inside(what: str, xs: Sequence[float], ys: Sequence[float], picture: _Picture) -> None:
    reach = max(-min(xs), -min(ys), max(xs) - picture.width, max(ys) - picture.height)
    if reach > _OVERHANG:
        size = f"{picture.width} x {picture.height}"
        raise UserError(f"{what} reaches {reach:g} pixels past its picture of {size}, at most {_OVERHANG} are clipped")


def _segmentation(value: Any, picture: _Picture) -> list[NDArray[np.float64]] | dict[str, Any]:
    if not value:
        raise UserError("no segmentation, but the head needs masks; add it, or train a head without, such as retinanet")
    if isinstance(value, list):
        return [_polygon(polygon, picture) for polygon in value]
    counts = value.get("counts") if isinstance(value, dict) else None
    if not isinstance(counts, str) and not (isinstance(counts, list) and _finite(counts)):
        raise UserError("segmentation is neither a list of polygons nor RLE, expected [[x, y, …]] or {size, counts}")
    if value.get("size") != [picture.height, picture.width]:
        raise UserError(f"RLE size is {value.get('size')}, the picture's is {[picture.height, picture.width]}")
    return {"size": value["size"], "counts": counts}


def _polygon(value: Any, picture: _Picture) -> NDArray[np.float64]:
    if not isinstance(value, list) or not _finite(value) or len(value) % 2:
        raise UserError("a polygon is not a list of numbers x, y, x, y…; segmentation must be a list of such lists")
    if len(value) < 6:
        raise UserError(f"a polygon has {len(value) // 2} points, expected at least 3")
    _check_inside("a polygon", value[::2], value[1::2], picture)
    return np.array(value, np.float64)


def _decode_mask(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """(H, W) of 0 and 1; several polygons are united."""
    try:
        from faster_coco_eval.core import mask
    except ImportError:
        raise MissingPackageError(
            "COCO masks need faster-coco-eval: pip install faster-coco-eval, or masks=False"
        ) from None
    shape = [polygon.tolist() for polygon in segmentation] if isinstance(segmentation, list) else segmentation
    try:
        decoded = mask.decode(mask.segmToRle(shape, width, height))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"segmentation cannot be decoded: {error}") from error
    if not decoded.any():
        raise UserError("its mask is empty: the segmentation covers no pixel")
    return np.asarray(decoded, np.uint8)


def _as_target(
    picture: _Picture, objects: Sequence[_Segment], boxes: Tensor, area: Tensor, masks: Tensor | None
) -> Target:
    size = (picture.height, picture.width)
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size),
        "labels": torch.tensor([entry.label for entry in objects], dtype=torch.int64),
        **({} if masks is None else {"masks": tv_tensors.Mask(masks)}),
        "iscrowd": torch.tensor([entry.iscrowd for entry in objects], dtype=torch.bool),
        "area": area,
        "image_id": picture.id,
    }


def _finite(values: list[Any]) -> bool:
    try:
        return all(map(math.isfinite, values))
    except (TypeError, OverflowError):
        return False


def _whole(entry: Any, key: str) -> int:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"has {key} {value!r}, expected a whole number")
    return value


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise UserError(f"has {key} {value!r}, expected a name")
    return value


def _flag(entry: dict[str, Any], key: str, default: int | None = None) -> bool:
    value = entry.get(key, default)
    if value not in (0, 1):
        raise UserError(f"has {key} {value!r}, expected 0 or 1")
    return bool(value)


def _id_of(entry: Any) -> Any:
    return entry.get("id") if isinstance(entry, dict) else entry


def _some(values: list[int]) -> str:
    return ", ".join(map(str, values[:10])) + " …" * (len(values) > 10)
