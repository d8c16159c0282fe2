"""A network as an HTTP service: for browsers, for programs, and for clients of the Open Inference Protocol."""

import ctypes
import logging
import math
import re
import sys
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from numbers import Integral, Real

from vankit.data.images import MAX_PIXELS
from vankit.errors import MissingPackageError, UserError


def serve(
    models: str | Iterable[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    workers: int | None = None,
    queue: int = 64,
    max_body: int = 20_000_000,
    timeout: float = 30.0,
    grace: float = 10.0,
    allow_origins: Collection[str] = (),
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
    ready: Callable[[str, list[str]], None] | None = None,
) -> None:
    """Serve networks over HTTP until SIGTERM or Ctrl-C: see docs/serving.md. Exported folders are run without PyTorch.

    Args:
        models: each a model's name, a checkpoint or an exported folder, or NAME=MODEL with the name that clients use.
        host: address to listen at; 0.0.0.0 is for all who can reach this machine.
        port: 0 takes a free one.
        token: that clients have to send as `Authorization: Bearer TOKEN`; None is no token. The page itself, its
            manual and /v2/health need none.
        workers: pictures that are worked on at the same time; None is one per core.
        queue: pictures that may wait beyond these; more are refused with 429.
        max_body: bytes of a request, beyond which it is refused with 413.
        timeout: seconds in which a request has to arrive (else 408) and to be answered (else 503).
        grace: seconds to finish at the end what was begun.
        allow_origins: addresses of other pages, such as https://example.org, whose scripts may ask; * is any.
        engine, precision, device: of all networks, see `vankit.Predictor`.
        max_pixels: of the largest picture that is decoded, and of all that are at the same time.
        ready: is called with the address and the names of the networks once clients are answered.

    Raises:
        FileNotFoundError, ValueError, vankit.DownloadError: a network cannot be opened, an option is out of range, or
            the address is taken.
        ImportError: the packages of the extra serve are missing.
    """
    check_limits(
        workers=workers, queue=queue, max_body=max_body, timeout=timeout, grace=grace, token=token,
        allow_origins=allow_origins, port=port,
    )  # fmt: skip
    try:
        from vankit.serving import server
        from vankit.serving.app import Limits, application
        from vankit.serving.models import named_sources
    except ImportError as error:
        raise MissingPackageError(f'serving needs {error.name}: pip install "vankit[serve]"') from None
    given = [models] if isinstance(models, str) else list(models)
    names = list(named_sources(given))
    with server.listen(host, port) as found:  # before networks are opened, which may take long
        where = server.address(found)
        app = application(
            given, token=token, workers=workers, limits=Limits(queue, max_body, timeout), allow_origins=allow_origins,
            engine=engine, precision=precision, device=device, max_pixels=max_pixels,
        )  # fmt: skip
        _set_up_logs()
        _give_memory_back()
        server.run(app, found, timeout, grace, lambda: None if ready is None else ready(where, names))


def check_limits(
    *,
    workers: int | None,
    queue: int,
    max_body: int,
    timeout: float,
    grace: float,
    token: str | None,
    allow_origins: Collection[str],
    port: int = 0,
) -> None:
    """Refuse, before anything is opened, what no service could be given; the options are those of `serve`.

    Raises:
        ValueError: one is out of range.
    """
    counts = {"workers": (workers, 1), "queue": (queue, 0), "max_body": (max_body, 1), "port": (port, 0)}
    for name, (count, low) in counts.items():
        if count is not None and (not isinstance(count, Integral) or count < low):
            raise UserError(f"{name} is {count!r}, expected a whole number, {low} or more")
    for name, seconds, least in (("timeout", timeout, 0.1), ("grace", grace, 0.0)):
        if not isinstance(seconds, Real) or not least <= float(seconds) < math.inf:
            raise UserError(f"{name} is {seconds!r}, expected {least:g} seconds or more")
    if port > 65535:
        raise UserError(f"port is {port}, expected 0 to 65535")
    if token is not None and not re.fullmatch("[!-~]+", str(token)):
        raise UserError("token has other characters than a header can hold: expected ASCII without spaces")
    for origin in allow_origins:
        if not re.fullmatch(r"https?://[^/\s]+|\*", origin):
            raise UserError(f"allow_origin is {origin!r}, expected an address without a path, such as https://a.org")


def _set_up_logs() -> None:
    """A line of JSON per request, to the error stream; what libraries say of a client's mistakes is in it already."""
    for name, level in (("uvicorn.error", logging.ERROR), ("python_multipart", logging.CRITICAL)):
        logging.getLogger(name).setLevel(level)
    log = logging.getLogger("vankit.access")
    if not log.handlers:
        log.addHandler(logging.StreamHandler(sys.stderr))
        log.propagate = False
    log.setLevel(logging.INFO)


_MMAP_THRESHOLD, _LARGE = -3, 2**20  # mallopt's parameter, and bytes


def _give_memory_back() -> None:
    """Have glibc give large blocks back to the system once they are freed. Else it learns to keep them from the first
    large picture on, of each thread, and a service stays several times as large as it needs to be."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)
