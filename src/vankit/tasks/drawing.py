"""Pictures with boxes, names and tinted regions, and a legend below, by Pillow and NumPy alone."""

import math
from collections.abc import Sequence
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vankit.errors import UserError
from vankit.tasks.colours import Colour
from vankit.tasks.tags import place_tags

_FIRST, _LAST, _ALL = slice(None, -1), slice(1, None), slice(None)
_NEIGHBOURS = (  # what lays each pixel of a map over the one below, to the right, and in both diagonals
    ((_FIRST, _ALL), (_LAST, _ALL)),
    ((_ALL, _FIRST), (_ALL, _LAST)),
    ((_FIRST, _FIRST), (_LAST, _LAST)),
    ((_FIRST, _LAST), (_LAST, _FIRST)),
)
_GAP = 6  # pixels between the pictures of a sheet
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_DARK = 0.179  # luminance below which white is read better than black: (1.05 / (x + 0.05) = (x + 0.05) / 0.05)


def draw_boxes(
    image: Image.Image, boxes: NDArray[np.float32], names: Sequence[str], colours: Sequence[Colour]
) -> Image.Image:
    """A copy of the RGB picture with boxes and their names beside them; the first box lies on top.

    Names stand in the picture and cover no other name; where there is no room left, the later ones are left out.

    Args:
        image: (W, H).
        boxes: (N, 4) x1, y1, x2, y2 in pixels, cut off at the picture's edges.
        names, colours: of each box.
    """
    image = image.convert("RGB")
    far = np.array([image.width - 1, image.height - 1])
    corners = np.sort(np.clip(boxes.reshape(-1, 2, 2).round(), 0, far), axis=1)  # (N, 2, 2)
    frames = corners.reshape(-1, 4).astype(np.int64)
    pen, width = ImageDraw.Draw(image), _line_width(image)
    for frame, paint in zip(reversed(frames.tolist()), reversed(colours), strict=True):
        pen.rectangle(frame, outline=paint, width=width)
    _write_tags(image, frames, [" ".join(name.split()) for name in names], colours)
    return image


def _write_tags(image: Image.Image, boxes: NDArray[np.int64], names: list[str], colours: Sequence[Colour]) -> None:
    font, pen = _font(_font_size(image)), ImageDraw.Draw(image)
    height = sum(font.getmetrics())
    extents = np.array([(math.ceil(font.getlength(name)) + 2, height) for name in names], np.int64).reshape(-1, 2)
    extents = np.minimum(extents, image.size)
    for place, (wide, high), name, paint in zip(
        place_tags(boxes, extents, image.size), extents.tolist(), names, colours, strict=True
    ):
        if place is not None:
            x, y = place
            pen.rectangle((x, y, x + wide - 1, y + high - 1), fill=paint)
            pen.text((x + 1, y), name, fill=ink_on(paint), font=font)


def ink_on(ground: Colour) -> Colour:
    """Black or white, whichever has more contrast; at least 4.5 (https://www.w3.org/TR/WCAG22/#contrast-minimum)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (value / 255 for value in ground)]
    luminance = sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return _WHITE if luminance < _DARK else _BLACK


def draw_regions(image: Image.Image, regions: NDArray[np.integer], colours: Sequence[Colour]) -> Image.Image:
    """A copy of the RGB picture, half tinted.

    Args:
        image: (W, H).
        regions: (H, W); 0 leaves a pixel as it is, i + 1 tints it in colours[i].
        colours: of each region.

    Raises:
        ValueError: picture and regions differ in size.
    """
    if image.size != regions.shape[::-1]:
        raise UserError(
            f"the picture is {image.width} x {image.height} pixels, expected {regions.shape[1]} x {regions.shape[0]}: "
            "draw on the picture that this was found in"
        )
    image = image.convert("RGB")
    tinted = Image.blend(image, _painted(regions, colours), 0.5)
    image.paste(tinted, mask=_as_mask(regions > 0))
    return image


def draw_outlines(image: Image.Image, regions: NDArray[np.integer], colours: Sequence[Colour]) -> None:
    """Draw a line into the RGB picture, along the inside of every region; see `draw_regions`."""
    reach = max(1, _line_width(image) // 2)
    edges = np.zeros(regions.shape, bool)
    for one, other in _NEIGHBOURS:
        differs = regions[one] != regions[other]
        edges[one] |= differs
        edges[other] |= differs
    image.paste(_painted(regions, colours), mask=_as_mask(_dilated(edges, reach - 1) & (regions > 0)))


def _dilated(mask: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """(H, W), true where any pixel of the square that reaches so far is."""
    for axis in (0, 1):
        lines = np.moveaxis(mask, axis, 0)
        grown = lines.copy()
        for i in range(1, reach + 1):
            grown[i:] |= lines[:-i]
            grown[:-i] |= lines[i:]
        mask = np.moveaxis(grown, 0, axis)
    return mask


def _painted(regions: NDArray[np.integer], colours: Sequence[Colour]) -> Image.Image:
    return Image.fromarray(np.array([_BLACK, *colours], np.uint8)[regions])


def _as_mask(where: NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(where.astype(np.uint8) * np.uint8(255))


def add_legend(image: Image.Image, entries: Sequence[tuple[Colour, str]]) -> Image.Image:
    """The RGB picture over rows of coloured squares and what they stand for; at least twelve letters wide."""
    font = _font(_font_size(image))
    side = sum(font.getmetrics())  # of a square
    width = max(image.width, 12 * side)
    x, y, places = side // 2, image.height + side // 2, []
    for paint, text in entries:
        text = " ".join(text.split())
        length = math.ceil(1.5 * side + font.getlength(text))
        if x > side and x + length > width:
            x, y = side // 2, y + 3 * side // 2
        places.append((x, y, paint, text))
        x += length + side
    sheet = Image.new("RGB", (width, y + 3 * side // 2), _WHITE)
    sheet.paste(image)
    pen = ImageDraw.Draw(sheet)
    for x, y, paint, text in places:
        pen.rectangle((x, y, x + side, y + side), fill=paint)
        pen.text((x + 3 * side // 2, y), text, fill=_BLACK, font=font)
    return sheet


def draw_sheet(cells: Sequence[tuple[Image.Image, str, Colour]], columns: int) -> Image.Image:
    """RGB pictures in rows, under their captions, which are cut off where they are longer than the widest picture.

    Args:
        cells: picture, caption, which may have several lines, and the caption's colour.
        columns: pictures per row.
    """
    width = max(image.width for image, _, _ in cells)
    drawn = [_captioned(image, text, paint, width) for image, text, paint in cells]
    rows = [drawn[i : i + columns] for i in range(0, len(drawn), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, sum(heights) + (len(rows) + 1) * _GAP), _WHITE)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            sheet.paste(cell, (_GAP + j * (width + _GAP), sum(heights[:i]) + (i + 1) * _GAP))
    return sheet


def _captioned(image: Image.Image, text: str, paint: Colour, width: int) -> Image.Image:
    font = _font(11)
    lines = text.splitlines()
    height = sum(font.getmetrics())
    cell = Image.new("RGB", (width, image.height + height * len(lines) + 2), _WHITE)
    for i, line in enumerate(lines):
        ImageDraw.Draw(cell).text((0, i * height), line, fill=paint, font=font)
    cell.paste(image, (0, height * len(lines) + 2))
    return cell


def _line_width(image: Image.Image) -> int:
    return max(1, round(max(image.size) / 320))


def _font_size(image: Image.Image) -> int:
    return max(9, round(math.sqrt(image.width * image.height) / 42))


_DEJAVU = "mpl-data/fonts/ttf/DejaVuSans.ttf"


@cache
def _font(size: int) -> Any:
    """DejaVu Sans, a file in matplotlib, which is not imported; where it is not there, Pillow's own without accents."""
    found = PathFinder.find_spec("matplotlib")
    file = Path(found.origin if found is not None and found.origin else "").parent / _DEJAVU
    return ImageFont.truetype(file, size) if file.is_file() else ImageFont.load_default(size)
