"""Services in a thread of the tests' process, asked over real connections."""

import http.client
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")


@dataclass
class Answer:
    """Of a service."""

    status: int
    headers: Any
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


@dataclass
class Client:
    """Asks a service, each time over a new connection."""

    port: int
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, {**self.headers, **named})
            found = connection.getresponse()
            return Answer(found.status, found.headers, found.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any = b"", **headers: str) -> Answer:
        return self.ask("POST", path, body, **headers)

    def post_json(self, path: str, content: Any) -> Answer:
        return self.post(path, json.dumps(content), content_type="application/json")


Start = Callable[..., AbstractContextManager[Client]]


@pytest.fixture(scope="session")
def start() -> Start:
    """Factory: a service of models with options of `vankit.serving.app.application`, for the length of a block."""
    from vankit.serving.app import application
    from vankit.serving.server import listen, make_server

    @contextmanager
    def running(models: list[str], timeout: float = 30.0, grace: float = 5.0, **options: Any) -> Iterator[Client]:
        ready, found = threading.Event(), listen("127.0.0.1", 0)
        server = make_server(application(models, **options), timeout, grace, ready.set)
        thread = threading.Thread(target=server.run, args=([found],))
        thread.start()
        try:
            assert ready.wait(30)
            yield Client(found.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()

    return running


@pytest.fixture(scope="session")
def service(start: Start) -> Iterator[Client]:
    """A service of van_b0.cifar10, called animals."""
    with ExitStack() as stack:
        yield stack.enter_context(start(["animals=van_b0.cifar10"], workers=2))


@pytest.fixture(scope="session")
def photograph() -> bytes:
    """A PNG of 80 x 60 pixels of noise."""
    return encoded(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))


def encoded(pixels: np.ndarray, format: str = "PNG") -> bytes:
    """A picture's file."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format)
    return data.getvalue()
