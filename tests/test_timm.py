"""Scripts that use timm and know nothing of vankit, run by `python -m vankit.timm` beside Python itself."""

import subprocess
import sys
from pathlib import Path

import pytest

STATE = """
import json, os, sys
import neighbour
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
json.dump([__name__, __file__, words, sys.path, neighbour.name, sys.modules["__main__"].words == words], sys.stdout)
sys.exit(3)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """job/state.py, which says how it was run, and job/neighbour.py beside it."""
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "state.py").write_text(STATE)
    (tmp_path / "job" / "neighbour.py").write_text("name = 'neighbour'")
    return tmp_path


def python(*words: str, cwd: Path) -> tuple[int, str, str]:
    run = subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True)
    return run.returncode, run.stdout, run.stderr


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        (".", ["job/state.py", "--model", "van_b0", "-m", "x"]),
        ("job", ["state.py"]),
        ("job", ["../link.py"]),
        ("job", ["-m", "state", "--flag"]),
    ],
)
def test_a_script_is_run_as_python_runs_it(inside: str, words: list[str], folder: Path) -> None:
    (folder / "link.py").symlink_to("job/state.py")
    directly = python(*words, cwd=folder / inside)
    assert directly[0] == 3 and "neighbour" in directly[1]
    assert python("-m", "vankit.timm", *words, cwd=folder / inside) == directly


def test_safe_paths_stay_safe(folder: Path) -> None:
    status, _, error = python("-P", "-m", "vankit.timm", "job/state.py", cwd=folder)
    assert status == 1 and "No module named 'neighbour'" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.py"], "there is no script absent.py: pass the path of one"),
        (["job"], "there is no script job: pass the path of one"),
        (["-m", "absent"], "there is no module absent: expected one that `python -m absent` would find"),
        (["-m"], "usage: python -m vankit.timm SCRIPT"),
        (["--model", "van_b0"], "usage: python -m vankit.timm SCRIPT"),
        ([], "usage: python -m vankit.timm SCRIPT"),
    ],
)
def test_nothing_to_run_is_one_line(words: list[str], message: str, folder: Path) -> None:
    status, output, error = python("-m", "vankit.timm", *words, cwd=folder)
    assert (status, output) == (2, "")
    assert error.startswith(f"vankit.timm: {message}") and error.count("\n") == 1


def test_help(folder: Path) -> None:
    status, output, error = python("-m", "vankit.timm", "--help", cwd=folder)
    assert (status, error) == (0, "") and "-m MODULE" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        "import timm; print(type(timm.create_model('van_b0.in1k', num_classes=2)).__name__)",
        "from timm.models import create_model; print(type(create_model('van_b0')).__name__)",
        "import segmentation_models_pytorch as smp; model = smp.Unet('tu-van_b0', encoder_weights=None)\n"
        "print('VAN' if model.encoder.out_channels == [3, 0, 32, 64, 160, 256] else model)",
    ],
    ids=["timm", "timm.models", "smp"],
)
def test_van_is_among_timms_models(script: str, folder: Path) -> None:
    (folder / "own.py").write_text(script)
    status, _, error = python("own.py", cwd=folder)
    assert status == 1 and "Unknown model" in error
    status, output, error = python("-m", "vankit.timm", "own.py", cwd=folder)
    assert (status, output.strip()) == (0, "VAN"), error
