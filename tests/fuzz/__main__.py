"""python -m tests.fuzz [TARGET …] --seconds 60 --output FOLDER: look for what makes a reader fail.

Each target is read in a process of its own, which is started again when a case ends it. Findings, the cases that reach
further (to go on from another time) and a log are written to the output folder.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

try:
    import atheris
except ImportError:  # there are wheels for Linux on x86-64 alone
    atheris = None

_LONGEST = 2**17  # bytes of a case
_RESTARTS = 50
_ROOT = Path(__file__).parents[2]
_INSTRUMENTED = ["vankit", "PIL"]


@dataclass(frozen=True)
class Outcome:
    """What fuzzing a target came to.

    Attributes:
        target: the reader.
        executions: cases that were read.
        findings: their files.
    """

    target: str
    executions: int
    findings: list[Path]


def fuzz(target: str, seconds: float, output: Path) -> Outcome:
    """Fuzz a target for a while; what is found is written to `output`.

    Args:
        target: of `TARGETS`, or one of the tests' own as module:name.
        seconds: in all.
        output: folder.
    """
    from .targets import find

    name = find(target).name
    output.mkdir(parents=True, exist_ok=True)
    end, executions = time.monotonic() + seconds, 0
    for _ in range(_RESTARTS):
        remaining = end - time.monotonic()
        if remaining < 1:
            break
        executions += _child(target, remaining, output)
    return Outcome(target, executions, sorted(output.glob(f"{name}-????????.md")))


def _child(target: str, seconds: float, output: Path) -> int:
    from .watch import MARGIN

    with tempfile.TemporaryDirectory(dir=_in_memory(), prefix="vankit-fuzz-") as folder:
        command = [sys.executable, "-m", "tests.fuzz", target, "--seconds", f"{seconds:.0f}"]
        command += ["--output", str(output.resolve()), "--inside", folder]
        end, log = start(command, seconds + MARGIN)
        if end:
            _store_end(target, end, log, Path(folder), output)
        return int(Path(folder, "count").read_bytes() or 0)


def start(command: list[str], seconds: float) -> tuple[str, str]:
    """How a process ended, empty if well, and what it wrote; one that does not end is killed."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    process = subprocess.Popen(command, cwd=_ROOT, start_new_session=True, **pipes)
    try:
        log, _ = process.communicate(timeout=seconds)
    except BaseException as error:  # of its own session, it is not reached by Ctrl-C
        os.killpg(process.pid, signal.SIGKILL)  # with what it started, which may hold the pipe
        log, _ = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return "never", log
    status = process.returncode
    return (signal.Signals(-status).name if status < 0 else f"status {status}" if status else ""), log


def _store_end(target: str, end: str, log: str, folder: Path, output: Path) -> None:
    """Write down that a case ended the process that read it, or that it would not end."""
    from .targets import find
    from .watch import Finding, store

    if not (last := folder / "last").exists():
        raise RuntimeError(f"the process that reads {target} did not start: {log[-3000:]}")
    report = (folder / "trace").read_text(errors="replace") + log[-3000:]
    line = next((line.strip() for line in report.splitlines() if "/vankit/" in line), "nowhere")
    key = f"ended or too slow ({end}) in {line.removeprefix('File ')}"
    store(Finding(find(target).name, key, report.replace(str(folder), "FOLDER"), last.read_bytes()), output)


def _in_memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _inside(name: str, seconds: float, output: Path, folder: Path) -> None:
    """Fuzz in this process."""
    with nullcontext() if atheris is None else atheris.instrument_imports(include=_INSTRUMENTED):
        from .watch import quiet
    with quiet():
        if atheris is None:
            _Run(name, output, folder).without_coverage(seconds)
        else:
            _Run(name, output, folder).with_coverage(seconds)


class _Run:
    def __init__(self, name: str, output: Path, folder: Path) -> None:
        from . import corpus, mutation, watch
        from .targets import find

        self.target = find(name)
        self.output, self.folder, self.case_folder = output, folder, folder / "case"
        self.watch, self.change, self.seen = watch, mutation.change, dict[str, int]()
        self.corpus = output / "corpus" / self.target.name
        self.corpus.mkdir(parents=True, exist_ok=True)
        self.seeds = [self.target.join(case) for case in corpus.cases(self.target.name)]
        for number, data in enumerate(self.seeds):
            (self.corpus / f"seed-{number:02}").write_bytes(data)
        self.trace, self.count, self.executions = (folder / "trace").open("wb"), (folder / "count").open("wb"), 0
        self.case_folder.mkdir()
        watch.lay_out(self.target, self.case_folder)
        watch.warm_up(self.target, self.case_folder)

    def one(self, data: bytes) -> None:
        for finding in self.read(data):
            before = self.seen.get(finding.key)
            if before is not None and before <= len(data):
                continue
            new = not (self.output / f"{finding.name}.md").exists()  # nor is it tried again by the process after this
            self.watch.store(finding, self.output)
            if new and not finding.key.startswith("memory"):
                finding = self.watch.smaller(finding, self.read)
                self.watch.store(finding, self.output)
            self.seen[finding.key] = len(finding.data)

    def read(self, data: bytes) -> list[Any]:
        """What is wrong with a case, of which it is known outside which one it is."""
        (self.folder / "last").write_bytes(data)  # for whoever finds this process dead
        self.executions += 1
        os.pwrite(self.count.fileno(), b"%d" % self.executions, 0)
        with self.watch.limited(self.trace):
            return self.watch.examine(self.target, data, self.case_folder)

    def with_coverage(self, seconds: float) -> None:
        def mutate(data: bytes, longest: int, seed: int) -> bytes:
            random = Random(seed)
            if random.random() < 0.25:
                return atheris.Mutate(data, longest)
            if random.random() < 0.25:  # what is behind the lines of vankit guides nobody to it
                data = random.choice(self.seeds)
            changed = self.target.join(self.change(self.target.split(data), random))
            return changed if len(changed) <= longest else atheris.Mutate(data, longest)

        options = [f"-max_total_time={seconds:.0f}", f"-max_len={_LONGEST}", "-rss_limit_mb=0", "-timeout=1000000"]
        options += [f"-artifact_prefix={self.folder}/", "-len_control=0", "-detect_leaks=0"]
        atheris.Setup([sys.argv[0], *options, str(self.corpus)], self.one, custom_mutator=mutate)
        atheris.Fuzz()

    def without_coverage(self, seconds: float) -> None:
        random, end = Random(time.time_ns()), time.monotonic() + seconds
        while time.monotonic() < end:
            case = self.target.split(random.choice(self.seeds))
            for _ in range(random.choice((1, 1, 2, 4))):
                case = self.change(case, random)
            self.one(self.target.join(case))


def _again(name: str, case: Path) -> int:
    """Read one case as the fuzzer does, and show what is wrong with it."""
    from . import watch
    from .targets import find

    target = find(name)
    with tempfile.TemporaryDirectory() as folder, watch.quiet():
        watch.lay_out(target, Path(folder))
        watch.warm_up(target, Path(folder))
        findings = watch.examine(target, case.read_bytes(), Path(folder))
        print(*(f"{finding.key}\n\n{finding.report}" for finding in findings), sep="\n")
        return bool(findings)


def main() -> int:
    from .targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all without any: {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--output", type=Path, default=Path("runs/fuzz"), help="folder of findings")
    parser.add_argument("--case", type=Path, help="read this one alone")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    if options.case is not None:
        return _again(names[0], options.case)
    found = 0
    for name in names:
        outcome = fuzz(name, options.seconds, options.output)
        found += len(outcome.findings)
        print(f"{name}: {outcome.executions:,} cases read, {len(outcome.findings)} findings", flush=True)
        for path in outcome.findings:
            print(f"  {path}: {path.read_text().partition(chr(10))[0]}", flush=True)
    return bool(found)


if __name__ == "__main__":
    if "--inside" in sys.argv:
        at = sys.argv.index
        _inside(sys.argv[1], float(sys.argv[at("--seconds") + 1]), Path(sys.argv[at("--output") + 1]),
                Path(sys.argv[at("--inside") + 1]))  # fmt: skip
    else:
        sys.exit(main())
