"""The arrows of docs/architecture.md, read off the imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vankit

SOURCE = Path(vankit.__file__).parent

# what each room may import of vankit; a room is the first part of the module's name below vankit
ALLOWED = {
    "ops": {"ops"},
    "models": {"models", "ops"},
    "data": {"data"},
    "recipes": {"models"},
    "metrics": set(),
    "drawing": set(),
    "results": {"drawing"},
    "heads": {"heads", "models"},
    "tasks": {"data", "heads", "metrics", "models", "recipes", "results", "tasks"},
    "study": {"models"},
    "ablation": {"models", "recipes", "study", "train"},
    "comparison": {"bench", "models", "study"},
    "engines": set(),
    "exported": {"data", "engines"},
    "export": {"classifier", "engines", "exported", "model_card", "models", "quantize"},
    "model_card": {"data", "exported"},
    "quantize": {"classifier", "data", "engines", "exported"},
    "bench": {"models", "predict"},
    "cluster": {"data", "exported", "predict"},
    "classifier": {"data", "models"},
    "predict": {"classifier", "data", "dense", "engines", "export", "exported", "models"},
    "dense": {"data", "engines", "export", "heads", "results", "tasks"},
    "explain": {"classifier", "data", "dense", "export", "exported", "heads", "models", "results", "tasks"},
    "train": {"heads", "models", "recipes", "tasks"},
    "validate": {"classifier", "data", "dense", "heads", "models", "predict", "tasks"},
    "demo": {"data", "predict", "recipes", "train", "validate"},
    "cli": {
        "",
        "ablation",
        "bench",
        "cluster",
        "comparison",
        "data",
        "demo",
        "dense",
        "engines",
        "explain",
        "export",
        "models",
        "predict",
        "recipes",
        "results",
        "study",
        "train",
        "validate",
    },
    "__main__": {"cli"},
}
OPTIONAL = {
    "pyarrow", "datasets", "webdataset", "transformers", "faster_coco_eval", "pycocotools", "supervision", "scipy",
    "openvino", "onnx", "onnxruntime", "onnxscript", "nncf", "ray", "fsspec", "captum", "triton",
}  # fmt: skip
# Triton reads its kernels' source and globals, so they cannot be defined in a function: the module itself is imported
# where it is used, which test_the_kernels_are_imported_where_they_are_launched holds
NEEDS_ITS_LIBRARY = {"triton_kernels.py": {"triton"}}
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "misc.py", "common.py"}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            base = node.module or ""
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", [p for p in modules() if room(p) != "__init__"], ids=str)
def test_arrows(path: Path) -> None:
    own = imported(ast.parse(path.read_text()))
    rooms = {name.split(".")[1] for name in own if name.startswith("vankit.")}
    known = {room(p) for p in modules()}
    rooms = {r if r in known else "" for r in rooms}  # `from vankit import __version__` is the package itself
    assert rooms <= ALLOWED[room(path)] | {room(path)}


@pytest.mark.parametrize("path", modules(), ids=str)
def test_optional_libraries_are_imported_where_they_are_used(path: Path) -> None:
    top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = set().union(*[imported(node) for node in top]) if top else set()
    assert not {name.split(".")[0] for name in names} & OPTIONAL - NEEDS_ITS_LIBRARY.get(path.name, set())


@pytest.mark.parametrize("path", modules(), ids=str)
def test_the_kernels_are_imported_where_they_are_launched(path: Path) -> None:
    top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any("vankit.ops.triton_kernels" in imported(node) for node in top)


def test_importing_the_operators_imports_no_triton() -> None:
    names = "vankit.ops.fused, vankit.ops.gelu, sys; print('triton' in sys.modules, 'torch._dynamo' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", f"import {names}"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False False"


@pytest.mark.parametrize("path", modules(), ids=str)
def test_size_and_name(path: Path) -> None:
    assert path.name not in FORBIDDEN_NAMES
    assert len(path.read_text().splitlines()) <= 560  # van.py, which reads in one piece, is the longest


def test_every_room_is_listed() -> None:
    assert {room(p) for p in modules()} - {"__init__"} == set(ALLOWED)
