"""Bilinear resizing with antialiasing for OpenVINO models, without tables for each size.

OpenVINO has Pillow's algorithm, but prepares for each new pair of sizes, which takes seconds: on two cores 4 s for the
logits of 80 classes from 512 × 683 to 480 × 640 pixels, 14 s to 1024 × 1366. Here a map is first made smaller along the
sides that shrink, by a product with a matrix of weights; OpenVINO's plain interpolation then makes the others larger,
which needs no antialiasing.

Branches (`If`) would save the first step where nothing shrinks. But where OpenVINO 2026.4 changes the layout of what a
branch gives, the next operator reads memory that was never written; and NNCF does not take models with branches.
"""

from typing import Any

import numpy as np

_BLOCK = 64  # rows that are made together, from those of the input that they overlap


def with_quick_antialiasing(model: Any) -> int:
    """Rewrite the resizing of Pillow's kind, of maps (1, C, H, W) to any height and width, in an `openvino.Model`.

    In float32 it stays what it was up to rounding; in bf16 weights are rounded too. A side times its new length must be
    below 2³⁰, since OpenVINO computes int64 as int32 on CPUs.

    Returns:
        How many were rewritten.
    """
    count = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Interpolate" and node.get_attributes()["mode"] == "bilinear_pillow":
            y = _resized(node.input_value(0), node.input_value(1))
            for target in list(node.output(0).get_target_inputs()):
                target.replace_source_output(y.output(0))
            y.set_friendly_name(node.get_friendly_name())
            count += 1
    model.validate_nodes_and_infer_types()
    return count


def _resized(x: Any, size: Any) -> Any:
    """(1, C, H, W) → (1, C, *size)."""
    from openvino import opset13 as ov

    size = ov.convert(size, "i64")
    sides = ov.gather(ov.shape_of(x, output_type="i64"), _constant([2, 3]), _constant(0))
    smaller = ov.minimum(size, sides)
    for side in (0, 1):
        x = ov.transpose(_rows(x, ov.gather(smaller, _constant(side), _constant(0))), _constant([0, 1, 3, 2]))
    mode = "linear_onnx", "sizes", [0] * 4, [0] * 4, "pytorch_half_pixel", "floor", False, -0.75
    return ov.interpolate(x, size, *mode, _constant([2, 3]))


def _rows(x: Any, rows: Any) -> Any:
    """(1, C, H, W) → (1, C, rows, W), of no more rows: each a mean of those around it, weighted by a triangle that
    falls to 0 within a new row on either side."""
    from openvino import opset13 as ov

    zero, one, block = (_constant(value) for value in (0, 1, _BLOCK))
    shape = ov.shape_of(x, output_type="i64")
    channels, height, width = (ov.gather(shape, _constant([i]), zero) for i in (1, 2, 3))  # (1,) each
    rows = ov.reshape(rows, _constant([1]), False)
    blocks = (rows + _constant(_BLOCK - 1)) / block
    # in whole numbers: place j of the input lies n = (2 j + 1) rows - (2 i + 1) height from row i, in 1 / (2 rows) of a
    # place, and counts if |n| < 2 height
    length = ov.minimum((block * height + _constant(2) * height) / rows + _constant(3), height)
    firsts = ov.range(zero, ov.squeeze(blocks, zero), one, "i64") * _constant(2 * _BLOCK) + one
    firsts = (firsts * height - _constant(2) * height - rows) / (_constant(2) * rows)
    firsts = ov.maximum(ov.minimum(firsts, height - length), zero)
    places = ov.unsqueeze(firsts, one) + ov.range(zero, ov.squeeze(length, zero), one, "i64")  # (blocks, length)
    made = ov.range(zero, ov.squeeze(blocks * block, zero), one, "i64")
    made = ov.reshape(made, _constant([-1, _BLOCK, 1]), False)
    n = (ov.unsqueeze(places, one) * _constant(2) + one) * rows - (made * _constant(2) + one) * height
    weights = ov.relu(_number(1) - ov.convert(ov.abs(n), "f32") / ov.convert(_constant(2) * height, "f32"))
    total = ov.maximum(ov.reduce_sum(weights, _constant(-1), True), _number(1e-6))  # rows beyond the end have none
    near = ov.gather(x, ov.reshape(places, _constant([-1]), False), _constant(2))
    near = ov.reshape(near, ov.concat([channels, blocks, length, width], 0), False)
    y = ov.matmul(weights / total, near, False, False)  # (C, blocks, 64, W)
    y = ov.reshape(y, ov.concat([_constant([1]), channels, _constant([-1]), width], 0), False)
    return ov.slice(y, _constant([0]), rows, _constant([1]), _constant([2]))


def _constant(value: Any) -> Any:
    from openvino import opset13 as ov

    return ov.constant(np.asarray(value, np.int64))


def _number(value: float) -> Any:
    from openvino import opset13 as ov

    return ov.constant(np.float32(value))
