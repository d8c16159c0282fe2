"""The fuzzers: that they find what is planted, that their valid cases are read, and, with -m slow, what they find."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from random import Random

import pytest
from fuzz import corpus, watch
from fuzz.__main__ import start
from fuzz.code import PLANTED
from fuzz.mutation import change
from fuzz.targets import SEPARATOR, TARGETS, Target

from vankit.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory and calls are watched on Linux alone")

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("VANKIT_FUZZ_SECONDS", "60"))

# what the fuzzers found, as small as it gets
FOUND = {
    "a list in a list of folders": ("yolo", b"train:\n- -"),
    "an image that is listed outside": ("yolo", SEPARATOR.join((b"train: train.txt\nnames: [a]", b"", b"../x.png"))),
    "digits that are none": ("yolo", b"names: [a]\nkpt_shape: [\xc2\xb2, 3]"),
    "a number of 5000 digits": ("map_labels", b"1:" + b"1" * 5000),
    "half a character": ("metadata", b'{"things": "\xed\xa0\x80"}'),
    "a colour of 5000 digits": ("semantic", b"0 0 " + b"1" * 5000 + b" road"),
}


@pytest.fixture
def read(tmp_path: Path) -> Callable[[Target, bytes], list[watch.Finding]]:
    """Factory: what is wrong with a case, read as the fuzzer does."""

    def examined(target: Target, data: bytes) -> list[watch.Finding]:
        watch.lay_out(target, tmp_path)
        with watch.quiet():
            return watch.examine(target, data, tmp_path)

    return examined


@pytest.fixture(scope="module", autouse=True)
def _audited() -> None:
    watch.start()  # lets everything pass while no case is read


@pytest.mark.parametrize(
    "name", [*(name for name in TARGETS if name != "head"), pytest.param("head", marks=pytest.mark.slow)]
)
def test_valid_cases_are_read(name: str, read: Callable[[Target, bytes], list[watch.Finding]], tmp_path: Path) -> None:
    target = TARGETS[name]
    for case in corpus.cases(name):
        assert target.split(target.join(case)) == dict.fromkeys(target.files, b"") | case
        read(target, target.join(case))  # imports what it needs, which may open anything
        assert read(target, target.join(case)) == []
        assert any(map(returns, target.steps, [tmp_path] * len(target.steps)))


def returns(step: Callable[[Path], object], folder: Path) -> bool:
    try:
        step(folder)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("case", FOUND)
def test_what_was_found_stays_mended(case: str, read: Callable[[Target, bytes], list[watch.Finding]]) -> None:
    name, data = FOUND[case]
    assert [finding.report for finding in read(TARGETS[name], data)] == []


def _raise(error: Exception) -> None:
    raise error


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "error": (lambda folder: _raise(KeyError("width")), "KeyError in "),
    "error of the system": (lambda folder: _raise(OSError("no such thing")), "OSError in "),
    "exit": (lambda folder: sys.exit(), "SystemExit in "),
    "reads outside": (lambda folder: Path("/etc/hostname").read_bytes(), "Escape in "),
    "writes outside": (lambda folder: (folder.parent / "x").write_bytes(b""), "Escape in "),
    "writes a program": (lambda folder: Path(json.__file__).write_bytes(b""), "Escape in "),
    "renames outside": (lambda folder: os.rename(folder, f"{folder}-2"), "Escape in "),
    "lists outside": (lambda folder: list(folder.parent.iterdir()), "Escape in "),
    "connects": (lambda folder: socket.create_connection(("127.0.0.1", 9)), "Escape in "),
    "runs what is written": (lambda folder: eval((folder / "pairs.txt").read_text()), "Escape in "),
    "imports what is named": (lambda folder: import_module(PLANTED), "Escape in "),
    "shows a traceback": (lambda folder: logging.getLogger("torch").error("x", exc_info=KeyError(1)), "Escape in "),
    "starts a program": (lambda folder: subprocess.run(["true"]), "Escape in "),
    "takes memory": (lambda folder: len(b"x" * (300 * 2**20)), "memory"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_each_kind_of_mistake_is_found(
    kind: str, read: Callable[[Target, bytes], list[watch.Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "MEMORY", 40 * 2**20)
    step, key = MISTAKES[kind]
    (finding,) = read(Target("map_labels", ["pairs.txt"], [step]), b"print()")
    assert finding.key.startswith(key) and finding.data == b"print()"


ALLOWED: dict[str, Callable[[Path], object]] = {
    "answer": lambda folder: _raise(UserError("what is wrong")),
    "writes inside": lambda folder: (folder / "y").write_bytes(b""),
    "reads a program": lambda folder: Path(json.__file__).read_bytes(),
    "computes what is written": lambda folder: exec("def add(x, y):\n    return getattr(x + y, 'real')"),
    "lists inside": lambda folder: list(folder.iterdir()),
}


@pytest.mark.parametrize("kind", ALLOWED)
def test_what_a_reader_may_do(kind: str, read: Callable[[Target, bytes], list[watch.Finding]]) -> None:
    assert read(Target("map_labels", ["pairs.txt"], [ALLOWED[kind]]), b"1:2") == []


def test_findings_are_made_smaller_and_the_smallest_is_kept(tmp_path: Path) -> None:
    def step(folder: Path) -> None:
        text = (folder / "pairs.txt").read_bytes()
        if b"7" in text and b":" in text:
            raise KeyError(7)

    target = Target("map_labels", ["pairs.txt"], [step])
    (large,) = watch.examine(target, b"1:2\n3:4\n5:67\n8:9\n", tmp_path)
    small = watch.smaller(large, lambda data: watch.examine(target, data, tmp_path))
    assert sorted(small.data) == sorted(b"7:") and small.key == large.key
    for finding in (large, small, large):
        path = watch.store(finding, tmp_path / "out")
    assert [each.name for each in sorted(path.parent.iterdir())] == [f"{small.name}.bin", f"{small.name}.md"]
    assert path.with_suffix(".bin").read_bytes() == small.data
    assert repr(small.data) in path.read_text() and "KeyError: 7" in path.read_text()


def test_making_smaller_takes_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SMALLER", 0.3)
    sizes = []

    def read(data: bytes) -> list[watch.Finding]:
        sizes.append(len(data))
        time.sleep(0.1)
        return [watch.Finding("map_labels", "KeyError", "", data)] if len(data) > 600 else []

    found = watch.smaller(watch.Finding("map_labels", "KeyError", "", bytes(1000)), read)
    assert len(sizes) in range(2, 5) and len(found.data) == min(size for size in (1000, *sizes) if size > 600)


def test_a_process_that_does_not_end_is_killed_with_what_it_started() -> None:
    end, log = start(["sh", "-c", "sleep 600 & echo $!; kill -STOP $$"], 4)
    assert end == "never"
    until = time.monotonic() + 30
    while is_running(int(log)):  # a moment, after its pipe is closed
        assert time.monotonic() < until
    assert start(["sh", "-c", "echo 1"], 60) == ("", "1\n")
    assert start(["sh", "-c", "exit 3"], 60) == ("status 3", "")
    assert start(["sh", "-c", "kill -ABRT $$"], 60)[0] == "SIGABRT"


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("name", ["coco", "yolo", "voc", "multilabel", "checkpoint", "exported", "program"])
def test_most_changes_get_past_the_parser(name: str) -> None:
    (case, *_), random, parsed = corpus.cases(name), Random(1), 0
    changed = [change(case, random) for _ in range(100)]
    assert [change(case, Random(2)) for _ in range(3)] == [change(case, Random(2)) for _ in range(3)]
    assert sum(each != case for each in changed) > 80 and len({TARGETS[name].join(each) for each in changed}) > 60
    for each in changed:
        first = each[TARGETS[name].files[0]]
        parsed += first.startswith((b"{", b"<", b"path", b"file", b"PK", b"\xef")) or first[8:9] == b"{"
    assert parsed > 50


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planted", "key"), [("UNKNOWN_NAME", "semantic: KeyError in "), ("FOR_EVER", "map_labels: ended or too slow")]
)
def test_a_planted_mistake_is_found(planted: str, key: str, tmp_path: Path) -> None:
    ended = run(f"tests.fuzz.planted:{planted}", "--seconds", "20", "--output", str(tmp_path))
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert key in ended.stdout
    raw = next(tmp_path.glob("*.bin"))
    if planted == "UNKNOWN_NAME":
        assert len(raw.read_bytes()) < 30  # a name alone
        again = run(f"tests.fuzz.planted:{planted}", "--case", str(raw))
        assert again.returncode == 1 and "KeyError in" in again.stdout
        assert run("semantic", "--case", str(raw)).returncode == 0  # the reader as it is


@pytest.mark.slow
def test_what_gets_too_slow_while_it_is_made_smaller_is_a_finding_of_its_own(tmp_path: Path) -> None:
    ended = run("tests.fuzz.planted:SLOW_IF_SHORT", "--seconds", "10", "--output", str(tmp_path))
    assert ended.returncode == 1, ended.stdout + ended.stderr
    found = {path.read_text().split()[2]: path.with_suffix(".bin").read_bytes() for path in tmp_path.glob("*.md")}
    assert found.keys() == {"KeyError", "ended"}
    assert len(found["KeyError"]) > 8 and 0 < len(found["ended"]) < 8


@pytest.mark.slow
def test_a_reader_that_nothing_ends_from_within_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT)
    fuzzing, watching = (import_module(f"tests.fuzz.{name}") for name in ("__main__", "watch"))
    monkeypatch.setattr(watching, "MARGIN", 60)  # most of it to start on a busy machine
    outcome = fuzzing.fuzz("tests.fuzz.planted:WITHOUT_AN_END", 2, tmp_path)
    (path,) = outcome.findings
    assert "map_labels: ended or too slow (never)" in path.read_text()
    assert TARGETS["map_labels"].split(path.with_suffix(".bin").read_bytes()) not in corpus.cases("map_labels")
    assert outcome.executions > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found(name: str, tmp_path: Path) -> None:
    ended = run(name, "--seconds", f"{SECONDS:.0f}", "--output", str(tmp_path))
    reports = "\n\n".join(path.read_text() for path in tmp_path.glob("*.md"))
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}\n{reports}"
    (cases,) = re.findall(r": ([\d,]+) cases read", ended.stdout)
    assert int(cases.replace(",", "")) > len(corpus.cases(name))
