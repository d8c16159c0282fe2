"""A client that keeps a server busy: so many connections, each of which asks again as soon as it is answered.

    python benchmarks/serving_client.py PORT FOLDER CONNECTIONS SECONDS

FOLDER has requests as they go over the wire, a file each, which are sent in turn. Prints JSON: requests per second, the
median and 99th percentile of the times to an answer in ms, how many answers had which status, and the share of a core
that this took. It imports little and parses no more of an answer than its status and length, for it shares the cores
with the server.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path

_WARM = 0.1  # share of the time in which nothing is counted yet


class Load:
    """Requests to be sent, and what came of them.

    Args:
        requests: as they go over the wire.
        seconds: for how long they are sent.
    """

    def __init__(self, requests, seconds):
        self.requests, self.sent, self.seconds = requests, 0, seconds
        self.times, self.statuses = [], Counter()
        self.begin = time.perf_counter() + seconds * _WARM
        self.end = self.begin + seconds

    def take(self):
        self.sent += 1
        return self.requests[self.sent % len(self.requests)]

    def note(self, status, start):
        now = time.perf_counter()
        if self.begin <= now < self.end:
            self.statuses[status] += 1
            if status == "200":
                self.times.append(1000 * (now - start))

    def report(self):
        times = sorted(self.times)
        at = lambda share: times[min(len(times) - 1, int(share * len(times)))] if times else None  # noqa: E731
        return {
            "requests_per_s": len(times) / self.seconds,
            "p50_ms": at(0.5),
            "p99_ms": at(0.99),
            "statuses": dict(self.statuses),
        }


class Connection(asyncio.Protocol):
    """Asks, and asks again."""

    def __init__(self, load):
        self.load, self.gone = load, asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.ask()

    def ask(self):
        self.answer, self.length = bytearray(), None
        self.start = time.perf_counter()
        self.transport.write(self.load.take())

    def data_received(self, data):
        self.answer += data
        if self.length is None and (head := self.answer.find(b"\r\n\r\n")) >= 0:
            _, _, rest = bytes(self.answer[:head]).lower().partition(b"\r\ncontent-length:")
            self.length = head + 4 + int(rest.partition(b"\r\n")[0])
        if self.length is not None and len(self.answer) >= self.length:
            self.load.note(self.answer[9:12].decode(), self.start)
            self.ask()

    def connection_lost(self, error):
        self.load.note("closed", self.start)
        self.gone.set_result(None)


async def keep_asking(load, port):
    """One connection at a time until the time is over."""
    loop = asyncio.get_running_loop()
    while (left := load.end - time.perf_counter()) > 0:
        try:
            transport, protocol = await loop.create_connection(lambda: Connection(load), "127.0.0.1", port)
        except OSError:
            load.note("refused", 0)
            await asyncio.sleep(0.1)
            continue
        await asyncio.wait((protocol.gone,), timeout=left)
        transport.abort()


async def main(port, folder, connections, seconds):
    requests = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    load = Load(requests, float(seconds))
    start = time.process_time()
    await asyncio.gather(*(keep_asking(load, int(port)) for _ in range(int(connections))))
    cpu = (time.process_time() - start) / (load.seconds * (1 + _WARM))
    print(json.dumps({**load.report(), "client_cpu": cpu}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
