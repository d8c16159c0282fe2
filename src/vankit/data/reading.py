"""What readers do about images and annotations that cannot be used as they are."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from PIL import Image
from torch.utils.data import Dataset, default_collate

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


class Reader(Dataset[Any], ABC):
    """A dataset read from files.

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


class Replacing(Dataset[Any]):
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


def collate_usable(samples: Sequence[Any]) -> Any:
    """PyTorch's batch of the samples that are not None; None if there is none."""
    usable = [sample for sample in samples if sample is not None]
    return default_collate(usable) if usable else None
