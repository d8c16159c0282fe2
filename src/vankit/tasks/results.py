"""What a network found in one picture: objects, a class per pixel, or segments of both kinds.

Boxes are x1, y1, x2, y2 in the picture's pixels with the far edges outside: a whole picture is 0, 0, W, H.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vankit.errors import MissingPackageError, UserError
from vankit.tasks.colours import class_colours, object_colours
from vankit.tasks.drawing import add_legend, draw_boxes, draw_outlines, draw_regions

Arrays = Mapping[str, NDArray[Any]]  # a network's result or a target, see `vankit.tasks.dense`


@dataclass(frozen=True)
class Failure:
    """A picture, by its path or description, that could not be answered for, and why."""

    source: str
    error: str


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects of one picture.

    Attributes:
        source: path as given, or a description of a picture passed in memory.
        classes: names by label.
        boxes: (N, 4) float32.
        labels: (N,) int64 from 0.
        scores: (N,) float32, 0 to 1, best first.
        masks: (N, H, W) bool, which may overlap, or None.
    """

    source: str
    classes: list[str]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: NDArray[np.bool_] | None = None

    def resized(self, size: tuple[int, int], before: tuple[int, int]) -> "Detections":
        """What was found in a picture of one size (W, H), for the picture at another."""
        masks = None if self.masks is None else _nearest(self.masks, size)
        factor = np.tile(np.divide(size, before), 2).astype(np.float32)
        return replace(self, boxes=self.boxes * factor, masks=masks)

    def above(self, score: float) -> "Detections":
        """Those that score at least so much, 0 to 1."""
        keep = self.scores >= score
        masks = None if self.masks is None else self.masks[keep]
        return replace(self, boxes=self.boxes[keep], labels=self.labels[keep], scores=self.scores[keep], masks=masks)

    def summary(self) -> str:
        """Objects by class, most frequent first: `3 circle, 1 star`."""
        return _sentence(_counts(self.labels, self.classes))

    def draw(self, image: Image.Image, scores: bool = True) -> Image.Image:
        """A copy of the RGB picture with boxes, names, scores and, where there are any, masks, small over large.

        Each object has a shade of its class's colour, see `vankit.tasks.colours`.

        Args:
            image: the picture in which they were found.
            scores: write them beside the names.

        Raises:
            ValueError: picture and masks differ in size.
        """
        colours = object_colours(self.classes, self.labels.tolist(), self.boxes[:, 0] + self.boxes[:, 2])
        if self.masks is not None:
            regions = _layers(self.masks)
            image = draw_regions(image, regions, colours)
            draw_outlines(image, regions, colours)
        written = [f" {score:.2f}" if scores else "" for score in self.scores]
        names = [self.classes[label] + score for label, score in zip(self.labels, written, strict=True)]
        return draw_boxes(image, self.boxes, names, colours)

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of COCO's results format for detection and, with masks, instance segmentation.

        Args:
            image_id: COCO's number of the picture.
            category_ids: COCO's number of each class, by label.

        Returns:
            A row per object: `image_id`, `category_id`, `bbox` (x, y, width, height in pixels), `score`, and
            `segmentation`, a compressed RLE, with masks. json takes them as they are.

        Raises:
            ValueError: category_ids and classes differ in number.

        Source: https://cocodataset.org/#format-results
        """
        _check_categories(category_ids, self.classes)
        x1, y1, x2, y2 = self.boxes.astype(float).T  # (N,) each; exact differences
        boxes = np.stack([x1, y1, x2 - x1, y2 - y1], 1).tolist()
        rows: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": int(category_ids[label]), "bbox": box, "score": float(score)}
            for label, box, score in zip(self.labels, boxes, self.scores, strict=True)
        ]
        if self.masks is not None:
            rows = [row | {"segmentation": _rle(mask)} for row, mask in zip(rows, self.masks, strict=True)]
        return rows

    def to_supervision(self) -> Any:
        """As a `supervision.Detections`, with the names in `data["class_name"]`.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            from supervision import Detections as Found
        except ImportError:
            raise MissingPackageError("to_supervision needs the library supervision: pip install supervision") from None
        data: Any = {"class_name": np.array([self.classes[label] for label in self.labels], np.str_)}
        return Found(xyxy=self.boxes, mask=self.masks, confidence=self.scores, class_id=self.labels, data=data)


@dataclass(frozen=True, eq=False)
class SemanticMap:
    """A class per pixel.

    Attributes:
        source, classes: as of `Detections`.
        labels: (H, W) int64 from 0; a pixel with any other value, such as 255, is unlabelled.
    """

    source: str
    classes: list[str]
    labels: NDArray[np.int64]

    def summary(self) -> str:
        """Classes by their share of the picture: `road 41 %, sky 20 %`."""
        return self._stuff().summary()

    def draw(self, image: Image.Image) -> Image.Image:
        """A copy of the RGB picture, tinted by class, over a legend; see `Detections.draw`."""
        return self._stuff().draw(image)

    def resized(self, size: tuple[int, int]) -> "SemanticMap":
        """The map for the picture at another size, (W, H) in pixels."""
        return replace(self, labels=_nearest(self.labels, size))

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of COCO's results format for stuff segmentation; see `Detections.to_coco`.

        Returns:
            A row per class present, by label: `image_id`, `category_id` and `segmentation`, a compressed RLE.
        """
        _check_categories(category_ids, self.classes)
        return [
            {"image_id": image_id, "category_id": int(category_ids[label]), "segmentation": _rle(self.labels == label)}
            for label in np.flatnonzero(self._stuff()._pixels()).tolist()
        ]

    def to_supervision(self) -> Any:
        """As a `supervision.Detections` with a mask per class present, by label, and no confidence."""
        found = self._stuff().to_supervision()
        found.confidence = None
        return found

    def _stuff(self) -> "PanopticMap":
        number = len(self.classes)
        segments = np.where((self.labels >= 0) & (self.labels < number), self.labels + 1, 0)
        labels, scores = np.arange(number), np.ones(number, np.float32)
        return PanopticMap(self.source, self.classes, [False] * number, segments, labels, scores)


@dataclass(frozen=True, eq=False)
class PanopticMap:
    """At most one segment per pixel: a thing, or all of one kind of stuff.

    Attributes:
        source, classes: as of `Detections`.
        things: by label, whether its segments are single objects.
        segments: (H, W) int64; 0 is none, i + 1 segment i.
        labels: (S,) int64 from 0.
        scores: (S,) float32, 0 to 1.
    """

    source: str
    classes: list[str]
    things: list[bool]
    segments: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]

    def summary(self) -> str:
        """Things by number, then stuff by its share of the picture: `2 person, road 41 %`."""
        return _sentence(self._entries())

    def draw(self, image: Image.Image) -> Image.Image:
        """A copy of the RGB picture, tinted by class with things outlined, over a legend; see `Detections.draw`."""
        seen = np.flatnonzero(self._pixels())
        labels = self.labels[seen].tolist()
        colours = [(0, 0, 0)] * len(self.labels)
        for i, colour in zip(seen, object_colours(self.classes, labels, self._across()[seen]), strict=True):
            colours[i] = colour
        tinted = draw_regions(image, self.segments, colours)
        draw_outlines(tinted, self.segments * np.append(False, self._is_thing())[self.segments], colours)
        of_class = class_colours(self.classes, labels)
        return add_legend(tinted, [(of_class[label], text) for label, text in self._entries()])

    def resized(self, size: tuple[int, int]) -> "PanopticMap":
        """The map for the picture at another size, (W, H) in pixels; small segments may lose all of theirs."""
        return replace(self, segments=_nearest(self.segments, size))

    def to_coco(self, image_id: int, category_ids: Sequence[int], file_name: str) -> dict[str, Any]:
        """The picture's entry in COCO's panoptic results; see `Detections.to_coco`.

        Args:
            file_name: under which the map of `to_png` is saved.

        Returns:
            `image_id`, `file_name` and `segments_info`: `id`, `category_id`, `isthing` and `score` of each segment
            that has pixels.
        """
        _check_categories(category_ids, self.classes)
        seen = np.flatnonzero(self._pixels()).tolist()
        rows = [
            {"id": i + 1, "category_id": int(category_ids[k]), "isthing": int(self.things[k]), "score": float(score)}
            for i, k, score in zip(seen, self.labels[seen].tolist(), self.scores[seen], strict=True)
        ]
        return {"image_id": image_id, "file_name": file_name, "segments_info": rows}

    def to_png(self) -> Image.Image:
        """The map as COCO stores it: an RGB picture of R + 256 G + 65536 B = id, 0 for none. Save it as PNG."""
        ids = self.segments
        return Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8))

    def to_supervision(self) -> Any:
        """As a `supervision.Detections` with a mask per segment that has pixels; see `Detections.to_supervision`."""
        return self.objects().to_supervision()

    def objects(self) -> Detections:
        """The segments that have pixels, each with its mask."""
        seen = np.flatnonzero(self._pixels())
        masks = self.segments == seen[:, None, None] + 1  # (K, H, W)
        boxes = np.array([_box_of(mask) for mask in masks], np.float32).reshape(-1, 4)
        return Detections(self.source, self.classes, boxes, self.labels[seen], self.scores[seen], masks)

    def _pixels(self) -> NDArray[np.int64]:
        return np.bincount(self.segments.ravel(), minlength=len(self.labels) + 1)[1:]  # (S,)

    def _across(self) -> NDArray[np.float64]:
        """The mean column of each segment that has pixels, (S,)."""
        columns = np.broadcast_to(np.arange(self.segments.shape[1]), self.segments.shape)
        sums = np.bincount(self.segments.ravel(), columns.ravel(), len(self.labels) + 1)[1:]
        return sums / np.maximum(self._pixels(), 1)

    def _is_thing(self) -> NDArray[np.bool_]:
        return np.array(self.things, bool)[self.labels]  # (S,)

    def _entries(self) -> list[tuple[int, str]]:
        pixels, is_thing = self._pixels(), self._is_thing()
        shares = np.bincount(self.labels, pixels * ~is_thing, len(self.classes)) / self.segments.size  # by label
        percent = [f"{100 * share:.0f}" if share >= 0.005 else "<1" for share in shares]
        largest_first = [label for label in np.argsort(-shares, kind="stable").tolist() if shares[label] > 0]
        stuff = [(label, f"{self.classes[label]} {percent[label]} %") for label in largest_first]
        return _counts(self.labels[is_thing & (pixels > 0)], self.classes) + stuff


def _layers(masks: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Masks (N, H, W), which may overlap, as one map (H, W): 0 for none, i + 1 for mask i, small over large."""
    regions = np.zeros(masks.shape[1:], np.int32)
    for i in sorted(range(len(masks)), key=lambda i: -np.count_nonzero(masks[i])):
        np.putmask(regions, masks[i], i + 1)
    return regions


def _box_of(mask: NDArray[np.bool_]) -> list[int]:
    """The box around a mask (H, W) that has pixels."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def _nearest(values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """(..., H, W) at another size (W, H)."""
    rows, columns = (np.arange(size[i]) * values.shape[-1 - i] // size[i] for i in (1, 0))
    return values[..., rows[:, None], columns]


def _counts(labels: NDArray[np.int64], classes: list[str]) -> list[tuple[int, str]]:
    return [(label, f"{number} {classes[label]}") for label, number in Counter(labels.tolist()).most_common()]


def _sentence(entries: list[tuple[int, str]]) -> str:
    return ", ".join(text for _, text in entries) or "nothing found"


def _check_categories(category_ids: Sequence[int], classes: list[str]) -> None:
    if len(category_ids) != len(classes):
        raise UserError(f"{len(category_ids)} category_ids for {len(classes)} classes: expected one for each")


def _rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    from faster_coco_eval import mask as coco

    rle = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}
