"""What clients send to `vankit serve`, right and wrong: for benchmarks/serving.py and tests.

Each kind of traffic is a function of who is asked and of chance, which gives the answers that came; the table `KINDS`
says which of them are right. Beside these a kind may always get 429 or 503 with Retry-After, for the service is busy.
"""

import base64
import json
import struct
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from serving_wire import (
    NO_ANSWER,
    Answer,
    Known,
    Target,
    Wrong,
    as_json,
    bombs,
    connected,
    exchange,
    form,
    large_picture,
    request,
    small_picture,
)

TOLERANCE = 1e-3  # of scores
_PRODDING = 0.2  # seconds between two bytes of those who are slow
Send = Callable[[Target, Random], Sequence[Answer]]


# what is right


def check_best(found: dict[str, Any], known: Known) -> None:
    """
    Raises:
        Wrong: it is another class or score than the known one.
    """
    if found["index"] != known.index or abs(found["score"] - known.score) > TOLERANCE:
        raise Wrong(f"the answer is {found['index']}, {found['score']:.4f}, not {known.index}, {known.score:.4f}")


def check_pictures(answer: Answer, known: Sequence[Known]) -> None:
    if answer.status == 200:
        pictures = answer.json["pictures"]
        if len(pictures) != len(known):
            raise Wrong(f"there are {len(pictures)} answers for {len(known)} pictures")
        for picture, each in zip(pictures, known, strict=True):
            check_best(picture["labels"][0], each)


def good_picture(target: Target, chance: Random) -> Sequence[Answer]:
    known = chance.choice(target.known)
    (answer,) = exchange(target, request(target, target.predict, known.content))
    check_pictures(answer, [known])
    return [answer]


def good_form(target: Target, chance: Random) -> Sequence[Answer]:
    known = chance.choices(target.known, k=chance.randint(1, 6))
    (answer,) = exchange(target, request(target, target.predict, *form(*(each.content for each in known))))
    check_pictures(answer, known)
    return [answer]


def good_json(target: Target, chance: Random) -> Sequence[Answer]:
    known = chance.choices(target.known, k=2)
    images = [base64.b64encode(each.content).decode() for each in known]
    (answer,) = exchange(target, request(target, target.predict, as_json(images=images), "application/json"))
    check_pictures(answer, known)
    return [answer]


def good_chunks(target: Target, chance: Random) -> Sequence[Answer]:
    known, at = chance.choice(target.known), chance.randint(1, 1000)
    pieces = known.content[:at], known.content[at:]
    body = b"".join(b"%x;extension=1\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    head = request(target, target.predict, content_length="", transfer_encoding="chunked", expect="100-continue")
    (answer,) = exchange(target, head + body)
    check_pictures(answer, [known])
    return [answer]


def good_explanation(target: Target, chance: Random) -> Sequence[Answer]:
    known = chance.choice(target.known)
    (answer,) = exchange(target, request(target, f"/explain/{target.model}", known.content))
    check_pictures(answer, [known])
    return [answer]


def good_inference(target: Target, chance: Random) -> Sequence[Answer]:
    known = chance.choice(target.known)
    content = struct.pack("<I", len(known.content)) + known.content
    tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(content)}}
    best = {"name": "scores", "parameters": {"classification": 1}}
    (answer,) = inferred(target, content, inputs=[tensor], outputs=[best])
    if answer.status == 200:
        score, index, _ = answer.json["outputs"][0]["data"][0].split(":", 2)
        check_best({"index": int(index), "score": float(score)}, known)
    return [answer]


def good_tensor(target: Target, chance: Random) -> Sequence[Answer]:
    shape = [1, 3, target.side, target.side]
    data = struct.pack("<f", chance.random()) * (3 * target.side**2)
    (answer,) = inferred(target, data, inputs=[tensor_of(shape, len(data))], parameters={"binary_data_output": True})
    if answer.status == 200:
        length = int(answer.headers["inference-header-content-length"])
        sizes = [each["parameters"]["binary_data_size"] for each in json.loads(answer.body[:length])["outputs"]]
        if length + sum(sizes) != len(answer.body):
            raise Wrong(f"the tensors' sizes {sizes} do not fit an answer of {len(answer.body)} bytes")
    return [answer]


def good_over_one_connection(target: Target, chance: Random) -> Sequence[Answer]:
    answers = []
    with connected(target) as wire:
        for known in chance.choices(target.known, k=4):
            wire.send(request(target, target.predict, known.content))
            answers.append(wire.answer())
            check_pictures(answers[-1], [known])
            time.sleep(chance.random() / 20)
    return answers


PAGES = (
    "/", "/models", "/metrics", "/docs", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready", "/backend.js",
)  # fmt: skip


def pages(target: Target, chance: Random) -> Sequence[Answer]:
    return exchange(target, request(target, chance.choice(PAGES), method="GET"))


def reload(target: Target, chance: Random) -> Sequence[Answer]:
    return exchange(target, request(target, f"/v2/repository/models/{target.model}/load", b"{}", "application/json"))


# bad pictures


def truncated_picture(target: Target, chance: Random) -> Sequence[Answer]:
    content = chance.choice(target.known).content
    return exchange(target, request(target, target.predict, content[: chance.randint(1, len(content) - 500)]))


def bomb(target: Target, chance: Random) -> Sequence[Answer]:
    return exchange(target, request(target, target.predict, chance.choice(bombs()), "image/png"))


def large_but_allowed(target: Target, chance: Random) -> Sequence[Answer]:
    return exchange(target, request(target, target.predict, large_picture(), "image/png"))


def not_a_picture(target: Target, chance: Random) -> Sequence[Answer]:
    content = chance.choice((b"hello", b"\0" * 5000, b"%PDF-1.4\n", b"GIF89a", b"<svg/>", chance.randbytes(3000), b""))
    kinds = ("image/jpeg", "", "text/plain", "application/pdf", "image", "application/octet-stream", "é/x", "a" * 9000)
    return exchange(target, request(target, target.predict, content, chance.choice(kinds)))


def flipped_bytes(target: Target, chance: Random) -> Sequence[Answer]:
    content = bytearray(chance.choice(target.known).content)
    for _ in range(chance.randint(1, 20)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return exchange(target, request(target, target.predict, bytes(content)))


def good_among_bad(target: Target, chance: Random) -> Sequence[Answer]:
    known = chance.choice(target.known)
    body, kind = form(known.content[:700], known.content, bombs()[0], b"")
    (answer,) = exchange(target, request(target, target.predict, body, kind))
    if answer.status == 200:
        found = answer.json["pictures"]
        check_best(found[1]["labels"][0], known)
        if not all("error" in found[i] for i in (0, 2, 3)):
            raise Wrong(f"bad pictures have no error: {found}")
    return [answer]


# bad bodies


def huge_by_its_length(target: Target, chance: Random) -> Sequence[Answer]:
    length = chance.choice((str(target.largest + 1), "9" * 10, "9" * 20, "9" * 30, "9" * 5000))
    head = request(target, target.predict, content_length=length)
    return exchange(target, head + bytes(chance.choice((0, 1000))))


def huge_in_chunks(target: Target, chance: Random) -> Sequence[Answer]:
    head = request(target, target.predict, content_length="", transfer_encoding="chunked")
    piece = b"%x\r\n%s\r\n" % (2**18, bytes(2**18))
    with connected(target) as wire:
        wire.send(head)
        for _ in range(target.largest // 2**18 + 2):
            wire.send(piece)
        return [wire.answer()]


def bad_length(target: Target, chance: Random) -> Sequence[Answer]:
    given = chance.choice(("-1", "+5", "0x10", "5, 6", "five", "1_0", "²", "1e3", "5\r\ncontent-length: 6"))
    return exchange(target, request(target, target.predict, b"12345", content_length=given))


def bad_chunks(target: Target, chance: Random) -> Sequence[Answer]:
    head = request(target, target.predict, content_length="", transfer_encoding=chance.choice(("chunked", "Chunked")))
    chunk = chance.choice((
        b"zz\r\nabc\r\n", b"-5\r\nhello\r\n", b"f" * 17 + b"\r\nabc\r\n", b"5\r\nhelloworld\r\n0\r\n\r\n", b"\r\n\r\n",
        b"5 hello\r\n", b"5\nhello\n0\n\n", b"0x5\r\nhello\r\n", b"a" * 100_000,
    ))  # fmt: skip
    return exchange(target, head + chunk)


def bad_coding(target: Target, chance: Random) -> Sequence[Answer]:
    known = chance.choice(target.known).content
    header = chance.choice((
        {"content_encoding": "gzip"}, {"content_encoding": "br, gzip"}, {"transfer_encoding": "gzip"},
        {"transfer_encoding": "gzip, chunked"}, {"transfer_encoding": "identity"}, {"transfer_encoding": "chunked"},
    ))  # fmt: skip
    return exchange(target, request(target, target.predict, known, **header))


def bad_json(target: Target, chance: Random) -> Sequence[Answer]:
    body = chance.choice((
        b"", b"{", b"[]", b"null", b'{"images": []}', b'{"images": "abc"}', b'{"images": [1]}', b'{"images": [null]}',
        b'{"image": ["YQ=="]}', b"[" * 100_000, b'{"images": ["\xff\xfe"]}', b'{"images": ["\\ud800"]}', b"1" * 100_000,
        b'{"images": ["YQ=="], "top_k": 5}', b'\xef\xbb\xbf{"images": ["YQ=="]}', b'{"a":' * 50_000, b"\0" * 100,
        as_json(images=["YQ=="] * 1001),
    ))  # fmt: skip
    return exchange(target, request(target, target.predict, body, "application/json"))


def bad_base64(target: Target, chance: Random) -> Sequence[Answer]:
    image = chance.choice((
        "", "=", "a", "ab=c", "data:", "data:image/png;base64,", "data:image/png,hello", "é", "𝒳" * 50, "YQ",
        "YQ==YQ==", " YQ== ", "Y\0Q=", "-_-_", "data:;base64,YQ==", "YQ==\n", "," * 1000,
        base64.b64encode(b"no picture").decode(),
    ))  # fmt: skip
    return exchange(target, request(target, target.predict, as_json(images=[image]), "application/json"))


def broken_form(target: Target, chance: Random) -> Sequence[Answer]:
    whole, kind = form(chance.choice(target.known).content)
    start = b'--part\r\nContent-Disposition: form-data; name="file"; filename='
    body, kind = chance.choice((
        (whole[: chance.randrange(len(whole))], kind),
        (whole, "multipart/form-data"),
        (whole, "multipart/form-data; boundary="),
        (whole, "multipart/form-data; boundary=other"),
        (whole, "multipart/form-data; boundary=" + "b" * 5000),
        (whole, 'multipart/form-data; boundary="pa\x80rt"'),
        (b"--part--\r\n", kind),
        (b"", kind),
        (b"--part\r\n" * 5000, kind),
        (b"--part\r\n\r\nhello\r\n" * 1100 + b"--part--\r\n", kind),
        (b"--part\r\n" + b"a: b\r\n" * 20_000 + b"\r\nhello\r\n--part--\r\n", kind),
        (b"--part\r\n" + b"a" * 200_000 + b": b\r\n\r\nhello\r\n--part--\r\n", kind),
        (b"--part\r\nContent-Disposition\r\n\r\nhello\r\n--part--\r\n", kind),
        (start + b'"' + b"\xff\0\x01" * 300 + b'"\r\n\r\nhello\r\n--part--\r\n', kind),
        (start + b'"../../../etc/passwd"\r\n\r\nhello\r\n--part--\r\n', kind),
        (start + b'"a"\r\nContent-Transfer-Encoding: base64\r\n\r\nYQ==\r\n--part--\r\n', kind),
        (whole.replace(b"\r\n", b"\n"), kind),
        (whole, "multipart/mixed; boundary=part"),
    ))  # fmt: skip
    return exchange(target, request(target, target.predict, body, kind))


def too_many_pictures(target: Target, chance: Random) -> Sequence[Answer]:
    body, kind = form(*[small_picture()] * chance.choice((target.queue, target.queue + 1, 300, 1000)))
    return exchange(target, request(target, target.predict, body, kind))


# bad addresses and heads


PATHS = (
    "/../../../etc/passwd", "/..%2f..%2f..%2fetc%2fpasswd", "/%2e%2e/%2e%2e/etc/passwd", "/predict/../../etc/passwd",
    "/predict/%2e%2e%2f%2e%2e", "/predict/", "/predict/..", "//etc/passwd", "/./././", "/%00", "/style.css%00.js",
    "/predict/van%00", "/predict/%ff%fe", "/predict/%F0%9F%90%9C", "/predict/%", "/predict/%zz", "/%c0%ae%c0%ae/",
    "/..\\..\\windows", "/" + "a" * 60_000, "/" + "a/" * 20_000, "/" + "../" * 1000, "/predict/" + "%41" * 5000,
    "/?" * 900, "/a\0b", "/\xe9\xe8", "/predict/van/..;/metrics", "*", "http://other.example/metrics",
    "other.example:443", "/v2/models/../../metrics", "/v2/models/%2e%2e/infer",
    "/v2/models/van/versions/../../../metrics", "/v2/models/van/versions/99999999999999999999/infer",
    "/v2/models//versions//infer", "/server.js", "/app.py", "/__init__.py", "/index.html/..", "/.git/config",
    "/metrics/", "/METRICS", "/predict/van#x", "/a b", "", "/\t",
)  # fmt: skip
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW", "get")


def path_tricks(target: Target, chance: Random) -> Sequence[Answer]:
    path = chance.choice(PATHS).replace("/van", f"/{target.model}")
    (answer,) = exchange(target, request(target, path, method=chance.choice(("GET", "POST"))))
    if b"root:x:" in answer.body or b"from vankit" in answer.body:
        raise Wrong(f"{path[:100]!r} is answered with a file: {answer.body[:100]!r}")
    return [answer]


def other_methods(target: Target, chance: Random) -> Sequence[Answer]:
    path = chance.choice((*PAGES, target.predict, target.infer, "/v2/repository/index"))
    method = chance.choice(METHODS)
    with connected(target) as wire:
        wire.send(request(target, path, method=method))
        if method != "HEAD":
            return [wire.answer()]
        wire.half_close()  # its answer has no body, whatever its length says
        return []


def bad_query(target: Target, chance: Random) -> Sequence[Answer]:
    query = chance.choice((
        "top_k=0", "top_k=-1", "top_k=abc", "top_k=1e3", "top_k=" + "9" * 5000, "top_k=", "top_k=%EF%BC%95",
        "top_k=1&top_k=2", "score=nan", "score=0.5", "draw=maybe", "draw=true", "draw=1", "unknown=1", "top_k=%00",
        "%ff=%ff", "top_k=1.0", "top_k=%D9%A3", "=" * 1000, "score=inf", "score=-0", "top_k=%2B5", "top_k=+5",
    ))  # fmt: skip
    known = chance.choice(target.known)
    return exchange(target, request(target, f"{target.predict}?{query}", known.content))


def bad_target(target: Target, chance: Random) -> Sequence[Answer]:
    query = chance.choice((
        "target=no-such-class", "target=", "&".join(["target=1"] * 21), "target=-1", "target=99999999",
        "target=" + "a" * 3000, "target=%00", "target=1.5", "target=%C2%B2", "top_k=5", "target=%F0%9F%90%9C",
        "target=" + "9" * 900,
    ))  # fmt: skip
    return exchange(target, request(target, f"/explain/{target.model}?{query}", chance.choice(target.known).content))


GET = b"GET / HTTP/1.1\r\nhost: a\r\n"
HEADS = (
    b"\0" * 100, b"GET\r\n\r\n", b"\r\n\r\n\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n",
    b"G" * 100_000, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" * 9,  # of TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\nhost: a\n\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    *(GET + headers + b"\r\n\r\n" for headers in (
        b"host: b", b"no colon", b": no name", b"a: b\r\n" * 9000, b"b: " + b"c" * 70_000, b"b: c\0d", b"b: \xff\xfe",
        b" folded: b", b"upgrade: websocket\r\nconnection: upgrade", b"x-request-id: a b",
        b"x-request-id: " + b"x" * 1000, b"upgrade: h2c\r\nconnection: upgrade\r\nhttp2-settings: AA",
        b"authorization: Bearer \xe9",
    )),
)  # fmt: skip


def bad_head(target: Target, chance: Random) -> Sequence[Answer]:
    with connected(target) as wire:
        wire.send(chance.choice(HEADS))
        return [wire.answer()]


def wrong_token(target: Target, chance: Random) -> Sequence[Answer]:
    given = chance.choice((
        "", "Bearer", "Bearer ", "Bearer wrong", f"bearer {target.token}x", f"Basic {target.token}", "Bearer \xe9\xff",
        f"Bearer {target.token} ", f"Bearer {target.token[:-1]}", "Bearer " + "a" * 30_000, f"Bearer{target.token}",
    ))  # fmt: skip
    path = chance.choice((target.predict, target.infer, f"/v2/repository/models/{target.model}/load"))
    content = chance.choice((b"", chance.choice(target.known).content))
    (answer,) = exchange(target, request(target, path, content, authorization=given))
    if answer.status == 200 and given.strip() != f"Bearer {target.token}":
        raise Wrong(f"the token {given[:60]!r} is taken")
    return [answer] if given.strip() != f"Bearer {target.token}" else []


# bad inferences


def tensor_of(shape: Sequence[Any], size: Any = None, datatype: str = "FP32", name: str = "images") -> dict[str, Any]:
    parameters = {} if size is None else {"parameters": {"binary_data_size": size}}
    return {"name": name, "shape": shape, "datatype": datatype, **parameters}


def inferred(target: Target, data: bytes = b"", length: str | None = None, **content: Any) -> Sequence[Answer]:
    head = as_json(**content)
    given = str(len(head)) if length is None else length
    kind = "application/octet-stream" if data or length else "application/json"
    headers = {"inference_header_content_length": given} if data or length else {}
    return exchange(target, request(target, target.infer, head + data, kind, **headers))


def bad_inference(target: Target, chance: Random) -> Sequence[Answer]:
    side = target.side
    shape, size = [1, 3, side, side], 4 * 3 * side**2
    nothing: dict[str, Any] = {}
    content, data = chance.choice((
        (nothing, b""),
        ({"inputs": []}, b""),
        ({"inputs": [{}]}, b""),
        ({"inputs": [tensor_of(shape)]}, b""),
        ({"inputs": [tensor_of([1, 3, side, side - 1], size)]}, bytes(size)),
        ({"inputs": [tensor_of([1, 3, side - 1, side - 1], 12 * (side - 1) ** 2)]}, bytes(12 * (side - 1) ** 2)),
        ({"inputs": [tensor_of([0, 3, side, side], 0)]}, b""),
        ({"inputs": [tensor_of([-1, 3, side, side], size)]}, bytes(size)),
        ({"inputs": [tensor_of([2**31] * 8, 8)]}, bytes(8)),
        ({"inputs": [tensor_of([2**70], 8)]}, bytes(8)),
        ({"inputs": [tensor_of([1.5], 8)]}, bytes(8)),
        ({"inputs": [tensor_of(shape, size + 1)]}, bytes(size)),
        ({"inputs": [tensor_of(shape, size - 4)]}, bytes(size)),
        ({"inputs": [tensor_of(shape, -1)]}, bytes(size)),
        ({"inputs": [tensor_of(shape, True)]}, bytes(size)),
        ({"inputs": [tensor_of(shape, "all")]}, bytes(size)),
        ({"inputs": [tensor_of(shape, 2**80)]}, bytes(size)),
        ({"inputs": [tensor_of(shape, size) | {"data": [1]}]}, bytes(size)),
        ({"inputs": [tensor_of(shape, size)]}, struct.pack("<f", float("nan")) * (size // 4)),
        ({"inputs": [tensor_of(shape, size)]}, struct.pack("<f", float("inf")) * (size // 4)),
        ({"inputs": [tensor_of(shape, size, "FP64")]}, bytes(size)),
        ({"inputs": [tensor_of(shape, size, "complex")]}, bytes(size)),
        ({"inputs": [tensor_of(shape, size, "")]}, bytes(size)),
        ({"inputs": [tensor_of(shape, size // 4, "BOOL")]}, bytes(size // 4)),
        ({"inputs": [tensor_of(shape, size, name="other")]}, bytes(size)),
        ({"inputs": [tensor_of([1], 8)] * 2}, bytes(16)),
        ({"inputs": [tensor_of([1], 1)] * 17}, bytes(17)),
        ({"inputs": [tensor_of([1], 3, "BYTES")]}, bytes(3)),
        ({"inputs": [tensor_of([1], 8, "BYTES")]}, b"\xff\xff\xff\xffabcd"),
        ({"inputs": [tensor_of([2], 8, "BYTES")]}, b"\x04\0\0\0abcd"),
        ({"inputs": [tensor_of([1, 1, 1], 8, "BYTES")]}, b"\x04\0\0\0abcd"),
        ({"inputs": [tensor_of([0], 0, "BYTES")]}, b""),
        ({"inputs": [tensor_of([1], None, "BYTES") | {"data": ["no base64!"]}]}, b""),
        ({"inputs": [tensor_of([1], None, "BYTES") | {"data": [None]}]}, b""),
        ({"inputs": [tensor_of([1], None, "BYTES") | {"data": ["é"]}]}, b""),
        ({"inputs": [tensor_of([2]) | {"data": [[1], [2, 3]]}]}, b""),
        ({"inputs": [tensor_of([1]) | {"data": ["x"]}]}, b""),
        ({"inputs": [tensor_of([1]) | {"data": [{"a": 1}]}]}, b""),
        ({"inputs": [tensor_of([1]) | {"data": [10**400]}]}, b""),
        ({"inputs": [tensor_of([1], None, "INT8") | {"data": [300]}]}, b""),
        ({"inputs": [tensor_of([1], None, "UINT64") | {"data": [-1]}]}, b""),
        ({"inputs": [tensor_of([1], None, "BOOL") | {"data": ["x"]}]}, b""),
        ({"inputs": [tensor_of([1]) | {"data": nested(60)}]}, b""),
        ({"inputs": [tensor_of(shape, size)], "outputs": [{"name": "no-such"}]}, bytes(size)),
        ({"inputs": [tensor_of(shape, size)], "outputs": [classified(-1)]}, bytes(size)),
        ({"inputs": [tensor_of(shape, size)], "outputs": [classified("all")]}, bytes(size)),
        ({"inputs": [tensor_of(shape, size)], "id": 5}, bytes(size)),
        ({"inputs": [tensor_of(shape, size)], "parameters": []}, bytes(size)),
        ({"inputs": [tensor_of(shape, size)], "outputs": "all"}, bytes(size)),
    ))  # fmt: skip
    return inferred(target, data, **content)


def nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


def classified(count: Any) -> dict[str, Any]:
    return {"name": "scores", "parameters": {"classification": count}}


def odd_inference(target: Target, chance: Random) -> Sequence[Answer]:
    """What may be taken or refused, as long as it is not a failure."""
    side = target.side
    tensor, data = tensor_of([1, 3, side, side], 12 * side**2), bytes(12 * side**2)
    outputs = chance.choice((
        [], [{"name": "logits"}] * 3, [{"name": "scores"}] * 1000, [classified(10**9)], [classified(2**70)],
        [classified(0)], [{"name": "logits", "parameters": {"binary_data": "yes"}}], [{"name": "saliency_map"}],
    ))  # fmt: skip
    return inferred(target, data, inputs=[tensor], outputs=outputs, id=chance.choice(("", "a" * 10_000, "\ud7ff\0é")))


def bad_header_length(target: Target, chance: Random) -> Sequence[Answer]:
    length = chance.choice(("-1", "abc", "0", "5", "9" * 11, "9" * 4000, "9" * 5000, "1.0", " ", "²", "+5", "1, 2"))
    size = 12 * target.side**2
    return inferred(target, bytes(size), length, inputs=[tensor_of([1, 3, target.side, target.side], size)])


def bad_picture_in_inference(target: Target, chance: Random) -> Sequence[Answer]:
    content = chance.choice((b"hello", chance.choice(target.known).content[:700], bombs()[0], bombs()[1]))
    data = struct.pack("<I", len(content)) + content
    return inferred(target, data, inputs=[tensor_of([1], len(data), "BYTES")])


# bad manners


def slow_head(target: Target, chance: Random) -> Sequence[Answer]:
    return slowly(target, b"", request(target, target.predict, b"12345") + b"x" * 10_000)


def slow_body(target: Target, chance: Random) -> Sequence[Answer]:
    data = request(target, target.predict, chance.choice(target.known).content)
    head = data.index(b"\r\n\r\n") + 4
    at = head + chance.randint(0, 5000)
    return slowly(target, data[:at], data[at:])


def slow_chunks(target: Target, chance: Random) -> Sequence[Answer]:
    head = request(target, target.predict, content_length="", transfer_encoding="chunked")
    return slowly(target, head, b"1\r\nx\r\n" * 1000)


def slowly(target: Target, first: bytes, rest: bytes) -> Sequence[Answer]:
    with connected(target) as wire:
        wire.send(first)
        start = time.monotonic()
        for byte in rest:
            if wire.answered(_PRODDING):
                break
            if time.monotonic() - start > target.timeout + 10:
                raise Wrong(f"who sends slowly is still listened to after {time.monotonic() - start:.0f} s")
            wire.send(bytes((byte,)))
        return [wire.answer()]


def silent(target: Target, chance: Random) -> Sequence[Answer]:
    with connected(target) as wire:
        if not wire.answered(target.timeout + 5):
            raise Wrong("who sends nothing is still listened to")
        return [wire.answer()]


def half_closed(target: Target, chance: Random) -> Sequence[Answer]:
    data = request(target, target.predict, chance.choice(target.known).content)
    with connected(target) as wire:
        wire.send(data[: chance.choice((0, 10, len(data) // 2, len(data)))])
        wire.half_close()
        return [wire.answer()]


def reset_somewhere(target: Target, chance: Random) -> Sequence[Answer]:
    data = request(target, target.predict, chance.choice(target.known).content)
    with connected(target) as wire:
        wire.send(data[: chance.choice((0, 10, data.index(b"\r\n\r\n") + 4, len(data) // 2, len(data)))])
        time.sleep(chance.random() / 20)
        wire.reset()
    return []


def leaves_while_waiting(target: Target, chance: Random) -> Sequence[Answer]:
    known = [each.content for each in chance.choices(target.known, k=chance.choice((1, 1, 5)))]
    with connected(target) as wire:
        wire.send(request(target, target.predict, *form(*known)))
        time.sleep(chance.random() / 10)
    return []


def pipelined(target: Target, chance: Random) -> Sequence[Answer]:
    known = chance.choices(target.known, k=2)
    page = request(target, "/models", kind="", method="GET")
    with connected(target) as wire:
        wire.send(b"".join([page, *(request(target, target.predict, each.content) for each in known), page]))
        answers = [wire.answer() for _ in range(4)]
    if answers[0].status != 200 or answers[3].status != 200:
        raise Wrong(f"pipelined requests are answered {[answer.status for answer in answers]}")
    for answer, each in zip(answers[1:3], known, strict=True):
        check_pictures(answer, [each])
    return answers


def unread_answers(target: Target, chance: Random) -> Sequence[Answer]:
    with connected(target) as wire:
        page = request(target, "/openapi.json", kind="", method="GET")
        wire.send(page * 60)
        time.sleep(chance.random())
        if chance.random() < 0.5:
            wire.reset()
    return []


def behind_a_refusal(target: Target, chance: Random) -> Sequence[Answer]:
    """A request refused before its body is read, and another one after that body."""
    content = chance.choice(target.known).content
    page = request(target, "/v2/health/live", kind="", method="GET")
    with connected(target) as wire:
        wire.send(request(target, "/predict/no-such-model", content) + page)
        return [wire.answer(), wire.answer()]


def garbled(target: Target, chance: Random) -> Sequence[Answer]:
    """A good request in which some bytes of the head are others."""
    data = bytearray(request(target, f"{target.predict}?top_k=5", small_picture(), "image/png"))
    end = data.index(b"\r\n\r\n") + 4
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(end)] = chance.randrange(256)
    with connected(target) as wire:
        wire.send(bytes(data))
        wire.half_close()  # so that it does not wait for more
        return [wire.answer()]


@dataclass(frozen=True)
class Kind:
    """Of traffic.

    Attributes:
        send: does it.
        right: statuses of its answers; empty for any below 500.
        weight: how often it comes, beside the others.
    """

    send: Send
    right: Collection[int] = ()
    weight: float = 1.0


KINDS: dict[str, Kind] = {
    "good picture": Kind(good_picture, {200}, 15),
    "good form": Kind(good_form, {200}, 2),
    "good JSON": Kind(good_json, {200}, 2),
    "good chunks": Kind(good_chunks, {200}, 2),
    "good explanation": Kind(good_explanation, {200}, 2),
    "good inference": Kind(good_inference, {200}, 2),
    "good tensor": Kind(good_tensor, {200}, 2),
    "good, one connection": Kind(good_over_one_connection, {200}, 2),
    "page": Kind(pages, {200}, 2),
    "reload": Kind(reload, {200}, 0),
    "truncated picture": Kind(truncated_picture, {422}, 2),
    "bomb": Kind(bomb, {422}, 2),
    "large but allowed": Kind(large_but_allowed, {200}, 0.1),
    "not a picture": Kind(not_a_picture, {400, 415, 422}, 2),
    "flipped bytes": Kind(flipped_bytes, {200, 422}, 2),
    "good among bad": Kind(good_among_bad, {200}, 2),
    "huge by its length": Kind(huge_by_its_length, {413, 400}),
    "huge in chunks": Kind(huge_in_chunks, {413, NO_ANSWER}),
    "bad length": Kind(bad_length, {400}),
    "bad chunks": Kind(bad_chunks, {400, 408, 413}),
    "bad coding": Kind(bad_coding, {400, 408, 415, 501}),
    "bad JSON": Kind(bad_json, {400}, 2),
    "bad base64": Kind(bad_base64, {400, 422}, 2),
    "broken form": Kind(broken_form, {400, 413, 415, 422}, 2),
    "too many pictures": Kind(too_many_pictures, {200, 400, 413}),
    "path tricks": Kind(path_tricks, {200, 400, 404, 405}, 2),
    "other methods": Kind(other_methods),
    "bad query": Kind(bad_query, {400, 422, 200}, 2),
    "bad target": Kind(bad_target, {400, 422}, 2),
    "bad head": Kind(bad_head, (), 2),
    "wrong token": Kind(wrong_token, {401}, 2),
    "bad inference": Kind(bad_inference, {400, 422}, 4),
    "odd inference": Kind(odd_inference),
    "bad header length": Kind(bad_header_length, {400}, 2),
    "bad picture in inference": Kind(bad_picture_in_inference, {422}, 2),
    "slow head": Kind(slow_head, {408}, 0.3),
    "slow body": Kind(slow_body, {408}, 0.3),
    "slow chunks": Kind(slow_chunks, {408}, 0.3),
    "silent": Kind(silent, {408, NO_ANSWER}, 0.3),
    "half closed": Kind(half_closed, {200, 400, NO_ANSWER}),
    "reset": Kind(reset_somewhere, (), 2),
    "leaves": Kind(leaves_while_waiting, (), 3),
    "pipelined": Kind(pipelined, {200}),
    "unread answers": Kind(unread_answers, ()),
    "behind a refusal": Kind(behind_a_refusal, ()),
    "garbled": Kind(garbled, (), 3),
}
