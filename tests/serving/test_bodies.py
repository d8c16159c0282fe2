"""What clients send, as pictures: forms, JSON, plain bytes."""

import base64
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from urllib3.filepost import encode_multipart_formdata

from vankit.serving.bodies import pictures_in
from vankit.serving.errors import Refusal

NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters='"\\%'), min_size=1, max_size=30
)


@given(st.lists(st.tuples(NAMES, st.binary(min_size=1, max_size=300)), min_size=1, max_size=5))
@example([("a.png", b"\r\n--boundary--\r\n"), ("ü 写真.jpg", bytes(range(256)))])
def test_forms_are_what_urllib3_writes(files: list[tuple[str, bytes]]) -> None:
    fields = [("text", "not a file"), *(("file", (name, content, "image/png")) for name, content in files)]
    body, kind = encode_multipart_formdata(fields)
    assert [tuple(picture) for picture in pictures_in(body, kind)] == files


@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=4))
def test_base64_in_json(files: list[bytes]) -> None:
    texts = [base64.b64encode(content).decode() for content in files]
    texts[0] = f"data:image/png;base64,{texts[0]}"
    found = pictures_in(json.dumps({"images": texts}).encode(), "application/json; charset=utf-8")
    assert [picture.content for picture in found] == files
    assert [picture.source for picture in found] == [f"picture {i}" for i in range(1, len(files) + 1)]


@pytest.mark.parametrize("kind", ["image/jpeg", "image/anything", "application/octet-stream", "IMAGE/PNG",
                                  "application/x-www-form-urlencoded", ""])  # fmt: skip
def test_bytes_as_they_are(kind: str) -> None:
    assert pictures_in(b"\xff\xd8\xff", kind) == [("picture", b"\xff\xd8\xff")]


REFUSED = {
    ("text/plain", b"x"): (415, "the content type is 'text/plain': expected image/…"),
    ("video/mp4", b"x"): (415, "the content type is 'video/mp4'"),
    ("image/png", b""): (400, "there is no picture in the body"),
    ("application/json", b""): (400, "the JSON cannot be used"),
    ("application/json", b'{"images": []}'): (400, "length >= 1"),
    ("application/json", b'{"image": "aaaa"}'): (400, 'expected {"images": ['),
    ("application/json", b'{"images": ["aaaa"], "top_k": 3}'): (400, "unknown field `top_k`"),
    ("application/json", b'{"images": [3]}'): (400, "Expected `str`"),
    ("application/json", b'{"images": ["aaaa", "a"]}'): (400, "image 2 is not base64"),
    ("application/json", '{"images": ["ä"]}'.encode()): (400, "image 1 is not base64"),
    ("application/json", b"\xff\xfe"): (400, "the JSON cannot be used"),
    ("application/json", b"[" * 100_000): (400, "the JSON cannot be used"),
    ("multipart/form-data", b"x"): (400, "the form cannot be read"),
    ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data; name=f; filename=a\r\n\r\nabc"): (
        400, "the form ends before its last part does",
    ),
    ("multipart/form-data; boundary=b", b"nothing of a form"): (400, "the form cannot be read"),
    ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data; name=f\r\n\r\nabc\r\n--b--\r\n"): (
        400, "there is no picture in the body",
    ),
    ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n" * 1500 + b"--b--\r\n"): (400, "more than 1,000 parts"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "body"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_refused(kind: str, body: bytes) -> None:
    status, reason = REFUSED[kind, body]
    with pytest.raises(Refusal) as refused:
        pictures_in(body, kind)
    assert refused.value.status == status
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


@given(st.binary(max_size=200), st.sampled_from(["multipart/form-data; boundary=b", "application/json", "a/b; c=\xff"]))
def test_whatever_is_sent_is_read_or_refused(body: bytes, kind: str) -> None:
    try:
        assert pictures_in(body, kind)
    except Refusal as refused:
        assert refused.status in (400, 415)


def test_a_long_name_comes_back_shortened() -> None:
    body, kind = encode_multipart_formdata([("file", ("n" * 500, b"x", "image/png"))])
    assert pictures_in(body, kind)[0].source == "n" * 199 + "…"
