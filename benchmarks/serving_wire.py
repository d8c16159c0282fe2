"""Requests to `vankit serve` as bytes over connections of our own, so that they can be wrong in every way; no client
library would send them. All of it goes to 127.0.0.1; see serving_traffic.py.
"""

import io
import json
import select
import socket
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from PIL import Image

NO_ANSWER = 0  # in place of a status, where the connection was closed without one
_REMEMBERED = 1000  # bytes of what was sent, to be reported


class Wrong(Exception):
    """The service did what it should not."""


@dataclass(frozen=True)
class Known:
    """A photograph's file, and the index and score of its best class."""

    content: bytes
    index: int
    score: float


@dataclass(frozen=True)
class Target:
    """Who is asked.

    Attributes:
        port: at 127.0.0.1.
        model: name of a classifier.
        known: photographs.
        largest: bytes of a body that are taken.
        timeout: seconds in which a request has to arrive.
        queue: pictures that may wait.
        side: of the network's input.
        token: that has to be sent.
    """

    port: int
    model: str
    known: Sequence[Known]
    largest: int
    timeout: float
    queue: int
    token: str
    side: int = 224

    @property
    def patience(self) -> float:
        """Seconds after which a connection hangs that is neither answered nor closed."""
        return 3 * self.timeout + 20

    @property
    def predict(self) -> str:
        return f"/predict/{self.model}"

    @property
    def infer(self) -> str:
        return f"/v2/models/{self.model}/infer"


@dataclass(frozen=True)
class Answer:
    """What came over the wire; no answer has the status 0. `asked` is how the request began."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    asked: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


# connections


class Wire:
    """A connection of which every byte is in our hands."""

    def __init__(self, target: Target) -> None:
        self._socket = socket.create_connection(("127.0.0.1", target.port), target.patience)
        self._sent, self._read = bytearray(), bytearray()

    def send(self, data: bytes) -> None:
        """Send, as far as the other side listens: it may have refused what is sent, and closed."""
        self._sent += data[: _REMEMBERED - len(self._sent)]
        with suppress(ConnectionError):
            self._socket.sendall(data)

    def answer(self) -> Answer:
        """The next one.

        Raises:
            Wrong: none comes, and the connection is not closed either; or it is not HTTP.
        """
        while (end := self._read.find(b"\r\n\r\n")) < 0:
            if not self._more():
                return Answer(NO_ANSWER, asked=bytes(self._sent))
        lines = bytes(self._read[:end]).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        status = int(lines[0].split()[1])
        del self._read[: end + 4]
        if status == 100:
            return self.answer()
        length = int(headers.get("content-length", -1))
        while length < 0 or len(self._read) < length:
            if self._more():
                continue
            if length < 0 and headers.get("connection") == "close":  # the body ends with the connection
                length = len(self._read)
                break
            raise Wrong(f"{lines[0]} ends after {len(self._read)} of {length} bytes")
        body = bytes(self._read[:length])
        del self._read[:length]
        return Answer(status, headers, body, bytes(self._sent))

    def _more(self) -> bool:
        try:
            found = self._socket.recv(2**16)
        except TimeoutError:
            raise Wrong("a connection hangs: there is no answer, and it is not closed") from None
        except ConnectionError:
            return False
        self._read += found
        return bool(found)

    def answered(self, seconds: float) -> bool:
        """Whether something comes within so many seconds, be it the end."""
        return bool(self._read) or bool(select.select([self._socket], [], [], seconds)[0])

    def half_close(self) -> None:
        """Say that no more will be sent."""
        with suppress(OSError):  # it is closed already
            self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close without a goodbye: the other side gets RST."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> None:
        self._socket.close()


@contextmanager
def connected(target: Target) -> Iterator[Wire]:
    wire = Wire(target)
    try:
        yield wire
    finally:
        wire.close()


def request(
    target: Target, path: str, body: bytes = b"", kind: str = "image/jpeg", method: str = "POST", **headers: str
) -> bytes:
    """As it goes over the wire."""
    named = {"host": "127.0.0.1", "authorization": f"Bearer {target.token}", "content-type": kind}
    named |= {"content-length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


def exchange(target: Target, data: bytes) -> list[Answer]:
    """The answer to one request."""
    with connected(target) as wire:
        wire.send(data)
        return [wire.answer()]


def form(*files: bytes) -> tuple[bytes, str]:
    """A form with pictures, and its content type."""
    head = b'--part\r\nContent-Disposition: form-data; name="file"; filename="%d.jpg"\r\n\r\n'
    parts = b"".join(head % i + content + b"\r\n" for i, content in enumerate(files))
    return parts + b"--part--\r\n", "multipart/form-data; boundary=part"


def as_json(**content: Any) -> bytes:
    return json.dumps(content).encode()


# files


def png(width: int, height: int, pixels: bytes, colour: int = 2, bits: int = 8) -> bytes:
    """A PNG of any head and any compressed pixels.

    Args:
        pixels: rows with their filter bytes, compressed.
        colour: 0 for grey, 2 for RGB.
        bits: per channel.
    """
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@cache
def blank_rows(length: int, count: int) -> bytes:
    """So many rows of zeros, compressed, of so many bytes with the filter's."""
    deflate, row = zlib.compressobj(9), bytes(length)
    return b"".join([*(deflate.compress(row) for _ in range(count)), deflate.flush()])


@cache
def bombs() -> list[bytes]:
    """Small files of 900 million pixels."""
    side = 30_000
    rgb = png(side, side, blank_rows(3 * 1000 + 1, 100))  # its first rows alone
    grey = png(side, side, blank_rows((side + 7) // 8 + 1, side), colour=0, bits=1)  # all of them, 110 kB
    gif = b"GIF89a" + struct.pack("<HH", side, side) + b"\x80\0\0\0\0\0\xff\xff\xff" + b","
    gif += struct.pack("<HHHH", 0, 0, side, side) + b"\0\x02\x02\x4c\x01\0;"
    bmp = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(100)
    return [rgb, grey, gif, bmp]


@cache
def large_picture() -> bytes:
    """A PNG that is allowed, and takes much memory: 36 million pixels."""
    side = 6000
    return png(side, side, blank_rows(3 * side + 1, side))


@cache
def small_picture() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (40, 30), (90, 120, 30)).save(data, "PNG")
    return data.getvalue()
