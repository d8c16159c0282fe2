"""The worst mistakes of a validation: the few pictures to look at, kept while the images go by."""

import heapq
from dataclasses import dataclass, field
from os.path import relpath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vankit.data.reading import is_stream


@dataclass(frozen=True)
class Place:
    """An item of a data set: one of a batch, from which some may have been left out.

    Attributes:
        batch: the items of the whole batch.
        usable: how many of them are left.
        offset: which one of those it is.
    """

    batch: range
    usable: int
    offset: int

    def index_in(self, dataset: Any) -> int:
        """The item's index. If others of its batch were left out, the batch is read again to see which."""
        if self.usable == len(self.batch):
            return self.batch[self.offset]
        return [i for i in self.batch if dataset[i] is not None][self.offset]


@dataclass(frozen=True, order=True)
class Mistake:
    """A picture of a mistake.

    Attributes:
        score: how bad it is.
        order: decides between equal scores: minus the number of images before it.
        place: in the data set, or None where nobody knows.
        picture: RGB.
        caption: what is wrong.
        name: of the image.
    """

    score: float
    order: int
    place: Place | None = field(compare=False)
    picture: Image.Image = field(compare=False)
    caption: str = field(compare=False)
    name: str = field(default="", compare=False)


class Worst:
    """The mistakes with the highest scores of all that were added.

    Args:
        count: how many.

    Attributes:
        mistakes: those kept, in no order.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.mistakes: list[Mistake] = []  # a heap

    def takes(self, score: float) -> bool:
        """Whether a mistake with this score would be kept: only then it need be drawn."""
        return len(self.mistakes) < self.count or score > self.mistakes[0].score

    def add(self, mistake: Mistake) -> None:
        push = heapq.heappush if len(self.mistakes) < self.count else heapq.heappushpop
        push(self.mistakes, mistake)

    def worst_first(self) -> list[Mistake]:
        return sorted(self.mistakes, reverse=True)


def picture_of(pixels: NDArray[np.float32]) -> Image.Image:
    """(3, H, W) of 0 to 1 as an RGB picture."""
    array = (255 * pixels.clip(0, 1)).round().astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(array))


def scaled(picture: Image.Image, side: int) -> Image.Image:
    """The picture with a longer side of `side` pixels."""
    factor = side / max(picture.size)
    width, height = (max(1, round(length * factor)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def items_of(dataset: Any, batch_size: int, batch: int) -> range | None:
    """The items of a data set that a batch was made of, in order; None of a stream."""
    if is_stream(dataset):
        return None
    start = batch * batch_size
    return range(start, min(start + batch_size, len(dataset)))


def name_of(dataset: Any, place: Place | None) -> str:
    """What an image is called: its file, or else its number.

    Args:
        dataset: of `vankit.data` or timm's, or a `torch.utils.data.Subset` of one.
        place: of the image.
    """
    if place is None or is_stream(dataset):
        return ""
    index = place.index_in(dataset)
    while hasattr(dataset, "indices"):
        index, dataset = dataset.indices[index], dataset.dataset
    if hasattr(dataset, "samples"):
        return relpath(dataset.samples[index][0], dataset.root)
    if hasattr(dataset, "names"):
        return str(dataset.names[index])
    filename = dataset.filename(index) if hasattr(dataset, "filename") else None
    return str(filename or f"image {index}")
