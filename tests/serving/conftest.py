"""Services in a thread of the tests' process, asked over real connections."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
from clients import Client, encoded

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")


@pytest.fixture(scope="session")
def start() -> Callable[..., AbstractContextManager[Client]]:
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
def service(start: Callable[..., AbstractContextManager[Client]]) -> Iterator[Client]:
    """A service of van_b0.cifar10, called animals."""
    with ExitStack() as stack:
        yield stack.enter_context(start(["animals=van_b0.cifar10"], workers=2))


@pytest.fixture(scope="session")
def photograph() -> bytes:
    """A PNG of 80 x 60 pixels of noise."""
    return encoded(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
