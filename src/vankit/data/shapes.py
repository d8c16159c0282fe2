"""A generated dataset of textured shapes with labels, boxes and masks: every task runs with nothing downloaded."""

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vankit.data.masks import boxes_around
from vankit.errors import UserError

CLASSES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "hourglass", "heart", "arrow")
SPLITS = ("train", "val", "test")

# No class is a rotated copy of another within this angle (a diamond would be a square).
_MAX_ROTATION = np.radians(30)
_SCALE = (0.55, 0.9)
_SMALLEST = 16
_MIN_DIAMETER = 8.0
_MIN_VISIBLE = 0.2
_SUPERSAMPLING = 4

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """One generated picture and everything that is true of it, objects from back to front.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        labels: (N,) int64 indices into `CLASSES`.
        boxes: (N, 4) float32 x1, y1, x2, y2 in pixels, x2 and y2 exclusive, tight around `masks`.
        masks: (N, H, W) bool, the visible part of each object: no pixel is in two masks.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.int64]
    boxes: Floats
    masks: NDArray[np.bool_]


def render_scene(
    index: int,
    split: str = "train",
    size: int | tuple[int, int] = 64,
    objects: int | tuple[int, int] = 1,
    seed: int = 0,
) -> Scene:
    """Draw scene `index` of a split: the same arguments give the same scene, in any order and any process.

    The first object drawn is of class `index % 10`, the others are of random classes. A single object's circumscribed
    circle spans 0.55 to 0.9 of the shorter side; n objects are smaller by n ** -0.5. An object less than 20 % visible
    is left out, labels and pixels both.

    Args:
        index: scene number, 0 to 2**32 - 1.
        split: "train", "val" or "test"; no two share a scene.
        size: side or (height, width) in pixels, at least 16.
        objects: how many, or an inclusive (low, high) range.
        seed: which dataset, 0 to 2**32 - 1.

    Raises:
        ValueError: an argument is outside the range above.
    """
    height, width = (size, size) if isinstance(size, int) else size
    low, high = (objects, objects) if isinstance(objects, int) else objects
    if min(height, width) < _SMALLEST:
        raise UserError(f"size {size} is too small: expected at least {_SMALLEST} pixels per side")
    if not 1 <= low <= high:
        raise UserError(f"objects {objects} is not a count: expected a number from 1, or (low, high) with low <= high")
    rng = _generator(seed, split, index)
    count = int(rng.integers(low, high + 1))
    labels = rng.integers(0, len(CLASSES), count)
    labels[0] = index % len(CLASSES)
    tones = _tones(rng, count)
    canvas = _paint(tones[0], _texture(rng, height, width))
    stamps = [_Stamp.draw(rng, CLASSES[label], (height, width), count) for label in labels]
    kept, masks = _visible(stamps, height, width)
    for i in kept:
        stamps[i].press(canvas, tones[i + 1])
    return Scene((canvas + 0.5).astype(np.uint8), labels[kept], boxes_around(masks), masks)


def _generator(seed: int, split: str, index: int) -> np.random.Generator:
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown: expected one of {', '.join(SPLITS)}")
    for name, value in (("seed", seed), ("index", index)):
        # Larger integers become several words of entropy, and two different lists could then read the same.
        if not 0 <= value < 2**32:
            raise UserError(f"{name} {value} is out of range: expected 0 to 2**32 - 1")
    return np.random.default_rng([seed, SPLITS.index(split), index])


@dataclass(frozen=True)
class _Stamp:
    """One object on its own square patch: coverage in 0..1 and texture in 0..1, both (h, w), and where it goes."""

    rows: slice
    cols: slice
    cover: Floats
    texture: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, name: str, size: tuple[int, int], count: int) -> "_Stamp":
        side = min(size)
        radius = max(rng.uniform(*_SCALE) * side * count**-0.5, _MIN_DIAMETER) / 2
        # A hair inside the frame, so that rounding never asks for a row beyond it.
        y, x = (rng.uniform(radius, length - radius - 1e-6) for length in size)
        top, left = int(y - radius), int(x - radius)
        bottom, right = int(np.ceil(y + radius)), int(np.ceil(x + radius))
        angle = rng.uniform(-_MAX_ROTATION, _MAX_ROTATION)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        points = _outlines()[name] @ turn * radius + (x - left, y - top)
        mask = Image.new("L", ((right - left) * _SUPERSAMPLING, (bottom - top) * _SUPERSAMPLING))
        # Pillow's polygon covers the pixels its edge passes through; the half pixel centres that on the true edge.
        ImageDraw.Draw(mask).polygon((points * _SUPERSAMPLING - 0.5).ravel().tolist(), fill=255)
        cover = np.asarray(mask.reduce(_SUPERSAMPLING), np.float32) / np.float32(255)
        return cls(slice(top, bottom), slice(left, right), cover, _texture(rng, *cover.shape))

    def press(self, canvas: Floats, tones: Floats) -> None:
        patch = canvas[self.rows, self.cols]
        patch += self.cover[..., None] * (_paint(tones, self.texture) - patch)


def _visible(stamps: list[_Stamp], height: int, width: int) -> tuple[list[int], NDArray[np.bool_]]:
    """Indices of the objects that stay, back to front, and their visible masks (N, H, W)."""
    taken: NDArray[np.bool_] = np.zeros((height, width), bool)
    kept: list[int] = []
    masks: list[NDArray[np.bool_]] = []
    # Front to back: an object that is left out covers nothing.
    for i in reversed(range(len(stamps))):
        where = stamps[i].rows, stamps[i].cols
        whole = stamps[i].cover >= 0.5
        seen = whole & ~taken[where]
        if np.count_nonzero(seen) < _MIN_VISIBLE * np.count_nonzero(whole):
            continue
        mask = np.zeros_like(taken)
        mask[where] = seen
        taken[where] |= whole
        kept.append(i)
        masks.append(mask)
    return kept[::-1], np.stack(masks[::-1])


def _texture(rng: np.random.Generator, height: int, width: int) -> Floats:
    """(height, width) float32 in 0..1: smooth noise, stripes or checks, a few periods across."""
    kind = rng.integers(3)
    if kind == 0:
        cells = int(rng.integers(3, 7))
        noise = Image.fromarray(rng.random((cells, cells), np.float32))
        smooth = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        return np.asarray((1.6 * smooth - 0.3).clip(0, 1), np.float32)
    angle, phase, shift = rng.random(3) * np.pi
    step = rng.uniform(2, 5) * 2 * np.pi / max(height, width)
    y = np.arange(height, dtype=np.float32)[:, None] * step
    x = np.arange(width, dtype=np.float32) * step
    wave = np.sin(x * np.float32(np.cos(angle)) + (y * np.float32(np.sin(angle)) + np.float32(phase)))
    if kind == 2:
        wave *= np.sin(y * np.float32(np.cos(angle)) + np.float32(shift) - x * np.float32(np.sin(angle)))
    # A steep slope, not a step: the edges stay anti-aliased.
    return np.asarray((0.5 + 2 * wave).clip(0, 1), np.float32)


def _paint(tones: Floats, texture: Floats) -> Floats:
    """(H, W, 3) float32: tones[0] where the texture is 0, tones[1] where it is 1."""
    return np.asarray(tones[0] + texture[..., None] * (tones[1] - tones[0]))


def _tones(rng: np.random.Generator, count: int) -> Floats:
    """(1 + count, 2, 3) float32 sRGB in 0..255: two tones for the background and for each object.

    Muted background, vivid objects, 0.14 or more of OKLab lightness between any tone of one and of the other
    (before clipping to sRGB). Hues step
    round the circle by the golden angle, so overlapping objects differ.
    """
    n = count + 1
    light = rng.uniform(0.66, 0.84, n) if (dark := rng.random() < 0.5) else rng.uniform(0.38, 0.56, n)
    light[0] = rng.uniform(0.24, 0.4) if dark else rng.uniform(0.84, 0.92)
    chroma = rng.uniform(0.11, 0.17, n)
    chroma[0] = rng.uniform(0.02, 0.07)
    hue = rng.random() + np.arange(n) * 0.381966 + rng.uniform(-0.06, 0.06, n)
    spread = rng.uniform(0.02, 0.07, n)
    spread[0] = rng.uniform(0.015, 0.05)
    pair = np.array([-1.0, 1.0])
    return _oklch(light[:, None] + spread[:, None] * pair, chroma[:, None], hue[:, None] + 0.04 * pair)


# Ottosson, "A perceptual color space for image processing" (2020): OKLab -> cube root LMS -> linear sRGB.
_OKLAB_TO_LMS = np.array(
    [[1, 1, 1], [0.3963377774, -0.1055613458, -0.0894841775], [0.2158037573, -0.0638541728, -1.291485548]]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -1.2684380046, -0.0041960863],
        [-3.3077115913, 2.6097574011, -0.7034186147],
        [0.2309699292, -0.3413193965, 1.707614701],
    ]
)


def _oklch(light: NDArray[Any], chroma: NDArray[Any], hue: NDArray[Any]) -> Floats:
    """OKLCh, hue in turns, to sRGB in 0..255, out-of-gamut channels clipped; (...,) each to (..., 3) float32."""
    angle = 2 * np.pi * hue
    lab = np.stack(np.broadcast_arrays(light, chroma * np.cos(angle), chroma * np.sin(angle)), axis=-1)
    linear = ((lab @ _OKLAB_TO_LMS) ** 3 @ _LMS_TO_RGB).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(255 * srgb, np.float32)


@functools.cache
def _outlines() -> dict[str, NDArray[np.float64]]:
    """One polygon per class, (P, 2) as x, y with y down: bounding box centred on 0, farthest point at distance 1."""
    circle = _arc(1, 0, 2 * np.pi)
    star = np.stack([_arc(1, 0, 1.6 * np.pi, 5), _arc(0.45, 0.2 * np.pi, 1.8 * np.pi, 5)], axis=1).reshape(-1, 2)
    t = np.linspace(0, 2 * np.pi, 64)
    heart = np.stack(
        [16 * np.sin(t) ** 3, -13 * np.cos(t) + 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t)], axis=1
    )
    a = 0.33
    shapes = {
        "circle": circle,
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "triangle": _arc(1, 0, 4 * np.pi / 3, 3),
        "star": star,
        "cross": [
            *[(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a)],
            *[(a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)],
        ],
        # Out along a seam and back: the hole lies between the two passes.
        "ring": np.concatenate([circle, 0.56 * circle[::-1]]),
        # The unit circle without a smaller one, centred to its right, that meets it 50 degrees above and below.
        "crescent": np.concatenate(
            [_arc(1, 7 / 9 * np.pi, 20 / 9 * np.pi), np.add(_arc(0.803, 2 * np.pi + 0.304, np.pi - 0.304), [0.403, 0])]
        ),
        "hourglass": [(-0.75, -1), (0.75, -1), (0.14, 0), (0.75, 1), (-0.75, 1), (-0.14, 0)],
        "heart": heart,
        "arrow": [(0, -1), (0.75, -0.1), (0.27, -0.1), (0.27, 1), (-0.27, 1), (-0.27, -0.1), (-0.75, -0.1)],
    }
    return {name: _fit(np.asarray(points, np.float64)) for name, points in shapes.items()}


def _arc(radius: float, start: float, stop: float, points: int = 64) -> NDArray[np.float64]:
    """Points (P, 2) on a circle about the origin, angles in radians clockwise from 12 o'clock, both ends included."""
    angle = np.linspace(start, stop, points)
    return radius * np.stack([np.sin(angle), -np.cos(angle)], axis=1)


def _fit(points: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = points - (points.min(axis=0) + points.max(axis=0)) / 2
    return np.asarray(centred / np.hypot(*centred.T).max())


class Shapes:
    """One shape per picture, for classification: items are (image, label), classes take turns.

    Args:
        split: "train", "val" or "test"; no two share a picture.
        length: number of items; item i is the same whatever the length.
        size: side or (height, width) in pixels, at least 16.
        seed: which dataset, 0 to 2**32 - 1.
        transform: callable on the PIL RGB image; None leaves it as it is.

    Raises:
        ValueError: `length` is less than 1, or another argument is outside its range.
    """

    def __init__(
        self,
        split: str = "train",
        length: int = 12_000,
        size: int | tuple[int, int] = 64,
        seed: int = 0,
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        if length < 1:
            raise UserError(f"length {length} is not a dataset: expected at least 1 image")
        render_scene(length - 1, split, size, seed=seed)
        self.split, self.length, self.size, self.seed = split, length, size, seed
        self.transform = transform
        self.classes = list(CLASSES)

    @property
    def targets(self) -> list[int]:
        """The labels of all items."""
        return [i % len(CLASSES) for i in range(self.length)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Any, int]:
        index = operator.index(index)
        if not 0 <= index < self.length:
            raise IndexError(f"image {index} of {self.length}: expected 0 to {self.length - 1}")
        scene = render_scene(index, self.split, self.size, seed=self.seed)
        image = Image.fromarray(scene.image)
        return (image if self.transform is None else self.transform(image)), int(scene.labels[0])
