"""How the command line ends: one line for a user's mistake, a traceback for a bug, quietly on Ctrl-C."""

import gc
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from vankit import cli
from vankit.cli import main, one_line
from vankit.errors import MissingFileError, UserError


class Unreadable(Dataset[int]):
    """Every image raises an error.

    Args:
        error: to raise.
    """

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> int:
        raise self.error


@pytest.fixture
def ending(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[Any, str]]]:
    """Run the command line with a command that does as it is told: exit status and error stream."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)  # for processes that have ended

    def run(function: Callable[[], object]) -> tuple[Any, str]:
        monkeypatch.setattr(cli, "app", lambda words, **_: function())
        with pytest.raises(SystemExit) as end:
            main([])
        return end.value.code, capsys.readouterr().err

    yield run
    gc.collect()  # an error's traceback keeps its processes alive


def throw(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


def test_a_mistake_is_one_line(ending: Callable[..., tuple[Any, str]]) -> None:
    assert ending(throw(UserError("no such thing"))) == (1, "vankit: no such thing\n")
    assert ending(throw(MissingFileError("no data at x"))) == (1, "vankit: no data at x\n")
    assert ending(throw(OSError("the hub says:\n\n  404\n"))) == (1, "vankit: the hub says: 404\n")


def test_debugging_shows_the_traceback_and_the_line(
    ending: Callable[..., tuple[Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VANKIT_DEBUG", "1")
    status, error = ending(throw(UserError("no such thing")))
    assert status == 1
    assert error.startswith("Traceback (most recent call last):")
    assert error.endswith("\nvankit: no such thing\n")


def test_a_bug_shows_its_traceback_and_asks_for_a_report(ending: Callable[..., tuple[Any, str]]) -> None:
    status, error = ending(throw(KeyError("stage5")))
    assert status == 1
    assert "Traceback" in error and "KeyError: 'stage5'" in error
    assert error.splitlines()[-1].startswith("vankit: this is a bug in vankit")


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (UserError("a.json: no classes: expected some"), "a.json: no classes: expected some"),
        (MissingFileError("no image at a: b.jpg"), "no image at a: b.jpg"),
        (UserError("two\nlines: of it"), "two lines: of it"),
    ],
)
def test_a_mistake_that_a_worker_finds_is_one_line(
    raised: Exception, line: str, ending: Callable[..., tuple[Any, str]]
) -> None:
    loader = DataLoader(Unreadable(raised), num_workers=1, multiprocessing_context="fork")
    assert ending(lambda: list(loader)) == (1, f"vankit: {line}\n")


class Dying(Unreadable):
    """Its process ends with every image."""

    def __getitem__(self, i: int) -> int:
        os._exit(9)


def test_what_the_machine_cannot_give_is_no_bug(ending: Callable[..., tuple[Any, str]]) -> None:
    line = "vankit: out of memory: use a smaller --batch-size, smaller images or a smaller model\n"
    assert ending(throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0"))) == (1, line)
    assert ending(lambda: torch.empty(2**50)) == (1, line)
    assert ending(lambda: bytes(2**50)) == (1, line)
    loader = DataLoader(Dying(UserError()), num_workers=1, multiprocessing_context="fork")
    status, error = ending(lambda: list(loader))
    assert (status, error.count("\n")) == (1, 1)
    assert error.startswith("vankit: a process that loads images died") and "--workers" in error
    ended = RuntimeError("DataLoader worker (pid(s) 7) is killed by signal: Terminated. ")
    assert ending(throw(ended)) == (1, "vankit: a process that loads images was ended by SIGTERM\n")


def test_an_errors_cause_in_a_worker_is_left_out() -> None:
    trace = (
        'Caught UserError in DataLoader worker process 3.\nOriginal Traceback (most recent call last):\n  File "a"\n'
    )
    trace += "ValueError: inner\n\nThe above exception was the direct cause of the following exception:\n\n"
    trace += 'Traceback (most recent call last):\n  File "b"\nvankit.errors.UserError: outer: because\n'
    assert one_line(trace) == "outer: because"


def test_ctrl_c_ends_quietly(ending: Callable[..., tuple[Any, str]]) -> None:
    assert ending(throw(KeyboardInterrupt())) == (130, "")
    assert ending(lambda: sys.exit(7)) == (7, "")


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_of_a_training_stops_it_quietly(signum: signal.Signals, tmp_path: Path) -> None:
    """As Ctrl-C in a terminal and the end of a scheduler's job reach those that load images, too."""
    words = ["train", "shapes", "--recipe", "short", "--output", str(tmp_path / "run"), "--workers", "2"]
    # jobs in the background are started with the signal ignored, and hand that on
    heed: Any = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), "start_new_session": True}
    command = [sys.executable, "-m", "vankit", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heed) as process:
        try:
            while not any(tmp_path.glob("run/tensorboard/events*")) and process.poll() is None:  # after the first step
                time.sleep(0.01)
            os.killpg(process.pid, signum)
            said, error = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, error) == (128 + signum, "")
    assert re.search(r"^stopped after epoch 1 step \d+; continue with --resume$", said, flags=re.M)
    assert (tmp_path / "run" / "resume.ckpt").is_file() and not (tmp_path / "run" / ".lock").exists()


def test_a_mistake_in_the_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, says in ((["train", "x", "--epoch", "3"], "--epoch"), (["predict"], "IMAGES"), (["trian"], "train")):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("vankit: ") and error.count("\n") == 1
        assert says in error
