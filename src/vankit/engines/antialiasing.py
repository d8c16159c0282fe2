"""Bilinear resizing with antialiasing for OpenVINO models, where a new size costs nothing.

OpenVINO has Pillow's algorithm, but makes tables for each new pair of sizes, which takes seconds: on two cores 5 s for
the logits of 80 classes at 512 × 683 pixels, 27 s for a photograph of 12 megapixels. Here a map that becomes larger is
left to OpenVINO's plain interpolation, which is the same where nothing shrinks; one that shrinks is multiplied by a
matrix of weights for its rows, and by one for its columns.
"""

from typing import Any

import numpy as np

_BLOCK = 64  # rows that are made at a time, from those under them alone


def with_quick_antialiasing(model: Any) -> int:
    """Rewrite the resizing of Pillow's kind along height and width in an `openvino.Model`, which stays exact.

    Returns:
        How many were rewritten.
    """
    count = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Interpolate" and node.get_attributes()["mode"] == "bilinear_pillow":
            _replace(node)
            count += 1
    model.validate_nodes_and_infer_types()
    return count


def _replace(node: Any) -> None:
    """Of maps (1, C, H, W) that are brought to sizes (2,)."""
    from openvino import opset13 as ov

    x, size = node.input_value(0), ov.convert(node.input_value(1), "i64").output(0)
    y = _if(_differs, x, size, lambda x, size: _if(_shrinks, x, size, _shrunk, _enlarged), lambda x, size: x)
    for target in list(node.output(0).get_target_inputs()):
        target.replace_source_output(y)
    y.get_node().set_friendly_name(node.get_friendly_name())


def _if(condition: Any, x: Any, size: Any, *resized: Any) -> Any:
    """What the first function gives for maps and a size where a condition of them holds, else what the second gives."""
    import openvino
    from openvino import opset13 as ov

    y = ov.if_op(condition(x, size).output(0))
    inputs, results = [], []
    for function, install in zip(resized, (y.set_then_body, y.set_else_body), strict=True):
        given = ov.parameter(x.get_partial_shape(), np.float32), ov.parameter([2], np.int64)
        body = openvino.Model([function(*(each.output(0) for each in given))], list(given))
        install(body)
        inputs.append(given)
        results.append(body.get_results()[0])
    for value, parameters in zip((x, size), zip(*inputs, strict=True), strict=True):
        y.set_input(value, *parameters)
    return y.set_output(*results)


def _differs(x: Any, size: Any) -> Any:
    from openvino import opset13 as ov

    return ov.reduce_logical_or(ov.not_equal(size, _sides(x)), _constant([0]), False)


def _shrinks(x: Any, size: Any) -> Any:
    from openvino import opset13 as ov

    return ov.reduce_logical_or(ov.less(size, _sides(x)), _constant([0]), False)


def _enlarged(x: Any, size: Any) -> Any:
    from openvino import opset13 as ov

    mode = "linear_onnx", "sizes", [0] * 4, [0] * 4, "pytorch_half_pixel", "floor", False, -0.75
    return ov.interpolate(x, size, *mode, _constant([2, 3]))


def _shrunk(x: Any, size: Any) -> Any:
    from openvino import opset13 as ov

    for side in (0, 1):
        x = ov.transpose(_rows(x, ov.gather(size, _constant(side), _constant(0))), _constant([0, 1, 3, 2]))
    return x


def _rows(x: Any, rows: Any) -> Any:
    """(1, C, H, W) → (1, C, rows, W): each a mean of those around it, weighted by a triangle as wide as a row of the
    smaller map on either side."""
    from openvino import opset13 as ov

    zero, one, block = (_constant(value) for value in (0, 1, _BLOCK))
    shape = ov.shape_of(x, output_type="i64")
    channels, height, width = (ov.gather(shape, _constant([i]), zero) for i in (1, 2, 3))  # (1,) each
    rows = ov.reshape(rows, _constant([1]), False)
    widest = ov.maximum(height, rows)
    blocks = (rows + _constant(_BLOCK - 1)) / block
    # all in whole numbers: place j lies n = (2 j + 1) rows - (2 i + 1) height from row i, in 1 / (2 rows) of a place
    length = ov.minimum((block * height + _constant(2) * widest) / rows + _constant(3), height)
    firsts = ov.range(zero, ov.squeeze(blocks, zero), one, "i64") * _constant(2 * _BLOCK) + one
    firsts = (firsts * height - _constant(2) * widest - rows) / (_constant(2) * rows)
    firsts = ov.maximum(ov.minimum(firsts, height - length), zero)
    places = ov.unsqueeze(firsts, one) + ov.range(zero, ov.squeeze(length, zero), one, "i64")  # (blocks, length)
    made = ov.range(zero, ov.squeeze(blocks * block, zero), one, "i64")
    made = ov.reshape(made, _constant([-1, _BLOCK, 1]), False)
    n = (ov.unsqueeze(places, one) * _constant(2) + one) * rows - (made * _constant(2) + one) * height
    weights = ov.relu(_number(1) - ov.convert(ov.abs(n), "f32") / ov.convert(_constant(2) * widest, "f32"))
    total = ov.maximum(ov.reduce_sum(weights, _constant(-1), True), _number(1e-6))  # rows beyond the end have none
    near = ov.gather(x, ov.reshape(places, _constant([-1]), False), _constant(2))
    near = ov.reshape(near, ov.concat([channels, blocks, length, width], 0), False)
    y = ov.matmul(weights / total, near, False, False)  # (C, blocks, 64, W)
    y = ov.reshape(y, ov.concat([_constant([1]), channels, _constant([-1]), width], 0), False)
    return ov.slice(y, _constant([0]), rows, _constant([1]), _constant([2]))


def _sides(x: Any) -> Any:
    from openvino import opset13 as ov

    return ov.gather(ov.shape_of(x, output_type="i64"), _constant([2, 3]), _constant(0))


def _constant(value: Any) -> Any:
    from openvino import opset13 as ov

    return ov.constant(np.asarray(value, np.int64))


def _number(value: float) -> Any:
    from openvino import opset13 as ov

    return ov.constant(np.float32(value))
