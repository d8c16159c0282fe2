"""The public names: there, documented, and not shadowed by the modules they come from."""

import importlib
import inspect
import subprocess
import sys

import pytest

import vankit


def test_all_is_sorted_and_complete() -> None:
    assert vankit.__all__ == [
        "VAN",
        "Checkpoint",
        "ClassificationReport",
        "DenseConfig",
        "DensePredictor",
        "DenseReport",
        "Detections",
        "DownloadError",
        "Explanation",
        "Failure",
        "ImageError",
        "Label",
        "LargeKernelAttention",
        "PanopticMap",
        "Prediction",
        "Predictor",
        "SemanticMap",
        "TrainConfig",
        "bench",
        "complexity",
        "convert",
        "demo",
        "explain",
        "export",
        "fold",
        "inference_model",
        "large_kernel_attention",
        "load_checkpoint",
        "predict",
        "read_checkpoint",
        "recipe",
        "save_checkpoint",
        "train",
        "validate",
    ]
    assert dir(vankit) == sorted(vankit.__all__)


@pytest.mark.parametrize("name", vankit.__all__)
def test_names_are_documented_objects(name: str) -> None:
    value = getattr(vankit, name)
    assert callable(value)
    assert inspect.getdoc(value)


@pytest.mark.parametrize("name", ["train", "validate", "predict", "demo", "explain"])
def test_functions_survive_the_import_of_their_module(name: str) -> None:
    module = importlib.import_module(f"vankit.{name}")
    assert getattr(vankit, name) is getattr(module, name)
    assert inspect.isfunction(getattr(vankit, name))


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vankit.nothing


def test_import_registers_the_models_and_nothing_heavy() -> None:
    code = (
        "import sys, vankit, timm; assert timm.is_model('van_b6'); "
        "print([m for m in ('lightning', 'matplotlib', 'pyarrow', 'cyclopts', 'tensorboard') if m in sys.modules])"
    )
    assert run(code) == "[]"


@pytest.mark.parametrize("order", ["import timm, vankit", "import vankit; from timm.models import create_model"])
def test_the_models_are_registered_whatever_is_imported_first(order: str) -> None:
    assert run(f"{order}; import timm; print(type(timm.create_model('van_b0')).__name__)") == "VAN"


@pytest.mark.parametrize("module", ["vankit", "vankit.predict", "vankit.cli", "vankit.engines", "vankit.exported"])
def test_without_pytorch(module: str) -> None:
    heavy = "[name for name in ('torch', 'timm', 'torchvision') if name in sys.modules]"
    assert run(f"import sys, {module}; print({heavy})") == "[]"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
