"""What readers do about images and annotations that cannot be used as they are."""

import logging
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from typing import Any

from PIL import Image

from vankit.data.images import MAX_PIXELS, ImageError, load_image
from vankit.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """How forgiving a reader is.

    Attributes:
        skip_bad: leave out images and annotations that cannot be used, with a warning, instead of ending.
        tolerant: read JPEGs that lack their end, with grey for what is missing.
        allow_outside: read images that annotations name outside the folder of the data.
        max_pixels: largest image that is decoded, in pixels.
    """

    skip_bad: bool = False
    tolerant: bool = False
    allow_outside: bool = False
    max_pixels: int = MAX_PIXELS


STRICT = Reading()


class Reader(ABC):
    """A map-style dataset read from files; without PyTorch, whose loaders take it as it is.

    Attributes:
        reading: how forgiving it is.
        skipped: (file, reason) of what was left out.
    """

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.skipped: list[tuple[str, str]] = []
        self._seen: set[tuple[str, str]] = set()

    @abstractmethod
    def __len__(self) -> int: ...

    def load(self, path: str | PathLike[str]) -> Image.Image:
        """Decode an image, see `vankit.data.images.load_image`."""
        try:
            return load_image(path, self.reading.max_pixels, tolerant=self.reading.tolerant)
        except ImageError as error:
            cut = "(JPEG)" in str(error) and "truncated (" in str(error)[-60:]
            raise ImageError(f"{error}{'; --tolerant reads what there is of it' * cut}") from error

    def leave_out(self, name: str, problem: Exception) -> None:
        """Note, and warn of, what cannot be used.

        Raises:
            Exception: the problem, where nothing is to be left out.
        """
        if not self.reading.skip_bad:
            if isinstance(problem, ImageError):
                raise ImageError(f"{problem}; --skip-bad leaves such images out") from problem
            raise problem
        if (name, str(problem)) not in self._seen:
            self._seen.add((name, str(problem)))
            self.skipped.append((name, str(problem)))
            logger.warning("left out %s (%d so far): %s", name, len(self.skipped), problem)


class Replacing:
    """A dataset in which the next item takes the place of one that is None.

    Args:
        dataset: of items or None, with the class names as `classes`, and perhaps the class of each as `targets`.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.classes = dataset.classes
        self.targets = getattr(dataset, "targets", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        for step in range(len(self)):
            item = self.dataset[(index + step) % len(self)]
            if item is not None:
                return item
        raise UserError("none of the images to train on can be read")


def is_stream(dataset: Any) -> bool:
    """Whether a dataset is PyTorch's IterableDataset, such as one of shards, which has no items by index."""
    torch_data = sys.modules.get("torch.utils.data")  # else there is none
    return torch_data is not None and isinstance(dataset, torch_data.IterableDataset)


def read_ahead(dataset: Any, threads: int, ahead: int) -> Generator[Any, None, None]:
    """All items in order, while threads read the next ones: they decode at once, as that does not hold Python's lock.

    Args:
        dataset: map-style, or a stream, which is read as it comes.
        threads: how many; 0 reads an item when it is asked for.
        ahead: how many items are read before they are asked for, at most.
    """
    if is_stream(dataset):
        yield from dataset
    elif not threads:
        yield from map(dataset.__getitem__, range(len(dataset)))
    else:
        yield from _read_by_threads(dataset, threads, ahead)


def _read_by_threads(dataset: Any, threads: int, ahead: int) -> Iterator[Any]:
    pool = ThreadPoolExecutor(threads)
    try:
        items = (pool.submit(dataset.__getitem__, i) for i in range(len(dataset)))
        pending = deque(islice(items, ahead))
        while pending:
            item = pending.popleft().result()
            pending.extend(islice(items, 1))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
