"""Boxes, regions, outlines and legends, pixel by pixel."""

import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageChops

from vankit.tasks import drawing
from vankit.tasks.drawing import add_legend, draw_boxes, draw_outlines, draw_regions, draw_sheet, ink_on
from vankit.tasks.results import Detections

RED, BLUE = (230, 40, 50), (45, 110, 240)


def picture(width: int = 160, height: int = 120) -> Image.Image:
    return Image.new("RGB", (width, height), (100, 100, 100))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def boxes(*corners: tuple[float, ...]) -> np.ndarray:
    return np.float32(corners)


def is_like(drawn: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    return (drawn == rgb).all(-1)


def test_boxes_are_lines_with_a_name_above() -> None:
    drawn = pixels(draw_boxes(picture(), boxes((10.4, 59.6, 50, 110)), ["star 0.90"], [RED]))
    assert all(is_like(line, RED).all() for line in (drawn[60:111, [10, 50]], drawn[[60, 110], 10:51]))
    assert (drawn[61:110, 11:50] == 100).all()
    name = drawn[44:60, 8:80]
    assert is_like(name, RED).sum() > 200 and is_like(name, ink_on(RED)).any()
    drawn[44:111, 8:80] = 100
    assert (drawn == 100).all()


def test_the_first_box_lies_on_top_and_no_name_covers_another() -> None:
    found = boxes((10, 60, 90, 110), (12, 60, 90, 110), (60, 5, 60, 5))
    drawn = pixels(draw_boxes(picture(), found, ["long name", "-", "far off"], [RED, BLUE, BLUE]))
    assert is_like(drawn[65:111, 90], RED).all() and is_like(drawn[65:110, 12], BLUE).all()
    alone = [pixels(draw_boxes(picture(), found[[0, 2]], [name, ""], [RED, BLUE])) for name in ("long name", "")]
    name = (alone[0] != alone[1]).any(-1)
    assert name.sum() > 300 and np.array_equal(drawn[name], alone[0][name])


def test_names_without_room_are_left_out() -> None:
    small = picture(60, 24)
    drawn = [draw_boxes(small, boxes(*[(5, 5, 50, 20)] * n), ["bicycle"] * n, [RED] * n) for n in (2, 3)]
    assert ImageChops.difference(*drawn).getbbox() is None


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_ink_is_legible_on_any_ground(ground: tuple[int, int, int]) -> None:
    """https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""

    def luminance(rgb: tuple[int, int, int]) -> float:
        linear = [(v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4) for v in rgb]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted(map(luminance, (ground, ink_on(ground))))
    assert (high + 0.05) / (low + 0.05) >= 4.5


@pytest.mark.parametrize("long", [200, 1000, 4000])
def test_lines_and_letters_grow_with_the_picture(long: int) -> None:
    drawn = pixels(draw_boxes(picture(long, long * 3 // 4), boxes((0, long // 2, long // 2, long - 1)), ["I"], [RED]))
    name = is_like(drawn[: long // 2, : long // 4], RED).any(1).sum()
    line = is_like(drawn[long * 5 // 8, : long // 4], RED).sum()
    assert long / 60 <= name <= max(13, long / 35) and line == max(1, round(long / 320))


@pytest.mark.parametrize("box", [(150, 0, 160, 10), (155, 115, 159, 119), (-40, -40, 10, 10)])
def test_names_stay_in_the_picture(box: tuple[int, ...]) -> None:
    middle = is_like(pixels(draw_boxes(picture(), boxes((60, 60, 60, 60)), ["star 0.90"], [RED])), RED)[:60]
    edge = is_like(pixels(draw_boxes(picture(), boxes(box), ["star 0.90"], [RED])), RED)
    assert edge.sum() >= middle.sum()


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


@pytest.mark.parametrize(("side", "thickness"), [(160, 1), (1600, 2), (2400, 4)])
def test_outlines_lie_inside_neighbouring_regions(side: int, thickness: int) -> None:
    regions = np.zeros((40, side), np.int64)
    regions[10:30, 20:40], regions[10:30, 40:60] = 2, 1
    image = picture(side, 40)
    draw_outlines(image, regions, [RED, BLUE])
    inside = np.zeros_like(regions, bool)
    for left in (20, 40):
        inside[10 + thickness : 30 - thickness, left + thickness : left + 20 - thickness] = True
    for number, rgb in ((1, RED), (2, BLUE)):
        np.testing.assert_array_equal(is_like(pixels(image), rgb), (regions == number) & ~inside)


@given(hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 3)))
def test_outlines_are_what_has_another_region_within_reach(regions: np.ndarray) -> None:
    from scipy.ndimage import maximum_filter, minimum_filter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "_line_width", lambda _: 4)
        image = picture(*regions.shape[::-1])
        draw_outlines(image, regions, [RED] * 3)
    edge = maximum_filter(regions, 5, mode="nearest") != minimum_filter(regions, 5, mode="nearest")
    np.testing.assert_array_equal(is_like(pixels(image), RED), edge & (regions > 0))


@pytest.mark.slow
def test_a_hundred_masks_of_twelve_megapixels_take_seconds() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((100, 3000, 4000), bool)
    corners = rng.integers(0, 2000, (100, 2))
    found = np.concatenate([corners, corners + 900], 1).astype(np.float32)
    for mask, (x, y) in zip(masks, corners, strict=True):
        mask[y : y + 900, x : x + 900] = True
    scene = Detections("", ["a", "b"], found, rng.integers(0, 2, 100), np.ones(100, np.float32), masks)
    start = time.process_time()
    scene.draw(picture(4000, 3000))
    assert time.process_time() - start < 6  # 1.5 on two cores of 2025; 13 with a mask of the picture per object


def test_names_are_written_with_their_accents_and_without_matplotlib_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def written(name: str) -> np.ndarray:
        return pixels(draw_boxes(picture(), boxes((60, 60, 60, 60)), [name], [RED]))

    assert (written("été") != written("ete")).any() and (written("č") != written("ß")).any()
    usual = written("star")
    monkeypatch.setattr(drawing.PathFinder, "find_spec", lambda name: None)
    drawing._font.cache_clear()
    try:
        assert is_like(written("star"), RED).sum() > 100 and (written("star") != usual).any()
    finally:
        drawing._font.cache_clear()


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
