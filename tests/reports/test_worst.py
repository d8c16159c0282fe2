"""The worst of many, and the images they are."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset

from vankit.data.folders import ClassFolder
from vankit.data.reading import Reading
from vankit.data.shapes import Shapes
from vankit.reports.worst import Mistake, Place, Worst, items_of, name_of, picture_of, scaled
from vankit.training.loaders import collate_usable

PICTURE = Image.new("RGB", (1, 1))


def mistake(score: float, seen: int) -> Mistake:
    return Mistake(score, -seen, None, PICTURE, f"{score} {seen}")


def test_the_worst_are_kept_and_of_equals_the_first() -> None:
    scores = np.random.default_rng(0).integers(0, 20, 200) / 20
    worst = Worst(7)
    for i, score in enumerate(scores.tolist()):
        if worst.takes(score):
            worst.add(mistake(score, i))
    expected = sorted(enumerate(scores.tolist()), key=lambda pair: (-pair[1], pair[0]))[:7]
    assert [each.caption for each in worst.worst_first()] == [f"{score} {i}" for i, score in expected]


def test_fewer_than_are_kept() -> None:
    worst = Worst(3)
    assert worst.worst_first() == [] and worst.takes(-1.0)
    worst.add(mistake(0.5, 0))
    assert [each.score for each in worst.worst_first()] == [0.5]


@pytest.fixture
def folder(tmp_path: Path) -> ClassFolder:
    """Ten images, of which the second, third and eighth cannot be read."""
    for i in range(10):
        path = tmp_path / "ab"[i % 2] / f"{i // 2}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    for name in ("a/1.png", "a/2.png", "b/2.png"):
        (tmp_path / name).write_bytes(b"")
    return ClassFolder(tmp_path, lambda image: np.zeros(1), Reading(skip_bad=True))


@pytest.mark.parametrize("share", [None, range(1, 10, 2)])
def test_images_keep_their_names_though_others_were_left_out(folder: ClassFolder, share: range | None) -> None:
    dataset: Any = folder if share is None else Subset(folder, share)
    loader = DataLoader(dataset, 4, collate_fn=collate_usable)
    names = []
    for i, (images, _) in enumerate(loader):
        items = items_of(dataset, 4, i)
        assert items is not None
        names += [name_of(dataset, Place(items, len(images), offset)) for offset in range(len(images))]
    readable = ["a/0.png", "a/3.png", "a/4.png", "b/0.png", "b/1.png", "b/3.png", "b/4.png"]
    order = ["a/0.png", "a/1.png", "a/2.png", "a/3.png", "a/4.png", *(f"b/{i}.png" for i in range(5))]
    assert names == (readable if share is None else [order[i] for i in share if order[i] in readable])


def test_names_of_other_sets() -> None:
    class Listed:
        names = ("x.png", "y.png")

    class Timm:
        def filename(self, index: int) -> str | None:
            return ["z.jpg", None][index]

    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            yield from ()

    at = [Place(range(i, i + 1), 1, 0) for i in range(2)]
    assert [name_of(Listed(), place) for place in at] == ["x.png", "y.png"]
    assert [name_of(Timm(), place) for place in at] == ["z.jpg", "image 1"]
    assert name_of(Shapes("val", 2), at[1]) == "image 1"
    assert name_of(Stream(), at[0]) == name_of(Listed(), None) == ""
    assert items_of(Stream(), 2, 0) is None


def test_a_picture_is_brought_to_its_side() -> None:
    pixels = np.zeros((3, 10, 20), np.float32)
    pixels[0], pixels[1] = 1.5, 0.5  # beyond white is cut off
    picture = scaled(picture_of(pixels), 100)
    assert picture.size == (100, 50) and picture.getpixel((50, 25)) == (255, 128, 0)
    assert scaled(Image.new("RGB", (400, 1)), 100).size == (100, 1)
