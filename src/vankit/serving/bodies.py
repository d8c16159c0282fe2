"""Requests' bodies within bounds of size, time and memory, and the pictures in them."""

import asyncio
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta
from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from vankit.serving.errors import CLIENT_GONE, BadRequestError, Refusal

_AT_LEAST = 2**28  # bytes of all bodies at once, if a single one may not be larger
_LONGEST_NAME = 200  # characters of a picture's name that come back
_MOST_PARTS = 1000
# beside image/…; the last is what curl says of --data-binary by itself. What the bytes are is seen from the bytes
_BYTES = ("", "application/octet-stream", "application/x-www-form-urlencoded")


class Picture(NamedTuple):
    """A picture's file as it was sent, not decoded, and what it is called."""

    source: str
    content: bytes


@dataclass
class Bodies:
    """Reads bodies, all of which are in memory.

    Args:
        largest: bytes of one.
        seconds: in which it has to arrive.
    """

    largest: int
    seconds: float
    held: int = field(default=0, init=False)  # bytes of all requests that are not answered yet

    async def read(self, request: Request) -> bytes:
        """The whole body, to be given back with `release`.

        Raises:
            Refusal: it is too large, too slow, compressed, or there are too many at once; or the client is gone.
        """
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body is compressed: send it as it is")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.largest:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self.seconds):
                async for chunk in request.stream():
                    body += chunk
                    self._take(len(chunk), len(body))
        except BaseException as error:
            self.release(len(body))
            if isinstance(error, TimeoutError):
                reason = f"the body had not arrived after {self.seconds:g} s: send it faster, or a smaller one"
                raise Refusal(HTTPStatus.REQUEST_TIMEOUT, reason) from None
            if isinstance(error, ClientDisconnect):
                raise Refusal(CLIENT_GONE, "the client is gone") from None
            raise
        return bytes(body)

    def release(self, size: int) -> None:
        """Count the bytes of a body no longer."""
        self.held -= size

    def _take(self, chunk: int, body: int) -> None:
        self.held += chunk
        if body > self.largest:
            raise self._too_large()
        if self.held > max(_AT_LEAST, 4 * self.largest):
            busy = "too many bodies are being received at once: try again"
            raise Refusal(HTTPStatus.TOO_MANY_REQUESTS, busy, {"retry-after": "1"})

    def _too_large(self) -> Refusal:
        return Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body is larger than {self.largest:,} bytes: send smaller pictures",
        )


def pictures_in(body: bytes, content_type: str) -> list[Picture]:
    """The pictures of a body: its bytes, the files of a form, or the base64 in JSON.

    Raises:
        Refusal: it is of another type, or has no picture.
    """
    kind, options = parse_options_header(content_type)
    media = kind.decode("latin-1").lower()
    if media == "multipart/form-data":
        found = _files(body, options.get(b"boundary", b""))
    elif media == "application/json":
        found = _base64(body)
    elif media.startswith("image/") or media in _BYTES:
        found = [Picture("picture", body)]
    else:
        expected = "image/…, application/octet-stream, multipart/form-data or application/json"
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the content type is {media[:100]!r}: expected {expected}")
    if not found or not any(picture.content for picture in found):
        raise BadRequestError("there is no picture in the body: send a picture's file as it is, or files in a form")
    return found


def _files(body: bytes, boundary: bytes) -> list[Picture]:
    parts = _Parts()
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        parser.write(body)
        parser.finalize()
    except (MultipartParseError, ValueError) as error:
        raise BadRequestError(f"the form cannot be read: {str(error)[:200]}") from None
    if parts.open:
        raise BadRequestError("the form ends before its last part does")
    return parts.pictures


class _Parts:
    """The files among the parts of a form; its other fields are passed over."""

    def __init__(self) -> None:
        self.pictures: list[Picture] = []
        self.open = True  # until the boundary that ends the form
        self._name, self._value, self._headers = bytearray(), bytearray(), dict[bytes, bytes]()
        self._content = bytearray()
        self._count = 0

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._adding(lambda: self._name),
            "on_header_value": self._adding(lambda: self._value),
            "on_header_end": self._end_header,
            "on_part_data": self._adding(lambda: self._content),
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _adding(self, where: Callable[[], bytearray]) -> Callable[[bytes, int, int], None]:
        return lambda data, start, end: where().extend(memoryview(data)[start:end])

    def _begin(self) -> None:
        self._headers, self._content, self._count = {}, bytearray(), self._count + 1
        if self._count > _MOST_PARTS:
            raise ValueError(f"it has more than {_MOST_PARTS:,} parts")

    def _end_header(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def _end_part(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if (name := options.get(b"filename")) is not None:
            self.pictures.append(Picture(_shortened(name.decode("utf-8", "replace")), bytes(self._content)))

    def _end(self) -> None:
        self.open = False


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


class _Json(msgspec.Struct, forbid_unknown_fields=True):
    images: Annotated[Sequence[str], Meta(min_length=1, max_length=_MOST_PARTS)]


_JSON = msgspec.json.Decoder(_Json)


def _base64(body: bytes) -> list[Picture]:
    try:
        images = _JSON.decode(body).images
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        expected = 'expected {"images": ["base64 of a picture\'s file", …]}'
        raise BadRequestError(f"the JSON cannot be used ({str(error)[:200]}): {expected}") from None
    return [Picture(f"picture {i}", _decoded(image, i)) for i, image in enumerate(images, 1)]


def _decoded(text: str, place: int) -> bytes:
    """Of base64, perhaps in a data URL."""
    head, comma, rest = text.partition(",")
    try:
        return binascii.a2b_base64(rest if comma and head.startswith("data:") else text, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequestError(f"image {place} is not base64: {error}") from None
