"""A process of its own for what is timed."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Run = Callable[[Array], Array]

_WARM_UP = 2  # calls
_PAUSE = 0.05  # seconds, in which the waiting threads of whoever was timed before stop spinning


class Worker:
    """A way to run a network, in a fresh process: allocators and thread pools of different libraries slow each other.

    Args:
        make: see `Contender`.
        cores: that the process may use; all if empty.
    """

    def __init__(self, make: Callable[[], Run], cores: Sequence[int] = ()) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, cores), daemon=True)
        self._process.start()
        theirs.close()

    def outputs(self, images: Array) -> Array | str:
        """Run images, one at a time: logits (B, classes), or why there are none; once."""
        try:
            self._connection.send(images)
            return self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            return f"not available: its process died with exit code {self._process.exitcode}"

    def seconds(self, image: Array, calls: int) -> list[float]:
        """Seconds of each of some calls, after others that warm up; after `outputs`."""
        self._connection.send((image, calls))
        return self._connection.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join(timeout=5)
        self._process.terminate()
        self._process.join()


def _serve(connection: Connection, make: Callable[[], Run], cores: Sequence[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        run = make()
    except Exception as error:  # libraries raise whatever they trip over
        run = partial(_fail, error)
    with suppress(EOFError, ConnectionError):  # the parent has closed the connection, or died
        images = connection.recv()
        try:
            connection.send(np.concatenate([run(images[i : i + 1]) for i in range(len(images))]))
        except Exception as error:
            connection.send(f"not available: {str(error).strip().partition(chr(10))[0] or type(error).__name__}")
            return
        while True:
            connection.send(_seconds(run, *connection.recv()))


def _fail(error: Exception, _: Array) -> Array:
    raise error


def _seconds(run: Run, image: Array, calls: int) -> list[float]:
    time.sleep(_PAUSE)
    seconds = []
    for _ in range(_WARM_UP + calls):
        start = time.perf_counter()
        run(image)
        seconds.append(time.perf_counter() - start)
    return seconds[_WARM_UP:]
