"""Where the names of boxes are written, so that none covers another."""

import numpy as np
from numpy.typing import NDArray

_CELLS = 4  # of the grid of free places, per height of a tag


def place_tags(
    boxes: NDArray[np.int64], extents: NDArray[np.int64], size: tuple[int, int]
) -> list[tuple[int, int] | None]:
    """A place for each box's tag, for the first box first: above the box, inside at its top, below, or near it.

    Args:
        boxes: (N, 4) x1, y1, x2, y2 in the picture.
        extents: (N, 2) width and height of the tags, not above the picture's.
        size: of the picture, (W, H).

    Returns:
        The upper left corner, x and y, from which the tag lies in the picture and on no other one; None where there is
        no such place any more.
    """
    taken = _Taken(size, int(extents[:, 1].max(initial=1)))
    return [taken.take(box, extent) for box, extent in zip(boxes, extents, strict=True)]


class _Taken:
    """The tags placed so far."""

    def __init__(self, size: tuple[int, int], height: int) -> None:
        self.size, self.cell = np.array(size), max(1, height // _CELLS)
        self.tags = np.zeros((0, 4), np.int64)
        self.grid = np.zeros(self.size[::-1] // self.cell, bool)  # (rows, columns): whether a tag lies there

    def take(self, box: NDArray[np.int64], extent: NDArray[np.int64]) -> tuple[int, int] | None:
        beside = self._beside(box, extent)
        place = next((each for each in beside if not self._covers(each, extent)), None)
        if place is None:
            place = self._near(beside[0], extent)
        if place is None:
            return None
        tag = np.concatenate([place, place + extent])
        self.tags = np.vstack([self.tags, tag])
        left, top, right, bottom = (tag // self.cell).tolist()
        self.grid[top : bottom + 1, left : right + 1] = True
        return int(place[0]), int(place[1])

    def _beside(self, box: NDArray[np.int64], extent: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places at the box, the best first, (8, 2)."""
        (x1, y1, x2, y2), (width, height) = box, extent
        places = [(x, y) for x in (x1, x2 + 1 - width) for y in (y1 - height, y1, y2 + 1, y2 + 1 - height)]
        return np.clip(places, 0, self.size - extent)

    def _covers(self, place: NDArray[np.int64], extent: NDArray[np.int64]) -> bool:
        return bool(((place < self.tags[:, 2:]) & (self.tags[:, :2] < place + extent)).all(1).any())

    def _near(self, wanted: NDArray[np.int64], extent: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The free place of the grid that is nearest to the wanted one."""
        columns, rows = -(-extent // self.cell)
        sums = np.pad(self.grid, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        down = sums[rows:] - sums[:-rows]  # taken cells of each place's rows, from the left on
        free = np.argwhere(down[:, columns:] == down[:, :-columns])[:, ::-1] * self.cell  # x, y
        return free[np.square(free - wanted).sum(1).argmin()] if len(free) else None
