"""What surrounds every request: its id, the token, the headers of all answers, the log and the figures."""

import asyncio
import hmac
import json
import logging
import re
import time
from collections.abc import Collection
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vankit.serving.errors import CLIENT_GONE
from vankit.serving.metrics import Metrics

logger = logging.getLogger(__name__)
access = logging.getLogger("vankit.access")

ABOUT = "vankit.request"  # key of what endpoints note about a request, in its scope

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LONGEST_PATH = 200  # characters in the log
# what a page of this service may load, and that no other page may show it
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """ASGI middleware around the application.

    Args:
        app: that answers.
        token: that clients have to send, or None.
        metrics: to count in.
        models: names that are served.
        open_paths: need no token.
        origins: of other pages that may ask.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str | None,
        metrics: Metrics,
        models: Collection[str],
        open_paths: Collection[str],
        origins: Collection[str],
    ) -> None:
        self._app, self._metrics, self._models = app, metrics, models
        self._open_paths, self._origins = open_paths, origins
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, number = time.perf_counter(), _id_of(scope)
        about = scope[ABOUT] = {"status": 0}

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                about["status"] = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = number
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await (self._refusal(scope) or self._app)(scope, receive, noting)
        except asyncio.CancelledError:  # by the server, at its end
            if not about["status"]:
                await _ENDING(scope, receive, noting)
        except Exception:  # the application has answered with 500 already
            logger.exception("request %s: this is a bug in vankit: please report it with these lines", number)
        finally:
            self._note(scope, about, number, time.perf_counter() - start)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        """What answers in place of the application, if anything."""
        headers = Headers(scope=scope)
        if self._is_foreign(headers):
            return _FOREIGN
        if self._token is None or scope["path"].removeprefix(scope.get("root_path", "")) in self._open_paths:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self._token)
        return None if right and scheme.lower() == "bearer" else _UNAUTHORISED

    def _is_foreign(self, headers: Headers) -> bool:
        """Whether it comes from a page that somebody on this machine happens to look at, as browsers say."""
        allowed = "*" in self._origins or headers.get("origin") in self._origins
        return "origin" in headers and headers.get("sec-fetch-site") == "cross-site" and not allowed

    def _note(self, scope: Scope, about: dict[str, Any], number: str, seconds: float) -> None:
        route, model = scope.get("route"), scope.get("path_params", {}).get("model", "")
        endpoint = "" if route is None else getattr(route, "path", "")
        status = about["status"] or CLIENT_GONE
        self._metrics.answered(endpoint, model if model in self._models else "", status, seconds)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": number,
            "client": (scope.get("client") or ("",))[0],
            "method": scope["method"],
            "path": scope["path"][:_LONGEST_PATH],
            "status": status,
            "ms": round(1000 * seconds, 1),
            **{name: value for name, value in about.items() if name != "status"},
        }
        access.info("%s", json.dumps(line))


def _id_of(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _ID.fullmatch(given) else uuid4().hex


_ENDING = JSONResponse({"error": "the service ends: try again"}, HTTPStatus.SERVICE_UNAVAILABLE, {"retry-after": "1"})
_FOREIGN = JSONResponse(
    {"error": "pages of other addresses may not ask: start the service with --allow-origin"}, HTTPStatus.FORBIDDEN
)
_UNAUTHORISED = JSONResponse(
    {"error": "a token is needed: send the header 'Authorization: Bearer TOKEN'"},
    HTTPStatus.UNAUTHORIZED,
    {"www-authenticate": "Bearer"},
)
