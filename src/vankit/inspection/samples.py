"""Pictures for the report: some of each class, or scenes with what is annotated in them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vankit.data.images import load_image
from vankit.errors import UserError
from vankit.inspection.tallies import Tally
from vankit.tasks.dense import EVALUATORS
from vankit.tasks.results import Detections

SIDE = 160  # of a picture of one class
SCENE_SIDE = 256  # as wide as a page shows it

_PICTURES = 240
_MOST_PER_CLASS = 8
_SCENES = 36
_TINY = 96  # sides that are enlarged to at least this


def pictures_by_class(tally: Tally) -> Iterator[tuple[int, list[tuple[Image.Image, str]]]]:
    """(label, pictures with captions) of as many classes as a page holds, at equal distances in each class."""
    members = tally.members()
    count = min(_MOST_PER_CLASS, max(1, _PICTURES // max(1, len(members))))
    for label, indices in enumerate(members[:_PICTURES]):
        paths = [tally.paths[index] for index in spread(indices, count)]
        yield label, [picture_of(path, tally.dataset.reading.max_pixels) for path in paths]


def picture_of(path: str, max_pixels: int) -> tuple[Image.Image, str]:
    """A picture, small, and its file's name."""
    image = load_image(path, max_pixels, min_side=SIDE)
    image.thumbnail((SIDE, SIDE))
    return enlarged(image), Path(path).name


def spread(items: Sequence[int], count: int) -> list[int]:
    """So many of the items, at equal distances."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def scenes(tally: Tally, task: str) -> Iterator[tuple[Image.Image, str]]:
    """Pictures with what is annotated in them, drawn, and captions; if possible every class is in one."""
    for index in covering(tally.members(), tally.used):
        try:
            item = tally.dataset[index]
        except (UserError, OSError):  # reported already
            continue
        if item is not None:
            yield _draw(task, item, tally.dataset), Path(tally.paths[index]).name


def covering(members: Sequence[Sequence[int]], used: Sequence[int]) -> list[int]:
    """Pictures that show every class, the rarest first, and then others, up to a page's number."""
    chosen: dict[int, None] = {}
    for indices in sorted(filter(None, members), key=len):
        if not chosen.keys() & set(indices):
            chosen[indices[len(indices) // 2]] = None
    chosen |= dict.fromkeys(spread(used, max(0, _SCENES - len(chosen))))
    return list(chosen)[:_SCENES]


def _legible(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) that a picture is drawn at, so that lines and names stay legible."""
    longest = max(size)
    side = min(longest, SCENE_SIDE) if longest > _TINY else longest * -(-_TINY // longest)
    return size if side == longest else (max(1, size[0] * side // longest), max(1, size[1] * side // longest))


def enlarged(image: Image.Image) -> Image.Image:
    """A tiny picture, each pixel as several."""
    times = -(-_TINY // max(image.size))
    return image if times == 1 else image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _draw(task: str, item: tuple[Image.Image, dict[str, Any]], dataset: Any) -> Image.Image:
    """The picture and all that is annotated in it, at a size at which that is legible."""
    image, target = item
    size, names = _legible(image.size), ("", dataset.classes, getattr(dataset, "things", ()))
    picture, truth = image.resize(size), EVALUATORS[task].truth(*names, target)
    if isinstance(truth, Detections):
        return truth.resized(size, image.size).draw(picture, scores=False)
    return truth.resized(size).draw(picture)
