"""The service over real connections: what it answers, and what it refuses."""

import base64
import io
import json
import logging
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients import Answer, Client, encoded
from faster_coco_eval import mask as coco
from jsonschema import Draft202012Validator
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from urllib3.filepost import encode_multipart_formdata

import vankit

Start = Callable[..., AbstractContextManager[Client]]

TOKEN = "c0ffee-and-more"
PREDICT = "/predict/animals"
# a PNG's head for 60000 x 60000 pixels, and nothing to decode
BOMB = b"\x89PNG\r\n\x1a\n" + b"".join(
    len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    for kind, data in (
        (b"IHDR", b"\0\0\xea\x60\0\0\xea\x60\x08\x02\0\0\0"),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    )
)


@pytest.fixture(scope="module")
def predictor() -> vankit.Predictor:
    return vankit.Predictor("van_b0.cifar10")


@pytest.fixture(scope="module")
def document(service: Client) -> dict[str, Any]:
    return service.get("/openapi.json").json


@pytest.fixture(scope="module")
def conforms(document: dict[str, Any]) -> Callable[[Any, str], None]:
    """Check an answer against a schema of the document."""

    def check(content: Any, schema: str) -> None:
        Draft202012Validator({"$ref": f"#/components/schemas/{schema}", **document}).validate(content)

    return check


def form(*files: tuple[str, bytes]) -> tuple[bytes, str]:
    return encode_multipart_formdata([("file", (name, content, "image/png")) for name, content in files])


# what is in pictures


def test_labels_are_the_predictors(
    service: Client, photograph: bytes, predictor: vankit.Predictor, conforms: Callable[[Any, str], None]
) -> None:
    answer = service.post(PREDICT, photograph, content_type="image/png")
    assert answer.status == 200
    conforms(answer.json, "Predictions")
    (picture,) = answer.json["pictures"]
    assert answer.json["model"] == "animals" and answer.json["task"] == "classify"
    assert (picture["width"], picture["height"]) == (80, 60)
    expected = predictor(photograph).labels
    assert [(label["name"], label["index"]) for label in picture["labels"]] == [(x.name, x.index) for x in expected]
    assert [label["score"] for label in picture["labels"]] == pytest.approx([x.score for x in expected], abs=1e-5)


def test_every_way_to_send_a_picture_gives_the_same(service: Client, photograph: bytes) -> None:
    body, kind = form(("a.png", photograph))
    text = base64.b64encode(photograph).decode()
    answers = [
        service.post(PREDICT, photograph),
        service.post(PREDICT, photograph, content_type="application/octet-stream"),
        service.post(PREDICT, iter([photograph[:100], photograph[100:]]), content_type="image/png"),  # in chunks
        service.post(PREDICT, body, content_type=kind),
        service.post_json(PREDICT, {"images": [text]}),
        service.post_json(PREDICT, {"images": [f"data:image/png;base64,{text}"]}),
    ]
    found = [answer.json["pictures"][0] for answer in answers]
    assert [picture.pop("source") for picture in found] == ["picture"] * 3 + ["a.png"] + ["picture 1"] * 2
    assert all(picture == found[0] for picture in found)


def test_each_of_several_pictures_has_its_answer(service: Client, photograph: bytes) -> None:
    pictures = [("ok.png", photograph), ("cut.png", photograph[:-2000]), ("bomb.png", BOMB), ("text.txt", b"hello")]
    body, kind = form(*pictures, ("again.png", photograph))
    answer = service.post(f"{PREDICT}?top_k=2", body, content_type=kind)
    assert answer.status == 200
    found = answer.json["pictures"]
    assert [picture["source"] for picture in found] == ["ok.png", "cut.png", "bomb.png", "text.txt", "again.png"]
    assert [len(picture.get("labels", ())) for picture in found] == [2, 0, 0, 0, 2]
    reasons = [picture.get("error", "") for picture in found]
    assert "broken or truncated" in reasons[1] and "60000 x 60000" in reasons[2] and "not an image" in reasons[3]


def test_a_phones_photograph_is_upright(service: Client) -> None:
    image, data = Image.fromarray(np.zeros((30, 50, 3), np.uint8)), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(data, "JPEG", exif=exif)
    (picture,) = service.post(PREDICT, data.getvalue()).json["pictures"]
    assert (picture["width"], picture["height"]) == (30, 50)


def test_models_are_listed(service: Client, conforms: Callable[[Any, str], None]) -> None:
    (model,) = service.get("/models").json["models"]
    conforms(model, "Model")
    assert model["name"] == "animals" and model["classes"][3] == "cat" and model["explains"] is True


# detectors and segmenters


@pytest.fixture(scope="module")
def scenes(start: Start, dense_checkpoint: Callable[[str, str], Path]) -> Iterator[Client]:
    models = {"boxes": ("mask_rcnn", "detect"), "areas": ("semantic_fpn", "segment")}
    named = [f"{name}={dense_checkpoint(*made)}" for name, made in models.items()]
    with start(named) as client:
        yield client


@pytest.fixture(scope="module")
def scene() -> bytes:
    """A JPEG of 64 x 48 pixels."""
    return encoded(np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8), "JPEG")


@pytest.mark.slow
def test_objects_are_in_cocos_forms(
    scenes: Client, scene: bytes, dense_checkpoint: Callable[[str, str], Path], conforms: Callable[[Any, str], None]
) -> None:
    answer = scenes.post("/predict/boxes?score=0.05", scene)
    assert answer.status == 200
    conforms(answer.json, "Predictions")
    rows = answer.json["pictures"][0]["objects"]
    predictor = vankit.DensePredictor(dense_checkpoint("mask_rcnn", "detect"), score=0.05)
    expected = predictor(scene)
    assert len(rows) == len(expected.boxes) > 0
    for row, box, label, score, mask in zip(
        rows, expected.boxes, expected.labels, expected.scores, expected.masks, strict=True
    ):
        x, y, width, height = row["bbox"]
        assert [x, y, x + width, y + height] == pytest.approx(box, abs=1e-3)
        assert (row["name"], row["category_id"]) == (expected.classes[label], predictor.category_ids[label])
        assert row["score"] == pytest.approx(score, abs=1e-5)
        assert (coco.decode(row["segmentation"]).astype(bool) == mask).mean() > 0.999


@pytest.mark.slow
def test_a_score_leaves_out_objects(scenes: Client, scene: bytes) -> None:
    low = scenes.post("/predict/boxes?score=0.05", scene).json["pictures"][0]["objects"]
    median = sorted(row["score"] for row in low)[len(low) // 2]
    high = scenes.post(f"/predict/boxes?score={median}", scene).json["pictures"][0]["objects"]
    assert [row["score"] for row in high] == [row["score"] for row in low if row["score"] >= median]


@pytest.mark.slow
def test_segments_are_the_picture(scenes: Client, scene: bytes, dense_checkpoint: Callable[[str, str], Path]) -> None:
    rows = scenes.post("/predict/areas", scene).json["pictures"][0]["segments"]
    expected = vankit.DensePredictor(dense_checkpoint("semantic_fpn", "segment"))(scene)
    found = np.full((48, 64), -1)
    for row in rows:
        mask = coco.decode(row["segmentation"]).astype(bool)
        assert row["area"] == mask.sum()
        found[mask] = expected.classes.index(row["name"])
    assert (found == expected.labels).mean() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("model", ["boxes", "areas"])
def test_drawn_pictures(scenes: Client, scene: bytes, model: str) -> None:
    answer = scenes.post(f"/predict/{model}?draw=true", scene)
    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.width >= 64 and image.height >= 48


@pytest.mark.slow
def test_panoptic_segments(start: Start, scene: bytes, dense_checkpoint: Callable[[str, str], Path]) -> None:
    path = dense_checkpoint("mask2former", "panoptic")
    with start([f"all={path}"]) as client:
        rows = client.post("/predict/all", scene).json["pictures"][0]["segments"]
    expected = vankit.DensePredictor(path)(scene).objects()
    assert len(rows) == len(expected.boxes)
    for row, mask in zip(rows, expected.masks, strict=True):
        assert row["area"] == mask.sum() and row["isthing"] in (0, 1)


# what a network looks at


def test_the_explanation_is_that_of_vankit_explain(
    service: Client, photograph: bytes, conforms: Callable[[Any, str], None]
) -> None:
    pytest.importorskip("captum")
    answer = service.post("/explain/animals?target=cat&target=0", photograph)
    conforms(answer.json, "Explanations")
    (picture,) = answer.json["pictures"]
    # by PyTorch's gradients: a stage given by its layer's name leaves the engine's maps aside
    (expected,) = vankit.explain([photograph], "van_b0.cifar10", target=["cat", 0], layer="stage4")
    assert [found["name"] for found in picture["maps"]] == ["cat", "airplane"]
    for found, heat in zip(picture["maps"], expected.maps.values(), strict=True):
        assert np.abs(np.array(found["map"]) - heat).max() < 1e-4
    assert picture["region"] == [10 * 80 / 85, 0, 64 * 80 / 85, 60]  # 80 x 60 became 85 x 64, and its middle was seen


def test_the_best_class_is_explained_by_itself(service: Client, photograph: bytes) -> None:
    (picture,) = service.post("/explain/animals", photograph).json["pictures"]
    assert picture["maps"][0]["name"] == picture["labels"][0]["name"]


@pytest.mark.slow
def test_what_cannot_be_explained(service: Client, scenes: Client, photograph: bytes) -> None:
    unknown = service.post("/explain/animals?target=cats", photograph)
    assert (
        unknown.status == 400
        and "knows no class 'cats': as target expected" in unknown.json["error"]
        and "cat" in unknown.json["error"]
    )
    dense = scenes.post("/explain/boxes", photograph)
    assert dense.status == 400 and "cannot be explained" in dense.json["error"]


# what is refused

REFUSED: dict[tuple[str, str], tuple[int, str]] = {
    ("POST", "/predict/cats"): (404, "there is no model 'cats': expected one of animals"),
    ("POST", "/explain/cats"): (404, "there is no model 'cats'"),
    ("GET", "/predict/animals"): (405, "method not allowed"),
    ("POST", f"{PREDICT}/"): (404, "not found"),
    ("GET", "/no/such/thing"): (404, "not found; see /docs"),
    ("GET", "/predict/../models/"): (404, "not found"),
    ("GET", "/..%2f..%2fetc%2fpasswd"): (404, "not found"),
    ("GET", "/__init__.py"): (404, "not found"),
    ("GET", "/v2/models/animals/versions/9"): (404, "animals has version 1, not '9'"),
    ("GET", "/v2/models/cats"): (404, "there is no model 'cats'"),
    ("POST", f"{PREDICT}?topk=3"): (400, "there is no parameter 'topk': expected some of top_k, score, draw"),
    ("POST", f"{PREDICT}?top_k=0"): (400, "top_k is '0': expected a whole number, 1 or more"),
    ("POST", f"{PREDICT}?top_k=x"): (400, "top_k is 'x'"),
    ("POST", f"{PREDICT}?top_k=1&top_k=2"): (400, "top_k is given 2 times"),
    ("POST", f"{PREDICT}?score=0.5"): (400, "score is for detectors, and animals is not one"),
    ("POST", f"{PREDICT}?draw=yes"): (400, "draw is 'yes': expected true or false"),
    ("POST", f"{PREDICT}?draw=true"): (400, "draw is for detectors and segmenters, and animals is a classifier"),
    ("POST", "/explain/animals?target="): (400, "target has 0 characters: expected a class, 1 to 1000"),
    ("POST", "/v2/repository/models/cats/load"): (404, "there is no model 'cats'"),
}


@pytest.mark.parametrize(("method", "path"), REFUSED, ids=lambda value: value)
def test_one_line_says_what_is_wrong(service: Client, photograph: bytes, method: str, path: str) -> None:
    status, reason = REFUSED[method, path]
    answer = service.ask(method, path, photograph if method == "POST" else None)
    assert answer.status == status
    assert reason in answer.json["error"] and "\n" not in answer.json["error"]


@pytest.mark.slow
@pytest.mark.parametrize("score", ["0.01", "1.5", "nan", "x"])
def test_scores_out_of_range(scenes: Client, scene: bytes, score: str) -> None:
    answer = scenes.post(f"/predict/boxes?score={score}", scene)
    assert answer.status == 400 and "expected 0.05 to 1" in answer.json["error"]


def test_pictures_that_cannot_be_read(service: Client, photograph: bytes) -> None:
    for body, reason in ((photograph[:-2000], "broken or truncated"), (BOMB, "60000 x 60000"), (b"hi", "not an image")):
        answer = service.post(PREDICT, body)
        assert answer.status == 422 and reason in answer.json["error"]


def test_types_that_are_not_read(service: Client, photograph: bytes) -> None:
    assert service.post(PREDICT, b"x", content_type="text/plain").status == 415
    packed = service.post(PREDICT, zlib.compress(photograph), content_encoding="deflate")
    assert packed.status == 415 and "compressed" in packed.json["error"]


# limits


@contextmanager
def raw(client: Client, head: str, seconds: float = 10) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", client.port), timeout=seconds) as found:
        found.sendall(head.replace("\n", "\r\n").encode())
        yield found


def read_all(found: socket.socket) -> bytes:
    data = b""
    while chunk := found.recv(65536):
        data += chunk
    return data


@pytest.fixture(scope="module")
def narrow(start: Start) -> Iterator[Client]:
    """A service of small limits."""
    from vankit.serving.app import Limits

    with start(["animals=van_b0.cifar10"], timeout=1.0, workers=1, limits=Limits(2, 100_000, 1.0)) as client:
        yield client


def test_large_bodies(narrow: Client, photograph: bytes) -> None:
    large = photograph + bytes(100_000)
    told = narrow.post(PREDICT, large)
    assert told.status == 413 and "larger than 100,000 bytes" in told.json["error"]
    chunked = narrow.post(PREDICT, iter([large[i : i + 10_000] for i in range(0, len(large), 10_000)]))
    assert chunked.status == 413
    assert narrow.post(PREDICT, photograph).status == 200


def test_a_body_that_comes_too_slowly(narrow: Client) -> None:
    start = time.monotonic()
    with raw(narrow, f"POST {PREDICT} HTTP/1.1\nHost: x\nContent-Length: 1000\n\nabc") as found:
        answer = found.recv(65536)
        while b"}" not in answer:
            answer += found.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"had not arrived after 1 s" in answer
    assert 0.9 < time.monotonic() - start < 5


@pytest.mark.parametrize("head", ["", "POST /predict", "GET / HTTP/1.1\nHost: x\nX-A: "])
def test_a_head_that_comes_too_slowly(narrow: Client, head: str) -> None:
    with raw(narrow, head) as found:
        assert read_all(found).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_was_refused_is_not_read_for_ever(narrow: Client) -> None:
    """What a slow sender sends beyond its refusal is thrown away, for as long as a request may take."""
    start = time.monotonic()
    with raw(narrow, f"POST {PREDICT} HTTP/1.1\nHost: x\nContent-Length: 900000\n\n") as found:
        answer = found.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413 ")
        with pytest.raises(OSError):  # noqa: PT012  whenever the kernel says so
            while time.monotonic() - start < 10:
                found.sendall(b"x")
                time.sleep(0.05)
    assert time.monotonic() - start < 9


@contextmanager
def at_work() -> Iterator[threading.Event]:
    """Every picture takes until the event is set."""
    from vankit.serving.models import ServedClassifier

    release, former = threading.Event(), ServedClassifier.predict

    def waiting(self: Any, worker: int, content: bytes, ask: Any) -> dict[str, Any]:
        assert release.wait(30)
        return former(self, worker, content, ask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ServedClassifier, "predict", waiting)
        try:
            yield release
        finally:
            release.set()


def figure(client: Client, name: str, **labels: str) -> float:
    """Of Prometheus's text."""
    families = text_string_to_metric_families(client.get("/metrics").content.decode())
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def eventually(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


class Asking(threading.Thread):
    """A request in a thread."""

    def __init__(self, client: Client, path: str, body: bytes) -> None:
        super().__init__()
        self.call, self.answer = lambda: client.post(path, body), Answer(0, {}, b"")
        self.start()

    def run(self) -> None:
        self.answer = self.call()


def test_a_full_queue(start: Start, photograph: bytes) -> None:
    from vankit.serving.app import Limits

    with start(["animals=van_b0.cifar10"], workers=1, limits=Limits(2)) as client:
        with at_work() as release:
            asking = [Asking(client, PREDICT, photograph) for _ in range(3)]  # one at work, two in the queue
            eventually(lambda: figure(client, "vankit_queue_length") == 2)
            refused = client.post(PREDICT, photograph)
            assert refused.status == 429 and "the queue is full, 2 pictures" in refused.json["error"]
            assert int(refused.headers["retry-after"]) >= 1
            assert client.get("/models").status == 200  # nothing else waits
            release.set()
            for each in asking:
                each.join(30)
        assert [each.answer.status for each in asking] == [200] * 3
        assert client.post(PREDICT, photograph).status == 200
        body, kind = form(*[("a.png", photograph)] * 4)
        many = client.post(PREDICT, body, content_type=kind)
        assert many.status == 413 and "4 pictures in one request: send 3 at most" in many.json["error"]


def test_who_leaves_is_not_waited_for(start: Start, photograph: bytes) -> None:
    from vankit.serving.app import Limits

    with start(["animals=van_b0.cifar10"], workers=1, limits=Limits(4)) as client, at_work() as release:
        asking = Asking(client, PREDICT, photograph)
        eventually(lambda: figure(client, "vankit_running") == 1)
        head = f"POST {PREDICT} HTTP/1.1\nHost: x\nContent-Length: {len(photograph)}\n\n"
        with raw(client, head) as found:
            found.sendall(photograph)
            eventually(lambda: figure(client, "vankit_queue_length") == 1)
        eventually(lambda: figure(client, "vankit_queue_length") == 0)
        eventually(lambda: figure(client, "vankit_requests_total", status="499") == 1)
        release.set()
        asking.join(30)
        assert asking.answer.status == 200


def test_an_answer_that_takes_too_long(narrow: Client, photograph: bytes) -> None:
    with at_work():
        answer = narrow.post(PREDICT, photograph)
    assert answer.status == 503 and "no answer within 1 s" in answer.json["error"]
    assert answer.headers["retry-after"] == "1"
    eventually(lambda: figure(narrow, "vankit_running") == 0)
    assert narrow.post(PREDICT, photograph).status == 200


def test_more_connections_than_there_may_be(narrow: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vankit.serving.server._MOST_CONNECTIONS", 2)
    with raw(narrow, "") as one, raw(narrow, "") as two, raw(narrow, "") as three:
        assert read_all(three).startswith(b"HTTP/1.1 503 ")
        for each in (one, two):
            each.sendall(b"GET /models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert read_all(each).startswith(b"HTTP/1.1 200 ")
    eventually(lambda: narrow.get("/models").status == 200)


@pytest.mark.slow
def test_who_does_not_read_the_answer_is_left(narrow: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vankit.serving.metrics.Metrics.text", lambda self: bytes(50_000_000))
    with raw(narrow, "GET /metrics HTTP/1.1\nHost: x\n\n") as found:
        time.sleep(2)
        assert len(read_all(found)) < 50_000_000


@pytest.mark.slow
def test_what_is_left_is_not_waited_for_either(narrow: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than what makes a server stop writing, of an answer after which the connection is to be closed."""
    monkeypatch.setattr("vankit.serving.metrics.Metrics.text", lambda self: bytes(3_000_000))
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        found.connect(("127.0.0.1", narrow.port))
        found.settimeout(10)
        found.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        time.sleep(3)
        assert len(read_all(found)) < 3_000_000


def test_chunks_of_a_byte(narrow: Client, photograph: bytes) -> None:
    head = f"POST {PREDICT} HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n"
    with raw(narrow, head) as found, pytest.raises(OSError):  # noqa: PT012  whenever the kernel says so
        for _ in range(200):
            found.sendall(b"1\r\nx\r\n" * 20_000)
            time.sleep(0.01)
    assert narrow.post(PREDICT, photograph).status == 200
    short = b"\r\n".join([b"a: b"] * 10_000)  # lines in a chunk are no chunks
    assert narrow.post(PREDICT, iter([short])).status == 422


def test_no_queue_at_all(start: Start, photograph: bytes) -> None:
    from vankit.serving.app import Limits

    with start(["animals=van_b0.cifar10"], workers=1, limits=Limits(0)) as client, at_work() as release:
        asking = Asking(client, PREDICT, photograph)
        eventually(lambda: figure(client, "vankit_running") == 1)
        assert client.post(PREDICT, photograph).status == 429
        release.set()
        asking.join(30)
        assert asking.answer.status == 200


@pytest.mark.slow
def test_nothing_keeps_the_service_from_others(narrow: Client, service: Client) -> None:
    """What large requests take is done aside: health is answered meanwhile."""
    tensor = {"name": "images", "datatype": "FP32", "shape": [1, 3, 64, 64]}
    bodies = [
        json.dumps({"inputs": [tensor | {"data": [[]] * 4_000_000}]}).encode(),
        json.dumps({"inputs": [tensor | {"datatype": "BYTES", "shape": [2], "data": [""] * 3_000_000}]}).encode(),
    ]
    slowest, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            start = time.monotonic()
            assert service.get("/v2/health/live").status == 200
            slowest[0] = max(slowest[0], time.monotonic() - start)

    watching = threading.Thread(target=watch)
    watching.start()
    for body in bodies:
        assert service.post("/v2/models/animals/infer", body).status == 400
    done.set()
    watching.join(10)
    assert slowest[0] < 2  # it was 7 s


def test_bodies_are_held_within_a_bound(narrow: Client, photograph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vankit.serving.bodies._AT_LEAST", 1)  # so that four bodies of the largest size may be held
    head = f"POST {PREDICT} HTTP/1.1\nHost: x\nContent-Length: 99999\n\n"
    with raw(narrow, head) as a, raw(narrow, head) as b, raw(narrow, head) as c, raw(narrow, head) as d:
        for each in (a, b, c, d):
            each.sendall(bytes(99_000))
        time.sleep(0.2)
        answer = narrow.post(PREDICT, photograph)
        assert answer.status == 429 and "too many bodies" in answer.json["error"]
    eventually(lambda: narrow.post(PREDICT, photograph).status == 200)  # what was held is given back


# who may ask


@pytest.fixture(scope="module")
def guarded(start: Start) -> Iterator[Client]:
    with start(["animals=van_b0.cifar10"], token=TOKEN, allow_origins=["https://example.org"], workers=1) as client:
        yield client


@pytest.mark.parametrize("given", [None, "Bearer wrong", f"Bearer {TOKEN}x", TOKEN, f"Basic {TOKEN}", "Bearer é"])
def test_a_token_is_needed(guarded: Client, photograph: bytes, given: str | None) -> None:
    headers = {} if given is None else {"authorization": given.encode("latin-1")}
    for method, path in (("POST", PREDICT), ("GET", "/models"), ("GET", "/metrics"), ("POST", "/v2/repository/index")):
        answer = guarded.ask(method, path, photograph if method == "POST" else None, **headers)
        assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer TOKEN" in answer.json["error"]


def test_the_token_opens_and_is_not_logged(
    guarded: Client, photograph: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("vankit.access"), "propagate", True)
    with caplog.at_level(logging.INFO):
        answer = guarded.post(PREDICT, photograph, authorization=f"bearer {TOKEN}")
        eventually(lambda: PREDICT in caplog.text)
    assert answer.status == 200
    assert TOKEN not in caplog.text and TOKEN not in str(answer.headers)


@pytest.mark.parametrize(
    "path",
    ["/", "/page.js", "/backend.js", "/style.css", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready"],
)
def test_what_needs_no_token(guarded: Client, path: str) -> None:
    assert guarded.get(path).status == 200


def test_other_pages_may_ask_only_where_they_are_allowed(service: Client, guarded: Client, photograph: bytes) -> None:
    origin = {"origin": "https://example.org", "access_control_request_method": "POST"}
    assert "access-control-allow-origin" not in service.post(PREDICT, photograph, origin="https://example.org").headers
    assert service.ask("OPTIONS", PREDICT, **origin).status == 405
    allowed = guarded.ask("OPTIONS", PREDICT, **origin, access_control_request_headers="authorization")
    assert allowed.headers["access-control-allow-origin"] == "https://example.org"
    other = guarded.ask("OPTIONS", PREDICT, **origin | {"origin": "https://example.com"})
    assert "access-control-allow-origin" not in other.headers
    refused = guarded.post(PREDICT, photograph, origin="https://example.org")  # which may read why
    assert refused.status == 401 and refused.headers["access-control-allow-origin"] == "https://example.org"


def test_a_page_that_someone_looks_at_may_not_ask(service: Client, guarded: Client, photograph: bytes) -> None:
    from_page = {"origin": "https://example.org", "sec_fetch_site": "cross-site"}
    answer = service.post("/v2/repository/models/animals/load", **from_page)
    assert answer.status == 403 and "pages of other addresses may not ask" in answer.json["error"]
    own = {"origin": f"http://127.0.0.1:{service.port}", "sec_fetch_site": "same-origin"}
    assert service.post(PREDICT, photograph, **own).status == 200
    assert guarded.post(PREDICT, photograph, **from_page, authorization=f"Bearer {TOKEN}").status == 200


# what is told of requests


def test_a_line_of_json_per_request(
    service: Client, photograph: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("vankit.access"), "propagate", True)
    with caplog.at_level(logging.INFO, "vankit.access"):
        service.post(f"{PREDICT}?top_k=1", photograph, x_request_id="mine-1")
        service.get("/" + "x" * 5000)
        eventually(lambda: "xxxx" in caplog.text)
    first, second = (json.loads(record.getMessage()) for record in caplog.records[-2:])
    expected = {"id": "mine-1", "method": "POST", "path": PREDICT, "status": 200, "pictures": 1, "client": "127.0.0.1"}
    assert expected.items() <= first.items()
    assert first["bytes"] == len(photograph) and first["ms"] > 0
    assert second["status"] == 404 and len(second["path"]) == 200


@pytest.mark.parametrize(("given", "kept"), [("abc-1.2_Z", True), ("a b", False), ("a" * 129, False), ("", False)])
def test_request_ids(service: Client, given: str, kept: bool) -> None:
    found = service.get("/models", x_request_id=given).headers["x-request-id"]
    assert (found == given) is kept and found


def test_figures(start: Start, photograph: bytes) -> None:
    with start(["animals=van_b0.cifar10"], workers=1) as client:
        for _ in range(3):
            client.post(PREDICT, photograph)
        client.post(PREDICT, b"no picture")
        client.post("/predict/cats", photograph)
        body, kind = form(("a", photograph), ("b", b"bad"))
        client.post(PREDICT, body, content_type=kind)
        asked = {"endpoint": "/predict/{model}", "model": "animals"}
        eventually(lambda: figure(client, "vankit_requests_total", status="200", **asked) == 4)
        assert figure(client, "vankit_requests_total", status="422", **asked) == 1
        assert figure(client, "vankit_requests_total", status="404", endpoint="/predict/{model}", model="") == 1
        assert figure(client, "vankit_request_seconds_count", **asked) == 5
        assert figure(client, "vankit_pictures_total", outcome="answered", model="animals") == 4
        assert figure(client, "vankit_pictures_total", outcome="refused", model="animals") == 2
        assert 0 < figure(client, "vankit_model_load_seconds", model="animals") < 60
        assert figure(client, "vankit_queue_limit") == 64


def test_a_bug_is_answered_and_logged(
    service: Client, photograph: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vankit.serving.models.ServedClassifier.predict", lambda *_: 1 // 0)
    answer = service.post(PREDICT, photograph)
    assert answer.status == 500 and "this is a bug in vankit" in answer.json["error"]
    eventually(lambda: "ZeroDivisionError" in caplog.text)


def test_pages_load_nothing_from_elsewhere_and_show_in_no_other(service: Client) -> None:
    answer = service.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


# what it says of itself


def test_the_document_names_every_address(document: dict[str, Any]) -> None:
    from vankit.serving.app import Service, _routes

    routes = {route.path for route in _routes(object.__new__(Service))}  # type: ignore[arg-type]
    assert {*document["paths"]} == routes - {"/", "/docs", "/openapi.json", "/{name}"}
    Draft202012Validator.check_schema({"$defs": document["components"]["schemas"]})


def test_the_manual_is_a_page_of_the_document(service: Client, document: dict[str, Any]) -> None:
    text = service.get("/docs").content.decode()
    assert all(path in text for path in document["paths"])
    assert "<script" not in text and "style=" not in text


def test_the_same_document_for_every_reader(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1") and document["info"]["version"] == vankit.__version__
