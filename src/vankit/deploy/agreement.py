"""Whether an exported detector or segmenter finds in pictures what the network in PyTorch finds."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vankit.errors import UserError
from vankit.tasks.detect import overlaps
from vankit.tasks.results import Arrays

OBJECTS = 0.99  # suppression decides by a hair now and then; of fewer than 100 objects, but 20 or more, one may differ

_MOST = 100  # objects per picture: below them others may stand
_ALWAYS = 10  # of which the best are compared however close their scores are


@dataclass(frozen=True)
class Tolerance:
    """How much the same may differ.

    Attributes:
        box: least IoU of two boxes (or segments) of an object.
        score: largest difference of its scores.
        pixels: least part of the pixels, of the objects' masks or of the pictures, that agrees.
    """

    box: float
    score: float
    pixels: float


EXACT = Tolerance(0.99, 1e-3, 0.999)
HALF = Tolerance(0.95, 0.005, 0.99)  # with weights in 16 bits


@dataclass
class Agreement:
    """What was compared so far.

    Attributes:
        pictures: how many.
        objects: that PyTorch found, of detectors and panoptic networks; those of nearly the lowest score that is kept
            are left out.
        same: objects that the model found too: of the same class, with boxes (or segments) and scores that differ by no
            more than `tolerance`.
        others: objects that the model alone found.
        score_difference: the largest of those objects.
        pixels, same_pixels: of the same objects' masks together, or of all pictures.
        tolerance: what counts as the same.
    """

    pictures: int = 0
    objects: int = 0
    same: int = 0
    others: int = 0
    score_difference: float = 0.0
    pixels: int = 0
    same_pixels: int = 0
    tolerance: Tolerance = EXACT

    def add(self, expected: Arrays, found: Arrays) -> None:
        """Compare the results for one picture, see `vankit.DensePredictor.results`."""
        self.pictures += 1
        if "semantic" in expected:
            self._add_pixels(expected["semantic"].size, expected["semantic"] == found["semantic"])
        elif "segments" in expected:
            self._add_objects(expected, found, _segment_ious(expected, found))
            self._add_pixels(expected["segments"].size, _classes(expected) == _classes(found))
        else:
            pairs = self._add_objects(expected, found, _box_ious(expected["boxes"], found["boxes"]))
            if "masks" in expected:
                for i, j in pairs:
                    one, other = expected["masks"][i], found["masks"][j]
                    self._add_pixels(int((one | other).sum()), one & other)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was found that could differ."""
        return not (self.objects or self.pixels)

    @property
    def share(self) -> float | None:
        """Of the objects that either found, or of the pixels if it is less, those that are the same; None of none."""
        counts = ((self.same, max(self.objects, self.same + self.others)), (self.same_pixels, self.pixels))
        return min((same / total for same, total in counts if total), default=None)

    def check(self) -> None:
        """
        Raises:
            ValueError: too much differs.
        """
        allowed = max((1 - OBJECTS) * self.objects, self.objects >= 20)
        wrong = max(self.objects - self.same, self.others)
        if wrong > allowed or self.same_pixels < self.tolerance.pixels * self.pixels:
            more = f", and {self.others} more were found" * (self.others > 0)
            raise UserError(f"the exported network differs from PyTorch's: {self.summary()}{more}; nothing was written")

    def summary(self) -> str:
        """`120 of 120 objects and 99.99 % of the pixels are the same in 6 pictures`."""
        parts = []
        if self.objects or not self.pixels:
            parts.append(f"{self.same} of {self.objects} objects")
        if self.pixels:
            parts.append(f"{100 * self.same_pixels / self.pixels:.2f} % of the pixels")
        return f"{' and '.join(parts)} are the same in {self.pictures} pictures"

    def _add_pixels(self, count: int, same: NDArray[np.bool_]) -> None:
        self.pixels += count
        self.same_pixels += int(same.sum())

    def _add_objects(self, expected: Arrays, found: Arrays, ious: NDArray[Any]) -> list[tuple[int, int]]:
        """The pairs of objects that are the same."""
        away = np.abs(expected["scores"][:, None] - found["scores"])  # (N, M)
        same = expected["labels"][:, None] == found["labels"]
        same &= (ious >= self.tolerance.box) & (away <= self.tolerance.score)
        pairs, taken = [], set()
        for i in range(len(same)):
            j = next((int(j) for j in np.flatnonzero(same[i]) if j not in taken), None)
            if j is not None:
                taken.add(j)
                pairs.append((i, j))
        clear, also = (_clear(results, self.tolerance.score) for results in (expected, found))
        self.objects += int(clear.sum())
        self.same += sum(bool(clear[i]) for i, _ in pairs)
        self.others += sum(bool(is_clear) and j not in taken for j, is_clear in enumerate(also))
        self.score_difference = max([self.score_difference, *(float(away[pair]) for pair in pairs)])
        return pairs


def _clear(results: Arrays, margin: float) -> NDArray[np.bool_]:
    """Which objects, best first, are kept however their scores are rounded, and have an area."""
    if "boxes" not in results:
        return np.ones(len(results["scores"]), np.bool_)
    scores, boxes = results["scores"], results["boxes"]
    clear = scores > 0.05 + margin  # torchvision's lowest
    if len(scores) >= _MOST:
        clear = (scores > scores.min() + margin) | (np.arange(len(scores)) < _ALWAYS)
    return np.asarray(clear & (boxes[:, 2:] > boxes[:, :2]).all(1))


def _box_ious(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Of boxes (N, 4) and (M, 4), (N, M)."""
    shared, union = overlaps(one, other)
    return np.asarray(shared / np.maximum(union, 1e-9))


def _segment_ious(one: Arrays, other: Arrays) -> NDArray[Any]:
    """Of the S and T segments of two results, (S, T)."""
    rows, columns = len(one["labels"]) + 1, len(other["labels"]) + 1
    pairs = one["segments"] * columns + other["segments"]
    shared = np.bincount(pairs.ravel(), minlength=rows * columns).reshape(rows, columns)
    union = shared.sum(1)[:, None] + shared.sum(0) - shared
    return np.asarray((shared / np.maximum(union, 1))[1:, 1:])


def _classes(results: Arrays) -> NDArray[np.int64]:
    """The class of each pixel, -1 for none."""
    return np.concatenate([[-1], results["labels"]])[results["segments"]]
