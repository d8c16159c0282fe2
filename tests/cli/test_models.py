"""`vankit models` as a user types it."""

from collections.abc import Callable

import pytest

import vankit

Run = Callable[..., int]


def test_models(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    page = capsys.readouterr().out
    published = f"{vankit.complexity('van_b0').macs_all / 1e9:.3f}"
    for text in (
        "van_b0",
        "4,105,800",
        "0.864",
        published,
        "75.41",
        "93.02",
        "van_b6",
        "199,829,416",
        "38.710",
        "84.13",
    ):
        assert text in page
    weights = {line.split()[1]: line.split("│")[-2].strip() for line in page.splitlines() if "│ van_b" in line}
    assert weights["van_b0"] == "in1k, cifar10" and weights["van_b4"] == "in1k, in22k" and weights["van_b6"] == "in22k"
