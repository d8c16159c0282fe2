"""What is done about images that cannot be used."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import IterableDataset

from vankit.data.reading import Reader, Reading, Replacing, is_stream, read_ahead
from vankit.errors import UserError


class Nothing(Reader):
    def __len__(self) -> int:
        return 0


def test_without_skip_bad_the_problem_is_raised() -> None:
    with pytest.raises(UserError, match="^broken$"):
        Nothing(Reading()).leave_out("a.jpg", UserError("broken"))


def test_what_is_left_out_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    reader = Nothing(Reading(skip_bad=True))
    for name in ("a.jpg", "a.jpg", "b.jpg"):
        reader.leave_out(name, UserError("broken"))
    assert reader.skipped == [("a.jpg", "broken"), ("b.jpg", "broken")]
    assert caplog.messages == ["left out a.jpg (1 so far): broken", "left out b.jpg (2 so far): broken"]


class Gaps(list[Any]):
    classes = ("a", "b")


def test_another_image_takes_the_place_of_one_that_is_left_out() -> None:
    dataset = Replacing(Gaps([None, 1, None, None, 4, None]))
    assert [dataset[i] for i in range(len(dataset))] == [1, 1, 4, 4, 4, 1] and dataset.classes == ("a", "b")
    with pytest.raises(UserError, match="none of the images to train on can be read"):
        Replacing(Gaps([None, None]))[0]


class Slow:
    """Numbers that take the longer to read the earlier they come."""

    def __init__(self, length: int, broken: int | None = None) -> None:
        self.length, self.broken = length, broken
        self.read: list[int] = []
        self.readers: set[int] = set()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        if index == self.broken:
            raise UserError("item 3 is broken")
        time.sleep(0.002 * (self.length - index))
        self.read.append(index)
        self.readers.add(threading.get_ident())
        return 10 * index


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_items_come_in_order_whichever_is_read_first(threads: int) -> None:
    dataset = Slow(9)
    assert list(read_ahead(dataset, threads, ahead=5)) == list(range(0, 90, 10))
    assert len(dataset.readers) == max(1, threads)
    assert (threading.get_ident() in dataset.readers) == (threads == 0)


def test_no_more_is_read_than_was_allowed_and_nothing_once_it_is_closed() -> None:
    dataset = Slow(40)
    items = read_ahead(dataset, threads=2, ahead=3)
    assert [next(items) for _ in range(2)] == [0, 10]
    items.close()  # type: ignore[attr-defined]
    read = set(dataset.read)
    assert read <= set(range(5)), "two, and three ahead of them"
    time.sleep(0.2)
    assert set(dataset.read) == read


@pytest.mark.parametrize("threads", [0, 2])
def test_what_is_wrong_with_an_item_is_raised_in_its_place(threads: int) -> None:
    items = read_ahead(Slow(8, broken=3), threads, ahead=4)
    assert [next(items) for _ in range(3)] == [0, 10, 20]
    with pytest.raises(UserError, match="item 3 is broken"):
        next(items)


class Stream(IterableDataset[str]):
    def __len__(self) -> int:
        return 2  # which streams cannot know for certain

    def __iter__(self) -> Iterator[str]:
        yield from "abc"


def test_a_stream_is_read_to_its_end() -> None:
    assert is_stream(Stream()) and not is_stream(Slow(1)) and not is_stream([1])
    assert list(read_ahead(Stream(), threads=4, ahead=8)) == ["a", "b", "c"]
