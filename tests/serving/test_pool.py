"""The threads and the bounded queue of the service."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vankit.serving.pool import ALONE, FullError, Pool


@contextmanager
def blocked(pool: Pool) -> Iterator[list[Future]]:
    """Every thread of a pool is at work for the length of the block."""
    release = threading.Event()
    futures = pool.submit([lambda _: release.wait(30)] * pool.workers)
    while pool.running < pool.workers:
        time.sleep(0.001)
    try:
        yield futures
    finally:
        release.set()


def test_jobs_run_in_the_order_in_which_they_came() -> None:
    pool, done = Pool(1, 10), []
    with blocked(pool):
        futures = pool.submit([lambda worker, i=i: done.append((i, worker)) for i in range(5)])
        assert pool.waiting == 5 and done == []
    [future.result(10) for future in futures]
    assert done == [(i, 0) for i in range(5)]


def test_who_is_alone_is_told_so() -> None:
    assert Pool(2, 5).submit([lambda worker: worker])[0].result(10) == ALONE
    assert Pool(1, 5).submit([lambda worker: worker])[0].result(10) == 0  # as many cores as were asked for
    pool = Pool(2, 5)
    with blocked(pool):
        pair = pool.submit([lambda worker: worker] * 2)
    assert pair[0].result(10) in (0, 1)


def test_all_threads_work_at_once() -> None:
    barrier = threading.Barrier(3)
    futures = Pool(3, 0).submit([lambda worker: (barrier.wait(10), worker)[1]] * 3)
    assert sorted(future.result(10) for future in futures) == [0, 1, 2]


@given(workers=st.integers(1, 3), queue=st.integers(0, 5), counts=st.lists(st.integers(1, 4), max_size=6))
def test_no_more_wait_than_may(workers: int, queue: int, counts: list[int]) -> None:
    pool, admitted = Pool(workers, queue), 0
    with blocked(pool):
        for count in counts:
            if admitted + count <= queue:
                pool.submit([lambda _: None] * count)
                admitted += count
            else:  # all of a request's pictures, or none
                with pytest.raises(FullError):
                    pool.submit([lambda _: None] * count)
            assert pool.waiting == admitted
    pool.close(10)
    assert pool.waiting == pool.running == 0


def test_when_there_will_be_room_is_estimated() -> None:
    pool = Pool(1, 1)
    for _ in range(50):
        pool.submit([lambda _: time.sleep(0.01)])[0].result(10)
    with blocked(pool):
        pool.submit([lambda _: None])
        with pytest.raises(FullError) as full:
            pool.submit([lambda _: None])
    assert (
        0.01 < full.value.seconds < 2 and not full.value.never
    )  # two jobs of some 10 ms, as the mean of the latest says
    with pytest.raises(FullError) as never:
        pool.submit([lambda _: None] * 3)
    assert never.value.never


def test_what_is_cancelled_leaves_the_queue() -> None:
    pool, done = Pool(1, 2), []
    with blocked(pool):
        first, second = pool.submit([lambda _, i=i: done.append(i) for i in range(2)])
        assert first.cancel()
        assert pool.waiting == 1
        pool.submit([lambda _: done.append(2)])  # in the place of the first
        assert not second.done()
    pool.close(10)
    assert done == [1, 2]
    with pytest.raises(CancelledError):
        first.result(1)


def test_an_error_is_the_futures_and_the_thread_goes_on() -> None:
    pool = Pool(1, 5)

    def fail(_: int) -> None:
        raise SystemExit(3)  # not even this ends the thread

    (future,) = pool.submit([fail])
    assert isinstance(future.exception(10), SystemExit)
    assert pool.submit([lambda _: 7])[0].result(10) == 7


def test_closing_does_what_is_waiting_and_does_not_wait_for_ever() -> None:
    pool, done = Pool(1, 3), []
    pool.submit([lambda _, i=i: done.append(i) for i in range(3)])
    pool.close(10)
    assert done == [0, 1, 2]
    stuck = Pool(1, 0)
    with blocked(stuck):
        start = time.monotonic()
        stuck.close(0.1)
        assert time.monotonic() - start < 5


def test_a_job_that_is_done_holds_no_picture() -> None:
    import gc
    import weakref

    class Picture:
        pass

    picture = Picture()
    gone, pool = weakref.ref(picture), Pool(1, 1)
    pool.submit([lambda _, picture=picture: None])[0].result(10)
    del picture
    pool.submit([lambda _: None])[0].result(10)
    gc.collect()
    assert gone() is None
