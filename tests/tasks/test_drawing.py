"""Boxes, regions, outlines and legends, pixel by pixel."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from vankit.tasks.drawing import add_legend, colour, draw_boxes, draw_regions, draw_sheet, outline

RED, BLUE = colour(0), colour(3)


def picture(width: int = 160, height: int = 120) -> Image.Image:
    return Image.new("RGB", (width, height), (100, 100, 100))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def boxes(*corners: tuple[float, ...]) -> np.ndarray:
    return np.float32(corners)


def is_like(drawn: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    return (drawn == rgb).all(-1)


def test_colours_are_distinct() -> None:
    many = [colour(label) for label in range(200)]
    assert len(set(many)) == 200
    few = np.array(many[:20])
    assert (np.linalg.norm(few[:, None] - few[None], axis=-1) + 999 * np.eye(20)).min() > 40
    shades = np.array([colour(label, instance) for label in range(200) for instance in range(5)])
    assert shades.min() >= 0 and shades.max() <= 255
    assert len(np.unique(shades[:5], axis=0)) == 5
    assert colour(7) == colour(7, 0) == colour(7, 5)


def test_boxes_are_lines_with_a_name_above() -> None:
    drawn = pixels(draw_boxes(picture(), boxes((10.4, 59.6, 50, 110)), ["star 0.90"], [RED]))
    assert all(is_like(line, RED).all() for line in (drawn[60:111, [10, 50]], drawn[[60, 110], 10:51]))
    assert (drawn[61:110, 11:50] == 100).all()
    name = drawn[44:60, 8:80]
    assert is_like(name, RED).sum() > 200 and is_like(name, (255, 255, 255)).any()
    drawn[44:111, 8:80] = 100
    assert (drawn == 100).all()


def test_the_first_box_and_its_name_lie_on_top() -> None:
    drawn = pixels(draw_boxes(picture(), boxes((10, 60, 90, 110), (30, 60, 90, 110)), ["long name", "-"], [RED, BLUE]))
    assert is_like(drawn[65:111, [10, 90]], RED).all() and is_like(drawn[65:110, 30], BLUE).all()
    assert is_like(drawn[:60, 30:], RED).any() and not is_like(drawn[:60], BLUE).any()


@pytest.mark.parametrize("box", [(150, 0, 160, 10), (155, 115, 159, 119), (-40, -40, 10, 10)])
def test_names_stay_in_the_picture(box: tuple[int, ...]) -> None:
    middle = is_like(pixels(draw_boxes(picture(), boxes((60, 60, 60, 60)), ["star 0.90"], [RED])), RED)
    edge = is_like(pixels(draw_boxes(picture(), boxes(box), ["star 0.90"], [RED])), RED)
    assert edge.sum() >= middle.sum() - 1  # the box of one pixel


@pytest.mark.parametrize("box", [(5, 5, 5, 5), (5, 5, 5, 90), (90, 80, 5, 5), (500, 500, 900, 900), (-9, -9, -1, -1)])
def test_boxes_without_extent_turned_round_or_outside_are_drawn(box: tuple[int, ...]) -> None:
    drawn = pixels(draw_boxes(picture(), boxes(box), [""], [RED]))
    x1, y1, x2, y2 = np.clip(box, 0, (159, 119, 159, 119))
    assert is_like(drawn[y2, x2], RED) and is_like(drawn[max(y1, y2), max(x1, x2)], RED)


def test_regions_tint_their_pixels_and_no_others() -> None:
    regions = np.zeros((120, 160), np.int64)
    regions[:50, :60], regions[50:, 100:] = 1, 3
    drawn = pixels(draw_regions(picture(), regions, [RED, (1, 2, 3), BLUE]))
    for number, rgb in ((0, (100, 100, 100)), (1, RED), (3, BLUE)):
        assert np.abs(drawn[regions == number] - (np.array(rgb) + 100) / 2).max() < 1


def test_nothing_to_draw_gives_a_copy() -> None:
    image = picture()
    for drawn in (draw_boxes(image, boxes().reshape(0, 4), [], []), draw_regions(image, np.zeros((120, 160), int), [])):
        assert drawn is not image and ImageChops.difference(drawn, image).getbbox() is None


@pytest.mark.parametrize(("side", "thickness"), [(160, 1), (1600, 2)])
def test_outlines_lie_inside_neighbouring_regions(side: int, thickness: int) -> None:
    regions = np.zeros((40, side), np.int64)
    regions[10:30, 20:40], regions[10:30, 40:60] = 2, 1
    image = picture(side, 40)
    outline(image, regions)
    inside = np.zeros_like(regions, bool)
    for left in (20, 40):
        inside[10 + thickness : 30 - thickness, left + thickness : left + 20 - thickness] = True
    np.testing.assert_array_equal(is_like(pixels(image), (255, 255, 255)), (regions > 0) & ~inside)


def test_the_legend_lies_below_the_picture_and_grows_with_its_entries() -> None:
    few, many = (add_legend(picture(), [(RED, f"class {i}") for i in range(number)]) for number in (2, 30))
    assert (pixels(few)[:120, :160] == 100).all()
    legend = pixels(few)[120:]
    assert is_like(legend, RED).sum() > 2 * 30
    assert (legend.max(-1) < 60).any()  # letters
    assert many.height > few.height + 50 and many.width == few.width


def test_a_sheet_has_pictures_in_rows_under_their_captions() -> None:
    cells = [(Image.new("RGB", (60, height), RED), "a\nvery long caption", BLUE) for height in (20, 30, 40)]
    drawn = pixels(draw_sheet(cells, 2))
    red = is_like(drawn, RED)
    assert red.sum() == 60 * (20 + 30 + 40)
    columns, rows = (np.flatnonzero(red.any(axis)) for axis in (0, 1))
    assert np.diff(columns).max() - 1 == 6 and len(columns) == 120  # two pictures, a gap apart
    assert len(rows) == 30 + 40
    above = drawn[: rows[0]]
    assert is_like(above[:, 6:66], BLUE).any() and is_like(above[:, 66:72], (255, 255, 255)).all()  # cut off


@settings(max_examples=20)
@given(st.text(max_size=40), st.sampled_from([(1, 1), (16, 16), (300, 20)]))
@example("名前 Straße 🐱", (160, 120))
@example("W" * 5000, (16, 16))
@example("two\nlines\u2028three", (16, 16))
def test_any_name_and_any_size_can_be_drawn(name: str, size: tuple[int, int]) -> None:
    assert draw_boxes(picture(*size), boxes((0, 0, *size)), [name], [RED]).size == size
    legend = add_legend(picture(*size), [(RED, name)])
    assert legend.height > size[1] and size[0] <= legend.width <= max(size[0], 200)
