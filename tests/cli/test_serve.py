"""`vankit serve`: what is typed, as what is served. The service itself: tests/serving."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., int]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `vankit.serving.serve` is called with, in its place."""
    found: dict[str, Any] = {}

    def serve(models: list[str], **options: Any) -> None:
        found.update(models=models, **options)
        options["ready"]("http://127.0.0.1:8000", ["a", "b"])

    monkeypatch.setattr("vankit.serving.serve", serve)
    return found


@pytest.mark.parametrize(("typed", "size"), [("20MB", 20_000_000), ("1.5KiB", 1536), ("3 gb", 3 * 10**9), ("77", 77)])
def test_sizes_as_they_are_typed(run: Run, asked: dict[str, Any], typed: str, size: int) -> None:
    assert run("serve", "van_b0", "--max-body", typed) == 0
    assert asked["max_body"] == size


def test_options_go_on_and_a_line_says_where(
    run: Run, asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text("secret\n")
    status = run(
        "serve", "van_b0", "b=van_b1", "--token-file", tmp_path / "token", "--allow-origin", "https://a.org",
        "--allow-origin", "https://b.org", "--workers", 3, "--precision", "bf16",
    )  # fmt: skip
    assert status == 0
    assert asked["models"] == ["van_b0", "b=van_b1"] and asked["token"] == "secret"
    assert asked["allow_origins"] == ["https://a.org", "https://b.org"]
    assert (asked["workers"], asked["precision"], asked["max_body"]) == (3, "bf16", 20_000_000)
    assert capsys.readouterr().out == "serving a, b at http://127.0.0.1:8000 (Ctrl-C ends it)\n"
