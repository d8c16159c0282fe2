"""What is done about images that cannot be used."""

from typing import Any

import pytest
import torch

from vankit.data.reading import Reader, Reading, Replacing, collate_usable
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


def test_batches_of_what_is_left() -> None:
    images, labels = collate_usable([None, (torch.ones(3), 1), (torch.zeros(3), 0)])
    assert images.tolist() == [[1, 1, 1], [0, 0, 0]] and labels.tolist() == [1, 0]
    assert collate_usable([None, None]) is None
