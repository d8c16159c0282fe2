"""One measure for all threads of a process, such as of memory: who would exceed it waits."""

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """What threads may use together.

    They get their shares in the order in which they ask, so that no large one waits for ever. One that has a share gets
    a further one at once: it could only wait for itself. A process that is forked off has a budget of its own.
    """

    def __init__(self) -> None:
        self._start()
        if hasattr(os, "register_at_fork"):  # where there is fork
            os.register_at_fork(after_in_child=self._start)

    def _start(self) -> None:
        self._changed = threading.Condition()
        self._used = 0
        self._waiting: deque[object] = deque()
        self._mine = threading.local()

    @contextmanager
    def share(self, amount: int, limit: int) -> Iterator[None]:
        """Wait until there is room for an amount, and have it for the length of the block.

        Args:
            amount: at most the limit.
            limit: of all shares together.
        """
        nested = getattr(self._mine, "held", 0)
        with self._changed:
            self._await_turn(max(0, limit - amount), bool(nested))
            self._used += amount
        self._mine.held = nested + 1
        try:
            yield
        finally:
            self._mine.held = nested
            with self._changed:
                self._used -= amount
                self._changed.notify_all()

    def _await_turn(self, room: int, at_once: bool) -> None:
        """Return once no one else is first, and no more than `room` is in use."""
        if at_once:
            return
        place = object()
        self._waiting.append(place)
        try:
            self._changed.wait_for(lambda: self._waiting[0] is place and self._used <= room)
        finally:
            self._waiting.remove(place)
            self._changed.notify_all()
