"""Names of boxes: in the picture, and on no other name."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vankit.tasks.tags import place_tags

SIZES = st.tuples(st.integers(20, 700), st.integers(20, 500))


@st.composite
def scenes(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[int, int]]:
    """Boxes in a picture, tags of one height, the picture's size."""
    width, height = size = draw(SIZES)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    corners = rng.integers(0, size, (draw(st.integers(1, 30)), 2, 2))
    tags = rng.integers(5, min(120, width), len(corners), endpoint=True)
    tall = draw(st.integers(1, min(20, height)))
    boxes = np.sort(corners, 1).reshape(-1, 4)
    return boxes, np.stack([tags, np.full(len(tags), tall)], 1), size


def overlap(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    return bool((one[:2] < other[2:]).all() and (other[:2] < one[2:]).all())


@given(scenes())
def test_tags_lie_in_the_picture_and_on_no_other(scene: tuple[NDArray[np.int64], NDArray[np.int64], tuple[int, int]]):
    boxes, extents, size = scene
    places = place_tags(boxes, extents, size)
    tags = [np.concatenate([p, p + e]) for p, e in zip(places, extents, strict=True) if p is not None]
    assert len(places) == len(boxes) and places[0] is not None
    for i, tag in enumerate(tags):
        assert (tag[:2] >= 0).all() and (tag[2:] <= size).all()
        assert not any(overlap(tag, other) for other in tags[:i])


@given(scenes())
def test_no_tag_is_left_out_while_there_is_room(
    scene: tuple[NDArray[np.int64], NDArray[np.int64], tuple[int, int]],
) -> None:
    """Each tag keeps the next one's corner from so many pixels at most; if others are left, there is a place."""
    boxes, extents, (width, height) = scene
    tall = int(extents[0, 1])
    cell = max(1, tall // 4)
    places = place_tags(boxes, extents, (width, height))
    for i, (wide, _) in enumerate(extents.tolist()):
        kept = sum(
            (other + wide + 3 * cell) * (2 * tall + 3 * cell)
            for other, place in zip(extents[:i, 0].tolist(), places[:i], strict=True)
            if place is not None
        )
        room = (width - wide - 2 * cell) * (height - tall - 2 * cell)
        assert places[i] is not None or kept >= max(0, room)


def place(*boxes: tuple[int, ...]) -> list[tuple[int, int] | None]:
    return place_tags(np.array(boxes), np.array([(40, 10)] * len(boxes)), (200, 100))


def test_a_lone_tag_stands_above_its_box_or_inside_at_the_edge() -> None:
    assert place((20, 30, 90, 80)) == [(20, 20)]
    assert place((20, 4, 90, 80)) == [(20, 0)]
    assert place((190, 30, 199, 80)) == [(160, 20)]


def test_tags_of_one_box_stand_around_it() -> None:
    box = (50, 30, 150, 69)
    assert place(*[box] * 8) == [
        (50, 20), (50, 30), (50, 70), (50, 60), (111, 20), (111, 30), (111, 70), (111, 60)
    ]  # fmt: skip


def test_the_next_free_place_is_near() -> None:
    *_, ninth = place(*[(50, 30, 150, 69)] * 9)
    assert ninth is not None and np.hypot(ninth[0] - 50, ninth[1] - 20) <= 14


def test_there_is_nothing_to_place() -> None:
    assert place_tags(np.zeros((0, 4), np.int64), np.zeros((0, 2), np.int64), (9, 9)) == []
