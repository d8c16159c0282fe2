"""COCO annotations: boxes and masks of instances (one JSON), panoptic segments (a JSON and a folder of PNGs)."""

import logging
import math
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vankit.data.coco_entries import (
    UPRIGHT,
    Content,
    Flaw,
    Instance,
    Picture,
    Repairs,
    Segment,
    area_of,
    box_of,
    categories_of,
    flag,
    refuse_outside,
    segmentation_of,
    size_of,
    text,
    whole,
)
from vankit.data.held_out import Division, HeldOut
from vankit.data.masks import decode_mask
from vankit.data.reading import STRICT, Reader, Reading
from vankit.errors import MissingFileError, UserError, few
from vankit.files import read_json

Target = dict[str, Any]
Transform = Callable[[Image.Image, Target], Any]
Read = Callable[[Path, Sequence[str], Reading], Content]  # of annotations, a network's classes, and how forgiving to be

logger = logging.getLogger(__name__)

_SHOWN = 3


def read_coco(path: Path, known: Sequence[str] = (), reading: Reading = STRICT) -> Content:
    """The content of a COCO JSON; `known` and `reading` play no part.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a COCO JSON.
    """
    if not path.exists():
        raise MissingFileError(f"no annotation file {path}, expected a COCO JSON")
    content = read_json(path, largest=math.inf)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(
                f"{path} is not a COCO JSON: expected lists images, annotations and categories, found no {key}"
            )
    return {key: content[key] for key in ("images", "annotations", "categories")}


class Coco(Reader):
    """What the two kinds of annotation share: categories, pictures, and what happens to a bad one."""

    def __init__(
        self,
        images: Path,
        annotations: Path,
        transform: Transform | None,
        reading: Reading,
        read: Read,
        known: Sequence[str],
        root: Path | None,
    ) -> None:
        super().__init__(reading)
        self.images, self.annotations = Path(images), Path(annotations)
        self.transform = transform
        self._beside = self.annotations if self.annotations.is_dir() else self.annotations.parent
        folders = (self.images, self._beside) if root is None else (root,)
        self._root = Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))
        self.repairs: Repairs = Counter()
        self.left_out: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.division: Division | None = None
        content = read(self.annotations, known, reading)
        if not self.images.is_dir():
            raise MissingFileError(f"no image folder {self.images}, expected the pictures of {self.annotations} there")
        categories = content["categories"] = categories_of(content, self.annotations, known, self.repairs)
        self.category_ids: list[int] = [category["id"] for category in categories]
        self.classes: list[str] = [category["name"] for category in categories]
        self._labels = {number: label for label, number in enumerate(self.category_ids)}
        for name, flaw in content.get("flaws", ()):
            self._reject(name, flaw)
        for note in content.get("notes", ()):
            logger.warning("%s: %s", self.annotations, note)
        by_id = self._read_pictures(content["images"])
        self._read_annotations(content, by_id)
        self._pictures = [picture for picture in by_id.values() if picture is not None]
        self._report()

    @abstractmethod
    def _read_annotations(self, content: Content, pictures: dict[int, Picture | None]) -> None:
        """Add every annotation to its picture; a picture is None if it is left out."""

    @abstractmethod
    def _target(self, picture: Picture) -> Target:
        """The decoded annotations of a picture."""

    @property
    def names(self) -> list[str]:
        return [picture.name for picture in self._pictures]

    @property
    def image_ids(self) -> list[int]:
        return [picture.id for picture in self._pictures]

    @property
    def pictures(self) -> Sequence[Picture]:
        """The images and what is annotated in them, by item."""
        return self._pictures

    def divide(self, held_out: HeldOut, split: str, plain: bool) -> None:
        """Keep what is held out, for split val, or else the rest."""
        chosen = held_out.choose(self.names, [""] * len(self.names))
        self.division = Division.of(held_out, chosen, plain)
        self._pictures = [each for each, out in zip(self._pictures, chosen, strict=True) if out == (split == "val")]

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
            image, target = self._load_sized(picture.path, picture), self._target(picture)
        except _Unreadable as problem:
            self._leave_out_late(picture, problem)
            return None
        return (image, target) if self.transform is None else self.transform(image, target)

    def _leave_out_late(self, picture: Picture, problem: object) -> None:
        advice = "correct it, or leave out what is bad with --skip-bad (skip_bad=True)"
        self.leave_out(picture.name, UserError(f"{self.annotations}: {picture.name}: {problem}; {advice}"))

    def _load_sized(self, path: Path, picture: Picture) -> Image.Image:
        try:
            pixels = self.load(path)
        except (ValueError, OSError) as error:
            raise _Unreadable(str(error)) from error
        check_size(path, pixels.size, picture)
        return pixels

    def _read_pictures(self, entries: list[Any]) -> dict[int, Picture | None]:
        """By image id; None for those left out, whose annotations are then no mistakes of their own."""
        pictures: dict[int, Picture | None] = {}
        names: dict[int, Any] = {}
        for entry in entries:
            name = str(entry.get("file_name") or self.annotations.name) if isinstance(entry, dict) else str(entry)
            try:
                number = whole(entry, "id", self.repairs)
                if number in pictures:
                    if names[number] == entry.get("file_name"):
                        self.repairs["images that were listed twice"] += 1
                        continue
                    pictures[number] = None  # nobody knows whose the annotations are
                    raise Flaw("image ids given twice", f"image id {number} is given twice; ids must be unique")
                pictures[number], names[number] = None, entry.get("file_name")
                path = self._locate(text(entry, "file_name"))
                before = self.repairs["sizes read from the images"]
                size = size_of(entry, path, self.repairs)
                size_read = self.repairs["sizes read from the images"] > before
                pictures[number] = Picture(number, name, path, *size, size_read)
            except (ValueError, OSError) as problem:  # a name may be too long for the system
                self._reject(name, problem)
        return pictures

    def _locate(self, name: str) -> Path:
        """Where an image is: relative to the folder of the images, or else of the set or the JSON."""
        outside: Path | None = None
        for place, path in self._candidates(name):
            if not self.reading.allow_outside and not path.is_relative_to(self._root):
                outside = path
            elif path.is_file():
                if place:
                    self.repairs[place] += 1
                return path
        if outside is not None:
            refuse_outside(name, outside, self._root)
        elsewhere = "" if self._root == Path(os.path.abspath(self.images)) else f", nor in {self._root}"
        raise MissingFileError(f"no such image file in {self.images}{elsewhere}")

    def _candidates(self, name: str) -> Iterator[tuple[str, Path]]:
        spellings = {name.replace("\\", "/"): "paths with backslashes", name: ""}
        for spelling, repair in spellings.items():
            for folder in (self.images, self._root, self._beside):
                elsewhere = "" if folder == self.images else f"paths relative to {folder}"
                yield repair or elsewhere, Path(os.path.abspath(folder / spelling))

    def _label(self, entry: Any) -> int:
        category = whole(entry, "category_id", self.repairs)
        if category not in self._labels:
            raise Flaw(
                "unknown categories",
                f"category_id {category} is unknown; the categories have {few(self.category_ids)}",
            )
        return self._labels[category]

    def _reject(self, name: str, problem: Exception) -> None:
        if not self.reading.skip_bad:
            advice = "correct it, or leave out what is bad with --skip-bad (skip_bad=True)"
            kind = MissingFileError if isinstance(problem, FileNotFoundError) else UserError
            raise kind(f"{self.annotations}: {name}: {problem}; {advice}") from None
        what = problem.kind if isinstance(problem, Flaw) else "images without a file"
        self.left_out[what] += 1
        self.examples.setdefault(what, f"{name}: {problem}")
        self.skipped.append((name, str(problem)))

    def check_labels(self) -> None:
        """Refuse annotations that would train on nothing.

        Raises:
            ValueError: no object is left.
        """
        if not any(picture.objects for picture in self._pictures) and self.left_out:
            name, reason = self.skipped[0]
            raise UserError(f"{self.annotations} has no annotation that can be used; such as {name}: {reason}")

    def _report(self) -> None:
        shown = "; ".join(f"{name}: {reason}" for name, reason in self.skipped[:_SHOWN])
        if not self._pictures:
            raise UserError(f"{self.annotations} names no picture that can be used{': ' * bool(shown)}{shown}")
        if +self.repairs:
            logger.warning("%s: repaired %s", self.annotations, counted(self.repairs))
        if self.skipped:
            number = len(self.skipped)
            logger.warning(
                "%s: left out %d bad entries: %s; such as %s", self.annotations, number, counted(self.left_out), shown
            )


def counted(kinds: Counter[str]) -> str:
    """Numbers by kind in one line, most frequent first."""
    return ", ".join(f"{kind} ({number:,})" for kind, number in (+kinds).most_common())


class CocoInstances(Coco):
    """Boxes and masks of a COCO instances file (format: cocodataset.org/#format-data, object detection).

    Items are (image, target): image an RGB picture of PIL; target a dict of arrays: `boxes` (N, 4) float32, x1, y1, x2,
    y2 in pixels, `labels` (N,) int64 from 0 in order of category id, `masks` (N, H, W) bool, `iscrowd` (N,) bool,
    `area` (N,) float32 in square pixels (the box's where the file has none), and `image_id` int. Crowds are included;
    pictures without objects are kept.

    All but the pixels is checked on opening. What can be repaired without loss is, and is counted in a warning: boxes
    and polygons are clipped to their picture, ids given anew, sizes read from the files.

    Args:
        images: folder that the file names in the JSON are relative to; else they are to the JSON, or to the folder
            that holds both.
        annotations: the JSON.
        transform: (image, target) → sample, see `vankit.data.augment`.
        masks: read and decode the segmentation; without, it may be missing.
        reading: how forgiving to be; `skip_bad` leaves out bad annotations and pictures.
        read: from `annotations` to COCO's content, for other formats.
        known: classes of a network, which are kept though no annotation has them.
        root: the folder of the set; by default the one that holds images and JSON.

    Attributes: `classes` (names), `category_ids`, `names` (files), `image_ids`, `pictures`, `repairs` and `left_out`
    (counts by kind), `examples` (of what was left out, by kind), `skipped` ((file, reason) of it), `division`.

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
        reading: Reading = STRICT,
        read: Read = read_coco,
        known: Sequence[str] = (),
        root: Path | None = None,
    ) -> None:
        self.masks = masks
        super().__init__(images, annotations, transform, reading, read, known, root)

    def _read_annotations(self, content: Content, pictures: dict[int, Picture | None]) -> None:
        seen: dict[str, Any] = {}
        for entry in content["annotations"]:
            name = self.annotations.name
            try:
                if (picture := picture_of(entry, pictures, self.repairs)) is None:
                    continue
                name = picture.name
                number = str(entry.get("id"))
                if number in seen and entry == seen[number]:
                    self.repairs["annotations listed twice"] += 1
                    continue
                if number in seen or number == "None":
                    self.repairs["annotation ids missing or given twice"] += 1
                seen.setdefault(number, entry)
                picture.objects.append(self._instance(entry, picture))
            except Flaw as problem:
                self._reject(name, Flaw(problem.kind, f"annotation {id_of(entry)}: {problem}"))

    def _instance(self, entry: dict[str, Any], picture: Picture) -> Instance:
        box = box_of(entry, picture, self.repairs)
        area = area_of(entry, box, self.repairs)
        segmentation = segmentation_of(entry.get("segmentation"), picture, self.repairs) if self.masks else None
        crowd = flag(entry, "iscrowd", self.repairs, 0)
        return Instance(id_of(entry), self._label(entry), crowd, box, area, segmentation)

    def _target(self, picture: Picture) -> Target:
        objects, masks = self._decoded(picture) if self.masks else (picture.objects, None)
        boxes = np.array([instance.box for instance in objects], np.float32).reshape(-1, 4)
        area = np.array([instance.area for instance in objects], np.float32)
        return as_target(picture, objects, boxes, area, masks)

    def _decoded(self, picture: Picture) -> tuple[list[Instance], NDArray[np.bool_]]:
        """The instances whose masks can be decoded, and those masks."""
        objects: list[Instance] = []
        masks = np.zeros((len(picture.objects), picture.height, picture.width), np.bool_)  # (N, H, W)
        for instance in picture.objects:
            try:
                masks[len(objects)] = decode_mask(instance.segmentation, picture.height, picture.width)
                objects.append(instance)
            except ValueError as problem:
                self._leave_out_late(picture, f"annotation {instance.id}: {problem}")
        return objects, masks[: len(objects)]


class _Unreadable(UserError):
    """A picture, or the PNG of its segments, is no use, whatever its annotations are."""


def check_size(path: Path, size: tuple[int, int], picture: Picture) -> None:
    """Refuse a file of another size than its picture has.

    Raises:
        ValueError: it has; the message says how to mend it.
    """
    if size == (picture.width, picture.height):
        return
    advice = "correct the JSON"
    if size == (picture.height, picture.width):
        advice = f"{UPRIGHT} {path}"
    raise _Unreadable(
        f"{path} is {size[0]} x {size[1]} pixels once its EXIF rotation is applied, the JSON says {picture.size}; "
        f"{advice}"
    )


def picture_of(entry: Any, pictures: dict[int, Picture | None], repairs: Repairs) -> Picture | None:
    number = whole(entry, "image_id", repairs)
    if number not in pictures:
        raise Flaw("unknown images", f"image_id {number} is unknown; it must be the id of an entry of images")
    return pictures[number]


def as_target(
    picture: Picture,
    objects: Sequence[Segment],
    boxes: NDArray[np.float32],
    area: NDArray[np.float32],
    masks: NDArray[np.bool_] | None,
) -> Target:
    return {
        "boxes": boxes,
        "labels": np.array([entry.label for entry in objects], np.int64),
        **({} if masks is None else {"masks": masks}),
        "iscrowd": np.array([entry.iscrowd for entry in objects], np.bool_),
        "area": area,
        "image_id": picture.id,
    }


def id_of(entry: Any) -> Any:
    return entry.get("id") if isinstance(entry, dict) else entry
