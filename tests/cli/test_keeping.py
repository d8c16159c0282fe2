"""What commands leave for the next start: after their answers, and whatever comes of it."""

import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vankit.deploy.opening import Network

Run = Callable[..., int]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network on PyTorch finds the first class everywhere."""

    class Quick:
        masks = False

        def __call__(self, picture: NDArray[np.uint8], score: float) -> dict[str, NDArray[Any]]:
            return {"semantic": np.zeros(picture.shape[:2], np.int64)}

    monkeypatch.setattr("vankit.prediction.scenes._on_pytorch", lambda *args, **options: Quick())


def keeps(
    monkeypatch: pytest.MonkeyPatch, keep: Callable[[Network], object], terminals: Sequence[str] = ("stdout", "stderr")
) -> list[str]:
    """Let networks be kept so, with these streams on a terminal; grows with each by its source."""
    sources: list[str] = []
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda name=name: name in terminals)

    def keep_whole(opened: Network) -> None:
        sources.append(opened.source)
        keep(opened)

    monkeypatch.setattr("vankit.cli.keeping.keep_whole", keep_whole)
    return sources


@pytest.mark.parametrize("command", ["predict", "validate"])
def test_answers_come_first(
    command: str,
    run: Run,
    photo: Path,
    dense_checkpoint: Callable[[str, str], Path],
    small_shapes: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, answers = dense_checkpoint("semantic_fpn", "segment"), []
    sources = keeps(monkeypatch, lambda _: answers.append(capsys.readouterr().out))
    words = (photo, "--output", photo.parent / "out") if command == "predict" else ("shapes", "--workers", 0)
    assert run(command, *words, "--checkpoint", path) == 0
    assert sources == [str(path)] and ("predictions.json" if command == "predict" else "mIoU") in answers[0]
    assert capsys.readouterr().out == ""


def run_out_of_memory() -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("stopped", "warning"),
    [
        (partial(signal.raise_signal, signal.SIGINT), ""),
        (partial(signal.raise_signal, signal.SIGTERM), ""),
        (run_out_of_memory, "the next start could not be prepared: MemoryError"),
    ],
)
def test_what_stops_it_leaves_the_status(
    stopped: Callable[[], None],
    warning: str,
    run: Run,
    photo: Path,
    segmenter: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sources = keeps(monkeypatch, lambda _: stopped())
    assert run("predict", photo, "--checkpoint", segmenter, "--output", photo.parent / "out") == 0
    assert sources == [str(segmenter)] and "\n".join(caplog.messages) == warning


def test_not_where_a_picture_failed(run: Run, segmenter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = keeps(monkeypatch, lambda _: None)
    assert run("predict", tmp_path / "missing.png", "--checkpoint", segmenter, "--output", tmp_path / "out") == 1
    assert sources == []


@pytest.mark.parametrize("terminal", ["stdout", "stderr"])
def test_not_where_nobody_sees_why_it_takes_longer(
    terminal: str, run: Run, photo: Path, segmenter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = keeps(monkeypatch, lambda _: None, [terminal])
    assert run("predict", photo, "--checkpoint", segmenter, "--output", photo.parent / "out") == 0
    assert sources == []
