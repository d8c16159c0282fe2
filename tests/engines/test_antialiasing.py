"""Resizing with antialiasing in float64, for every size and whatever follows it."""

from typing import Any

import numpy as np
import openvino
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from openvino import opset13 as ov

from vankit.engines.antialiasing import with_quick_antialiasing
from vankit.engines.openvino import openvino_core

_SIDES = st.integers(1, 300)


def weights(given: int, made: int) -> NDArray[np.float64]:
    """(made, given): Pillow's triangle, as wide as the coarser of the two grids."""
    i, j = (np.arange(made)[:, None] + 0.5) * given / made, np.arange(given) + 0.5
    found = np.maximum(0, 1 - abs(i - j) / max(given / made, 1))
    return found / found.sum(1, keepdims=True)


def resized(x: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float64]:
    rows, columns = (weights(given, made) for given, made in zip(x.shape[2:], size, strict=True))
    return rows @ x.astype(np.float64) @ columns.T


def resizing(*after: Any) -> openvino.Model:
    x, size = ov.parameter([1, 4, -1, -1], np.float32), ov.parameter([2], np.int64)
    options = "sizes", [0] * 4, [0] * 4, "pytorch_half_pixel", "floor", False, -0.75, ov.constant([2, 3])
    y = ov.interpolate(ov.relu(x), size, "bilinear_pillow", *options)
    for function in after:
        y = function(y)
    return openvino.Model([y], [x, size])


def compiled(model: openvino.Model, precision: str = "f32") -> Any:
    return openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})


@pytest.fixture(scope="module")
def resize() -> Any:
    model = resizing()
    assert with_quick_antialiasing(model) == 1
    assert model.output(0).partial_shape.to_string() == "[1,4,?,?]"
    return compiled(model)


@given(_SIDES, _SIDES, _SIDES, _SIDES, st.integers(0, 2**32 - 1))
def test_every_size(resize: Any, height: int, width: int, rows: int, columns: int, seed: int) -> None:
    x = np.random.default_rng(seed).random((1, 4, height, width), np.float32)
    expected = resized(x, (rows, columns))
    np.testing.assert_allclose(resize((x, np.array([rows, columns])))[0], expected, atol=2e-5)


def test_a_photograph(resize: Any) -> None:
    x = np.random.default_rng(0).random((1, 4, 3000, 4000), np.float32)
    np.testing.assert_allclose(resize((x, np.array([512, 683])))[0], resized(x, (512, 683)), atol=2e-5)


_KERNEL = np.random.default_rng(0).random((8, 4, 3, 3), np.float32)
_FOLLOWERS = {
    "convolution": lambda y: ov.convolution(y, _KERNEL, [1, 1], [1, 1], [1, 1], [1, 1]),
    "pooling": lambda y: ov.max_pool(y, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0),
    "sums": lambda y: ov.divide(ov.subtract(y, np.float32(0.5)), np.float32(0.25)),
    "quantisation": lambda y: ov.fake_quantize(y, *(np.float32(n) for n in (0, 1, 0, 1)), 256),
    "best class": lambda y: ov.topk(y, np.int64(1), 1, "max", "value").output(0),
}
_CHAINS = (
    ["convolution"], ["sums", "convolution"], ["pooling"], ["sums", "quantisation", "convolution"], ["best class"],
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("chain", _CHAINS, ids="-".join)
@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("size", [(40, 60), (33, 50), (90, 120), (39, 61)])
def test_what_follows(chain: list[str], precision: str, size: tuple[int, int]) -> None:
    """In the first inference, where branches of OpenVINO gave what was in memory."""
    if precision == "bf16" and "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    x, wanted = np.random.default_rng(1).random((1, 4, 40, 60), np.float32), np.array(size)
    model = resizing(*(_FOLLOWERS[name] for name in chain))
    expected = compiled(model)((x, wanted))[0]
    assert with_quick_antialiasing(model) == 1
    found = compiled(model, precision)((x, wanted))[0]
    scale, exact = abs(expected).max(), precision == "f32" and "quantisation" not in chain
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5 if exact else 3e-2)
