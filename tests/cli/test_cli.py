"""The command line as a whole."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from cyclopts import App

import vankit
from vankit.cli import app
from vankit.training.recipes import Config, DenseConfig, TrainConfig

Run = Callable[..., int]


def walk(command: App, name: str = "vankit") -> Iterator[tuple[str, App]]:
    """Every command, and commands of commands."""
    for word in command:
        if not word.startswith("-"):
            yield f"{name} {word}", command[word]
            yield from walk(command[word], f"{name} {word}")


COMMANDS = dict(walk(app))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    command = COMMANDS[name]
    assert command.help.strip()
    if command.default_command is not None:
        options = command.assemble_argument_collection(parse_docstring=True)
        assert options and [option.name for option in options if not option.parameter.help] == []


READERS = {  # of images, and what has them read some
    "predict": "large --checkpoint TWO --engine torch",
    "explain": "large --checkpoint TWO --output out",
    "inspect": "large --workers 0 --output out.html",
    "validate": "large --checkpoint TWO --workers 0 --engine torch",
    "train": "large --checkpoint TWO --batch-size 2 --img-size 32 --workers 0 --output out",
    "study ablation": "--train large --batch-size 2 --img-size 32 --workers 0 --output out",
    "export": "--checkpoint TWO --int8 --calibrate large --format onnx --output out",
}
OTHERS = {
    "bench", "convert", "demo", "models", "serve", "study", "study compare", "study decomposition", "study variants",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "export")) for name in READERS]
)
def test_a_command_that_names_the_limit_of_pixels_has_it_as_an_option(
    name: str,
    run: Run,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (f"{split}/{label}" for split in ("train", "val") for label in ("cat", "dog")):
        (tmp_path / "large" / place).mkdir(parents=True)
        (tmp_path / "large" / place / "x.pgm").write_bytes(b"P5 8400 8400 255\n")  # cut off, as is found if it is read
    words = [*name.split(), *(str(checkpoint) if word == "TWO" else word for word in READERS[name].split())]
    said = []
    for limit in ([], ["--max-pixels", "70560000"]):
        run(*words, *limit)
        said.append(" ".join("".join(capfd.readouterr()).split()))
    assert "8400 x 8400" in said[0] and "(--max-pixels 70560000)" in said[0]
    assert "x.pgm" in said[1] and "--max-pixels" not in said[1]


def test_no_command_that_reads_images_is_left_out() -> None:
    assert {f"vankit {name}" for name in READERS.keys() | OTHERS} == COMMANDS.keys()


def test_every_setting_is_an_option() -> None:
    options = {name for option in app["train"].assemble_argument_collection() for name in option.names}
    for config in (Config, TrainConfig, DenseConfig):
        assert {f"--{field.name.replace('_', '-')}" for field in fields(config)} <= options


def test_version(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == vankit.__version__


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("predict", "x.jpg", "--checkpoint", "nowhere.pth"), "no checkpoint at nowhere.pth"),
        (("validate", "nowhere", "--model", "van_b0.cifar10"), "no dataset at nowhere"),
        (("train", "nowhere"), "no dataset at nowhere"),
        (("train", "shapes", "--recipe", "in21k"), "--recipe is 'in21k'"),
        (("train", "shapes", "--epochs", "0"), "--epochs is 0, expected 1 or more"),
        (("predict", "x.jpg", "--model", "van_b7"), "van_b7"),
        (("predict", "x.jpg", "--model", "./nowhere/"), "no checkpoint at nowhere"),
        (("predict", "x.jpg", "--model", "van_b0.cifar10", "--resume"), "resume continues an output"),
        (("predict", "x.jpg", "--address", "auto"), "add --workers ray"),
        (("predict", "x.jpg", "--workers", "ray"), "name a folder or URL with --output"),
        (("export", "van_b0.cifar10", "--int8"), "--int8 and --calibrate go together"),
        (("explain", "x.jpg", "--model", "van_b0.cifar10", "--target", "kat"), "such as cat"),
        (("explain", "--model", "van_b0.cifar10"), "grad-cam looks at images"),
        (("bench", "van_b7"), "unknown model 'van_b7'"),
        (("convert", "nowhere.pth", "x.safetensors"), "no checkpoint at nowhere.pth"),
    ],
)
def test_mistakes_end_in_one_line(
    run: Run, words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("vankit: ")
    assert says in error
    assert "Traceback" not in error


def test_former_names_of_options_still_work(
    run: Run, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "cat").mkdir(parents=True)
    photo.rename(tmp_path / "data" / "cat" / "0.png")
    words = ("validate", tmp_path / "data", "--model", "van_b0.cifar10", "--workers", "0")
    assert run(*words, f"--picture={tmp_path / 'c.png'}") == 0
    assert (tmp_path / "c.png").is_file()
    (tmp_path / "full").write_text("a file")
    assert run("export", "van_b0.cifar10", "--out", tmp_path / "full") == 1
    assert f"{tmp_path / 'full'} is a file" in capsys.readouterr().err
    for command in ("train", "export", "demo", "validate"):
        run(command, "--help")
        page = capsys.readouterr().out
        assert "--out " not in page and "--picture" not in page
