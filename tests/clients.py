"""What asks a service, over connections of its own."""

import http.client
import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image


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


def encoded(pixels: np.ndarray, format: str = "PNG") -> bytes:
    """A picture's file."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format)
    return data.getvalue()
