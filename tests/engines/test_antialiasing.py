"""Resizing with antialiasing against PyTorch's in float64, for every size."""

from typing import Any

import numpy as np
import openvino
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from openvino import opset13 as ov

from vankit.engines.antialiasing import with_quick_antialiasing
from vankit.engines.openvino import openvino_core

_SIDES = st.integers(2, 300)  # of one column PyTorch repeats the first row


@pytest.fixture(scope="module")
def resize() -> Any:
    x, size = ov.parameter([1, 3, -1, -1], np.float32), ov.parameter([2], np.int64)
    options = "sizes", [0] * 4, [0] * 4, "pytorch_half_pixel", "floor", False, -0.75, ov.constant([2, 3])
    model = openvino.Model([ov.interpolate(ov.relu(x), size, "bilinear_pillow", *options)], [x, size])
    assert with_quick_antialiasing(model) == 1
    assert model.output(0).partial_shape.to_string() == "[1,3,?,?]"
    assert "Interpolate" not in [node.get_type_name() for node in model.get_ops()]
    return openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


@given(_SIDES, _SIDES, _SIDES, _SIDES, st.integers(0, 2**32 - 1))
def test_every_size(resize: Any, height: int, width: int, rows: int, columns: int, seed: int) -> None:
    x = np.random.default_rng(seed).random((1, 3, height, width), np.float32)
    expected = F.interpolate(torch.from_numpy(x).double(), (rows, columns), mode="bilinear", antialias=True)
    np.testing.assert_allclose(resize((x, np.array([rows, columns])))[0], expected, atol=2e-5)


def test_a_photograph(resize: Any) -> None:
    x = np.random.default_rng(0).random((1, 3, 3000, 4000), np.float32)
    expected = F.interpolate(torch.from_numpy(x), (512, 683), mode="bilinear", antialias=True)
    np.testing.assert_allclose(resize((x, np.array([512, 683])))[0], expected, atol=2e-4)
