"""Traffic of all kinds against `vankit serve`, and whether it stands that: for benchmarks/serving.py and tests."""

import json
import re
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from typing import Any

from serving_process import ServerProcess
from serving_traffic import KINDS, check_pictures
from serving_wire import NO_ANSWER, Answer, Target, Wrong, exchange, request

THREADS = 16
GROWTH = 1.05  # of the memory after the first minute
# Python and OpenVINO start some of theirs when they are first needed, and keep those of a model that was replaced for
# the next one: some 15 in all, however often it is replaced; one that was not freed would leave three each time
MORE_THREADS = 20
_SAMPLE = 5  # seconds between two looks at the memory
_RELOAD = 4  # looks between two reloads of the model
_END_OF_TRACEBACK = 7  # lines
_NONE_AWAITED = -1  # in place of a status


@dataclass
class Tally:
    """What was sent and answered, and what was wrong with that."""

    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    asked: dict[str, bytes] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, name: str, target: Target, chance: Random) -> None:
        """Once of a kind; what goes wrong is noted and not raised, so that the others go on."""
        try:
            answers = KINDS[name].send(target, chance)
        except Exception as error:
            kind = "" if isinstance(error, Wrong) else f"{type(error).__name__}: "
            return self.note(f"{name}: {kind}{error}")
        with self._lock:
            self.counts.update((name, answer.status) for answer in answers or [Answer(_NONE_AWAITED)])
        for answer in answers:
            if fault := _fault(answer, KINDS[name].right):
                self.note(f"{name}: {fault}", answer.asked)

    def note(self, fault: str, asked: bytes = b"") -> None:
        """Count a fault, and keep the first request that led to it."""
        with self._lock:
            self.faults[fault] += 1
            self.asked.setdefault(fault, asked)

    def table(self) -> str:
        """A line per kind: how often which status came."""
        names = sorted({name for name, _ in self.counts}, key=list(KINDS).index)
        said = {NO_ANSWER: "closed", _NONE_AWAITED: "none awaited"}
        lines = []
        for name in names:
            statuses = sorted((status, n) for (each, status), n in self.counts.items() if each == name)
            lines.append(f"  {name:26}" + ", ".join(f"{said.get(status, status)}: {n}" for status, n in statuses))
        return "\n".join(lines)


def _fault(answer: Answer, right: Collection[int]) -> str | None:
    status = answer.status
    if status in (429, 503):
        return None if "retry-after" in answer.headers else f"{status} has no Retry-After: {answer.body[:300]!r}"
    if status in right or (not right and status < 500):
        return None
    return f"answered {status}: {answer.body[:300].decode('utf-8', 'replace')}"


def send_mixed(tally: Tally, target: Target, seconds: float, threads: int, seed: int, names: Sequence[str]) -> None:
    """Traffic of some kinds, in threads, for so long: each once, and then as often as it weighs."""
    end = time.monotonic() + seconds
    weights, first = [KINDS[name].weight for name in names], deque(names)

    def work(number: int) -> None:
        chance = Random(f"{seed} {number}")
        while time.monotonic() < end:
            try:
                name = first.popleft()
            except IndexError:
                (name,) = chance.choices(names, weights)
            tally.send(name, target, chance)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


@dataclass
class Report:
    """How it went."""

    tally: Tally
    seconds: float
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds, and MB (VmRSS)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def faults(self) -> dict[str, int]:
        return dict(self.tally.faults)

    def text(self) -> str:
        count = sum(self.tally.counts.values())
        lines = [f"{count} exchanges in {self.seconds:.0f} s, by kind and status:", self.tally.table()]
        lines.append("memory: " + ", ".join(f"{mb:.0f}" for _, mb in self.memory) + f" MB, every {_SAMPLE} s")
        lines += [f"{name}: {value}" for name, value in self.facts.items()]
        for fault, count in self.tally.faults.most_common():
            asked = self.tally.asked[fault]
            lines += [f"WRONG, {count} times: {fault}", *([f"    asked {asked[:400]!r}"] if asked else [])]
        return "\n".join(lines if self.faults else [*lines, "nothing is wrong"])


def mixed_traffic(
    command: Sequence[str], target: Target, seconds: float, folder: Path, seed: int = 0,
    only: Sequence[str] | None = None, check_memory: bool = True,
) -> Report:  # fmt: skip
    """Start a service, send it traffic of all kinds, and see whether it stands that.

    Args:
        command: that starts it.
        target: how it is asked.
        seconds: of traffic.
        folder: for what it prints.
        seed: of what is sent when.
        only: kinds, beside good pictures; None is all.
        check_memory: whether the memory must not grow after the first minute.
    """
    tally = Tally()
    report, chance = Report(tally, seconds), Random(seed)
    names = [name for name, kind in KINDS.items() if kind.weight and (only is None or name in only)]
    with ServerProcess(command, target.port, folder, "mixed") as process:
        report.facts["seconds to the first answer"] = round(process.first_answer(_first(target)), 2)
        send_mixed(Tally(), target, 2, THREADS, seed, ["good picture", "good explanation"])  # threads start when needed
        before = _settled(process)
        traffic = threading.Thread(
            target=send_mixed, args=(tally, target, seconds, THREADS, seed, ["good picture", *names])
        )
        traffic.start()
        _watch(process, traffic, report, target, None if only and "reload" not in only else chance)
        after = _settled(process, before[0])
        report.facts["descriptors and threads before and after"] = (before, after)
        if after[0] > before[0] or after[1] > before[1] + MORE_THREADS:
            tally.note(f"{before} descriptors and threads became {after}")
        _check_alive(process, tally, target, chance)
        status, took = process.end()
        report.facts["exit status, and seconds to the end"] = (status, round(took, 2))
        if status:
            tally.note(f"SIGTERM ended it with {status}")
        for line in _strange_lines(process.err):
            tally.note(f"it printed: {line}")
    if check_memory:
        _check_memory(report)
    return report


def _first(target: Target) -> Callable[[HTTPConnection], int]:
    def ask(connection: HTTPConnection) -> int:
        headers = {"authorization": f"Bearer {target.token}"}
        connection.request("POST", target.predict, target.known[0].content, headers)
        return connection.getresponse().status

    return ask


def _watch(
    process: ServerProcess, traffic: threading.Thread, report: Report, target: Target, chance: Random | None
) -> None:  # fmt: skip
    """Look at the memory, and with chance reload the model now and then, as long as there is traffic."""
    start = time.monotonic()
    while traffic.is_alive() and process.alive:
        traffic.join(_SAMPLE)
        report.memory.append((time.monotonic() - start, process.status("VmRSS")))
        if chance is not None and len(report.memory) % _RELOAD == 0:
            report.tally.send("reload", target, chance)
    traffic.join(report.seconds + 60)


def _settled(process: ServerProcess, files: int = 0) -> tuple[int, int]:
    """Descriptors and threads, once there are no more descriptors than given, or some seconds are over."""
    for _ in range(20):
        time.sleep(0.25)
        if process.open_files() <= files:
            break
    return process.open_files(), process.threads()


def _check_alive(process: ServerProcess, tally: Tally, target: Target, chance: Random) -> None:
    if not process.alive:
        tally.note("the service has ended")
        return
    for known in target.known:
        (answer,) = exchange(target, request(target, target.predict, known.content))
        try:
            check_pictures(answer, [known])
        except Wrong as error:
            tally.note(f"afterwards {error}")
        if answer.status != 200:
            tally.note(f"afterwards a good picture is answered {answer.status}")


def _strange_lines(log: Path) -> list[str]:
    """What the error stream has that is not a line of the access log, of a traceback the end; without requests' ids."""
    found: list[list[str]] = []
    follows = False
    for line in log.read_text(errors="replace").splitlines():
        strange = not _is_access(line)
        if strange and follows and not re.match("[A-Z]+: ", line):
            found[-1].append(line)
        elif strange:
            found.append([re.sub("[0-9a-f]{32}", "…", line)])
        follows = strange
    return ["\n    ".join([first, *rest[-_END_OF_TRACEBACK:]]) for first, *rest in found]


def _is_access(line: str) -> bool:
    try:
        return isinstance(found := json.loads(line), dict) and {"id", "status", "path"} <= found.keys()
    except ValueError:
        return False


def _check_memory(report: Report) -> None:
    """Compare medians, for a large picture that is being decoded is no leak."""
    window = 60 if report.seconds >= 240 else 30
    early = [mb for second, mb in report.memory if 60 <= second <= 60 + window]
    late = [mb for second, mb in report.memory if second >= report.seconds - window]
    if report.seconds < 120:
        report.facts["growth of memory"] = "not judged in less than 2 minutes"
        return
    growth = statistics.median(late) / statistics.median(early)
    report.facts["growth of memory after the first minute"] = f"{growth - 1:+.1%}"
    if growth > GROWTH:
        report.tally.note(f"memory grew by {growth - 1:.1%} after the first minute")
