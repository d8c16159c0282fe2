"""A server in a process of its own, and what the system says of that process; for benchmarks/serving.py, with Linux."""

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

_PATIENCE = 120  # seconds to the first answer, and to the end


def free_port() -> int:
    """One that nothing listens at now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class ServerProcess:
    """A server from its start to its end, as a context.

    Args:
        command: that starts it.
        port: that the command has it listen at, on 127.0.0.1.
        folder: to keep what it prints, as NAME.out and NAME.err.
        name: of it.
    """

    def __init__(self, command: Sequence[str], port: int, folder: Path, name: str) -> None:
        self.command, self.port = list(command), port
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"

    def __enter__(self) -> "ServerProcess":
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.started = time.perf_counter()
            self._process = subprocess.Popen(self.command, stdout=out, stderr=err, start_new_session=True)
        self.pid = self._process.pid
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def first_answer(self, ask: Callable[[http.client.HTTPConnection], int]) -> float:
        """Seconds from the start until a request is answered with 200.

        Args:
            ask: sends it, and returns the status of the answer.

        Raises:
            RuntimeError: it ends before, or takes too long.
        """
        while time.perf_counter() - self.started < _PATIENCE and self.alive:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE)
            try:
                if ask(connection) == 200:
                    return time.perf_counter() - self.started
            except OSError:
                pass
            finally:
                connection.close()
            time.sleep(0.01)
        raise RuntimeError(f"{' '.join(self.command)} gives no answer: {self.err.read_text()[-2000:]}")

    def processes(self) -> list[int]:
        """The server, and all that it has started."""
        found = [self.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += [int(child) for child in _text(children).split()]
        return found

    def status(self, field: str) -> float:
        """A size in /proc/PID/status, such as VmRSS or VmHWM, of all processes together: in MB."""
        return sum(_field(_text(f"/proc/{pid}/status"), field) for pid in self.processes())

    def own_memory(self) -> float:
        """MB of all processes in which what they share is counted once (Pss)."""
        return sum(_field(_text(f"/proc/{pid}/smaps_rollup"), "Pss") for pid in self.processes())

    def open_files(self) -> int:
        """Descriptors of the server."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def threads(self) -> int:
        """Threads of the server."""
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def end(self) -> tuple[int, float]:
        """SIGTERM, and after too long SIGKILL for all of it: the exit status, and the seconds to the end."""
        start = time.perf_counter()
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE / 4)
        seconds = time.perf_counter() - start
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # workers that outlive it would take time from the next server
        return self._process.wait(), seconds


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return ""


def _field(text: str, name: str) -> float:
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0
