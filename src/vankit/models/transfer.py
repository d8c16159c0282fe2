"""One file from one host: continued where it broke off, and within bounds that the host cannot lift.

A host decides neither how much is stored, nor how long it takes, nor where the rest of it comes from.
"""

import functools
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import get_session
from huggingface_hub.utils import WeakFileLock, tqdm

from vankit.files import sha256_of

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT = 5.0  # seconds until a host must have answered a request for a file's metadata,
_DEADLINE = 8.0  # and for all of them: a host behind a silent firewall costs a timeout for each of its addresses
_READ_TIMEOUT = 10.0  # seconds without a byte
_ANSWER_DEADLINE = 60.0  # seconds until a host must have begun to send a file
_SLOWEST = 1000.0  # bytes per second that must come, on average over
_WINDOW = 30.0  # seconds
_USUAL = 20_000.0  # bytes per second that a whole file must come with, but for
_SPARE = 3600.0  # seconds
_LARGEST = 16 * 2**30  # bytes: twenty times VAN-B6
_LARGEST_TEXT = 16 * 2**20
_TEXT = (".json", ".md", ".txt", ".yaml", ".yml")
_REDIRECTS = 10
_ATTEMPTS = 6
_PAUSE = 1.0  # seconds after an attempt that brought no byte
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")

Answer = TypeVar("Answer")


class Refused(OSError):
    """What a host answers, and would answer again, cannot be taken."""


def shown(url: str) -> str:
    """A URL for a message, without the name and password that may be in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def size_of(url: str, headers: dict[str, str]) -> int | None:
    """Bytes of a file; None where its host does not say, or answers with an error, which the download then meets."""
    with _opened("HEAD", url, headers, REQUEST_TIMEOUT) as response:
        length = response.headers.get("Content-Length")
        return int(length) if response.is_success and length else None


def soon(ask: Callable[[], Answer], deadline: float | None = None) -> Answer:
    """An answer, or an error soon: `hf_hub_download` takes 23 s to find that it is offline.

    Args:
        deadline: seconds; None is `_DEADLINE`.
    """
    deadline = deadline or _DEADLINE
    answers: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()

    def wait() -> None:
        try:
            answers.put(ask())
        except Exception as error:  # raised in the caller's thread
            answers.put(error)

    threading.Thread(target=wait, daemon=True).start()
    try:
        answer = answers.get(timeout=deadline)
    except queue.Empty:
        raise TimeoutError(f"no answer within {deadline:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


@contextmanager
def _opened(
    method: str, url: str, headers: dict[str, str], timeout: float, deadline: float | None = None
) -> Iterator[Any]:
    """A host's answer, whose body is still to be read, after its redirects.

    The HTTP client would read the bodies of redirects too, however long they are. It sends the token to no other host.
    """
    session = get_session()
    request = session.build_request(method, url, headers=headers | {"Accept-Encoding": "identity"}, timeout=timeout)
    for _ in range(_REDIRECTS):
        send = functools.partial(session.send, request, stream=True, follow_redirects=False)
        with closing(soon(send, deadline)) as response:
            if not response.has_redirect_location:
                yield response
                return
            request = _redirected(response)
    raise Refused(f"more than {_REDIRECTS} redirects")


def _redirected(response: Any) -> Any:
    """The next request, if it is no step down."""
    url, request = response.request.url, response.next_request
    if request is None or request.url.scheme not in ("http", "https"):
        raise Refused(f"{url.host} redirects to {response.headers['Location'][:40]!r}, expected http or https")
    if (url.scheme, request.url.scheme) == ("https", "http"):
        raise Refused(f"{url.host} redirects from https to http, where anyone on the way could change the file")
    return request


def download(url: str, path: Path, lock: Path, sha256: str, size: int | None, headers: dict[str, str]) -> None:
    """Put a file's content at `path`, if its sha256 starts as stated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.vankit.incomplete")
    with WeakFileLock(lock):
        if path.exists() and sha256_of(path).startswith(sha256):
            return
        for _ in range(2):  # what a broken transfer left may be bad: once more from the start
            _transfer(url, partial, size, headers)
            found = sha256_of(partial)
            if found.startswith(sha256):
                partial.replace(path)
                return
            partial.unlink()
    raise OSError(f"its publisher states sha256 {sha256}, the content received twice has {found}")


def _transfer(url: str, partial: Path, size: int | None, headers: dict[str, str]) -> None:
    """Append to `partial` what it lacks, and go on after a broken connection.

    huggingface_hub's own transfer deletes its partial file when a call fails and loses up to 10 MB at each break.
    """
    for attempt in range(_ATTEMPTS):
        with partial.open("ab") as file:
            if size is None or file.tell() > size:  # without a size nobody can say what is lacking
                file.truncate(0)
            start = file.seek(0, os.SEEK_END)
            try:
                return _append(url, file, start, size, headers)
            except Refused:  # an answer, and it will not change
                raise
            except Exception as error:
                if attempt == _ATTEMPTS - 1:
                    raise
                logger.warning(
                    "the download of %s broke off at byte %d (%s): continuing", shown(url), file.tell(), error
                )
                if file.tell() <= start:
                    time.sleep(_PAUSE)


def _append(url: str, file: BinaryIO, start: int, size: int | None, headers: dict[str, str]) -> None:
    if start == size:
        return
    if start:
        headers = headers | {"Range": f"bytes={start}-"}
    limit = _limit(url, size)
    end = time.monotonic() + _SPARE + limit / _USUAL
    with _opened("GET", url, headers, _READ_TIMEOUT, _ANSWER_DEADLINE) as response:
        start = _check_answer(response, file, start, size)
        with tqdm(total=size, initial=start, unit="B", unit_scale=True, desc=url.rpartition("/")[2]) as bar:
            for chunk in _in_time(response.iter_raw()):
                if file.tell() + len(chunk) > limit:
                    file.truncate(0)
                    raise Refused(f"it sends more than {limit:,} bytes, which is {_limit_of(size)}")
                if time.monotonic() > end:
                    raise Refused(f"after {_SPARE + limit / _USUAL:,.0f} s only {file.tell():,} bytes have come")
                file.write(chunk)
                bar.update(len(chunk))
    if size is not None and file.tell() != size:
        raise OSError(f"received {file.tell()} of {size} bytes")


def _check_answer(response: Any, file: BinaryIO, start: int, size: int | None) -> int:
    """Where in the file the content goes that comes now."""
    if response.status_code not in (200, 206):
        raise Refused(f"{response.url.host} answered {response.status_code} {response.reason_phrase}".rstrip())
    if (coding := response.headers.get("Content-Encoding") or "identity").lower() != "identity":
        raise Refused(f"{response.url.host} sends it encoded as {coding[:40]!r}, although it was asked not to")
    if response.status_code == 200:  # a server that knows no ranges sends all of it
        file.truncate(0)
        return 0
    found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if not found or int(found[1]) != start or (size is not None and found[2] not in ("*", str(size))):
        file.truncate(0)
        raise OSError("the host answered with another part of the file than it was asked for")
    return start


def _limit(url: str, size: int | None) -> int:
    """Bytes at which a file is not taken further."""
    most = _LARGEST_TEXT if urlsplit(url).path.endswith(_TEXT) else _LARGEST
    if size is not None and size > most:
        raise Refused(f"it has {size:,} bytes, and vankit takes at most {most:,} of such a file")
    return most if size is None else size


def _limit_of(size: int | None) -> str:
    return "the most that vankit takes of such a file" if size is None else "what it was stated to have"


def _in_time(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """What a host sends, as long as it is not much slower than any line: a byte now and then would never end."""
    since, received = time.monotonic(), 0
    # a timeout for each read is not enough: what frames the content may trickle too
    while (chunk := soon(functools.partial(next, chunks, None), _WINDOW)) is not None:
        yield chunk
        received += len(chunk)
        if (seconds := time.monotonic() - since) > _WINDOW:
            if received < _SLOWEST * seconds:
                raise OSError(f"only {received} bytes came in {seconds:.0f} s")
            since, received = time.monotonic(), 0
