"""What a process cannot take over from another: engines, and threads. Both stay behind at a fork and in a pickle."""

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakSet

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A thing that every process makes for itself, when it first needs it.

    A forked child starts without, and so does whoever unpickles or copies it.

    Args:
        made: what this process has already, or None.
    """

    def __init__(self, made: T | None = None) -> None:
        self._lock, self._made = threading.Lock(), made
        _ALL.add(self)

    def get(self, make: Callable[[], T]) -> T:
        """This process's own, made now if it has none; threads that ask at once get the same."""
        with self._lock:
            if self._made is None:
                avoid_lost_threads()
                self._made = make()
            return self._made

    def __reduce__(self) -> tuple[Any, ...]:
        return PerProcess, ()

    def _forget(self) -> None:
        if self._made is not None:
            _keep(self._made)
        self._lock, self._made = threading.Lock(), None  # another thread may have held the lock as the parent forked


_ALL: WeakSet[PerProcess[Any]] = WeakSet()
_lost = False


def _keep(made: object) -> None:
    """Never free the parent's, not at the end of the process either: an engine would wait for its threads."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))


def avoid_lost_threads() -> None:
    """In a forked child, have PyTorch compute on one thread: it would wait for OpenMP's others, which the parent kept.

    To be called before PyTorch computes anything where that may be in a child; it does nothing elsewhere.
    """
    global _lost
    if _lost:
        sys.modules["torch"].set_num_threads(1)
        _lost = False


def _in_child() -> None:
    global _lost
    _lost = "torch" in sys.modules
    for each in list(_ALL):
        each._forget()


if hasattr(os, "register_at_fork"):  # where there is fork
    os.register_at_fork(after_in_child=_in_child)
