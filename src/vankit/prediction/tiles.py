"""Pictures larger than a detector looks at: found tile by tile, so that small objects are not made smaller still."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vankit.tasks.results import Detections

DEFAULT_OVERLAP = 0.2  # of tiles, as of supervision's and SAHI's

_SAME = 0.5  # IoU from which on two finds are one object; of supervision's InferenceSlicer and of SAHI
_NEAR = 1 / 64  # of a tile: how close to its edge a box ends that is cut there


def find_in_tiles(
    picture: Image.Image,
    find: Callable[[Image.Image], Detections],
    tile: int = 640,
    overlap: float = DEFAULT_OVERLAP,
    sure: float = 0.0,
    most: int | None = None,
) -> Detections:
    """What a detector finds in a picture as a whole, and in overlapping tiles of it.

    The whole picture is looked at for objects larger than a tile (as by SAHI). What two views find of one class is one
    object if the IoU of the boxes exceeds 0.5, and the better find is kept. A box that ends at a tile's edge inside the
    picture is taken for a part of an object: it goes if more than half of it lies in a whole one's box, or in a larger
    part's. What one view finds is left to the detector's own judgement.

    An object no larger than the overlap, `tile` times `overlap` pixels, lies whole in some tile. One that no view shows
    whole may be found in parts.

    Args:
        picture: (W, H), RGB.
        find: the detector; its finds are in the pixels of what it is given.
        tile: side of the tiles in pixels, 32 or more. A picture that fits in one is looked at once.
        overlap: of neighbouring tiles, at least, as a share of their side, 0 to 0.9.
        sure: score from which on a find takes the place of parts that score more.
        most: finds to keep where there are tiles, the best ones; None for all.

    Returns:
        The finds, best first. Masks take N x H x W bytes in the end; until then, only as many as there are pixels in
        the rectangles around them, and in those of one view.

    Source: Akyon et al. 2022, arXiv 2202.06934 (SAHI).
    """
    whole = find(picture)
    places = list(places_of_tiles(picture.size, tile, overlap))
    if len(places) < 2:
        return whole
    views = [_View.of(whole, (0, 0, *picture.size), np.zeros(len(whole.boxes), bool))]
    for place in places:
        found = find(picture.crop(place))
        views.append(_View.of(found, place, _cut(found.boxes, place, picture.size, tile)))
    return _merged(whole, views, picture.size, sure, most)


def places_of_tiles(size: tuple[int, int], tile: int, overlap: float) -> Iterator[tuple[int, int, int, int]]:
    """Tiles (left, top, right, bottom) that cover a picture (W, H), row by row, the last ones flush with its edges."""
    for top, left in product(_starts(size[1], tile, overlap), _starts(size[0], tile, overlap)):
        yield left, top, min(left + tile, size[0]), min(top + tile, size[1])


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    last = max(0, length - tile)
    return [*range(0, last, max(1, int(tile * (1 - overlap)))), last]


def _cut(
    boxes: NDArray[np.float32], place: tuple[int, int, int, int], size: tuple[int, int], tile: int
) -> NDArray[np.bool_]:
    """Which boxes (N, 4) of a tile end at an edge of it that is not the picture's."""
    left, top, right, bottom = place
    near = tile * _NEAR
    far = np.array([right - left, bottom - top]) - near
    inner = np.array([left > 0, top > 0, right < size[0], bottom < size[1]])
    return np.asarray((np.concatenate([boxes[:, :2] <= near, boxes[:, 2:] >= far], 1) & inner).any(1))


@dataclass(frozen=True, eq=False)
class _Mask:
    """The part of an object's mask that has pixels, (h, w), and where it is in the picture."""

    left: int
    top: int
    pixels: NDArray[np.bool_]

    @classmethod
    def of(cls, mask: NDArray[np.bool_], left: int, top: int) -> "_Mask":
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return cls(left, top, np.zeros((0, 0), bool))
        x, y = int(columns[0]), int(rows[0])
        return cls(left + x, top + y, mask[y : rows[-1] + 1, x : columns[-1] + 1].copy())  # the rest is freed

    def put_into(self, mask: NDArray[np.bool_]) -> None:
        height, width = self.pixels.shape
        mask[self.top : self.top + height, self.left : self.left + width] = self.pixels


@dataclass(frozen=True, eq=False)
class _View:
    """What was found in the whole picture or in a tile, in the picture's pixels, and which of it is cut."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    cut: NDArray[np.bool_]
    masks: list[_Mask] | None

    @classmethod
    def of(cls, found: Detections, place: tuple[int, int, int, int], cut: NDArray[np.bool_]) -> "_View":
        left, top = place[:2]
        masks = None if found.masks is None else [_Mask.of(mask, left, top) for mask in found.masks]
        boxes = found.boxes + np.array([left, top, left, top], np.float32)
        return cls(boxes, found.labels, found.scores, cut, masks)


def _merged(
    whole: Detections, views: Sequence[_View], size: tuple[int, int], sure: float, most: int | None
) -> Detections:
    boxes, labels, scores, cut = (
        np.concatenate([getattr(view, name) for view in views]) for name in ("boxes", "labels", "scores", "cut")
    )
    of_view = np.repeat(np.arange(len(views)), [len(view.boxes) for view in views])
    kept = suppress(boxes, labels, scores, of_view, cut, sure)[:most]
    masks = None
    if whole.masks is not None:
        patches = [mask for view in views for mask in view.masks or ()]
        masks = np.zeros((len(kept), size[1], size[0]), bool)
        for mask, i in zip(masks, kept, strict=True):
            patches[i].put_into(mask)
    return replace(whole, boxes=boxes[kept], labels=labels[kept], scores=scores[kept], masks=masks)


def suppress(
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    scores: NDArray[np.float32],
    views: NDArray[np.int64],
    cut: NDArray[np.bool_],
    sure: float = 0.0,
) -> NDArray[np.int64]:
    """Non-maximum suppression among the finds of several views, class by class; see `find_in_tiles`.

    Args:
        boxes: (N, 4).
        labels, scores: (N,).
        views: (N,) in which view each was found; those of one view do not suppress each other.
        cut: (N,) whether each is a part of an object. Parts come after whole ones, and the larger ones of them first.
        sure: see `find_in_tiles`.

    Returns:
        Indices of those to keep, best first.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    waiting = np.lexsort((np.where(cut, -areas, -scores), cut))
    kept = []
    while len(waiting):
        first, waiting = waiting[0], waiting[1:]
        kept.append(first)
        corners = np.maximum(boxes[first, :2], boxes[waiting, :2]), np.minimum(boxes[first, 2:], boxes[waiting, 2:])
        shared = np.clip(corners[1] - corners[0], 0, None).prod(1)
        of = np.where(cut[waiting], areas[waiting], areas[first] + areas[waiting] - shared)
        same = (shared > _SAME * of) & (labels[waiting] == labels[first]) & (views[waiting] != views[first])
        same &= scores[first] >= np.minimum(scores[waiting], sure)
        waiting = waiting[~same]
    found = np.array(kept, np.int64)
    return found[np.argsort(-scores[found], kind="stable")]
