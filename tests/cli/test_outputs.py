"""An output that cannot be written is refused before the work: before data is read or a network loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest

COMMANDS = [
    "predict x.png --output file",
    "predict x.png --output folder.csv",
    "predict x.png --output file --workers ray",
    "validate missing --output folder",
    "validate missing --plot folder.png",
    "validate missing --plot x.doc",
    "validate missing --report folder.html",
    "validate missing --report file/x.html",
    "explain x.png --output file",
    "explain x.png --output file/new",
    "export van_b0 --output file",
    "export van_b0 --output file/new",
    "convert file folder",
    "convert file file/x.safetensors",
    "inspect . --output folder.html",
    "study decomposition --plot folder.png",
    "study ablation --train missing --plot folder.png",
    "study ablation --train missing --output file",
    "study compare --plot folder.png",
    "train missing --output file",
    "demo --output file",
]


@pytest.mark.parametrize("line", COMMANDS)
def test_it_is_refused_at_once(
    line: str,
    run: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("vankit.deploy.opening.open_network", "vankit.deploy.export.open_network"):
        monkeypatch.setattr(name, None)
    for name in ("vankit.explanation.open_subject", "vankit.deploy.convert.read_tensors"):
        monkeypatch.setattr(name, None)
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    for name in ("folder", "folder.csv", "folder.png", "folder.html"):
        Path(name).mkdir()
    assert run(*line.split()) == 1
    error = capsys.readouterr().err
    assert error.startswith("vankit: ") and error.count("\n") == 1
    assert any(name in error for name in ("file", "folder", "x.doc")) and "missing" not in error
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder", "folder.csv", "folder.png", "folder.html"}
