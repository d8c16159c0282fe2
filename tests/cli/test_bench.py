"""`vankit bench` as a user types it."""

from collections.abc import Callable

import pytest

from vankit.study.timing import Timing

Run = Callable[..., int]


def test_bench(run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        Timing("van_b0", "plain PyTorch", "", 0.0, 1.0, 30.0, 29.0, 31.0, 28.0, 1.0, 1.0, 1.0),
        Timing("van_b0", "openvino float32", "", 1e-5, 0.9996, 5.0, 4.9, 5.1, 4.8, 6.0, 5.9, 6.1),
        Timing("van_b0", "onnxruntime float32", "not installed"),
    ]
    monkeypatch.setattr("vankit.study.timing.bench", lambda models, seconds: iter(rows))
    assert run("bench") == 0
    page = capsys.readouterr().out
    assert "100.0%" in page and "99.9%" in page  # rounded down: 100 only of all
    assert "5.00" in page and "6.0" in page and "not installed" in page
