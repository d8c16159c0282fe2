"""Preprocessing against timm's evaluation transform, which goes through torchvision."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from vankit.data.preprocessing import INTERPOLATIONS, Preprocessing
from vankit.errors import UserError

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (300, 300, 3), np.uint8)
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
VAN = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
USUAL: dict[str, Any] = {"input_size": (3, 32, 32), **VAN, "crop_pct": 0.9, "interpolation": "bicubic"}


def both(image: Image.Image, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    found = Preprocessing(**options)(image)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    return found, create_transform(**options)(image).numpy()


sides = st.one_of(st.integers(1, 300), st.integers(1, 4))
inputs = st.one_of(
    st.integers(1, 64).map(lambda n: (3, n, n)), st.tuples(st.just(3), st.integers(1, 64), st.integers(1, 64))
)


@settings(max_examples=200)
@given(sides, sides, inputs, st.floats(0.25, 2.5), st.sampled_from(sorted(INTERPOLATIONS)))
@example(300, 200, (3, 64, 64), 0.9, "bicubic")
@example(300, 200, (3, 64, 64), 1.0, "bicubic")
@example(36, 36, (3, 32, 32), 32 / 36, "bicubic")  # needs no resizing
@example(1, 300, (3, 64, 64), 0.9, "bicubic")
@example(300, 1, (3, 64, 48), 0.9, "bicubic")
@example(5, 5, (3, 64, 64), 2.0, "lanczos")  # enlarged, then padded
@example(101, 77, (3, 33, 32), 1.7, "bilinear")  # padded by an odd number of pixels
@example(300, 20, (3, 32, 32), 1.5, "bilinear")  # padded in height, cropped in width
def test_pixels_are_timms(
    width: int, height: int, input_size: tuple[int, int, int], crop_pct: float, interpolation: str
) -> None:
    if crop_pct > min(input_size[1:]):
        crop_pct = 1.0
    image = Image.fromarray(NOISE[:height, :width])
    found, expected = both(image, input_size=input_size, crop_pct=crop_pct, interpolation=interpolation, **RAW)
    np.testing.assert_array_equal(np.rint(found * 255), np.rint(expected * 255))


@pytest.mark.parametrize("colours", [IMAGENET, VAN, RAW])
def test_normalisation_is_timms(colours: dict[str, Any]) -> None:
    levels = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
    found, expected = both(levels, input_size=(3, 16, 16), crop_pct=1.0, interpolation="nearest", **colours)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    photograph = Image.fromarray(NOISE)
    found, expected = both(photograph, input_size=(3, 96, 64), crop_pct=0.875, interpolation="bicubic", **colours)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@given(st.integers(1, 5000), st.integers(1, 5000), inputs, st.floats(0.25, 1))
def test_from_min_side_on_nothing_is_enlarged(
    width: int, height: int, input_size: tuple[int, int, int], crop_pct: float
) -> None:
    preprocessing = Preprocessing(**{**USUAL, "input_size": input_size, "crop_pct": crop_pct})
    width, height = max(width, preprocessing.min_side), max(height, preprocessing.min_side)
    resized = preprocessing.resized(width, height)
    assert resized[0] <= width and resized[1] <= height
    assert resized[0] >= input_size[2] and resized[1] >= input_size[1]


def test_min_side_of_a_square_input_is_the_resized_short_side() -> None:
    assert Preprocessing(**{**USUAL, "input_size": (3, 224, 224)}).min_side == 248
    assert Preprocessing(**{**USUAL, "input_size": (3, 100, 200), "crop_pct": 1.0}).min_side == 200


def test_json_and_back() -> None:
    preprocessing = Preprocessing(**USUAL)
    back = Preprocessing(**json.loads(json.dumps(dataclasses.asdict(preprocessing))))
    assert back == preprocessing and hash(back) == hash(preprocessing)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"input_size": (3, 0, 32)}, r"input_size is \(3, 0, 32\)"),
        ({"input_size": (3, 32)}, "input_size"),
        ({"input_size": (1, 32, 32)}, "input_size"),
        ({"input_size": (3, 32.5, 32)}, "input_size"),
        ({"mean": (0.5,)}, "mean"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean"),
        ({"std": (0.5, 0.5)}, "std"),
        ({"std": (0.5, 0, 0.5)}, "std"),
        ({"std": (0.5, 0.5, float("inf"))}, "std"),
        ({"crop_pct": 0}, "crop_pct"),
        ({"crop_pct": -1}, "crop_pct"),
        ({"crop_pct": float("nan")}, "crop_pct"),
        ({"crop_pct": 32.5}, "crop_pct is 32.5"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"{reason}.*expected"):
        Preprocessing(**{**USUAL, **change})


def test_pictures_that_cannot_be_prepared() -> None:
    preprocessing = Preprocessing(**USUAL)
    with pytest.raises(UserError, match="mode is L: expected RGB"):
        preprocessing(Image.new("L", (40, 40)))
    with pytest.raises(UserError, match="1 x 90000 pixels would be resized to 35 x 3150000"):
        preprocessing(Image.new("RGB", (1, 90_000)))
