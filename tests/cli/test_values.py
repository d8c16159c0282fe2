"""Values that no run can use end in one line that names them, before any work is done."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vankit.cli import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for place, level in [(f"{s}/{c}", level) for s in ("train", "val") for c, level in (("dark", 50), ("light", 200))]:
        (root / place).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((32, 32, 3), level + i, np.uint8)).save(root / place / f"{i}.png")
    (root / "single" / "train").mkdir(parents=True)
    (root / "single" / "train" / "dark").symlink_to(root / "train" / "dark")
    return root


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--auto-augment silly", "auto_augment is 'silly', which timm cannot use"),
        ("--auto-augment augmix-x3", "auto_augment is 'augmix-x3', which timm cannot use"),
        ("--color-jitter -1", "color_jitter is -1.0, expected 0 or more"),
        ("--mixup -1", "mixup is -1.0, expected 0 or more"),
        ("--cutmix nan", "cutmix is nan, expected a finite number"),
        ("--warmup-lr -1", "warmup_lr is -1.0, expected 0 or more"),
        ("--min-lr -1", "min_lr is -1.0, expected 0 or more"),
        ("--crop-pct 0", "crop_pct is 0, expected more than 0"),
        ("--seed -1", "seed is -1, expected 0 to 4294967295"),
        ("--val-share 1", "val_share is 1.0, expected more than 0 and less than 1"),
        ("--batch-size 1 --img-size 32", "batch_size is 1 and img_size 32: the last stage has one pixel"),
    ],
)
def test_training(words: str, says: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(f"train {data} --recipe short --workers 0 --out {tmp_path / 'run'} {words}", says, capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", ["--precision 64", "--interpolation nearest", "--schedule exp"])
def test_choices(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "shapes", "--output", str(tmp_path), *words.split()])
    assert "Choose from" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "train DATA/single --recipe short --batch-size 1 --img-size 64 --workers 0",
            "has one class, dark: expected at",
        ),
        ("train hfds/ --recipe short", "cannot read a train split of hfds/"),
        ("predict DATA --model van_b0.cifar10 --device silly", "device 'silly' cannot be used"),
        ("predict DATA --model van_b0.cifar10 --device meta", "device 'meta' cannot be used"),
        ("predict DATA --model van_b0.cifar10 --device cuda:99", "device 'cuda:99' cannot be used"),
        ("predict DATA --model hf-hub:", "unknown model 'hf-hub:'"),
        ("explain DATA --model van_b0.cifar10 --device silly", "device 'silly' cannot be used"),
        (
            "validate DATA --model van_b0.cifar10 --plot x.doc",
            "x.doc is not the name of a picture: expected one that",
        ),
        ("validate DATA --model van_b0.cifar10 --plot x", "x is not the name of a picture"),
        ("study decomposition --plot x.doc", "x.doc is not the name of a picture"),
        ("study compare van_b0 --seconds 0 --plot x.doc", "x.doc is not the name of a picture"),
        ("study ablation --train DATA --plot x.doc", "x.doc is not the name of a picture"),
        ("study compare van_b0 --seconds -1", "seconds is -1.0, expected 0 or more"),
        ("study ablation --train DATA --seeds 0", "seeds is 0, expected 1 or more"),
        ("bench --seconds 0", "seconds is 0.0, expected more than 0"),
        ("models --size 0", "size is 0, expected 1 pixel or more"),
    ],
)
def test_commands(
    words: str,
    says: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(words.replace("DATA", str(data)), says, capsys)


def fails(line: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(line.split())
    printed = capsys.readouterr().err
    assert end.value.code == 1
    assert printed.startswith("vankit: ") and says in printed
    assert printed.count("\n") == 1
