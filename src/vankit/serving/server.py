"""The server: an address to listen at, deadlines for those who send too slowly, and an orderly end."""

import asyncio
import math
import re
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

import h11
from starlette.types import ASGIApp
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from vankit.errors import UserError

_LARGEST_HEAD = 2**16  # bytes of a request's line and headers
_MOST_CONNECTIONS = 800  # of the 1,024 files that a process may usually have open
_SLICE = 2**14  # bytes that are read at once
# each chunk of a body takes Python as long, however small it is
_TINY_CHUNK, _MOST_TINY = re.compile(rb"\r\n[0-9A-Fa-f]{1,2}\r\n"), 256  # in a slice
_KEPT = 75  # seconds that a connection may lie idle between two requests
_END = b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_SLOW, _TOO_MANY = b"HTTP/1.1 408 Request Timeout" + _END, b"HTTP/1.1 503 Service Unavailable" + _END
_NOT_HTTP = b"HTTP/1.1 400 Bad Request" + _END


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address, which takes no connection yet.

    Raises:
        ValueError: the address is taken or is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        # named, or asyncio would leave Nagle's algorithm on, which holds back answers for 40 ms
        found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        raise UserError(f"host is {host!r}, which is no address of this machine: {error}") from None
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError as error:
        found.close()
        reason = error.strerror or str(error)
        raise UserError(f"cannot listen at {host} port {port}: {reason}; pass another `port` or `host`") from None
    return found


def address(found: socket.socket) -> str:
    """Where a browser on this machine finds what listens there."""
    host, port = found.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


class _Protocol(H11Protocol):
    """HTTP within bounds of time: for a request's head, for what is left of a body that was refused, and for an answer
    to be read."""

    seconds = 30.0
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > _MOST_CONNECTIONS:
            transport.write(_TOO_MANY)
            transport.close()
        self._watch()

    def data_received(self, data: bytes) -> None:
        for at in range(0, len(data), _SLICE):
            part = data[at : at + _SLICE]
            if self.conn.their_state is h11.SEND_BODY and len(_TINY_CHUNK.findall(part)) > _MOST_TINY:
                self.send_400_response("")
            if self.transport.is_closing():
                break
            super().data_received(part)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._deadline, self._unread):
            if timer is not None:
                timer.cancel()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer has begun already
            self.transport.write(_NOT_HTTP)
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reading()

    def _watch(self) -> None:
        """Look at what the client has yet to do, and by when."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.timeout_keep_alive_task is not None or self.transport.is_closing():
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.seconds, self._give_up)
        if self.transport.is_closing():
            self._await_reading()

    def _give_up(self) -> None:
        if self.conn.our_state is h11.IDLE:
            self.transport.write(_TOO_SLOW)
        self.transport.close()
        self._await_reading()

    def _await_reading(self, before: float = math.inf) -> None:
        """Leave a client that reads nothing of what is left for so long."""
        left = self.transport.get_write_buffer_size()
        if self._unread is not None and before == math.inf:
            return
        self._unread = None
        if left >= before:
            self.transport.abort()
        elif left:
            self._unread = self.loop.call_later(self.seconds, self._await_reading, left)


class _Server(Server):
    """Ends with the status 0 at SIGTERM, and at a second signal at once."""

    def __init__(self, config: Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready, self.interrupted = ready, False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Any:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit, self.should_exit = self.should_exit, True
        self.interrupted |= sig == signal.SIGINT


def make_server(app: ASGIApp, timeout: float, grace: float, ready: Callable[[], None]) -> _Server:
    """What answers clients, once its `run` is called.

    Args:
        app: the application.
        timeout: seconds for a request's head.
        grace: seconds to finish what is under way at the end.
        ready: is called once clients are answered.
    """
    protocol = type("Protocol", (_Protocol,), {"seconds": timeout})
    config = Config(
        app, http=protocol, ws="none", loop="asyncio", lifespan="on", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=_KEPT,
        timeout_graceful_shutdown=cast(int, grace), h11_max_incomplete_event_size=_LARGEST_HEAD,
    )  # fmt: skip
    return _Server(config, ready)


def run(app: ASGIApp, found: socket.socket, timeout: float, grace: float, ready: Callable[[], None]) -> None:
    """Answer until SIGTERM or Ctrl-C; see `make_server`.

    Args:
        found: see `listen`; it is closed.

    Raises:
        KeyboardInterrupt: it was Ctrl-C.
    """
    server = make_server(app, timeout, grace, ready)
    server.run([found])
    if server.interrupted:
        raise KeyboardInterrupt
