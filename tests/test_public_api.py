"""The public names: which they are, and that the models are registered with timm, in whatever order one imports."""

import subprocess
import sys

import pytest

import vankit

NAMES = """
VAN Checkpoint ClassificationReport DenseConfig DensePredictor DenseReport Detections DownloadError Explanation
Failure ImageError Inspection Label LargeKernelAttention MultiLabelReport PanopticMap Prediction Predictor SemanticMap
TrainConfig UserError bench complexity convert demo explain export fold inference_model inspect large_kernel_attention
load_checkpoint predict read_checkpoint recipe save_checkpoint serve train validate
"""


def test_the_public_names() -> None:
    assert set(vankit.__all__) == set(dir(vankit)) == set(NAMES.split())


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = vankit.nothing


@pytest.mark.parametrize(
    "order",
    [
        pytest.param("import timm, vankit", marks=pytest.mark.slow),
        "import vankit; from timm.models import create_model",
    ],
)
def test_the_models_are_registered_whatever_is_imported_first(order: str) -> None:
    code = f"{order}; import timm; print(type(timm.create_model('van_b0')).__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "VAN"
