"""What README and docs show, runs: every bash and python block, in order, in a folder with the files they name."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vankit
from vankit.cli import main

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# run as they are elsewhere: installing by .ci/run, the demo by test_demo.py, two processes by test_train.py
ELSEWHERE = ("pip install", "torchrun")


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, public_hub: dict[str, Path]) -> Path:
    """photo.jpg, photos/, more/, flowers/ and a public checkpoint, as the pages suppose them."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    places = ["photo.jpg", "photos/1.jpg", "photos/2.png", "more/deep/3.png"]
    places += [f"flowers/{s}/{c}/{i}.jpg" for s in ("train", "val") for c in ("rose", "tulip") for i in range(16)]
    for place in places:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    for path in public_hub.values():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def run_line(line: str) -> None:
    words = shlex.split(line, comments=True)
    if not words or line.startswith(ELSEWHERE):
        return
    assert words[0] == "vankit", line
    with pytest.raises(SystemExit) as end:
        main(words[1:])
    assert end.value.code == 0, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page: Path, folder: Path, small_shapes: None) -> None:
    scope: dict[str, object] = {"__name__": "__main__"}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, f"{page.name} (python)", "exec"), scope)
        else:
            for line in text.replace("\\\n", " ").splitlines():
                run_line(line)


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, *(ROOT / "docs" / "results").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_table_is_computed() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("van_b0", "van_b1", "van_b2", "van_b3", "van_b4", "van_b5", "van_b6"):
        cost = vankit.complexity(name)
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        params, gmacs, published = (cell.strip() for cell in row.split("|")[2:5])
        assert params == f"{cost.params:,}"
        assert gmacs == f"{cost.macs / 1e9:.{len(gmacs.split('.')[1])}f}"
        assert published == f"{cost.macs_all / 1e9:.{len(published.split('.')[1])}f}"
