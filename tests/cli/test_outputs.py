"""An output that cannot be written is refused before the work: before data is read or a network loaded. And what fails
at once leaves none."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

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

OPENING = (
    "cli.predict.open_network", "validation.open_network", "explanation.open_network", "deploy.export.open_network",
    "deploy.convert.read_tensors",
)  # fmt: skip


@pytest.mark.parametrize("line", COMMANDS)
def test_it_is_refused_at_once(
    line: str,
    run: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in OPENING:
        monkeypatch.setattr(f"vankit.{name}", None)
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    for name in ("folder", "folder.csv", "folder.png", "folder.html"):
        Path(name).mkdir()
    assert run(*line.split()) == 1
    error = capsys.readouterr().err
    assert error.startswith("vankit: ") and error.count("\n") == 1
    assert any(name in error for name in ("file", "folder", "x.doc")) and "missing" not in error
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder", "folder.csv", "folder.png", "folder.html"}


# what fails on its input, and what is said
FAILING = {
    "train nowhere --output new/run": "no dataset at nowhere",
    "train nowhere --task detect": "no dataset at nowhere",
    "train nowhere --task panoptic --output new/run": "no dataset at nowhere",
    "train empty --task segment --output new/run": "no train split in empty",
    "train one-class --batch-size 2 --checkpoint TWO --output new/run": "one-class has one class",
    "train one-class --checkpoint TWO --output new/run --resume": "nothing to resume in new/run",
    "study ablation --train nowhere": "no dataset at nowhere",
    "study ablation --train nowhere --output new/study --plot new/x.png": "no dataset at nowhere",
    "study ablation --train one-class --batch-size 2 --output new/study": "one-class has one class",
    "study compare nope --seconds 0 --plot new/x.png": "unknown model 'nope'",
    "export nope --output new/x": "unknown model 'nope'",
    "export --checkpoint nowhere --output new/x": "no checkpoint at nowhere",
    "export --checkpoint SCENES --format pt2 --output new/x": "is a semantic_fpn, and pt2 is for classifiers",
    "export --checkpoint TWO --int8 --calibrate nowhere --output new/x": "no dataset at nowhere",
    "export --checkpoint TWO --int8 --calibrate empty": "no images in empty",
    "validate nowhere --checkpoint TWO --output new/x.json --plot new/x.png": "no dataset at nowhere",
    "validate one-class --checkpoint TWO --output new/x.json --report new/x.html": "the network does not know 1 of",
    "validate nowhere --checkpoint SCENES --engine torch --report new/x.html": "no dataset at nowhere",
    "predict empty --checkpoint TWO --output new/x.csv": "no images in empty",
    "predict empty *.gif --checkpoint TWO --output new/x.parquet": "no images in empty, *.gif",
    "predict empty --checkpoint SCENES": "no images in empty",
    "predict *.gif --checkpoint SCENES --output new/x": "no images in *.gif",
    "predict photo.png --checkpoint nowhere --output new/x.jsonl": "no checkpoint at nowhere",
    "explain empty --checkpoint TWO": "no images in empty",
    "explain nowhere.jpg --checkpoint TWO --output new/x": "no such image file: nowhere.jpg",
    "explain photo.png --checkpoint TWO --target kat --output new/x": "knows no class 'kat'",
    "explain empty --checkpoint TWO --method statistics --output new/x": "no images in empty",
    "convert nowhere new/x.safetensors": "no checkpoint at nowhere",
    "convert nowhere new/x --to hf": "no checkpoint at nowhere",
    "inspect nowhere --output new/x.html": "no folder nowhere",
    "inspect empty --output new/x.html": "nothing in empty that could be trained on",
}  # fmt: skip


@pytest.mark.parametrize("line", FAILING)
def test_what_fails_at_once_leaves_nothing(
    line: str,
    run: Callable[..., int],
    checkpoint: Path,
    segmenter: Path,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(photo.parent)
    Path("empty").mkdir()
    (photo.parent / "one-class" / "train" / "dark").mkdir(parents=True)
    for name in "abcd":
        Image.new("RGB", (32, 32)).save(photo.parent / "one-class" / "train" / "dark" / f"{name}.png")
    before = sorted(photo.parent.rglob("*"))
    files = {"TWO": checkpoint, "SCENES": segmenter}
    assert run(*(files.get(word, word) for word in line.split())) == 1
    assert FAILING[line] in capsys.readouterr().err
    assert sorted(photo.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "predictions.json"])
def test_what_is_there_stays_where_there_are_no_images(
    name: str, run: Callable[..., int], checkpoint: Path, segmenter: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("of a run before")
    (tmp_path / "empty").mkdir()
    scenes = name == "predictions.json"
    output = tmp_path if scenes else tmp_path / name
    words = ["--checkpoint", segmenter if scenes else checkpoint, "--output", output]
    assert run("predict", tmp_path.parent / "*.gif", *words) == 1
    assert (tmp_path / name).read_text() == "of a run before"
