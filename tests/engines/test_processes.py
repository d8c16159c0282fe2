"""What every process makes for itself: in threads, in a forked child, from a pickle, in a copy."""

import copy
import os
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from vankit.engines.processes import PerProcess

InAChild = Callable[[Callable[[], Any]], Any]

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def test_threads_get_the_same() -> None:
    made: list[object] = []
    shared: PerProcess[object] = PerProcess()

    def make() -> object:
        made.append(object())
        time.sleep(0.05)
        return made[-1]

    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(shared.get(make))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and set(found) == set(made)


def test_what_fails_is_made_at_the_next_call() -> None:
    shared: PerProcess[int] = PerProcess()
    with pytest.raises(ZeroDivisionError):
        shared.get(lambda: 1 // 0)
    assert shared.get(lambda: 3) == 3


def test_copies_start_without() -> None:
    shared = PerProcess(threading.Lock())  # which cannot be pickled either
    for other in (pickle.loads(pickle.dumps(shared)), copy.deepcopy(shared), copy.copy(shared)):
        assert other.get(lambda: "own") == "own"
    assert shared.get(lambda: pytest.fail("made again"))


@forks
def test_a_child_starts_without_even_as_another_thread_makes_it(in_a_child: InAChild) -> None:
    shared: PerProcess[int] = PerProcess()
    started, end = threading.Event(), threading.Event()

    def make() -> int:
        started.set()
        end.wait()
        return os.getpid()

    thread = threading.Thread(target=shared.get, args=(make,))
    thread.start()
    started.wait()
    try:
        own, pid = in_a_child(lambda: (shared.get(os.getpid), os.getpid()))
    finally:
        end.set()
        thread.join()
    assert own == pid != os.getpid() == shared.get(lambda: pytest.fail("made again"))


class Joining:
    """As an engine: at its end it waits for its threads, which a child does not have."""

    def __del__(self) -> None:
        if os.getpid() != self.pid:
            time.sleep(1000)

    def __init__(self) -> None:
        self.pid = os.getpid()


@forks
def test_a_child_never_ends_what_was_its_parents(in_a_child: InAChild) -> None:
    shared: PerProcess[Any] = PerProcess(Joining())
    assert in_a_child(lambda: shared.get(lambda: "own")) == "own"
