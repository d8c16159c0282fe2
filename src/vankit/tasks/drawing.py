"""Pictures with boxes, names and tinted regions, and a legend below: torchvision's drawing in fixed colours."""

import colorsys
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch.nn.functional import max_pool2d
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from vankit.errors import UserError

Colour = tuple[int, int, int]

_GAP = 6  # pixels between the pictures of a sheet
_GOLDEN_ANGLE = (3 - math.sqrt(5)) / 2  # in turns
_TONES = ((0.8, 0.95), (0.95, 0.7), (0.5, 1.0))  # saturation and value: they part hues that come close
_SHADES = (0.0, 0.5, -0.4, 0.25, -0.2)  # of a class's instances, towards white above 0 and black below


def colour(label: int, instance: int = 0) -> Colour:
    """The colour of a class, RGB 0 to 255: hues a golden angle apart, the same in every picture.

    Args:
        label: from 0.
        instance: from 0; the next instances of a class differ in shade.
    """
    base = colorsys.hsv_to_rgb(label * _GOLDEN_ANGLE % 1, *_TONES[label % len(_TONES)])
    shade = _SHADES[instance % len(_SHADES)]
    red, green, blue = (round(255 * (value + abs(shade) * ((shade > 0) - value))) for value in base)
    return red, green, blue


def draw_boxes(
    image: Image.Image, boxes: NDArray[np.float32], names: Sequence[str], colours: Sequence[Colour]
) -> Image.Image:
    """A copy of the RGB picture with boxes and, inside the picture, their names; the first box lies on top.

    Args:
        image: (W, H).
        boxes: (N, 4) x1, y1, x2, y2 in pixels, cut off at the picture's edges.
        names, colours: of each box.
    """
    image = image.convert("RGB")
    if not len(boxes):
        return image
    font, far = _font(image), np.array([image.width - 1, image.height - 1])
    corners = np.sort(np.clip(boxes[::-1].reshape(-1, 2, 2).round(), 0, far), axis=1)  # (N, 2, 2)
    names, colours = [" ".join(name.split()) for name in reversed(names)], list(reversed(colours))
    extents = np.array([(font.getlength(name) + 2, sum(font.getmetrics())) for name in names])  # (N, 2)
    above = np.tile(np.clip(corners[:, 0] - (0, 1) * extents, 0, np.maximum(0, far - extents)), 2)  # (N, 4)
    frames = torch.from_numpy(corners).flatten(1)  # (N, 4)
    picture = draw_bounding_boxes(pil_to_tensor(image), frames, None, colours, width=_line_width(image))
    luma = np.array(colours) @ (0.299, 0.587, 0.114)  # of BT.601
    inks = ["black" if value > 128 else "white" for value in luma]
    # torchvision writes inside the box and past the picture's edge: names have boxes of their own, without extent
    style = {"font": font.path, "font_size": int(font.size), "label_colors": inks, "fill_labels": True}
    return to_pil_image(draw_bounding_boxes(picture, torch.from_numpy(above), names, colours, width=0, **style))


def draw_regions(image: Image.Image, regions: NDArray[np.int64], colours: Sequence[Colour]) -> Image.Image:
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
    image, present = image.convert("RGB"), np.unique(regions[regions > 0])
    if not len(present):
        return image
    masks = torch.from_numpy(regions == present[:, None, None])  # (K, H, W), disjoint: torchvision blackens overlaps
    return to_pil_image(draw_segmentation_masks(pil_to_tensor(image), masks, 0.5, [colours[i - 1] for i in present]))


def outline(image: Image.Image, regions: NDArray[np.int64]) -> None:
    """Draw a white line into the RGB picture (W, H), along the inside of every region but 0 of (H, W)."""
    if not regions.any():
        return
    reach = max(1, _line_width(image) // 2)
    index = torch.from_numpy(np.stack([regions, -regions])).float()  # (2, H, W)
    most, least = max_pool2d(max_pool2d(index, (2 * reach + 1, 1), 1, (reach, 0)), (1, 2 * reach + 1), 1, (0, reach))
    image.paste((255, 255, 255), mask=Image.fromarray(((most != -least) & (index[0] > 0)).numpy()))


def add_legend(image: Image.Image, entries: Sequence[tuple[Colour, str]]) -> Image.Image:
    """The RGB picture over rows of coloured squares and what they stand for; at least twelve letters wide."""
    font = _font(image)
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
    sheet = Image.new("RGB", (width, y + 3 * side // 2), (255, 255, 255))
    sheet.paste(image)
    pen = ImageDraw.Draw(sheet)
    for x, y, paint, text in places:
        pen.rectangle((x, y, x + side, y + side), fill=paint)
        pen.text((x + 3 * side // 2, y), text, fill=(0, 0, 0), font=font)
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
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, sum(heights) + (len(rows) + 1) * _GAP), (255, 255, 255))
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            sheet.paste(cell, (_GAP + j * (width + _GAP), sum(heights[:i]) + (i + 1) * _GAP))
    return sheet


def _captioned(image: Image.Image, text: str, paint: Colour, width: int) -> Image.Image:
    font = ImageFont.truetype(_font_file(), 11)
    lines = text.splitlines()
    height = sum(font.getmetrics())
    cell = Image.new("RGB", (width, image.height + height * len(lines) + 2), (255, 255, 255))
    for i, line in enumerate(lines):
        ImageDraw.Draw(cell).text((0, i * height), line, fill=paint, font=font)
    cell.paste(image, (0, height * len(lines) + 2))
    return cell


def _line_width(image: Image.Image) -> int:
    return max(1, round(max(image.size) / 320))


def _font(image: Image.Image) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_file(), max(9, round(math.sqrt(image.width * image.height) / 42)))


@cache
def _font_file() -> str:
    from matplotlib.font_manager import findfont  # slow to import

    return str(findfont("DejaVu Sans"))
