"""Fixtures of the tests of models."""

from collections.abc import Iterator

import pytest
from fake_hub import FakeHub, serve

from vankit.models import transfer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A running fake hub; waits between retries are skipped."""
    monkeypatch.setattr(transfer, "_PAUSE", 0)
    with serve() as state:
        yield state
