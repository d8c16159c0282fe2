"""OpenVINO Model API reads an exported model by itself, and answers as vankit does."""

import importlib.util
import subprocess
import sys
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

Checkpoint = Callable[[str, str], Path]

# in float32: of the path alone it would compute in bf16 where the CPU has it
CODE = """
import sys
import numpy as np
from model_api.adapters import OpenvinoAdapter, create_core
from model_api.models import Model

path, picture, found, settings = sys.argv[1:]
print(type(Model.create_model(path, device="CPU")).__name__)
config = {"INFERENCE_PRECISION_HINT": "f32"}
adapter = OpenvinoAdapter(create_core(), path, device="CPU", plugin_config=config)
model = Model.create_model(adapter, configuration=eval(settings))
if "MaskRCNN" in type(model).__name__:
    model.orig_width = model.orig_height = 1  # the wrapper of 0.4.7 forgets them where sizes vary
result = model(np.load(picture))
names = ("saliency_map", "raw_scores", "resultImage", "bboxes", "labels", "scores", "masks")
np.savez(found, **{name: np.asarray(getattr(result, name)) for name in names if hasattr(result, name)})
"""


@pytest.fixture
def ask(tmp_path: Path) -> Callable[[Exported, NDArray[np.uint8]], Any]:
    """What Model API says of a picture, and its wrapper, in a process of its own: it crashes when it is freed."""
    if importlib.util.find_spec("model_api") is None:
        pytest.skip("openvino-model-api is not installed")

    def run(folder: Exported, picture: NDArray[np.uint8]) -> Any:
        np.save(tmp_path / "picture.npy", picture)
        settings = {"confidence_threshold": 0.0} if folder.description.task == "detect" else {}
        words = [str(folder.path), str(tmp_path / "picture.npy"), str(tmp_path / "found.npz"), repr(settings)]
        done = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True)
        assert (tmp_path / "found.npz").exists(), done.stderr
        return done.stdout.split()[-1], np.load(tmp_path / "found.npz")

    return run


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    return render_scene(7, size=(90, 130), objects=3).image


@pytest.mark.slow
@pytest.mark.export
def test_a_classifier(ask: Callable[..., Any], tmp_path: Path) -> None:
    folder = vankit.export("van_b0.cifar10", out=tmp_path / "out")
    x = render_scene(1, size=64).image  # of the network's own size: resizing is not Pillow's
    wrapper, found = ask(folder, x)
    assert wrapper == "ClassificationModel"
    for label in vankit.Predictor(folder.folder, top_k=10)(x).labels:
        assert found["raw_scores"][label.index] == pytest.approx(label.score, abs=1e-4)
    predictor = vankit.Predictor(folder.folder)
    _, maps = predictor.class_maps(predictor.preprocess(x))
    np.testing.assert_allclose(found["saliency_map"][0], maps, atol=1e-4)


@pytest.mark.slow
@pytest.mark.export
def test_a_segmenter(
    ask: Callable[..., Any], dense_checkpoint: Checkpoint, tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    folder = vankit.export(checkpoint=dense_checkpoint("semantic_fpn", "segment"), out=tmp_path / "out")
    wrapper, found = ask(folder, picture)
    expected = vankit.DensePredictor(folder.folder).results(picture)["semantic"]
    assert wrapper == "SegmentationModel" and found["resultImage"].shape == expected.shape
    assert (found["resultImage"] == expected).mean() > 0.999


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize(("head", "kind"), [("faster_rcnn", "SSD"), ("mask_rcnn", "MaskRCNNModel")])
def test_a_detector(
    head: str,
    kind: str,
    ask: Callable[..., Any],
    dense_checkpoint: Checkpoint,
    tmp_path: Path,
    picture: NDArray[np.uint8],
) -> None:
    folder = vankit.export(checkpoint=dense_checkpoint(head, "detect"), out=tmp_path / "out")
    wrapper, found = ask(folder, picture)
    masks = head == "mask_rcnn"
    expected = vankit.DensePredictor(folder.folder, score=0).results(picture)
    wanted = {
        (int(label) + masks, *box.tolist())
        for label, box in zip(expected["labels"], expected["boxes"].round().astype(int), strict=True)
    }
    given = {(int(label), *box.tolist()) for label, box in zip(found["labels"], found["bboxes"], strict=True)}
    assert wrapper == kind
    assert len(given) > 10 and len(given & wanted) >= 0.9 * max(len(given), len(wanted))
    np.testing.assert_allclose(np.sort(found["scores"])[::-1][:10], expected["scores"][:10], atol=1e-4)
    if masks:
        shares = [mask.mean() for mask in found["masks"][:10]], [mask.mean() for mask in expected["masks"][:10]]
        np.testing.assert_allclose(*map(sorted, shares), atol=0.02)


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
    outputs = ("segments", "labels", "scores")
    assert model_info(Exported(folder, "openvino", "float32", True, panoptic, outputs=outputs)) == {}
    detector = Description("detect", "mask_rcnn", "van_b0", classes)
    info = model_info(Exported(folder, "openvino", "float32", True, detector, outputs=("boxes", "labels", "masks")))
    assert (info["model_type"], info["labels"]) == ("MaskRCNN", "background dog polar_bear")
