"""The entries of a COCO JSON: repaired where that loses nothing, refused where it would."""

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vankit.data.images import is_turned, read_size
from vankit.data.walk import UNLISTED, PassedOver
from vankit.errors import UserError

Content = dict[str, list[Any]]  # images, annotations, categories; flaws: (name, Flaw) that a converter met
Box = tuple[float, float, float, float]  # x1, y1, x2, y2
Polygons = list[NDArray[np.float64]]  # of x, y, x, y…
Repairs = Counter[str]  # by kind

UPRIGHT = (
    "annotate the upright picture, or, if the boxes fit the picture as it is stored, take its rotation away: exiftool "
    "-Orientation="
)
OUTSIDE = "images outside the folder"
_LARGEST_AREA = 1e18  # square pixels; more is a mistake, and may be beyond what float32 holds
OVERHANG = 2  # pixels; COCO's own boxes and polygons reach past the edge by rounding


class Flaw(UserError):
    """What is wrong with an entry beyond repair.

    Attributes:
        kind: of the mistake, in the plural, to count by.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def refuse_outside(name: str, path: str | Path, root: Path) -> None:
    """Refuse, before it is opened, a file that is not in the folder of its set.

    Args:
        name: as the annotations have it.
        path: where the file is.
        root: the folder.

    Raises:
        Flaw: it leads out.
    """
    folder = os.path.abspath(root)
    if not Path(os.path.abspath(path)).is_relative_to(folder):
        raise Flaw(
            OUTSIDE,
            f"file_name {name!r} leads out of {folder}; expected a name inside it: --allow-outside "
            "(allow_outside=True) reads such images too",
        )


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of a panoptic map; or an object, whose id is as the file has it."""

    id: Any
    label: int
    iscrowd: bool


@dataclass(frozen=True, slots=True)
class Instance(Segment):
    """An object with its box and, where masks are read, its polygons or RLE."""

    box: Box
    area: float
    segmentation: Polygons | dict[str, Any] | None


@dataclass(slots=True)
class Picture:
    """An image of the set and what is annotated in it.

    Attributes:
        name: as the JSON has it.
        path: where the file is.
        size_read: whether the JSON does not say its size, so that it was read from the file.
        png: of its panoptic segments.
    """

    id: int
    name: str
    path: Path
    width: int
    height: int
    size_read: bool = False
    objects: list[Any] = field(default_factory=list)
    png: Path | None = None

    @property
    def size(self) -> str:
        return f"{self.width} x {self.height}"


def whole(entry: Any, key: str, repairs: Repairs) -> int:
    """A whole number of an entry, of at most 64 bits; also a float such as 3.0, or digits as text.

    Raises:
        Flaw: it is none.
    """
    value = entry.get(key) if isinstance(entry, dict) else None
    number: Any = value
    if (isinstance(value, float) and value.is_integer()) or (
        isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,18}\s*", value)
    ):
        number = int(value)
    if not isinstance(number, int) or isinstance(number, bool) or not -(2**63) <= number < 2**63:
        raise Flaw(f"entries without a usable {key}", f"has {key} {value!r}, expected a whole number of 64 bits")
    if number is not value:
        repairs[f"{key}s that were not whole numbers"] += 1
    return number


def text(entry: Mapping[str, Any], key: str) -> str:
    """A name of an entry.

    Raises:
        Flaw: it is none.
    """
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise Flaw(f"entries without a {key}", f"has {key} {value!r}, expected a name")
    return value


def unlisted(passed_over: PassedOver) -> list[tuple[str, Flaw]]:
    """Folders that cannot be listed as flaws, rather than as passed over."""
    passed_over.counts.pop(UNLISTED, None)
    return [(path, Flaw(UNLISTED, str(problem))) for path, problem in passed_over.problems]


def flag(entry: Mapping[str, Any], key: str, repairs: Repairs, default: int | None = None) -> bool:
    """0 or 1 of an entry; also as text, and None where there is a default.

    Raises:
        Flaw: it is neither.
    """
    value = entry.get(key, default)
    if value is None and default is not None:
        value = default
        repairs[f"{key} flags"] += 1
    elif isinstance(value, str) and value.strip() in ("0", "1"):
        value = int(value)
        repairs[f"{key} flags"] += 1
    if value not in (0, 1):
        raise Flaw(f"entries without a usable {key}", f"has {key} {value!r}, expected 0 or 1")
    return bool(value)


def size_of(entry: Mapping[str, Any], path: Path, repairs: Repairs) -> tuple[int, int]:
    """(width, height) in pixels that an entry gives, or else the file."""
    width, height = (-1 if entry.get(side) is None else whole(entry, side, repairs) for side in ("width", "height"))
    if width > 0 and height > 0:
        return width, height
    try:
        size = read_size(path)
    except (OSError, ValueError) as error:
        raise Flaw("images that cannot be read", str(error)) from error
    repairs["sizes read from the images"] += 1
    return size


def box_of(entry: Mapping[str, Any], picture: Picture, repairs: Repairs) -> Box:
    """COCO's x, y, width, height → x1, y1, x2, y2 inside the picture; without a bbox, around the polygons.

    Raises:
        Flaw: it is no box, or nothing of it is inside.
    """
    value = entry.get("bbox")
    if not (isinstance(value, list) and any(value)) and (polygons := _finite_polygons(entry.get("segmentation"))):
        corners = np.concatenate(polygons).reshape(-1, 2)
        (x1, y1), (x2, y2) = corners.min(0).tolist(), corners.max(0).tolist()
        repairs["boxes taken from the polygons"] += 1
        value = [x1, y1, x2 - x1, y2 - y1]
    if not isinstance(value, list) or len(value) != 4 or not finite(value):
        raise Flaw("entries without a usable bbox", f"bbox is {value!r}, expected four numbers x, y, width, height")
    x, y, width, height = map(float, value)
    if width <= 0 or height <= 0:
        raise Flaw("empty boxes", f"bbox {value} is empty: width and height must be positive")
    # both ends are brought into the picture: further out they may be beyond what float32 holds
    (x1, x2), (y1, y2) = (
        [min(max(end, 0.0), side) for end in (start, start + length)]
        for start, length, side in ((x, width, picture.width), (y, height, picture.height))
    )
    if np.float32(x1) >= np.float32(x2) or np.float32(y1) >= np.float32(y2):
        raise Flaw("boxes outside their image", f"bbox {value} is empty inside the picture of {picture.size} pixels")
    if _reach((x, x + width), (y, y + height), picture) > OVERHANG:
        _refuse_turned(f"bbox {value}", picture)
        repairs["boxes clipped to their image"] += 1
    return x1, y1, x2, y2


def _refuse_turned(what: str, picture: Picture) -> None:
    """What lies past the edge of a picture that was turned, and whose size the JSON does not say, may not be of it."""
    if picture.size_read and is_turned(picture.path):
        raise Flaw(
            "boxes of a turned image",
            f"{what} reaches past the upright picture of {picture.size}, whose EXIF rotation is applied; {UPRIGHT} "
            f"{picture.path}",
        )


def _finite_polygons(value: Any) -> Polygons:
    polygons = [value] if isinstance(value, list) and value and not isinstance(value[0], list) else value
    if not isinstance(polygons, list):
        return []
    usable = [each for each in polygons if isinstance(each, list) and len(each) >= 6 and not len(each) % 2]
    return [np.array(each, np.float64) for each in usable if finite(each)]


def _reach(xs: Sequence[float], ys: Sequence[float], picture: Picture) -> float:
    """By how many pixels points lie outside a picture."""
    return max(-min(xs), -min(ys), max(xs) - picture.width, max(ys) - picture.height)


def area_of(entry: Mapping[str, Any], box: Box, repairs: Repairs) -> float:
    """An entry's area in square pixels; its box's where it has none."""
    area = entry.get("area")
    if isinstance(area, int | float) and not isinstance(area, bool) and 0 <= area <= _LARGEST_AREA:
        return area
    if area is not None:
        repairs["areas taken from the boxes"] += 1
    return (box[2] - box[0]) * (box[3] - box[1])


def segmentation_of(value: Any, picture: Picture, repairs: Repairs) -> Polygons | dict[str, Any]:
    """Polygons, or an RLE of the picture's size.

    Raises:
        Flaw: it is neither.
    """
    if not value:
        raise Flaw(
            "objects without a segmentation",
            "no segmentation, but the head needs masks; add it, or train a head without, such as retinanet",
        )
    if isinstance(value, list):
        return _polygons(value, picture, repairs)
    counts = value.get("counts") if isinstance(value, dict) else None
    if not isinstance(counts, str) and not (isinstance(counts, list) and finite(counts)):
        raise Flaw(
            "unusable segmentations",
            "segmentation is neither a list of polygons nor RLE, expected [[x, y, …]] or {size, counts}",
        )
    if value.get("size") != [picture.height, picture.width]:
        raise Flaw(
            "unusable segmentations",
            f"RLE size is {value.get('size')}, the picture's is {[picture.height, picture.width]}",
        )
    return {"size": value["size"], "counts": counts}


def _polygons(value: list[Any], picture: Picture, repairs: Repairs) -> Polygons:
    if finite(value):
        repairs["segmentations that were one flat list"] += 1
        value = [value]
    polygons = [_polygon(each, picture, repairs) for each in value]
    areas = [polygon for polygon in polygons if len(polygon) >= 6]
    if not areas:
        raise Flaw("unusable segmentations", f"a polygon has {len(polygons[0]) // 2} points, expected at least 3")
    if dropped := len(polygons) - len(areas):
        repairs["polygons of fewer than 3 points beside others"] += dropped
    return areas


def _polygon(value: Any, picture: Picture, repairs: Repairs) -> NDArray[np.float64]:
    if not isinstance(value, list) or not value or not finite(value) or len(value) % 2:
        raise Flaw(
            "unusable segmentations",
            "a polygon is not a list of numbers x, y, x, y…; segmentation must be a list of such lists",
        )
    reach = _reach(value[::2], value[1::2], picture)
    if reach > max(picture.width, picture.height):  # rasterising takes time by the length of the edges
        raise Flaw(
            "polygons far outside their image", f"a polygon reaches {reach:g} pixels past its picture of {picture.size}"
        )
    if reach > OVERHANG:
        _refuse_turned("a polygon", picture)
        repairs["polygons clipped to their image"] += 1
    return np.array(value, np.float64)


def finite(values: Sequence[Any]) -> bool:
    """Whether all are numbers, and finite."""
    try:
        return all(map(math.isfinite, values))
    except (TypeError, OverflowError):
        return False


def categories_of(
    content: Mapping[str, Any], path: Path, known: Sequence[str], repairs: Repairs
) -> list[dict[str, Any]]:
    """The categories by id, without the super-category that Roboflow lists among them and no annotation has.

    Args:
        content: of the JSON.
        path: of the JSON.
        known: classes that stay in any case.
        repairs: are counted here.

    Raises:
        ValueError: one has no id or name, or ids are given twice.
    """
    try:
        entries = [
            entry | {"id": whole(entry, "id", repairs), "name": text(entry, "name")}
            for entry in map(_dictionary, content["categories"])
        ]
    except Flaw as problem:
        raise UserError(f"{path}: a category {problem}") from None
    ids = {entry["id"] for entry in entries}
    if not 0 < len(ids) == len(entries):
        raise UserError(
            f"{path}: {len(entries)} categories with {len(ids)} ids, expected one id for each, and at least 1"
        )
    entries.sort(key=lambda entry: entry["id"])
    candidates = [entry for entry in entries if entry["name"] not in known]
    unused = [entry for entry in candidates if _is_super_category(entry, entries, content["annotations"])]
    repairs.update("unused super-categories" for _ in unused)
    return [entry for entry in entries if entry not in unused]


def _dictionary(entry: Any) -> dict[str, Any]:
    return entry if isinstance(entry, dict) else {"id": None}


def _is_super_category(entry: dict[str, Any], entries: list[dict[str, Any]], annotations: list[Any]) -> bool:
    others = [other for other in entries if other is not entry]
    if entry.get("supercategory") != "none" or not others:
        return False
    if any(other.get("supercategory") != entry["name"] for other in others):
        return False
    rows = [annotation for annotation in annotations if isinstance(annotation, dict)]
    used = (each.get("category_id") for row in rows for each in (row, *(row.get("segments_info") or ())))
    return not any(str(number) in (str(entry["id"]), f"{entry['id']}.0") for number in used)
