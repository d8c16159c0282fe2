"""The Open Inference Protocol, asked by its own client, tritonclient."""

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients import Client, encoded
from hypothesis import given
from hypothesis import strategies as st

import vankit
from vankit.serving.errors import BadRequestError
from vankit.serving.models import Tensor
from vankit.serving.protocol import read_request

triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")

MODEL = "animals"
INFER = f"/v2/models/{MODEL}/infer"


@pytest.fixture(scope="module")
def client(service: Client) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{service.port}") as found:
        yield found


@pytest.fixture(scope="module")
def predictor() -> vankit.Predictor:
    return vankit.Predictor("van_b0.cifar10")


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    rng = np.random.default_rng(3)
    return [encoded(rng.integers(0, 256, (h, w, 3), np.uint8), "JPEG") for h, w in ((70, 90), (64, 64), (200, 100))]


def images(values: np.ndarray, binary: bool = True) -> Any:
    tensor = triton.InferInput("images", values.shape, "FP32" if values.dtype == np.float32 else "BYTES")
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


def test_what_there_is(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1") and not client.is_model_ready(MODEL, "2")
    assert not client.is_model_ready("cats")
    assert client.get_server_metadata()["name"] == "vankit"
    metadata = client.get_model_metadata(MODEL)
    assert metadata["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 64, 64]}]
    assert [output["name"] for output in metadata["outputs"]] == ["logits", "scores", "saliency_map"]
    assert client.get_model_repository_index() == [{"name": MODEL, "version": "1", "state": "READY"}]


@pytest.mark.parametrize("binary", [True, False])
def test_tensors(client: Any, predictor: vankit.Predictor, pictures: list[bytes], binary: bool) -> None:
    x = np.stack([predictor.preprocess(picture) for picture in pictures])
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("scores", "logits")]
    found = client.infer(MODEL, [images(x, binary)], outputs=wanted, request_id="7")
    assert found.get_response()["id"] == "7" and found.get_response()["model_version"] == "1"
    logits = predictor.logits(x)
    np.testing.assert_allclose(found.as_numpy("logits"), logits, atol=1e-5)
    np.testing.assert_allclose(found.as_numpy("scores"), predictor.scores(logits), atol=1e-5)


def test_files_of_pictures(client: Any, predictor: vankit.Predictor, pictures: list[bytes]) -> None:
    found = client.infer(MODEL, [images(np.array(pictures, object))], model_version="1")
    expected = predictor.logits(np.stack([predictor.preprocess(picture) for picture in pictures]))
    np.testing.assert_allclose(found.as_numpy("logits"), expected, atol=1e-5)


def test_files_in_json(service: Client, pictures: list[bytes]) -> None:
    import base64

    data = [base64.b64encode(picture).decode() for picture in pictures]
    tensor = {"name": "images", "datatype": "BYTES", "shape": [3], "data": data}
    answer = service.post_json(INFER, {"inputs": [tensor]})
    assert answer.status == 200
    assert [output["shape"] for output in answer.json["outputs"]] == [[3, 10], [3, 10]]


@pytest.mark.parametrize("binary", [True, False])
def test_the_best_classes_as_text(
    client: Any, predictor: vankit.Predictor, pictures: list[bytes], binary: bool
) -> None:
    wanted = triton.InferRequestedOutput("scores", binary_data=binary, class_count=2)
    found = client.infer(MODEL, [images(np.array(pictures, object))], outputs=[wanted]).as_numpy("scores")
    assert found.shape == (3, 2)
    for row, picture in zip(found, pictures, strict=True):
        for text, label in zip(row, predictor(picture).labels, strict=False):
            score, index, name = (text.decode() if binary else text).split(":")
            assert (int(index), name) == (label.index, label.name)
            assert float(score) == pytest.approx(label.score, abs=1e-5)


def test_class_maps_on_request(client: Any, predictor: vankit.Predictor, pictures: list[bytes]) -> None:
    wanted = [triton.InferRequestedOutput("saliency_map")]
    found = client.infer(MODEL, [images(np.array(pictures[:1], object))], outputs=wanted).as_numpy("saliency_map")
    np.testing.assert_allclose(found[0], predictor.class_maps(predictor.preprocess(pictures[0]))[1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "task", "names"),
    [("retinanet", "detect", ["boxes", "labels", "scores"]), ("semantic_fpn", "segment", ["labels"])],
)
def test_detectors_and_segmenters(
    start: Callable[..., AbstractContextManager[Client]], dense_checkpoint: Callable[[str, str], Path],
    pictures: list[bytes], head: str, task: str, names: list[str],
) -> None:  # fmt: skip
    path = dense_checkpoint(head, task)
    expected = vankit.DensePredictor(path, score=0.05)(pictures[0])
    pixels = np.asarray(vankit.data.images.load_image(pictures[0]))
    with ExitStack() as stack:
        service = stack.enter_context(start([f"scenes={path}"], workers=1))
        client = stack.enter_context(triton.InferenceServerClient(f"127.0.0.1:{service.port}"))
        assert [output["name"] for output in client.get_model_metadata("scenes")["outputs"]] == names
        encoded_input = triton.InferInput("image", [1], "BYTES")
        encoded_input.set_data_from_numpy(np.array([pictures[0]], object))
        tensor = triton.InferInput("image", [1, *pixels.shape], "UINT8")
        tensor.set_data_from_numpy(pixels[None])
        for given in (encoded_input, tensor):
            found = client.infer("scenes", [given])
            for name in names:
                np.testing.assert_allclose(found.as_numpy(name), getattr(expected, name), atol=1e-3)


def fp32(shape: Any, data: Any, **more: Any) -> dict[str, Any]:
    return {"name": "images", "datatype": "FP32", "shape": shape, "data": data, **more}


ONE = 3 * 64 * 64
REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "missing required field `inputs`"),
    "no inputs": ({"inputs": []}, "length >= 1"),
    "a number for a list": ({"inputs": 3}, "Expected `array`"),
    "two inputs": ({"inputs": [fp32([1, 3, 64, 64], [0] * ONE)] * 2}, "expected images alone"),
    "another name": ({"inputs": [fp32([1, 3, 64, 64], [0] * ONE) | {"name": "x"}]}, "the inputs are x"),
    "another size": ({"inputs": [fp32([1, 3, 32, 32], [0] * 3072)]}, "expected FP32 of shape [-1, 3, 64, 64]"),
    "another rank": ({"inputs": [fp32([3, 64, 64], [0] * ONE)]}, "expected FP32 of shape [-1, 3, 64, 64]"),
    "another type": ({"inputs": [fp32([1, 3, 64, 64], [0] * ONE) | {"datatype": "INT8"}]}, "images is INT8 of shape"),
    "an unknown type": ({"inputs": [fp32([1], [0]) | {"datatype": "FP8"}]}, "images is FP8 of shape"),
    "too few values": ({"inputs": [fp32([1, 3, 64, 64], [0])]}, "has 1 values: expected 12,288"),
    "no values": ({"inputs": [{"name": "images", "datatype": "FP32", "shape": [1, 3, 64, 64]}]}, "neither data nor"),
    "words for numbers": ({"inputs": [fp32([1, 3, 64, 64], ["x"])]}, "is not of type FP32"),
    "ragged lists": ({"inputs": [fp32([1, 3, 64, 64], [[1, 2], [3]])]}, "is not of type FP32"),
    "a negative length": ({"inputs": [fp32([-1, 3], [0])]}, "Expected `int` >= 0"),
    "no pictures": ({"inputs": [fp32([0, 3, 64, 64], [])]}, "has 0 pictures: expected 1 to 1,000"),
    "more files than there may be": (
        {"inputs": [fp32([5000], [""] * 5000) | {"datatype": "BYTES"}]},
        "has 5000 pictures: expected 1 to 1,000",
    ),
    "more texts than were said": (
        {"inputs": [fp32([2], [""] * 5000) | {"datatype": "BYTES"}]},
        "more values than the 1,000",
    ),
    "lengths that no array can have": ({"inputs": [fp32([0, 2**31, 2**31, 2**31], [])]}, "expected FP32 of shape"),
    "very much JSON for a number": (
        {"inputs": [fp32([1, 3, 64, 64], [0] * 400_000)]},
        "has 12,288 values in 1,200,000 bytes of JSON",
    ),
    "lists in lists": ({"inputs": [fp32([1, 3, 64, 64], [[[[[0] * ONE]]]])]}, "is not of type FP32"),
    "the same output twice": (
        {"inputs": [fp32([1, 3, 64, 64], [0] * ONE)], "outputs": [{"name": "logits"}] * 2},
        "the output logits is asked for twice",
    ),
    "very many outputs": (
        {"inputs": [fp32([1, 3, 64, 64], [0] * ONE)], "outputs": [{"name": "logits"}] * 200},
        "length <= 16",
    ),
    "an unknown output": (
        {"inputs": [fp32([1, 3, 64, 64], [0] * ONE)], "outputs": [{"name": "boxes"}]},
        "there is no output 'boxes': expected some of logits, scores, saliency_map",
    ),
    "classes of a map": (
        {
            "inputs": [fp32([1, 3, 64, 64], [0] * ONE)],
            "outputs": [{"name": "saliency_map", "parameters": {"classification": 2}}],
        },
        "classification is 2 for saliency_map",
    ),
    "text that is not base64": ({"inputs": [fp32([1], ["?"]) | {"datatype": "BYTES"}]}, "data that is not base64"),
    "infinity": ({"inputs": [fp32([1, 3, 64, 64], [1e39] * ONE)]}, "NaN or infinite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_requests_that_are_not_of_the_protocol(service: Client, case: str) -> None:
    content, reason = REFUSED[case]
    answer = service.post_json(INFER, content)
    assert answer.status == 400 and reason in answer.json["error"] and "\n" not in answer.json["error"]


def test_a_picture_that_cannot_be_read(service: Client, client: Any, pictures: list[bytes]) -> None:
    with pytest.raises(triton.InferenceServerException, match="not an image"):
        client.infer(MODEL, [images(np.array([pictures[0], b"hello"], object))])


def binary_request(size: Any, rest: bytes, **tensor: Any) -> tuple[bytes, dict[str, str]]:
    given = {"name": "images", "datatype": "FP32", "shape": [1, 3, 64, 64], **tensor}
    head = json.dumps({"inputs": [{**given, "parameters": {"binary_data_size": size}}]}).encode()
    return head + rest, {"inference_header_content_length": str(len(head))}


@pytest.mark.parametrize(
    ("size", "rest", "tensor", "reason"),
    [
        (4 * ONE, b"", {}, "and 0 bytes are left"),
        (-4, bytes(4 * ONE), {}, "binary_data_size -4"),
        ("9", bytes(9), {}, "binary_data_size '9'"),
        (4 * ONE - 4, bytes(4 * ONE - 4), {}, "expected 49,152"),
        (4 * ONE, bytes(4 * ONE + 1), {}, "and 49,153 bytes are left"),
        (6, struct.pack("<I", 99) + b"ab", {"datatype": "BYTES", "shape": [1]}, "ends within an element"),
        (2, b"ab", {"datatype": "BYTES", "shape": [1]}, "ends within an element"),
        (4000, bytes(4000), {"datatype": "BYTES", "shape": [1000]}, None),
        (8000, bytes(8000), {"datatype": "BYTES", "shape": [1000]}, "has 1,001 values"),
        (4, bytes(4), {"datatype": "BYTES", "shape": [2]}, "has 1 values: expected 2"),
    ],
)
def test_bytes_that_do_not_fit(
    service: Client, size: Any, rest: bytes, tensor: dict[str, Any], reason: str | None
) -> None:
    body, headers = binary_request(size, rest, **tensor)
    answer = service.post(INFER, body, **headers)
    if reason is None:  # it fits, and is too much for the queue
        assert answer.status == 413
    else:
        assert answer.status == 400 and reason in answer.json["error"]


def test_deep_json_is_refused(service: Client) -> None:
    answer = service.post(INFER, b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}")
    assert answer.status == 400


@pytest.mark.parametrize("length", ["x", "-1", "99999999", "²", "1" * 5000])
def test_lengths_of_the_json(service: Client, length: str) -> None:
    answer = service.post(INFER, b"{}", inference_header_content_length=length.encode("latin-1"))
    assert answer.status == 400 and "Inference-Header-Content-Length" in answer.json["error"]


class Stub:
    """What a network says of itself."""

    task = "classify"
    inputs = (Tensor("images", "FP32", [-1, 3, 2, 2]),)
    outputs = (Tensor("logits", "FP32", [-1, 10]),)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "shape", "data"]), inner),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {
            "inputs": st.lists(
                st.fixed_dictionaries(
                    {
                        "name": st.sampled_from(["images", "x"]),
                        "shape": st.lists(st.integers(-1, 3), max_size=5),
                        "datatype": st.sampled_from(["FP32", "BYTES", "BOOL", "INT64", "?"]),
                    },
                    optional={"data": JSON, "parameters": st.dictionaries(st.just("binary_data_size"), JSON)},
                ),
                max_size=2,
            )
        },
        optional={"outputs": JSON, "id": JSON, "parameters": JSON},
    ),
    st.binary(max_size=40),
    st.none() | st.integers(-5, 500).map(str),
)
def test_whatever_is_sent_is_read_or_refused(content: Any, rest: bytes, length: str | None) -> None:
    try:
        found = read_request(json.dumps(content).encode() + rest, length, Stub())  # type: ignore[arg-type]
    except BadRequestError:
        return
    assert found.rows and [wanted.name for wanted in found.wanted] == ["logits"][: len(found.wanted)]
