"""Winograd's convolutions against float64, for every size and neighbour."""

from typing import Any

import numpy as np
import openvino
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from openvino import opset13 as ov

from vankit.engines import winograd
from vankit.engines.openvino import OpenVinoEngine, openvino_core
from vankit.engines.winograd import with_winograd

_RNG = np.random.default_rng(0)
_W1, _W2 = (_RNG.standard_normal((o, c, 3, 3)).astype(np.float32) / 24 for o, c in ((96, 64), (64, 96)))
_B1 = _RNG.standard_normal((1, 96, 1, 1)).astype(np.float32)


def _convolution(x: Any, weight: Any, stride: int = 1, pad: int = 1) -> Any:
    return ov.convolution(x, weight, [stride] * 2, [pad] * 2, [pad] * 2, [1, 1])


def _compiled(model: Any) -> Any:
    return openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def _types(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ops()]


@pytest.fixture(scope="module", params=[60, 640], ids=["at once", "in strips"])
def two_layers(request: pytest.FixtureRequest) -> Any:
    """Convolution, bias, ReLU, convolution, compiled as for maps of so many pixels a side."""
    x = ov.parameter([1, 64, -1, -1], np.float32)
    model = openvino.Model([_convolution(ov.relu(ov.add(_convolution(x, _W1), _B1)), _W2)], [x])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "_SIDE", request.param)
        assert winograd.with_winograd(model) == 2
    assert "Convolution" not in _types(model)
    assert _types(model).count("Loop") == (2 if request.param == 640 else 0)
    return _compiled(model)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_every_size(two_layers: Any, height: int, width: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((1, 64, height, width)).astype(np.float32)
    first = F.conv2d(torch.from_numpy(x).double(), torch.from_numpy(_W1).double(), padding=1)
    expected = F.conv2d((first + torch.from_numpy(_B1)).relu(), torch.from_numpy(_W2).double(), padding=1)
    np.testing.assert_allclose(two_layers(x)[0], expected, atol=5e-5)


def test_others_stay_as_they_are() -> None:
    x = ov.parameter([1, 64, -1, -1], np.float32)
    few = _RNG.standard_normal((32, 64, 3, 3)).astype(np.float32)
    one = _RNG.standard_normal((64, 64, 1, 1)).astype(np.float32)
    weight = ov.parameter([64, 64, 3, 3], np.float32)
    results = [
        _convolution(x, few), _convolution(x, one, pad=0), _convolution(x, _W1, stride=2), _convolution(x, _W1, pad=0),
        _convolution(x, weight),
    ]  # fmt: skip
    model = openvino.Model(results, [x, weight])
    before = _types(model)
    assert with_winograd(model) == 0
    assert _types(model) == before


def test_a_bias_that_is_used_twice_is_kept() -> None:
    x = ov.parameter([1, 64, -1, -1], np.float32)
    inner = ov.add(_convolution(x, _W1), _B1)
    model = openvino.Model([ov.relu(inner), inner], [x])
    picture = _RNG.standard_normal((1, 64, 9, 14)).astype(np.float32)
    expected = list(_compiled(model)(picture).values())
    with_winograd(model)
    for found, right in zip(_compiled(model)(picture).values(), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=5e-5)


def test_small_maps_stay_as_they_are() -> None:
    picture = ov.parameter([1, 64, -1, -1], np.float32)
    weight = ov.constant(_W1)
    maps = [ov.max_pool(picture, [n, n], [1, 1], [0, 0], [0, 0], [n, n]).output(0) for n in (8, 16, 32)]
    levels = [_convolution(x, weight) for x in maps]  # of 6400, 1600 and 400 places for a picture of 640 pixels
    model = openvino.Model(levels, [picture])
    x = _RNG.standard_normal((1, 64, 256, 320)).astype(np.float32)
    expected = list(_compiled(model)(x).values())
    assert with_winograd(model) == 1
    assert _types(model).count("Convolution") == 2
    for found, right in zip(_compiled(model)(x).values(), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=5e-5)


def test_maps_for_roi_align_and_weights_in_16_bits() -> None:
    x, boxes = ov.parameter([1, 64, -1, -1], np.float32), ov.parameter([2, 4], np.float32)
    half = ov.convert(ov.constant(_W1.astype(np.float16)), "f32")
    maps = ov.relu(_convolution(x, half))
    batch = ov.constant(np.zeros(2, np.int64))
    pooled = ov.roi_align(maps, boxes, batch, 7, 7, 2, 0.5, "avg")
    model = openvino.Model([pooled, maps], [x, boxes])
    given_ = [
        _RNG.standard_normal((1, 64, 10, 13)).astype(np.float32),
        np.array([[1, 2, 9, 11], [4, 0, 20, 17]], np.float32),
    ]
    expected = list(_compiled(model)(given_).values())
    assert with_winograd(model) == 1
    assert "GroupConvolution" in _types(model)  # which keeps the layout that RoIAlign is quick in
    for found, right in zip(_compiled(model)(given_).values(), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=5e-5)


@pytest.mark.parametrize(("precision", "left"), [("float32", 0), ("int8", 1)])
def test_the_engine_uses_it_in_float32_alone(precision: str, left: int) -> None:
    x = ov.parameter([1, 64, -1, -1], np.float32)
    model = openvino.Model([_convolution(x, _W1)], [x])
    OpenVinoEngine(lambda: model, None, precision, winograd=True).prepare()
    assert _types(model).count("Convolution") == left


def test_weights_are_told_apart_by_more_than_their_names() -> None:
    x = ov.parameter([1, 64, -1, -1], np.float32)
    weights = [ov.constant(_W1), ov.constant(2 * _W1)]
    for weight in weights:
        weight.set_friendly_name("w")
    model = openvino.Model([_convolution(x, weight) for weight in weights], [x])
    with_winograd(model)
    one, two = _compiled(model)(_RNG.standard_normal((1, 64, 9, 9)).astype(np.float32)).values()
    np.testing.assert_allclose(two, 2 * one, atol=5e-5)


def test_batches_stay_as_they_are() -> None:
    x = ov.parameter([-1, 64, -1, -1], np.float32)
    assert with_winograd(openvino.Model([_convolution(x, _W1)], [x])) == 0
