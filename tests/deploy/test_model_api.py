"""OpenVINO Model API reads an exported model by itself, and answers as vankit does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import vankit
from vankit.data.preprocessing import Preprocessing
from vankit.data.shapes import render_scene
from vankit.deploy.folder import Exported
from vankit.deploy.model_api import model_info
from vankit.models.description import Description

models = pytest.importorskip("model_api.models")

pytestmark = pytest.mark.export

Checkpoint = Callable[[str, str], Path]


def opened(folder: Exported) -> Any:
    """In float32; of the path alone it would compute in bf16 where the CPU has it."""
    from model_api.adapters import OpenvinoAdapter, create_core

    config = {"INFERENCE_PRECISION_HINT": "f32"}
    return models.Model.create_model(
        OpenvinoAdapter(create_core(), str(folder.path), device="CPU", plugin_config=config)
    )


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    return render_scene(7, size=(90, 130), objects=3).image


def test_a_classifier(tmp_path: Path) -> None:
    folder = vankit.export("van_b0.cifar10", out=tmp_path / "out")
    model, predictor = opened(folder), vankit.Predictor(folder.folder, top_k=10)
    for seed in range(3):  # of the network's own size: resizing is not Pillow's
        x = render_scene(seed, size=64).image
        scores = model(x).raw_scores
        for label in predictor(x).labels:
            assert scores[label.index] == pytest.approx(label.score, abs=1e-4)
        assert model(x).top_labels[0].name == predictor(x).labels[0].name
    assert type(models.Model.create_model(str(folder.path), device="CPU")).__name__ == "ClassificationModel"


@pytest.mark.slow
def test_a_segmenter(dense_checkpoint: Checkpoint, tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    folder = vankit.export(checkpoint=dense_checkpoint("semantic_fpn", "segment"), out=tmp_path / "out")
    expected = vankit.DensePredictor(folder.folder).results(picture)["semantic"]
    found = opened(folder)(picture).resultImage
    assert found.shape == expected.shape and (found == expected).mean() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_a_detector(head: str, dense_checkpoint: Checkpoint, tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    folder = vankit.export(checkpoint=dense_checkpoint(head, "detect"), out=tmp_path / "out")
    model, masks = opened(folder), head == "mask_rcnn"
    if masks:
        model.orig_width = model.orig_height = 1  # its wrapper forgets them where sizes vary (0.4.7)
    model.params.confidence_threshold = 0.0
    found, expected = model(picture), vankit.DensePredictor(folder.folder, score=0).results(picture)
    assert len(expected["scores"]) > 10
    wanted = {
        (int(label) + masks, *box.tolist())
        for label, box in zip(expected["labels"], expected["boxes"].round().astype(int), strict=True)
    }
    given = {(int(label), *box.tolist()) for label, box in zip(found.labels, found.bboxes, strict=True)}
    assert len(given & wanted) >= 0.9 * len(given)


def test_what_is_written() -> None:
    preprocessing = Preprocessing((3, 64, 64), (0.4, 0.5, 0.6), (0.25, 0.5, 1.0), 0.9, "bicubic")
    classes = ["dog", "polar bear"]
    several = Description(classes=classes, preprocessing=preprocessing, thresholds=[0.4, 0.6])
    folder = Path("out")
    assert model_info(Exported(folder, "openvino", "float32", False, several)) == {
        "model_type": "Classification",
        "labels": "dog polar_bear",
        "mean_values": "102 127.5 153",
        "scale_values": "63.75 127.5 255",
        "reverse_input_channels": "False",
        "resize_type": "crop",
        "interpolation_mode": "CUBIC",
        "output_raw_scores": "True",
        "multilabel": "True",
        "confidence_threshold": "0.4",
    }
    panoptic = Description("panoptic", "mask2former", "van_b0", classes)
    assert (
        model_info(Exported(folder, "openvino", "float32", True, panoptic, outputs=("segments", "labels", "scores")))
        == {}
    )
    detector = Description("detect", "mask_rcnn", "van_b0", classes)
    info = model_info(Exported(folder, "openvino", "float32", True, detector, outputs=("boxes", "labels", "masks")))
    assert (info["model_type"], info["labels"]) == ("MaskRCNN", "background dog polar_bear")
