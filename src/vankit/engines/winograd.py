"""Winograd's minimal filtering for OpenVINO models: a 3×3 convolution with a quarter of its multiplications.

F(4×4, 3×3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308): an output tile of
4×4 comes from an input tile of 6×6 by 36 products per pair of channels, in place of 144. OpenVINO's CPU plugin has only
the direct algorithm, so the transforms are written as operators around one batched matrix product.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FEWEST_CHANNELS = 64
_FEWEST_PLACES = 2000  # of a map; on smaller ones the transforms cost what the products save
_MOST_PLACES = 12_000  # at once: what lies between the steps then fits into the cache
_STRIP = 4  # rows of tiles at a time of larger maps
_SIDE = 640  # of a usual picture

# where the polynomials are evaluated, beside infinity: with ±1 and ±2, as usual, rounding errors are twice as large
_NEAR, _FAR = 2 / 3, 3 / 2
_POINTS = 0, _NEAR, -_NEAR, _FAR, -_FAR
_KERNEL = np.array(
    [[t**i / np.prod([t - o for o in _POINTS if o != t]) for i in range(3)] for t in _POINTS] + [[0, 0, 1]]
)
_NAME = "winograd:"


def with_winograd(model: Any) -> int:
    """Rewrite the large 3×3 convolutions in an `openvino.Model`, which may take inputs of any size.

    It is for float32: in bf16 the transforms would round each number several times.

    Returns:
        How many were rewritten.
    """
    places, kernels, count = _places(model), dict[str, Any](), 0
    for node in model.get_ordered_ops():
        weight, size = _weight(node), places.get(node.get_friendly_name(), 0)
        if weight is None or size < _FEWEST_PLACES:
            continue
        name = weight.get_name()
        if name not in kernels:
            kernels[name] = _constant(_transformed(weight.data))
        _replace(node, kernels[name], in_strips=size > _MOST_PLACES)
        count += 1
    model.validate_nodes_and_infer_types()
    return count


def _places(model: Any) -> dict[str, int]:
    """Height times width of what each convolution gives for one usual picture, by name; not where that depends on what
    is in the picture."""
    from openvino import passes

    if model.input(0).partial_shape[0] != 1:
        return {}
    static = model.clone()
    usual = zip(static.input(0).partial_shape, (1, _SIDE, _SIDE, _SIDE), strict=True)
    static.reshape({static.input(0): [n.get_length() if n.is_static else length for n, length in usual]})
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(static)
    sizes = {}
    for node in static.get_ops():
        if node.get_type_name() == "Convolution" and node.output(0).partial_shape.is_static:
            batch, _, height, width = node.output(0).shape
            sizes[node.get_friendly_name()] = height * width * (batch == 1)
    return sizes


def _weight(node: Any) -> Any:
    """The constant (O, C, 3, 3) of a convolution of stride 1 that keeps the size; None of every other node."""
    if node.get_type_name() != "Convolution":
        return None
    weight, attributes = _stored(node.input_value(1)), node.get_attributes()
    plain = all(list(attributes[name]) == [1, 1] for name in ("strides", "dilations", "pads_begin", "pads_end"))
    if not plain or weight is None or list(weight.shape[2:]) != [3, 3]:
        return None
    return weight if min(weight.shape[:2]) >= _FEWEST_CHANNELS else None


def _transformed(weight: NDArray[Any]) -> NDArray[np.float32]:
    """(O, C, 3, 3) → (36, C, O), computed in float64."""
    u = np.einsum("ik,ockl,jl->jico", _KERNEL, weight.astype(np.float64), _KERNEL)
    return np.ascontiguousarray(u.reshape(36, *u.shape[2:]), np.float32)


def _replace(convolution: Any, kernel: Any, in_strips: bool) -> None:
    """Put the algorithm in the place of a convolution, with the bias and the ReLU that follow."""
    from openvino import opset13 as ov

    source = convolution.input_value(0)
    before = source.get_node()
    is_ours = before.get_friendly_name().startswith(_NAME)
    x = before.input_value(0) if is_ours else ov.transpose(source, _constant([0, 2, 3, 1]))
    last, bias, relu = _followers(convolution)
    name = _NAME + last.get_friendly_name()
    y = _in_strips(x, kernel, bias, relu) if in_strips else _at_once(x, kernel, bias, relu)
    y = ov.transpose(y, _constant([0, 3, 1, 2]))
    for target in list(last.output(0).get_target_inputs()):
        target.replace_source_output(y.output(0))
    y.set_friendly_name(name)
    _lay_out_for_roi_align(y, kernel.shape[2])


def _lay_out_for_roi_align(y: Any, channels: int) -> None:
    """RoIAlign is ten times slower if its maps do not have the channels innermost, as a convolution leaves them."""
    from openvino import opset13 as ov

    targets = [t for t in y.output(0).get_target_inputs() if t.get_node().get_type_name() == "ROIAlign"]
    if targets:
        ones = _constant(np.ones((channels, 1, 1, 1, 1), np.float32))
        same = ov.group_convolution(y, ones, [1, 1], [0, 0], [0, 0], [1, 1])
        for target in targets:
            target.replace_source_output(same.output(0))


def _followers(node: Any) -> tuple[Any, Any, bool]:
    """The last node of convolution, bias and ReLU; the bias (O,) as a constant or None; whether there is a ReLU."""
    last, bias, relu = node, None, False
    consumer = _only_consumer(last)
    if consumer is not None and consumer.get_type_name() == "Add":
        value = next(filter(None, map(_stored, consumer.input_values())), None)
        if value is not None and list(value.shape) == [1, node.input_value(1).get_shape()[0], 1, 1]:
            last, bias = consumer, _constant(value.data.reshape(-1).astype(np.float32))
            consumer = _only_consumer(last)
    if consumer is not None and consumer.get_type_name() == "Relu":
        last, relu = consumer, True
    return last, bias, relu


def _stored(value: Any) -> Any:
    """The constant that an input is, perhaps converted from 16 bits; None of others."""
    node = value.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def _only_consumer(node: Any) -> Any:
    targets = list(node.output(0).get_target_inputs())
    return targets[0].get_node() if len(targets) == 1 else None


def _at_once(x: Any, kernel: Any, bias: Any, relu: bool) -> Any:
    """(1, H, W, C) → (1, H, W, O).

    Args:
        x: an output of a node.
        kernel: a constant, see `_transformed`.
        bias: a constant (O,), or None.
        relu: whether to end with one.
    """
    from openvino import opset13 as ov

    size = _size(x)
    x, tiles = _padded(x, size, [4, 4])
    return ov.slice(_tiled(x, tiles, kernel, bias, relu), [0, 0], size, [1, 1], [1, 2])


def _in_strips(x: Any, kernel: Any, bias: Any, relu: bool) -> Any:
    """As `_at_once`, but `_STRIP` rows of tiles at a time."""
    import openvino
    from openvino import opset13 as ov

    _, channels, outputs = kernel.shape
    size, rows = _size(x), 4 * _STRIP
    x, strips = _padded(x, size, [rows, 4])
    whole, place = ov.parameter([1, -1, -1, channels], np.float32), ov.parameter([], np.int64)
    first = ov.reshape(ov.multiply(place, _constant(rows)), [1], False)
    strip = ov.slice(whole, first, ov.add(first, _constant([rows + 2])), [1], [1])
    columns = ov.divide(ov.subtract(_size(strip), _constant([2, 2])), _constant([4, 4]))
    y = ov.unsqueeze(_tiled(strip, columns, kernel, bias, relu), _constant(0))  # (1, 1, 4 rows, 4 columns, O)
    loop = ov.loop(ov.gather(strips, _constant(0), _constant(0)), ov.constant(True))
    loop.set_function(openvino.Model([y, ov.constant([True])], [place, whole]))
    loop.set_special_body_ports([0, 1])
    loop.set_invariant_input(whole, x.output(0))
    y = loop.get_concatenated_slices(y.output(0), 0, 1, 1, -1, 0)  # (strips, 1, 4 rows, 4 columns, O)
    y = ov.reshape(y, ov.concat([[1], ov.multiply(strips, _constant([rows, 4])), [outputs]], 0), False)
    return ov.slice(y, [0, 0], size, [1, 1], [1, 2])


def _size(x: Any) -> Any:
    """Height and width of (1, H, W, C)."""
    from openvino import opset13 as ov

    return ov.gather(ov.shape_of(x, output_type="i64"), _constant([1, 2]), _constant(0))


def _padded(x: Any, size: Any, unit: list[int]) -> tuple[Any, Any]:
    """With one row and column of zeros around what is a multiple of a unit, and how many units that is each way."""
    from openvino import opset13 as ov

    units = ov.divide(ov.add(size, _constant(np.subtract(unit, 1))), _constant(unit))
    missing = ov.subtract(ov.multiply(units, _constant(unit)), size)
    ends = ov.concat([[0], ov.add(missing, _constant([1, 1])), [0]], 0)
    return ov.pad(x, _constant([0, 1, 1, 0]), ends, "constant", _number(0)), units


def _tiled(x: Any, tiles: Any, kernel: Any, bias: Any, relu: bool) -> Any:
    """The algorithm: (1, 4 rows + 2, 4 columns + 2, C) → (1, 4 rows, 4 columns, O), where tiles is (rows, columns)."""
    from openvino import opset13 as ov

    _, channels, outputs = kernel.shape
    stacked = _stacked(_input_transform(_every_fourth(x, 1)), 0)  # (6, 1, rows, 4 columns + 2, C)
    v = _stacked(_input_transform(_every_fourth(stacked, 3)), 0)  # (6, 6, 1, rows, columns, C)
    m = ov.matmul(ov.reshape(v, _constant([36, -1, channels]), False), kernel, False, False)
    m = ov.reshape(m, ov.concat([[6, 6, 1], tiles, [outputs]], 0), False)
    columns = ov.concat(_output_transform(_parts(m)), 4)  # (6, 1, rows, columns, 4 O)
    y = _stacked(_output_transform(_parts(columns)), 2)  # (1, rows, 4, columns, 4 O)
    y = ov.reshape(y, ov.concat([[1], ov.multiply(tiles, _constant([4, 4])), [outputs]], 0), False)
    y = y if bias is None else ov.add(y, bias)
    return ov.relu(y) if relu else y


def _every_fourth(x: Any, axis: int) -> list[Any]:
    """Of 4 n + 2 rows or columns the 1st, 5th, 9th …, the 2nd, 6th …, to the 6th, 10th …: n of each."""
    from openvino import opset13 as ov

    end = np.iinfo(np.int32).max
    starts_and_stops = enumerate((-2, -1, end, end, end, end))
    return [ov.slice(x, [start], [stop], [4], [axis]) for start, stop in starts_and_stops]


def _input_transform(d: Sequence[Any]) -> list[Any]:
    """Of six rows or columns, for `_POINTS` and infinity."""
    near, far, both = (_number(value) for value in (_NEAR**2, _FAR**2, _NEAR**2 + _FAR**2))
    a, b = d[4] - d[2] * far, (d[3] - d[1] * far) * _number(_NEAR)
    c, e = d[4] - d[2] * near, (d[3] - d[1] * near) * _number(_FAR)
    return [d[0] - d[2] * both + d[4], a + b, a - b, c + e, c - e, d[1] - d[3] * both + d[5]]


def _output_transform(m: Sequence[Any]) -> list[Any]:
    """From six to four rows or columns: the sums over the points of their powers 0 to 3, times what they gave."""
    a, b, c, e = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    odd = [b * _number(_NEAR**i) + e * _number(_FAR**i) for i in (1, 3)]
    return [m[0] + a + c, odd[0], a * _number(_NEAR**2) + c * _number(_FAR**2), odd[1] + m[5]]


def _stacked(parts: Sequence[Any], axis: int) -> Any:
    from openvino import opset13 as ov

    return ov.concat([ov.unsqueeze(part, _constant(axis)) for part in parts], axis)


def _parts(x: Any) -> list[Any]:
    """Along the first axis, of six."""
    from openvino import opset13 as ov

    return [ov.squeeze(part, _constant(0)) for part in ov.split(x, _constant(0), 6).outputs()]


def _constant(value: Any) -> Any:
    from openvino import opset13 as ov

    array = np.asarray(value)
    return ov.constant(array if array.dtype.kind == "f" else array.astype(np.int64))


def _number(value: float) -> Any:
    return _constant(np.float32(value))
