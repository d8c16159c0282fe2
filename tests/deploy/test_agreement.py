"""What an exported network's answers are compared by, on answers made by hand."""

from typing import Any

import numpy as np
import pytest

from vankit.deploy.agreement import EXACT, HALF, Agreement, Tolerance
from vankit.errors import UserError

BOXES = np.array([[10, 10, 60, 60], [0, 0, 200, 100], [30, 40, 90, 95]], np.float32)


def objects(**changes: Any) -> dict[str, Any]:
    given = {"boxes": BOXES, "labels": np.array([0, 1, 0]), "scores": np.array([0.9, 0.5, 0.0505], np.float32)}
    return {**given, **changes}


def compared(expected: dict[str, Any], found: dict[str, Any], tolerance: Tolerance = EXACT) -> Agreement:
    agreement = Agreement(tolerance=tolerance)
    agreement.add(expected, found)
    return agreement


def test_the_same_objects_in_another_order_agree() -> None:
    order = [2, 0, 1]
    agreement = compared(objects(), {name: values[order] for name, values in objects().items()})
    assert (agreement.objects, agreement.same) == (2, 2)  # the third may be left out by rounding
    agreement.check()
    assert agreement.summary() == "2 of 2 objects are the same in 1 pictures"


@pytest.mark.parametrize(
    "changes",
    [
        {"boxes": BOXES + np.array([[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.float32)},  # IoU 50/51
        {"labels": np.array([1, 1, 0])},
        {"scores": np.array([0.8985, 0.5, 0.0505], np.float32)},
        {"boxes": BOXES[1:], "labels": np.array([1, 0]), "scores": np.array([0.5, 0.0505], np.float32)},
    ],
    ids=["box", "class", "score", "missing"],
)
def test_an_object_that_differs_is_refused(changes: dict[str, Any]) -> None:
    agreement = compared(objects(), objects(**changes))
    assert agreement.same == 1
    with pytest.raises(UserError, match="^the exported network differs from PyTorch's: 1 of 2 objects"):
        agreement.check()


def test_the_share_is_of_all_that_either_found_and_of_pixels_where_it_is_less() -> None:
    assert Agreement().share is None
    assert Agreement(objects=100, same=99).share == 0.99
    assert Agreement(objects=100, same=100, others=25).share == 0.8
    assert Agreement(objects=100, same=99, pixels=10, same_pixels=9).share == 0.9
    assert Agreement(pixels=10, same_pixels=9).share == 0.9


def test_weights_in_16_bits_may_move_an_object() -> None:
    moved = objects(boxes=BOXES + np.array([[0, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.float32))  # IoU 50/52
    moved["scores"] = moved["scores"] - np.array([0, 0.0045, 0], np.float32)
    assert (compared(objects(), moved).same, compared(objects(), moved, HALF).same) == (0, 2)
    compared(objects(), moved, HALF).check()
    moved["scores"] -= np.array([0, 0.001, 0], np.float32)
    with pytest.raises(UserError, match="1 of 2 objects"):
        compared(objects(), moved, HALF).check()


def test_what_the_model_alone_finds_is_refused() -> None:
    nothing = {name: values[:0] for name, values in objects().items()}
    for expected, says in ((nothing, "0 of 0 objects"), ({n: v[1:] for n, v in objects().items()}, "1 of 1 objects")):
        with pytest.raises(UserError, match=f"{says} are the same in 1 pictures, and [12] more were found"):
            compared(expected, objects()).check()


def test_one_of_many_objects_may_differ() -> None:
    boxes = np.array([[10 * i, 0, 10 * i + 10, 10] for i in range(30)], np.float32)
    many = {"boxes": boxes, "labels": np.zeros(30, int), "scores": np.linspace(0.9, 0.3, 30, dtype=np.float32)}
    compared(many, {name: values[1:] for name, values in many.items()}).check()
    with pytest.raises(UserError, match="28 of 30 objects"):
        compared(many, {name: values[2:] for name, values in many.items()}).check()


def test_the_best_of_scores_that_are_all_alike_are_compared() -> None:
    boxes = np.array([[10 * i, 0, 10 * i + 10, 10] for i in range(100)], np.float32)
    alike = {"boxes": boxes, "labels": np.zeros(100, int), "scores": np.linspace(0.3, 0.2999, 100, dtype=np.float32)}
    compared(alike, alike).check()
    with pytest.raises(UserError, match="0 of 10 objects"):
        compared(alike, {**alike, "boxes": boxes + 50}).check()


def test_boxes_without_area_are_left_out() -> None:
    flat = objects(boxes=np.array([[10, 10, 60, 60], [0, 0, 0, 100], [30, 40, 90, 95]], np.float32))
    agreement = compared(flat, flat)
    agreement.check()
    assert agreement.objects == 1


def test_two_objects_are_not_found_by_one() -> None:
    twice = {name: values[[0, 0]] for name, values in objects().items()}
    once = {name: values[[0]] for name, values in objects().items()}
    assert (compared(twice, once).same, compared(twice, twice).same) == (1, 2)


def test_nothing_agrees_with_nothing() -> None:
    nothing = {name: values[:0] for name, values in objects().items()}
    agreement = compared(nothing, nothing)
    agreement.check()
    assert agreement.summary() == "0 of 0 objects are the same in 1 pictures"


def test_masks_are_counted_where_the_objects_are() -> None:
    masks = np.zeros((3, 100, 200), np.bool_)
    masks[0, 10:60, 10:60] = masks[1] = True  # 2,500 and 20,000 pixels
    other = masks.copy()
    other[0, 10, 10:32] = False
    agreement = compared(objects(masks=masks), objects(masks=other))
    assert (agreement.pixels, agreement.same_pixels) == (22_500, 22_478)
    agreement.check()
    other[0, 11, 10:12] = False
    with pytest.raises(UserError, match=r"2 of 2 objects and 99\.89 % of the pixels are the same"):
        compared(objects(masks=masks), objects(masks=other)).check()


def test_the_class_of_each_pixel() -> None:
    labels = np.arange(2000).reshape(40, 50) % 3
    other = labels.copy()
    other[0, :3] = 2 - other[0, :3]
    agreement = compared({"semantic": labels}, {"semantic": other})
    assert (agreement.pixels, agreement.same_pixels) == (2000, 1998)  # 1 stays 1
    agreement.check()
    other[1, 0] = (other[1, 0] + 1) % 3
    with pytest.raises(UserError, match="differs"):
        compared({"semantic": labels}, {"semantic": other}).check()


def test_segments_may_be_numbered_otherwise() -> None:
    segments = np.zeros((30, 40), np.int64)
    segments[:10], segments[20:, 20:] = 1, 2
    expected = {"segments": segments, "labels": np.array([4, 1]), "scores": np.array([0.9, 0.8])}
    swapped = np.array([0, 2, 1])[segments]
    found = {"segments": swapped, "labels": np.array([1, 4]), "scores": np.array([0.8, 0.9])}
    agreement = compared(expected, found)
    agreement.check()
    assert (agreement.objects, agreement.same, agreement.same_pixels) == (2, 2, 1200)
    found["labels"] = np.array([1, 3])
    with pytest.raises(UserError, match="1 of 2 objects"):
        compared(expected, found).check()
