"""The Open Inference Protocol, version 2, as tensors: requests read, answers written, also in its binary form.

Source: https://github.com/kserve/open-inference-protocol (inference_rest.md), and its extensions binary tensor data and
classification of Triton (https://github.com/triton-inference-server/server/tree/main/docs/protocol).
"""

import binascii
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from vankit.serving.errors import BadRequestError
from vankit.serving.models import Served, Tensor

HEADER_LENGTH = "Inference-Header-Content-Length"  # of the JSON before the tensors' bytes
EXTENSIONS = ("binary_tensor_data", "classification", "model_repository")
_BYTES = "BYTES"
_TYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _TYPES.items()}
_MOST_TENSORS = 16
_MOST_FILES = 1000  # of pictures, in one request
_MOST_NUMBERS = 2**21  # in JSON, where each takes several times its size in memory; more are sent in binary
_LONGEST_NUMBER = 32  # characters, with what stands around it
_DEEPEST = 4  # lists in lists
_Length = Annotated[int, Meta(ge=0, le=2**31)]


class _Input(msgspec.Struct):
    name: str
    shape: Annotated[list[_Length], Meta(max_length=8)]
    datatype: str
    data: msgspec.Raw = msgspec.Raw()
    parameters: dict[str, Any] = {}


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: Annotated[list[_Input], Meta(min_length=1, max_length=_MOST_TENSORS)]
    outputs: Annotated[list[_Output], Meta(max_length=_MOST_TENSORS)] | None = None
    id: Annotated[str, Meta(max_length=1000)] | None = None
    parameters: dict[str, Any] = {}


_DECODER = msgspec.json.Decoder(_Request)


@dataclass(frozen=True)
class Wanted:
    """An output that a client asks for.

    Attributes:
        name: of it.
        binary: whether its bytes follow the JSON.
        best: only so many of its best values, as text "value:index:class"; 0 for all as they are.
    """

    name: str
    binary: bool = False
    best: int = 0


@dataclass(frozen=True)
class Inference:
    """What a client asks for.

    Attributes:
        rows: a picture each: its file's bytes, or a tensor without the batch's axis.
        wanted: the outputs.
        id: of the request, to be sent back.
    """

    rows: Sequence[bytes | NDArray[Any]]
    wanted: Sequence[Wanted]
    id: str | None


def read_request(body: bytes, header_length: str | None, served: Served) -> Inference:
    """Read a request for a network.

    Args:
        body: JSON, and perhaps a tensor's bytes after it.
        header_length: of the JSON in bytes, if there are any.

    Raises:
        BadRequestError: it is not of the protocol, or not for this network.
    """
    length = len(body) if header_length is None else _header_length(header_length, len(body))
    try:
        request = _DECODER.decode(memoryview(body)[:length])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadRequestError(f"the request cannot be read: {str(error)[:200]}") from None
    tensor = _input(request, served)
    values = _values(tensor, memoryview(body)[length:])
    return Inference(_rows(tensor, values, served), _wanted(request, served), request.id)


def _header_length(text: str, size: int) -> int:
    if not text.isdecimal() or len(text) > 12 or int(text) > size:
        raise BadRequestError(f"{HEADER_LENGTH} is {text[:20]!r}: expected at most the {size:,} bytes of the body")
    return int(text)


def _input(request: _Request, served: Served) -> _Input:
    """The one tensor: (B, 3, H, W) of a classifier, (H, W, 3) or (1, H, W, 3) of the others, or pictures' files."""
    expected = served.inputs[0]
    if [each.name for each in request.inputs] != [expected.name]:
        names = ", ".join(each.name for each in request.inputs)
        raise BadRequestError(f"the inputs are {names[:100]}: expected {expected.name} alone")
    (given,) = request.inputs
    one = served.task != "classify"
    fits = len(given.shape) == 1 if given.datatype == _BYTES else given.datatype == expected.datatype
    if not fits or (given.datatype != _BYTES and not _fits(given.shape, expected, one)):
        raise BadRequestError(
            f"{given.name} is {given.datatype[:20]} of shape {given.shape}: expected {_said(expected, one)}, or "
            f"{_BYTES} of shape [N] with the files of pictures"
        )
    count = 1 if one and given.datatype != _BYTES else given.shape[0]
    most = 1 if one else _MOST_FILES
    if not 1 <= count <= most or 0 in given.shape:
        raise BadRequestError(f"{given.name} has {count} pictures: expected {'1' if one else f'1 to {most:,}'}")
    return given


def _fits(shape: Sequence[int], expected: Tensor, one: bool) -> bool:
    lengths = [1, *expected.shape] if one and len(shape) == 4 else expected.shape
    return len(shape) == len(lengths) and all(n in (-1, m) for n, m in zip(lengths, shape, strict=True))


def _said(tensor: Tensor, one: bool) -> str:
    return f"{tensor.datatype} of shape {list(tensor.shape)}{' (or 1 of them)' * one}"


def _values(tensor: _Input, rest: memoryview) -> Any:
    """An array of the tensor's shape, or a list of files."""
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        if rest:
            raise BadRequestError(f"{len(rest):,} bytes after the JSON belong to no tensor")
        return _of_json(tensor)
    if type(size) is not int or size != len(rest) or tensor.data:
        raise BadRequestError(f"{tensor.name} has binary_data_size {repr(size)[:20]}, and {len(rest):,} bytes are left")
    return _of_bytes(tensor, rest)


def _of_json(tensor: _Input) -> Any:
    if not tensor.data:
        raise BadRequestError(f"{tensor.name} has neither data nor binary_data_size")
    if tensor.datatype == _BYTES:
        if bytes(tensor.data).count(b",") > _MOST_FILES:
            raise BadRequestError(f"{tensor.name} has more values than the {_MOST_FILES:,} that there may be")
        return [_of_base64(text, tensor.name) for text in _counted(_decoded(tensor, str), tensor)]
    count = math.prod(tensor.shape)
    if count > _MOST_NUMBERS or len(memoryview(tensor.data)) > _LONGEST_NUMBER * count + 1000:
        raise BadRequestError(
            f"{tensor.name} has {count:,} values in {len(memoryview(tensor.data)):,} bytes of JSON: send it in binary"
        )
    kind = float if tensor.datatype.startswith("FP") else int
    try:
        with np.errstate(over="ignore"):  # infinity is refused later on
            values = np.array(_decoded(tensor, kind), _TYPES[tensor.datatype])
    except (ValueError, OverflowError) as error:
        raise BadRequestError(f"{tensor.name} is not of type {tensor.datatype}: {str(error)[:100]}") from None
    return _counted(values.ravel(), tensor).reshape(tensor.shape)


def _decoded(tensor: _Input, kind: type) -> list[Any]:
    """The data, numbers or texts, flat or in as deep lists as it begins with."""
    begin = bytes(memoryview(tensor.data)[:100])
    opened = begin[: len(begin) - len(begin.lstrip(b"[ \r\n\t"))].count(b"[")
    hint: Any = kind
    for _ in range(min(max(opened, 1), _DEEPEST)):
        hint = list[hint]
    try:
        return list(msgspec.json.decode(tensor.data, type=hint))
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BadRequestError(f"{tensor.name} is not of type {tensor.datatype}: {str(error)[:200]}") from None


def _of_base64(text: str, name: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        raise BadRequestError(f"{name} has data that is not base64, as JSON needs it for bytes") from None


def _of_bytes(tensor: _Input, data: memoryview) -> Any:
    if tensor.datatype == _BYTES:
        return _counted(_elements(data, tensor.name), tensor)
    kind, count = np.dtype(_TYPES[tensor.datatype]), math.prod(tensor.shape)
    if len(data) != count * kind.itemsize:
        raise BadRequestError(
            f"{tensor.name} of shape {tensor.shape} and type {tensor.datatype} has {len(data):,} bytes: expected "
            f"{count * kind.itemsize:,}"
        )
    return np.frombuffer(data, kind).reshape(tensor.shape)


def _elements(data: memoryview, name: str) -> list[bytes]:
    """Of a tensor of BYTES: each after its length."""
    found, at = list[bytes](), 0
    while at < len(data) and len(found) <= _MOST_FILES:
        if at + 4 > len(data) or at + 4 + (length := struct.unpack_from("<I", data, at)[0]) > len(data):
            raise BadRequestError(f"{name} ends within an element")
        found.append(bytes(data[at + 4 : at + 4 + length]))
        at += 4 + length
    return found


def _counted(values: Any, tensor: _Input) -> Any:
    if len(values) != math.prod(tensor.shape):
        raise BadRequestError(
            f"{tensor.name} has {len(values):,} values: expected {math.prod(tensor.shape):,} for shape {tensor.shape}"
        )
    return values


def _rows(tensor: _Input, values: Any, served: Served) -> Sequence[bytes | NDArray[Any]]:
    """A picture each: its file's bytes, or a tensor without the batch's axis."""
    if tensor.datatype == _BYTES:
        return list(values)
    if not np.isfinite(values).all():
        raise BadRequestError(f"{tensor.name} has values that are NaN or infinite")
    if served.task == "classify":
        return list(values)
    return [values[0] if len(tensor.shape) == 4 else values]


def _wanted(request: _Request, served: Served) -> list[Wanted]:
    default = request.parameters.get("binary_data_output") is True
    known = [output.name for output in served.outputs]
    if request.outputs is None:
        return [Wanted(name, default) for name in known if name not in _ON_REQUEST]
    found: list[Wanted] = []
    for output in request.outputs:
        if output.name not in known:
            raise BadRequestError(f"there is no output {output.name[:100]!r}: expected some of {', '.join(known)}")
        if output.name in [wanted.name for wanted in found]:
            raise BadRequestError(f"the output {output.name} is asked for twice")
        best = output.parameters.get("classification", 0)
        has_classes = served.task == "classify" and output.name in _CLASSIFIED
        if type(best) is not int or best < 0 or (best and not has_classes):
            raise BadRequestError(
                f"classification is {str(best)[:20]} for {output.name}: expected a number of classes, of a "
                f"classifier's {' or '.join(_CLASSIFIED)}"
            )
        found.append(Wanted(output.name, output.parameters.get("binary_data", default) is True, best))
    return found


_ON_REQUEST = ("saliency_map", "masks")  # which are large
_CLASSIFIED = ("logits", "scores")


def write_answer(
    inference: Inference, rows: Sequence[Mapping[str, NDArray[Any]]], served: Served
) -> tuple[bytes, dict[str, str]]:
    """The body of an answer, and its headers.

    Args:
        inference: that was asked for.
        rows: outputs by name, a picture each.
        served: the network.
    """
    batched = served.task == "classify"
    outputs, contents = [], list[bytes]()
    for wanted in inference.wanted:
        values = [row[wanted.name] for row in rows]
        array = np.stack(values) if batched else values[0]
        tensor: dict[str, Any] = {
            "name": wanted.name,
            "shape": list(array.shape),
            "datatype": _NAMES.get(array.dtype, _BYTES),
        }
        if wanted.best:
            array = _best(array, wanted.best, served.classes)
            tensor |= {"shape": list(array.shape), "datatype": _BYTES}
        if wanted.binary:
            contents.append(_in_bytes(array))
            tensor["parameters"] = {"binary_data_size": len(contents[-1])}
        else:
            tensor["data"] = array.ravel().tolist()
        outputs.append(tensor)
    answer = {"model_name": served.name, "model_version": served.version, "outputs": outputs}
    if inference.id is not None:
        answer["id"] = inference.id
    head = msgspec.json.encode(answer)
    if not contents:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH.lower(): str(len(head))}
    return b"".join((head, *contents)), headers


def _best(values: NDArray[Any], count: int, classes: Sequence[str]) -> NDArray[Any]:
    """(B, count) texts "value:index:class", best first."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    rows = [[f"{row[i]:f}:{i}:{classes[i]}" for i in best] for row, best in zip(values, order, strict=True)]
    return np.array(rows, object)


def _in_bytes(array: NDArray[Any]) -> bytes:
    if array.dtype != object:
        return np.ascontiguousarray(array).tobytes()
    texts = [text.encode() for text in array.ravel()]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def metadata(served: Served) -> dict[str, Any]:
    """What a client is told of a network's tensors."""
    return {
        "name": served.name,
        "versions": [served.version],
        "platform": "vankit",
        "inputs": [vars(tensor) for tensor in served.inputs],
        "outputs": [vars(tensor) for tensor in served.outputs],
    }
