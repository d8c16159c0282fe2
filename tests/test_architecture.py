"""The floors of docs/architecture.md, read off the imports: they go down, never up or sideways."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vankit

SOURCE = Path(vankit.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))

FLOORS = (
    {"cli", "timm"},
    {"explanation", "inspection", "serving", "study", "validation"},
    {"prediction"},
    {"deploy", "training"},
    {"reports"},
    {"engines", "heads"},
    {"models"},
    {"data", "ops", "tasks"},
    {"locks", "pages", "web"},
    {"files", "schema"},
    {"errors"},
)
# Imported in the functions that use them, for they are heavy or of an extra. Triton reads its kernels' source and
# globals, so they cannot be defined in a function: their module itself is imported where they are launched
LAZY = {
    "ai_edge_litert", "av", "captum", "datasets", "executorch", "faster_coco_eval", "fsspec", "litert_torch",
    "matplotlib",
    "mlflow", "nncf", "onnx", "onnxruntime", "onnxscript", "openvino", "pillow_heif", "pyarrow", "pycocotools", "ray",
    "scipy", "supervision", "transformers", "triton", "wandb", "webdataset", "vankit.ops.kernels.triton_kernels",
}  # fmt: skip


def room(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported(path: Path, everywhere: bool = True) -> set[str]:
    """Dotted names; those at the top of the module alone unless `everywhere`."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", [p for p in MODULES if not room(p).startswith("__")], ids=str)
def test_imports_go_down(path: Path) -> None:
    own = room(path)
    floor = next(i for i, rooms in enumerate(FLOORS) if own in rooms)
    below = set().union(*FLOORS[floor + 1 :])
    assert {name.split(".")[1] for name in imported(path) if name.startswith("vankit.")} <= {own, *below}
    assert "vankit" not in imported(path)  # whose public names are of every floor


def test_every_room_has_its_floor() -> None:
    assert {room(p) for p in MODULES} - {"__init__", "__main__"} == set().union(*FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_libraries_that_are_imported_where_they_are_used(path: Path) -> None:
    names = imported(path, everywhere=False)
    assert path.name == "triton_kernels.py" or not {*names, *(name.split(".")[0] for name in names)} & LAZY


def test_lightning_is_known_to_training_alone() -> None:
    assert {room(path) for path in MODULES if any(n.startswith("lightning") for n in imported(path))} == {"training"}


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("vankit, vankit.prediction.labels, vankit.deploy.folder, vankit.engines.openvino", "torch, torchvision, timm"),
        (", ".join(f"vankit.cli.{p.stem}" for p in SOURCE.glob("cli/*.py") if p.stem != "__init__"), "torch, timm"),
        (
            "vankit.explanation, vankit.inspection, vankit.prediction.scenes, vankit.validation",
            "lightning, lightning_fabric",
        ),
        (
            ", ".join(f"vankit.tasks.{p.stem}" for p in SOURCE.glob("tasks/[!_]*.py") if p.stem != "inference"),
            "torch, torchvision, matplotlib, torchmetrics, lightning, timm",
        ),
        (
            "vankit.data.folders, vankit.data.scenes, vankit.data.multilabel, vankit.reports.classes, "
            "vankit.reports.log, vankit.validation",
            "torch, torchvision, timm, matplotlib, openvino",
        ),
        (
            ", ".join(f"vankit.explanation.{name}" for name in ("subjects", "grad_cam", "figures")),
            "torch, timm, captum",
        ),
        ("vankit.timm", "torch, timm"),
        ("vankit.ops", "triton, torch._dynamo"),
    ],
)
def test_what_importing_leaves_out(modules: str, absent: str) -> None:
    code = f"import sys, {modules}; print([name for name in {absent.split(', ')} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_modules_name_says_what_is_in_it() -> None:
    assert not {path.stem for path in MODULES} & {"common", "helpers", "misc", "tools", "utils"}


def test_no_public_name_is_a_module_too() -> None:  # of vankit itself, where one would hide the other
    assert not {room(path) for path in MODULES} & set(vankit.__all__)
