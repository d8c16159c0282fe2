"""The threads of the service, one per core that it may use, and the bounded queue before them."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

Job = Callable[[int], Any]  # given the number of the thread that runs it, from 0, or ALONE
ALONE = -1  # there is nothing else to do, so that a job may use all cores

_LATEST = 0.1  # weight of the latest job in the mean of their times


class FullError(Exception):
    """There is no room for the jobs.

    Attributes:
        seconds: after which there will be, as far as can be told.
        never: whether there never will be, for there are too many.
    """

    def __init__(self, seconds: float, never: bool) -> None:
        super().__init__(f"the queue is full for {seconds:.1f} s")
        self.seconds, self.never = seconds, never


class Pool:
    """Threads that run jobs in the order in which they came.

    Args:
        workers: threads.
        queue: jobs that may wait.
    """

    def __init__(self, workers: int, queue: int) -> None:
        self.workers, self.queue = workers, queue
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Future[Any], Job]] = deque()
        self._running = 0
        self._closing = False
        self._seconds = 0.0  # that a job takes
        # daemons, so that a job that never ends does not keep the process
        self._threads = [threading.Thread(target=self._work, args=(i,), daemon=True) for i in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that no thread has begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that a thread works on."""
        return self._running

    def submit(self, jobs: Sequence[Job]) -> list[Future[Any]]:
        """Have all of some jobs done, or none.

        Returns:
            A future for each; one that is cancelled before a thread has begun it leaves the queue.

        Raises:
            FullError: there is no room for all of them.
        """
        with self._changed:
            ahead, most = len(self._waiting) + self._running, self.queue + self.workers
            if ahead + len(jobs) > most:
                raise FullError(self._seconds * ahead / self.workers, len(jobs) > most)
            futures: list[Future[Any]] = [Future() for _ in jobs]
            self._waiting.extend(zip(futures, jobs, strict=True))
            self._changed.notify(len(jobs))
        for future in futures:
            future.add_done_callback(self._leave)
        return futures

    def close(self, seconds: float) -> None:
        """End the threads once the queue is empty; after so many seconds go on without waiting for them."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _leave(self, future: Future[Any]) -> None:
        if future.cancelled():
            with self._changed:
                self._waiting = deque(job for job in self._waiting if job[0] is not future)

    def _next(self) -> tuple[Future[Any], Job] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return None
            self._running += 1
            return self._waiting.popleft()

    def _work(self, number: int) -> None:
        while (job := self._next()) is not None:
            start = time.perf_counter()
            if job[0].set_running_or_notify_cancel():
                alone = self.workers > 1 and self._running == 1 and not self._waiting
                _run(*job, ALONE if alone else number)
            job = None  # it holds a picture, which may be large
            with self._changed:
                self._running -= 1
                self._seconds += _LATEST * (time.perf_counter() - start - self._seconds)


def _run(future: Future[Any], job: Job, number: int) -> None:
    try:
        result = job(number)
    except BaseException as error:  # for whoever waits for the future
        future.set_exception(error)
    else:
        future.set_result(result)
