"""From an RGB picture to the network's input, with Pillow and NumPy alone, so that predicting needs no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from PIL import Image

from vankit.data.budget import Budget
from vankit.data.images import MAX_PIXELS
from vankit.errors import UserError
from vankit.schema import Name, check_fields

MEAN_STD = (0.5, 0.5, 0.5)  # VAN's published mean and standard deviation, per channel

_RESIZING = Budget()  # a picture of one pixel's width is large when it is resized

INTERPOLATIONS = {  # timm's names; Pillow has more
    name: Image.Resampling[name.upper()] for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
}

_LARGEST_SIDE = 4096
_Side = Annotated[int, Meta(ge=1, le=_LARGEST_SIDE)]
_Colour = Annotated[float, Meta(ge=-1e6, le=1e6)]
_Spread = Annotated[float, Meta(ge=1e-6, le=1e6)]


def _three(expected: str) -> Meta:
    return Meta(min_length=3, max_length=3, description=expected)


@dataclass(frozen=True)
class Preprocessing:
    """From an RGB image to the network's input: resize the short side, crop the centre, normalise.

    Pixel by pixel what timm's `create_transform` of the same settings gives for evaluation. `dataclasses.asdict` turns
    it into what JSON holds, and `Preprocessing(**settings)` back.

    Attributes:
        input_size: (channels, height, width); channels are 3.
        mean, std: per channel, in units of 0 to 1.
        crop_pct: part of the resized short side that the crop keeps; above 1 the crop is padded with black.
        interpolation: timm's name: nearest, box, bilinear, hamming, bicubic or lanczos.

    Raises:
        ValueError: a setting is out of its range.
    """

    input_size: Annotated[
        Sequence[_Side], _three(f"(3, height, width) in whole pixels, at least 1 and at most {_LARGEST_SIDE:,}")
    ]
    mean: Annotated[Sequence[_Colour], _three("three finite numbers, in units of 0 to 1")]
    std: Annotated[Sequence[_Spread], _three("three numbers above 0, in units of 0 to 1")]
    crop_pct: Annotated[float, Meta(gt=0, description="above 0, such as 0.9")]
    interpolation: Name

    def __post_init__(self) -> None:
        check_fields(self)
        channels, *sides = self.input_size
        if channels != 3:
            raise UserError(f"input_size is {self.input_size}: expected (3, height, width)")
        if self.crop_pct > min(sides):  # else the resized short side would have no pixel
            raise UserError(f"crop_pct is {self.crop_pct}: expected above 0, such as 0.9, and at most {min(sides)}")
        if math.prod(sides) > MAX_PIXELS * self.crop_pct**2:
            raise UserError(
                f"crop_pct is {self.crop_pct} with sides of {sides[0]} and {sides[1]} pixels: expected at most "
                f"{MAX_PIXELS:,} pixels in what is cropped"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(f"interpolation is {self.interpolation!r}: expected one of {', '.join(INTERPOLATIONS)}")

    @property
    def min_side(self) -> int:
        """Pixels: a picture with both sides at least this long is never enlarged; see `min_side` of `load_image`."""
        return max(self.cover())

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that a picture of this size is resized to, before the crop."""
        target_height, target_width = self.cover()
        # timm rounds down for square inputs and to the nearest for others
        if target_height == target_width:
            short, long = min(width, height), max(width, height)
            new_long = int(target_height * long / short)
            return (target_height, new_long) if width <= height else (new_long, target_height)
        ratio = min(height / target_height, width / target_width)
        return round(width / ratio), round(height / ratio)

    def region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """(x, y, width, height) of what a network sees of a picture of this size, in the picture's pixels; it reaches
        beyond the picture where the crop is padded."""
        resized = self.resized(width, height)
        _, crop_height, crop_width = self.input_size
        across, down = width / resized[0], height / resized[1]  # of a resized pixel
        left, top = _offset(resized[0], crop_width), _offset(resized[1], crop_height)
        return left * across, top * down, crop_width * across, crop_height * down

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Prepare one picture.

        Args:
            image: of mode RGB, as `load_image` and `to_image` return it.

        Returns:
            float32 (3, height, width), contiguous.

        Raises:
            ValueError: the image is not RGB, or so elongated that the resized one has more than `MAX_PIXELS` pixels.
        """
        if image.mode != "RGB":
            raise UserError(f"the image's mode is {image.mode}: expected RGB, which vankit.data.images.to_image makes")
        size = self.resized(*image.size)
        if math.prod(size) > MAX_PIXELS:
            raise UserError(
                f"an image of {image.width} x {image.height} pixels would be resized to {size[0]} x {size[1]} before "
                f"its centre is cropped, more than {MAX_PIXELS:,} pixels: crop it first"
            )
        _, height, width = self.input_size
        left, top = _offset(size[0], width), _offset(size[1], height)
        with _RESIZING.share(math.prod(size), MAX_PIXELS):
            resized = image.resize(size, INTERPOLATIONS[self.interpolation])
            crop = resized.crop((left, top, left + width, top + height))
        std = np.array(self.std)
        scale, shift = 1 / (255 * std), -np.array(self.mean) / std
        x = np.empty((3, height, width), np.float32)
        np.multiply(np.asarray(crop).transpose(2, 0, 1), scale.astype(np.float32)[:, None, None], out=x)
        x += shift.astype(np.float32)[:, None, None]
        return x

    def cover(self) -> tuple[int, int]:
        """(height, width) that the resized picture just covers."""
        return math.floor(self.input_size[1] / self.crop_pct), math.floor(self.input_size[2] / self.crop_pct)


def _offset(size: int, crop: int) -> int:
    """Where a centred crop starts; below 0 where it is the longer one and Pillow pads with black."""
    return -((crop - size) // 2) if crop > size else round((size - crop) / 2)


def check_img_size(img_size: int) -> None:
    """Refuse a side in pixels that a network's square input cannot have.

    Raises:
        ValueError: it is too small or too large.
    """
    try:
        Preprocessing((3, img_size, img_size), MEAN_STD, MEAN_STD, 1.0, "bicubic")
    except UserError as error:
        raise UserError(f"img_size is {img_size}, which a network cannot take: {error}") from None
