"""What commands leave for the next start: after their answers, and without a word."""

from collections.abc import Callable
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

        def __call__(self, picture: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
            return {"semantic": np.zeros(picture.shape[:2], np.int64)}

    monkeypatch.setattr("vankit.prediction.scenes._on_pytorch", lambda *args, **options: Quick())


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
    path, seen = dense_checkpoint("semantic_fpn", "segment"), []

    def keep(opened: Network) -> None:
        seen.append((opened.source, capsys.readouterr().out))
        raise KeyboardInterrupt

    monkeypatch.setattr("vankit.cli.keeping.keep_whole", keep)
    words = (photo, "--output", photo.parent / "out") if command == "predict" else ("shapes", "--workers", 0)
    assert run(command, *words, "--checkpoint", path) == 0
    ((source, answers),) = seen
    assert source == str(path) and ("predictions.json" if command == "predict" else "mIoU") in answers
    assert capsys.readouterr() == ("", "")


def test_not_where_something_is_wrong(
    run: Run, segmenter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vankit.cli.keeping.keep_whole", pytest.fail)
    assert run("predict", tmp_path / "missing.png", "--checkpoint", segmenter, "--output", tmp_path / "out") == 1
