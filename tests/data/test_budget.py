"""Threads share a budget: never more than the limit, in order, and no one waits for itself."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vankit.data.budget import Budget


def test_threads_together_stay_within_the_limit() -> None:
    budget, lock = Budget(), threading.Lock()
    used = most = 0

    def work(amount: int) -> None:
        nonlocal used, most
        with budget.share(amount, 100):
            with lock:
                used += amount
                most = max(most, used)
            time.sleep(0.001)
            with lock:
                used -= amount

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [30, 60, 5, 100, 45, 10] * 10))
    assert 60 < most <= 100 and used == 0


def test_a_large_share_is_not_passed_by_small_ones() -> None:
    budget, order = Budget(), []
    first, waits = threading.Event(), threading.Event()

    def work(name: str, amount: int) -> None:
        with budget.share(amount, 10):
            order.append(name)
            if name == "first":
                first.set()
                waits.wait(10)

    threads = [threading.Thread(target=work, args=(name, amount)) for name, amount in
               (("first", 4), ("large", 10), ("small", 1))]  # fmt: skip
    for thread in threads:
        thread.start()
        first.wait(10)
        time.sleep(0.05)
    assert order == ["first"]
    waits.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "large", "small"]


def test_a_thread_does_not_wait_for_itself_and_an_error_gives_its_share_back() -> None:
    budget = Budget()
    with pytest.raises(ZeroDivisionError), budget.share(7, 10), budget.share(7, 10):
        raise ZeroDivisionError
    done = threading.Thread(target=lambda: budget.share(10, 10).__enter__(), daemon=True)
    done.start()
    done.join(10)
    assert not done.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_has_its_own() -> None:
    budget, forked = Budget(), threading.Event()

    def hold() -> None:
        with budget.share(10, 10):
            forked.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    time.sleep(0.05)
    if not (child := os.fork()):
        with budget.share(10, 10):
            os._exit(0)
    for _ in range(100):
        if (ended := os.waitpid(child, os.WNOHANG))[0]:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
    forked.set()
    thread.join()
    assert ended == (child, 0)
