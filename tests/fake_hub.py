"""A Hugging Face hub, and a plain file server, on loopback that breaks off, lies and forgets."""

import hashlib
import http.server
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPO, FILE = "Visual-Attention-Network/VAN-Tiny-original", "van_tiny_754.pth.tar"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Files as the Hugging Face hub and a plain server serve them, and a log of what was asked.

    Attributes:
        files: content by path, '<repo>/<file>'; its URL is that path, or '<repo>/resolve/main/<file>'.
        stated: sha256 that the hub states where it is not the content's.
        cuts: bytes after which the next GETs break off, one entry a GET.
        reset: break off with a reset connection, once a partial file in this cache holds something.
        ranges: honour the Range header.
        status: answer to every request for a file there is.
        redirect: send the content from another place, as the hub does.
        requests: (method, Range header or '') of every request.
        tokens: Authorization headers that came with requests.
        sent: content bytes sent.
        sizes: bytes that the hub states where they are not the content's.
        commit: of the repository.
        encoding: what the content is said to be encoded as.
        endless: send the content, and then more of it, until the other side ends it; at most 64 MB.
        trickle: seconds between single bytes of the content.
        location: where a redirect leads, if not to the content.
        content_range: what the answer says it is of the content, if not what was asked for.
    """

    endpoint: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    stated: dict[str, str] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    reset: Path | None = None
    ranges: bool = True
    status: int = 200
    redirect: bool = False
    requests: list[tuple[str, str]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    sent: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    commit: str = COMMIT
    encoding: str = ""
    endless: bool = False
    trickle: float = 0
    location: str = ""
    content_range: str = ""

    def add(self, content: bytes, name: str = f"{REPO}/{FILE}") -> bytes:
        self.files[name] = content
        return content

    def gets(self) -> list[str]:
        return [range_ for method, range_ in self.requests if method == "GET"]


def _handler(state: FakeHub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            wanted = self.headers.get("Range", "")
            state.requests.append((self.command, wanted))
            state.tokens += self.headers.get_all("Authorization", [])
            name = self.path.removeprefix("/cdn").lstrip("/").replace("/resolve/main/", "/")
            content = state.files.get(name)
            if content is None or state.status != 200:
                self.send_response(404 if content is None else state.status)
                self.send_header("X-Error-Code", "EntryNotFound" if content is None else "")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges else 0
            sha256 = state.stated.get(name) or hashlib.sha256(content).hexdigest()
            away = state.redirect and not self.path.startswith("/cdn")
            self.send_response(302 if away else 206 if start else 200)
            if away:
                there = f"{state.endpoint.replace('127.0.0.1', 'localhost')}/cdn{self.path}"
                self.send_header("Location", state.location or there)
                content, start = (content if state.endless else b""), 0  # the body is elsewhere
            self.send_header("ETag", f'"{sha256}"')
            self.send_header("X-Linked-Etag", f'"{sha256}"')
            self.send_header("X-Linked-Size", str(state.sizes.get(name, len(state.files[name]))))
            self.send_header("X-Repo-Commit", state.commit)
            if state.encoding:
                self.send_header("Content-Encoding", state.encoding)
            if state.endless:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(len(content) - start))
            if start:
                right = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", state.content_range or right)
            self.end_headers()
            if body and state.endless:
                self.send_for_ever(content)
            elif body and not away:
                self.send(content[start:])

        def send_for_ever(self, content: bytes) -> None:
            self.close_connection = True
            with suppress(OSError):  # the other side has had enough
                while state.sent < 64_000_000:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
                    state.sent += len(content)

        def send(self, content: bytes) -> None:
            if state.cuts:
                content = content[: state.cuts.pop(0)]
                self.close_connection = True
            if state.trickle:
                self.send_slowly(content)
            else:
                with suppress(ConnectionError):  # the other side wants none of it
                    self.wfile.write(content)
                state.sent += len(content)
            if self.close_connection and state.reset:
                # a reset discards what the peer has not read yet
                while not any(path.stat().st_size for path in state.reset.rglob("*.incomplete")):
                    time.sleep(0.01)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

        def send_slowly(self, content: bytes) -> None:
            self.close_connection = True
            with suppress(OSError):
                for byte in content:
                    self.wfile.write(bytes([byte]))
                    state.sent += 1
                    time.sleep(state.trickle)

    return Handler


@contextmanager
def serve() -> Iterator[FakeHub]:
    """A running hub."""
    state = FakeHub()
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.endpoint = f"http://127.0.0.1:{running.server_port}"
    yield state
    running.shutdown()
    running.server_close()
    thread.join()
